//! Wakes a waiter: a thread or a coroutine.

use crate::sync::Condvar;

/// How a waiter is woken.
pub enum Wakeup {
    /// Wakes a sleeping thread.
    Thread(Condvar),
    /// Calls a function, which must not call back.
    Call(Box<dyn Fn() + Send + Sync>),
}

impl Wakeup {
    /// Wakes a thread that sleeps on it.
    #[must_use]
    pub fn thread() -> Wakeup {
        Wakeup::Thread(Condvar::new())
    }

    pub(super) fn wake(&self) {
        match self {
            Wakeup::Thread(condvar) => condvar.notify_one(),
            Wakeup::Call(call) => call(),
        }
    }
}
