//! Powers and products of discrete Fourier transforms, and how far rounding may have moved the result.
//!
//! # Precision
//! A transform of length N is taken to be right to `RADIX_ERROR log2(N)` units of roundoff in the 2-norm, relative to the
//! input's: more than twice what is proved for mixed-radix algorithms with twiddles right to an ulp (Higham 2002, Theorem
//! 24.2; Schatzman 1996).

use realfft::RealFftPlanner;
use realfft::num_complex::Complex;

use crate::special::compensated_sum;
use crate::tilt::UNIT;

/// Units of roundoff for each factor of two of the length.
const RADIX_ERROR: f64 = 16.0;
/// Masses this near to no loss may be summed directly, ...
const MOST_NEAR: usize = 64;
/// ... until no more than this is left, ...
const LITTLE_MASS: f64 = 1e-4;
/// ... if they are at least this much.
const MUCH_MASS: f64 = 0.5;

/// The product of the transforms composed so far.
pub(crate) struct Transform {
    length: usize,
    planner: RealFftPlanner<f64>,
    product: Vec<Frequency>,
    /// 2-norm, over the whole line, of the product's error from the factors' own transforms; divided by sqrt(length).
    error: f64,
}

/// The product at one frequency, as a logarithm.
#[derive(Debug, Clone, Copy, Default)]
struct Frequency {
    ln_modulus: f64,
    argument: f64,
    /// The value is right up to a factor e^w, |w| at most this, apart from [`Transform::error`].
    off: f64,
}

impl Frequency {
    /// Composes `n` steps of transform `1 + z`, z being off by at most `error`.
    fn compose(&mut self, z: Complex<f64>, error: f64, n: f64) {
        let size = z.norm();
        let (ln, extra) = if size < 0.5 {
            (0.5 * (2.0 * z.re + z.norm_sqr()).ln_1p(), 0.0)
        } else {
            let modulus = (1.0 + z.re).hypot(z.im).max(f64::MIN_POSITIVE);
            (modulus.ln(), 1.0)
        };
        let argument = z.im.atan2(1.0 + z.re);
        let error = error + 8.0 * UNIT * size + f64::MIN_POSITIVE;
        self.ln_modulus += n * ln;
        self.argument += n * argument;
        let rounding = 6.0 * UNIT * (n * (ln.abs() + argument.abs() + extra))
            + 2.0 * UNIT * (self.ln_modulus.abs() + self.argument.abs());
        self.off += n * (error * (-ln).exp()).ln_1p() + 2.0 * rounding;
    }

    fn value(&self) -> Complex<f64> {
        Complex::from_polar(self.ln_modulus.exp(), self.argument)
    }

    /// How far off the value is.
    fn error(&self) -> f64 {
        let off = self.off * (1.0 + 1e-9) + 16.0 * UNIT;
        if off < 1.0 {
            self.ln_modulus.exp() * off.exp_m1()
        } else {
            (self.ln_modulus + off).exp()
        }
    }
}

/// Masses next to no loss, whose transform less their mass is summed without it ever being added and taken off again.
struct Near {
    /// Mass further up (down) than m points, m = 0, 1, ...
    above: Vec<f64>,
    below: Vec<f64>,
    /// Sum of them.
    total: f64,
}

impl Near {
    /// Takes the masses within a few points of no loss from the line (index 0 is no loss), if most mass is there.
    fn take(line: &mut [f64]) -> Self {
        let length = line.len();
        let most = MOST_NEAR.min(length / 4);
        let all: f64 = line.iter().sum();
        let mut mass = line[0];
        let mut reach = 0;
        while reach < most && all - mass > LITTLE_MASS {
            reach += 1;
            mass += line[reach] + line[length - reach];
        }
        if mass < MUCH_MASS {
            return Self {
                above: Vec::new(),
                below: Vec::new(),
                total: 0.0,
            };
        }
        line[0] = 0.0;
        let mut tails = |at: &dyn Fn(usize) -> usize| {
            let mut tails = vec![0.0; reach];
            let mut tail = 0.0;
            for m in (0..reach).rev() {
                tail += std::mem::take(&mut line[at(m + 1)]);
                tails[m] = tail;
            }
            tails
        };
        let above = tails(&|k| k);
        let below = tails(&|k| length - k);
        let total = above.iter().chain(&below).sum();
        Self {
            above,
            below,
            total,
        }
    }

    /// The sum of mass times (e^(-2 pi i j k / N) - 1), and its error: `sum w_k (u^k - 1) = (u - 1) sum over m of (mass above m) u^m`.
    fn at(&self, j: usize, length: usize) -> (Complex<f64>, f64) {
        if self.total == 0.0 {
            return (Complex::default(), 0.0);
        }
        let angle = -2.0 * std::f64::consts::PI * j as f64 / length as f64;
        let root = Complex::from_polar(1.0, angle);
        let half = (0.5 * angle).sin();
        let less = Complex::new(-2.0 * half * half, angle.sin());
        let horner = |tails: &[f64], u: Complex<f64>| {
            let add = |sum: Complex<f64>, t: &f64| sum * u + t;
            tails.iter().rev().fold(Complex::default(), add)
        };
        let value =
            less * horner(&self.above, root) + less.conj() * horner(&self.below, root.conj());
        let operations = 8.0 * self.above.len() as f64 + 24.0;
        (value, operations * UNIT * less.norm() * self.total)
    }
}

