//! Powers and products of discrete Fourier transforms, and how far rounding may have moved the result.
//!
//! # Precision
//! A transform of length N is taken to be right to `RADIX_ERROR log2(N)` units of roundoff in the 2-norm, relative to the
//! input's: more than twice what is proved for mixed-radix algorithms with twiddles right to an ulp (Higham 2002, Theorem
//! 24.2; Schatzman 1996).

use realfft::RealFftPlanner;
use realfft::num_complex::Complex;

use crate::tilt::UNIT;

/// Units of roundoff for each factor of two of the length.
const RADIX_ERROR: f64 = 16.0;

/// The product of the transforms composed so far.
pub(crate) struct Transform {
    length: usize,
    planner: RealFftPlanner<f64>,
    product: Vec<Complex<f64>>,
    /// 2-norm, over the whole line, of the product's error from the factors' own errors; divided by sqrt(length).
    error: f64,
    /// Multiplications in any one entry.
    multiplications: f64,
}

impl Transform {
    /// The transform of certainly no loss.
    pub fn new(length: usize) -> Self {
        Self {
            length,
            planner: RealFftPlanner::new(),
            product: vec![Complex::new(1.0, 0.0); length / 2 + 1],
            error: 0.0,
            multiplications: 0.0,
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
        let norm = line.iter().map(|w| w * w).sum::<f64>().sqrt();
        let forward = self.planner.plan_fft_forward(self.length);
        let mut spectrum = forward.make_output_vec();
        forward.process(&mut line, &mut spectrum).ok()?;
        let power = i32::try_from(n).ok()?;
        for (p, s) in self.product.iter_mut().zip(&spectrum) {
            *p *= s.powi(power);
        }
        // Every exact entry is at most one in modulus; a computed one exceeds it by at most the 2-norm of its error.
        let relative = self.relative_error() * norm;
        let over = relative * (self.length as f64).sqrt();
        let growth = (n as f64 * over).exp();
        self.error = (self.error + n as f64 * relative) * growth;
        self.multiplications += n as f64 + 1.0;
        (growth < 1.1).then_some(())
    }

    /// The composed masses from lattice index `start` on, and the 2-norm of their error.
    pub fn masses(&mut self, start: i64) -> (Vec<f64>, f64) {
        let inverse = self.planner.plan_fft_inverse(self.length);
        // What should be real is made so; the true values are.
        self.product[0].im = 0.0;
        if self.length.is_multiple_of(2)
            && let Some(last) = self.product.last_mut()
        {
            last.im = 0.0;
        }
        let mut line = inverse.make_output_vec();
        let done = inverse.process(&mut self.product, &mut line).is_ok();
        let scale = 1.0 / self.length as f64;
        // Rounding may leave masses below zero; the exact ones are not.
        let masses: Vec<f64> = (0..self.length as i64)
            .map(|k| (line[(start + k).rem_euclid(self.length as i64) as usize] * scale).max(0.0))
            .collect();
        let norm = line.iter().map(|m| m * m).sum::<f64>().sqrt() * scale;
        let rounding = self.relative_error() + 4.0 * UNIT * self.multiplications;
        let error = self.error + 1.1 * rounding * (norm + self.error);
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
