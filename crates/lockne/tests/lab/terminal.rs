//! A terminal with a command in it: what is typed, and what is on the screen.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
};

use rustix::{
    fs::{Mode, OFlags},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize},
};

use crate::home::wait_until;

/// What the command printed so far, as bytes and as a screen.
struct Shown {
    bytes: Vec<u8>,
    screen: vt100::Parser,
}

pub(crate) struct Terminal {
    child: Child,
    master: File,
    slave: OwnedFd,
    shown: Arc<Mutex<Shown>>,
    reader: Option<JoinHandle<()>>,
}

impl Terminal {
    /// Starts `command` in a terminal of this size.
    pub(crate) fn start(mut command: Command, columns: u16, rows: u16) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = ptsname(&master, Vec::new()).unwrap();
        let slave = rustix::fs::open(slave, flags, Mode::empty()).unwrap();
        tcsetwinsize(&master, size(columns, rows)).unwrap();
        let end = || Stdio::from(slave.try_clone().unwrap());
        let child = command
            .env("TERM", "xterm-256color")
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap();
        let shown = Arc::new(Mutex::new(Shown {
            bytes: Vec::new(),
            screen: vt100::Parser::new(rows, columns, 0),
        }));
        let master = File::from(master);
        let reader = {
            let mut master = master.try_clone().unwrap();
            let shown = Arc::clone(&shown);
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                // When nobody has the other end any more, that is an error.
                while let Ok(length @ 1..) = master.read(&mut buffer) {
                    let mut shown = shown.lock().unwrap();
                    shown.bytes.extend_from_slice(&buffer[..length]);
                    shown.screen.process(&buffer[..length]);
                }
            })
        };
        Self {
            child,
            master,
            slave,
            shown,
            reader: Some(reader),
        }
    }

    /// The process in it.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn press(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    pub(crate) fn resize(&self, columns: u16, rows: u16) {
        let mut shown = self.shown.lock().unwrap();
        shown.screen.screen_mut().set_size(rows, columns);
        tcsetwinsize(&self.slave, size(columns, rows)).unwrap();
    }

    /// What is on the screen.
    pub(crate) fn text(&self) -> String {
        self.shown.lock().unwrap().screen.screen().contents()
    }

    /// All that was printed.
    pub(crate) fn printed(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap().bytes).into_owned()
    }

    /// Waits until the screen is such.
    pub(crate) fn wait_for(&self, what: &str, is_so: impl Fn(&str) -> bool) {
        let wait = || wait_until(what, || is_so(&self.text()));
        let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(wait)).is_ok();
        assert!(
            seen,
            "never seen: {what}; on the screen is\n{}",
            self.text()
        );
    }

    /// Whether lines can be typed in it, as in a shell.
    pub(crate) fn takes_lines(&self) -> bool {
        let modes = tcgetattr(&self.slave).unwrap().local_modes;
        modes.contains(LocalModes::ICANON | LocalModes::ECHO)
    }

    /// Kills what is in it without a word.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.end();
    }

    /// Waits until the command has ended by itself.
    pub(crate) fn end(&mut self) -> ExitStatus {
        wait_until("the command ends", || {
            self.child.try_wait().unwrap().is_some()
        });
        self.child.wait().unwrap()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
        // It waits for what comes, until no other end is there.
        drop(self.reader.take());
    }
}

fn size(columns: u16, rows: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}
