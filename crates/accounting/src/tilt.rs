//! Moments of the privacy loss of one Poisson-subsampled Gaussian step, by the trapezoidal rule.
//!
//! Everything is an integral over x ~ N(0, sigma^2) of a power of the likelihood ratio
//! `r(x) = 1 - q + q exp((2x - 1) / (2 sigma^2))`, whose exponent's real part is called the power here: the remove
//! direction at saddle c has power c + 1, the add direction has power -c. The integrands are analytic in the strip
//! `|Im x| < pi sigma^2`, where the trapezoidal rule converges geometrically with a known constant
//! (`docs/proofs/pld-certification.md`, section 2).

use std::f64::consts::PI;

use crate::special::{ln_normal_upper, ln_sqrt_two_pi, normal_upper};

/// Standard deviations kept on each side of the integrand's modes: the tail beyond is below 1e-20.
const TAIL_SIGMAS: f64 = 9.6;
/// The trapezoidal rule's error, relative to the integral of the modulus, is at most exp(-this).
const ACCURACY_NATS: f64 = 41.0;
/// Unit roundoff of f64.
pub(crate) const UNIT: f64 = f64::EPSILON / 2.0;

/// A soft cut of the upper tail: outcomes count as bad with probability `1 - chi(x)`, `chi(x) = Phi((place - x) / width)`.
///
/// Bad outcomes are charged in full to delta. Without them the loss has moments at saddles where the tail would otherwise
/// take over, which is what makes tiny sampling rates tractable. chi is entire, so the trapezoidal rule keeps its error bound.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cut {
    pub place: f64,
    pub width: f64,
}

/// One step's mechanism: 0 < q < 1. The cut is for the remove direction only.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    pub q: f64,
    pub sigma: f64,
    pub cut: Option<Cut>,
}

impl Step {
    /// A step without a cut.
    pub fn new(q: f64, sigma: f64) -> Self {
        Self {
            q,
            sigma,
            cut: None,
        }
    }

    /// The same step, cut so that it is bad with probability at most about `bad` in the remove direction.
    pub fn cut_at(self, bad: f64) -> Self {
        let s2 = self.sigma * self.sigma;
        // Phi^-1 by its tail bound, on the heavier of the two components.
        let place = |mass: f64| 1.004 * self.sigma * (-2.0 * mass.min(0.1).ln()).sqrt();
        let x = place(bad).max(1.0 + place(bad / self.q));
        // Narrow enough that at the saddles made possible (about 40 / loss at the cut) the far tail, where the loss grows
        // linearly, stays below what chi takes away; not so narrow that the trapezoidal rule gets slow.
        let knee = s2 * -self.q.ln() + 0.5;
        let power = 40.0 / self.ln_ratio(x).max(1e-300);
        let narrow = (s2 * (knee - x).max(0.0) / power).sqrt();
        let width = if knee > x {
            narrow.min(0.08 * self.sigma)
        } else {
            0.08 * self.sigma
        };
        Self {
            cut: Some(Cut {
                place: x,
                width: width.max(2e-3 * self.sigma),
            }),
            ..self
        }
    }

    /// Probability of a bad outcome under the mixture and under the plain Gaussian.
    pub fn bad_masses(&self) -> (f64, f64) {
        match self.cut {
            None => (0.0, 0.0),
            Some(cut) => {
                let spread = self.sigma.hypot(cut.width);
                let plain = normal_upper(cut.place / spread);
                let shifted = normal_upper((cut.place - 1.0) / spread);
                ((1.0 - self.q) * plain + self.q * shifted, plain)
            }
        }
    }

    /// ln chi(x).
    #[inline]
    fn ln_kept(&self, x: f64) -> f64 {
        match self.cut {
            None => 0.0,
            Some(cut) => {
                let u = (x - cut.place) / cut.width;
                if u < -9.0 { 0.0 } else { ln_normal_upper(u) }
            }
        }
    }

    /// Growth of the Gaussian and of chi off the real axis is exp(this theta^2) at x + i theta sigma^2.
    fn curvature(&self) -> f64 {
        let s2 = self.sigma * self.sigma;
        0.5 * s2
            + self
                .cut
                .map_or(0.0, |cut| 0.5 * s2 * s2 / (cut.width * cut.width))
    }

