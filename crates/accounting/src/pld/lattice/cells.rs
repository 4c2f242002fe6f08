//! One step's privacy loss, connected dot to dot: moved to the points of a lattice so that it can only lose more privacy.
//!
//! A loss y between the neighbouring points a and a + h goes to a + h with probability `(1 - e^(a-y)) / (1 - e^-h)`, else to
//! a: the mean of e^-loss is kept, so the hockey-stick divergence is unchanged at the points and linear in e^epsilon between
//! them (Doroshenko et al. 2022). Masses are integrals of positive analytic functions by Gauss-Legendre rules whose error is
//! bounded piece by piece (`docs/proofs/pld-lattice.md`, sections 1 and 2).

use crate::pld::loss::Direction;
use crate::special::{TEN_POINTS, compensated_sum, ln_sqrt_two_pi, normal_upper};
use crate::tilt::{Step, UNIT};

/// Half of the points (the rule is symmetric) and weights of the rules for narrow pieces.
const FOUR_POINTS: [(f64, f64); 2] = [
    (0.339_981_043_584_856_3, 0.652_145_154_862_546_1),
    (0.861_136_311_594_052_6, 0.347_854_845_137_453_86),
];
const SIX_POINTS: [(f64, f64); 3] = [
    (0.238_619_186_083_196_9, 0.467_913_934_572_691_04),
    (0.661_209_386_466_264_5, 0.360_761_573_048_138_6),
    (0.932_469_514_203_152, 0.171_324_492_379_170_36),
];
/// A rule is taken when its error is at most this, relative to the piece's mass.
const QUADRATURE: f64 = 1e-15;
/// A loss computed here is off by at most this many roundoffs of its size plus one plus ln 1/q.
const LOSS_ULPS: f64 = 8.0;

/// The lattice and the tilt: weights are e^(tilt loss) times probabilities.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame {
    pub spacing: f64,
    pub tilt: f64,
}

/// One step's tilted loss on the lattice.
#[derive(Debug, Clone)]
pub(crate) struct Cells {
    /// Lattice index of the first weight.
    pub first: i64,
    /// Tilted masses; they sum to one.
    pub weights: Vec<f64>,
    /// ln of the sum of the masses before they were made to sum to one.
    pub ln_moment: f64,
    /// Error of all the weights together: their l1 distance from the exact ones is at most this.
    pub error: f64,
    /// Probability of the outcomes left out.
    pub bad: f64,
    /// Computed losses are off by at most this.
    pub loss_error: f64,
}

impl Cells {
    /// The loss of one step in one direction, without outcomes of total probability about `bad` at most.
    ///
    /// Sampling rate 1 is allowed.
    pub fn new(step: &Step, direction: Direction, frame: Frame, bad: f64) -> Self {
        let (low, high) = kept(step, direction, bad);
        let h = frame.spacing;
        let (i_low, i_high) = (
            (ln_ratio(step, low) / h).floor() as i64,
            (ln_ratio(step, high) / h).floor() as i64,
        );
        let remove = direction == Direction::Remove;
        let first = if remove { i_low } else { -(i_high + 1) };
        let mut builder = Builder {
            step: *step,
            remove,
            frame,
            first,
            lift: (frame.tilt * h).exp(),
            per_step: 1.0 / -(-h).exp_m1(),
            offset: peak(step, remove, frame.tilt, low, high),
            weights: vec![0.0; (i_high - i_low + 2) as usize],
            pieces: Vec::new(),
            rounding: 0.0,
            quadrature: 0.0,
        };
        let mut a = low;
        for i in i_low..=i_high {
            let b = if i == i_high {
                high
            } else {
                inverse(step, (i + 1) as f64 * h).clamp(a, high)
            };
            builder.cell(i, a, b);
            a = b;
        }
        let total = compensated_sum(builder.weights.iter().copied());
        let error = (builder.rounding + builder.quadrature) / total + 8.0 * UNIT;
        let largest = (i_low.abs().max(i_high.abs()) + 1) as f64 * h;
        builder.weights.iter_mut().for_each(|w| *w /= total);
        Self {
            first,
            weights: builder.weights,
            ln_moment: total.ln() + builder.offset,
            error: error * (1.0 + 1e-9),
            bad: left_out(step, direction, low, high),
            loss_error: LOSS_ULPS * UNIT * (largest + 1.0 - step.q.ln()),
        }
    }

