//! The second method: losses on a lattice, tilted, and composed by fast Fourier transforms, with every error charged.
//!
//! For few or sparse steps, whose characteristic function hardly decays, no contour ends; a lattice's is periodic. Everything
//! is relative to the *tilted* mass, so that any delta keeps its digits. Proofs: `docs/proofs/pld-lattice.md`.

mod cells;
mod transform;

use cells::{Cells, Frame};
use transform::Transform;

use super::loss::{Direction, Loss, ln_hockey_stick_factor};
use super::smoothing::Smoothed;
use crate::rdp::minimise_up_to;
use crate::special::decreasing_root;
use crate::tilt::{Step, UNIT};

/// Points of a lattice that is always worth its time.
const FREE_POINTS: f64 = 4096.0;
/// How often the lattice is laid finer to reach the tolerance.
const REFINEMENTS: usize = 4;
/// Points never exceeded.
const MOST_POINTS: f64 = (1u64 << 22) as f64;
/// The spacing may be this much wider than wanted where that many points would not do.
const COARSER: f64 = 2.0;
/// Shares of delta that outcomes left out may take.
const BAD_SHARES: [f64; 5] = [1e-9, 1e-6, 1e-4, 1e-3, 1e-2];
/// Leaving out more must lower the Chernoff bound of epsilon by this share of it, or that of ln delta by this.
const WORTH_SHARE: f64 = 0.01;
const WORTH_NATS: f64 = 1.0;
/// Share of the tolerance that leaving them out may cost.
const BAD_TOLERANCE: f64 = 0.1;
/// Tilted mass outside the window is at most exp(-this).
const OUTSIDE_NATS: f64 = 38.0;
/// w = this times the spacing: a loss moved to the lattice is at most as smooth as one with a Gaussian of this width on top.
const WIDTH_PER_SPACING: f64 = 0.626_657_068_657_750_2;

/// The composed loss of one direction on a lattice, near one delta.
#[derive(Debug, Clone)]
pub(crate) struct Lattice {
    frame: Frame,
    ln_delta: f64,
    /// Lattice index of the first entry.
    start: i64,
    /// Tilted payoffs: delta at the points is `exp(ln_moment - tilt epsilon)` times these.
    payoffs: Vec<f64>,
    /// Error of each payoff, apart from a relative one.
    error: f64,
    relative_error: f64,
    ln_moment: f64,
    /// Error of `ln_moment`.
    ln_moment_error: f64,
    /// Probability left out, with the mass above the window.
    bad: f64,
    /// Tilted mass that may have been wrapped into the window.
    wrapped: f64,
    /// Losses are off by at most this in all.
    shift: f64,
    /// Standard deviation of the smoothing that the lattice is at most worth.
    width: f64,
}

impl Lattice {
    /// A lattice for about this delta, or for delta at `epsilon`; none if it would take too many points.
    pub fn lay(
        loss: &Loss,
        direction: Direction,
        ln_delta: f64,
        epsilon: Option<f64>,
        tolerance: f64,
    ) -> Option<Self> {
        let steps = with_gaussian(loss);
        let total: f64 = steps.iter().map(|(_, n)| *n as f64).sum();
        let start = Start::new(&steps, direction, ln_delta, epsilon, tolerance)?;
        let Start {
            bad,
            tilt,
            bottom,
            top,
        } = start;
        // Moving to the lattice costs about (tilt + 1) / 2 times the added variance, which undoing doubles and more.
        let fine = (0.4 * tolerance / ((tilt + 1.0) * total)).sqrt();
        let free = (top - bottom) / FREE_POINTS;
        let mut spacing = fine.min(free).min(0.1);
        let finest = (top - bottom) / MOST_POINTS * (1.0 + 1e-9);
        if spacing < finest && finest <= COARSER * fine {
            spacing = finest;
        }
        let mut best: Option<Self> = None;
        for _ in 0..REFINEMENTS {
            if (top - bottom) / spacing > MOST_POINTS {
                break;
            }
            let frame = Frame { spacing, tilt };
            let composed = Composed::new(&steps, direction, frame, bad);
            let lattice = Self::compose(&composed, ln_delta, total)?;
            let gap = lattice.gap(ln_delta, epsilon) / tolerance;
            best = Some(lattice);
            if gap <= 1.0 {
                break;
            }
            // What is lost is of second order in the spacing.
            spacing *= (0.7 / gap.sqrt()).clamp(0.1, 0.6);
        }
        best
    }

