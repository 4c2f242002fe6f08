//! The privacy loss distribution of a composed sequence, with certified upper and lower bounds.
//!
//! Both directions of add/remove adjacency are composed separately; the larger epsilon counts.

mod contour;
mod loss;
mod one_step;

use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::adjacency::Adjacency;
use crate::error::AccountingError;
use crate::gaussian;
use crate::segment::{Segment, check_delta, check_epsilon, merge};
use crate::special::decreasing_root;
use contour::{Contour, Plan};
use loss::{Direction, Loss};

/// Relative margin on closed forms.
const CLOSED_FORM_MARGIN: f64 = 1e-12;
/// Shares of delta that outcomes cut off may take.
const CUT_SHARES: [f64; 3] = [1e-7, 1e-4, 1e-2];
/// A contour is used while its certified relative gap in delta is below this.
const GOOD_GAP: f64 = 1e-6;

/// What a [`PldAccountant`] is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PldOptions {
    /// Wanted width of the certified interval of epsilon, where the work for it is bearable. Usually it is far smaller.
    pub epsilon_error: f64,
    /// The neighbouring relation.
    pub adjacency: Adjacency,
}

impl Default for PldOptions {
    fn default() -> Self {
        Self {
            epsilon_error: 1e-3,
            adjacency: Adjacency::AddRemove,
        }
    }
}

/// A certified interval that holds the true epsilon.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EpsilonInterval {
    /// Certified lower bound.
    pub lower: f64,
    /// Certified upper bound: the guarantee.
    pub upper: f64,
}

#[derive(Debug, Clone, Default)]
struct Cache {
    remove: Option<Contour>,
    add: Option<Contour>,
    /// Saddle and log moment of a Chernoff bound that keeps the add direction below the remove direction.
    guard: Option<(f64, f64)>,
}

/// An accountant of privacy loss distributions, incremental in segments.
///
/// [`PldAccountant::compose`] multiplies one transform; asking for epsilon takes one inverse transform, at one point. Now and
/// then, as the loss grows, the line of integration no longer fits and is laid anew over the distinct segments.
#[derive(Debug)]
pub struct PldAccountant {
    options: PldOptions,
    segments: Vec<Segment>,
    cache: Mutex<Cache>,
}

impl Clone for PldAccountant {
    fn clone(&self) -> Self {
        let cache = self
            .cache
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        Self {
            options: self.options,
            segments: self.segments.clone(),
            cache: Mutex::new(cache),
        }
    }
}

impl Default for PldAccountant {
    fn default() -> Self {
        Self::with_options(PldOptions::default())
    }
}

impl PldAccountant {
    /// An accountant with these options.
    ///
    /// # Errors
    /// An `epsilon_error` that is not positive and finite.
    pub fn new(options: PldOptions) -> Result<Self, AccountingError> {
        let value = options.epsilon_error;
        if !(value > 0.0 && value.is_finite()) {
            return Err(AccountingError::NotPositive {
                name: "epsilon_error",
                value,
            });
        }
        Ok(Self::with_options(options))
    }

    fn with_options(options: PldOptions) -> Self {
        Self {
            options,
            segments: Vec::new(),
            cache: Mutex::new(Cache::default()),
        }
    }

    /// Adds a segment: one product of transforms, if a transform is at hand.
    ///
    /// # Errors
    /// An overflow of steps, or an adjacency undefined for the segment.
    pub fn compose(&mut self, segment: &Segment) -> Result<(), AccountingError> {
        let segment = self.options.adjacency.as_add_remove(segment)?;
        let key = |s: &Segment| (s.sampling_rate(), s.noise_multiplier());
        let order = |s: &Segment| {
            let ((a, b), (x, y)) = (key(s), key(&segment));
            a.total_cmp(&x).then(b.total_cmp(&y))
        };
        match self.segments.binary_search_by(order) {
            Ok(i) => {
                let total = self.segments[i].steps().checked_add(segment.steps());
                self.segments[i] =
                    segment.with_steps(total.ok_or(AccountingError::StepsOverflow)?)?;
            }
            Err(i) => self.segments.insert(i, segment),
        }
        let cache = self.cache.get_mut().unwrap_or_else(PoisonError::into_inner);
        let one = Loss::upper(&[segment]);
        for contour in [&mut cache.remove, &mut cache.add].into_iter().flatten() {
            extend(contour, &one);
        }
        if let Some((c, k)) = &mut cache.guard {
            *k += one.ln_moment(Direction::Add, *c);
        }
        Ok(())
    }

