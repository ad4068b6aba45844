//! The holds of one Lock object: a state machine without database or clock of
//! its own. Callers ask it what to do, do it, and tell it what came of it.
//!
//! An owner's hold is in one of these states (`count` is how often it entered):
//!
//! | state        | acquire                    | release                   |
//! |--------------|----------------------------|---------------------------|
//! | none         | fresh -> held (1)          | an error: no token        |
//! | held (1)     | confirm -> held (2) / lost | end -> none               |
//! | held (n > 1) | confirm -> held (n+1)/lost | held (n-1)                |
//! | lost         | an error -> lost and told  | end -> none, with an error|
//! | lost, told   | fresh, unless in a block   | end -> none, with an error|
//!
//! *Confirm* extends the lease in the database, *end* releases there. A hold is
//! forgotten when the database has answered, not before: a release that failed
//! for want of a connection can be called again.

use super::{Deadline, Lease, Owner, Token};
use std::time::Instant;

/// What an owner has of a lock.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools)] // they are independent of each other
pub struct Hold {
    /// The proof.
    pub token: Token,
    /// The fencing number; `None` for a hold that 0.2.5 acquired.
    pub fence: Option<i64>,
    /// Who acquired it.
    pub owner: Owner,
    /// Until when it is certainly held.
    pub deadline: Deadline,
    /// The lease it is extended by.
    pub lease: Lease,
    /// How often the owner entered and has not left yet.
    count: u32,
    /// Those of these that are `with` blocks, outermost first, each with its
    /// number if it extends the hold automatically.
    blocks: Vec<Option<u64>>,
    /// The token that a transfer is giving it, or may have given it.
    pub pending: Option<Token>,
    /// A release has begun.
    ending: bool,
    /// It could not be extended in time, and its owner was told.
    pub forfeited: bool,
    /// The database said that it is gone.
    lost: bool,
    /// An acquire of the owner has said so.
    told: bool,
}

impl Hold {
    /// Whether it is known or must be assumed to be gone.
    #[must_use]
    pub fn expired(&self, now: Instant) -> bool {
        self.lost || self.deadline.passed(now)
    }
}

/// What an acquire has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// Ask the database for the lock, with a new token.
    Fresh,
    /// The owner has it: confirm and extend the hold of this token.
    Again(Token),
}

/// What a release has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Ending {
    /// Nothing in the database: the owner has left an inner level.
    Inner,
    /// The owner leaves an inner level past the deadline: confirm the hold of
    /// this token first.
    Confirm(Token),
    /// Release the hold of this token.
    Release(Token),
    /// There is no hold to end.
    Nothing,
}

/// The holds of one Lock object, oldest first: at most one for each owner, and
/// only the newest can be alive in the database.
///
/// More than one is there when an owner outlived its lease and another one of
/// the same process took over. Each must end its own, or the first would
/// release what the second holds.
#[derive(Debug, Default)]
pub struct Holds(Vec<Hold>);

impl Holds {
    /// Owners that never release are forgotten beyond this number, oldest first.
    const MANY: usize = 1000;

    fn position(&self, owner: Owner) -> Option<usize> {
        self.0.iter().rposition(|hold| hold.owner == owner)
    }

    /// The owner's hold, or else the newest of any owner.
    #[must_use]
    pub fn of(&self, owner: Owner) -> Option<&Hold> {
        self.position(owner)
            .map_or_else(|| self.0.last(), |position| self.0.get(position))
    }

    /// The hold that has this token.
    #[must_use]
    pub fn with_token(&self, token: &Token) -> Option<&Hold> {
        self.0.iter().find(|hold| hold.token == *token)
    }

    fn with_token_mut(&mut self, token: &Token) -> Option<&mut Hold> {
        self.0.iter_mut().find(|hold| hold.token == *token)
    }

    /// The owner wants to acquire.
    #[must_use]
    pub fn entry(&self, owner: Owner, reentrant: bool) -> Entry {
        match self.position(owner).map(|position| &self.0[position]) {
            // A cancelled task's release goes on while the task does.
            Some(hold) if hold.ending => Entry::Fresh,
            Some(hold) if reentrant && !(hold.lost && hold.told && hold.blocks.is_empty()) => {
                Entry::Again(hold.token.clone())
            }
            _ => Entry::Fresh,
        }
    }

    /// The database gave the owner the lock.
    pub fn entered(
        &mut self,
        owner: Owner,
        token: Token,
        fence: Option<i64>,
        deadline: Deadline,
        lease: Lease,
        block: bool,
    ) {
        self.0.retain(|hold| hold.owner != owner);
        if self.0.len() >= Holds::MANY {
            self.0.remove(0);
        }
        self.0.push(Hold {
            token,
            fence,
            owner,
            deadline,
            lease,
            count: 1,
            blocks: if block { vec![None] } else { Vec::new() },
            pending: None,
            ending: false,
            forfeited: false,
            lost: false,
            told: false,
        });
    }

