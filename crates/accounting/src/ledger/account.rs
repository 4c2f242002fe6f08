//! Epsilon from the ledger alone.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{BudgetRecord, Event, Ledger, TRAINING_PART};
use crate::error::AccountingError;
use crate::gdp;
use crate::pld;
use crate::rdp::{convert, step_ln_moment};
use crate::segment::{Segment, check_delta, merge};

/// Epsilon of the training part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainingEpsilon {
    /// The guarantee: of the whole registered budget (Fixed, Deck), or of what a filter accepted; with the training part's
    /// queries.
    pub guarantee: f64,
    /// Of the whole registered budget; none for a filter.
    pub registered: Option<f64>,
    /// Of what was played. For Fixed and Deck a reference only: order and stopping may have depended on the data. None if
    /// nothing was played.
    pub played: Option<f64>,
    /// How it was accounted.
    pub method: String,
    /// Steps played (a torn line that may have been one counts as one).
    pub steps: u64,
}

/// Epsilon of one held-out part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PartEpsilon {
    /// The part's name.
    pub part: String,
    /// Number of queries.
    pub queries: u64,
    /// Certified epsilon.
    pub epsilon: f64,
}

/// Epsilon of a whole ledger.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LedgerEpsilon {
    /// The delta asked for.
    pub delta: f64,
    /// The run's guarantee: the larger of training and held-out parts, which are disjoint populations.
    pub overall: f64,
    /// The training part.
    pub training: TrainingEpsilon,
    /// The held-out parts.
    pub parts: Vec<PartEpsilon>,
    /// False: seeded, NOT private; no figure here is a guarantee.
    pub private: bool,
    /// The last line was torn by a crash and was counted as whatever it may have been.
    pub torn: bool,
}

impl Ledger {
    /// Epsilon at `delta`, recomputed from the ledger alone.
    ///
    /// # Guarantee
    /// If the ledger is true and `private`, the run is (`overall`, delta)-DP for every unit of the population. A ledger that
    /// contradicts its own budget is refused.
    ///
    /// # Errors
    /// Delta outside (0, 1), a filter's ledger without any event, an inconsistent ledger, or an overflow.
    pub fn epsilon_upper(&self, delta: f64) -> Result<LedgerEpsilon, AccountingError> {
        check_delta(delta)?;
        self.header.check()?;
        let mut played = self.segments()?;
        let mut parts: BTreeMap<&str, Vec<Segment>> = BTreeMap::new();
        let mut queries = Vec::new();
        let in_doubt = self.in_doubt()?;
        for event in self.events.iter().chain(&in_doubt) {
            if let Event::Query {
                part,
                noise_multiplier,
                ..
            } = event
            {
                let query = Segment::new(1.0, *noise_multiplier, 1)?;
                if part == TRAINING_PART {
                    queries.push(query);
                } else {
                    parts.entry(part).or_default().push(query);
                }
            }
        }
        for event in &in_doubt {
            if let Event::Step {
                sampling_rate,
                noise_multiplier,
                ..
            } = event
            {
                played.push(Segment::new(*sampling_rate, *noise_multiplier, 1)?);
            }
        }
        let training = self.training(&played, &queries, delta)?;
        let mut overall = training.guarantee;
        let mut held_out = Vec::new();
        for (part, asked) in parts {
            let epsilon = gdp::epsilon_upper(
                gdp::mu(&self.header.adjacency.all_as_add_remove(&asked)?)?,
                delta,
            )?;
            overall = overall.max(epsilon);
            held_out.push(PartEpsilon {
                part: part.to_string(),
                queries: asked.len() as u64,
                epsilon,
            });
        }
        Ok(LedgerEpsilon {
            delta,
            overall,
            training,
            parts: held_out,
            private: self.header.private,
            torn: self.torn.is_some(),
        })
    }

