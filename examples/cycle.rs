//! Acquires and releases so many times, without Python. Usage: cycle URL COUNT.
//!
//! For profilers: `valgrind --tool=callgrind` counts its instructions.

use _distlock::engine::{Caller, Lease, Name, Place};
use _distlock::error::Error;
use _distlock::service::{Acquisition, Callbacks, Lock, Locks, Request, Wait, Wakeup};
use _distlock::store::{self, Budget, Settings, Store, Url};
use std::sync::Arc;
use std::time::Duration;

fn main() -> Result<(), Error> {
    let usage = || Error::Configuration("usage: cycle URL COUNT".to_owned());
    let arguments: Vec<String> = std::env::args().collect();
    let [_, url, count] = &arguments[..] else {
        return Err(usage());
    };
    let count: u32 = count.parse().map_err(|_| usage())?;
    let store = Store::new(
        Url::parse(&store::Request::new(url))?,
        Settings::default(),
        None,
    );
    let lease = Lease::from_seconds(60.0).ok_or_else(usage)?;
    let locks = Arc::new(Locks::new(store, lease, true));
    let lock = Lock::new(Name::new("cycle").ok_or_else(usage)?);
    let mut caller = Caller {
        place: Place::current(None, None),
        remembered: Arc::from([]),
    };
    let budget = || Budget::new(Duration::from_secs(30), &|| Ok(()));
    for _ in 0..count {
        let request = Request {
            owner: Some((lock.id(), caller.clone())),
            ..Request::default()
        };
        let (locks_, name, wait) = (
            locks.clone(),
            lock.name().clone(),
            Wait::new(Some(Duration::ZERO)),
        );
        let acquisition = Acquisition::new(locks_, name, request, wait, Wakeup::thread());
        acquisition.wait_for(budget())?;
        if let Some((entered, _)) = acquisition.accept(Some(&caller), Callbacks::default())? {
            caller.remembered = Arc::from([entered.hold]);
        }
        let ending = locks.begin_release(&lock, &caller, None);
        locks.finish(lock.name(), ending, budget())?;
    }
    Ok(())
}
