//! One direction's privacy curve by whichever method bounds it best, and the epsilons that are read off it.

use super::contour::{self, Aim, Contour, Plan};
use super::lattice::Lattice;
use super::loss::{Direction, Loss};
use super::one_step;
use crate::error::AccountingError;
use crate::special::decreasing_root;

/// A contour at hand is used while its certified relative gap in delta is below this, and costs at most this share of the
/// tolerance.
const GOOD_GAP: f64 = 1e-4;
const GAP_TOLERANCE: f64 = 0.2;
/// So few steps (in all), of so few kinds, are put on a lattice before a smoothed contour is tried.
const FEW_STEPS: f64 = 2e5;
const FEW_KINDS: usize = 32;
/// More kinds than this are not worth a lattice: each has masses of its own.
const MOST_KINDS: usize = 64;
/// A lattice serves again for deltas this near (in ln) the one it was laid for.
const NEAR_NATS: f64 = 0.7;

/// A certified privacy curve of one direction.
#[derive(Debug, Clone)]
pub(crate) enum Method {
    Contour(Box<Contour>),
    Lattice(Lattice),
}

impl Method {
    /// The method for about this delta, or for delta at `epsilon`; none if no method is worth its work: the Chernoff bound
    /// must do.
    ///
    /// `saddle` is that of the best Chernoff bound. A contour where that is quick, else a lattice, else a contour that is
    /// smoothed more than `tolerance` asks for.
    fn lay(
        loss: &Loss,
        direction: Direction,
        saddle: f64,
        ln_delta: f64,
        epsilon: Option<f64>,
        tolerance: f64,
    ) -> Option<Self> {
        let plan = |most_work| {
            let aim = Aim {
                ln_delta,
                epsilon,
                tolerance,
                most_work,
                share: 1.0,
                slope: 0.0,
            };
            Plan::new(loss, direction, saddle, &aim)
        };
        let quick = plan(contour::FREE_WORK);
        if quick.moved() == 0.0 {
            return Some(Self::Contour(Box::new(Contour::lay(loss, &quick))));
        }
        let total: f64 = loss.steps.iter().map(|(_, n)| *n as f64).sum();
        let lattice = || Lattice::lay(loss, direction, ln_delta, epsilon, tolerance);
        let few = total <= FEW_STEPS && loss.steps.len() <= FEW_KINDS;
        if few && let Some(lattice) = lattice() {
            return Some(Self::Lattice(lattice));
        }
        let hard = plan(contour::MOST_WORK);
        if !few
            && hard.moved() > tolerance
            && loss.steps.len() <= MOST_KINDS
            && let Some(lattice) = lattice()
        {
            return Some(Self::Lattice(lattice));
        }
        hard.bearable()
            .then(|| Self::Contour(Box::new(Contour::lay(loss, &hard))))
    }

    /// The saddle, or tilt.
    pub fn saddle(&self) -> f64 {
        match self {
            Self::Contour(contour) => contour.saddle(),
            Self::Lattice(lattice) => lattice.tilt(),
        }
    }

    /// Certified upper bound on ln delta(epsilon).
    pub fn ln_delta_upper(&self, epsilon: f64) -> f64 {
        match self {
            Self::Contour(contour) => contour.curve().ln_delta_upper(epsilon),
            Self::Lattice(lattice) => lattice.ln_delta_upper(epsilon),
        }
    }

    /// Certified lower bound on delta(epsilon).
    pub fn delta_lower(&self, epsilon: f64) -> f64 {
        match self {
            Self::Contour(contour) => contour.curve().delta_lower(epsilon),
            Self::Lattice(lattice) => lattice.delta_lower(epsilon),
        }
    }

    /// The Chernoff (Renyi) bound at the method's own saddle.
    pub fn chernoff_epsilon(&self, ln_delta: f64) -> f64 {
        match self {
            Self::Contour(contour) => contour.chernoff_epsilon(ln_delta),
            Self::Lattice(lattice) => lattice.chernoff_epsilon(ln_delta),
        }
    }

    /// The smallest epsilon that this certifies, at most the given Chernoff bound.
    pub fn epsilon_upper(&self, ln_delta: f64, chernoff: f64) -> f64 {
        match self {
            Self::Contour(contour) => {
                let curve = contour.curve();
                least(|e| curve.ln_delta_upper(e) - ln_delta, chernoff)
            }
            Self::Lattice(lattice) => least(|e| lattice.ln_delta_upper(e) - ln_delta, chernoff),
        }
    }

    /// The largest epsilon, above `best`, at which this certifies that delta is more.
    fn epsilon_lower(&self, ln_delta: f64, chernoff: f64, best: f64) -> f64 {
        let curve = match self {
            Self::Contour(contour) => Some(contour.curve()),
            Self::Lattice(_) => None,
        };
        let f = |e: f64| {
            let d = match &curve {
                Some(curve) => curve.delta_lower(e),
                None => self.delta_lower(e),
            };
            if d > 0.0 { d.ln() - ln_delta } else { -1e3 }
        };
        // A method is good near its own epsilon only: start there and step down until the bound holds.
        let top = self.epsilon_upper(ln_delta, chernoff);
        let (mut high, mut step) = ((top, f(top)), 1e-12 * top.max(1e-3));
        while high.1 <= 0.0 && high.0 > best {
            let x = (high.0 - step).max(best);
            let at = f(x);
            if at > 0.0 {
                return decreasing_root(f, (x, at), high, 1e-12).0;
            }
            high = (x, at);
            step *= 4.0;
        }
        best
    }

