//! `cargo xtask talk`: the slides, from their template, the sources and the benchmark results.

mod excerpt;
mod result;
mod slides;

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
use minijinja::{
    Environment, Error, ErrorKind, UndefinedBehavior, syntax::SyntaxConfig, value::Rest,
};

use self::result::Results;

const TEMPLATE: &str = "talk/slides/presentation.template.md";
const SLIDES: &str = "talk/slides/presentation.md";
const RESULTS: &str = "bench/results";

/// Pages whose code is written out, each block below a line `<!-- excerpt: PATH -->`.
const PAGES: [&str; 1] = ["docs/ebpf-primer.md"];

/// What to do with the slides.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Change nothing; fail if the slides are not what template, sources and results make, if the C
    /// beside the Rust does not compile, if a note has no time or a live part no way out, or if presenterm cannot show every slide whole
    #[arg(long)]
    check: bool,
}

/// Renders the slides, or checks them.
pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    let rendered = render(root)?;
    let path = root.join(SLIDES);
    if !args.check {
        fs::write(&path, rendered).with_context(|| format!("cannot write {SLIDES}"))?;
        return Ok(());
    }
    let kept = fs::read_to_string(&path).with_context(|| format!("cannot read {SLIDES}"))?;
    if let Some(line) = first_difference(&kept, &rendered) {
        bail!("{SLIDES} is stale from line {line} on; run `cargo xtask talk`");
    }
    for page in PAGES {
        excerpt::check_page(root, page)?;
    }
    excerpt::compile(root)?;
    let count = slides::check(root, SLIDES)?;
    say(&format!("{SLIDES}: {count} slides, each fits the screen"));
    Ok(())
}

fn render(root: &Path) -> Result<String> {
    let template = fs::read_to_string(root.join(TEMPLATE))
        .with_context(|| format!("cannot read {TEMPLATE}"))?;
    let results = Results::read(&root.join(RESULTS))?;

    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    let mut syntax = SyntaxConfig::builder();
    syntax.keep_trailing_newline(true).trim_blocks(true);
    environment.set_syntax(syntax.build().context("the syntax of templates")?);
    let sources = root.to_owned();
    environment.add_function("code", move |path: String, names: Rest<String>| {
        excerpt::block(&sources, &path, &names).map_err(|error| refuse(&error))
    });
    {
        let results = results.clone();
        environment.add_function("has", move |name: String| results.has(&name));
    }
    {
        let results = results.clone();
        environment.add_function(
            "chart",
            move |name: String, unit: String, only: Rest<String>| {
                let chart = results.chart(&name, &unit, &only);
                chart.map_err(|error| refuse(&error))
            },
        );
    }
    {
        let results = results.clone();
        environment.add_function("value", move |name: String, row: String| {
            results.value(&name, &row).map_err(|error| refuse(&error))
        });
    }
    environment.add_function("machine", move |name: String| {
        results.machine(&name).map_err(|error| refuse(&error))
    });
    environment
        .render_named_str(TEMPLATE, &template, ())
        .with_context(|| format!("cannot render {TEMPLATE}"))
}

fn refuse(error: &anyhow::Error) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("{error:#}"))
}

fn first_difference(left: &str, right: &str) -> Option<usize> {
    if left == right {
        return None;
    }
    let same = left
        .lines()
        .zip(right.lines())
        .take_while(|(left, right)| left == right);
    Some(same.count() + 1)
}

/// Runs a program that a check needs, or says how to get it.
fn run_tool(command: &mut std::process::Command, hint: &str) -> Result<String> {
    let name = command.get_program().display().to_string();
    let output = command
        .output()
        .with_context(|| format!("cannot run {name}; {hint}"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{name} failed:\n{said}");
    Ok(said)
}

#[expect(clippy::print_stdout, reason = "the answer of the command")]
fn say(text: &str) {
    println!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_difference_is_a_line_of_either() {
        assert_eq!(first_difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(first_difference("a\nb\n", "a\nc\n"), Some(2));
        assert_eq!(first_difference("a\n", "a\nb\n"), Some(2));
    }
}