    /// The distinct segments, as add/remove segments.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Epsilon at `delta`.
    ///
    /// # Guarantee
    /// The composition is (returned, delta)-DP, for segments fixed in advance and for a deck: the bound covers aliasing,
    /// cut-off, quadrature and rounding, and is never above the Renyi bound at the order used.
    ///
    /// # Errors
    /// Delta outside (0, 1), nothing composed, or a loss too large for the arithmetic.
    pub fn epsilon_upper(&self, delta: f64) -> Result<f64, AccountingError> {
        let composed = self.composed_upper(delta)?;
        Ok(self
            .basic_upper(delta)?
            .map_or(composed, |basic| basic.min(composed)))
    }

    /// Basic composition of closed forms: for a handful of sparse steps it can be the tightest there is.
    fn basic_upper(&self, delta: f64) -> Result<Option<f64>, AccountingError> {
        let steps: u128 = self.segments.iter().map(|s| u128::from(s.steps())).sum();
        if !(2..=8).contains(&steps) {
            return Ok(None);
        }
        let ln_share = (delta / steps as f64).ln();
        let mut total = 0.0;
        for s in &self.segments {
            let (q, sigma) = (s.sampling_rate(), s.noise_multiplier());
            let remove = invert(|e| one_step::ln_delta_remove(q, sigma, e) - ln_share)?;
            let add = invert(|e| one_step::ln_delta_add(q, sigma, e) - ln_share)?;
            total += s.steps() as f64 * remove.max(add);
        }
        Ok(Some(total * (1.0 + CLOSED_FORM_MARGIN)))
    }

    fn composed_upper(&self, delta: f64) -> Result<f64, AccountingError> {
        check_delta(delta)?;
        if let Some(exact) = self.closed_form(delta)? {
            return Ok(exact * (1.0 + CLOSED_FORM_MARGIN));
        }
        let loss = Loss::upper(&self.segments);
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let tolerance = 0.5 * self.options.epsilon_error;
        let remove = upper_in(
            &loss,
            Direction::Remove,
            delta,
            tolerance,
            &mut cache.remove,
        )?;
        // The add direction is usually far below; a Chernoff bound shows it.
        let ln_delta = delta.ln();
        let below = |c: f64, k: f64| {
            k * (1.0 + 1e-12) - c * remove + loss::ln_hockey_stick_factor(c) <= ln_delta
        };
        if remove > 0.0 {
            if cache.guard.is_some_and(|(c, k)| below(c, k)) {
                return Ok(remove);
            }
            if cache.add.is_none() {
                let saddle = cache.remove.as_ref().map_or(1.0, Contour::saddle);
                for factor in [1.3, 2.0, 0.8] {
                    let c = saddle * factor;
                    let k = loss.ln_moment(Direction::Add, c);
                    if below(c, k) {
                        cache.guard = Some((c, k));
                        return Ok(remove);
                    }
                }
            }
        }
        let add = upper_in(&loss, Direction::Add, delta, tolerance, &mut cache.add)?;
        Ok(remove.max(add))
    }

