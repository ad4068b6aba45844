//! The way back into the interpreter, closed when the interpreter ends.
//!
//! A thread that asks for the GIL while the interpreter is being finalized is
//! ended by Python on the spot (before 3.14), in the middle of Rust code, which
//! aborts the process. So whoever was in a wait at that time stays there: it is
//! a daemon thread, or one of our own, and ends with the process.

use crate::process::ProcessLocal;
use pyo3::prelude::*;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{LazyLock, OnceLock};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

#[derive(Default)]
struct Gate {
    closed: AtomicBool,
    /// The thread that ends the interpreter may pass.
    closer: OnceLock<ThreadId>,
    /// How many are between the question whether the gate is open and the GIL.
    passing: AtomicUsize,
}

static GATE: LazyLock<ProcessLocal<Gate>> = LazyLock::new(ProcessLocal::default);

/// Held by a thread that is about to get the GIL; dropped when it has it.
pub struct Passage(std::sync::Arc<Gate>);

impl Drop for Passage {
    fn drop(&mut self) {
        self.0.passing.fetch_sub(1, SeqCst);
    }
}

fn try_pass() -> Option<Passage> {
    let gate = GATE.get();
    gate.passing.fetch_add(1, SeqCst);
    let passage = Passage(gate);
    let open =
        !passage.0.closed.load(SeqCst) || passage.0.closer.get() == Some(&thread::current().id());
    open.then_some(passage)
}

/// Passes, or stays for ever.
pub fn pass() -> Passage {
    loop {
        if let Some(passage) = try_pass() {
            return passage;
        }
        thread::sleep(Duration::from_secs(3600));
    }
}

/// Runs `work` with the GIL, from a thread that Python does not know; `None` if
/// the interpreter is at its end.
pub fn visit<T>(work: impl FnOnce(Python<'_>) -> T) -> Option<T> {
    let passage = try_pass()?;
    Python::try_attach(|py| {
        // Still counted while it works: it is short, and must not be cut off.
        let done = work(py);
        drop(passage);
        done
    })
}

/// Called when the interpreter begins to end, after its threads were waited for.
pub fn close(py: Python<'_>) {
    let gate = GATE.get();
    let _ = gate.closer.set(thread::current().id());
    gate.closed.store(true, SeqCst);
    py.detach(|| {
        let until = Instant::now() + Duration::from_secs(1);
        while gate.passing.load(SeqCst) > 0 && Instant::now() < until {
            thread::sleep(Duration::from_millis(1));
        }
    });
}
