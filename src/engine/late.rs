//! Statements that may be executed late: their call has gone on without them, because their
//! connection broke or nobody waited for the answer any more. What they do then is undone.

use super::{Lease, Moment, Name, Token};
use std::collections::HashMap;
use std::time::Duration;

/// How long a statement that takes a lock is good for at most, after it was sent: it may be
/// executed when its caller has long since given up.
pub const VALID: Duration = Duration::from_secs(5);

/// What a late statement may do.
#[derive(Clone, Debug, PartialEq)]
pub enum Late {
    /// It takes the lock with this token, once more if its call was `granted` a hold with the
    /// same token: the fence of that one, which stays as it is.
    Taking {
        /// The token.
        token: Token,
        /// The fence of the hold that was granted.
        granted: Option<i64>,
    },
    /// It puts this ticket into the queue.
    Entering(i64),
}

impl Late {
    fn is_taking(&self, wanted: &Token) -> bool {
        matches!(self, Late::Taking { token, .. } if token == wanted)
    }
}

#[derive(Debug)]
struct Watch {
    late: Late,
    lease: Lease,
    /// When to look for what it has done, and for how long not again if it has done nothing.
    next: Moment,
    pause: Duration,
    /// It does nothing after that: whoever looks then looks for the last time.
    last: Moment,
}

/// What is to be undone.
#[derive(Debug, Default)]
pub struct Due {
    /// The names that have unwanted holds, perhaps.
    pub names: Vec<Name>,
    /// The tickets that are to leave the queues of their names.
    pub tickets: Vec<(Name, i64, Lease)>,
    /// When to look again.
    pub next: Option<Moment>,
}

impl Due {
    /// Something is to be done at this moment.
    pub(super) fn at(&mut self, next: Moment) {
        self.next = Some(self.next.map_or(next, |other| other.min(next)));
    }

    /// Whether there is nothing to do now.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && self.tickets.is_empty()
    }
}

/// All statements of one process that may be executed late, by the name of the lock.
#[derive(Debug, Default)]
pub struct Watches {
    watches: HashMap<Name, Vec<Watch>>,
}

impl Watches {
    const PAUSE: Duration = Duration::from_millis(100);
    /// For how long to try if the database cannot be asked. The listening connection that keeps
    /// a ticket alive is gone by then too.
    const LONGEST: Duration = Duration::from_secs(60);

    /// A statement that was sent before `now` may be executed late.
    pub fn add(&mut self, name: &Name, late: Late, lease: Lease, now: Moment) {
        let last = now + VALID;
        let next = match late {
            Late::Taking { .. } => now + Watches::PAUSE,
            // Nobody holds anything by that, so that one look is enough.
            Late::Entering(_) => last,
        };
        let watches = self.watches.entry(name.clone()).or_default();
        watches.retain(|watch| watch.late != late);
        watches.push(Watch {
            late,
            lease,
            next,
            pause: Watches::PAUSE,
            last,
        });
    }

    /// What statements may have taken a lock: with which tokens, for which leases; and with
    /// which fence that is a hold that was granted.
    pub fn takings(&self, name: &Name) -> impl Iterator<Item = (&Token, Lease, Option<i64>)> {
        let watches = self.watches.get(name).map_or(&[][..], Vec::as_slice);
        watches.iter().filter_map(|watch| match &watch.late {
            Late::Taking { token, granted } => Some((token, watch.lease, *granted)),
            Late::Entering(_) => None,
        })
    }

    /// Somebody has looked for what a token holds, and undone it, with statements that were sent
    /// at `sent` or later.
    pub fn looked(&mut self, name: &Name, token: &Token, sent: Moment) {
        self.settle(name, |watch| watch.late.is_taking(token), sent);
    }

    /// The same for a ticket.
    pub fn left(&mut self, name: &Name, ticket: i64, sent: Moment) {
        self.settle(name, |watch| watch.late == Late::Entering(ticket), sent);
    }

    fn settle(&mut self, name: &Name, is_meant: impl Fn(&Watch) -> bool, sent: Moment) {
        let Some(watches) = self.watches.get_mut(name) else {
            return;
        };
        watches.retain_mut(|watch| {
            if is_meant(watch) && watch.next <= sent {
                watch.pause *= 2;
                watch.next = watch.last.min(sent + watch.pause);
                return sent < watch.last;
            }
            true
        });
        if watches.is_empty() {
            self.watches.remove(name);
        }
    }

    /// The database could not be asked about a name.
    pub fn failed(&mut self, name: &Name, now: Moment) {
        for watch in self.watches.get_mut(name).into_iter().flatten() {
            watch.pause = (watch.pause * 2).min(VALID);
            watch.next = watch.next.max(now + watch.pause);
        }
    }

    /// What to look for now. Forgets what does not matter any more.
    pub fn due(&mut self, now: Moment) -> Due {
        let mut due = Due::default();
        self.watches.retain(|name, watches| {
            watches.retain(|watch| now < watch.last + Watches::LONGEST);
            let mut takings = false;
            for watch in watches.iter() {
                due.at(watch.next);
                match watch.late {
                    _ if now < watch.next => {}
                    Late::Taking { .. } => takings = true,
                    Late::Entering(ticket) => {
                        due.tickets.push((name.clone(), ticket, watch.lease));
                    }
                }
            }
            if takings {
                due.names.push(name.clone());
            }
            !watches.is_empty()
        });
        due
    }

