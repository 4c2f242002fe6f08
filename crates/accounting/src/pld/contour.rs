//! delta(epsilon) by the trapezoidal rule on a vertical line through the saddle point, with a certified error.
//!
//! With M(s) = E[exp(s loss)] and s = c + it,
//! `delta(epsilon) = 1/(2 pi) * integral of M(s) exp(-s epsilon) / (s (s + 1)) dt` for every c > 0. The trapezoidal rule of
//! spacing 2 pi / L gives `sum over k of delta(epsilon + k L) exp(c k L)`: never less than delta(epsilon). What remains is
//! cut off at the end of the line, the quadrature of M and rounding, all bounded here. Proofs:
//! `docs/proofs/pld-certification.md`.

use std::f64::consts::PI;

use super::loss::{Direction, Loss, ln_hockey_stick_factor};
use super::smoothing::Smoothed;
use crate::rdp::convert;
use crate::tilt::{Step, Tilted, UNIT};

/// The cut-off must be below exp(-this) relative to M(c).
const CUT_NATS: f64 = 30.0;
/// Aliases aimed at: exp(-this) relative to delta.
const ALIAS_NATS: f64 = 22.0;
/// Multiples of c at which the far tail is bounded.
const FAR: [f64; 7] = [1.06, 1.12, 1.2, 1.35, 1.6, 2.2, 3.5];
/// Pairs (frequency, node) that are always worth their time.
pub(crate) const FREE_WORK: f64 = 4e5;
/// Pairs never exceeded: the bounds are then looser, and still valid.
pub(crate) const MOST_WORK: f64 = 2e8;
/// Sequences this short get a finer bound on how fast their characteristic function decays.
const FEW_STEPS: f64 = 200.0;
/// Sequences this short get the total-variation bound on it too.
const VARIED_STEPS: f64 = 300.0;

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

/// Where to lay a line, and what it will cost.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    direction: Direction,
    c: f64,
    spacing: f64,
    end: f64,
    smoothing: f64,
    steps: Vec<(f64, Tilted)>,
    few: bool,
    varied: bool,
    /// Pairs of frequency and node, about.
    pub work: f64,
}

