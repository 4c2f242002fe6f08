//! The run's record of spending: an append-only file of checksummed JSON lines, written before a noisy result is used.
//!
//! The first line is a [`Header`], every further line an [`Event`]. Each line carries a checksum over its own text and the line
//! before, so that a damaged, missing or reordered line is found. A torn last line, as a crash leaves it, is tolerated,
//! reported and counted as whatever it may have been: [`LedgerWriter::append`] returns only after the line is on the disk, so
//! nothing of it was used, but what is in doubt is spent.

mod account;
mod file;
mod line;
mod torn;

use serde::{Deserialize, Serialize};

pub use account::{LedgerEpsilon, PartEpsilon, TrainingEpsilon};
pub use file::LedgerWriter;
pub use torn::TornLine;

use crate::adjacency::Adjacency;
use crate::effective::effective_noise_multiplier;
use crate::error::AccountingError;
use crate::segment::{PrivacyTarget, Segment, merge};

/// Version of the format written here.
pub const LEDGER_VERSION: u32 = 1;

/// The part of the population that is trained on. Queries of this part are composed with the steps.
pub const TRAINING_PART: &str = "training";

/// What was registered before the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Format version; [`LEDGER_VERSION`].
    pub version: u32,
    /// When the run was created, as text.
    pub created: String,
    /// The privacy unit, as text: a row, or the column that names the person.
    pub unit: String,
    /// The neighbouring relation.
    pub adjacency: Adjacency,
    /// The target.
    pub target: PrivacyTarget,
    /// False for seeded runs, which are NOT private.
    pub private: bool,
    /// The registered budget.
    pub budget: BudgetRecord,
    /// Anything else that must not change over a resumption: population, batch, data fingerprint.
    #[serde(default)]
    pub parameters: serde_json::Value,
}

/// The registered budget.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum BudgetRecord {
    /// Every step is of this one mechanism.
    Fixed {
        /// Mechanism and number of steps.
        segment: Segment,
    },
    /// Steps are cards of this deck, in any order.
    Deck {
        /// Kinds of cards, with their counts as steps.
        cards: Vec<Segment>,
    },
    /// Steps have any noise within a range, RDP summed at one order.
    Filter {
        /// Smallest noise multiplier.
        floor: f64,
        /// Largest noise multiplier.
        ceiling: f64,
        /// The order, fixed before the run.
        order: f64,
    },
    /// There is none: the run clips nothing and adds no noise. Such a ledger has no epsilon.
    Unprotected,
}

/// One event of the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// One optimizer step on the training part.
    Step {
        /// Step number.
        step: u64,
        /// Sampling rate.
        sampling_rate: f64,
        /// Effective noise multiplier, telemetry included.
        noise_multiplier: f64,
        /// Noise multiplier of each gradient group.
        group_noise_multipliers: Vec<f64>,
        /// Clipping norm of each gradient group.
        clipping_norms: Vec<f64>,
        /// Noise multipliers of the telemetry queries, at unit sensitivity.
        telemetry: Vec<f64>,
    },
    /// A plain Gaussian query of a held-out part; every part is a disjoint population.
    Query {
        /// The part's name.
        part: String,
        /// What was asked.
        name: String,
        /// Noise multiplier.
        noise_multiplier: f64,
    },
    /// Anything worth recording that costs nothing.
    Note {
        /// The text.
        text: String,
    },
}

/// A run's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ledger {
    /// What was registered.
    pub header: Header,
    /// What happened.
    pub events: Vec<Event>,
    /// The torn last line, if there is one.
    #[serde(default)]
    pub torn: Option<TornLine>,
}

impl Event {
    /// Checks an event's figures, and that its effective noise multiplier is not above what its groups and telemetry give.
    ///
    /// # Errors
    /// The offending figure, or [`AccountingError::LedgerInconsistent`].
    pub fn check(&self) -> Result<(), AccountingError> {
        match self {
            Self::Note { .. } => Ok(()),
            Self::Query {
                noise_multiplier, ..
            } => Segment::new(1.0, *noise_multiplier, 1).map(|_| ()),
            Self::Step {
                step,
                sampling_rate,
                noise_multiplier,
                group_noise_multipliers,
                telemetry,
                ..
            } => {
                Segment::new(*sampling_rate, *noise_multiplier, 1)?;
                let all: Vec<f64> = group_noise_multipliers
                    .iter()
                    .chain(telemetry)
                    .copied()
                    .collect();
                if !all.is_empty() {
                    let effective = effective_noise_multiplier(&all)?;
                    if *noise_multiplier > effective * (1.0 + 1e-9) {
                        return Err(AccountingError::LedgerInconsistent {
                            reason: format!(
                                "step {step} claims the noise multiplier {noise_multiplier}, but its groups and telemetry \
                                 give {effective}"
                            ),
                        });
                    }
                }
                Ok(())
            }
        }
    }
}