    /// A certified lower bound on epsilon at `delta`.
    ///
    /// # Guarantee
    /// The composition is not (e, delta)-DP for any e below the returned value.
    ///
    /// # Errors
    /// As for [`PldAccountant::epsilon_upper`].
    pub fn epsilon_lower(&self, delta: f64) -> Result<f64, AccountingError> {
        check_delta(delta)?;
        if self
            .segments
            .iter()
            .all(|s| s.sampling_rate() == 1.0 || s.sampling_rate() == 0.0)
            || self.one_step().is_some()
        {
            return Ok(self.closed_form(delta)?.unwrap_or(0.0) * (1.0 - CLOSED_FORM_MARGIN));
        }
        let loss = Loss::lower(&self.segments);
        let tolerance = 0.02 * self.options.epsilon_error;
        let ln_delta = delta.ln();
        let mut best: f64 = 0.0;
        // A composition loses at least what any one of its steps loses: the tighter bound for very few sparse steps.
        for s in &loss.steps {
            let (q, sigma) = (s.0.q, s.0.sigma);
            let one = invert(|e| one_step::ln_delta_remove(q, sigma, e) - ln_delta)?;
            best = best.max(one * (1.0 - CLOSED_FORM_MARGIN));
        }
        for direction in [Direction::Remove, Direction::Add] {
            if loss.steps.is_empty() {
                let mu = loss.mu2.sqrt();
                best = best.max(gaussian::epsilon_for_mu(mu, delta)? * (1.0 - CLOSED_FORM_MARGIN));
                continue;
            }
            let (c, chernoff) = loss.chernoff_epsilon(direction, ln_delta, 0.02);
            // A direction whose upper bound is below what is certified already cannot help.
            // Nor is one worth its while whose saddle is so far out that its quadrature takes seconds.
            if !chernoff.is_finite() || chernoff <= best || (direction == Direction::Add && c > 1e5)
            {
                continue;
            }
            let Some(contour) = lay(&loss, direction, (c, ln_delta, None), tolerance) else {
                continue;
            };
            let f = |e: f64| {
                let d = contour.delta_lower(e);
                if d > 0.0 { d.ln() - ln_delta } else { -1e3 }
            };
            // The contour is good near its own epsilon only: start there and step down until the bound holds.
            let top = solve(&contour, ln_delta, chernoff);
            let (mut high, mut step) = ((top, f(top)), 1e-12 * top.max(1e-3));
            while high.1 <= 0.0 && high.0 > best {
                let x = (high.0 - step).max(best);
                let at = f(x);
                if at > 0.0 {
                    best = decreasing_root(f, (x, at), high, 1e-12).0;
                    break;
                }
                high = (x, at);
                step *= 4.0;
            }
        }
        Ok(best)
    }

    /// Both bounds.
    ///
    /// # Errors
    /// As for [`PldAccountant::epsilon_upper`].
    pub fn epsilon_interval(&self, delta: f64) -> Result<EpsilonInterval, AccountingError> {
        let upper = self.epsilon_upper(delta)?;
        Ok(EpsilonInterval {
            lower: self.epsilon_lower(delta)?.min(upper),
            upper,
        })
    }

    /// delta at `epsilon`.
    ///
    /// # Guarantee
    /// The composition is (epsilon, returned)-DP.
    ///
    /// # Errors
    /// A negative or non-finite epsilon, or nothing composed.
    pub fn delta_upper(&self, epsilon: f64) -> Result<f64, AccountingError> {
        check_epsilon(epsilon)?;
        self.check_any()?;
        let loss = Loss::upper(&self.segments);
        if loss.steps.is_empty() {
            return Ok(margin_up(gaussian::ln_delta(epsilon, loss.mu2.sqrt())));
        }
        if let Some(s) = self.one_step() {
            let (q, sigma) = (s.sampling_rate(), s.noise_multiplier());
            let ln = one_step::ln_delta_remove(q, sigma, epsilon)
                .max(one_step::ln_delta_add(q, sigma, epsilon));
            return Ok(margin_up(ln));
        }
        let mut ln_worst = f64::NEG_INFINITY;
        for direction in [Direction::Remove, Direction::Add] {
            if epsilon >= loss.supremum(direction) {
                continue;
            }
            let tolerance = 0.5 * self.options.epsilon_error;
            if let Some((_, ln)) = ln_delta_in(&loss, direction, epsilon, tolerance, ln_worst)? {
                ln_worst = ln_worst.max(ln);
            }
        }
        Ok(margin_up(ln_worst).min(1.0))
    }

