//! Statements about an existing hold: extend, renew, transfer, release, look up.

use super::super::answer::Parameter;
use super::super::budget::Budget;
use super::super::holder::About;
use super::super::sql::Sql;
use super::execute::Store;
use crate::engine::{Deadline, Lease, Loss, Name, Token};
use crate::error::{Error, Result};
use crate::zone;

/// The outcome of a release.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Released {
    /// The hold has ended, and nobody was waiting.
    Quietly,
    /// The hold has ended, and the first waiter was called.
    Calling,
    /// The hold was already lost.
    Lost,
}

/// The outcome of renewing one of many holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Renewed {
    /// The hold with this fence is extended until this deadline.
    Until(Deadline, Option<i64>),
    /// The hold is there, but another transaction has locked its row.
    Locked,
    /// The token has no hold.
    Gone,
}

impl Store {
    /// Extends the hold; returns its fence and new deadline, `None` if it is lost.
    pub fn extend(
        &self,
        name: &Name,
        token: &Token,
        lease: Lease,
        budget: Budget,
    ) -> Result<Option<(Option<i64>, Deadline)>> {
        let answer = self.execute_for(Sql::Extend, name, token, lease, budget)?;
        let Some(row) = answer.rows.first() else {
            return Ok(None);
        };
        let extended = (
            row.get("fence")?,
            Deadline::new(answer.sent, lease.seconds()),
        );
        self.sweep_if_due(self.pace.after_call(), lease, budget)?;
        Ok(Some(extended))
    }

    /// Extends many holds in one statement, which never waits for a row.
    pub fn renew(&self, holds: &[(Name, Token, Lease)], budget: Budget) -> Result<Vec<Renewed>> {
        let names: Vec<&str> = holds.iter().map(|(name, _, _)| name.as_str()).collect();
        let tokens: Vec<&str> = holds.iter().map(|(_, token, _)| token.as_str()).collect();
        let leases: Vec<f64> = holds.iter().map(|(_, _, lease)| lease.seconds()).collect();
        let answer = self.execute(
            Sql::Renew,
            &[&names, &tokens, &leases, &zone::offset()],
            budget,
        )?;
        let mut renewed = vec![Renewed::Gone; holds.len()];
        for row in &answer.rows {
            // Positions count from 1.
            let position = usize::try_from(row.get::<i64>("position")?).unwrap_or_default();
            let position = position.wrapping_sub(1);
            if let Some(lease) = leases.get(position) {
                renewed[position] = if row.get("extended")? {
                    Renewed::Until(Deadline::new(answer.sent, *lease), row.get("fence")?)
                } else {
                    Renewed::Locked
                };
            }
        }
        Ok(renewed)
    }

    /// Gives the hold the token `new`; returns its fence and deadline, `None` if it is lost.
    pub fn transfer(
        &self,
        name: &Name,
        old: &Token,
        new: &Token,
        lease: Lease,
        budget: Budget,
    ) -> Result<Option<(Option<i64>, Deadline)>> {
        let answer = self.execute(
            Sql::Transfer,
            &[
                &name.as_str(),
                &old.as_str(),
                &new.as_str(),
                &lease.seconds(),
                &zone::offset(),
                &self.holder(budget.process, &About::default()),
            ],
            budget,
        )?;
        let Some(row) = answer.rows.first() else {
            return Ok(None);
        };
        let deadline = Deadline::new(answer.sent, row.get("remaining")?);
        Ok(Some((row.get("fence")?, deadline)))
    }

    /// Ends the hold.
    ///
    /// If the caller's own deadline has not passed (`held`), a hold that is missing after a lost
    /// answer was ended by our own statement; the same may be so if an earlier call has tried
    /// (`again`). `awaited`: others probably wait for the lock.
    pub fn release(
        &self,
        name: &Name,
        token: &Token,
        lease: Lease,
        (held, again, awaited): (bool, bool, bool),
        budget: Budget,
    ) -> Result<Released> {
        let mut unknown = again;
        let mut released = Released::Lost;
        if !awaited {
            let parameters: [Parameter; 2] = [&name.as_str(), &token.as_str()];
            let answer = self
                .execute(Sql::Release, &parameters, budget)
                .map_err(|error| error.after(unknown).about(name))?;
            unknown |= answer.repeated;
            if answer.affected == 1 {
                released = Released::Quietly;
            }
        }
        if released == Released::Lost {
            let answer = self
                .execute_for(Sql::ReleaseAwaited, name, token, lease, budget)
                .map_err(|error| error.after(unknown))?;
            unknown |= answer.repeated;
            if let Some(row) = answer.rows.first() {
                released = match row.get::<Option<&str>>("notified")? {
                    Some(_) => Released::Calling,
                    None => Released::Quietly,
                };
            }
        }
        if released == Released::Lost && unknown {
            let ended = held
                || Loss::Released
                    == self
                        .ended_by(name, token, budget)
                        .map_err(|error| error.after(true))?;
            if ended {
                released = Released::Quietly;
            }
        }
        match self.sweep_if_due(self.pace.after_call(), lease, budget) {
            Err(Error::Forked) => Err(Error::Forked),
            // The release is done; an interrupt is up to the caller.
            _ => Ok(released),
        }
    }

    /// Whether the token has a hold. Only one read, no write.
    pub fn is_held(
        &self,
        name: &Name,
        token: &Token,
        lease: Lease,
        budget: Budget,
    ) -> Result<bool> {
        let answer = self.execute_for(Sql::Held, name, token, lease, budget)?;
        Ok(!answer.rows.is_empty())
    }

    /// The token and the fence of the hold of a lock, if there is one.
    pub fn holder_of(
        &self,
        name: &Name,
        lease: Lease,
        budget: Budget,
    ) -> Result<Option<(Token, Option<i64>)>> {
        let parameters: [Parameter; 3] = [&name.as_str(), &lease.seconds(), &zone::offset()];
        let answer = self
            .execute(Sql::Holder, &parameters, budget)
            .map_err(|error| error.about(name))?;
        let Some(row) = answer.rows.first() else {
            return Ok(None);
        };
        // A token of 0.2.5's may not parse as one of ours.
        let token = Token::parse(row.get("token")?);
        Ok(match token {
            Some(token) => Some((token, row.get("fence")?)),
            None => None,
        })
    }

    /// What ended the hold of a token, as far as the row shows.
    fn ended_by(&self, name: &Name, token: &Token, budget: Budget) -> Result<Loss> {
        let parameters: [Parameter; 2] = [&name.as_str(), &token.as_str()];
        let answer = self.execute(Sql::Released, &parameters, budget)?;
        Ok(match answer.rows.first() {
            None => Loss::Unknown,
            Some(row) if row.get("released")? => Loss::Released,
            Some(_) => Loss::Expired,
        })
    }

    /// Why an expected hold is not there.
    pub fn why_lost(&self, name: &Name, token: &Token, budget: Budget) -> Loss {
        // Only for the words of an exception.
        self.ended_by(name, token, budget).unwrap_or(Loss::Unknown)
    }
}