    /// Whether this still serves at this delta: a contour after more was composed, a lattice near its own delta.
    pub fn serves(&self, ln_delta: f64, epsilon: f64, tolerance: f64) -> bool {
        match self {
            Self::Contour(contour) => {
                let most = GOOD_GAP.min(GAP_TOLERANCE * tolerance * contour.saddle());
                contour.bounds(epsilon).relative_gap <= most && contour.moved() <= tolerance
            }
            Self::Lattice(lattice) => (lattice.ln_delta() - ln_delta).abs() < NEAR_NATS,
        }
    }
}

/// The least point at which this decreasing function is known not to be positive; at `chernoff` it is not by construction.
fn least(f: impl Fn(f64) -> f64, chernoff: f64) -> f64 {
    let at_zero = f(0.0);
    if at_zero <= 0.0 || chernoff <= 0.0 {
        return 0.0;
    }
    // At the Chernoff epsilon the bound is met by construction; it is also what is left if rounding swamped the sum.
    let at_high = f(chernoff).min(-1e-12);
    decreasing_root(f, (0.0, at_zero), (chernoff, at_high), 1e-12).1
}

/// Certified epsilon of one direction, by a new method.
pub(crate) fn epsilon_upper(
    loss: &Loss,
    direction: Direction,
    ln_delta: f64,
    tolerance: f64,
    slot: &mut Option<Method>,
) -> Result<f64, AccountingError> {
    let (saddle, chernoff) = loss.chernoff_epsilon(direction, ln_delta, 0.02);
    if !chernoff.is_finite() {
        return Err(AccountingError::Overflow);
    }
    if chernoff <= 0.0 {
        return Ok(0.0);
    }
    *slot = Method::lay(loss, direction, saddle, ln_delta, None, tolerance);
    Ok(match slot.as_ref() {
        None => chernoff,
        Some(method) => {
            let own = method.chernoff_epsilon(ln_delta).max(0.0);
            chernoff.min(method.epsilon_upper(ln_delta, own))
        }
    })
}

/// Certified lower bound on epsilon of one direction, at least `best`.
pub(crate) fn epsilon_lower(
    loss: &Loss,
    direction: Direction,
    delta: f64,
    tolerance: f64,
    best: f64,
    slot: &mut Option<Method>,
) -> f64 {
    let ln_delta = delta.ln();
    if let Some(method) = slot.as_ref() {
        let chernoff = method.chernoff_epsilon(ln_delta);
        if chernoff.is_finite() && chernoff > 0.0 {
            let epsilon = method.epsilon_upper(ln_delta, chernoff);
            if method.serves(ln_delta, epsilon, tolerance) {
                return method.epsilon_lower(ln_delta, chernoff, best);
            }
        }
    }
    let (saddle, chernoff) = loss.chernoff_epsilon(direction, ln_delta, 0.02);
    // A direction whose upper bound is below what is certified already cannot help. Nor is one worth its while that can add
    // less than the tolerance, or whose saddle is so far out that its quadrature takes seconds.
    let most = chernoff.min(loss.supremum(direction));
    let little = direction == Direction::Add && (most <= best + tolerance || saddle > 1e5);
    if !chernoff.is_finite() || most <= best || little {
        return best;
    }
    *slot = Method::lay(loss, direction, saddle, ln_delta, None, tolerance);
    match slot.as_ref() {
        None => best,
        Some(method) => {
            let own = method.chernoff_epsilon(ln_delta);
            if own.is_finite() {
                method.epsilon_lower(ln_delta, own.max(0.0), best)
            } else {
                best
            }
        }
    }
}

/// Certified bounds (upper as a logarithm, lower) of one direction's delta at one epsilon; none if a Chernoff bound puts it
/// below `floor`.
pub(crate) fn ln_delta(
    loss: &Loss,
    direction: Direction,
    epsilon: f64,
    tolerance: f64,
    floor: f64,
) -> Result<Option<(f64, f64)>, AccountingError> {
    let (saddle, chernoff) = loss.chernoff_ln_delta(direction, epsilon, 0.02);
    if chernoff.is_nan() {
        return Err(AccountingError::Overflow);
    }
    if chernoff <= floor {
        return Ok(None);
    }
    let mut ln = (chernoff + 1e-12 * (chernoff.abs() + 1.0)).min(0.0);
    let mut lower: f64 = 0.0;
    // Where jumps make the Chernoff bound poor, what may be left out is only known from a first answer.
    for _ in 0..3 {
        let near = ln.min(-1e-3);
        let Some(method) = Method::lay(loss, direction, saddle, near, Some(epsilon), tolerance)
        else {
            break;
        };
        let better = method.ln_delta_upper(epsilon);
        lower = lower.max(method.delta_lower(epsilon));
        let done = matches!(method, Method::Contour(_)) || !(better < ln - 3.0);
        ln = ln.min(better);
        if done {
            break;
        }
    }
    Ok(Some((ln, lower)))
}

/// Root of a decreasing function on [0, infinity), from above; 0 if it is not positive at 0.
pub(crate) fn invert(mut f: impl FnMut(f64) -> f64) -> Result<f64, AccountingError> {
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

/// Epsilon of one subsampled step at this delta, in the larger direction.
pub(crate) fn one_step_epsilon(q: f64, sigma: f64, ln_delta: f64) -> Result<f64, AccountingError> {
    let remove = invert(|e| one_step::ln_delta_remove(q, sigma, e) - ln_delta)?;
    let add = invert(|e| one_step::ln_delta_add(q, sigma, e) - ln_delta)?;
    Ok(remove.max(add))
}