    /// ln r(x), the remove direction's privacy loss at x.
    #[inline]
    pub fn ln_ratio(&self, x: f64) -> f64 {
        let z = (2.0 * x - 1.0) / (2.0 * self.sigma * self.sigma);
        if z < 1.0 {
            (self.q * z.exp_m1()).ln_1p()
        } else if z < 40.0 && self.q < 1e-4 {
            // Small losses keep their digits.
            (self.q * z.exp_m1()).ln_1p()
        } else {
            z + (self.q + (1.0 - self.q) * (-z).exp()).ln()
        }
    }

    /// The x with ln r(x) = y; minus infinity where y is at or below its infimum.
    pub fn inverse(&self, y: f64) -> f64 {
        let scaled = y.exp_m1() / self.q;
        if scaled <= -1.0 {
            return f64::NEG_INFINITY;
        }
        let z = if y > 500.0 {
            y - self.q.ln()
        } else {
            scaled.ln_1p()
        };
        self.sigma * self.sigma * z + 0.5
    }

    /// Upper bound on ln of the integral of the modulus at x + i theta sigma^2 over the integral on the real axis.
    fn ln_growth(&self, power: f64, ln_moment: f64, t: f64, theta: f64) -> f64 {
        let bend = self.curvature() * theta * theta + corner(power, theta);
        if self.cut.is_none() || t == 0.0 {
            return bend + t * theta;
        }
        // |r^(it)| = exp(t arg r), and arg r is small where the loss is small. Upper Riemann sum, every factor at its largest
        // in the cell: the power and the argument grow with x, chi falls.
        let s2 = self.sigma * self.sigma;
        let (low, high) = self.range(power, false);
        let (sin, cos) = theta.sin_cos();
        let angle = |z: f64| (self.q * sin).atan2(self.q * cos + (1.0 - self.q) * (-z).exp());
        let offset = -ln_sqrt_two_pi() - self.sigma.ln() - ln_moment;
        let mut total = 0.0;
        let mut a = low;
        let mut below = normal_upper(TAIL_SIGMAS);
        while a < high {
            let z = (2.0 * a - 1.0) / (2.0 * s2);
            let posterior = (self.q.ln() + z - self.ln_ratio(a)).exp();
            let rate = (power + t * theta) * posterior / s2;
            let step = (0.1 * self.sigma)
                .min(0.7 / (rate + 1e-300))
                .max(1e-3 * self.sigma);
            let b = (a + step).min(high);
            let nearest = if a > 0.0 {
                a
            } else if b < 0.0 {
                b
            } else {
                0.0
            };
            let z_b = (2.0 * b - 1.0) / (2.0 * s2);
            let top = power * self.ln_ratio(b) + t * angle(z_b) - nearest * nearest / (2.0 * s2)
                + self.ln_kept(a);
            total += (top + offset).exp() * (b - a);
            // Past the cut the fall is faster than anything can grow, once it is deep enough.
            if a > self.cut.map_or(high, |c| c.place) && top + offset < -120.0 - 3.0 * t * theta {
                break;
            }
            a = b;
        }
        // Beyond both ends the argument is at most theta, and the mass was shown to be below 1e-20.
        below += (t * theta - 120.0 - 3.0 * t * theta).exp();
        bend + (total + below).ln().min(t * theta)
    }

    /// Spacing of the trapezoidal rule for frequencies up to `t`.
    pub fn spacing(&self, power: f64, ln_moment: f64, t: f64) -> f64 {
        let s2 = self.sigma * self.sigma;
        let cost = self
            .angles(t)
            .map(|theta| (ACCURACY_NATS + self.ln_growth(power, ln_moment, t, theta)) / theta)
            .fold(f64::INFINITY, f64::min);
        2.0 * PI * s2 / cost
    }

    /// Bound on the trapezoidal error at frequency `t`, relative to the integral of the modulus.
    pub fn trapezoid_error(&self, power: f64, ln_moment: f64, t: f64, spacing: f64) -> f64 {
        let s2 = self.sigma * self.sigma;
        let exponent = self
            .angles(t)
            .map(|theta| {
                let decay = 2.0 * PI * s2 * theta / spacing;
                self.ln_growth(power, ln_moment, t, theta) - (decay.exp_m1()).ln().min(decay)
            })
            .fold(f64::INFINITY, f64::min);
        2.0 * exponent.exp()
    }

