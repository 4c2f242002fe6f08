//! The method at hand for one direction while a sequence grows, and the next one, filled a few old segments a step: so that no
//! step has to wait until a line is laid anew over the whole sequence.

use super::contour::{Aim, Contour, Plan};
use super::loss::{Direction, Loss};
use super::method::Method;
use crate::error::AccountingError;
use crate::tilt::Step;

/// Old kinds of step that are put on the next line for each segment composed.
const FILL: usize = 1;
/// A line for a growing sequence serves until this many times as much has been composed, ...
const HORIZON: f64 = 4.0;
/// ... or as many steps, at the start.
const FIRST_STEPS: f64 = 64.0;
/// The next line is begun when this share of the horizon has been reached.
const RENEW: f64 = 0.5;
/// A line laid for a whole sequence is followed by one for a growing one when this much more has been composed.
const FIRST_RENEWAL: f64 = 1.005;
/// Pairs of frequency and node, for each kind of step, that the line of a growing sequence may take.
const GROWING_WORK: f64 = 5e6;
/// Kinds of step that stand for all of them when the next line is planned.
const SAMPLE: usize = 3;
/// A slot serves deltas this near (in ln) to the one it was laid for.
const NEAR_NATS: f64 = 0.7;
/// Shares of the tolerance that a growing sequence's line may use up by smoothing and by aliases.
const SMOOTHING: f64 = 1.4;
const ALIASES: f64 = 0.5;

/// One direction's method, and the line that will follow it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Slot {
    pub method: Option<Method>,
    ahead: Option<Ahead>,
    /// The next line is begun when ln M at the saddle reaches this.
    renew_at: f64,
    ln_delta: f64,
    /// The last answer at that delta.
    epsilon: f64,
    /// Something has been composed since the method was laid.
    grown: bool,
}

/// A line that is not whole yet.
#[derive(Debug, Clone)]
struct Ahead {
    contour: Contour,
    pending: Vec<(Step, u64)>,
    renew_at: f64,
}

impl Ahead {
    /// A line that fits while the sequence grows to [`HORIZON`] times what it is now.
    fn plan(
        loss: &Loss,
        direction: Direction,
        (ln_delta, epsilon): (f64, f64),
        tolerance: f64,
    ) -> Option<Self> {
        let steps: f64 = loss.steps.iter().map(|(_, n)| *n as f64).sum();
        let factor = HORIZON.max((FIRST_STEPS / steps).ceil());
        let horizon = loss.sample(SAMPLE, factor as u64);
        let (saddle, chernoff) = horizon.chernoff_epsilon(direction, ln_delta, 0.05);
        if !(chernoff > 0.0 && chernoff.is_finite()) {
            return None;
        }
        let (slope, _) = loss
            .sample(SAMPLE, 1)
            .chernoff_epsilon(direction, ln_delta, 0.1);
        let aim = Aim {
            ln_delta,
            epsilon: Some(epsilon),
            // A little in hand, since the slope is a guess.
            tolerance: 0.8 * SMOOTHING * tolerance,
            most_work: GROWING_WORK * horizon.steps.len() as f64,
            share: 1.0 / factor,
            slope,
        };
        let plan = Plan::new(&horizon, direction, saddle, &aim);
        let mut contour = Contour::bare(&plan);
        contour.compose(&Loss {
            steps: Vec::new(),
            mu2: loss.mu2,
        });
        Some(Self {
            renew_at: RENEW * horizon.ln_moment(direction, contour.saddle()),
            contour,
            pending: loss.steps.clone(),
        })
    }

    fn fill(&mut self, kinds: usize) {
        let from = self.pending.len().saturating_sub(kinds);
        let some = Loss {
            steps: self.pending.split_off(from),
            mu2: 0.0,
        };
        self.contour.compose(&some);
    }
}

impl Slot {
    /// Composes `one`, which `whole` already holds.
    pub fn compose(
        &mut self,
        one: &Loss,
        whole: impl Fn() -> Loss,
        direction: Direction,
        tolerance: f64,
    ) {
        self.grown = true;
        match &mut self.method {
            Some(Method::Contour(contour)) => contour.compose(one),
            _ => self.method = None,
        }
        if let Some(ahead) = &mut self.ahead {
            ahead.contour.compose(one);
            ahead.fill(FILL);
            return;
        }
        if let Some(Method::Contour(contour)) = &self.method
            && contour.ln_moment() >= self.renew_at
        {
            self.ahead = Ahead::plan(
                &whole(),
                direction,
                (self.ln_delta, self.epsilon),
                tolerance,
            );
            // Not again before much more has been composed, if there is none.
            self.renew_at = contour.ln_moment() * HORIZON;
        }
    }

