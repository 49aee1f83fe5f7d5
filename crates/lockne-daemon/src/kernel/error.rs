//! Why the kernel side cannot be had.

use std::{io, path::PathBuf};

use aya::{EbpfError, maps::MapError, programs::ProgramError};

/// Why the kernel side cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Policed processes fork so much that they cannot be counted.
    #[error("policed processes start others faster than they can be counted")]
    Busy,
    /// The caller has not the privileges, or the kernel is locked down.
    #[error("not permitted to {action}")]
    NotPermitted {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Process ids, or cgroups, are not the ones that the kernel programs see.
    #[error("not in the initial {kind} namespace")]
    Contained {
        /// The kind of namespace.
        kind: &'static str,
    },
    /// There is no cgroup2 hierarchy.
    #[error("cannot open the root of the cgroup2 hierarchy")]
    NoCgroup2 {
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel does not describe its types.
    #[error("cannot read the kernel's types from {}", path.display())]
    NoBtf {
        /// Where they should be.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel's types are not understood.
    #[error("cannot find `{member}` in the kernel's types")]
    UnknownType {
        /// The struct and its member.
        member: String,
    },
    /// The kernel is too old.
    #[error("this kernel has no {feature}; Linux has it since {since}")]
    Unsupported {
        /// What is missing.
        feature: &'static str,
        /// The first version that has it.
        since: &'static str,
    },
    /// Another program sits at the cgroup root in a way that excludes all others.
    #[error(
        "cannot attach `{program}`: another program claims this hook of the cgroup root for itself"
    )]
    Occupied {
        /// The program of ours that has no room.
        program: &'static str,
    },
    /// The kernel's verifier refuses a program.
    #[error("the kernel refuses the program `{program}`:\n{end}")]
    Rejected {
        /// Which program.
        program: String,
        /// The last lines of the verifier's log.
        end: String,
        /// All of the verifier's log.
        log: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The pins are another network namespace's, or have another mark.
    #[error("{} is in use by lockne with another {what}", pins.display())]
    Foreign {
        /// The directory of the pins.
        pins: PathBuf,
        /// What differs.
        what: &'static str,
    },
    /// The pinned maps have another layout.
    #[error("{} is from another version of lockne: `{map}` differs", pins.display())]
    Incompatible {
        /// The directory of the pins.
        pins: PathBuf,
        /// Which map.
        map: &'static str,
    },
    /// The directory for the pins cannot be had.
    #[error("cannot {action} {}", path.display())]
    Pins {
        /// What was tried.
        action: &'static str,
        /// The directory or pin.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The object cannot be loaded.
    #[error("cannot load the kernel programs")]
    Load(#[source] Box<EbpfError>),
    /// A program cannot be loaded.
    #[error("cannot load the kernel program `{program}`")]
    Program {
        /// Which program.
        program: String,
        /// What the kernel said.
        source: Box<ProgramError>,
    },
    /// A link cannot be made, changed or taken away.
    #[error("cannot {action} the kernel program `{program}`")]
    Link {
        /// What was tried.
        action: &'static str,
        /// Which program.
        program: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A map cannot be read or written.
    #[error("cannot access the kernel map `{map}`")]
    Map {
        /// Which map.
        map: &'static str,
        /// What the kernel said.
        source: Box<MapError>,
    },
    /// All policies together let too many prefixes through.
    #[error("more than {limit} prefixes past tunnels, all policies together")]
    TooManyPrefixes {
        /// How many there can be.
        limit: u32,
    },
    /// There is no such process.
    #[error("there is no process {pid}")]
    NoProcess {
        /// The process id.
        pid: u32,
    },
    /// The process id is beyond what was the highest possible one at load.
    #[error("process {pid} is beyond the highest process id at load, {highest}")]
    ProcessBeyond {
        /// The process id.
        pid: u32,
        /// The highest one there is room for.
        highest: u32,
    },
    /// The device is not there, or has another index.
    #[error("cannot attach to the device `{name}` with index {index}")]
    Device {
        /// Its name.
        name: String,
        /// Its index.
        index: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file that describes the system cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Error {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::NotPermitted { .. } => {
                "run it as root, or with CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON and CAP_SYS_ADMIN"
            }
            Self::Contained { .. } => {
                "run it on the host, or in a container that shares the host's PID and cgroup namespaces"
            }
            Self::NoCgroup2 { .. } => "mount it: `mount -t cgroup2 none /sys/fs/cgroup`",
            Self::NoBtf { .. } => {
                "use a kernel with CONFIG_DEBUG_INFO_BTF=y, as distributions build it"
            }
            Self::Unsupported { .. } => "use a newer kernel",
            Self::Occupied { .. } => {
                "`bpftool cgroup show` on the cgroup root names the program without `multi`; its owner has to allow others"
            }
            Self::Rejected { .. } => {
                "this is a bug in lockne, unless the kernel is locked down for confidentiality; report it with the kernel's version"
            }
            Self::Foreign { .. } => "choose another state directory, or take the other one down",
            Self::Incompatible { .. } | Self::ProcessBeyond { .. } => {
                "run `lockne down` and start again; what is running loses its policy"
            }
            Self::TooManyPrefixes { .. } => "merge neighbouring prefixes",
            _ => return None,
        })
    }

    pub(crate) fn map(map: &'static str) -> impl FnOnce(MapError) -> Self {
        move |source| Self::Map {
            map,
            source: Box::new(source),
        }
    }

    pub(crate) fn load(error: EbpfError) -> Self {
        if let EbpfError::MapError(MapError::CreateError { io_error, .. }) = &error
            && io_error.kind() == io::ErrorKind::PermissionDenied
        {
            let source = io::Error::from_raw_os_error(io_error.raw_os_error().unwrap_or_default());
            return Self::NotPermitted {
                action: "create kernel maps",
                source,
            };
        }
        Self::Load(Box::new(error))
    }

    pub(crate) fn program(program: &str, error: ProgramError) -> Self {
        match error {
            ProgramError::LoadError {
                io_error,
                verifier_log,
            } => {
                let log = verifier_log.to_string();
                if log.is_empty() && io_error.kind() == io::ErrorKind::PermissionDenied {
                    return Self::NotPermitted {
                        action: "load kernel programs",
                        source: io_error,
                    };
                }
                Self::Rejected {
                    program: program.to_owned(),
                    end: last_lines(&log),
                    log,
                    source: io_error,
                }
            }
            source => Self::Program {
                program: program.to_owned(),
                source: Box::new(source),
            },
        }
    }
}

/// The lines before the verifier's statistics, where it says what is wrong.
fn last_lines(log: &str) -> String {
    const LINES: usize = 8;
    let lines: Vec<_> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn end_of_a_log_is_its_last_lines() {
        let lines: Vec<_> = (0..100).map(|n| format!("line {n}\n\n")).collect();
        let log = lines.concat();

        let end = last_lines(&log);

        assert!(end.starts_with("line 92\n") && end.ends_with("line 99"));
        assert_eq!(last_lines("short"), "short");
    }
}