    /// Angles theta tried for the strip's half-width theta sigma^2. Small angles are best for large sigma.
    fn angles(&self, t: f64) -> impl Iterator<Item = f64> {
        let (start, ratio, count) = match self.cut {
            // Each costs an integral here: few, around the best for frequency 0.
            Some(_) if t > 0.0 => (
                (2.0 * ACCURACY_NATS / self.curvature()).sqrt().min(2.0),
                0.5,
                4,
            ),
            _ => (3.1, 0.62, 26),
        };
        (0..count).map(move |i| start * f64::powi(ratio, i))
    }

    /// Interval outside which the integrand of this power carries less than about 1e-20 of the integral.
    fn range(&self, power: f64, second_moment: bool) -> (f64, f64) {
        let top = if second_moment {
            power.max(2.0)
        } else {
            power.max(0.0)
        };
        let low = power.min(0.0) - TAIL_SIGMAS * self.sigma;
        let mut high = top + TAIL_SIGMAS * self.sigma;
        if let Some(cut) = self.cut {
            // Past this point the logarithm of the integrand is concave and falling, with chi's curvature on top.
            let ratio = (self.sigma / cut.width).powi(2);
            let mode = (top + cut.place * ratio) / (1.0 + ratio);
            high = high.min(mode.max(cut.place) + TAIL_SIGMAS * cut.width);
        }
        (low, high)
    }

    /// ln E[r(x)^power chi(x)], to about 1e-13 relative even where it is tiny.
    ///
    /// Integrates `r^p - 1 - p (r - 1)`, which is never negative for p outside (0, 1), instead of `r^p`: E[r - 1] = 0.
    pub fn ln_moment(&self, power: f64) -> f64 {
        let h = self.spacing(power, 0.0, 0.0);
        let inverse = 1.0 / (2.0 * self.sigma * self.sigma);
        let mut peak = f64::NEG_INFINITY;
        let mut sum = 0.0;
        let constant = power.abs().ln_1p();
        self.visit(
            power,
            true,
            h,
            |x, y| ln_excess(power, y) - x * x * inverse + self.ln_kept(x),
            |lift| {
                if lift > constant {
                    lift + (constant - lift).exp().ln_1p()
                } else {
                    constant + (lift - constant).exp().ln_1p()
                }
            },
            |_, _, term| {
                if term > peak {
                    sum = sum * (peak - term).exp() + 1.0;
                    peak = term;
                } else {
                    sum += (term - peak).exp();
                }
            },
        );
        let ln_excess_moment = peak + (sum * h / self.sigma).ln() - ln_sqrt_two_pi();
        let (bad_p, bad_q) = self.bad_masses();
        let lost = (power - 1.0) * bad_q - power * bad_p;
        if ln_excess_moment > 30.0 {
            ln_excess_moment + ((1.0 + lost) * (-ln_excess_moment).exp()).ln_1p()
        } else {
            (ln_excess_moment.exp() + lost).ln_1p()
        }
    }

