//! State that belongs to one process and is not inherited by its forked children.

use crate::sync::process_id;
use arc_swap::ArcSwapOption;
use std::sync::Arc;

struct Inner<T> {
    process: u32,
    value: T,
}

/// A value that a forked child sees as new.
///
/// The parent's value is neither used nor dropped in the child: one of the
/// parent's other threads may have held its mutex, or been changing it, at the
/// moment of the fork, and will never go on. For the same reason nobody waits for the
/// thread that makes the value, as with `LazyLock`: who comes second makes one in vain.
pub struct ProcessLocal<T>(ArcSwapOption<Inner<Arc<T>>>);

impl<T: Default> Default for ProcessLocal<T> {
    fn default() -> Self {
        ProcessLocal::new()
    }
}

impl<T: Default> ProcessLocal<T> {
    /// One whose value is made at the first use.
    pub const fn new() -> Self {
        ProcessLocal(ArcSwapOption::const_empty())
    }

    /// The value of the calling process.
    pub fn get(&self) -> Arc<T> {
        self.of(process_id())
    }

    /// The same where the caller knows its process: asking costs a system call.
    pub fn of(&self, process: u32) -> Arc<T> {
        if let Some(value) = self.known(process) {
            return value;
        }
        if process != process_id() {
            // In a child that was forked in the middle of a call: the rest of the call,
            // if there is any, is about nothing.
            return Arc::default();
        }
        let inherited = self.0.load_full();
        if inherited
            .as_ref()
            .is_none_or(|inner| inner.process != process)
        {
            let value = Arc::default();
            let fresh = Some(Arc::new(Inner { process, value }));
            self.0.compare_and_swap(&inherited, fresh);
            std::mem::forget(inherited);
        }
        self.known(process).unwrap_or_default()
    }

    fn known(&self, process: u32) -> Option<Arc<T>> {
        let inner = self.0.load();
        let inner = inner.as_ref().filter(|inner| inner.process == process)?;
        Some(inner.value.clone())
    }
}

impl<T> Drop for ProcessLocal<T> {
    fn drop(&mut self) {
        let inner = self.0.load_full();
        if inner
            .as_ref()
            .is_some_and(|inner| inner.process != process_id())
        {
            std::mem::forget(inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn one_process_sees_one_value() {
        let local: ProcessLocal<Mutex<u32>> = ProcessLocal::default();
        *local.get().lock().unwrap() += 1;
        assert_eq!(*local.get().lock().unwrap(), 1);
    }
}