impl Transform {
    /// The transform of certainly no loss.
    pub fn new(length: usize) -> Self {
        Self {
            length,
            planner: RealFftPlanner::new(),
            product: vec![Frequency::default(); length / 2 + 1],
            error: 0.0,
        }
    }

    /// Relative error of one transform in the 2-norm.
    fn relative_error(&self) -> f64 {
        RADIX_ERROR * UNIT * (self.length as f64).log2()
    }

    /// Composes `n` steps with these masses (of sum one) at the lattice points from `first` on.
    ///
    /// None where rounding would swamp the result.
    pub fn compose(&mut self, weights: &[f64], first: i64, n: u64) -> Option<()> {
        let length = self.length as i64;
        let mut line = vec![0.0; self.length];
        for (k, w) in weights.iter().enumerate() {
            line[(first + k as i64).rem_euclid(length) as usize] += w;
        }
        let near = Near::take(&mut line);
        let rest = compensated_sum(line.iter().copied());
        let norm = line.iter().map(|w| w * w).sum::<f64>().sqrt();
        let forward = self.planner.plan_fft_forward(self.length);
        let mut spectrum = forward.make_output_vec();
        forward.process(&mut line, &mut spectrum).ok()?;
        for (j, (p, s)) in self.product.iter_mut().zip(&spectrum).enumerate() {
            let far = s - rest;
            let (sum, error) = near.at(j, self.length);
            p.compose(
                far + sum,
                error + 4.0 * UNIT * (rest + far.norm()),
                n as f64,
            );
        }
        // Every exact entry is at most one in modulus; a computed one exceeds it by at most the 2-norm of its error.
        let relative = self.relative_error() * norm;
        let over = relative * (self.length as f64).sqrt();
        let growth = (n as f64 * over).exp();
        self.error = (self.error + n as f64 * relative) * growth;
        (growth < 1.1).then_some(())
    }

    /// The composed masses from lattice index `start` on, and the 2-norm of their error.
    pub fn masses(&self, start: i64) -> (Vec<f64>, f64) {
        let inverse = RealFftPlanner::new().plan_fft_inverse(self.length);
        let mut product: Vec<_> = self.product.iter().map(Frequency::value).collect();
        // What should be real is made so; the true values are.
        product[0].im = 0.0;
        if self.length.is_multiple_of(2)
            && let Some(last) = product.last_mut()
        {
            last.im = 0.0;
        }
        let mut line = inverse.make_output_vec();
        let done = inverse.process(&mut product, &mut line).is_ok();
        let scale = 1.0 / self.length as f64;
        // Rounding may leave masses below zero; the exact ones are not.
        let masses: Vec<f64> = (0..self.length as i64)
            .map(|k| (line[(start + k).rem_euclid(self.length as i64) as usize] * scale).max(0.0))
            .collect();
        let norm = line.iter().map(|m| m * m).sum::<f64>().sqrt() * scale;
        // Each frequency but the first stands for two.
        let squares = self.product.iter().map(|p| p.error().powi(2));
        let local = (2.0 * scale * squares.sum::<f64>()).sqrt() * (1.0 + 1e-9);
        let error = self.error + local;
        let error = error + 1.1 * (self.relative_error() + 4.0 * UNIT) * (norm + error);
        (masses, if done { error } else { f64::INFINITY })
    }
}

/// The least even length of at least this many points whose transform is fast.
pub(crate) fn good_length(points: usize) -> usize {
    let power = points.next_power_of_two().max(64);
    [power / 8 * 5, power / 4 * 3, power]
        .into_iter()
        .find(|n| *n >= points)
        .unwrap_or(power)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Two-point law {0: 1 - p, k: p} composed n times is binomial, known in closed form; so are the masses' errors.
    #[test]
    fn binomial_masses_are_within_the_error_said() {
        let laws: [(f64, i64, u64); 5] = [
            (1e-6, 1, 100_000),
            (1e-4, 300, 2000),
            (0.3, 1, 50),
            (1e-5, 70, 1_000_000),
            (0.3, -5, 20),
        ];
        for (p, k, n) in laws {
            let mut transform = Transform::new(4096);
            let mut weights = vec![0.0; k.unsigned_abs() as usize + 1];
            let (zero, other) = if k > 0 {
                (0, k as usize)
            } else {
                (-k as usize, 0)
            };
            (weights[zero], weights[other]) = (1.0 - p, p);
            transform.compose(&weights, k.min(0), n).unwrap();
            let start = if k > 0 { -8 } else { -4000 };
            let (masses, error) = transform.masses(start);
            let mut squares = 0.0;
            for m in 0..(4000 / k.unsigned_abs()).min(40) {
                let ln_choose: f64 = (0..m).map(|i| ((n - i) as f64 / (i + 1) as f64).ln()).sum();
                let exact = if m > n {
                    0.0
                } else {
                    (ln_choose + m as f64 * f64::ln(p) + (n - m) as f64 * f64::ln_1p(-p)).exp()
                };
                squares += (masses[(m as i64 * k - start) as usize] - exact).powi(2);
            }
            // The closed form itself is good to about 1e-14.
            assert!(
                squares.sqrt() <= error + 1e-13,
                "{p} {k} {n}: {squares:e} {error:e}"
            );
            assert!(error < 1e-9, "{p} {k} {n}: {error:e}");
        }
    }
}