    /// Calls `f(x, ln r(x), term)` on the grid; on long grids skips blocks whose terms cannot matter.
    ///
    /// `term(x, y)` is the integrand's logarithm; `cap(p y)` bounds its part that depends on r.
    fn visit(
        &self,
        power: f64,
        second_moment: bool,
        h: f64,
        term: impl Fn(f64, f64) -> f64,
        cap: impl Fn(f64) -> f64,
        mut f: impl FnMut(f64, f64, f64),
    ) {
        const BLOCK: i64 = 64;
        let (low, high) = self.range(power, second_moment);
        let (first, last) = ((low / h).floor() as i64, (high / h).ceil() as i64);
        let mut each = |k: i64| {
            let x = k as f64 * h;
            let y = self.ln_ratio(x);
            f(x, y, term(x, y));
        };
        if last - first < 1024 {
            (first..=last).for_each(each);
            return;
        }
        // A lower bound of the integrand's peak, from samples.
        let near = self.cut.map_or(high, |c| c.place.min(high));
        let span = (near - low) / 64.0;
        let peak = (0..=64)
            .map(|i| low + span * f64::from(i))
            .chain([power, 0.0, 2.0])
            .map(|x| term(x, self.ln_ratio(x)))
            .fold(f64::NEG_INFINITY, f64::max);
        let cut = peak - 60.0 - ((last - first) as f64).ln();
        let inverse = 1.0 / (2.0 * self.sigma * self.sigma);
        let mut k = first;
        let mut length = BLOCK;
        while k <= last {
            let end = (k + length - 1).min(last);
            let (a, b) = (k as f64 * h, end as f64 * h);
            let steep = if power > 0.0 { b } else { a };
            let nearest = if a > 0.0 {
                a
            } else if b < 0.0 {
                b
            } else {
                0.0
            };
            // r^p is monotone in x, the Gaussian factor peaks at the point nearest to 0, chi falls.
            let bound =
                cap(power * self.ln_ratio(steep)) - nearest * nearest * inverse + self.ln_kept(a);
            if bound < cut {
                k = end + 1;
                length *= 2;
            } else if length > BLOCK {
                length = BLOCK;
            } else {
                (k..=end).for_each(&mut each);
                k = end + 1;
            }
        }
    }

    /// Nodes and weights for the characteristic function of the tilted loss, for frequencies up to `t`.
    pub fn tilted(&self, power: f64, ln_moment: f64, t: f64) -> Tilted {
        let h = self.spacing(power, ln_moment, t);
        let inverse = 1.0 / (2.0 * self.sigma * self.sigma);
        let offset = (h / self.sigma).ln() - ln_sqrt_two_pi() - ln_moment;
        let mut nodes = Tilted {
            spacing: h,
            ..Tilted::default()
        };
        let (mut dropped, mut roundings, mut slope, mut centre) = (0.0, 0.0, 0.0, 0.0);
        self.visit(
            power,
            false,
            h,
            |x, y| power * y - x * x * inverse + self.ln_kept(x),
            |lift| lift,
            |x, y, term| {
                let weight = (term + offset).exp();
                if weight < 1e-18 {
                    dropped += weight;
                    return;
                }
                roundings += weight * (2.0 * (power * y).abs() + term.abs() + offset.abs() + 2.0);
                slope += weight * y.abs();
                centre += weight * x;
                nodes.losses.push(y);
                nodes.weights.push(weight);
            },
        );
        // Ends beyond the range: below 1e-20 by its choice. Blocks skipped: below e^-60.
        nodes.fixed_error = dropped
            + 4.0 * UNIT * roundings
            + 2e-19
            + UNIT * (200.0 + nodes.losses.len() as f64 / 8.0);
        nodes.slope_error = 4.0 * UNIT * slope;
        nodes.centre = centre;
        nodes.set_moments();
        nodes
    }

