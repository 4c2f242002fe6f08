//! The crate's one error type.

/// Why an audit could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// A number is outside its range.
    #[error("{what} is {value}; it must be {range}")]
    OutOfRange {
        /// Which number.
        what: &'static str,
        /// The offending value.
        value: f64,
        /// What is allowed.
        range: &'static str,
    },
    /// Too little was observed to say anything.
    #[error("{what}: {found}, at least {needed} needed")]
    TooFew {
        /// What was counted.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many are needed.
        needed: usize,
    },
    /// More events than trials.
    #[error("{events} events in {trials} trials")]
    Counts {
        /// The events.
        events: u64,
        /// The trials.
        trials: u64,
    },
    /// A score that is not a number cannot be ranked.
    #[error("score {index} of the {which} is not a number")]
    NotANumber {
        /// Members or non-members.
        which: &'static str,
        /// Its position.
        index: usize,
    },
    /// A mechanism gave observations of different lengths.
    #[error("a trial gave {found} observations; the first gave {expected}")]
    Observations {
        /// Length of the first.
        expected: usize,
        /// Length of this one.
        found: usize,
    },
    /// The audited mechanism failed.
    #[error(transparent)]
    Optim(#[from] rldp_optim::OptimError),
    /// The accountant refused.
    #[error(transparent)]
    Accounting(#[from] rldp_accounting::AccountingError),
}

/// Refuses a number outside the open unit interval.
pub(crate) fn open_unit(what: &'static str, value: f64) -> Result<f64, AuditError> {
    if value > 0.0 && value < 1.0 {
        Ok(value)
    } else {
        Err(AuditError::OutOfRange {
            what,
            value,
            range: "in (0, 1)",
        })
    }
}
