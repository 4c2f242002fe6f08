//! Renyi differential privacy of the Poisson-subsampled Gaussian, at integer and fractional orders.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::error::AccountingError;
use crate::segment::{Segment, check_delta, merge};
use crate::tilt::Step;

/// Below this noise multiplier subsampling is ignored (the loss is then over 10,000 at one step anyway).
pub(crate) const SMALLEST_SUBSAMPLED_SIGMA: f64 = 5e-3;

/// RDP of one step at `order` (> 1), add/remove adjacency.
///
/// # Precision
/// About 1e-12 relative for q in [1e-10, 1], sigma in [0.05, 1000]; the remove direction, which is the larger one
/// (Mironov, Talwar and Zhang 2019).
///
/// # Errors
/// Parameters outside their ranges, or an overflow.
pub fn rdp(sampling_rate: f64, noise_multiplier: f64, order: f64) -> Result<f64, AccountingError> {
    Segment::new(sampling_rate, noise_multiplier, 1)?;
    if !(order > 1.0 && order.is_finite()) {
        return Err(AccountingError::Order { value: order });
    }
    let value = step_ln_moment(sampling_rate, noise_multiplier, order) / (order - 1.0);
    if value.is_finite() {
        Ok(value)
    } else {
        Err(AccountingError::Overflow)
    }
}

/// ln E_Q[(P/Q)^power] of one step, any 0 <= q <= 1, power > 1 or < 0.
pub(crate) fn step_ln_moment(q: f64, sigma: f64, power: f64) -> f64 {
    if q == 0.0 {
        0.0
    } else if q == 1.0 || sigma < SMALLEST_SUBSAMPLED_SIGMA {
        0.5 * power * (power - 1.0) / (sigma * sigma)
    } else {
        Step::new(q, sigma).ln_moment(power)
    }
}

/// epsilon from RDP (Canonne, Kamath and Steinke 2020, Proposition 12): clamped at 0, since a negative value certifies 0.
///
/// # Guarantee
/// A mechanism with RDP `rdp` at `order` is (returned, delta)-DP. The value is raised by a few ulps.
///
/// # Errors
/// Delta outside (0, 1), an order not above 1, a negative or NaN RDP.
pub fn epsilon_from_rdp_upper(rdp: f64, order: f64, delta: f64) -> Result<f64, AccountingError> {
    check_delta(delta)?;
    if !(order > 1.0 && order.is_finite()) {
        return Err(AccountingError::Order { value: order });
    }
    if !(rdp >= 0.0 && rdp.is_finite()) {
        return Err(AccountingError::Epsilon { value: rdp });
    }
    Ok(convert(rdp, order, delta.ln()).max(0.0))
}

/// The conversion itself, with a margin for the rounding of its inputs.
pub(crate) fn convert(rdp: f64, order: f64, ln_delta: f64) -> f64 {
    let c = order - 1.0;
    let ratio = -(1.0 / c).ln_1p();
    let tail = (ln_delta + order.ln()) / c;
    rdp + ratio - tail + 4e-13 * (rdp + ratio.abs() + tail.abs())
}

/// The default orders: dense where the best order of ordinary runs lies, sparse to 2048.
pub fn default_orders() -> Vec<f64> {
    let mut orders: Vec<f64> = (1..=19).map(|i| 1.0 + 0.05 * f64::from(i)).collect();
    orders.extend((20..100).map(|i| f64::from(i) / 10.0));
    orders.extend((20..64).map(|i| f64::from(i) / 2.0));
    orders.extend((32..64).map(f64::from));
    orders.extend((0..=230).map(|i| 64.0 * 32f64.powf(f64::from(i) / 230.0)));
    orders
}

/// An epsilon with the order that gave it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RdpEpsilon {
    /// Epsilon, in nats.
    pub epsilon: f64,
    /// The order it was converted at.
    pub order: f64,
}

/// An accountant of Renyi differential privacy over a fixed set of orders.
///
/// Composition is addition order by order. Picking the best order afterwards is valid for mechanisms fixed in advance;
/// under adaptively chosen noise fix the order first (see [`crate::budget::RenyiFilter`]).
#[derive(Debug, Clone)]
pub struct RdpAccountant {
    orders: Vec<f64>,
    totals: Vec<f64>,
    steps: u64,
    cache: HashMap<(u64, u64), Vec<f64>>,
}

impl Default for RdpAccountant {
    fn default() -> Self {
        let orders = default_orders();
        Self {
            totals: vec![0.0; orders.len()],
            orders,
            steps: 0,
            cache: HashMap::new(),
        }
    }
}

impl RdpAccountant {
    /// An accountant over these orders.
    ///
    /// # Errors
    /// No orders, or one that is not above 1 and finite.
    pub fn new(orders: Vec<f64>) -> Result<Self, AccountingError> {
        if orders.is_empty() {
            return Err(AccountingError::Order { value: f64::NAN });
        }
        if let Some(&value) = orders.iter().find(|&&o| !(o > 1.0 && o.is_finite())) {
            return Err(AccountingError::Order { value });
        }
        Ok(Self {
            totals: vec![0.0; orders.len()],
            orders,
            steps: 0,
            cache: HashMap::new(),
        })
    }