    /// Width of the certified interval of epsilon at this delta, or what it is about for delta at `epsilon`.
    fn gap(&self, ln_delta: f64, epsilon: Option<f64>) -> f64 {
        let lower = |e: f64| self.delta_lower(e).max(1e-300).ln();
        match epsilon {
            None => {
                let chernoff = self.chernoff_epsilon(ln_delta);
                if !(chernoff > 0.0 && chernoff.is_finite()) {
                    return 0.0;
                }
                let f = |e: f64| self.ln_delta_upper(e) - ln_delta;
                let upper = decreasing_root(f, (0.0, f(0.0)), (chernoff, -1e-12), 1e-6).1;
                let g = |e: f64| lower(e) - ln_delta;
                if upper <= 0.0 || g(0.0) <= 0.0 {
                    return upper.max(0.0);
                }
                let below = decreasing_root(g, (0.0, g(0.0)), (upper, g(upper).min(-1e-12)), 1e-6);
                upper - below.0
            }
            // In delta, over the slope of its logarithm.
            Some(e) => (self.ln_delta_upper(e) - lower(e)) / self.frame.tilt.max(1.0),
        }
    }

    fn compose(composed: &Composed, ln_delta: f64, total: f64) -> Option<Self> {
        let Composed { frame, .. } = *composed;
        let (h, c) = (frame.spacing, frame.tilt);
        let (bottom, top) = composed.window(c);
        let (first, last) = composed.support();
        let start = ((bottom / h).floor().max(first) as i64) - 1;
        let end = ((top / h).ceil().min(last) as i64) + 1;
        let length = transform::good_length((end - start + 1) as usize);
        let mut product = Transform::new(length);
        for (cells, n) in &composed.cells {
            product.compose(&cells.weights, cells.first, *n)?;
        }
        let (masses, mass_error) = product.masses(start);
        // e^-c mh (1 - e^-mh) summed over the masses m points above, from the top; all terms are positive.
        let (decay, steep, less) = ((-c * h).exp(), (-(c + 1.0) * h).exp(), -(-h).exp_m1());
        let mut payoffs = vec![0.0; length];
        let (mut payoff, mut rest) = (0.0, 0.0);
        for k in (0..length - 1).rev() {
            rest = masses[k + 1] + steep * rest;
            payoff = decay * (payoff + less * rest);
            payoffs[k] = payoff;
        }
        // 2-norm of the kernel e^(-c m h) (1 - e^(-m h)), m >= 1, from above.
        let (z, gap) = ((-2.0 * c * h).exp(), -(-2.0 * c * h).exp_m1());
        let kernel = (h * h * z * (1.0 + z) / gap.powi(3)).min(z / gap).sqrt();
        let largest = ln_hockey_stick_factor(c).exp();
        let sum = |f: &dyn Fn(&Cells) -> f64| -> f64 {
            composed.cells.iter().map(|(s, n)| *n as f64 * f(s)).sum()
        };
        let ln_moment = sum(&|s| s.ln_moment);
        let outside = 2.0 * (-OUTSIDE_NATS).exp();
        let above = (ln_moment - c * (start + length as i64 - 2) as f64 * h).exp() * outside;
        Some(Self {
            frame,
            ln_delta,
            start,
            payoffs,
            error: kernel * mass_error + largest * sum(&|s| s.error * (1.0 + s.error)).exp_m1(),
            relative_error: 8.0 * UNIT * length as f64,
            ln_moment,
            ln_moment_error: 4.0 * UNIT * (sum(&|s| s.ln_moment.abs() + 1.0)),
            bad: sum(&|s| s.bad) * (1.0 + 1e-12) + above,
            wrapped: largest * outside,
            shift: sum(&|s| s.loss_error),
            width: WIDTH_PER_SPACING * h * total.sqrt() * (1.0 + 1e-12),
        })
    }

    /// The tilt.
    pub fn tilt(&self) -> f64 {
        self.frame.tilt
    }

    /// The delta that the lattice was laid for.
    pub fn ln_delta(&self) -> f64 {
        self.ln_delta
    }

