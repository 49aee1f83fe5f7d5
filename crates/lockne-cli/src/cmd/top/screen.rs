//! The terminal, and how it is given back whatever happens.

use std::{
    io::{self, IsTerminal as _, stdout},
    panic,
};

use ratatui::{
    DefaultTerminal, Frame,
    crossterm::{
        event::{DisableMouseCapture, EnableMouseCapture},
        execute,
    },
    layout::{Position, Rect},
};

/// The whole terminal, until it is dropped.
pub(super) struct Screen(DefaultTerminal);

impl Screen {
    /// Takes it; with `mouse`, clicks are ours too.
    pub(super) fn take(mouse: bool) -> io::Result<Self> {
        if !stdout().is_terminal() || !io::stdin().is_terminal() {
            return Err(io::Error::other("stdin and stdout are not both a terminal"));
        }
        // Its hook leaves the alternate screen before the message of a panic is printed.
        let terminal = ratatui::try_init()?;
        let screen = Self(terminal);
        if mouse {
            let hook = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                release_mouse();
                hook(info);
            }));
            execute!(stdout(), EnableMouseCapture)?;
        }
        Ok(screen)
    }

    pub(super) fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        self.0.draw(draw).map(drop)
    }

    /// Draws everything anew at the next time. Unlike ratatui's `clear`, it asks the terminal nothing: one that is far
    /// away answers late.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        let size = self.0.size()?;
        self.0.resize(Rect::from((Position::ORIGIN, size)))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // The hooks did, and to do it again would put the cursor before their message.
        if !std::thread::panicking() {
            release_mouse();
            ratatui::restore();
        }
    }
}

/// A terminal that is gone needs nothing more.
fn release_mouse() {
    let _gone = execute!(stdout(), DisableMouseCapture);
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::Read as _,
        os::fd::OwnedFd,
        process::{Command, Stdio},
    };

    use rustix::{
        fs::{Mode, OFlags},
        pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
        termios::{LocalModes, tcgetattr},
    };

    use super::*;

    /// Names this very test in the process that takes the terminal and panics.
    const CHILD: &str = "LOCKNE_TEST_PANIC";

    #[test]
    fn panic_gives_the_terminal_back() {
        if std::env::var_os(CHILD).is_some() {
            let mut screen = Screen::take(true).unwrap();
            screen.draw(|_| panic!("on purpose")).unwrap();
        }
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let path = ptsname(&master, Vec::new()).unwrap();
        let slave = rustix::fs::open(path, flags, Mode::empty()).unwrap();
        let before = tcgetattr(&slave).unwrap();
        let end = |slave: &OwnedFd| Stdio::from(slave.try_clone().unwrap());

        let status = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "--nocapture",
                "cmd::top::screen::tests::panic_gives_the_terminal_back",
            ])
            .env(CHILD, "1")
            .stdin(end(&slave))
            .stdout(end(&slave))
            .stderr(end(&slave))
            .status()
            .unwrap();

        let after = tcgetattr(&slave).unwrap();
        drop(slave);
        let mut printed = Vec::new();
        // The end of a terminal is an error.
        let _end = File::from(master).read_to_end(&mut printed);
        let printed = String::from_utf8_lossy(&printed);
        assert!(!status.success());
        assert!(before.local_modes.contains(LocalModes::ICANON));
        assert_eq!(after.local_modes, before.local_modes);
        assert_eq!(after.input_modes, before.input_modes);
        for (set, reset) in [
            ("\x1b[?1049h", "\x1b[?1049l"),
            ("\x1b[?1000h", "\x1b[?1000l"),
        ] {
            let set = printed.rfind(set).expect(set);
            let reset = printed.rfind(reset).expect(reset);
            let message = printed.find("on purpose").expect("the message");
            assert!(set < reset && reset < message, "{printed:?}");
        }
    }
}
