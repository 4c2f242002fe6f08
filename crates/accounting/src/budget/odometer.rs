//! An odometer: a running epsilon that is valid at every moment, however steps and stopping are chosen.

use serde::{Deserialize, Serialize};

use crate::error::AccountingError;
use crate::rdp::{convert, step_ln_moment};
use crate::segment::{Segment, check_delta};

/// A Renyi odometer at one order (Lecuyer 2021): filters of doubling budget stand behind each other, the k-th at
/// delta / (k (k + 1)), and what is reported is the guarantee of the first that has not overflowed.
///
/// # Guarantee
/// At every moment, including adaptively chosen stopping times, what was recorded so far is (epsilon, delta)-DP with the
/// epsilon then reported; the filters' deltas sum to at most `delta`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Odometer {
    delta: f64,
    order: f64,
    unit: f64,
    spent: f64,
}

impl Odometer {
    /// An odometer at this order whose first filter holds an RDP of `unit`.
    ///
    /// # Errors
    /// Delta outside (0, 1), an order not above 1, a unit that is not positive and finite.
    pub fn new(delta: f64, order: f64, unit: f64) -> Result<Self, AccountingError> {
        check_delta(delta)?;
        if !(order > 1.0 && order.is_finite()) {
            return Err(AccountingError::Order { value: order });
        }
        if !(unit > 0.0 && unit.is_finite()) {
            return Err(AccountingError::NotPositive {
                name: "the odometer's unit",
                value: unit,
            });
        }
        Ok(Self {
            delta,
            order,
            unit,
            spent: 0.0,
        })
    }

    /// Records steps that were taken.
    pub fn record(&mut self, segment: &Segment) {
        let one = step_ln_moment(
            segment.sampling_rate(),
            segment.noise_multiplier(),
            self.order,
        ) / (self.order - 1.0);
        self.spent =
            (self.spent + one * (1.0 + 1e-12) * segment.steps() as f64) * (1.0 + f64::EPSILON);
    }

    /// RDP recorded at the order.
    pub fn spent(&self) -> f64 {
        self.spent
    }

    /// Epsilon of everything recorded so far.
    ///
    /// # Errors
    /// An overflow of the privacy loss.
    pub fn epsilon_upper(&self) -> Result<f64, AccountingError> {
        if self.spent == 0.0 {
            return Ok(0.0);
        }
        let mut budget = self.unit;
        let mut index = 1.0;
        while budget < self.spent {
            budget *= 2.0;
            index += 1.0;
        }
        if !budget.is_finite() {
            return Err(AccountingError::Overflow);
        }
        let share = self.delta.ln() - f64::ln(index * (index + 1.0));
        Ok(convert(budget, self.order, share).max(0.0))
    }
}
