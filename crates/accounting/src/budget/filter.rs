//! Filters: budgets for noise chosen freely at each step, tested before the step is taken.

use serde::{Deserialize, Serialize};

use crate::error::AccountingError;
use crate::gaussian;
use crate::rdp::{convert, minimise_over_scale, step_ln_moment};
use crate::segment::{PrivacyTarget, Segment};

/// A Renyi filter (Feldman and Zrnic 2021): RDP summed at one order, fixed before anything is seen.
///
/// # Guarantee
/// However the accepted steps' noise was chosen from earlier outputs, what was accepted is `target`-DP. Proof:
/// `docs/proofs/filter.md`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RenyiFilter {
    target: PrivacyTarget,
    sampling_rate: f64,
    floor: f64,
    ceiling: f64,
    order: f64,
    budget: f64,
    spent: f64,
    steps: u64,
}

impl RenyiFilter {
    /// A filter for steps at `sampling_rate` with noise multipliers within `[floor, ceiling]`.
    ///
    /// The order is the one that allows the most steps at the floor.
    ///
    /// # Errors
    /// Bad parameters, or a target below what any order can certify for even one step.
    pub fn new(
        target: PrivacyTarget,
        sampling_rate: f64,
        floor: f64,
        ceiling: f64,
    ) -> Result<Self, AccountingError> {
        target.check()?;
        Segment::new(sampling_rate, floor, 1)?;
        Segment::new(sampling_rate, ceiling, 1)?;
        if floor > ceiling {
            return Err(AccountingError::OutsideRange {
                value: floor,
                floor,
                ceiling,
            });
        }
        if sampling_rate == 0.0 {
            return Err(AccountingError::SamplingRate { value: 0.0 });
        }
        // Steps affordable at the floor, as a function of the order; minimise its inverse.
        let cost = |c: f64| {
            let budget = rdp_budget(&target, c + 1.0);
            if budget <= 0.0 {
                f64::INFINITY
            } else {
                step_ln_moment(sampling_rate, floor, c + 1.0) / c / budget
            }
        };
        // Start where the budget is positive: the conversion's constant is about ln(1/delta) / c.
        let start = 2.0 * (-target.delta.ln() + 1.0) / target.epsilon;
        let (c, inverse_steps) = minimise_over_scale(cost, start, 1e-5);
        if !inverse_steps.is_finite() {
            return Err(AccountingError::Unreachable {
                what: "RDP order",
                low: 1.0,
                high: 1e8,
                epsilon: target.epsilon,
                delta: target.delta,
            });
        }
        Self::with_order(target, sampling_rate, floor, ceiling, c + 1.0)
    }

    /// A filter at a given order, as read from a ledger.
    ///
    /// # Errors
    /// As for [`RenyiFilter::new`], or an order not above 1.
    pub fn with_order(
        target: PrivacyTarget,
        sampling_rate: f64,
        floor: f64,
        ceiling: f64,
        order: f64,
    ) -> Result<Self, AccountingError> {
        target.check()?;
        Segment::new(sampling_rate, floor, 1)?;
        Segment::new(sampling_rate, ceiling, 1)?;
        if !(order > 1.0 && order.is_finite()) {
            return Err(AccountingError::Order { value: order });
        }
        let budget = rdp_budget(&target, order);
        if !(budget > 0.0) {
            return Err(AccountingError::Unreachable {
                what: "RDP order",
                low: order,
                high: order,
                epsilon: target.epsilon,
                delta: target.delta,
            });
        }
        Ok(Self {
            target,
            sampling_rate,
            floor,
            ceiling,
            order,
            budget,
            spent: 0.0,
            steps: 0,
        })
    }

    /// Whether the steps may be taken.
    pub fn would_allow(&self, segment: &Segment) -> bool {
        self.test(segment).is_ok()
    }

    /// Spends the steps, or refuses them before they are taken.
    ///
    /// # Errors
    /// Refused: outside the registered range or rate, or beyond the budget. Nothing is spent then.
    pub fn spend(&mut self, segment: &Segment) -> Result<(), AccountingError> {
        self.spent = self.test(segment)?;
        self.steps += segment.steps();
        Ok(())
    }

    fn test(&self, segment: &Segment) -> Result<f64, AccountingError> {
        if segment.sampling_rate() != self.sampling_rate {
            return Err(AccountingError::SamplingRateChanged {
                value: segment.sampling_rate(),
                registered: self.sampling_rate,
            });
        }
        let (value, floor, ceiling) = (segment.noise_multiplier(), self.floor, self.ceiling);
        if !(floor..=ceiling).contains(&value) {
            return Err(AccountingError::OutsideRange {
                value,
                floor,
                ceiling,
            });
        }
        self.steps
            .checked_add(segment.steps())
            .ok_or(AccountingError::StepsOverflow)?;
        let proposed = self.cost(segment);
        // Sums are nudged upwards, so that rounding can only refuse.
        let after = (self.spent + proposed) * (1.0 + f64::EPSILON);
        if after <= self.budget {
            Ok(after)
        } else {
            Err(AccountingError::BudgetExceeded {
                spent: self.spent,
                proposed,
                budget: self.budget,
            })
        }
    }

