//! delta(epsilon) by the trapezoidal rule on a vertical line through the saddle point, with a certified error.
//!
//! With M(s) = E[exp(s loss)] and s = c + it,
//! `delta(epsilon) = 1/(2 pi) * integral of M(s) exp(-s epsilon) / (s (s + 1)) dt` for every c > 0. The trapezoidal rule of
//! spacing 2 pi / L gives `sum over k of delta(epsilon + k L) exp(c k L)`: never less than delta(epsilon). What remains is
//! cut off at the end of the line, the quadrature of M and rounding, all bounded here. Proofs:
//! `docs/proofs/pld-certification.md`.

use std::f64::consts::PI;

use super::loss::{ln_hockey_stick_factor, Direction, Loss};
use crate::rdp::{convert, step_ln_moment};
use crate::special::{ln_normal_upper, normal_upper};
use crate::tilt::{Step, UNIT};

/// The cut-off must be below exp(-this) relative to M(c).
const CUT_NATS: f64 = 30.0;
/// Aliases aimed at: exp(-this) relative to delta.
const ALIAS_NATS: f64 = 22.0;
/// Multiples of c at which the far tail is bounded.
const FAR: [f64; 6] = [1.06, 1.15, 1.3, 1.6, 2.2, 3.5];
/// Pairs (frequency, node) that are always worth their time.
const FREE_WORK: f64 = 4e5;
/// Pairs never exceeded: the bounds are then looser, and still valid.
const MOST_WORK: f64 = 3e7;

/// delta at one epsilon, of the loss composed with a Gaussian of squared mu `smoothing`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Certified: delta <= upper.
    pub ln_upper: f64,
    /// Certified lower bound of the smoothed delta (may be negative).
    pub lower: f64,
    /// (upper - lower) / upper: how good the contour is here.
    pub relative_gap: f64,
}

/// The composed characteristic function on one vertical line.
#[derive(Debug, Clone)]
pub(crate) struct Contour {
    direction: Direction,
    c: f64,
    spacing: f64,
    /// Squared mu of the Gaussian mechanism composed on top, to make the line end.
    smoothing: f64,
    ln_moment: f64,
    far: Vec<(f64, f64)>,
    /// ln |M(c + i t_j) / M(c)|, the argument, and the bound on the relative error's log1p.
    ln_modulus: Vec<f64>,
    argument: Vec<f64>,
    ln_error: Vec<f64>,
    /// |M(c + it) / M(c)| <= exp(-decay - gaussian t^2 / 2) for all t beyond the end.
    decay: f64,
    gaussian: f64,
}

