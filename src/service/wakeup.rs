//! Wakes a waiter: a thread or a coroutine.

use crate::sync::Condvar;

/// How a waiter is woken.
pub enum Wakeup {
    /// A thread sleeps.
    Thread(Condvar),
    /// Something else is told. It may not call back.
    Call(Box<dyn Fn() + Send + Sync>),
}

impl Wakeup {
    /// The thread that sleeps is woken.
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