    /// RDP of these steps at the filter's order.
    pub fn cost(&self, segment: &Segment) -> f64 {
        let c = self.order - 1.0;
        let one = step_ln_moment(
            segment.sampling_rate(),
            segment.noise_multiplier(),
            self.order,
        ) / c;
        one * (1.0 + 1e-12) * segment.steps() as f64
    }

    /// The fixed order.
    pub fn order(&self) -> f64 {
        self.order
    }

    /// RDP spent at the order.
    pub fn spent(&self) -> f64 {
        self.spent
    }

    /// RDP budget at the order.
    pub fn budget(&self) -> f64 {
        self.budget
    }

    /// Steps accepted.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Registered range of noise multipliers.
    pub fn range(&self) -> (f64, f64) {
        (self.floor, self.ceiling)
    }

    /// The registered sampling rate.
    pub fn sampling_rate(&self) -> f64 {
        self.sampling_rate
    }

    /// The target this filter keeps.
    pub fn target(&self) -> PrivacyTarget {
        self.target
    }

    /// How many more steps at this noise multiplier would be accepted.
    pub fn steps_left(&self, noise_multiplier: f64) -> u64 {
        let Ok(one) = Segment::new(self.sampling_rate, noise_multiplier, 1) else {
            return 0;
        };
        if !self.would_allow(&one) {
            return 0;
        }
        let mut steps = ((self.budget - self.spent) / self.cost(&one))
            .floor()
            .max(1.0) as u64;
        while steps > 1 && !one.with_steps(steps).is_ok_and(|s| self.would_allow(&s)) {
            steps -= 1;
        }
        steps
    }

    /// Epsilon of what was spent so far at the fixed order; never above the target.
    ///
    /// Reported when the run is over; stopping early on it is fine, spending on past the target is not.
    pub fn epsilon_spent(&self) -> f64 {
        if self.spent == 0.0 {
            0.0
        } else {
            convert(self.spent, self.order, self.target.delta.ln()).max(0.0)
        }
    }
}

/// RDP at `order` that converts to exactly the target (rounded down).
fn rdp_budget(target: &PrivacyTarget, order: f64) -> f64 {
    let constant = convert(0.0, order, target.delta.ln());
    (target.epsilon - constant) * (1.0 - 1e-12)
}

/// A filter for plain Gaussians (no subsampling): squared mu is spent from the target's, exactly, with no order to choose.
///
/// # Guarantee
/// However the noise of the accepted steps was chosen, what was accepted is `target`-DP (fully adaptive GDP composition:
/// Koskela, Tobaben and Honkela 2023; Smith and Thakurta 2022).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GdpFilter {
    target: PrivacyTarget,
    budget: f64,
    spent: f64,
}

impl GdpFilter {
    /// A filter for this target.
    ///
    /// # Errors
    /// A bad target.
    pub fn new(target: PrivacyTarget) -> Result<Self, AccountingError> {
        target.check()?;
        let sigma = gaussian::sigma_for(target.epsilon, target.delta)?;
        Ok(Self {
            target,
            budget: (1.0 - 1e-12) / (sigma * sigma),
            spent: 0.0,
        })
    }

    /// Whether the queries may be asked.
    pub fn would_allow(&self, segment: &Segment) -> bool {
        self.test(segment).is_ok()
    }

    /// Spends the queries, or refuses them before they are asked.
    ///
    /// # Errors
    /// Refused: subsampled, or beyond the budget. Nothing is spent then.
    pub fn spend(&mut self, segment: &Segment) -> Result<(), AccountingError> {
        self.spent = self.test(segment)?;
        Ok(())
    }

    fn test(&self, segment: &Segment) -> Result<f64, AccountingError> {
        if segment.sampling_rate() != 1.0 {
            return Err(AccountingError::Subsampled {
                sampling_rate: segment.sampling_rate(),
            });
        }
        let proposed = segment.steps() as f64 / segment.noise_multiplier().powi(2);
        let after = (self.spent + proposed) * (1.0 + f64::EPSILON);
        if after <= self.budget {
            Ok(after)
        } else {
            Err(AccountingError::BudgetExceeded {
                spent: self.spent,
                proposed,
                budget: self.budget,
            })
        }
    }

    /// Squared mu spent.
    pub fn spent(&self) -> f64 {
        self.spent
    }

    /// Squared mu of the target.
    pub fn budget(&self) -> f64 {
        self.budget
    }

    /// The target this filter keeps.
    pub fn target(&self) -> PrivacyTarget {
        self.target
    }
}