    /// Whether no statement may be executed late.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.watches.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Test {
        all: Watches,
        name: Name,
        start: Moment,
    }

    impl Test {
        fn of(late: &[Late]) -> Test {
            let mut test = Test {
                all: Watches::default(),
                name: Name::new("name").unwrap(),
                start: Moment::now(),
            };
            for late in late {
                test.all
                    .add(&test.name, late.clone(), Lease::SECOND, test.start);
            }
            test
        }

        fn at(&self, millis: u64) -> Moment {
            self.start + Duration::from_millis(millis)
        }

        /// For how many names to look, which tickets leave, and in how many milliseconds to look.
        fn due(&mut self, millis: u64) -> (usize, Vec<i64>, Option<u128>) {
            let due = self.all.due(self.at(millis));
            let tickets = due.tickets.into_iter().map(|(_, ticket, _)| ticket);
            let next = due.next.map(|next| next.since(self.start).as_millis());
            (due.names.len(), tickets.collect(), next)
        }

        fn looked(&mut self, token: &Token, millis: u64) {
            let sent = self.at(millis);
            self.all.looked(&self.name.clone(), token, sent);
        }
    }

    fn taking(token: &Token, granted: Option<i64>) -> Late {
        Late::Taking {
            token: token.clone(),
            granted,
        }
    }

    #[test]
    fn a_late_acquire_is_looked_for_until_it_can_take_nothing_any_more() {
        assert_eq!(VALID, Duration::from_secs(5));
        let token = Token::random();
        let mut test = Test::of(&[taking(&token, None)]);
        for next in [100, 300, 700, 1500, 3100, 5000] {
            // It counts all the time: a newcomer of this process looks for it too.
            assert_eq!(test.all.takings(&test.name).count(), 1);
            // Somebody has looked, but too early.
            test.looked(&token, next - 1);
            assert_eq!(test.due(next - 1), (0, vec![], Some(next.into())));
            assert_eq!(test.due(next), (1, vec![], Some(next.into())));
            test.looked(&Token::random(), next);
            assert_eq!(test.due(next), (1, vec![], Some(next.into())));
            test.looked(&token, next);
        }
        assert!(test.all.is_empty());
    }

    #[test]
    fn only_what_is_looked_for_at_the_end_ends_it() {
        let token = Token::random();
        let mut test = Test::of(&[taking(&token, None)]);
        test.looked(&token, 4999);
        assert_eq!(test.due(4999), (0, vec![], Some(5000)));
        test.looked(&token, 5000);
        assert!(test.all.is_empty());
    }

    #[test]
    fn the_hold_that_was_granted_is_told() {
        let (token, other) = (Token::random(), Token::random());
        let test = Test::of(&[
            taking(&token, Some(7)),
            taking(&other, None),
            Late::Entering(3),
        ]);
        let takings: Vec<_> = test.all.takings(&test.name).collect();
        let expected = [
            (&token, Lease::SECOND, Some(7)),
            (&other, Lease::SECOND, None),
        ];
        assert_eq!(takings, expected);
        let other = Name::new("other").unwrap();
        assert_eq!(test.all.takings(&other).count(), 0);
    }

    #[test]
    fn a_late_ticket_leaves_once_when_it_can_enter_no_more() {
        let mut test = Test::of(&[Late::Entering(3), Late::Entering(4)]);
        assert_eq!(test.due(4999), (0, vec![], Some(5000)));
        assert_eq!(test.due(5000), (0, vec![3, 4], Some(5000)));
        test.all.left(&test.name.clone(), 3, test.at(5000));
        assert_eq!(test.due(5000), (0, vec![4], Some(5000)));
        test.all.left(&test.name.clone(), 4, test.at(5000));
        assert!(test.all.is_empty());
    }

    #[test]
    fn what_cannot_be_asked_is_asked_again() {
        let mut test = Test::of(&[Late::Entering(3)]);
        test.all.failed(&test.name.clone(), test.at(5000));
        assert_eq!(test.due(5199), (0, vec![], Some(5200)));
        assert_eq!(test.due(5200), (0, vec![3], Some(5200)));
        for pause in [400, 800, 1600, 3200, 5000, 5000] {
            test.all.failed(&test.name.clone(), test.at(5200));
            assert_eq!(test.due(5200).2, Some(5200 + pause));
        }
        // But not for ever.
        assert_eq!(test.due(64_999).1, [3]);
        assert_eq!(test.due(65_000), (0, vec![], None));
        assert!(test.all.is_empty());
    }

    #[test]
    fn what_is_sent_again_begins_again() {
        let mut test = Test::of(&[Late::Entering(3)]);
        let later = test.at(1000);
        let late = Late::Entering(3);
        test.all.add(&test.name.clone(), late, Lease::SECOND, later);
        assert_eq!(test.due(5999), (0, vec![], Some(6000)));
        assert_eq!(test.due(6000), (0, vec![3], Some(6000)));
    }
}
