//! The news that a device works no more.

use std::io;

use tokio::sync::watch;

/// Tells, and hears, that the device is dead. Clones share the news.
#[derive(Clone, Debug)]
pub struct Death(watch::Sender<Option<i32>>);

impl Default for Death {
    fn default() -> Self {
        Self::new()
    }
}

impl Death {
    /// No news yet.
    #[must_use]
    pub fn new() -> Self {
        Self(watch::Sender::new(None))
    }

    /// Spreads the news, with the number of the error that it died of.
    pub fn tell(&self, errno: i32) {
        self.0.send_if_modified(|news| {
            let is_first = news.is_none();
            news.get_or_insert(errno);
            is_first
        });
    }

    /// Spreads the news. What comes back is an error that gotatun takes for fatal, too.
    pub(crate) fn fatal(&self, cause: io::Error) -> io::Error {
        self.tell(cause.raw_os_error().unwrap_or(libc::EIO));
        io::Error::new(io::ErrorKind::BrokenPipe, cause)
    }

    /// Waits for the news.
    pub fn wait(&self) -> impl Future<Output = io::Error> + Send + 'static + use<> {
        let mut news = self.0.subscribe();
        // The sender must live as long as somebody waits.
        let sender = self.0.clone();
        async move {
            let errno = news.wait_for(Option::is_some).await;
            let errno = errno.ok().and_then(|errno| *errno).unwrap_or(libc::EIO);
            drop(sender);
            io::Error::from_raw_os_error(errno)
        }
    }
}