impl Contour {
    /// A contour tuned to the point where delta is about `exp(ln_delta)`, near `epsilon`.
    ///
    /// `tolerance` bounds how much the smoothing may move epsilon, if the work allows.
    pub fn build(loss: &Loss, direction: Direction, c: f64, ln_delta: f64, epsilon: Option<f64>, tolerance: f64) -> Self {
        let mut c = c;
        let mut moments;
        let mut rough;
        let mut variance;
        let mut rounds = 0;
        loop {
            let power = direction.power(c);
            moments = loss.steps.iter().map(|(s, _)| step_ln_moment(s.q, s.sigma, power)).collect::<Vec<_>>();
            rough = loss.steps.iter().zip(&moments).map(|((s, _), m)| s.tilted(power, *m, 0.0)).collect::<Vec<_>>();
            variance = loss.mu2
                + loss.steps.iter().zip(&rough).map(|((_, n), t)| *n as f64 * t.variance).sum::<f64>();
            rounds += 1;
            // Below half a standard deviation's worth of tilt the line needs a needlessly long period.
            if c * variance.sqrt() >= 0.4 || rounds > 3 || variance <= 0.0 {
                break;
            }
            c = 0.5 / variance.sqrt();
        }
        let power = direction.power(c);
        let ln_moment = loss.steps.iter().zip(&moments).map(|((_, n), m)| *n as f64 * m).sum::<f64>()
            + 0.5 * loss.mu2 * c * (c + 1.0);
        let far: Vec<(f64, f64)> = FAR.iter().map(|f| (c * f, loss.ln_moment(direction, c * f))).collect();
        // Where delta is aimed at, by the saddle-point approximation, when epsilon is not given.
        let epsilon = epsilon.unwrap_or_else(|| {
            let width = (c * (c + 1.0) * (2.0 * PI * variance).sqrt()).ln().max(0.0);
            ((ln_moment - ln_delta - width) / c).max(0.0)
        });
        let near = (ALIAS_NATS - ln_delta) / c;
        let beyond = far
            .iter()
            .map(|&(f, k)| (k + ln_hockey_stick_factor(f) - f * epsilon - ln_delta + ALIAS_NATS) / (f - c))
            .fold(f64::INFINITY, f64::min);
        let period = near.max(if beyond.is_finite() { beyond } else { 0.0 }).min(1e3 * near);
        let spacing = 2.0 * PI / period;

        // How far must the line go?
        let mut end = 7.5 / variance.sqrt().max(1e-300);
        let (mut decay, mut smoothing);
        loop {
            decay = loss
                .steps
                .iter()
                .zip(moments.iter().zip(&rough))
                .map(|((s, n), (m, t))| -(*n as f64) * (-s.decay(power, *m, end, t.centre)).ln_1p())
                .sum::<f64>();
            let missing = CUT_NATS - decay - 0.5 * loss.mu2 * end * end;
            if missing <= 0.0 {
                smoothing = 0.0;
                break;
            }
            smoothing = 2.0 * missing / (end * end);
            let work = (end / spacing)
                * loss
                    .steps
                    .iter()
                    .map(|(s, _)| (power.abs() + 20.0 * s.sigma) / s.spacing(power, end))
                    .sum::<f64>();
            let moved = 0.5 * (c + 1.0) * smoothing;
            if (work > FREE_WORK && moved <= tolerance) || work > MOST_WORK {
                break;
            }
            end *= 1.35;
        }
        let count = (end / spacing).ceil() as usize + 2;
        let mut contour = Self {
            direction,
            c,
            spacing,
            smoothing,
            ln_moment: 0.5 * (loss.mu2 + smoothing) * c * (c + 1.0),
            far: far.iter().map(|&(f, _)| (f, 0.5 * (loss.mu2 + smoothing) * f * (f + 1.0))).collect(),
            ln_modulus: Vec::with_capacity(count),
            argument: Vec::with_capacity(count),
            ln_error: vec![0.0; count],
            decay: 0.0,
            gaussian: 0.0,
        };
        contour.ln_modulus.resize(count, 0.0);
        contour.argument.resize(count, 0.0);
        contour.add_gaussian(loss.mu2 + smoothing);
        for (((step, n), m), t) in loss.steps.iter().zip(&moments).zip(&rough) {
            contour.add_steps(step, *n, *m, t.centre);
        }
        contour
    }

    /// The saddle.
    pub fn saddle(&self) -> f64 {
        self.c
    }

    /// How much the smoothing moves epsilon, about.
    pub fn moved(&self) -> f64 {
        0.5 * (self.c + 1.0) * self.smoothing
    }

    /// Composes one more subsampled mechanism: one product of transforms.
    pub fn compose(&mut self, step: &Step, n: u64) {
        let power = self.direction.power(self.c);
        let ln_moment = step_ln_moment(step.q, step.sigma, power);
        let centre = step.tilted(power, ln_moment, 0.0).centre;
        self.add_steps(step, n, ln_moment, centre);
    }

    /// Composes a plain Gaussian of squared mu `mu2`.
    pub fn compose_gaussian(&mut self, mu2: f64) {
        self.ln_moment += 0.5 * mu2 * self.c * (self.c + 1.0);
        for (f, k) in &mut self.far {
            *k += 0.5 * mu2 * *f * (*f + 1.0);
        }
        self.add_gaussian(mu2);
    }

