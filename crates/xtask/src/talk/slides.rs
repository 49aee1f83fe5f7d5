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
    Ok(count)
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
