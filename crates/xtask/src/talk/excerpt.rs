//! Code for the slides, cut out of files that compile.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail, ensure};
use syn::{ImplItem, Item, spanned::Spanned as _};

/// The C that stands beside the Rust.
const C_FILES: &str = "talk/beside";

/// The named items of a Rust file, or the named parts of another one, as a block of Markdown.
pub(super) fn block(root: &Path, path: &str, names: &[String]) -> Result<String> {
    let source =
        fs::read_to_string(root.join(path)).with_context(|| format!("cannot read {path}"))?;
    ensure!(!names.is_empty(), "{path}: which part?");
    let extension = Path::new(path).extension().and_then(|e| e.to_str());
    let mut parts = Vec::new();
    for name in names {
        let part = match extension {
            Some("rs") => item(&source, name),
            _ => marked(&source, name),
        };
        parts.push(part.with_context(|| format!("{path} has no `{name}`"))?);
    }
    let language = match extension {
        Some("rs") => "rust",
        Some("c" | "h") => "c",
        Some("py") => "python",
        _ => "bash",
    };
    Ok(format!(
        "```{language}\n{}\n```\n\n_{path}_",
        parts.join("\n\n")
    ))
}

/// A Rust item by its name: attributes and all, but without its documentation.
fn item(source: &str, name: &str) -> Option<String> {
    let file = syn::parse_file(source).ok()?;
    let lines = find(&file.items, name)?;
    Some(cut(source, lines.0, lines.1))
}

/// The first and last line of an item, from 1 on.
fn find(items: &[Item], name: &str) -> Option<(usize, usize)> {
    items.iter().find_map(|item| match item {
        Item::Fn(of) if of.sig.ident == name => Some(lines(&of.attrs, item)),
        Item::Struct(of) if of.ident == name => Some(lines(&of.attrs, item)),
        Item::Enum(of) if of.ident == name => Some(lines(&of.attrs, item)),
        Item::Static(of) if of.ident == name => Some(lines(&of.attrs, item)),
        Item::Const(of) if of.ident == name => Some(lines(&of.attrs, item)),
        Item::Impl(of) => of.items.iter().find_map(|item| match item {
            ImplItem::Fn(of) if of.sig.ident == name => Some(lines(&of.attrs, item)),
            _ => None,
        }),
        Item::Mod(of) => find(&of.content.as_ref()?.1, name),
        _ => None,
    })
}

/// The lines of an item from its first attribute that is not documentation.
fn lines(attributes: &[syn::Attribute], item: &impl syn::spanned::Spanned) -> (usize, usize) {
    let end = item.span().end().line;
    let documentation = attributes
        .iter()
        .filter(|attribute| attribute.path().is_ident("doc"))
        .map(|attribute| attribute.span().end().line)
        .max();
    let start = documentation.map_or_else(|| item.span().start().line, |line| line + 1);
    (start, end)
}

/// The lines between `talk: begin NAME` and the next `talk: end`.
fn marked(source: &str, name: &str) -> Option<String> {
    let is = |line: &str, what: &str| line.trim_end_matches(" */").trim_end().ends_with(what);
    let begin = format!("talk: begin {name}");
    let start = source.lines().position(|line| is(line, &begin))? + 2;
    let len = source
        .lines()
        .skip(start - 1)
        .position(|line| is(line, "talk: end"))?;
    Some(cut(source, start, start + len - 1))
}

/// Lines of a text without the indentation that all of them have.
fn cut(source: &str, first: usize, last: usize) -> String {
    let lines: Vec<_> = source
        .lines()
        .take(last)
        .skip(first - 1)
        .map(str::trim_end)
        .collect();
    let indented = lines.iter().filter(|line| !line.is_empty());
    let indent = indented
        .map(|line| line.len() - line.trim_start().len())
        .min()
        .unwrap_or(0);
    let lines: Vec<_> = lines
        .iter()
        .map(|line| line.get(indent..).unwrap_or(""))
        .collect();
    lines.join("\n")
}