    fn training(
        &self,
        played: &[Segment],
        queries: &[Segment],
        delta: f64,
    ) -> Result<TrainingEpsilon, AccountingError> {
        let adjacency = self.header.adjacency;
        let steps = played.iter().map(Segment::steps).sum();
        let with_queries = |steps: &[Segment]| -> Result<Option<f64>, AccountingError> {
            let all = adjacency.all_as_add_remove(&[steps, queries].concat())?;
            if all.is_empty() {
                Ok(None)
            } else {
                pld::epsilon_upper(&all, delta).map(Some)
            }
        };
        match &self.header.budget {
            BudgetRecord::Fixed { segment } => self.registered(
                std::slice::from_ref(segment),
                played,
                with_queries,
                steps,
                "fixed, PLD",
            ),
            BudgetRecord::Deck { cards } => {
                self.registered(cards, played, with_queries, steps, "deck, PLD")
            }
            BudgetRecord::Unprotected => Err(AccountingError::Unprotected),
            BudgetRecord::Filter {
                floor,
                ceiling,
                order,
            } => {
                if played.is_empty() && queries.is_empty() {
                    return Err(AccountingError::LedgerEmpty);
                }
                for s in played {
                    if !(*floor..=*ceiling).contains(&s.noise_multiplier()) {
                        return Err(AccountingError::LedgerInconsistent {
                            reason: format!(
                                "a step has the noise multiplier {}, outside the registered [{floor}, {ceiling}]",
                                s.noise_multiplier()
                            ),
                        });
                    }
                }
                let mut total = 0.0;
                for s in adjacency.all_as_add_remove(&[played, queries].concat())? {
                    let one = step_ln_moment(s.sampling_rate(), s.noise_multiplier(), *order)
                        / (order - 1.0);
                    total += one * s.steps() as f64;
                }
                let epsilon = convert(total * (1.0 + 1e-12), *order, delta.ln()).max(0.0);
                if !epsilon.is_finite() {
                    return Err(AccountingError::Overflow);
                }
                Ok(TrainingEpsilon {
                    guarantee: epsilon,
                    registered: None,
                    played: Some(epsilon),
                    method: format!("Renyi filter at order {order}"),
                    steps,
                })
            }
        }
    }

    /// Fixed and Deck: what was played must fit into what was registered.
    fn registered(
        &self,
        cards: &[Segment],
        played: &[Segment],
        epsilon: impl Fn(&[Segment]) -> Result<Option<f64>, AccountingError>,
        steps: u64,
        method: &str,
    ) -> Result<TrainingEpsilon, AccountingError> {
        let cards = merge(cards)?;
        if !played.is_empty() {
            for s in merge(played)? {
                let copies = cards
                    .iter()
                    .find(|c| {
                        c.sampling_rate() == s.sampling_rate()
                            && c.noise_multiplier() == s.noise_multiplier()
                    })
                    .map_or(0, Segment::steps);
                if s.steps() > copies {
                    return Err(AccountingError::LedgerInconsistent {
                        reason: format!(
                            "{} steps at sampling rate {} and noise multiplier {} were played, {copies} were registered",
                            s.steps(),
                            s.sampling_rate(),
                            s.noise_multiplier()
                        ),
                    });
                }
            }
        }
        let registered = epsilon(&cards)?.ok_or(AccountingError::LedgerEmpty)?;
        Ok(TrainingEpsilon {
            guarantee: registered,
            registered: Some(registered),
            played: epsilon(played)?,
            method: method.to_string(),
            steps,
        })
    }

    /// The step that loses most among those a torn line could have held.
    pub(super) fn worst_step(
        &self,
        played: &[Segment],
    ) -> Result<Option<Segment>, AccountingError> {
        let left = |cards: &[Segment]| -> Result<Option<Segment>, AccountingError> {
            let used = |c: &Segment| -> u64 {
                played
                    .iter()
                    .filter(|s| {
                        s.sampling_rate() == c.sampling_rate()
                            && s.noise_multiplier() == c.noise_multiplier()
                    })
                    .map(Segment::steps)
                    .sum()
            };
            let open = merge(cards)?.into_iter().filter(|c| c.steps() > used(c));
            let worst = open.max_by(|a, b| {
                let loss =
                    |s: &Segment| step_ln_moment(s.sampling_rate(), s.noise_multiplier(), 2.0);
                loss(a).total_cmp(&loss(b))
            });
            worst.map(|c| c.with_steps(1)).transpose()
        };
        match &self.header.budget {
            BudgetRecord::Fixed { segment } => left(std::slice::from_ref(segment)),
            BudgetRecord::Deck { cards } => left(cards),
            BudgetRecord::Unprotected => Err(AccountingError::Unprotected),
            BudgetRecord::Filter { floor, .. } => {
                // The registered rate is that of any step; without one, not subsampled is the worst case.
                let rate = played
                    .iter()
                    .map(Segment::sampling_rate)
                    .fold(None, |m: Option<f64>, q| Some(m.map_or(q, |m| m.max(q))));
                Segment::new(rate.unwrap_or(1.0), *floor, 1).map(Some)
            }
        }
    }
}
