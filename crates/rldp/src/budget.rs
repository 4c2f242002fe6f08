//! What may still be spent: the noise level of every step comes from here and from nowhere else.
//!
//! A controller only *wishes* for a noise level, relative to the calibrated one. The budget turns the wish into the
//! noise multiplier that is played, in a way that keeps the run's (epsilon, delta) whatever the controller does.

use rldp_accounting::budget::{Deck, RenyiFilter};
use rldp_accounting::ledger::BudgetRecord;
use rldp_accounting::{PrivacyTarget, Segment, calibrate, epsilon_upper};
use serde::{Deserialize, Serialize};

use crate::error::RldpError;

/// Which kind of budget a run plays (design.md, section 3, "Adaptivity: three budgets").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BudgetKind {
    /// Every step at one calibrated noise multiplier: the tightest for a run without a noise schedule.
    #[default]
    Fixed,
    /// A multiset of noise levels registered before training; the controller chooses which to play next.
    Deck,
    /// Noise levels chosen freely within a range, each tested by a Renyi filter before it is played.
    Filter,
}

impl std::fmt::Display for BudgetKind {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Fixed => "fixed",
            Self::Deck => "deck",
            Self::Filter => "filter",
        })
    }
}

impl std::str::FromStr for BudgetKind {
    type Err = RldpError;

    fn from_str(text: &str) -> Result<Self, RldpError> {
        match text {
            "fixed" => Ok(Self::Fixed),
            "deck" => Ok(Self::Deck),
            "filter" => Ok(Self::Filter),
            other => Err(RldpError::UnknownName {
                what: "budget",
                given: other.to_owned(),
                known: "fixed, deck, filter".to_owned(),
            }),
        }
    }
}

/// Ratios of the deck's levels to the calibrated scale, below and above a noise multiplier of one: with little
/// noise an uneven schedule costs utility, with much noise it can gain (design.md, section 5).
const NARROW_DECK: [f64; 3] = [0.95, 1.0, 1.05];
const WIDE_DECK: [f64; 3] = [0.8, 1.0, 1.25];
/// Range of the filter's noise multipliers relative to the calibrated one.
const FILTER_RANGE: (f64, f64) = (0.75, 1.5);

/// What an interrupted run's ledger registered, to restore its budget from.
#[derive(Clone, Copy, Debug)]
pub struct Registered<'a> {
    /// The registered budget.
    pub record: &'a BudgetRecord,
    /// The target.
    pub target: &'a PrivacyTarget,
    /// Sampling rate of every step.
    pub sampling_rate: f64,
    /// Steps of the run, at most.
    pub steps: u64,
    /// [`Budget::nominal`] of the interrupted run.
    pub nominal: f64,
}

/// The training budget of one run.
#[derive(Debug)]
pub enum Budget {
    /// See [`BudgetKind::Fixed`].
    Fixed {
        /// All steps.
        segment: Segment,
        /// Steps not yet played.
        remaining: u64,
    },
    /// See [`BudgetKind::Deck`].
    Deck {
        /// The deck.
        deck: Deck,
        /// The calibrated noise multiplier of a deck with one level, which wishes are relative to.
        nominal: f64,
    },
    /// See [`BudgetKind::Filter`].
    Filter {
        /// The filter.
        filter: RenyiFilter,
        /// The noise multiplier at which the filter allows the wanted number of steps.
        nominal: f64,
        /// Steps not yet played, at most.
        remaining: u64,
    },
}

impl Budget {
    /// [`Budget::calibrate_levels`] with the deck's own three levels.
    ///
    /// # Errors
    /// As [`Budget::calibrate_levels`].
    pub fn calibrate(
        kind: BudgetKind,
        target: &PrivacyTarget,
        sampling_rate: f64,
        steps: u64,
    ) -> Result<Self, RldpError> {
        Self::calibrate_levels(kind, target, sampling_rate, steps, &[])
    }

