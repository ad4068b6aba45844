//! State that belongs to one process and is not inherited by its forked children.

use crate::sync::process_id;
use arc_swap::ArcSwap;
use std::sync::Arc;

struct Inner<T> {
    process: u32,
    value: T,
}

/// A value that a forked child starts anew.
///
/// The child neither uses nor drops the parent's value: at the moment of the fork another thread of
/// the parent may have held its mutex, or been changing it, and that thread does not exist in the
/// child.
pub struct ProcessLocal<T>(ArcSwap<Inner<Arc<T>>>);

impl<T: Default> Default for ProcessLocal<T> {
    fn default() -> Self {
        ProcessLocal(ArcSwap::from(ProcessLocal::fresh()))
    }
}

impl<T: Default> ProcessLocal<T> {
    fn fresh() -> Arc<Inner<Arc<T>>> {
        Arc::new(Inner {
            process: process_id(),
            value: Arc::default(),
        })
    }

    /// The value of the calling process.
    pub fn get(&self) -> Arc<T> {
        self.of(process_id())
    }

    /// The same for a caller that knows its process: asking costs a system call.
    pub fn of(&self, process: u32) -> Arc<T> {
        let inner = self.0.load();
        if inner.process == process {
            return inner.value.clone();
        }
        drop(inner);
        if process != process_id() {
            // In a child forked in the middle of a call, the rest of the call has no effect.
            return Arc::default();
        }
        let inherited = self.0.load_full();
        if inherited.process != process {
            let previous = self.0.compare_and_swap(&inherited, ProcessLocal::fresh());
            if Arc::ptr_eq(&previous, &inherited) {
                std::mem::forget(inherited);
            }
        }
        self.0.load().value.clone()
    }
}

impl<T> Drop for ProcessLocal<T> {
    fn drop(&mut self) {
        let inner = self.0.load_full();
        if inner.process != process_id() {
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
