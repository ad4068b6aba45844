//! Acquires and releases so many times, without Python. Usage: cycle URL COUNT.
//!
//! For profilers: `valgrind --tool=callgrind` counts its instructions.

use _distlock::engine::{Lease, Name, Owner};
use _distlock::error::Error;
use _distlock::locks::{Entering, Lock, Locks};
use _distlock::store::{Patience, Settings, Store, Url};
use std::sync::Arc;
use std::time::Duration;

fn main() -> Result<(), Error> {
    let usage = || Error::Configuration("usage: cycle URL COUNT".to_owned());
    let arguments: Vec<String> = std::env::args().collect();
    let [_, url, count] = &arguments[..] else {
        return Err(usage());
    };
    let count: u32 = count.parse().map_err(|_| usage())?;
    let store = Store::new(Url::parse(url)?, Settings::default());
    let lease = Lease::from_seconds(60.0).ok_or_else(usage)?;
    let locks = Arc::new(Locks::new(store, lease, true));
    let lock = Lock::new(Name::new("cycle").ok_or_else(usage)?);
    let entering = Entering {
        owner: Owner::current(None, None),
        block: false,
        lease: None,
    };
    let patience = || Patience::new(Duration::from_secs(30), &|| Ok(()));
    for _ in 0..count {
        locks.acquire(&lock, entering, patience())?;
        locks.release(&lock, entering.owner, None, false, patience())?;
    }
    Ok(())
}
