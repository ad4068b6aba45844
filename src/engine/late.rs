//! Statements that may execute late: their call went on without them, because the connection broke
//! or the caller stopped waiting. Their effects are undone.

use super::{Lease, Moment, Name, Token};
use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// How long after sending it a statement may still take a lock: it may execute when its caller has
/// long since given up.
pub const VALID: Duration = Duration::from_secs(5);

/// The possible effect of a late statement.
#[derive(Clone, Debug, PartialEq)]
pub enum Late {
    /// It takes the lock with this token; if its call was `granted` a hold with the same token,
    /// then a second time: that hold has this fence, and keeps it.
    Taking {
        /// The token.
        token: Token,
        /// The fence of the hold that was granted.
        granted: Option<i64>,
    },
    /// It puts this ticket into the queue.
    Entering(i64),
}

/// When to look for the effect of a statement.
#[derive(Debug)]
struct Watch {
    lease: Lease,
    next: Moment,
    /// How long until the next look, if this one finds nothing.
    pause: Duration,
    /// It has no effect after that: a later look is the last.
    last: Moment,
    /// The fence of a hold that was granted to the same token.
    granted: Option<i64>,
}

impl Watch {
    const PAUSE: Duration = Duration::from_millis(100);
    /// How long to keep trying if the database cannot be asked. By then the listening connection
    /// that keeps a ticket alive is gone, too.
    const LONGEST: Duration = Duration::from_secs(60);

    fn over(&self, now: Moment) -> bool {
        self.last + Watch::LONGEST <= now
    }

    /// A thread has looked, with statements sent at `sent` or later. `false` if that was the last
    /// look.
    fn looked(&mut self, sent: Moment) -> bool {
        if sent < self.next {
            return true;
        }
        self.pause *= 2;
        self.next = self.last.min(sent + self.pause);
        sent < self.last
    }

    /// The database could not be asked.
    fn failed(&mut self, now: Moment) {
        self.pause = (self.pause * 2).min(VALID);
        self.next = self.next.max(now + self.pause);
    }
}

/// What may have to be undone.
#[derive(Debug, Default)]
pub struct Due {
    /// The names that may have unwanted holds.
    pub names: HashSet<Name>,
    /// The tickets to take out of their names' queues.
    pub tickets: Vec<(Name, i64, Lease)>,
    /// When to look again.
    pub next: Option<Moment>,
}

impl Due {
    /// There is something to do at this moment.
    pub(super) fn at(&mut self, next: Moment) {
        self.next = Some(self.next.map_or(next, |other| other.min(next)));
    }

    /// Whether there is nothing to do now.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && self.tickets.is_empty()
    }
}

/// All statements of one process that may be executed late.
#[derive(Debug, Default)]
pub struct Watches {
    /// Those that may take a lock, by its name and their token.
    takings: HashMap<Name, HashMap<Token, Watch>>,
    /// Those that may enter the queue, by their ticket.
    entries: HashMap<i64, (Name, Watch)>,
}

impl Watches {
    /// A statement sent before `now` may execute late.
    pub fn add(&mut self, name: &Name, late: Late, lease: Lease, now: Moment) {
        let mut watch = Watch {
            lease,
            next: now + Watch::PAUSE,
            pause: Watch::PAUSE,
            last: now + VALID,
            granted: None,
        };
        match late {
            Late::Taking { token, granted } => {
                watch.granted = granted;
                let takings = self.takings.entry(name.clone()).or_default();
                takings.insert(token, watch);
            }
            Late::Entering(ticket) => {
                // It gives nobody a hold, so one look is enough.
                watch.next = watch.last;
                self.entries.insert(ticket, (name.clone(), watch));
            }
        }
    }

    /// The longest lease that late statements may have taken on a name, if there are any.
    #[must_use]
    pub fn lease_of(&self, name: &Name) -> Option<Lease> {
        let leases = self.takings.get(name)?.values().map(|watch| watch.lease);
        leases.reduce(Lease::max)
    }