    /// Adds a segment.
    ///
    /// # Errors
    /// An overflow of steps.
    pub fn compose(&mut self, segment: &Segment) -> Result<(), AccountingError> {
        let steps = self
            .steps
            .checked_add(segment.steps())
            .ok_or(AccountingError::StepsOverflow)?;
        let (q, sigma) = (segment.sampling_rate(), segment.noise_multiplier());
        let orders = &self.orders;
        let one = self
            .cache
            .entry((q.to_bits(), sigma.to_bits()))
            .or_insert_with(|| {
                orders
                    .iter()
                    .map(|&a| step_ln_moment(q, sigma, a) / (a - 1.0))
                    .collect()
            });
        for (total, step) in self.totals.iter_mut().zip(one.iter()) {
            *total += step * segment.steps() as f64;
        }
        self.steps = steps;
        Ok(())
    }

    /// The orders.
    pub fn orders(&self) -> &[f64] {
        &self.orders
    }

    /// Total RDP at each order.
    pub fn rdp(&self) -> &[f64] {
        &self.totals
    }

    /// Epsilon at the best of the orders.
    ///
    /// # Guarantee
    /// The composition of the segments, fixed in advance or a deck, is (epsilon, delta)-DP.
    ///
    /// # Errors
    /// Delta outside (0, 1), nothing composed, or an overflow at every order.
    pub fn epsilon_upper(&self, delta: f64) -> Result<RdpEpsilon, AccountingError> {
        check_delta(delta)?;
        if self.steps == 0 {
            return Err(AccountingError::NoSegments);
        }
        let ln_delta = delta.ln();
        self.orders
            .iter()
            .zip(&self.totals)
            .filter(|(_, total)| total.is_finite())
            .map(|(&order, &total)| RdpEpsilon {
                // Nothing lost at any order means two equal distributions: epsilon 0, whatever delta.
                epsilon: if total == 0.0 {
                    0.0
                } else {
                    convert(total, order, ln_delta).max(0.0)
                },
                order,
            })
            .min_by(|a, b| a.epsilon.total_cmp(&b.epsilon))
            .ok_or(AccountingError::Overflow)
    }
}

/// Epsilon by RDP with the order optimised over all reals above 1.
///
/// # Guarantee
/// As [`RdpAccountant::epsilon_upper`]: valid for mechanisms fixed in advance, or a deck.
///
/// # Errors
/// No segments, delta outside (0, 1), or an overflow.
pub fn epsilon_upper(segments: &[Segment], delta: f64) -> Result<RdpEpsilon, AccountingError> {
    check_delta(delta)?;
    let merged = merge(segments)?;
    if merged.iter().all(|s| s.sampling_rate() == 0.0) {
        return Ok(RdpEpsilon {
            epsilon: 0.0,
            order: f64::MAX,
        });
    }
    let ln_delta = delta.ln();
    let at = |c: f64| {
        let total: f64 = merged
            .iter()
            .map(|s| {
                s.steps() as f64 * step_ln_moment(s.sampling_rate(), s.noise_multiplier(), c + 1.0)
            })
            .sum();
        let value = convert(total / c, c + 1.0, ln_delta);
        if value.is_nan() { f64::INFINITY } else { value }
    };
    let (c, epsilon) = minimise_over_scale(at, 1.0, 1e-7);
    if epsilon.is_finite() {
        Ok(RdpEpsilon {
            epsilon: epsilon.max(0.0),
            order: c + 1.0,
        })
    } else {
        Err(AccountingError::Overflow)
    }
}

/// Minimises over c > 0: a walk by factors of 1.6 from `start`, then golden section in ln c. Any c is a valid answer.
pub(crate) fn minimise_over_scale(
    f: impl FnMut(f64) -> f64,
    start: f64,
    tolerance: f64,
) -> (f64, f64) {
    minimise_up_to(f, start, tolerance, 1e14)
}

/// The same, walking no further than `most`.
pub(crate) fn minimise_up_to(
    mut f: impl FnMut(f64) -> f64,
    start: f64,
    tolerance: f64,
    most: f64,
) -> (f64, f64) {
    const RATIO: f64 = 1.6;
    let mut best = (start, f(start));
    let mut factor = RATIO;
    let mut first = f(start * factor);
    let mut turned = (start / factor, f64::NAN);
    if !(first < best.1) {
        turned = (start * factor, first);
        factor = 1.0 / RATIO;
        first = f(start * factor);
    }
    // Walk downhill. From an infinite start, towards smaller c, where everything is finite.
    let mut next = (start * factor, first);
    for _ in 0..80 {
        if next.1 < best.1 || (next.1 == best.1 && best.1.is_infinite()) {
            turned = best;
            best = next;
            next = (best.0 * factor, f(best.0 * factor));
        } else {
            break;
        }
        if !(1e-8..most).contains(&next.0) {
            break;
        }
    }
    let (mut low, mut high) = if next.0 < turned.0 {
        (next.0, turned.0)
    } else {
        (turned.0, next.0)
    };
    const GOLDEN: f64 = 0.381_966_011_250_105_1;
    // Golden section around the known interior point.
    let (mut m, mut fm) = best;
    while (high / low).ln() > tolerance {
        let right = (high / m).ln() > (m / low).ln();
        let x = if right {
            m * ((high / m).ln() * GOLDEN).exp()
        } else {
            m / ((m / low).ln() * GOLDEN).exp()
        };
        let fx = f(x);
        if fx < fm {
            if right {
                low = m
            } else {
                high = m
            }
            (m, fm) = (x, fx);
        } else if right {
            high = x;
        } else {
            low = x;
        }
    }
    (m, fm)
}