    /// Length of the interval of losses that is kept.
    pub fn range(step: &Step, direction: Direction, bad: f64) -> f64 {
        let (low, high) = kept(step, direction, bad);
        ln_ratio(step, high) - ln_ratio(step, low)
    }

    /// Upper bound on ln of the sum of weights times e^((c - tilt) loss): the log moment at c less `ln_moment`.
    pub fn ln_moment_from_tilt(&self, c: f64, frame: Frame) -> f64 {
        const BLOCK: usize = 32;
        let rate = (c - frame.tilt) * frame.spacing;
        let block = if self.weights.len() > 4096 { BLOCK } else { 1 };
        let exponent = |start: usize| {
            let end = (start + block).min(self.weights.len()) - 1;
            let worst = if rate > 0.0 { end } else { start };
            rate * (self.first + worst as i64) as f64
        };
        let terms = || {
            self.weights
                .chunks(block)
                .enumerate()
                .map(|(k, w)| (w.iter().sum::<f64>(), exponent(k * block)))
                .filter(|(w, _)| *w > 0.0)
        };
        let top = terms()
            .map(|(w, e)| w.ln() + e)
            .fold(f64::NEG_INFINITY, f64::max);
        top + terms().map(|(w, e)| w * (e - top).exp()).sum::<f64>().ln()
            + 1e-12 * (1.0 + top.abs())
    }
}

/// Integrates the pieces of the cells.
struct Builder {
    step: Step,
    remove: bool,
    frame: Frame,
    first: i64,
    /// e^(tilt h).
    lift: f64,
    /// 1 / (1 - e^-h).
    per_step: f64,
    offset: f64,
    weights: Vec<f64>,
    /// Mass of each piece of the cell at hand, and the part of it that goes up.
    pieces: Vec<(f64, f64)>,
    rounding: f64,
    quadrature: f64,
}

impl Builder {
    /// The cell of ln r in [i h, (i + 1) h], x in [a, b].
    fn cell(&mut self, i: i64, a: f64, b: f64) {
        if !(b > a) {
            return;
        }
        let sigma = self.step.sigma;
        let s2 = sigma * sigma;
        self.pieces.clear();
        let mut left = a;
        while left < b {
            // How far from the piece the integrand stays tame, in the complex plane.
            let far = (0.5 * sigma).min(s2);
            let probe = (left + 0.1 * sigma).min(b) + far;
            let posterior = (self.step.q.ln() + (2.0 * probe - 1.0) / (2.0 * s2)
                - ln_ratio(&self.step, probe))
            .exp()
            .min(1.0)
                / 0.877;
            let rate = (posterior + left.abs().max(probe.abs()) + far) / s2;
            let reach = far.min(1.0 / rate);
            let half = (0.5 * (b - left)).min(0.2 * reach).min(0.05 * sigma);
            let right = if left + 2.0 * half >= b * (1.0 - f64::EPSILON) {
                b
            } else {
                left + 2.0 * half
            };
            // Error of the rule of m points on a function bounded by M in the ellipse of parameter rho:
            // (64/15) M rho^(2 - 2m) / (1 - rho^-2) times half the length (Trefethen 2013, Theorem 19.3).
            let rho = 2.0 * reach / half;
            let swing = posterior / s2 * (reach * 1.5 + 2.0 * half);
            let share = 1.0 + (self.frame.spacing + swing).exp_m1() * self.per_step;
            let bound = 2.2 * share * (1.5 + 2.0 * rate * half).exp() / (1.0 - rho.powi(-2));
            let error = |m: i32| bound * rho.powi(2 - 2 * m);
            if error(4) <= QUADRATURE {
                self.piece(i, left, right, &FOUR_POINTS, error(4));
            } else if error(6) <= QUADRATURE {
                self.piece(i, left, right, &SIX_POINTS, error(6));
            } else {
                self.piece(i, left, right, &TEN_POINTS, error(10));
            }
            left = right;
        }
        // Lattice index below the loss.
        let k = (self.below(i) - self.first) as usize;
        let mass = compensated_sum(self.pieces.iter().map(|p| p.0));
        let up = compensated_sum(self.pieces.iter().map(|p| p.1));
        self.weights[k] += mass - up;
        self.weights[k + 1] += up * self.lift;
    }

