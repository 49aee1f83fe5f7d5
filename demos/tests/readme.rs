//! The pages beside the demos show code that is really there.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::{
    fs,
    path::{Path, PathBuf},
};

const MARK: &str = "<!-- excerpt: ";

#[test]
fn each_excerpt_is_in_its_source() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        let mut excerpts = 0;
        for rest in text.split(MARK).skip(1) {
            let (path, rest) = rest.split_once(" -->\n```rust\n").unwrap();
            let (excerpt, _) = rest.split_once("```\n").unwrap();
            let source = fs::read_to_string(root.join(path)).unwrap();
            assert!(
                source.contains(excerpt),
                "{}: not in {path}:\n{excerpt}",
                page.display()
            );
            excerpts += 1;
        }
        assert_ne!(excerpts, 0, "{} shows no code", page.display());
        let blocks = text.matches("\n```rust\n").count();
        assert_eq!(blocks, excerpts, "{}: code from nowhere", page.display());
    }
}

#[test]
fn each_demo_has_a_page_and_each_page_is_listed() {
    let demos = Path::new(env!("CARGO_MANIFEST_DIR"));
    let list = fs::read_to_string(demos.join("README.md")).unwrap();
    for program in fs::read_dir(demos.join("src/bin")).unwrap() {
        let program = program.unwrap().path();
        let name = program.file_stem().unwrap().to_str().unwrap();
        let number = &name[..2];

        let is_its = |page: &&PathBuf| {
            let folder = page.parent().unwrap().file_name().unwrap();
            folder.to_str().unwrap().starts_with(number)
        };
        let pages = pages();
        let page = pages.iter().find(is_its);
        let page = page.unwrap_or_else(|| panic!("{name} has no page"));
        assert!(
            fs::read_to_string(page).unwrap().contains(name),
            "{} does not say how to start {name}",
            page.display()
        );
        let folder = page.parent().unwrap().file_name().unwrap();
        assert!(
            list.contains(&format!("({}/", folder.to_str().unwrap())),
            "{name} is not listed"
        );
    }
}

fn pages() -> Vec<PathBuf> {
    let demos = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = Vec::new();
    for entry in fs::read_dir(demos).unwrap() {
        let folder = entry.unwrap().path();
        let name = folder.file_name().unwrap().to_str().unwrap();
        if !name.starts_with(|letter: char| letter.is_ascii_digit()) {
            continue;
        }
        for entry in fs::read_dir(&folder).unwrap() {
            let page = entry.unwrap().path();
            if page.extension().is_some_and(|ending| ending == "md") {
                pages.push(page);
            }
        }
    }
    pages.sort();
    pages
}