    /// Calibrates a budget of `steps` steps at `sampling_rate` to `target`. `levels` are a deck's noise multipliers relative
    /// to each other, each for an equal share of the steps; none for three of the budget's choice.
    ///
    /// # Guarantee
    /// Whatever sequence of wishes is passed to [`Budget::play`], the composition of all noise multipliers it
    /// returns, under add/remove adjacency, is `(target.epsilon, target.delta)`-DP: by the certified accountant for
    /// `Fixed`, by the deck theorem (`docs/proofs/deck.md`) for `Deck`, by the Renyi filter
    /// (`docs/proofs/filter.md`) for `Filter`.
    ///
    /// # Errors
    /// What the calibration refuses: targets out of range, or a target no noise level reaches.
    pub fn calibrate_levels(
        kind: BudgetKind,
        target: &PrivacyTarget,
        sampling_rate: f64,
        steps: u64,
        levels: &[f64],
    ) -> Result<Self, RldpError> {
        match kind {
            BudgetKind::Fixed => {
                let noise_multiplier = calibrate::noise_multiplier(target, sampling_rate, steps)?;
                let segment = Segment::new(sampling_rate, noise_multiplier, steps)?;
                Ok(Self::Fixed {
                    segment,
                    remaining: steps,
                })
            }
            BudgetKind::Deck => {
                let nominal = calibrate::noise_multiplier(target, sampling_rate, steps)?;
                let ratios = match levels {
                    [] if nominal < 1.0 => &NARROW_DECK,
                    [] => &WIDE_DECK,
                    given => given,
                };
                let shape = ratios
                    .iter()
                    .zip(shares(steps, ratios.len() as u64))
                    .filter(|(_, count)| *count > 0)
                    .map(|(ratio, count)| Segment::new(sampling_rate, ratio * nominal, count))
                    .collect::<Result<Vec<_>, _>>()?;
                let scale = calibrate::deck_scale(target, &shape)?;
                let cards = shape
                    .iter()
                    .map(|card| {
                        Segment::new(sampling_rate, scale * card.noise_multiplier(), card.steps())
                    })
                    .collect::<Result<Vec<_>, _>>()?;
                Ok(Self::Deck {
                    deck: Deck::new(cards)?,
                    nominal: scale * nominal,
                })
            }
            BudgetKind::Filter => {
                let filter = filter_for(target, sampling_rate, steps)?;
                let nominal = filter.range().0 / FILTER_RANGE.0;
                Ok(Self::Filter {
                    filter,
                    nominal,
                    remaining: steps,
                })
            }
        }
    }

    /// The budget of an interrupted run, from what its ledger registered and the steps it holds, in order: what was
    /// spent stays spent.
    ///
    /// # Guarantee
    /// As [`Budget::calibrate`] for the run as a whole, if the registered budget meets the target.
    ///
    /// # Errors
    /// A registered budget that is not of this kind or not valid; steps that it does not allow.
    pub fn restore(
        registered: &Registered<'_>,
        played: impl IntoIterator<Item = Segment>,
    ) -> Result<Self, RldpError> {
        let Registered {
            record,
            target,
            sampling_rate,
            steps,
            nominal,
        } = *registered;
        let mut budget = match record {
            BudgetRecord::Fixed { segment } => Self::Fixed {
                segment: *segment,
                remaining: segment.steps(),
            },
            BudgetRecord::Deck { cards } => Self::Deck {
                deck: Deck::new(cards.clone())?,
                nominal,
            },
            BudgetRecord::Filter {
                floor,
                ceiling,
                order,
            } => Self::Filter {
                filter: RenyiFilter::with_order(*target, sampling_rate, *floor, *ceiling, *order)?,
                nominal,
                remaining: steps,
            },
            other => {
                return Err(RldpError::UnknownName {
                    what: "budget",
                    given: format!("{other:?}"),
                    known: "fixed, deck, filter".to_owned(),
                });
            }
        };
        for step in played {
            budget.replay(&step)?;
        }
        Ok(budget)
    }

    /// Spends a step that was played before.
    fn replay(&mut self, step: &Segment) -> Result<(), RldpError> {
        match self {
            Self::Fixed { remaining, .. } => *remaining = remaining.saturating_sub(step.steps()),
            Self::Deck { deck, .. } => {
                // A kind may be listed more than once: any that is left will do.
                let index = (0..deck.segments().len())
                    .find(|&index| {
                        let card = &deck.segments()[index];
                        deck.remaining()[index] > 0
                            && card.sampling_rate() == step.sampling_rate()
                            && card.noise_multiplier() == step.noise_multiplier()
                    })
                    .unwrap_or(deck.segments().len());
                deck.play(index)?;
            }
            Self::Filter {
                filter, remaining, ..
            } => {
                filter.spend(step)?;
                *remaining = remaining.saturating_sub(step.steps());
            }
        }
        Ok(())
    }

    /// The step that would lose most of those that may still be played: what a torn line of the ledger counts as.
    #[must_use]
    pub fn worst_left(&self) -> Option<Segment> {
        match self {
            Self::Fixed { segment, remaining } => (*remaining > 0)
                .then(|| segment.with_steps(1).ok())
                .flatten(),
            Self::Deck { deck, .. } => deck
                .segments()
                .iter()
                .zip(deck.remaining())
                .filter(|(_, left)| **left > 0)
                .map(|(card, _)| card)
                .min_by(|a, b| a.noise_multiplier().total_cmp(&b.noise_multiplier()))
                .and_then(|card| card.with_steps(1).ok()),
            Self::Filter {
                filter, remaining, ..
            } => {
                // The most expensive step that the filter would still have let pass.
                let (floor, ceiling) = filter.range();
                let candidates =
                    (0..=64).map(|i| floor * (ceiling / floor).powf(f64::from(i) / 64.0));
                candidates
                    .filter(|_| *remaining > 0)
                    .filter_map(|sigma| {
                        Segment::new(filter.sampling_rate(), sigma.clamp(floor, ceiling), 1).ok()
                    })
                    .find(|step| filter.would_allow(step))
            }
        }
    }

