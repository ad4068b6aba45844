//! Identities of the Lock objects, holds and levels of a process.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! identity {
    ($(#[$comment:meta])* $name:ident) => {
        $(#[$comment])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(u64);

        impl $name {
            /// A new one, never used before in this process.
            #[must_use]
            pub fn fresh() -> $name {
                static NEXT: AtomicU64 = AtomicU64::new(1);
                $name(NEXT.fetch_add(1, Relaxed))
            }

            /// As a number.
            #[must_use]
            pub fn number(self) -> u64 {
                self.0
            }

            /// From [`Self::number`].
            #[must_use]
            pub fn from_number(number: u64) -> $name {
                $name(number)
            }
        }
    };
}

identity! {
    /// A Lock object.
    LockId
}
identity! {
    /// A hold, whatever its current token.
    HoldId
}
identity! {
    /// One entering of a hold.
    LevelId
}

/// What an enterer keeps in order to leave the level it opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Entered {
    /// The hold.
    pub hold: HoldId,
    /// The level in it.
    pub level: LevelId,
}