    /// Certified upper bound on ln delta(epsilon).
    pub fn ln_delta_upper(&self, epsilon: f64) -> f64 {
        let epsilon = epsilon - self.shift;
        let chernoff = self.ln_chernoff(epsilon).exp();
        let kept = self.on_lattice(epsilon, Rounding::Up).unwrap_or(1.0);
        ((kept.min(chernoff) + self.bad) * (1.0 + 4.0 * UNIT))
            .min(1.0)
            .ln()
    }

    /// The epsilon at which the Chernoff bound alone gives this delta; infinite if more was left out than delta allows.
    pub fn chernoff_epsilon(&self, ln_delta: f64) -> f64 {
        let rest = ln_delta.exp() * (1.0 - 1e-12) - self.bad;
        if !(rest > 0.0) {
            return f64::INFINITY;
        }
        let epsilon = (self.ln_chernoff(0.0) - rest.ln()) / self.frame.tilt + self.shift;
        epsilon + 1e-12 * epsilon.abs()
    }

    /// Certified lower bound on delta(epsilon), the move to the lattice undone.
    pub fn delta_lower(&self, epsilon: f64) -> f64 {
        let epsilon = epsilon + self.shift;
        let Some(lower) = self.on_lattice(epsilon, Rounding::Down) else {
            return 0.0;
        };
        Smoothed {
            lower,
            width: self.width,
            upper_at: &|offset| self.ln_delta_upper(epsilon + offset).exp(),
        }
        .undone()
    }

    /// Chernoff bound of the lattice's own delta.
    fn ln_chernoff(&self, epsilon: f64) -> f64 {
        let c = self.frame.tilt;
        self.ln_moment + self.ln_moment_error - c * epsilon
            + ln_hockey_stick_factor(c)
            + 8.0 * UNIT * (self.ln_moment.abs() + (c * epsilon).abs() + 1.0)
    }

    /// Bound of the lattice's own delta, which is linear in e^epsilon between the points; none outside the window.
    fn on_lattice(&self, epsilon: f64, rounding: Rounding) -> Option<f64> {
        let Frame { spacing: h, tilt } = self.frame;
        let k = (epsilon / h).floor();
        let index = k - self.start as f64;
        if !(index >= 0.0 && index + 1.0 < self.payoffs.len() as f64) {
            return None;
        }
        let sign = match rounding {
            Rounding::Up => 1.0,
            Rounding::Down => -1.0,
        };
        let at = |i: usize, k: f64| {
            let slack = self.error + if sign < 0.0 { self.wrapped } else { 0.0 };
            let payoff = self.payoffs[i] * (1.0 + sign * self.relative_error) + sign * slack;
            let exponent = self.ln_moment - tilt * k * h;
            let off = self.ln_moment_error
                + 4.0 * UNIT * (self.ln_moment.abs() + (tilt * k * h).abs() + 1.0);
            payoff.max(0.0) * (exponent + sign * off).exp()
        };
        let (left, right) = (at(index as usize, k), at(index as usize + 1, k + 1.0));
        // How far right between the points; delta falls, so its rounding is toward the left for an upper bound.
        let share = (epsilon - k * h).exp_m1() / h.exp_m1();
        let off = 8.0 * UNIT * (2.0 + epsilon.abs() / h);
        let share = (share - sign * off).clamp(0.0, 1.0);
        Some(left + share * (right - left))
    }
}

/// Which side of the truth a bound must be on.
#[derive(Debug, Clone, Copy)]
enum Rounding {
    Up,
    Down,
}

/// The steps with a plain Gaussian part as one step that is always sampled.
fn with_gaussian(loss: &Loss) -> Vec<(Step, u64)> {
    let mut steps = loss.steps.clone();
    if loss.mu2 > 0.0 {
        steps.push((Step::new(1.0, 1.0 / loss.mu2.sqrt()), 1));
    }
    steps
}

/// What to leave out, how much to tilt, and what the window must hold.
struct Start {
    /// Probability to leave out of each step.
    bad: f64,
    tilt: f64,
    bottom: f64,
    top: f64,
}