    /// M(s) of a Gaussian is exp(mu2 s (s + 1) / 2), in both directions.
    fn add_gaussian(&mut self, mu2: f64) {
        self.gaussian += mu2;
        for j in 0..self.ln_modulus.len() {
            let t = self.spacing * j as f64;
            self.ln_modulus[j] -= 0.5 * mu2 * t * t;
            self.argument[j] += mu2 * t * (self.c + 0.5);
            self.ln_error[j] += 4.0 * UNIT * mu2 * t * (t + self.c + 0.5);
        }
    }

    fn add_steps(&mut self, step: &Step, n: u64, ln_moment: f64, centre: f64) {
        let count = self.ln_modulus.len();
        let power = self.direction.power(self.c);
        let last = self.spacing * (count - 1) as f64;
        let times = n as f64;
        let nodes = step.tilted(power, ln_moment, last);
        let worst = step.trapezoid_error(power, last, nodes.spacing);
        let turn = if self.direction == Direction::Add { -1.0 } else { 1.0 };
        for (j, (re, im)) in nodes.characteristic(self.spacing, count).into_iter().enumerate() {
            let t = self.spacing * j as f64;
            let error = worst + nodes.fixed_error + nodes.slope_error * t;
            // ln of the modulus from modulus^2 - 1, so that a modulus near one keeps its digits.
            let d = re - 1.0;
            let excess = d * (2.0 + d) + im * im;
            let ln_modulus = if excess > -0.5 { 0.5 * excess.ln_1p() } else { re.hypot(im).max(1e-300).ln() };
            let argument = im.atan2(re);
            self.ln_modulus[j] += times * ln_modulus;
            self.argument[j] += turn * times * argument;
            self.ln_error[j] += times * (error * (-ln_modulus).exp()).ln_1p()
                + 4.0 * UNIT * times * (ln_modulus.abs() + argument.abs());
        }
        self.ln_moment += times * ln_moment;
        for (f, k) in &mut self.far {
            *k += times * step_ln_moment(step.q, step.sigma, self.direction.power(*f));
        }
        self.decay += -times * (-step.decay(power, ln_moment, last, centre)).ln_1p();
    }

    /// Certified bounds at one epsilon.
    pub fn bounds(&self, epsilon: f64) -> Bounds {
        let c = self.c;
        let base = self.ln_moment - c * epsilon;
        let (mut sum, mut error, mut size) = (0.0, 0.0, 0.0);
        for j in 0..self.ln_modulus.len() {
            let t = self.spacing * j as f64;
            // 1 / (s (s + 1)) with s (s + 1) = a + i b.
            let (a, b) = (c * (c + 1.0) - t * t, t * (2.0 * c + 1.0));
            let modulus = self.ln_modulus[j].exp() / a.hypot(b) * if j == 0 { 1.0 } else { 2.0 };
            let phase = self.argument[j] - t * epsilon - b.atan2(a);
            sum += modulus * phase.cos();
            size += modulus;
            let ln_error = self.ln_error[j] + 4.0 * UNIT * (t * epsilon + self.argument[j].abs() + 8.0);
            error += modulus * ln_error.exp_m1();
        }
        let count = self.ln_modulus.len() as f64;
        let end = self.spacing * (count - 1.0);
        let inverse_period = self.spacing / (2.0 * PI);
        let cut = (-self.decay - 0.5 * self.gaussian * end * end).exp() / (PI * end);
        let rounding = size * UNIT * (count + 16.0 * (self.ln_moment.abs() + c * epsilon + 4.0));
        let error = (error + rounding) * inverse_period + cut;
        let sum = sum * inverse_period;
        let upper = sum + error;
        let alias = self.alias(epsilon);
        let lower = (base.exp() * (sum - error) - alias) * (1.0 - 1e-13);
        let ln_upper = if upper > 0.0 { base + upper.ln() } else { base + error.ln() };
        let relative_gap = (2.0 * error + alias * (-base).exp()) / upper;
        Bounds { ln_upper, lower, relative_gap }
    }