    /// The database confirmed and extended the owner's hold. `false` if it was
    /// ended meanwhile by somebody with the token.
    #[must_use]
    pub fn entered_again(
        &mut self,
        token: &Token,
        deadline: Deadline,
        lease: Lease,
        block: bool,
    ) -> bool {
        let Some(hold) = self.with_token_mut(token) else {
            return false;
        };
        hold.deadline = deadline;
        hold.lease = lease;
        hold.count += 1;
        if block {
            hold.blocks.push(None);
        }
        true
    }

    /// The innermost block of this token's hold extends it, under this number.
    pub fn extending(&mut self, token: &Token, number: u64) {
        let hold = self.with_token_mut(token);
        if let Some(block) = hold.and_then(|hold| hold.blocks.last_mut()) {
            *block = Some(number);
        }
    }

    /// The numbers of the blocks that extend the hold of this token, or else of
    /// this owner.
    #[must_use]
    pub fn extenders(&self, owner: Owner, token: Option<&Token>) -> Vec<u64> {
        let hold = match token {
            Some(token) => self.with_token(token),
            None => self.of(owner),
        };
        let blocks = hold.map_or(&[][..], |hold| &hold.blocks);
        blocks.iter().copied().flatten().collect()
    }

    /// The innermost block of the owner's hold extends it no longer.
    pub fn stop_extending(&mut self, owner: Owner) {
        let hold = self.0.iter_mut().rfind(|hold| hold.owner == owner);
        if let Some(block) = hold.and_then(|hold| hold.blocks.last_mut()) {
            *block = None;
        }
    }

    /// The hold that the block with this number extends, unless it is lost or
    /// being released.
    #[must_use]
    pub fn extended_by(&self, number: u64) -> Option<&Hold> {
        self.0
            .iter()
            .find(|hold| !hold.ending && !hold.lost && hold.blocks.contains(&Some(number)))
    }

    /// An acquire found the hold of this token gone, and says so.
    pub fn told(&mut self, token: &Token) {
        if let Some(hold) = self.with_token_mut(token) {
            hold.lost = true;
            hold.told = true;
        }
    }

    /// The lease of this token's hold was extended.
    pub fn extended(&mut self, token: &Token, deadline: Deadline) {
        if let Some(hold) = self.with_token_mut(token) {
            hold.deadline = deadline;
        }
    }

    /// The database said that this token has no hold (any more).
    pub fn lost(&mut self, token: &Token) {
        if let Some(hold) = self.with_token_mut(token) {
            hold.lost = true;
        }
    }

    /// The lease of this token's hold is over for want of an extension.
    pub fn forfeited(&mut self, token: &Token) {
        if let Some(hold) = self.with_token_mut(token) {
            hold.lost = true;
            hold.forfeited = true;
        }
    }

    /// The hold of `old` is about to have another token, or (`None`) is not.
    pub fn transferring(&mut self, old: &Token, new: Option<Token>) {
        if let Some(hold) = self.with_token_mut(old) {
            hold.pending = new;
        }
    }

    /// The hold of `old` has the token `new` now.
    pub fn transferred(&mut self, old: &Token, new: Token) {
        if let Some(hold) = self.with_token_mut(old) {
            hold.token = new;
            hold.pending = None;
        }
    }

    /// The lease to renew this token's hold by at once: a block wants it extended,
    /// and that is late already.
    #[must_use]
    pub fn overdue(&self, token: &Token, now: Instant) -> Option<Lease> {
        let hold = self.with_token(token)?;
        let extended = hold.blocks.iter().any(Option::is_some);
        let late = hold.deadline.remaining(now) < hold.lease.seconds() * 0.6;
        (extended && late).then_some(hold.lease)
    }

    /// Somebody wants to release: with a token, or what the Lock object holds.
    /// `block` is the end of a `with` block.
    #[must_use]
    pub fn ending(
        &mut self,
        owner: Owner,
        token: Option<&Token>,
        block: bool,
        now: Instant,
    ) -> Ending {
        let found = match token {
            Some(token) => self.with_token(token),
            None => self.of(owner),
        };
        match (found, token) {
            (None, None) => Ending::Nothing,
            (None, Some(token)) => Ending::Release(token.clone()),
            (Some(hold), _) if hold.owner != owner || hold.count == 1 => {
                let token = hold.token.clone();
                if let Some(hold) = self.with_token_mut(&token) {
                    hold.ending = true;
                }
                Ending::Release(token)
            }
            (Some(hold), _) if hold.expired(now) => Ending::Confirm(hold.token.clone()),
            (Some(hold), _) => {
                let token = hold.token.clone();
                self.left(&token, block);
                Ending::Inner
            }
        }
    }