impl Start {
    /// The best trade, by Chernoff bounds on coarse lattices: without rare large losses the tilt can go further, and so more of
    /// the tilted mass is where it counts.
    fn new(
        steps: &[(Step, u64)],
        direction: Direction,
        ln_delta: f64,
        epsilon: Option<f64>,
        tolerance: f64,
    ) -> Option<Self> {
        let total: f64 = steps.iter().map(|(_, n)| *n as f64).sum();
        let mut best: Option<(f64, Self)> = None;
        for share in BAD_SHARES {
            let bad = (ln_delta + (share / total).ln()).exp();
            if bad < f64::MIN_POSITIVE {
                continue;
            }
            let coarse = Composed::coarse(steps, direction, bad);
            let excess = |c: f64| coarse.ln_moment(c) + ln_hockey_stick_factor(c);
            let (tilt, value) = match epsilon {
                None => minimise_up_to(|c| (excess(c) - ln_delta) / c, 1.0, 0.05, 1e9),
                Some(e) => minimise_up_to(|c| excess(c) - c * e, 1.0, 0.05, 1e9),
            };
            let allowed = share <= 1e-6 || share <= BAD_TOLERANCE * tolerance * tilt;
            let worth = match epsilon {
                None => WORTH_SHARE * value.abs(),
                Some(_) => WORTH_NATS,
            };
            let better = best.as_ref().is_none_or(|(b, _)| value < b - worth);
            if allowed && better {
                let (bottom, top) = coarse.window(tilt);
                best = Some((
                    value,
                    Self {
                        bad,
                        tilt,
                        bottom,
                        top,
                    },
                ));
            }
        }
        best.map(|(_, start)| start)
    }
}

/// All the steps on one lattice, before they are composed.
struct Composed {
    frame: Frame,
    cells: Vec<(Cells, u64)>,
}

impl Composed {
    fn new(steps: &[(Step, u64)], direction: Direction, frame: Frame, bad: f64) -> Self {
        let cells = steps
            .iter()
            .map(|(s, n)| (Cells::new(s, direction, frame, bad), *n))
            .collect();
        Self { frame, cells }
    }

    /// An untilted lattice of a few hundred points, to find the tilt and the window.
    fn coarse(steps: &[(Step, u64)], direction: Direction, bad: f64) -> Self {
        let spacing = steps
            .iter()
            .map(|(s, _)| Cells::range(s, direction, bad) / 400.0)
            .fold(0.0, f64::max)
            .min(0.2);
        let frame = Frame { spacing, tilt: 0.0 };
        Self::new(steps, direction, frame, bad)
    }

    /// Upper bound on the log moment at c.
    fn ln_moment(&self, c: f64) -> f64 {
        self.cells
            .iter()
            .map(|(s, n)| *n as f64 * (s.ln_moment + s.ln_moment_from_tilt(c, self.frame)))
            .sum()
    }

    /// First and last lattice index that the sum can have.
    fn support(&self) -> (f64, f64) {
        let sum = |f: &dyn Fn(&Cells) -> f64| -> f64 {
            self.cells.iter().map(|(s, n)| *n as f64 * f(s)).sum()
        };
        (
            sum(&|s| s.first as f64),
            sum(&|s| (s.first + s.weights.len() as i64 - 1) as f64),
        )
    }

    /// Losses between which, at this tilt, all but exp(-[`OUTSIDE_NATS`]) of the tilted mass lies on each side (Chernoff).
    fn window(&self, tilt: f64) -> (f64, f64) {
        let (first, last) = self.support();
        let h = self.frame.spacing;
        let here = self
            .cells
            .iter()
            .map(|(s, n)| *n as f64 * (s.ln_moment + s.ln_moment_from_tilt(tilt, self.frame)))
            .sum::<f64>();
        let bound = |c: f64| (self.ln_moment(c) - here + OUTSIDE_NATS) / (c - tilt);
        let bottom = [0.9, 0.6, 0.2, -0.5, -2.0, -6.0, -20.0, -60.0]
            .into_iter()
            .map(|f| bound(f * tilt))
            .fold(first * h, f64::max);
        let top = [1.1, 1.4, 1.8, 2.6, 4.0, 7.0, 20.0, 60.0]
            .into_iter()
            .map(|f| bound(f * tilt))
            .fold(last * h, f64::min);
        (bottom, top.max(bottom + 4.0 * h))
    }
}