    /// The noise multiplier to play now for a wish relative to the calibrated level, already spent; `None` when the
    /// budget is played out. A wish that is no positive number is taken for one.
    ///
    /// # Guarantee
    /// See [`Budget::calibrate`]: the noise multiplier returned is spent whether or not it is used, and it is spent
    /// before it is returned.
    ///
    /// # Errors
    /// None in practice: the accountant's errors are passed on.
    pub fn play(&mut self, wish: f64) -> Result<Option<Segment>, RldpError> {
        let wish = if wish.is_finite() && wish > 0.0 {
            wish
        } else {
            1.0
        };
        match self {
            Self::Fixed { segment, remaining } => {
                if *remaining == 0 {
                    return Ok(None);
                }
                *remaining -= 1;
                Ok(Some(segment.with_steps(1)?))
            }
            Self::Deck { deck, nominal } => match deck.nearest(wish * *nominal) {
                None => Ok(None),
                Some(index) => {
                    let card = deck.play(index)?;
                    Ok(Some(Segment::new(
                        card.sampling_rate,
                        card.noise_multiplier,
                        1,
                    )?))
                }
            },
            Self::Filter {
                filter,
                nominal,
                remaining,
            } => {
                if *remaining == 0 {
                    return Ok(None);
                }
                let (floor, ceiling) = filter.range();
                // What the filter refuses is tried with more noise, so that a run ends only when nothing fits.
                for noise_multiplier in [(wish * *nominal).clamp(floor, ceiling), ceiling] {
                    let step = Segment::new(filter.sampling_rate(), noise_multiplier, 1)?;
                    if filter.would_allow(&step) {
                        filter.spend(&step)?;
                        *remaining -= 1;
                        return Ok(Some(step));
                    }
                }
                Ok(None)
            }
        }
    }

    /// What the ledger's header registers.
    #[must_use]
    pub fn record(&self) -> BudgetRecord {
        match self {
            Self::Fixed { segment, .. } => BudgetRecord::Fixed { segment: *segment },
            Self::Deck { deck, .. } => BudgetRecord::Deck {
                cards: deck.segments().to_vec(),
            },
            Self::Filter { filter, .. } => {
                let (floor, ceiling) = filter.range();
                BudgetRecord::Filter {
                    floor,
                    ceiling,
                    order: filter.order(),
                }
            }
        }
    }

    /// The calibrated noise multiplier, which wishes are relative to.
    #[must_use]
    pub fn nominal(&self) -> f64 {
        match self {
            Self::Fixed { segment, .. } => segment.noise_multiplier(),
            Self::Deck { nominal, .. } | Self::Filter { nominal, .. } => *nominal,
        }
    }

    /// The accountant that the guarantee rests on, in words.
    #[must_use]
    pub fn accountant(&self) -> &'static str {
        match self {
            Self::Fixed { .. } => "privacy loss distribution, certified upper bound",
            Self::Deck { .. } => {
                "privacy loss distribution of the whole deck, certified upper bound"
            }
            Self::Filter { .. } => "Renyi filter at an order fixed before training",
        }
    }

    /// An upper bound on the epsilon of what was played, for show: as if no more will be.
    ///
    /// For a deck this is the accounting of the cards played as if their order had been fixed: the guarantee is that of
    /// the whole deck, and only the whole deck's figure may be published as such.
    ///
    /// # Errors
    /// The accountant's.
    pub fn epsilon_played(&self, delta: f64) -> Result<f64, RldpError> {
        Ok(match self {
            Self::Fixed { segment, remaining } => {
                let played = segment.steps() - remaining;
                if played == 0 {
                    0.0
                } else {
                    epsilon_upper(&[segment.with_steps(played)?], delta)?
                }
            }
            Self::Deck { deck, .. } => {
                let played: Vec<Segment> = deck.played();
                if played.is_empty() {
                    0.0
                } else {
                    epsilon_upper(&played, delta)?
                }
            }
            Self::Filter { filter, .. } => filter.epsilon_spent(),
        })
    }
}

/// `steps` in `parts` parts that differ by at most one, the middle ones first to get more.
fn shares(steps: u64, parts: u64) -> Vec<u64> {
    let (each, more) = (steps / parts, steps % parts);
    let first = (parts - more).div_ceil(2);
    (0..parts)
        .map(|part| each + u64::from(part >= first && part < first + more))
        .collect()
}