    /// Total variation of the tilted loss's density, from above: |phi(t)| is at most this over t.
    ///
    /// The density in terms of x is `exp(p y - x^2 / (2 sigma^2)) chi sigma^2 / posterior`; its logarithmic derivative and
    /// itself are bounded factor by factor on small cells.
    pub fn total_variation(&self, power: f64, ln_moment: f64) -> f64 {
        let s2 = self.sigma * self.sigma;
        let (low, high) = self.range(power, false);
        // Without subsampling's posterior the density would peak at x = -1 on the far left.
        let low = low - 1.0;
        let offset = s2.ln() - ln_sqrt_two_pi() - self.sigma.ln() - ln_moment;
        let ln_posterior = |x: f64, y: f64| self.q.ln() + (2.0 * x - 1.0) / (2.0 * s2) - y;
        let mut total = 0.0;
        let (mut a, mut y_a) = (low, self.ln_ratio(low));
        let mut post_a = ln_posterior(a, y_a);
        let mut cells = 0;
        while a < high {
            cells += 1;
            if cells > 20_000 {
                return f64::INFINITY;
            }
            let rate = (power.abs() + 1.0) * post_a.exp() / s2 + 1.0 / s2;
            let b = (a + (0.02 * self.sigma).min(0.1 / rate).max(2e-3 * self.sigma)).min(high);
            let y_b = self.ln_ratio(b);
            let post_b = ln_posterior(b, y_b);
            let nearest = if a > 0.0 {
                a
            } else if b < 0.0 {
                b
            } else {
                0.0
            };
            let lift = if power > 0.0 {
                power * y_b
            } else {
                power * y_a
            };
            let top = lift - nearest * nearest / (2.0 * s2) - post_a + self.ln_kept(a) + offset;
            let (w_low, w_high) = if power > -1.0 {
                (post_a.exp(), post_b.exp())
            } else {
                (post_b.exp(), post_a.exp())
            };
            let fall = self.cut.map_or(0.0, |cut| {
                // -(ln chi)' is the hazard, at most (u + sqrt(u^2 + 4)) / 2 in units of the width.
                let u = (b - cut.place) / cut.width;
                if u < -9.0 {
                    1e-15
                } else {
                    0.5 * (u + (u * u + 4.0).sqrt()) / cut.width
                }
            });
            let rise = ((power + 1.0) * w_high - 1.0 - a) / s2;
            let drop = ((power + 1.0) * w_low - 1.0 - b) / s2 - fall;
            total += top.exp() * rise.max(-drop).max(0.0) * (b - a);
            (a, y_a, post_a) = (b, y_b, post_b);
        }
        // Beyond both ends the density is monotone and tiny.
        let end = |x: f64, y: f64| {
            (power * y - x * x / (2.0 * s2) - ln_posterior(x, y) + self.ln_kept(x) + offset).exp()
        };
        (total + end(low, self.ln_ratio(low)) + end(high, self.ln_ratio(high))) * (1.0 + 1e-9)
    }

    /// Lower bound on `1 - |phi(t)|` valid for EVERY t >= `t_min`, phi the characteristic function of the tilted loss.
    ///
    /// The loss's density is at least its minimum on each of several disjoint cells; each cell then contributes a uniform
    /// component whose transform is at most 2 / (t length) (`docs/proofs/pld-certification.md`, section 4).
    pub fn decay(&self, power: f64, ln_moment: f64, t_min: f64, centre: f64, few: bool) -> f64 {
        let s2 = self.sigma * self.sigma;
        let (_, high) = self.range(power, false);
        let mut best: f64 = 0.0;
        let (grain, cells) = if few { (0.02, 600) } else { (0.15, 64) };
        for (reach, factor) in [(4.5, 8.0), (3.0, 5.0), (1.5, 3.5), (0.0, 5.0), (4.0, 40.0)] {
            let length = factor / t_min;
            let mut a = centre - reach * self.sigma;
            let mut total = 0.0;
            let mut y_a = self.ln_ratio(a);
            for _ in 0..cells {
                let b = self.inverse(y_a + length).max(a + grain * self.sigma);
                if !(b.is_finite() && b < high) {
                    break;
                }
                let y_b = self.ln_ratio(b);
                let pieces = (((b - a) / (0.2 * self.sigma)).ceil() as usize).clamp(1, 16);
                let width = (b - a) / pieces as f64;
                let mut floor = f64::INFINITY;
                let (mut left, mut y_left) = (a, y_a);
                for i in 1..=pieces {
                    let right = if i == pieces { b } else { a + width * i as f64 };
                    let y_right = if i == pieces {
                        y_b
                    } else {
                        self.ln_ratio(right)
                    };
                    // Density of the loss = density of x / (dy/dx), dy/dx = posterior / sigma^2, increasing in x.
                    let z_right = (2.0 * right - 1.0) / (2.0 * s2);
                    let ln_slope = self.q.ln() + z_right - y_right - s2.ln();
                    let lift = if power > 0.0 {
                        power * y_left
                    } else {
                        power * y_right
                    };
                    let square = (left * left).max(right * right);
                    floor = floor.min(lift - square / (2.0 * s2) - ln_slope + self.ln_kept(right));
                    left = right;
                    y_left = y_right;
                }
                let ell = y_b - y_a;
                let mass = ell * (floor - ln_sqrt_two_pi() - self.sigma.ln() - ln_moment).exp();
                total += mass * (1.0 - 2.0 / (ell * t_min)).max(0.0);
                (a, y_a) = (b, y_b);
            }
            best = best.max(total);
        }
        // A hair off for rounding; it cannot exceed one.
        (best * (1.0 - 1e-9)).clamp(0.0, 1.0 - 1e-9)
    }
}