impl Plan {
    /// A plan tuned to the point where delta is about `exp(ln_delta)`, near `epsilon`, if given.
    ///
    /// `tolerance` bounds how much the smoothing may move epsilon, as far as `most_work` allows.
    pub fn new(
        loss: &Loss,
        direction: Direction,
        c: f64,
        ln_delta: f64,
        epsilon: Option<f64>,
        (tolerance, most_work): (f64, f64),
    ) -> Self {
        let mut c = c;
        let (mut steps, mut variance): (Vec<(f64, Tilted)>, f64);
        let mut rounds = 0;
        loop {
            let power = direction.power(c);
            steps = loss
                .steps
                .iter()
                .map(|(s, _)| {
                    let m = s.ln_moment(power);
                    (m, s.tilted(power, m, 0.0))
                })
                .collect();
            let spread = |((_, n), (_, t)): (&(Step, u64), &(f64, Tilted))| *n as f64 * t.variance;
            variance = loss.mu2 + loss.steps.iter().zip(&steps).map(spread).sum::<f64>();
            rounds += 1;
            // Below half a standard deviation's worth of tilt the line needs a needlessly long period.
            if !(c * variance.sqrt() < 0.4) || rounds > 12 || variance <= 0.0 {
                break;
            }
            // Not into a region where rare jumps take over.
            let further = (0.5 / variance.sqrt()).min(30.0 * c);
            if !(loss.ln_moment(direction, further) <= 2.0) {
                break;
            }
            c = further;
        }
        let power = direction.power(c);
        let ln_moment = loss
            .steps
            .iter()
            .zip(&steps)
            .map(|((_, n), (m, _))| *n as f64 * m)
            .sum::<f64>()
            + 0.5 * loss.mu2 * c * (c + 1.0);
        // Where delta is aimed at, by the saddle-point approximation, when epsilon is not given.
        let epsilon = epsilon.unwrap_or_else(|| {
            let width = (c * (c + 1.0) * (2.0 * PI * variance).sqrt()).ln().max(0.0);
            ((ln_moment - ln_delta - width) / c).max(0.0)
        });
        // Both limits are for one mechanism, or are shared by many.
        let free = FREE_WORK * (loss.steps.len() as f64).max(1.0);
        let hard = most_work > FREE_WORK;
        let most_work = if hard {
            most_work.max(2.0 * free)
        } else {
            free
        };
        // Where the work is hard, aliases may weigh a little more.
        let nats = if hard { 0.65 * ALIAS_NATS } else { ALIAS_NATS };
        let near = (nats - ln_delta) / c;
        let beyond = FAR
            .iter()
            .map(|f| {
                let f = c * f;
                let k = loss.ln_moment(direction, f);
                (k + ln_hockey_stick_factor(f) - f * epsilon - ln_delta + nats) / (f - c)
            })
            .fold(f64::INFINITY, f64::min);
        let period = near
            .max(if beyond.is_finite() { beyond } else { 0.0 })
            .min(1e3 * near);
        let spacing = 2.0 * PI / period;

        // How far must the line go?
        let total = loss.steps.iter().map(|(_, n)| *n as f64).sum::<f64>();
        let (few, varied) = (total <= FEW_STEPS, total <= VARIED_STEPS);
        let variations: Vec<f64> = loss
            .steps
            .iter()
            .zip(&steps)
            .map(|((s, _), (m, _))| {
                if varied {
                    s.total_variation(power, *m)
                } else {
                    f64::INFINITY
                }
            })
            .collect();
        let work_to = |end: f64| {
            let nodes = |((s, _), (_, t)): (&(Step, u64), &(f64, Tilted))| {
                t.spacing * t.losses.len() as f64 / s.spacing(power, end)
            };
            (end / spacing) * loss.steps.iter().zip(&steps).map(nodes).sum::<f64>()
        };
        let mut end = 7.5 / variance.sqrt().max(1e-300);
        let mut work = work_to(end);
        while work > most_work.max(1e-2 * MOST_WORK) {
            end *= 0.6;
            work = work_to(end);
        }
        let mut smoothing;
        let mut last = None;
        loop {
            let decay = loss
                .steps
                .iter()
                .zip(&steps)
                .zip(&variations)
                .map(|(((s, n), (m, t)), v)| {
                    let cells = -(-s.decay(power, *m, end, t.centre, few)).ln_1p();
                    *n as f64 * cells.max((end / v).ln())
                })
                .sum::<f64>();
            let missing = CUT_NATS - decay - 0.5 * loss.mu2 * end * end;
            smoothing = (2.0 * missing / (end * end)).max(0.0);
            work = work_to(end);
            if work > 2.0 * most_work
                && let Some(before) = last
            {
                (end, smoothing, work) = before;
                break;
            }
            last = Some((end, smoothing, work));
            let moved = 0.5 * (c + 1.0) * smoothing;
            if smoothing == 0.0 || (work > free && moved <= tolerance) || work > most_work {
                break;
            }
            end *= 1.35;
        }
        Self {
            direction,
            c,
            spacing,
            end,
            smoothing,
            steps,
            few,
            varied,
            work,
        }
    }

    /// Whether laying the line takes a bearable time.
    pub fn bearable(&self) -> bool {
        self.work <= 5.0 * MOST_WORK.max(2.0 * FREE_WORK * self.steps.len() as f64)
    }

    /// How much the smoothing moves epsilon, about.
    pub fn moved(&self) -> f64 {
        0.5 * (self.c + 1.0) * self.smoothing
    }
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
    /// Which bounds on the decay are worth their time.
    few: bool,
    varied: bool,
}

