//! `lockne man`: the manual page, from the same words as the helps.

use std::{io, process::ExitCode};

use clap::{Command, CommandFactory as _};
use clap_mangen::Man;

use crate::{
    cli::Cli,
    failure::{Failure, Result},
    output,
};

const REST: &str = r".SH EXIT STATUS
.TP
0
done
.TP
1
it failed
.TP
2
wrong usage
.PP
.B lockne run
has the exit status of the program, or
.TP
125
lockne itself failed before the program
.TP
126
the program cannot be executed
.TP
127
there is no such program
.SH ENVIRONMENT
.TP
LOCKNE_STATE_DIR, LOCKNE_SOCKET
as the options \-\-state\-dir and \-\-socket
.TP
NO_COLOR, CLICOLOR_FORCE
no colours, or colours even where no terminal is
.TP
RUST_LOG
what the daemon logs, such as
.B debug
.SH SEE ALSO
.BR wg\-quick (8),
.BR ip\-rule (8)
";

pub(crate) fn man() -> Result<ExitCode> {
    let mut page = Vec::new();
    let failed = |error: io::Error| Failure::new("cannot write the manual page").because(&error);
    render(&mut page).map_err(failed)?;
    output::line(String::from_utf8_lossy(&page).trim_end()).map(|()| ExitCode::SUCCESS)
}

fn render(page: &mut Vec<u8>) -> io::Result<()> {
    let mut cli = Cli::command().disable_help_subcommand(true).term_width(76);
    cli.build();
    let man = Man::new(cli.clone());
    man.render_title(page)?;
    man.render_name_section(page)?;
    man.render_synopsis_section(page)?;
    man.render_options_section(page)?;
    page.extend(b".SH COMMANDS\n");
    for command in cli.get_subcommands() {
        describe(page, command, "lockne");
    }
    page.extend(REST.as_bytes());
    Ok(())
}

/// Prints a command's help as it is, and those of the commands below it.
fn describe(page: &mut Vec<u8>, command: &Command, above: &str) {
    let name = format!("{above} {}", command.get_name());
    let mut command = command.clone().term_width(76);
    let help = command.render_help().to_string();
    let help = help.replace('\\', "\\e").replace('-', "\\-");
    page.extend(format!(".SS {name}\n.nf\n").bytes());
    for line in help.trim_end().lines() {
        // A line that begins with a dot or quote would be a request.
        page.extend(format!("\\&{line}\n").bytes());
    }
    page.extend(b".fi\n");
    for below in command.get_subcommands() {
        describe(page, below, &name);
    }
}