/// The filter with the least noise at which `steps` steps of the middle level fit.
fn filter_for(
    target: &PrivacyTarget,
    sampling_rate: f64,
    steps: u64,
) -> Result<RenyiFilter, RldpError> {
    let at = |nominal: f64| {
        RenyiFilter::new(
            *target,
            sampling_rate,
            FILTER_RANGE.0 * nominal,
            FILTER_RANGE.1 * nominal,
        )
    };
    let fits = |nominal: f64| at(nominal).is_ok_and(|filter| filter.steps_left(nominal) >= steps);
    // No filter needs less noise than the exact accountant of a fixed budget.
    let mut low = calibrate::noise_multiplier(target, sampling_rate, steps)?;
    let mut high = 2.0 * low;
    while !fits(high) {
        if high > 1e6 {
            // The accountant's own refusal says why.
            return Ok(at(high)?);
        }
        low = high;
        high *= 2.0;
    }
    while high / low > 1.0 + 1e-6 {
        let middle = (low * high).sqrt();
        if fits(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    Ok(at(high)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn target() -> PrivacyTarget {
        PrivacyTarget::new(4.0, 1e-5).unwrap()
    }

    /// Plays a budget out with the given wishes and gives all that was played.
    fn play_out(kind: BudgetKind, steps: u64, wishes: &[f64]) -> (Budget, Vec<Segment>) {
        let mut budget = Budget::calibrate(kind, &target(), 0.02, steps).unwrap();
        let mut played = Vec::new();
        let mut wishes = wishes.iter().cycle();
        while let Some(step) = budget.play(*wishes.next().unwrap()).unwrap() {
            played.push(step);
            assert!(played.len() < 10_000, "a budget that never ends");
        }
        (budget, played)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn no_sequence_of_wishes_exceeds_the_target(
            wishes in proptest::collection::vec(0.2_f64..4.0, 1..12),
            steps in 1_u64..80,
            kind in prop_oneof![Just(BudgetKind::Fixed), Just(BudgetKind::Deck), Just(BudgetKind::Filter)],
        ) {
            let (budget, played) = play_out(kind, steps, &wishes);
            if kind != BudgetKind::Filter {
                prop_assert_eq!(played.len() as u64, steps);
            }
            // The exact accountant on what was played, whatever the kind, is a lower bound on every valid claim.
            let exact = epsilon_upper(&played, 1e-5).unwrap();
            prop_assert!(exact <= 4.0 + 1e-9, "{} steps cost {}", played.len(), exact);
            prop_assert!(budget.epsilon_played(1e-5).unwrap() <= 4.0 + 1e-9);
        }
    }

    #[test]
    fn a_fixed_budget_is_played_to_the_last_step_and_no_further() {
        let (budget, played) = play_out(BudgetKind::Fixed, 50, &[1.0]);
        assert_eq!(played.len(), 50);
        let spent = budget.epsilon_played(1e-5).unwrap();
        assert!(spent <= 4.0 && spent > 3.99, "spent {spent} of 4");
    }

    #[test]
    fn a_deck_gives_the_level_wished_for_while_it_lasts() {
        let mut budget = Budget::calibrate(BudgetKind::Deck, &target(), 0.02, 30).unwrap();
        let low = budget.play(0.1).unwrap().unwrap().noise_multiplier();
        let high = budget.play(9.0).unwrap().unwrap().noise_multiplier();
        assert!(low < high);
    }

    #[test]
    fn a_filter_gives_at_least_the_steps_it_was_calibrated_for() {
        let (_, played) = play_out(BudgetKind::Filter, 40, &[1.0]);
        assert_eq!(played.len(), 40);
    }

    /// An epsilon of zero after an error would be the worst of figures.
    #[test]
    fn an_epsilon_that_cannot_be_computed_is_an_error() {
        for kind in [BudgetKind::Fixed, BudgetKind::Deck] {
            let (budget, played) = play_out(kind, 9, &[1.0]);
            assert!(!played.is_empty());
            for delta in [0.0, 1.0, f64::NAN, -1.0] {
                assert!(budget.epsilon_played(delta).is_err(), "{kind} at {delta}");
            }
        }
    }

    #[test]
    fn a_deck_is_dealt_in_equal_shares() {
        assert_eq!(shares(7, 3), [2, 3, 2]);
        assert_eq!(shares(8, 3), [2, 3, 3]);
        assert_eq!(shares(2, 5), [0, 0, 1, 1, 0]);
    }

    #[test]
    fn a_wish_that_is_no_number_is_taken_for_one() {
        let mut budget = Budget::calibrate(BudgetKind::Filter, &target(), 0.02, 10).unwrap();
        let nominal = budget.nominal();
        let step = budget.play(f64::NAN).unwrap().unwrap();
        assert!((step.noise_multiplier() / nominal - 1.0).abs() < 1e-9);
    }
}