    /// If a late statement took this hold, its lease.
    #[must_use]
    pub fn is_late(&self, name: &Name, token: &Token, fence: Option<i64>) -> Option<Lease> {
        let watch = self.takings.get(name)?.get(token)?;
        (watch.granted.is_none() || watch.granted != fence).then_some(watch.lease)
    }

    /// A thread has looked for late holds of a name and ended them, with statements sent at `sent`
    /// or later.
    pub fn looked(&mut self, name: &Name, sent: Moment) {
        if let Some(takings) = self.takings.get_mut(name) {
            takings.retain(|_, watch| watch.looked(sent));
            if takings.is_empty() {
                self.takings.remove(name);
            }
        }
    }

    /// A statement sent at `sent` took a ticket out of the queue.
    pub fn left(&mut self, ticket: i64, sent: Moment) {
        let watched = self.entries.get_mut(&ticket);
        if watched.is_some_and(|(_, watch)| !watch.looked(sent)) {
            self.entries.remove(&ticket);
        }
    }

    /// The database could not be asked about a name, or its ticket is in use.
    pub fn failed(&mut self, name: &Name, now: Moment) {
        for watch in self
            .takings
            .get_mut(name)
            .into_iter()
            .flat_map(HashMap::values_mut)
        {
            watch.failed(now);
        }
        for (_, watch) in self.entries.values_mut().filter(|(other, _)| other == name) {
            watch.failed(now);
        }
    }

    /// What to look for now. Forgets what no longer matters.
    pub fn due(&mut self, now: Moment) -> Due {
        let mut due = Due::default();
        self.entries.retain(|_, (_, watch)| !watch.over(now));
        for (ticket, (name, watch)) in &self.entries {
            due.at(watch.next);
            if watch.next <= now {
                due.tickets.push((name.clone(), *ticket, watch.lease));
            }
        }
        self.takings.retain(|name, takings| {
            takings.retain(|_, watch| !watch.over(now));
            if let Some(next) = takings.values().map(|watch| watch.next).min() {
                due.at(next);
                if next <= now {
                    due.names.insert(name.clone());
                }
            }
            !takings.is_empty()
        });
        due
    }

    /// Schedules one more look for each, at once.
    pub fn hurry(&mut self, now: Moment) {
        let takings = self.takings.values_mut().flat_map(HashMap::values_mut);
        let entries = self.entries.values_mut().map(|(_, watch)| watch);
        for watch in takings.chain(entries) {
            (watch.next, watch.last) = (now, now);
        }
    }

    /// Stops looking for any of them.
    pub fn clear(&mut self) {
        self.takings.clear();
        self.entries.clear();
    }

    /// Whether no statement may execute late.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.takings.is_empty() && self.entries.is_empty()
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

        /// How many names to look at, which tickets leave, and in how many milliseconds to look.
        fn due(&mut self, millis: u64) -> (usize, Vec<i64>, Option<u128>) {
            let due = self.all.due(self.at(millis));
            let tickets = due.tickets.into_iter().map(|(_, ticket, _)| ticket);
            let mut tickets: Vec<i64> = tickets.collect();
            tickets.sort_unstable();
            let next = due.next.map(|next| next.since(self.start).as_millis());
            (due.names.len(), tickets, next)
        }

