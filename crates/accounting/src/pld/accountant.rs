//! The accountant: segments in, certified epsilon and delta out.

use std::sync::{Mutex, PoisonError};

use super::guards::{Guards, below};
use super::loss::{Direction, Loss};
use super::method::{self, Method, one_step_epsilon};
use super::slot::Slot;
use super::{EpsilonInterval, PldOptions, one_step};
use crate::error::AccountingError;
use crate::gaussian;
use crate::rdp::SMALLEST_SUBSAMPLED_SIGMA;
use crate::segment::{Segment, check_delta, check_epsilon, merge};

/// Relative margin on closed forms.
const CLOSED_FORM_MARGIN: f64 = 1e-12;
/// Share of the wanted interval that a method may use up on one side.
const TOLERANCE: f64 = 0.25;

#[derive(Debug, Clone, Default)]
struct Cache {
    remove: Slot,
    add: Slot,
    /// Saddle and log moment of a Chernoff bound that keeps the add direction below the remove direction.
    guard: Option<(f64, f64)>,
    /// More of them, once the sequence grows.
    guards: Option<Guards>,
    /// Whether epsilon was asked for before: then what is composed next makes the sequence a growing one.
    asked: bool,
}

/// An accountant of privacy loss distributions, incremental in segments.
///
/// [`PldAccountant::compose`] multiplies one transform; asking for epsilon takes one inverse transform, at one point. As the
/// loss grows the line of integration no longer fits: the next one is made ready beforehand, a few old segments a step.
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

    /// An accountant with all these segments composed.
    ///
    /// # Errors
    /// As for [`PldAccountant::new`]; no segments, an overflow of steps, or an adjacency undefined for a segment.
    pub fn from_segments(
        segments: &[Segment],
        options: PldOptions,
    ) -> Result<Self, AccountingError> {
        let mut accountant = Self::new(options)?;
        accountant.segments = merge(&options.adjacency.all_as_add_remove(segments)?)?;
        Ok(accountant)
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
        if !cache.asked {
            // Nothing was laid yet; and nothing may be left that does not hold this segment.
            *cache = Cache::default();
            return Ok(());
        }
        let one = Loss::upper(&[segment]);
        let tolerance = TOLERANCE * self.options.epsilon_error;
        let whole = || Loss::upper(&self.segments);
        cache
            .remove
            .compose(&one, whole, Direction::Remove, tolerance);
        cache.add.compose(&one, whole, Direction::Add, tolerance);
        if let Some((c, k)) = &mut cache.guard {
            *k += one.ln_moment(Direction::Add, *c);
            *k += f64::EPSILON * k.abs();
        }
        match &mut cache.guards {
            Some(guards) => guards.compose(&one),
            None => cache.guards = Some(Guards::new(whole())),
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
            total += s.steps() as f64
                * one_step_epsilon(s.sampling_rate(), s.noise_multiplier(), ln_share)?;
        }
        Ok(Some(total * (1.0 + CLOSED_FORM_MARGIN)))
    }

    fn composed_upper(&self, delta: f64) -> Result<f64, AccountingError> {
        check_delta(delta)?;
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.asked = true;
        if let Some(exact) = self.closed_form(delta)? {
            return Ok(exact * (1.0 + CLOSED_FORM_MARGIN));
        }
        let ln_delta = delta.ln();
        let tolerance = TOLERANCE * self.options.epsilon_error;
        let whole = || Loss::upper(&self.segments);
        let at_hand = cache.remove.at_hand(ln_delta, tolerance);
        let remove = match at_hand {
            Some(epsilon) => epsilon,
            None => {
                let loss = whole();
                if !loss.mu2.is_finite() {
                    return Err(AccountingError::Overflow);
                }
                let direction = Direction::Remove;
                match cache
                    .remove
                    .lay_growing(&loss, direction, ln_delta, tolerance)
                {
                    Some(epsilon) => epsilon,
                    None => cache.remove.lay(&loss, direction, ln_delta, tolerance)?,
                }
            }
        };
        // The add direction is usually far below; a Chernoff bound shows it.
        if remove > 0.0 {
            let guards = cache.guards.as_ref();
            if guards.is_some_and(|g| g.below(remove, ln_delta))
                || cache
                    .guard
                    .is_some_and(|(c, k)| below(c, k, remove, ln_delta))
            {
                return Ok(remove);
            }
        }
        let loss = whole();
        if remove >= loss.supremum(Direction::Add) {
            return Ok(remove);
        }
        if remove > 0.0 && cache.add.method.is_none() {
            let saddle = cache.remove.method.as_ref().map_or(1.0, Method::saddle);
            for factor in [1.3, 2.0, 0.8] {
                let c = saddle * factor;
                let k = loss.ln_moment(Direction::Add, c);
                if below(c, k, remove, ln_delta) {
                    cache.guard = Some((c, k));
                    return Ok(remove);
                }
            }
        }
        let at_hand = cache.add.at_hand(ln_delta, tolerance);
        let add = match at_hand {
            Some(epsilon) => epsilon,
            None => {
                let direction = Direction::Add;
                match cache.add.lay_growing(&loss, direction, ln_delta, tolerance) {
                    Some(epsilon) => epsilon,
                    None => cache.add.lay(&loss, direction, ln_delta, tolerance)?,
                }
            }
        };
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
        let tolerance = TOLERANCE * self.options.epsilon_error;
        let ln_delta = delta.ln();
        let mut best: f64 = 0.0;
        // A composition loses at least what any one of its steps loses: the tighter bound for very few sparse steps.
        for (s, _) in &loss.steps {
            let one = method::invert(|e| one_step::ln_delta_remove(s.q, s.sigma, e) - ln_delta)?;
            best = best.max(one * (1.0 - CLOSED_FORM_MARGIN));
        }
        if loss.steps.is_empty() {
            let mu = loss.mu2.sqrt();
            let gaussian = gaussian::epsilon_for_mu(mu, delta)?;
            return Ok(best.max(gaussian * (1.0 - CLOSED_FORM_MARGIN)));
        }
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.asked = true;
        // A method at hand serves only if it was laid for the same loss.
        let mut own = Cache::default();
        let cache = if loss == Loss::upper(&self.segments) {
            &mut *cache
        } else {
            &mut own
        };
        for (direction, slot) in [
            (Direction::Remove, &mut cache.remove),
            (Direction::Add, &mut cache.add),
        ] {
            best = slot.epsilon_lower(&loss, direction, delta, tolerance, best);
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
            let tolerance = TOLERANCE * self.options.epsilon_error;
            let bounds = method::ln_delta(&loss, direction, epsilon, tolerance, ln_worst)?;
            if let Some((ln, _)) = bounds {
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
        let tolerance = TOLERANCE * self.options.epsilon_error;
        let mut best: f64 = 0.0;
        for direction in [Direction::Remove, Direction::Add] {
            if epsilon >= loss.supremum(direction) {
                continue;
            }
            let bounds = method::ln_delta(&loss, direction, epsilon, tolerance, best.ln())?;
            if let Some((_, lower)) = bounds {
                best = best.max(lower);
            }
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
            return one_step_epsilon(q, sigma, delta.ln()).map(Some);
        }
        let sampled = |s: &Segment| {
            s.sampling_rate() > 0.0
                && s.sampling_rate() < 1.0
                && s.noise_multiplier() >= SMALLEST_SUBSAMPLED_SIGMA
        };
        if self.segments.iter().any(sampled) {
            return Ok(None);
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