/// Checks that each block of Rust on a page is in the file that the line before names.
pub(super) fn check_page(root: &Path, page: &str) -> Result<()> {
    const MARK: &str = "<!-- excerpt: ";
    let text =
        fs::read_to_string(root.join(page)).with_context(|| format!("cannot read {page}"))?;
    let mut excerpts = 0;
    for rest in text.split(MARK).skip(1) {
        let cut = rest.split_once(" -->\n```rust\n").and_then(|(path, rest)| {
            let (excerpt, _) = rest.split_once("```\n")?;
            Some((path, excerpt))
        });
        let (path, excerpt) =
            cut.with_context(|| format!("{page}: an excerpt without its code"))?;
        let source =
            fs::read_to_string(root.join(path)).with_context(|| format!("cannot read {path}"))?;
        ensure!(
            source.contains(excerpt),
            "{page}: not in {path}:\n{excerpt}"
        );
        excerpts += 1;
    }
    let blocks = text.matches("\n```rust\n").count();
    ensure!(blocks == excerpts, "{page}: a block of Rust from nowhere");
    Ok(())
}

/// Compiles the C, by whichever compiler for BPF there is.
pub(super) fn compile(root: &Path) -> Result<()> {
    let compilers: [&[&str]; 2] = [&["bpf-gcc"], &["clang", "--target=bpf"]];
    let works = |words: &&&[&str]| {
        let asked = Command::new(words[0]).arg("--version").output();
        asked.is_ok_and(|output| output.status.success())
    };
    let Some(compiler) = compilers.iter().find(works) else {
        bail!("no C compiler for BPF; `apt-get install gcc-bpf libbpf-dev` has one");
    };
    let folder = root.join(C_FILES);
    for file in fs::read_dir(&folder).with_context(|| format!("cannot list {C_FILES}"))? {
        let file = file?.path();
        let name = file.to_string_lossy();
        if name.ends_with(".py") {
            let parse = "import ast, sys; ast.parse(open(sys.argv[1]).read())";
            let mut command = Command::new("python3");
            super::run_tool(command.args(["-c", parse]).arg(&file), "install it")?;
        }
        if !name.ends_with(".c") {
            continue;
        }
        let mut command = Command::new(compiler[0]);
        command
            .args(&compiler[1..])
            .args(["-O2", "-Wall", "-Wextra", "-Werror"])
            // Debian keeps the headers of the kernel's interface by architecture.
            .arg(format!(
                "-I/usr/include/{}-linux-gnu",
                std::env::consts::ARCH
            ))
            .args(["-idirafter", "/usr/include"]);
        if name.ends_with(".bcc.c") {
            // BCC rewrites it before a compiler makes code of it.
            let header = folder.join("bcc.h");
            command.arg("-fsyntax-only").arg("-include").arg(header);
        } else {
            command.args(["-c", "-o", "/dev/null"]);
        }
        super::run_tool(command.arg(&file), "install it")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUST: &str = "mod a {\n    /// Says.\n    #[inline]\n    fn one() -> u8 {\n        1\n    }\n}\n\nstatic TWO: u8 = 2;\n";

    #[test]
    fn item_comes_with_its_attributes_and_without_documentation_or_indent() {
        assert_eq!(
            item(RUST, "one").as_deref(),
            Some("#[inline]\nfn one() -> u8 {\n    1\n}")
        );
        assert_eq!(item(RUST, "TWO").as_deref(), Some("static TWO: u8 = 2;"));
        assert_eq!(item(RUST, "three"), None);
    }

    #[test]
    fn marked_part_is_what_is_between_the_marks() {
        let source = "/* talk: begin x */\n  a\n    b\n  /* talk: end */\nc\n";

        assert_eq!(marked(source, "x").as_deref(), Some("a\n  b"));
        assert_eq!(marked(source, "y"), None);
    }
}
