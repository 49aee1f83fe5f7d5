//! A machine, as far as a network namespace makes one.

use std::{
    fs::File,
    os::fd::AsFd,
    path::Path,
    pin::Pin,
    process::{Command, Output},
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::thread::{LinkNameSpaceType, UnshareFlags, gettid, move_into_link_name_space};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

type Job = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A network namespace, with a thread in it that runs futures.
pub(crate) struct Side {
    namespace: Arc<File>,
    thread_id: i32,
    jobs: Option<UnboundedSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Side {
    /// Makes an empty one, with loopback.
    pub(crate) fn new() -> Self {
        let (jobs, mut inbox) = unbounded_channel::<Job>();
        let (ready, started) = mpsc::channel();
        let thread = thread::spawn(move || {
            // SAFETY: the thread shares no file descriptor table or memory any less than before.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
            let namespace = File::open("/proc/thread-self/ns/net").unwrap();
            let thread_id = gettid().as_raw_nonzero().get();
            ready.send((namespace, thread_id)).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                while let Some(job) = inbox.recv().await {
                    tokio::spawn(job);
                }
            });
        });
        let (namespace, thread_id) = started.recv().unwrap();
        let side = Self {
            namespace: Arc::new(namespace),
            thread_id,
            jobs: Some(jobs),
            thread: Some(thread),
        };
        side.ip("link set lo up");
        side
    }

    /// Two of them with a cable: `192.0.2.1` and `2001:db8::1` here, 2 at their end there.
    pub(crate) fn pair() -> (Self, Self) {
        let (a, b) = (Self::new(), Self::new());
        a.ip(&format!(
            "link add lan0 type veth peer name lan0 netns {}",
            b.thread_id
        ));
        for (side, host) in [(&a, 1), (&b, 2)] {
            side.ip(&format!("address add 192.0.2.{host}/24 dev lan0"));
            side.ip(&format!("address add 2001:db8::{host}/64 dev lan0 nodad"));
            side.ip("link set lan0 up");
        }
        (a, b)
    }

    /// Runs `future` on the thread of this side.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let (sender, result) = mpsc::channel();
        let job = async move {
            let _ = sender.send(future.await);
        };
        let jobs = self.jobs.as_ref().unwrap();
        assert!(jobs.send(Box::pin(job)).is_ok());
        result.recv().expect("the future did not panic")
    }

    /// Starts `work` on a thread of its own that may block, inside this namespace.
    pub(crate) fn start<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let namespace = self.namespace.clone();
        thread::spawn(move || {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), kind).unwrap();
            work()
        })
    }

    /// Runs a program to its end.
    pub(crate) fn output(&self, program: &str, arguments: &str) -> Output {
        let mut command = Command::new(program);
        command.args(arguments.split_whitespace());
        self.start(move || command.output().unwrap())
            .join()
            .unwrap()
    }

    /// Runs a program that must succeed, and returns what it said.
    pub(crate) fn must(&self, program: &str, arguments: &str) -> String {
        let output = self.output(program, arguments);
        assert!(
            output.status.success(),
            "{program} {arguments}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs ip(8).
    pub(crate) fn ip(&self, arguments: &str) -> String {
        self.must("ip", arguments)
    }

    /// Whether there is an interface called `name`.
    pub(crate) fn has_link(&self, name: &str) -> bool {
        let output = self.output("ip", &format!("link show dev {name}"));
        output.status.success()
    }

    /// Whether `address` answers.
    pub(crate) fn pings(&self, address: &str) -> bool {
        let output = self.output("ping", &format!("-n -c 1 -W 5 {address}"));
        output.status.success()
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        drop(self.jobs.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Whether `program` can be run.
pub(crate) fn has_program(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| Path::new(&folder).join(program).exists())
}

/// Waits until `condition` holds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