    /// A certified lower bound on delta at `epsilon`.
    ///
    /// # Guarantee
    /// The composition is not (epsilon, d)-DP for any d below the returned value.
    ///
    /// # Errors
    /// As for [`PldAccountant::delta_upper`].
    pub fn delta_lower(&self, epsilon: f64) -> Result<f64, AccountingError> {
        check_epsilon(epsilon)?;
        self.check_any()?;
        let down = |ln: f64| ln.exp() * (1.0 - 4e-15 * (2.0 + ln.abs().min(1e6)));
        if let Some(s) = self.one_step() {
            let (q, sigma) = (s.sampling_rate(), s.noise_multiplier());
            return Ok(down(
                one_step::ln_delta_remove(q, sigma, epsilon)
                    .max(one_step::ln_delta_add(q, sigma, epsilon)),
            ));
        }
        let loss = Loss::lower(&self.segments);
        if loss.steps.is_empty() {
            return Ok(down(gaussian::ln_delta(epsilon, loss.mu2.sqrt())));
        }
        let tolerance = 0.02 * self.options.epsilon_error;
        let mut best: f64 = 0.0;
        for direction in [Direction::Remove, Direction::Add] {
            if epsilon >= loss.supremum(direction) {
                continue;
            }
            if epsilon >= loss.supremum(direction) {
                continue;
            }
            let Some((c, ln)) = ln_delta_in(&loss, direction, epsilon, tolerance, best.ln())?
            else {
                continue;
            };
            let Some(contour) = lay(
                &loss,
                direction,
                (c, ln.min(-1e-3), Some(epsilon)),
                tolerance,
            ) else {
                continue;
            };
            best = best.max(contour.delta_lower(epsilon));
        }
        Ok(best)
    }

    fn check_any(&self) -> Result<(), AccountingError> {
        if self.segments.is_empty() {
            Err(AccountingError::NoSegments)
        } else {
            Ok(())
        }
    }

    /// The only step, if there is only one and it is subsampled.
    fn one_step(&self) -> Option<Segment> {
        let mut losing = self.segments.iter().filter(|s| s.sampling_rate() > 0.0);
        match (losing.next(), losing.next()) {
            (Some(s), None) if s.steps() == 1 && s.sampling_rate() < 1.0 => Some(*s),
            _ => None,
        }
    }

    /// Epsilon where a closed form exists: nothing sampled, plain Gaussians, one step.
    fn closed_form(&self, delta: f64) -> Result<Option<f64>, AccountingError> {
        self.check_any()?;
        if let Some(s) = self.one_step() {
            let (q, sigma) = (s.sampling_rate(), s.noise_multiplier());
            let remove = invert(|e| one_step::ln_delta_remove(q, sigma, e) - delta.ln())?;
            let add = invert(|e| one_step::ln_delta_add(q, sigma, e) - delta.ln())?;
            return Ok(Some(remove.max(add)));
        }
        let loss = Loss::upper(&self.segments);
        if !loss.mu2.is_finite() {
            return Err(AccountingError::Overflow);
        }
        if loss.steps.is_empty() {
            return gaussian::epsilon_for_mu(loss.mu2.sqrt(), delta).map(Some);
        }
        Ok(None)
    }
}

/// exp of a closed form's logarithm, raised by its rounding.
fn margin_up(ln_delta: f64) -> f64 {
    (ln_delta.exp() * (1.0 + 4e-15 * (2.0 + ln_delta.abs().min(1e6)))).min(1.0)
}

/// delta of one subsampled step in both directions of add/remove adjacency, in closed form.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct OneStepDelta {
    /// The unit is in the first table.
    pub remove: f64,
    /// The unit is in the second table.
    pub add: f64,
}

/// delta of one subsampled step at `epsilon`, in both directions.
///
/// # Precision
/// About 1e-13 relative, in the tails too.
///
/// # Errors
/// A bad segment's figures, or a negative or non-finite epsilon.
pub fn one_step_delta(
    sampling_rate: f64,
    noise_multiplier: f64,
    epsilon: f64,
) -> Result<OneStepDelta, AccountingError> {
    Segment::new(sampling_rate, noise_multiplier, 1)?;
    check_epsilon(epsilon)?;
    Ok(OneStepDelta {
        remove: one_step::ln_delta_remove(sampling_rate, noise_multiplier, epsilon).exp(),
        add: one_step::ln_delta_add(sampling_rate, noise_multiplier, epsilon).exp(),
    })
}

