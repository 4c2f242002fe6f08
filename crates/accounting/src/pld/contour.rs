//! delta(epsilon) by the trapezoidal rule on a vertical line through the saddle point, with a certified error.
//!
//! With M(s) = E[exp(s loss)] and s = c + it,
//! `delta(epsilon) = 1/(2 pi) * integral of M(s) exp(-s epsilon) / (s (s + 1)) dt` for every c > 0. The trapezoidal rule of
//! spacing 2 pi / L gives `sum over k of delta(epsilon + k L) exp(c k L)`: never less than delta(epsilon). What remains is
//! cut off at the end of the line, the quadrature of M and rounding, all bounded here. Proofs:
//! `docs/proofs/pld-certification.md`.

use std::collections::HashMap;
use std::f64::consts::PI;
use std::sync::Arc;

use super::loss::{Direction, Loss, ln_hockey_stick_factor};
use super::smoothing::Smoothed;
use crate::rdp::convert;
use crate::special::Sum;
use crate::tilt::{Step, Tilted, UNIT};

/// The cut-off must be below exp(-this) relative to M(c); for a line of limited accuracy, below the latter.
const CUT_NATS: f64 = 30.0;
const ROUGH_CUT_NATS: f64 = 12.0;
/// Aliases aimed at: exp(-this) relative to delta; where the work is hard they may weigh a little more.
const ALIAS_NATS: f64 = 22.0;
const HARD_ALIAS_NATS: f64 = 14.3;
const ROUGH_ALIAS_NATS: f64 = 9.0;
/// Multiples of c at which the far tail is bounded.
const FAR: [f64; 7] = [1.06, 1.12, 1.2, 1.35, 1.6, 2.2, 3.5];
/// Smaller saddles that are tried for a growing sequence.
const LESS: [f64; 3] = [0.7, 0.5, 0.35];
/// Pairs (frequency, node) that are always worth their time.
pub(crate) const FREE_WORK: f64 = 4e5;
/// Pairs never exceeded: the bounds are then looser, and still valid.
pub(crate) const MOST_WORK: f64 = 2e8;
/// Sequences this short get a finer bound on how fast their characteristic function decays.
const FEW_STEPS: f64 = 200.0;
/// Sequences this short get the total-variation bound on it too.
const VARIED_STEPS: f64 = 300.0;
/// Kinds of step whose transform a line remembers, for when they come again.
const REMEMBERED: usize = 64;

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

