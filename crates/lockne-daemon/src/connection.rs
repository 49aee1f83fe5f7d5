//! How many connections the daemon keeps, and for whom.
//!
//! Each costs a descriptor. So that nobody can lock the others out, a user has so many and no more, all users
//! together leave some for root, and a connection on which nothing comes is dropped after a while.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use lockne_core::api::Refusal;
use tokio::{
    net::{UnixListener, UnixStream},
    time::{self, Instant},
};

/// Connections of one user at a time.
const PER_USER: usize = 64;
/// Connections of all users but root.
const OF_USERS: usize = 512;
/// Connections of root. With those of the users they stay below the 1024 descriptors of a common process.
const OF_ROOT: usize = 256;

/// The connections that there are, by user.
#[derive(Clone, Debug, Default)]
pub(crate) struct Connections(Arc<Mutex<BTreeMap<u32, usize>>>);

/// A place among them, until dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    connections: Connections,
    uid: u32,
}

impl Connections {
    /// A place for a connection of this user, if there is one.
    pub(crate) fn seat(&self, uid: u32) -> Option<Seat> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = counts.get(&uid).copied().unwrap_or_default();
        let is_free = if uid == 0 {
            own < OF_ROOT
        } else {
            let users = counts.iter().filter(|(uid, _)| **uid != 0);
            own < PER_USER && users.map(|(_, count)| count).sum::<usize>() < OF_USERS
        };
        is_free.then(|| {
            counts.insert(uid, own + 1);
            Seat {
                connections: self.clone(),
                uid,
            }
        })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut counts = self
            .connections
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.uid);
            }
        }
    }
}

/// How long one who waits may take to come in.
const MOMENT: Duration = Duration::from_millis(100);
/// How long all of them may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Tells all who wait that there will be no daemon, and root why.
///
/// Else they go on to wait, and the service manager starts another daemon for them, which fails as well, again and
/// again.
pub(crate) async fn refuse_all(listener: &UnixListener, why: &Refusal) {
    let vague = Refusal {
        error: "the daemon cannot start".to_owned(),
        causes: Vec::new(),
        hint: Some("`journalctl --unit lockne` says why, to who may read it".to_owned()),
    };
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        let Ok(Ok((stream, _))) = time::timeout(MOMENT, listener.accept()).await else {
            return;
        };
        let of_root = stream.peer_cred().is_ok_and(|peer| peer.uid() == 0);
        let refusal = if of_root { why } else { &vague };
        tell(&stream, "500 Internal Server Error", refusal);
    }
}

/// Tells a client that there is no place for it, without waiting for what it wants.
pub(crate) fn turn_away(stream: &UnixStream) {
    let refusal = Refusal {
        error: "the daemon has too many connections".to_owned(),
        causes: vec![format!("a user can have {PER_USER} at a time")],
        hint: Some("try again in a moment".to_owned()),
    };
    tell(stream, "429 Too Many Requests", &refusal);
}

fn tell(stream: &UnixStream, status: &str, refusal: &Refusal) {
    let body = serde_json::to_string(refusal).expect("texts are JSON");
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    // A new connection has room for it; if not, it is closed without a word.
    let _told = stream.try_write(answer.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_cannot_take_the_place_of_another() {
        let connections = Connections::default();

        let mut seats: Vec<Seat> = (0..PER_USER)
            .map(|_| connections.seat(1000).unwrap())
            .collect();
        assert!(connections.seat(1000).is_none());
        assert!(connections.seat(1001).is_some());
        seats.pop();
        assert!(
            connections.seat(1000).is_some(),
            "a free seat is given anew"
        );
    }

    #[test]
    fn all_users_together_leave_place_for_root() {
        let connections = Connections::default();

        let users = 2000..2000 + u32::try_from(OF_USERS).unwrap();
        let seats: Vec<Seat> = users.map(|uid| connections.seat(uid).unwrap()).collect();

        assert!(connections.seat(1000).is_none());
        assert!(connections.seat(0).is_some());
        drop(seats);
        assert!(connections.0.lock().unwrap().is_empty());
    }
}