/// Root of a decreasing function on [0, infinity), from above; 0 if it is not positive at 0.
fn invert(mut f: impl FnMut(f64) -> f64) -> Result<f64, AccountingError> {
    let at_zero = f(0.0);
    if at_zero <= 0.0 {
        return Ok(0.0);
    }
    let mut high = 1.0;
    let mut at_high = f(high);
    while !(at_high <= 0.0) {
        high *= 4.0;
        if !(high < 1e300) {
            return Err(AccountingError::Overflow);
        }
        at_high = f(high);
    }
    Ok(decreasing_root(f, (0.0, at_zero), (high, at_high), 1e-15).1)
}

fn extend(contour: &mut Contour, more: &Loss) {
    if more.mu2 > 0.0 {
        contour.compose_gaussian(more.mu2);
    }
    for (step, n) in &more.steps {
        contour.compose(step, *n);
    }
}

/// Certified epsilon of one direction, by the contour at hand if it fits, else by a new one.
fn upper_in(
    loss: &Loss,
    direction: Direction,
    delta: f64,
    tolerance: f64,
    slot: &mut Option<Contour>,
) -> Result<f64, AccountingError> {
    let ln_delta = delta.ln();
    if let Some(contour) = slot.as_ref() {
        let chernoff = contour.chernoff_epsilon(ln_delta);
        if chernoff.is_finite() {
            let epsilon = solve(contour, ln_delta, chernoff.max(0.0));
            let fits = contour.bounds(epsilon).relative_gap < GOOD_GAP
                && contour.bad_mass() <= 2.0 * contour.bad_wanted() + 1e-7 * delta
                && contour.bad_mass() <= 0.03 * delta
                && contour.moved() <= tolerance;
            if fits && epsilon > 0.0 {
                return Ok(epsilon);
            }
        }
    }
    let (c, chernoff) = loss.chernoff_epsilon(direction, ln_delta, 0.02);
    if !chernoff.is_finite() {
        return Err(AccountingError::Overflow);
    }
    if chernoff <= 0.0 {
        return Ok(0.0);
    }
    let Some(contour) = lay(loss, direction, (c, ln_delta, None), tolerance) else {
        *slot = None;
        return Ok(chernoff);
    };
    let epsilon = solve(
        &contour,
        ln_delta,
        chernoff.min(contour.chernoff_epsilon(ln_delta)).max(0.0),
    );
    *slot = Some(contour);
    Ok(epsilon)
}

/// The smallest epsilon that a contour certifies, at most the given Chernoff bound.
fn solve(contour: &Contour, ln_delta: f64, chernoff: f64) -> f64 {
    let f = |e: f64| contour.ln_delta_upper(e) - ln_delta;
    let at_zero = f(0.0);
    if at_zero <= 0.0 || chernoff <= 0.0 {
        return 0.0;
    }
    // At the Chernoff epsilon the bound is met by construction; it is also what is left if rounding swamped the sum.
    let at_high = f(chernoff).min(-1e-12);
    decreasing_root(f, (0.0, at_zero), (chernoff, at_high), 1e-12).1
}

