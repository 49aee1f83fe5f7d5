//! Text of others, as it can be shown.

/// Text as it can be shown: no control characters, and none that turn the order of letters around.
pub(crate) fn shown(bytes: &[u8]) -> String {
    let mut text = String::new();
    for letter in String::from_utf8_lossy(bytes).chars() {
        if letter.is_control() || is_turning(letter) {
            text.extend(letter.escape_default());
        } else {
            text.push(letter);
        }
    }
    text
}

/// Whether a letter decides in which direction others are shown.
const fn is_turning(letter: char) -> bool {
    matches!(letter, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{61c}')
}

/// The bytes before the first zero.
pub(crate) fn until_zero(bytes: &[u8]) -> &[u8] {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    &bytes[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_others_has_no_control_characters() {
        assert_eq!(
            shown("caf\u{e9} \x1b[31m\n".as_bytes()),
            "caf\u{e9} \\u{1b}[31m\\n"
        );
        assert_eq!(shown("a\u{202e}b".as_bytes()), "a\\u{202e}b");
        assert_eq!(until_zero(b"ab\0c"), b"ab");
    }
}