impl Header {
    /// What differs between the header of a run and the one it is to be resumed with, but for the time of creation: one
    /// text for each difference, naming the field and both values.
    pub fn differences(&self, given: &Self) -> Vec<String> {
        let mut found = Vec::new();
        let value = |header: &Self| {
            serde_json::to_value(Self {
                created: String::new(),
                ..header.clone()
            })
        };
        match (value(self), value(given)) {
            (Ok(registered), Ok(given)) => differences("", &registered, &given, &mut found),
            _ => found.push("a header cannot be written as JSON".to_string()),
        }
        found
    }

    /// Checks the version and the figures.
    ///
    /// # Errors
    /// Another version, or the offending figure.
    pub fn check(&self) -> Result<(), AccountingError> {
        if self.version != LEDGER_VERSION {
            return Err(AccountingError::LedgerVersion {
                found: self.version,
                supported: LEDGER_VERSION,
            });
        }
        self.target.check()?;
        match &self.budget {
            BudgetRecord::Fixed { .. } => Ok(()),
            // What is not private must say so.
            BudgetRecord::Unprotected if self.private => Err(AccountingError::Unprotected),
            BudgetRecord::Unprotected => Ok(()),
            BudgetRecord::Deck { cards } => merge(cards).map(|_| ()),
            BudgetRecord::Filter {
                floor,
                ceiling,
                order,
            } => {
                for value in [floor, ceiling] {
                    Segment::new(1.0, *value, 1)?;
                }
                if !(floor <= ceiling) {
                    return Err(AccountingError::OutsideRange {
                        value: *floor,
                        floor: *floor,
                        ceiling: *ceiling,
                    });
                }
                if !(*order > 1.0 && order.is_finite()) {
                    return Err(AccountingError::Order { value: *order });
                }
                Ok(())
            }
        }
    }
}

/// Walks two JSON values side by side and tells where they differ.
fn differences(
    name: &str,
    registered: &serde_json::Value,
    given: &serde_json::Value,
    found: &mut Vec<String>,
) {
    use serde_json::Value::Object;
    if registered == given {
        return;
    }
    if let (Object(a), Object(b)) = (registered, given) {
        let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        for key in keys {
            let path = if name.is_empty() {
                key.clone()
            } else {
                format!("{name}.{key}")
            };
            let null = serde_json::Value::Null;
            differences(
                &path,
                a.get(key).unwrap_or(&null),
                b.get(key).unwrap_or(&null),
                found,
            );
        }
    } else {
        found.push(format!("{name} was {registered} and is now {given}"));
    }
}

impl Ledger {
    /// A ledger of these steps, in order, as if they had been played: for accountants that think in sequences.
    ///
    /// # Errors
    /// A bad header, or a sequence too long to write out (over 10 million steps).
    pub fn from_segments(header: Header, segments: &[Segment]) -> Result<Self, AccountingError> {
        header.check()?;
        let mut events = Vec::new();
        for s in segments {
            for _ in 0..s.steps() {
                if events.len() >= 10_000_000 {
                    return Err(AccountingError::StepsOverflow);
                }
                events.push(Event::Step {
                    step: events.len() as u64,
                    sampling_rate: s.sampling_rate(),
                    noise_multiplier: s.noise_multiplier(),
                    group_noise_multipliers: Vec::new(),
                    clipping_norms: Vec::new(),
                    telemetry: Vec::new(),
                });
            }
        }
        Ok(Self {
            header,
            events,
            torn: None,
        })
    }

    /// The steps that were played, as a sequence of (q, sigma, steps): runs of equal steps joined.
    ///
    /// # Errors
    /// A step with bad figures.
    pub fn segments(&self) -> Result<Vec<Segment>, AccountingError> {
        let mut out: Vec<Segment> = Vec::new();
        for event in &self.events {
            event.check()?;
            if let Event::Step {
                sampling_rate,
                noise_multiplier,
                ..
            } = event
            {
                match out.last_mut() {
                    Some(last)
                        if last.sampling_rate() == *sampling_rate
                            && last.noise_multiplier() == *noise_multiplier =>
                    {
                        *last = last.with_steps(last.steps() + 1)?;
                    }
                    _ => out.push(Segment::new(*sampling_rate, *noise_multiplier, 1)?),
                }
            }
        }
        Ok(out)
    }

    /// How many steps were played.
    pub fn steps(&self) -> u64 {
        self.events
            .iter()
            .filter(|e| matches!(e, Event::Step { .. }))
            .count() as u64
    }
}
