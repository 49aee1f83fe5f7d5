//! Whether presenterm shows every slide, and shows it whole.

use std::{collections::HashSet, fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail, ensure};

/// What a projector shows at a size that the last row can read.
const COLUMNS: usize = 120;
const ROWS: usize = 38;

/// The rows below a slide that its number takes.
const FOOTER: usize = 2;

/// Room to see how long a slide would like to be.
const TALL: usize = 120;

/// Lets presenterm render all slides as HTML, on a screen that is too tall, and counts the rows that
/// each one uses. No terminal is needed.
pub(super) fn check(root: &Path, slides: &str) -> Result<usize> {
    let folder = tempfile::tempdir().context("cannot make a folder")?;
    let config = folder.path().join("config.yaml");
    let text = format!("export:\n  dimensions:\n    columns: {COLUMNS}\n    rows: {TALL}\n");
    fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
    let page = folder.path().join("slides.html");
    super::run_tool(
        Command::new("presenterm")
            .arg("--config-file")
            .arg(&config)
            .args([
                "--image-protocol",
                "ascii-blocks",
                "--export-html",
                "--output",
            ])
            .arg(&page)
            .arg(root.join(slides)),
        "`cargo install presenterm --locked --version 0.16.1` has it",
    )?;
    let html =
        fs::read_to_string(&page).with_context(|| format!("cannot read {}", page.display()))?;
    let mut count = 0;
    let mut shown = HashSet::new();
    for slide in html.split("<div class=\"container\">").skip(1) {
        count += 1;
        let rows: Vec<_> = slide
            .split("<div class=\"content-line\">")
            .skip(1)
            .take(TALL)
            .map(text_of)
            .collect();
        ensure!(rows.len() == TALL, "presenterm's HTML has another form");
        shown.extend(rows.iter().cloned());
        // The title slide fills the screen, however tall.
        if count == 1 {
            continue;
        }
        let body = &rows[..TALL - FOOTER];
        let used = body.iter().rposition(|row| !row.is_empty());
        let title = body.iter().find(|row| !row.is_empty());
        if let Some(used) = used
            && used + 1 + FOOTER > ROWS
        {
            bail!(
                "slide {count} ({}) has {} rows, {ROWS} fit",
                title.map_or("?", String::as_str),
                used + 1 + FOOTER
            );
        }
    }
    let text =
        fs::read_to_string(root.join(slides)).with_context(|| format!("cannot read {slides}"))?;
    let expected = text.matches("<!-- end_slide -->").count();
    // The title slide comes from the front matter; the last slide has no end.
    ensure!(
        count == expected + 2,
        "presenterm shows {count} slides of {}",
        expected + 2
    );
    check_code(slides, &text, &shown)?;
    check_notes(slides, &text)?;
    Ok(count)
}

/// Checks that each slide's note says when it comes and how long it takes, that this adds up, and that what
/// is shown live has a way out.
fn check_notes(slides: &str, text: &str) -> Result<()> {
    // Minutes since the start.
    let mut now = 0;
    let mut last = None;
    for slide in text.split("<!-- end_slide -->") {
        let title = slide.lines().zip(slide.lines().skip(1));
        let title = title
            .filter(|(_, below)| below.starts_with("==="))
            .map(|(title, _)| title)
            .next()
            .unwrap_or("?");
        let note = slide.split_once("<!-- speaker_note: |\n");
        let (_, note) = note.with_context(|| format!("{slides}: `{title}` has no note"))?;
        let (start, length) = times(note)
            .with_context(|| format!("{slides}: the note of `{title}` begins with no time"))?;
        ensure!(
            last.is_none(),
            "{slides}: a slide before `{title}` has no length"
        );
        ensure!(
            start == now,
            "{slides}: `{title}` comes at {start} minutes by its note, and at {now} by those before"
        );
        match length {
            Some(length) => now += length,
            None => last = Some(start),
        }
        ensure!(
            !title.starts_with("Live") || note.contains("Breaks:"),
            "{slides}: the note of `{title}` does not say what to do when it breaks"
        );
    }
    Ok(())
}

/// When a slide comes, and how long it takes, in minutes, of a note such as "0:21, 6 min. ..".
fn times(note: &str) -> Option<(u32, Option<u32>)> {
    let (start, rest) = note.trim_start().split_at_checked(4)?;
    let (hours, minutes) = start.split_once(':')?;
    let start = hours.parse::<u32>().ok()? * 60 + minutes.parse::<u32>().ok()?;
    let length = rest.strip_prefix(", ").and_then(|rest| {
        let (length, _) = rest.split_once(" min")?;
        length.parse().ok()
    });
    Some((start, length))
}

/// Checks that each line of code is a row of its own: what is too wide would be wrapped.
fn check_code(slides: &str, text: &str, shown: &HashSet<String>) -> Result<()> {
    let mut is_code = false;
    for (number, line) in text.lines().enumerate() {
        if line.starts_with("```") {
            is_code = !is_code;
        } else if is_code {
            ensure!(
                shown.contains(line.trim()),
                "{slides}:{}: does not fit into {COLUMNS} columns:\n{line}",
                number + 1
            );
        }
    }
    Ok(())
}

/// The text of a row of HTML, without tags and the space around.
fn text_of(row: &str) -> String {
    let (row, _) = row.split_once("</div>").unwrap_or((row, ""));
    let mut text = String::new();
    let mut is_tag = false;
    for letter in row.chars() {
        match letter {
            '<' => is_tag = true,
            '>' => is_tag = false,
            _ if !is_tag => text.push(letter),
            _ => {}
        }
    }
    let plain = text
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&#39;", "'")
        .replace("&#x27;", "'")
        .replace("&amp;", "&");
    plain.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slide(title: &str, note: &str) -> String {
        format!("{title}\n=====\n\n<!-- speaker_note: |\n  {note}\n-->\n")
    }

    fn check(slides: &[String]) -> Result<()> {
        check_notes("slides", &slides.join("<!-- end_slide -->\n"))
    }

    #[test]
    fn times_of_notes_add_up() {
        let [a, c] = [
            slide("A", "0:00, 2 min. Say."),
            slide("C", "0:03. Questions."),
        ];

        check(&[a.clone(), slide("B", "0:02, 1 min; or less."), c.clone()]).expect("it adds up");
        for wrong in ["0:01, 1 min.", "0:02, 2 min.", "0:02.", "Say."] {
            assert!(
                check(&[a.clone(), slide("B", wrong), c.clone()]).is_err(),
                "{wrong}"
            );
        }
        assert!(check(&[a, "B\n===\n".to_owned()]).is_err());
    }

    #[test]
    fn live_part_says_what_to_do_when_it_breaks() {
        check(&[slide("Live: it", "0:00. Breaks: restart.")]).expect("it says so");
        assert!(check(&[slide("Live: it", "0:00. Good luck.")]).is_err());
    }
}