/// What a line is laid for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Aim {
    /// delta is about the exponential of this where the line is tuned, ...
    pub ln_delta: f64,
    /// ... and this is the epsilon there, if given; for a growing sequence the epsilon so far.
    pub epsilon: Option<f64>,
    /// Most that smoothing may move epsilon, as far as the work allows.
    pub tolerance: f64,
    /// Pairs of frequency and node.
    pub most_work: f64,
    /// The line must already end when this share of the sequence has been composed; less than one if it is laid for a sequence
    /// that is still growing. Such a line is rougher.
    pub share: f64,
    /// The best saddle when it must end: how steeply ln delta falls there.
    pub slope: f64,
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
    /// A plan for a line near the saddle `c`.
    pub fn new(loss: &Loss, direction: Direction, c: f64, aim: &Aim) -> Self {
        let Aim {
            ln_delta,
            epsilon,
            tolerance,
            most_work,
            share,
            slope,
        } = *aim;
        let growing = share < 1.0;
        let mut c = c;
        let tilted = |c: f64| {
            let power = direction.power(c);
            let steps: Vec<(f64, Tilted)> = loss
                .steps
                .iter()
                .map(|(s, _)| {
                    let m = s.ln_moment(power);
                    (m, s.tilted(power, m, 0.0))
                })
                .collect();
            let spread = |((_, n), (_, t)): (&(Step, u64), &(f64, Tilted))| *n as f64 * t.variance;
            let variance = loss.mu2 + loss.steps.iter().zip(&steps).map(spread).sum::<f64>();
            (steps, variance)
        };
        let (mut steps, mut variance);
        let mut rounds = 0;
        loop {
            (steps, variance) = tilted(c);
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
        // Where delta is aimed at, by the saddle-point approximation, when epsilon is not given.
        let now = epsilon.unwrap_or(0.0);
        let epsilon = epsilon.filter(|_| !growing).unwrap_or_else(|| {
            let width = (c * (c + 1.0) * (2.0 * PI * variance).sqrt()).ln().max(0.0);
            ((loss.ln_moment(direction, c) - ln_delta - width) / c).max(0.0)
        });
        // Both limits are for one mechanism, or are shared by many.
        let free = FREE_WORK * (loss.steps.len() as f64).max(1.0);
        let hard = most_work > FREE_WORK;
        let hardest = if hard {
            most_work.max(2.0 * free)
        } else {
            free
        };
        let (nats, cut) = if growing {
            (ROUGH_ALIAS_NATS, ROUGH_CUT_NATS)
        } else if hard {
            (HARD_ALIAS_NATS, CUT_NATS)
        } else {
            (ALIAS_NATS, CUT_NATS)
        };
        let period = |c: f64| {
            let near = (nats - ln_delta) / c;
            let beyond = FAR
                .iter()
                .map(|f| {
                    let f = c * f;
                    let k = loss.ln_moment(direction, f);
                    let above = if growing {
                        (k - f * epsilon).max(share * k - f * now)
                    } else {
                        k - f * epsilon
                    };
                    (above + ln_hockey_stick_factor(f) - ln_delta + nats) / (f - c)
                })
                .fold(f64::INFINITY, f64::min);
            near.max(if beyond.is_finite() { beyond } else { 0.0 })
                .min(1e3 * near)
        };
        let mut shortest = period(c);
        if growing {
            // Where rare jumps weigh as much as all the rest, a smaller saddle needs a shorter period.
            let saddle = c;
            for factor in LESS {
                let length = period(factor * saddle);
                if length < shortest {
                    (c, shortest) = (factor * saddle, length);
                }
            }
            (steps, variance) = tilted(c);
        }
        let power = direction.power(c);
        let spacing = 2.0 * PI / shortest;

        // How far must the line go?
        let total = loss.steps.iter().map(|(_, n)| *n as f64).sum::<f64>();
        let (few, varied) = (
            total <= FEW_STEPS && !growing,
            total <= VARIED_STEPS && !growing,
        );
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
        let mut end = (2.0 * cut).sqrt() / (share * variance).sqrt().max(1e-300);
        let mut work = work_to(end);
        while work > hardest.max(1e-2 * MOST_WORK) {
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
                    share * *n as f64 * cells.max((end / v).ln())
                })
                .sum::<f64>();
            let missing = cut - decay - 0.5 * share * loss.mu2 * end * end;
            smoothing = (2.0 * missing / (end * end)).max(0.0);
            work = work_to(end);
            if work > 2.0 * hardest
                && let Some(before) = last
            {
                (end, smoothing, work) = before;
                break;
            }
            last = Some((end, smoothing, work));
            let moved = 0.5 * (c.max(slope) + 1.0) * smoothing;
            let cheap = if growing { 0.1 * free } else { free };
            if smoothing == 0.0 || (work > cheap && moved <= tolerance) || work > hardest {
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

/// One step's transform at the nodes of a line.
#[derive(Debug)]
struct Row {
    ln_modulus: Vec<f64>,
    argument: Vec<f64>,
    ln_error: Vec<f64>,
    ln_moment: f64,
    far: [f64; FAR.len()],
    decay: f64,
}

/// The composed characteristic function on one vertical line.
#[derive(Debug, Clone)]
pub(crate) struct Contour {
    direction: Direction,
    c: f64,
    spacing: f64,
    /// Squared mu of the Gaussian mechanism composed on top, to make the line end.
    smoothing: f64,
    ln_moment: Sum,
    far: [(f64, Sum); FAR.len()],
    /// ln |M(c + i t_j) / M(c)|, the argument, and the bound on the relative error's log1p.
    ln_modulus: Vec<Sum>,
    argument: Vec<Sum>,
    ln_error: Vec<f64>,
    /// |M(c + it) / M(c)| <= exp(-decay - gaussian t^2 / 2) for all t beyond the end.
    decay: f64,
    gaussian: f64,
    /// Which bounds on the decay are worth their time.
    few: bool,
    varied: bool,
    /// Steps that were composed one by one, by the bits of their sampling rate and noise multiplier.
    rows: HashMap<(u64, u64), Arc<Row>>,
}

impl Contour {
    /// A contour laid as planned, with the whole sequence on it.
    pub fn lay(loss: &Loss, plan: &Plan) -> Self {
        let mut contour = Self::bare(plan);
        contour.compose_gaussian(loss.mu2);
        for ((step, n), (m, t)) in loss.steps.iter().zip(&plan.steps) {
            let row = contour.row(step, *m, t.centre);
            contour.add(&row, *n);
        }
        contour
    }

    /// A contour laid as planned, with nothing on it yet but the smoothing.
    pub fn bare(plan: &Plan) -> Self {
        let (direction, c, spacing, smoothing) =
            (plan.direction, plan.c, plan.spacing, plan.smoothing);
        let count = (plan.end / spacing).ceil() as usize + 2;
        let mut contour = Self {
            direction,
            c,
            spacing,
            smoothing,
            ln_moment: Sum::default(),
            far: FAR.map(|f| (c * f, Sum::default())),
            ln_modulus: vec![Sum::default(); count],
            argument: vec![Sum::default(); count],
            ln_error: vec![0.0; count],
            decay: 0.0,
            gaussian: 0.0,
            few: plan.few,
            varied: plan.varied,
            rows: HashMap::new(),
        };
        contour.compose_gaussian(smoothing);
        contour
    }

    /// The saddle.
    pub fn saddle(&self) -> f64 {
        self.c
    }

    /// ln M at the saddle: how much has been composed.
    pub fn ln_moment(&self) -> f64 {
        self.ln_moment.value()
    }

    /// How much the smoothing moves epsilon, about.
    pub fn moved(&self) -> f64 {
        0.5 * (self.c + 1.0) * self.smoothing
    }

    /// Composes more: one product of transforms.
    pub fn compose(&mut self, more: &Loss) {
        self.compose_gaussian(more.mu2);
        for (step, n) in &more.steps {
            let key = (step.q.to_bits(), step.sigma.to_bits());
            let row = match self.rows.get(&key) {
                Some(row) => Arc::clone(row),
                None => {
                    let power = self.direction.power(self.c);
                    let ln_moment = step.ln_moment(power);
                    let centre = step.tilted(power, ln_moment, 0.0).centre;
                    let row = Arc::new(self.row(step, ln_moment, centre));
                    if self.rows.len() < REMEMBERED {
                        self.rows.insert(key, Arc::clone(&row));
                    }
                    row
                }
            };
            self.add(&row, *n);
        }
    }

    /// Composes a plain Gaussian of squared mu `mu2`: M(s) is exp(mu2 s (s + 1) / 2), in both directions.
    fn compose_gaussian(&mut self, mu2: f64) {
        if mu2 == 0.0 {
            return;
        }
        self.gaussian += mu2;
        self.ln_moment.add(0.5 * mu2 * self.c * (self.c + 1.0));
        for (f, k) in &mut self.far {
            k.add(0.5 * mu2 * *f * (*f + 1.0));
        }
        for j in 0..self.ln_modulus.len() {
            let t = self.spacing * j as f64;
            self.ln_modulus[j].add(-0.5 * mu2 * t * t);
            self.argument[j].add(mu2 * t * (self.c + 0.5));
            self.ln_error[j] += 4.0 * UNIT * mu2 * t * (t + self.c + 0.5);
        }
    }

    /// One step's transform on this line.
    fn row(&self, step: &Step, ln_moment: f64, centre: f64) -> Row {
        let count = self.ln_modulus.len();
        let power = self.direction.power(self.c);
        let last = self.spacing * (count - 1) as f64;
        let nodes = step.tilted(power, ln_moment, last);
        let worst = step.trapezoid_error(power, last, nodes.spacing);
        let turn = if self.direction == Direction::Add {
            -1.0
        } else {
            1.0
        };
        let (mut ln_moduli, mut arguments, mut ln_errors) = (
            Vec::with_capacity(count),
            Vec::with_capacity(count),
            Vec::with_capacity(count),
        );
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
            ln_moduli.push(ln_modulus);
            arguments.push(turn * argument);
            ln_errors.push(
                (error * (-ln_modulus).exp()).ln_1p()
                    + 4.0 * UNIT * (ln_modulus.abs() + argument.abs()),
            );
        }
        let cells = -(-step.decay(power, ln_moment, last, centre, self.few)).ln_1p();
        let variation = if self.varied {
            (last / step.total_variation(power, ln_moment)).ln()
        } else {
            0.0
        };
        Row {
            ln_modulus: ln_moduli,
            argument: arguments,
            ln_error: ln_errors,
            ln_moment,
            far: FAR.map(|f| step.ln_moment(self.direction.power(self.c * f))),
            decay: cells.max(variation),
        }
    }

    /// Composes `n` steps with this transform.
    fn add(&mut self, row: &Row, n: u64) {
        let times = n as f64;
        let pairs = [
            (&mut self.ln_modulus, &row.ln_modulus),
            (&mut self.argument, &row.argument),
        ];
        for (totals, one) in pairs {
            for (total, one) in totals.iter_mut().zip(one) {
                total.add(times * one);
            }
        }
        for (total, one) in self.ln_error.iter_mut().zip(&row.ln_error) {
            *total += times * one;
        }
        self.ln_moment.add(times * row.ln_moment);
        for ((_, total), one) in self.far.iter_mut().zip(row.far) {
            total.add(times * one);
        }
        self.decay += times * row.decay;
    }

    /// The privacy curve of what has been composed so far.
    pub fn curve(&self) -> Curve<'_> {
        let c = self.c;
        let count = self.ln_modulus.len();
        let mut curve = Curve {
            contour: self,
            modulus: Vec::with_capacity(count),
            phase: Vec::with_capacity(count),
            size: 0.0,
            error: 0.0,
            error_slope: 0.0,
        };
        for j in 0..count {
            let t = self.spacing * j as f64;
            // 1 / (s (s + 1)) with s (s + 1) = a + i b.
            let (a, b) = (c * (c + 1.0) - t * t, t * (2.0 * c + 1.0));
            let modulus =
                self.ln_modulus[j].value().exp() / a.hypot(b) * if j == 0 { 1.0 } else { 2.0 };
            let argument = self.argument[j].value();
            curve.modulus.push(modulus);
            curve.phase.push(argument - b.atan2(a));
            curve.size += modulus;
            // A sum of at most 2^23 positive terms is off by less than 1e-9 of itself.
            let ln_error = self.ln_error[j] * (1.0 + 1e-9) + 4.0 * UNIT * (argument.abs() + 8.0);
            let error = ln_error.exp_m1();
            curve.error += modulus * error;
            // e^(x + y) - 1 <= (e^x - 1) + 2 y e^x for 0 <= y <= 1.
            curve.error_slope += modulus * (1.0 + error) * 8.0 * UNIT * t;
        }
        curve
    }

    /// Certified bounds at one epsilon.
    pub fn bounds(&self, epsilon: f64) -> Bounds {
        self.curve().bounds(epsilon)
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
                (k.value() + ln_hockey_stick_factor(f) - f * epsilon).exp()
                    * geometric((-(f - self.c) * period).exp())
            })
            .fold(f64::INFINITY, f64::min);
        below + above
    }

    /// The Chernoff bound at this contour's saddle.
    pub fn ln_chernoff(&self, epsilon: f64) -> f64 {
        let k = self.ln_moment.value();
        let k = k * (1.0 + 1e-12 * k.signum());
        k - self.c * epsilon + ln_hockey_stick_factor(self.c)
    }

    /// The Renyi bound on epsilon at this contour's order.
    pub fn chernoff_epsilon(&self, ln_delta: f64) -> f64 {
        convert(self.ln_moment.value() / self.c, self.c + 1.0, ln_delta)
    }
}