/// A contour near (c, ln delta, epsilon): over the whole loss where that is cheap, else with the upper tail cut if that is
/// better.
///
/// None where even that is more work than it is worth: the Chernoff bound must do.
fn lay(
    loss: &Loss,
    direction: Direction,
    at: (f64, f64, Option<f64>),
    tolerance: f64,
) -> Option<Contour> {
    let (c, ln_delta, epsilon) = at;
    let cheap = Plan::new(
        loss,
        direction,
        c,
        ln_delta,
        epsilon,
        (tolerance, contour::FREE_WORK),
    );
    if cheap.moved() == 0.0 {
        return Some(Contour::lay(loss, &cheap));
    }
    let whole = Plan::new(
        loss,
        direction,
        c,
        ln_delta,
        epsilon,
        (tolerance, contour::MOST_WORK),
    );
    if direction == Direction::Remove {
        // What is cut off is charged to delta; cutting more lets the saddle go further. Take the best trade.
        let chernoff = |cut: &Loss| match epsilon {
            Some(e) => cut.chernoff_ln_delta(direction, e, 0.02),
            None => cut.chernoff_epsilon(direction, ln_delta, 0.02),
        };
        let mut best: Option<(f64, f64, f64, Loss)> = None;
        for share in CUT_SHARES {
            let cut = loss.cut(share * ln_delta.exp());
            let (c, value) = chernoff(&cut);
            let value = if epsilon.is_some() {
                value + share
            } else {
                value + share / c
            };
            // A larger share must be clearly worth it.
            if best.as_ref().is_none_or(|b| value < b.0 - 0.02 * b.0.abs()) {
                best = Some((value, c, share, cut));
            }
        }
        if let Some((_, c, share, cut)) = best {
            let mut plan = Plan::new(
                &cut,
                direction,
                c,
                ln_delta,
                epsilon,
                (tolerance, contour::MOST_WORK),
            );
            if (plan.moved(), plan.work) < (whole.moved(), whole.work) {
                let steps: f64 = loss.steps.iter().map(|(_, n)| *n as f64).sum();
                plan.set_bad_share(share * ln_delta.exp() / steps);
                return plan.bearable().then(|| Contour::lay(&cut, &plan));
            }
        }
    }
    whole.bearable().then(|| Contour::lay(loss, &whole))
}

/// Saddle and certified ln delta of one direction at one epsilon; none if a Chernoff bound puts it below `floor`.
fn ln_delta_in(
    loss: &Loss,
    direction: Direction,
    epsilon: f64,
    tolerance: f64,
    floor: f64,
) -> Result<Option<(f64, f64)>, AccountingError> {
    let (c, chernoff) = loss.chernoff_ln_delta(direction, epsilon, 0.02);
    if chernoff.is_nan() {
        return Err(AccountingError::Overflow);
    }
    if chernoff <= floor {
        return Ok(None);
    }
    let mut ln = (chernoff + 1e-12 * (chernoff.abs() + 1.0)).min(0.0);
    // Where jumps make the Chernoff bound poor, what may be cut off is only known from a first answer.
    for _ in 0..3 {
        let Some(contour) = lay(
            loss,
            direction,
            (c, ln.min(-1e-3), Some(epsilon)),
            tolerance,
        ) else {
            break;
        };
        let better = contour.ln_delta_upper(epsilon);
        let done = !(better < ln - 3.0);
        ln = ln.min(better);
        if done {
            break;
        }
    }
    Ok(Some((c, ln)))
}

/// The tightest certified epsilon of a sequence fixed in advance (or a deck), add/remove adjacency.
///
/// # Guarantee
/// The composition of the segments is (returned, delta)-DP; both directions, all numerical errors included.
///
/// # Errors
/// No segments, delta outside (0, 1), or a loss too large for the arithmetic.
pub fn epsilon_upper(segments: &[Segment], delta: f64) -> Result<f64, AccountingError> {
    accountant(segments, PldOptions::default())?.epsilon_upper(delta)
}

/// The certified lower bound belonging to [`epsilon_upper`].
///
/// # Guarantee
/// The composition is not (e, delta)-DP for any e below the returned value.
///
/// # Errors
/// As for [`epsilon_upper`].
pub fn epsilon_lower(segments: &[Segment], delta: f64) -> Result<f64, AccountingError> {
    accountant(segments, PldOptions::default())?.epsilon_lower(delta)
}

/// An accountant with all these segments composed.
///
/// # Errors
/// No segments, or as for [`PldAccountant::compose`].
pub fn accountant(
    segments: &[Segment],
    options: PldOptions,
) -> Result<PldAccountant, AccountingError> {
    let mut accountant = PldAccountant::new(options)?;
    accountant.segments = merge(&options.adjacency.all_as_add_remove(segments)?)?;
    Ok(accountant)
}
