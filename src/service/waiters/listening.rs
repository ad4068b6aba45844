//! The thread that listens for notifications and passes them to the waiters.

use super::super::locked;
use super::{PING, Waiters, jitter};
use crate::store::{Budget, Failure, Listener, NotListening, Store};
use crate::sync::Instant;
use std::cell::Cell;
use std::time::Duration;

/// The listening connection is closed when nobody has waited for this long.
const QUIET: Duration = Duration::from_secs(30);

/// How long one attempt to listen, or one ping, may take.
const OPENING: Duration = Duration::from_secs(5);

impl Waiters {
    /// Listens as long as anybody waits. The main loop of its own thread.
    pub fn attend(&self, store: &Store) {
        let mut pause = Duration::from_millis(50);
        loop {
            match Listener::open(store, Budget::new(OPENING, &|| Ok(()))) {
                Ok(mut listener) => {
                    self.set_listening(Some(listener.number()));
                    while self.wanted() && self.listen(&mut listener) {}
                    pause = Duration::from_millis(50);
                }
                Err(NotListening::Pooler) => {
                    log::info!("notifications do not come through: waiters poll");
                    pause = Duration::from_secs(300);
                }
                Err(NotListening::Unreachable(failure)) => {
                    log::debug!("no listening connection: {failure:?}");
                    pause = (pause * 2).min(Duration::from_secs(2));
                }
            }
            self.set_listening(None);
            let until = Instant::now() + pause;
            loop {
                if !self.wanted() {
                    return;
                }
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                self.pass_by();
                let state = locked(&self.state);
                drop(self.somebody.wait_timeout(state, left.min(PING)));
            }
        }
    }

    /// Passes on notifications; `false` if the connection is lost.
    fn listen(&self, listener: &mut Listener) -> bool {
        let heard = listener.hear(PING);
        let heard = heard.and_then(|calls| {
            if calls.is_empty() && locked(&self.state).quiet.is_none() {
                self.ping(listener)?;
            }
            Ok(calls)
        });
        match heard {
            Ok(calls) => {
                self.call(&calls);
                self.pass_by();
                true
            }
            Err(failure) => {
                log::debug!("the listening connection is lost: {failure:?}");
                false
            }
        }
    }

    /// Pings the server. If that takes longer than it should, the waiters look for themselves in
    /// the meantime: the server may just be slow.
    fn ping(&self, listener: &mut Listener) -> Result<(), Failure> {
        let (started, number) = (Instant::now(), listener.number());
        let late = Cell::new(false);
        let check = || {
            if !late.get() && started.elapsed() > PING {
                late.set(true);
                self.set_listening(None);
            }
            Ok(())
        };
        listener.ping(Budget::new(OPENING, &check))?;
        if late.get() {
            self.set_listening(Some(number));
        }
        Ok(())
    }

    fn set_listening(&self, listener: Option<i64>) {
        let now = Instant::now();
        let mut state = locked(&self.state);
        state.listening = listener;
        let mut woken = Vec::new();
        for line in state.lines.values_mut() {
            if listener.is_none() {
                line.poll_at(now + jitter(0.0..0.1));
            }
            woken.extend(line.wake(now));
        }
        drop(state);
        for wakeup in woken {
            wakeup.wake();
        }
    }

    /// Whether to go on listening: someone waits, or did so recently.
    fn wanted(&self) -> bool {
        let mut state = locked(&self.state);
        let wanted = state.quiet.is_none_or(|since| since.elapsed() < QUIET);
        if !wanted {
            state.attended = false;
            state.listening = None;
        }
        wanted
    }

    /// Ends the listening thread, unless someone waits. Returns whether it ends.
    pub fn retire(&self) -> bool {
        let mut state = locked(&self.state);
        let idle = state.lines.is_empty();
        if idle && state.attended {
            state.quiet = Instant::now().checked_sub(QUIET);
        }
        drop(state);
        self.somebody.notify_one();
        idle
    }

    /// No thread could be started to listen.
    pub fn unattended(&self) {
        locked(&self.state).attended = false;
    }
}