    /// Lattice index of the point below the loss, where ln r is in [i h, (i + 1) h].
    fn below(&self, i: i64) -> i64 {
        if self.remove { i } else { -(i + 1) }
    }

    fn piece(&mut self, i: i64, a: f64, b: f64, rule: &[(f64, f64)], error: f64) {
        let Step { q: _, sigma, .. } = self.step;
        let h = self.frame.spacing;
        let tilted = self.frame.tilt * h * self.below(i) as f64;
        let (middle, half) = (0.5 * (a + b), 0.5 * (b - a));
        let scale = (half / sigma).ln() - ln_sqrt_two_pi() - self.offset;
        let (mut mass, mut up) = (0.0, 0.0);
        let mut exponents = 0.0;
        let mut node = |x: f64, w: f64| {
            let y = ln_ratio(&self.step, x);
            let above = (y - i as f64 * h).clamp(0.0, h);
            let above = if self.remove { above } else { h - above };
            let square = x * x / (2.0 * sigma * sigma);
            let ln = if self.remove { y - square } else { -square } + tilted + scale;
            let weight = w * ln.exp();
            let size = square + y.abs() + tilted.abs() + scale.abs() + self.offset.abs();
            mass += weight;
            up += weight * (-(-above).exp_m1() * self.per_step).min(1.0);
            exponents += weight * size;
        };
        for &(x, w) in rule {
            node(middle - half * x, w);
            node(middle + half * x, w);
        }
        self.pieces.push((mass, up));
        let both = 1.0 + self.lift;
        self.rounding += UNIT * both * (3.0 * exponents + 16.0 * mass);
        self.quadrature += error * both * mass;
    }
}

/// ln r; the steps here may be unsampled.
fn ln_ratio(step: &Step, x: f64) -> f64 {
    if step.q == 1.0 {
        (2.0 * x - 1.0) / (2.0 * step.sigma * step.sigma)
    } else {
        step.ln_ratio(x)
    }
}

fn inverse(step: &Step, y: f64) -> f64 {
    if step.q == 1.0 {
        step.sigma * step.sigma * y + 0.5
    } else {
        step.inverse(y)
    }
}

/// Interval outside which the direction's law has probability at most about `bad`.
fn kept(step: &Step, direction: Direction, bad: f64) -> (f64, f64) {
    // Phi^-1 by its tail bound.
    let place = |mass: f64| step.sigma * (-2.0 * mass.min(0.1).ln()).sqrt();
    match direction {
        Direction::Remove => (-place(bad), place(bad).max(1.0 + place(bad / step.q))),
        Direction::Add => (-place(bad), place(bad)),
    }
}

/// Probability outside the interval.
fn left_out(step: &Step, direction: Direction, low: f64, high: f64) -> f64 {
    let Step { q, sigma, .. } = *step;
    let plain = normal_upper(-low / sigma) + normal_upper(high / sigma);
    let shifted = normal_upper((1.0 - low) / sigma) + normal_upper((high - 1.0) / sigma);
    let mass = match direction {
        Direction::Remove => (1.0 - q) * plain + q * shifted,
        Direction::Add => plain,
    };
    mass * (1.0 + 1e-12)
}

/// About the largest exponent of the tilted density.
fn peak(step: &Step, remove: bool, tilt: f64, low: f64, high: f64) -> f64 {
    (0..=400)
        .map(|k| low + (high - low) * f64::from(k) / 400.0)
        .map(|x| {
            let y = ln_ratio(step, x);
            let power = if remove { 1.0 + tilt } else { -tilt };
            power * y - x * x / (2.0 * step.sigma * step.sigma)
        })
        .fold(f64::NEG_INFINITY, f64::max)
}
