//! Moments of the privacy loss of one Poisson-subsampled Gaussian step, by the trapezoidal rule.
//!
//! Everything is an integral over x ~ N(0, sigma^2) of a power of the likelihood ratio
//! `r(x) = 1 - q + q exp((2x - 1) / (2 sigma^2))`, whose exponent's real part is called the power here: the remove
//! direction at saddle c has power c + 1, the add direction has power -c. The integrands are analytic in the strip
//! `|Im x| < pi sigma^2`, where the trapezoidal rule converges geometrically with a known constant
//! (`docs/proofs/pld-certification.md`, section 2).

use std::f64::consts::PI;

use crate::special::ln_sqrt_two_pi;

/// Standard deviations kept on each side of the integrand's modes: the tail beyond is below 1e-20.
const TAIL_SIGMAS: f64 = 9.6;
/// The trapezoidal rule's error, relative to the integral of the modulus, is at most exp(-this).
const ACCURACY_NATS: f64 = 41.0;
/// Unit roundoff of f64.
pub(crate) const UNIT: f64 = f64::EPSILON / 2.0;

/// One step's mechanism: 0 < q < 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Step {
    pub q: f64,
    pub sigma: f64,
}

impl Step {
    /// A step.
    pub fn new(q: f64, sigma: f64) -> Self {
        Self { q, sigma }
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

    /// Angles theta tried for the strip's half-width theta sigma^2. Small angles are best for large sigma: without the last one,
    /// the best where the Gaussian factor alone counts, the grid would grow with sigma.
    fn angles(&self) -> impl Iterator<Item = f64> {
        let usual = (0..26).map(|i| 3.1 * f64::powi(0.62, i));
        let last = (2.0 * ACCURACY_NATS).sqrt() / self.sigma;
        usual.chain((last < 2e-5).then_some(last))
    }

    /// Upper bound on ln of the integral of the modulus at x + i theta sigma^2 over the integral on the real axis.
    fn ln_growth(&self, power: f64, t: f64, theta: f64) -> f64 {
        0.5 * (self.sigma * theta).powi(2) + corner(power, theta) + t * theta
    }

    /// Spacing of the trapezoidal rule for frequencies up to `t`.
    pub fn spacing(&self, power: f64, t: f64) -> f64 {
        let s2 = self.sigma * self.sigma;
        let cost = self
            .angles()
            .map(|theta| (ACCURACY_NATS + self.ln_growth(power, t, theta)) / theta)
            .fold(f64::INFINITY, f64::min);
        2.0 * PI * s2 / cost
    }

    /// Bound on the trapezoidal error at frequency `t`, relative to the integral of the modulus.
    pub fn trapezoid_error(&self, power: f64, t: f64, spacing: f64) -> f64 {
        let s2 = self.sigma * self.sigma;
        let exponent = self
            .angles()
            .map(|theta| {
                let decay = 2.0 * PI * s2 * theta / spacing;
                self.ln_growth(power, t, theta) - (decay.exp_m1()).ln().min(decay)
            })
            .fold(f64::INFINITY, f64::min);
        2.0 * exponent.exp()
    }

    /// Interval outside which the integrand of this power carries less than about 1e-20 of the integral.
    fn range(&self, power: f64, second_moment: bool) -> (f64, f64) {
        let top = if second_moment {
            power.max(2.0)
        } else {
            power.max(0.0)
        };
        let low = power.min(0.0) - TAIL_SIGMAS * self.sigma;
        let high = top + TAIL_SIGMAS * self.sigma;
        (low, high)
    }

    /// ln E[r(x)^power], to about 1e-13 relative even where it is tiny.
    ///
    /// Integrates `r^p - 1 - p (r - 1)`, which is never negative for p outside (0, 1), instead of `r^p`: E[r - 1] = 0.
    pub fn ln_moment(&self, power: f64) -> f64 {
        let h = self.spacing(power, 0.0);
        let inverse = 1.0 / (2.0 * self.sigma * self.sigma);
        let mut peak = f64::NEG_INFINITY;
        let mut sum = 0.0;
        let constant = power.abs().ln_1p();
        self.visit(
            power,
            true,
            h,
            |x, y| ln_excess(power, y) - x * x * inverse,
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
        if ln_excess_moment > 30.0 {
            ln_excess_moment + (-ln_excess_moment).exp().ln_1p()
        } else {
            ln_excess_moment.exp().ln_1p()
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
        let span = (high - low) / 64.0;
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
            // r^p is monotone in x, the Gaussian factor peaks at the point nearest to 0.
            let bound = cap(power * self.ln_ratio(steep)) - nearest * nearest * inverse;
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
        let h = self.spacing(power, t);
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
            |x, y| power * y - x * x * inverse,
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
    /// The density in terms of x is `exp(p y - x^2 / (2 sigma^2)) sigma^2 / posterior`; its logarithmic derivative and
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
            let top = lift - nearest * nearest / (2.0 * s2) - post_a + offset;
            let (w_low, w_high) = if power > -1.0 {
                (post_a.exp(), post_b.exp())
            } else {
                (post_b.exp(), post_a.exp())
            };
            let rise = ((power + 1.0) * w_high - 1.0 - a) / s2;
            let drop = ((power + 1.0) * w_low - 1.0 - b) / s2;
            total += top.exp() * rise.max(-drop).max(0.0) * (b - a);
            (a, y_a, post_a) = (b, y_b, post_b);
        }
        // Beyond both ends the density is monotone and tiny.
        let end =
            |x: f64, y: f64| (power * y - x * x / (2.0 * s2) - ln_posterior(x, y) + offset).exp();
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
                    floor = floor.min(lift - square / (2.0 * s2) - ln_slope);
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