    /// Upper bound on the aliases in the trapezoidal sum.
    fn alias(&self, epsilon: f64) -> f64 {
        let period = 2.0 * PI / self.spacing;
        let geometric = |x: f64| x / (1.0 - x).max(1e-3);
        // Below: delta <= 1. Above: Chernoff at a steeper saddle.
        let below = geometric((-self.c * period).exp());
        let above = self
            .far
            .iter()
            .map(|&(f, k)| {
                (k + ln_hockey_stick_factor(f) - f * epsilon).exp() * geometric((-(f - self.c) * period).exp())
            })
            .fold(f64::INFINITY, f64::min);
        below + above
    }

    /// Certified upper bound on ln delta(epsilon).
    pub fn ln_delta_upper(&self, epsilon: f64) -> f64 {
        self.bounds(epsilon).ln_upper.min(self.ln_chernoff(epsilon))
    }

    /// The Chernoff bound at this contour's saddle.
    pub fn ln_chernoff(&self, epsilon: f64) -> f64 {
        let k = self.ln_moment * (1.0 + 1e-12 * self.ln_moment.signum());
        k - self.c * epsilon + ln_hockey_stick_factor(self.c)
    }

    /// The Renyi bound on epsilon at this contour's order.
    pub fn chernoff_epsilon(&self, ln_delta: f64) -> f64 {
        convert(self.ln_moment / self.c, self.c + 1.0, ln_delta)
    }

    /// Certified lower bound on delta(epsilon), the smoothing undone.
    ///
    /// The smoothed delta averages delta over a mean-one multiplier of e^epsilon, in which delta is convex. If delta at
    /// epsilon were too small, chords to upper bounds on both sides would cap the average below what it is.
    pub fn delta_lower(&self, epsilon: f64) -> f64 {
        let smoothed = self.bounds(epsilon).lower;
        if self.smoothing == 0.0 || smoothed <= 0.0 {
            return smoothed.max(0.0);
        }
        [1.2, 2.0, 3.0, 4.2, 5.5]
            .into_iter()
            .map(|k| self.unsmoothed(epsilon, smoothed, k))
            .fold(0.0, f64::max)
    }

    fn unsmoothed(&self, epsilon: f64, smoothed: f64, k: f64) -> f64 {
        let w = self.smoothing.sqrt();
        let cdf = |x: f64| normal_upper(-x);
        let left = self.bounds(epsilon - k * w).ln_upper.exp().min(1.0);
        let right = self.bounds(epsilon + k * w).ln_upper.exp();
        // Probabilities and means of v = exp(-G) on 0 < G <= kw and -kw <= G <= 0, G ~ N(w^2/2, w^2).
        let (p_a, m_a) = (cdf(k - 0.5 * w) - cdf(-0.5 * w), cdf(k + 0.5 * w) - cdf(0.5 * w));
        let (p_b, m_b) = (cdf(-0.5 * w) - cdf(-k - 0.5 * w), cdf(0.5 * w) - cdf(-k + 0.5 * w));
        let (v_a, v_b) = ((-k * w).exp(), (k * w).exp());
        let capped = left * (p_a - m_a) / (1.0 - v_a) + right * (m_b - p_b) / (v_b - 1.0);
        let share = (m_a - v_a * p_a) / (1.0 - v_a) + (v_b * p_b - m_b) / (v_b - 1.0);
        let c = self.c;
        let tails = (self.ln_chernoff(epsilon)
            + 0.5 * c * (c + 1.0) * w * w
            + ln_normal_upper(k - 0.5 * w - c * w))
            .exp()
            .min(normal_upper(k - 0.5 * w))
            + right * cdf(-k - 0.5 * w);
        ((smoothed - capped - tails) / share - 1e-13 / w * left).max(0.0)
    }
}