/// A privacy curve, ready to be evaluated at many points.
pub(crate) struct Curve<'a> {
    contour: &'a Contour,
    modulus: Vec<f64>,
    phase: Vec<f64>,
    /// Sum of the moduli.
    size: f64,
    /// Error of the sum, and how it grows with epsilon.
    error: f64,
    error_slope: f64,
}

impl Curve<'_> {
    /// Certified bounds at one epsilon.
    pub fn bounds(&self, epsilon: f64) -> Bounds {
        let Contour {
            c,
            spacing,
            decay,
            gaussian,
            ..
        } = *self.contour;
        let ln_moment = self.contour.ln_moment.value();
        let base = ln_moment - c * epsilon;
        let turn = spacing * epsilon;
        let sum: f64 = self
            .modulus
            .iter()
            .zip(&self.phase)
            .enumerate()
            .map(|(j, (modulus, phase))| modulus * (phase - turn * j as f64).cos())
            .sum();
        let count = self.modulus.len() as f64;
        let end = spacing * (count - 1.0);
        let inverse_period = spacing / (2.0 * PI);
        let cut = (-decay - 0.5 * gaussian * end * end).exp() / (PI * end);
        let rounding =
            self.size * UNIT * (2.0 * count + 16.0 * (ln_moment.abs() + c * epsilon + 4.0));
        let error = (self.error + self.error_slope * epsilon + rounding) * inverse_period + cut;
        let sum = sum * inverse_period;
        let upper = sum + error;
        let alias = self.contour.alias(epsilon);
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

    /// About how far above the truth an epsilon with this bound is: by smoothing, and by all the rest.
    pub fn excess(&self, epsilon: f64) -> (f64, f64) {
        let here = self.bounds(epsilon);
        let further = 0.01 / self.contour.c;
        let slope = (here.ln_upper - self.bounds(epsilon + further).ln_upper) / further;
        if !(slope > 0.0) {
            return (f64::INFINITY, f64::INFINITY);
        }
        (
            0.5 * (slope + 1.0) * self.contour.smoothing,
            here.relative_gap / slope,
        )
    }

    /// Certified upper bound on ln delta(epsilon).
    pub fn ln_delta_upper(&self, epsilon: f64) -> f64 {
        self.bounds(epsilon)
            .ln_upper
            .min(self.contour.ln_chernoff(epsilon))
    }

    /// Certified lower bound on delta(epsilon), the smoothing undone.
    pub fn delta_lower(&self, epsilon: f64) -> f64 {
        Smoothed {
            lower: self.bounds(epsilon).lower,
            width: self.contour.smoothing.sqrt(),
            upper_at: &|offset| self.bounds(epsilon + offset).ln_upper.exp(),
        }
        .undone()
    }
}