        fn looked(&mut self, millis: u64) {
            self.all
                .looked(&self.name, self.start + Duration::from_millis(millis));
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
            // It always counts: a newcomer of this process looks for it, too.
            assert!(test.all.is_late(&test.name, &token, Some(1)).is_some());
            // Another thread has looked, but too early.
            test.looked(next - 1);
            assert_eq!(test.due(next - 1), (0, vec![], Some(next.into())));
            assert_eq!(test.due(next), (1, vec![], Some(next.into())));
            test.all.looked(&Name::new("other").unwrap(), test.at(next));
            assert_eq!(test.due(next), (1, vec![], Some(next.into())));
            test.looked(next);
        }
        assert!(test.all.is_empty());
    }

    #[test]
    fn only_who_looks_at_the_end_looks_for_the_last_time() {
        let mut test = Test::of(&[taking(&Token::random(), None)]);
        test.looked(4999);
        assert_eq!(test.due(4999), (0, vec![], Some(5000)));
        test.looked(5000);
        assert!(test.all.is_empty());
    }

    #[test]
    fn the_hold_that_was_granted_is_not_late() {
        let (token, given_up) = (Token::random(), Token::random());
        let late = [
            taking(&token, Some(7)),
            taking(&given_up, None),
            Late::Entering(3),
        ];
        let test = Test::of(&late);
        let (name, other) = (&test.name, Name::new("other").unwrap());
        assert_eq!(test.all.is_late(name, &token, Some(7)), None);
        for fence in [Some(8), None] {
            assert_eq!(test.all.is_late(name, &token, fence), Some(Lease::SECOND));
            assert_eq!(
                test.all.is_late(name, &given_up, fence),
                Some(Lease::SECOND)
            );
            assert_eq!(test.all.is_late(name, &Token::random(), fence), None);
            assert_eq!(test.all.is_late(&other, &token, fence), None);
        }
        assert_eq!(test.all.lease_of(&other), None);
    }

    #[test]
    fn the_longest_lease_counts() {
        let mut test = Test::of(&[taking(&Token::random(), None)]);
        assert_eq!(test.all.lease_of(&test.name), Some(Lease::SECOND));
        let (longer, late) = (
            Lease::from_seconds(2.0).unwrap(),
            taking(&Token::random(), None),
        );
        test.all.add(&test.name, late, longer, test.start);
        assert_eq!(test.all.lease_of(&test.name), Some(longer));
        assert_eq!(
            Test::of(&[Late::Entering(3)]).all.lease_of(&test.name),
            None
        );
    }

    #[test]
    fn a_late_ticket_leaves_once_when_it_can_enter_no_more() {
        let mut test = Test::of(&[Late::Entering(3), Late::Entering(4)]);
        assert_eq!(test.due(4999), (0, vec![], Some(5000)));
        assert_eq!(test.due(5000), (0, vec![3, 4], Some(5000)));
        test.all.left(3, test.at(5000));
        assert_eq!(test.due(5000), (0, vec![4], Some(5000)));
        test.all.left(4, test.at(5000));
        assert!(test.all.is_empty());
    }

    #[test]
    fn what_cannot_be_asked_is_asked_again_but_not_for_ever() {
        let mut test = Test::of(&[Late::Entering(3), taking(&Token::random(), None)]);
        test.all.failed(&Name::new("other").unwrap(), test.at(5000));
        assert_eq!(test.due(5000), (1, vec![3], Some(100)));
        for pause in [200, 400, 800, 1600, 3200, 5000, 5000] {
            test.all.failed(&test.name.clone(), test.at(5000));
            assert_eq!(
                test.due(4999 + pause),
                (0, vec![], Some(5000 + u128::from(pause)))
            );
            assert_eq!(test.due(5000 + pause).1, [3]);
        }
        assert_eq!(test.due(64_999), (1, vec![3], Some(10_000)));
        assert_eq!(test.due(65_000), (0, vec![], None));
        assert!(test.all.is_empty());
    }

    #[test]
    fn what_is_sent_again_begins_again() {
        let mut test = Test::of(&[Late::Entering(3)]);
        let (late, later) = (Late::Entering(3), test.at(1000));
        test.all.add(&test.name, late, Lease::SECOND, later);
        assert_eq!(test.due(5999), (0, vec![], Some(6000)));
        assert_eq!(test.due(6000), (0, vec![3], Some(6000)));
    }

    #[test]
    fn who_leaves_looks_once_more() {
        let mut test = Test::of(&[Late::Entering(3), taking(&Token::random(), None)]);
        test.all.hurry(test.at(7));
        assert_eq!(test.due(7), (1, vec![3], Some(7)));
        test.looked(7);
        assert_eq!(test.due(7), (0, vec![3], Some(7)));
        test.all.left(3, test.at(7));
        assert!(test.all.is_empty());
        let mut test = Test::of(&[Late::Entering(3), taking(&Token::random(), None)]);
        test.all.clear();
        assert!(test.all.is_empty());
    }
}