impl Contour {
    /// A contour laid as planned.
    pub fn lay(loss: &Loss, plan: &Plan) -> Self {
        let (direction, c, spacing, smoothing) =
            (plan.direction, plan.c, plan.spacing, plan.smoothing);
        let count = (plan.end / spacing).ceil() as usize + 2;
        let gaussian = loss.mu2 + smoothing;
        let mut contour = Self {
            direction,
            c,
            spacing,
            smoothing,
            ln_moment: 0.5 * gaussian * c * (c + 1.0),
            far: FAR
                .iter()
                .map(|f| (c * f, 0.5 * gaussian * c * f * (c * f + 1.0)))
                .collect(),
            ln_modulus: vec![0.0; count],
            argument: vec![0.0; count],
            ln_error: vec![0.0; count],
            decay: 0.0,
            gaussian: 0.0,
            few: plan.few,
            varied: plan.varied,
        };
        contour.add_gaussian(gaussian);
        for ((step, n), (m, t)) in loss.steps.iter().zip(&plan.steps) {
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

    /// Composes more: one product of transforms.
    pub fn compose(&mut self, more: &Loss) {
        if more.mu2 > 0.0 {
            self.compose_gaussian(more.mu2);
        }
        for (step, n) in &more.steps {
            self.compose_step(step, *n);
        }
    }

    fn compose_step(&mut self, step: &Step, n: u64) {
        let power = self.direction.power(self.c);
        let ln_moment = step.ln_moment(power);
        let centre = step.tilted(power, ln_moment, 0.0).centre;
        self.add_steps(step, n, ln_moment, centre);
    }

    /// Composes a plain Gaussian of squared mu `mu2`.
    fn compose_gaussian(&mut self, mu2: f64) {
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
        let turn = if self.direction == Direction::Add {
            -1.0
        } else {
            1.0
        };
        for (j, (re, im)) in nodes
            .characteristic(self.spacing, count)
            .into_iter()
            .enumerate()
        {
            let t = self.spacing * j as f64;
            let error = worst + nodes.fixed_error + nodes.slope_error * t;
            // ln of the modulus from modulus^2 - 1, so that a modulus near one keeps its digits.
            let d = re - 1.0;
            let excess = d * (2.0 + d) + im * im;
            let ln_modulus = if excess > -0.5 {
                0.5 * excess.ln_1p()
            } else {
                re.hypot(im).max(1e-300).ln()
            };
            let argument = im.atan2(re);
            self.ln_modulus[j] += times * ln_modulus;
            self.argument[j] += turn * times * argument;
            self.ln_error[j] += times * (error * (-ln_modulus).exp()).ln_1p()
                + 4.0 * UNIT * times * (ln_modulus.abs() + argument.abs());
        }
        self.ln_moment += times * ln_moment;
        for (f, k) in &mut self.far {
            *k += times * step.ln_moment(self.direction.power(*f));
        }
        let cells = -(-step.decay(power, ln_moment, last, centre, self.few)).ln_1p();
        let variation = if self.varied {
            (last / step.total_variation(power, ln_moment)).ln()
        } else {
            0.0
        };
        self.decay += times * cells.max(variation);
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
            let ln_error =
                self.ln_error[j] + 4.0 * UNIT * (t * epsilon + self.argument[j].abs() + 8.0);
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
        let ln_upper = if upper > 0.0 {
            base + upper.ln()
        } else {
            base + error.ln()
        };
        let relative_gap = (2.0 * error + alias * (-base).exp()) / upper;
        Bounds {
            ln_upper,
            lower,
            relative_gap,
        }
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
                (k + ln_hockey_stick_factor(f) - f * epsilon).exp()
                    * geometric((-(f - self.c) * period).exp())
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
    pub fn delta_lower(&self, epsilon: f64) -> f64 {
        Smoothed {
            lower: self.bounds(epsilon).lower,
            width: self.smoothing.sqrt(),
            upper_at: &|offset| self.bounds(epsilon + offset).ln_upper.exp(),
        }
        .undone()
    }
}