/// A discrete stand-in for the tilted loss.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tilted {
    pub losses: Vec<f64>,
    pub weights: Vec<f64>,
    /// Error of the characteristic function apart from the trapezoidal error and the part that grows with frequency.
    pub fixed_error: f64,
    /// Error per unit of frequency.
    pub slope_error: f64,
    pub spacing: f64,
    /// Mean of x under the tilted law.
    pub centre: f64,
    /// Mean of ln r under the tilted law.
    pub mean: f64,
    /// Variance of ln r under the tilted law.
    pub variance: f64,
}

impl Tilted {
    fn set_moments(&mut self) {
        let pairs = || self.losses.iter().zip(&self.weights);
        let mean: f64 = pairs().map(|(y, w)| y * w).sum();
        self.variance = pairs().map(|(y, w)| (y - mean).powi(2) * w).sum();
        self.mean = mean;
    }

    /// phi(j delta) for j = 0..count as (re, im) pairs.
    pub fn characteristic(&self, delta: f64, count: usize) -> Vec<(f64, f64)> {
        const LANES: usize = 8;
        const FRESH: usize = 64;
        let padded = self.losses.len().div_ceil(LANES) * LANES;
        let mut weights = self.weights.clone();
        weights.resize(padded, 0.0);
        let mut losses = self.losses.clone();
        losses.resize(padded, 0.0);
        let (step_im, step_re): (Vec<f64>, Vec<f64>) =
            losses.iter().map(|y| (y * delta).sin_cos()).unzip();
        let (mut re, mut im) = (weights.clone(), vec![0.0; padded]);
        let mut out = Vec::with_capacity(count);
        for j in 0..count {
            if j > 0 && j % FRESH == 0 {
                // Start afresh now and then, so that rotations' rounding does not pile up.
                let t = delta * j as f64;
                for k in 0..padded {
                    let (s, c) = (losses[k] * t).sin_cos();
                    re[k] = weights[k] * c;
                    im[k] = weights[k] * s;
                }
            }
            let (mut sum_re, mut sum_im) = ([0.0; LANES], [0.0; LANES]);
            let chunks = re.chunks_exact_mut(LANES).zip(im.chunks_exact_mut(LANES));
            let steps = step_re.chunks_exact(LANES).zip(step_im.chunks_exact(LANES));
            for ((r, i), (c, s)) in chunks.zip(steps) {
                for l in 0..LANES {
                    sum_re[l] += r[l];
                    sum_im[l] += i[l];
                    let turned = r[l] * c[l] - i[l] * s[l];
                    i[l] = r[l] * s[l] + i[l] * c[l];
                    r[l] = turned;
                }
            }
            out.push((sum_re.iter().sum(), sum_im.iter().sum()));
        }
        out
    }
}

/// ln of r^p - 1 - p (r - 1) with y = ln r; minus infinity at r = 1.
fn ln_excess(power: f64, y: f64) -> f64 {
    let lift = power * y;
    if lift > 40.0 {
        // (1 + p (r - 1)) r^-p, without forming r, which may overflow.
        return lift + (-((1.0 - power) * (-lift).exp() + power * (y - lift).exp())).ln_1p();
    }
    let v = y.exp_m1();
    if v.abs() < 0.1 && (power * v).abs() < 0.2 {
        // Binomial series from the second term: all the digits where the direct form would cancel.
        let mut term = 0.5 * power * (power - 1.0) * v * v;
        let mut sum = term;
        for k in 3..60 {
            term *= (power - k as f64 + 1.0) / k as f64 * v;
            sum += term;
            if term.abs() <= 1e-17 * sum.abs() {
                break;
            }
        }
        return sum.ln();
    }
    (lift.exp_m1() - power * v).ln()
}

/// Growth of |r(x + i theta sigma^2)|^p over r(x)^p for a negative power: at most cos(theta/2)^p.
fn corner(power: f64, theta: f64) -> f64 {
    if power < 0.0 {
        power * (0.5 * theta).cos().ln()
    } else {
        0.0
    }
}
