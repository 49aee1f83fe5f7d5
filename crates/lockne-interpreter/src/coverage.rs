//! Which lines of the kernel code were run.
//!
//! rbpf has no way to watch a program. So each case is run again once for each instruction, with that
//! instruction replaced by a call that stops the interpreter: the case came to it, or it did not.
//! Programs are deterministic here, so this is exact for *instructions*. What an instruction has to do
//! with a line is the compiler's word: an optimizer drops lines, and it may give code of two lines to one
//! of them. Lines without an instruction of their own are left out of the report, neither run nor
//! missed.

use std::{
    collections::BTreeMap,
    fmt::{self, Display},
};

use crate::{Error, Packet, Program, World, context::Context, lines::Line, program::Reached};

/// How many cases came to each line.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    hits: BTreeMap<Line, u64>,
}

impl Coverage {
    /// Starts with nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a case, which `prepare` makes anew for each run.
    ///
    /// # Errors
    ///
    /// As [`Program::run`].
    pub fn add<C: Context>(
        &mut self,
        program: &Program,
        prepare: impl Fn() -> Result<(World, C, Packet), Error>,
    ) -> Result<(), Error> {
        let mut reached: BTreeMap<&Line, bool> = BTreeMap::new();
        for at in program.reachable() {
            let Some(line) = program.line(at) else {
                continue;
            };
            let was_here = reached.entry(line).or_default();
            if !*was_here {
                let (mut world, mut context, mut packet) = prepare()?;
                let result = program.reaches(at, &mut world, &mut context, &mut packet)?;
                *was_here = result == Reached::Yes;
            }
        }
        for (line, was_here) in reached {
            *self.hits.entry(line.clone()).or_default() += u64::from(was_here);
        }
        Ok(())
    }

    /// The lines with code, in order, and how many cases came to each.
    pub fn lines(&self) -> impl Iterator<Item = (&Line, u64)> {
        self.hits.iter().map(|(line, count)| (line, *count))
    }

    /// The report, in the format of lcov, of files below the folder that the compiler was told to call
    /// `folder`.
    #[must_use]
    pub fn lcov<'a>(&'a self, folder: &'a str) -> impl Display + 'a {
        fmt::from_fn(move |f| {
            let mut files: BTreeMap<&str, Vec<(u32, u64)>> = BTreeMap::new();
            for (line, count) in self.lines() {
                if let Some(path) = line.file.strip_prefix(folder) {
                    let path = path.trim_start_matches('/');
                    files.entry(path).or_default().push((line.number, count));
                }
            }
            for (path, lines) in files {
                writeln!(f, "SF:{path}")?;
                for (number, count) in &lines {
                    writeln!(f, "DA:{number},{count}")?;
                }
                let hit = lines.iter().filter(|(_, count)| *count > 0).count();
                writeln!(f, "LF:{}\nLH:{hit}\nend_of_record", lines.len())?;
            }
            Ok(())
        })
    }
}
