//! Bars for times that differ by orders of magnitude.

const WIDTH: u64 = 40;

/// Draws one line for each power of two between the shortest and the longest time, which are in nanoseconds.
#[must_use]
pub fn draw(slots: &[u64]) -> String {
    let (Some(first), Some(last)) = (
        slots.iter().position(|count| *count > 0),
        slots.iter().rposition(|count| *count > 0),
    ) else {
        return String::new();
    };
    let most = slots.iter().copied().max().unwrap_or(1);
    let line = |(slot, count): (usize, &u64)| {
        let length = (count * WIDTH).div_ceil(most);
        let bar = "#".repeat(usize::try_from(length).unwrap_or(0));
        let (from, to) = (time(1 << slot), time(2 << slot));
        format!("{from:>8} - {to:<7} {count:>9} |{bar}\n")
    };
    let shown = slots.iter().enumerate().take(last + 1).skip(first);
    shown.map(line).collect()
}

fn time(nanos: u64) -> String {
    match nanos {
        0..1_000 => format!("{nanos} ns"),
        1_000..1_000_000 => format!("{} us", nanos / 1_000),
        1_000_000..1_000_000_000 => format!("{} ms", nanos / 1_000_000),
        _ => format!("{} s", nanos / 1_000_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_share() {
        let mut slots = [0; 32];
        slots[9] = 1;
        slots[11] = 80;

        let picture = draw(&slots);

        let lines: Vec<_> = picture.lines().collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(
            lines[0],
            format!("{:>8} - {:<7} {:>9} |#", "512 ns", "1 us", 1)
        );
        assert!(lines[1].ends_with(" 0 |"));
        assert!(lines[2].ends_with(&format!(" 80 |{}", "#".repeat(40))));
    }

    #[test]
    fn nothing_is_no_picture() {
        assert_eq!(draw(&[0; 32]), "");
    }
}