    /// Certified epsilon by what is at hand, if that is tight enough.
    pub fn at_hand(&mut self, ln_delta: f64, tolerance: f64) -> Option<f64> {
        let near = self.near(ln_delta);
        let next = if near {
            self.ahead.take_if(|a| a.pending.is_empty())
        } else {
            None
        };
        let mut answer = match next {
            Some(ahead) => self.follow(ahead, ln_delta, tolerance),
            None => self.by_method(ln_delta, tolerance),
        };
        if answer.is_none()
            && near
            && let Some(mut ahead) = self.ahead.take()
        {
            ahead.fill(usize::MAX);
            answer = self.follow(ahead, ln_delta, tolerance);
        }
        if near && let Some(epsilon) = answer {
            self.epsilon = epsilon;
        }
        answer
    }

    /// Takes the next line if it is tight enough, else stays with the one at hand.
    fn follow(&mut self, ahead: Ahead, ln_delta: f64, tolerance: f64) -> Option<f64> {
        let before = self
            .method
            .replace(Method::Contour(Box::new(ahead.contour)));
        let epsilon = self.by_method(ln_delta, tolerance);
        if epsilon.is_some() {
            self.renew_at = ahead.renew_at;
            return epsilon;
        }
        self.method = before;
        self.renew_at = 0.0;
        self.by_method(ln_delta, tolerance)
    }

    fn by_method(&self, ln_delta: f64, tolerance: f64) -> Option<f64> {
        let method = self.method.as_ref()?;
        let chernoff = method.chernoff_epsilon(ln_delta);
        if !chernoff.is_finite() {
            return None;
        }
        let epsilon = method.epsilon_upper(ln_delta, chernoff.max(0.0));
        let serves = match method {
            Method::Contour(contour) if self.grown => {
                let (smoothed, rest) = contour.curve().excess(epsilon);
                smoothed <= SMOOTHING * tolerance && rest <= ALIASES * tolerance
            }
            _ => method.serves(ln_delta, epsilon, tolerance),
        };
        (epsilon > 0.0 && serves).then_some(epsilon)
    }

    /// Lays a line for a growing sequence, if that is tight enough.
    pub fn lay_growing(
        &mut self,
        loss: &Loss,
        direction: Direction,
        ln_delta: f64,
        tolerance: f64,
    ) -> Option<f64> {
        if !self.grown {
            return None;
        }
        self.ln_delta = ln_delta;
        self.ahead = Ahead::plan(loss, direction, (ln_delta, self.epsilon), tolerance);
        self.at_hand(ln_delta, tolerance)
    }

    /// Certified epsilon by a new method for the whole sequence.
    pub fn lay(
        &mut self,
        loss: &Loss,
        direction: Direction,
        ln_delta: f64,
        tolerance: f64,
    ) -> Result<f64, AccountingError> {
        self.ahead = None;
        self.grown = false;
        self.ln_delta = ln_delta;
        let epsilon =
            super::method::epsilon_upper(loss, direction, ln_delta, tolerance, &mut self.method)?;
        self.epsilon = epsilon;
        self.renew_at = match &self.method {
            Some(Method::Contour(contour)) => FIRST_RENEWAL * contour.ln_moment(),
            _ => f64::INFINITY,
        };
        Ok(epsilon)
    }

    /// Certified lower bound on epsilon, at least `best`.
    pub fn epsilon_lower(
        &mut self,
        loss: &Loss,
        direction: Direction,
        delta: f64,
        tolerance: f64,
        best: f64,
    ) -> f64 {
        let lower = |slot: &mut Option<Method>| {
            super::method::epsilon_lower(loss, direction, delta, tolerance, best, slot)
        };
        if self.grown && self.method.is_some() {
            // The line of a growing sequence stays; one that is tight from below too is laid beside it.
            let mut beside = None;
            return lower(&mut beside);
        }
        lower(&mut self.method)
    }

    fn near(&self, ln_delta: f64) -> bool {
        (self.ln_delta - ln_delta).abs() < NEAR_NATS
    }
}
