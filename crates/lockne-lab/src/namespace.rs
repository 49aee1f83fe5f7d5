//! A network namespace without a name.
//!
//! It lives as long as something holds it: a [`Namespace`], a thread or process in it, or a socket
//! made in it.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{fs::MetadataExt, process::CommandExt},
    },
    panic::resume_unwind,
    process::Command,
    sync::{Arc, mpsc},
    thread,
};

use nix::sched::{CloneFlags, setns, unshare};
use tokio::sync::oneshot;

/// A network namespace; clones stand for the same one.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: Arc<str>,
    file: Arc<File>,
}

/// Why a namespace could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused a new namespace.
    #[error("cannot create the network namespace `{name}`")]
    Create {
        /// What it was to be called in messages.
        name: Arc<str>,
        /// Why.
        source: io::Error,
    },
    /// A thread could not enter.
    #[error("cannot enter the network namespace `{name}`")]
    Enter {
        /// What it is called in messages.
        name: Arc<str>,
        /// Why.
        source: io::Error,
    },
    /// A setting below `/proc/sys/net` could not be written.
    #[error("cannot set `{key}` to `{value}` in the network namespace `{name}`")]
    Setting {
        /// What the namespace is called in messages.
        name: Arc<str>,
        /// The path below `/proc/sys/net`.
        key: String,
        /// What it was to hold.
        value: String,
        /// Why.
        source: io::Error,
    },
    /// A service did not start.
    #[error("cannot start `{service}` in the network namespace `{name}`")]
    Service {
        /// What the namespace is called in messages.
        name: Arc<str>,
        /// What the service is called.
        service: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Create { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("network namespaces need CAP_SYS_ADMIN: run it as root")
            }
            _ => None,
        }
    }
}

impl Namespace {
    /// Creates an empty namespace with its loopback down; `name` is for messages only.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, mostly for lack of `CAP_SYS_ADMIN`.
    pub fn create(name: &str) -> Result<Self, Error> {
        let name: Arc<str> = name.into();
        let create = || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        };

        // A thread of its own, because it stays in the new namespace.
        match join_scoped(create) {
            Ok(file) => Ok(Self {
                name,
                file: Arc::new(file),
            }),
            Err(source) => Err(Error::Create { name, source }),
        }
    }

    /// The namespace of the thread that asks.
    ///
    /// # Errors
    ///
    /// When /proc does not show it.
    pub fn current() -> io::Result<Self> {
        Ok(Self {
            name: "this machine".into(),
            file: Arc::new(File::open("/proc/thread-self/ns/net")?),
        })
    }

    /// What it is called in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The number that `/proc/PID/ns/net` shows for it.
    ///
    /// # Errors
    ///
    /// When the descriptor cannot be examined.
    pub fn inode(&self) -> io::Result<u64> {
        self.file.metadata().map(|metadata| metadata.ino())
    }

    /// Does `work` on a thread inside the namespace and waits for it.
    ///
    /// Sockets made there belong to the namespace, wherever they are used later. A panic in `work`
    /// goes on in the caller.
    ///
    /// # Errors
    ///
    /// When the thread cannot enter.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        join_scoped(|| {
            self.enter()?;
            Ok(work())
        })
    }

    /// Does `work` on a thread with a tokio loop of its own inside the namespace and waits for it.
    ///
    /// May be called from another tokio loop, which it blocks.
    ///
    /// # Errors
    ///
    /// When the thread cannot enter, or a loop cannot be made.
    pub fn run_async<T: Send>(&self, work: impl AsyncFnOnce() -> T + Send) -> Result<T, Error> {
        self.run(|| {
            let runtime = self.runtime()?;
            Ok(runtime.block_on(work()))
        })?
    }

    /// Starts a service on a thread with a tokio loop of its own inside the namespace.
    ///
    /// `start` makes it ready and gives what keeps it alive; that is dropped, on the same loop, when
    /// the [`Service`] is.
    ///
    /// # Errors
    ///
    /// When the thread cannot enter, or `start` fails.
    pub fn serve<Guard, Failure>(
        &self,
        service: &str,
        start: impl AsyncFnOnce() -> Result<Guard, Failure> + Send + 'static,
    ) -> Result<Service, Error>
    where
        Failure: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, outcome) = mpsc::channel();
        let namespace = self.clone();
        let failed = |source| Error::Service {
            name: self.name.clone(),
            service: service.to_owned(),
            source,
        };

        let thread = thread::Builder::new()
            .name(format!("lab-{service}"))
            .spawn(move || {
                let runtime = match namespace.enter().and_then(|()| namespace.runtime()) {
                    Ok(runtime) => runtime,
                    Err(error) => return drop(ready.send(Err(error.into()))),
                };
                runtime.block_on(async {
                    let started = start().await.map_err(Into::into);
                    let (outcome, guard) = match started {
                        Ok(guard) => (Ok(()), Some(guard)),
                        Err(error) => (Err(error), None),
                    };
                    let serving = outcome.is_ok();
                    drop(ready.send(outcome));
                    if serving {
                        // An error means that the `Service` is gone, which is the same wish.
                        let _ = stopped.await;
                    }
                    drop(guard);
                });
            })
            .map_err(|error| failed(error.into()))?;
        let service = Service {
            stop: Some(stop),
            thread: Some(thread),
        };

        match outcome.recv() {
            Ok(Ok(())) => Ok(service),
            Ok(Err(source)) => Err(failed(source)),
            Err(_) => Err(failed("it panicked".into())),
        }
    }

    /// A command whose process will live in the namespace.
    ///
    /// Nothing else about it changes: `/sys` stays what it is, with cgroups and the BPF file system.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let file = self.file.clone();
        let enter = move || setns(&*file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
        // SAFETY: the closure makes one system call and touches no memory of the allocator.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// Writes a setting below `/proc/sys/net`, such as `ipv4/ip_forward`.
    ///
    /// # Errors
    ///
    /// When there is no such setting or it does not take the value.
    pub fn set(&self, key: &str, value: &str) -> Result<(), Error> {
        self.set_all(&[(key, value)])
    }

    /// Writes several settings as [`Self::set`] does.
    ///
    /// # Errors
    ///
    /// As [`Self::set`].
    pub fn set_all(&self, settings: &[(&str, &str)]) -> Result<(), Error> {
        // The kernel looks these files up in the namespace of the thread that opens them.
        self.run(|| {
            for (key, value) in settings {
                std::fs::write(format!("/proc/sys/net/{key}"), value).map_err(|source| {
                    Error::Setting {
                        name: self.name.clone(),
                        key: (*key).to_owned(),
                        value: (*value).to_owned(),
                        source,
                    }
                })?;
            }
            Ok(())
        })?
    }

    fn enter(&self) -> Result<(), Error> {
        setns(&*self.file, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| self.cannot_enter(errno.into()))
    }

    fn runtime(&self) -> Result<tokio::runtime::Runtime, Error> {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| self.cannot_enter(source))
    }

    fn cannot_enter(&self, source: io::Error) -> Error {
        Error::Enter {
            name: self.name.clone(),
            source,
        }
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Something that runs on a thread inside a namespace until it is dropped.
#[derive(Debug)]
pub struct Service {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self
            .thread
            .take()
            .is_some_and(|thread| thread.join().is_err())
        {
            tracing::error!("a service of the lab panicked");
        }
    }
}

fn join_scoped<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let joined = thread::scope(|scope| scope.spawn(work).join());
    joined.unwrap_or_else(|panic| resume_unwind(panic))
}
