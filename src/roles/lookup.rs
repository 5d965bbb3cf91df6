//! Names to addresses, on a thread of its own: the C library's resolver cannot be interrupted, and
//! nobody who must stop at once may wait for it.

use super::destination::Destination;
use crate::runtime::errands::Errands;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Who may wait for an answer; more are refused, and ask again after a backoff.
const WAITERS_MAX: usize = 1024;
/// getaddrinfo(3) with its plug-ins uses more stack than our own code.
const STACK: usize = 256 * 1024;

/// What a lookup says: addresses in the order in which they should be tried, or why there are none.
pub type Answer = Result<Vec<SocketAddr>, String>;

type Waiter = Box<dyn FnOnce(Answer) + Send>;

#[derive(Default)]
struct State {
    waiters: Vec<Waiter>,
    /// The last answer with addresses, however late it came.
    known: Option<Vec<SocketAddr>>,
}

/// Asks the system's resolver for one destination, again and again. One lookup is under way at a
/// time and answers all who wait: however slow it is, nobody waits for those of others.
#[derive(Clone)]
pub struct Lookup {
    errands: Errands,
    resolve: Arc<dyn Fn() -> io::Result<Vec<SocketAddr>> + Send + Sync>,
    state: Arc<Mutex<State>>,
}

impl Lookup {
    /// Starts the thread, named `thread`.
    pub fn start(thread: &str, destination: Destination) -> io::Result<Lookup> {
        Lookup::start_with(thread, move || destination.resolve())
    }

    fn start_with(
        thread: &str,
        resolve: impl Fn() -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static,
    ) -> io::Result<Lookup> {
        // The one under way, and one that is sent when its waiters have just been told.
        let errands = Errands::start(thread, 2, STACK)?;
        Ok(Lookup { errands, resolve: Arc::new(resolve), state: Arc::default() })
    }

    /// Calls `answer` when the lookup that is under way, or else a new one, is over; from another
    /// thread. Returns false when too many wait.
    pub fn ask(&self, answer: impl FnOnce(Answer) + Send + 'static) -> bool {
        let mut state = lock(&self.state);
        if state.waiters.len() >= WAITERS_MAX {
            return false;
        }
        state.waiters.push(Box::new(answer));
        if state.waiters.len() > 1 {
            return true;
        }
        let (resolve, shared) = (Arc::clone(&self.resolve), Arc::clone(&self.state));
        let is_sent = self.errands.send(move || {
            let found = resolve().map_err(|error| error.to_string());
            let waiters = {
                let mut state = lock(&shared);
                if let Ok(found) = &found {
                    state.known = Some(found.clone());
                }
                std::mem::take(&mut state.waiters)
            };
            for waiter in waiters {
                waiter(found.clone());
            }
        });
        if !is_sent {
            state.waiters.clear();
        }
        is_sent
    }

    /// What the last lookup that found anything has found.
    pub fn known(&self) -> Option<Vec<SocketAddr>> {
        lock(&self.state).known.clone()
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::sync_channel;

    #[test]
    fn one_lookup_answers_all_and_is_remembered() {
        let (go, gate) = sync_channel::<Option<SocketAddr>>(1);
        let (begins, begun) = sync_channel(WAITERS_MAX);
        let gate = Mutex::new(gate);
        let lookup = Lookup::start_with("test", move || {
            begins.send(()).unwrap();
            let found = gate.lock().unwrap().recv().unwrap();
            found.map(|address| vec![address]).ok_or_else(|| io::Error::other("no"))
        })
        .unwrap();
        let (tell, told) = sync_channel(WAITERS_MAX);
        let ask = || {
            let tell = tell.clone();
            lookup.ask(move |answer| tell.send(answer).unwrap())
        };
        let address: SocketAddr = "192.0.2.1:7".parse().unwrap();
        assert!(ask());
        begun.recv().unwrap();
        assert_eq!(lookup.known(), None);
        assert!((1..WAITERS_MAX).all(|_| ask()));
        assert!(!ask(), "too many wait");
        go.send(Some(address)).unwrap();
        for _ in 0..WAITERS_MAX {
            assert_eq!(told.recv().unwrap(), Ok(vec![address]));
        }
        assert!(begun.try_recv().is_err(), "they were one lookup");
        // The next one fails, and the answer from before stays.
        assert!(ask());
        begun.recv().unwrap();
        go.send(None).unwrap();
        assert_eq!(told.recv().unwrap(), Err("no".to_owned()));
        assert_eq!(lookup.known(), Some(vec![address]));
    }
}