    /// The owner has left an inner level.
    pub fn left(&mut self, token: &Token, block: bool) {
        if let Some(hold) = self.with_token_mut(token) {
            hold.count -= 1;
            if block || hold.blocks.len() > hold.count as usize {
                hold.blocks.pop();
            }
        }
    }

    /// The release of this token's hold has failed; it can be tried again.
    pub fn not_ended(&mut self, token: &Token) {
        if let Some(hold) = self.with_token_mut(token) {
            hold.ending = false;
        }
    }

    /// The database has ended the hold of this token, or said that it was gone.
    pub fn ended(&mut self, token: &Token) {
        self.0.retain(|hold| hold.token != *token);
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;
    use std::time::Duration;

    /// What an owner may do, and what the database answers.
    #[derive(Clone, Debug)]
    enum Step {
        Acquire {
            owner: u64,
            block: bool,
            works: bool,
        },
        Release {
            owner: u64,
            with_token_of: Option<u64>,
            block: bool,
            works: bool,
        },
        Extend {
            owner: u64,
            works: bool,
        },
        Transfer {
            owner: u64,
        },
        Pass {
            millis: u64,
        },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let owner = 0..3u64;
        let step = prop_oneof![
            4 => (owner.clone(), any::<bool>(), prop::bool::weighted(0.8))
                .prop_map(|(owner, block, works)| Step::Acquire { owner, block, works }),
            4 => (owner.clone(), prop::option::weighted(0.3, owner.clone()), any::<bool>(),
                  prop::bool::weighted(0.8))
                .prop_map(|(owner, with_token_of, block, works)| Step::Release {
                    owner, with_token_of, block, works
                }),
            1 => (owner.clone(), any::<bool>())
                .prop_map(|(owner, works)| Step::Extend { owner, works }),
            1 => owner.prop_map(|owner| Step::Transfer { owner }),
            1 => (0..1500u64).prop_map(|millis| Step::Pass { millis }),
        ];
        prop::collection::vec(step, 1..60)
    }

    /// The model: a plain count for each owner, and what we know of its hold.
    #[derive(Clone, Debug)]
    struct Model {
        token: Token,
        count: u32,
        until: Instant,
        lost: bool,
        told: bool,
    }

    const LEASE: Lease = Lease::SECOND;

    fn owner(number: u64) -> Owner {
        Owner::current(Some(number), None)
    }

    proptest! {
        #[test]
        fn holds_follow_the_model(steps in steps(), reentrant: bool) {
            let mut holds = Holds::default();
            let mut model: HashMap<u64, Model> = HashMap::new();
            let mut newest: Vec<u64> = Vec::new();
            let mut now = Instant::now();
            let lease = Duration::from_secs(1);
            for step in steps {
                match step {
                    Step::Pass { millis } => now += Duration::from_millis(millis),
                    Step::Acquire { owner: who, block, works } => {
                        let deadline = Deadline::new(now, 1.0);
                        match holds.entry(owner(who), reentrant) {
                            Entry::Fresh => {
                                // Never while a hold of one's own may be alive.
                                if reentrant {
                                    prop_assert!(model.get(&who).is_none_or(|own| own.told));
                                }
                                if works {
                                    let token = Token::random();
                                    holds.entered(owner(who), token.clone(), Some(1), deadline, LEASE, block);
                                    newest.retain(|other| *other != who);
                                    newest.push(who);
                                    let until = now + lease;
                                    model.insert(who, Model { token, count: 1, until, lost: false, told: false });
                                }
                            }
                            Entry::Again(token) => {
                                prop_assert!(reentrant);
                                let own = model.get_mut(&who).unwrap();
                                prop_assert_eq!(&token, &own.token);
                                if works && !own.lost {
                                    prop_assert!(holds.entered_again(&token, deadline, LEASE, block));
                                    own.count += 1;
                                    own.until = now + lease;
                                } else {
                                    holds.told(&token);
                                    own.lost = true;
                                    own.told = true;
                                }
                            }
                        }
                    }
                    Step::Release { owner: who, with_token_of, block, works } => {
                        let given = with_token_of.and_then(|other| model.get(&other)).map(|own| own.token.clone());
                        let holder = match (&given, with_token_of) {
                            (Some(_), Some(other)) => Some(other),
                            _ if model.contains_key(&who) => Some(who),
                            _ => newest.last().copied(),
                        };
                        let ending = holds.ending(owner(who), given.as_ref(), block, now);
                        let Some(holder) = holder else {
                            prop_assert_eq!(ending, Ending::Nothing);
                            continue;
                        };
                        let own = model.get_mut(&holder).unwrap();
                        match ending {
                            Ending::Nothing => prop_assert!(false, "there is a hold"),
                            Ending::Inner => {
                                prop_assert!(holder == who && own.count > 1);
                                prop_assert!(!own.lost && now < own.until);
                                own.count -= 1;
                            }
                            Ending::Confirm(token) => {
                                prop_assert!(holder == who && own.count > 1);
                                prop_assert!(own.lost || now >= own.until);
                                holds.left(&token, block);
                                own.count -= 1;
                            }
                            Ending::Release(token) => {
                                prop_assert_eq!(&token, &own.token);
                                prop_assert!(holder != who || own.count == 1);
                                // A call that failed changes nothing and can be repeated.
                                if works {
                                    holds.ended(&token);
                                    model.remove(&holder);
                                    newest.retain(|other| *other != holder);
                                } else {
                                    holds.not_ended(&token);
                                }
                            }
                        }
                    }
                    Step::Extend { owner: who, works } => {
                        if let Some(own) = model.get_mut(&who) {
                            if works {
                                holds.extended(&own.token, Deadline::new(now, 1.0));
                                own.until = now + lease;
                            } else {
                                holds.lost(&own.token);
                                own.lost = true;
                            }
                        }
                    }
                    Step::Transfer { owner: who } => {
                        if let Some(own) = model.get_mut(&who) {
                            let new = Token::random();
                            holds.transferred(&own.token, new.clone());
                            own.token = new;
                        }
                    }
                }
                for who in 0..3 {
                    let expected = model.get(&who).or_else(|| newest.last().map(|last| &model[last]));
                    let seen = holds.of(owner(who));
                    prop_assert_eq!(seen.map(|hold| &hold.token), expected.map(|own| &own.token));
                    prop_assert_eq!(
                        seen.map(|hold| hold.expired(now)),
                        expected.map(|own| own.lost || now >= own.until)
                    );
                }
                prop_assert_eq!(holds.is_empty(), model.is_empty());
            }
        }
    }

    #[test]
    fn a_block_extends_until_it_is_left_or_the_hold_is_lost() {
        let (who, token) = (owner(1), Token::random());
        let now = Instant::now();
        let deadline = Deadline::new(now, 1.0);
        let mut holds = Holds::default();
        holds.entered(who, token.clone(), None, deadline, LEASE, false);
        assert!(holds.entered_again(&token, deadline, LEASE, true));
        holds.extending(&token, 7);
        assert!(holds.extended_by(7).is_some());
        assert_eq!(holds.ending(who, None, true, now), Ending::Inner);
        assert!(holds.extended_by(7).is_none());

        assert!(holds.entered_again(&token, deadline, LEASE, true));
        holds.extending(&token, 8);
        let other = holds.ending(owner(2), Some(&token), false, now);
        assert_eq!(other, Ending::Release(token.clone()));
        assert!(holds.extended_by(8).is_none());

        let mut holds = Holds::default();
        holds.entered(who, token.clone(), None, deadline, LEASE, true);
        holds.extending(&token, 9);
        assert!(holds.extended_by(9).is_some());
        holds.forfeited(&token);
        assert!(holds.extended_by(9).is_none());
        assert!(holds.of(who).unwrap().expired(now));
    }

    #[test]
    fn a_hold_is_overdue_only_if_a_block_extends_it() {
        let (who, token) = (owner(1), Token::random());
        let now = Instant::now();
        let deadline = Deadline::new(now, LEASE.seconds());
        let late = now + Duration::from_secs_f64(LEASE.seconds() * 0.5);
        let mut holds = Holds::default();
        assert_eq!(holds.overdue(&token, late), None);
        holds.entered(who, token.clone(), None, deadline, LEASE, true);
        assert_eq!(holds.overdue(&token, late), None);
        holds.extending(&token, 1);
        assert_eq!(holds.overdue(&token, now), None);
        assert_eq!(holds.overdue(&token, late), Some(LEASE));
        holds.stop_extending(who);
        assert_eq!(holds.overdue(&token, late), None);
    }

    #[test]
    fn owners_that_never_release_are_forgotten_in_the_end() {
        let mut holds = Holds::default();
        let deadline = Deadline::new(Instant::now(), 1.0);
        for number in 0..Holds::MANY as u64 + 5 {
            holds.entered(owner(number), Token::random(), None, deadline, LEASE, false);
        }
        assert_eq!(holds.0.len(), Holds::MANY);
    }
}
