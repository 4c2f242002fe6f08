//! What normalisation layers do before they scale, and the scale's gradient in one pass.

use burn::tensor::{DType, Tensor, TensorData};
use rayon::prelude::*;

use super::factor::time_sums;
use super::tap::supports;

/// A normalisation over the last dimension, before scale and shift.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Normalisation {
    /// `(x - mean) / sqrt(variance + epsilon)`: layer normalisation.
    Layer {
        /// Added to the variance.
        epsilon: f64,
    },
    /// `x / sqrt(mean square + epsilon)`: root-mean-square normalisation.
    RootMeanSquare {
        /// Added to the mean square.
        epsilon: f64,
    },
}

impl Normalisation {
    /// Normalises.
    #[must_use]
    pub fn apply(self, x: Tensor<3>) -> Tensor<3> {
        let (x, epsilon) = match self {
            Self::Layer { epsilon } => (x.clone() - x.mean_dim(2), epsilon),
            Self::RootMeanSquare { epsilon } => (x, epsilon),
        };
        let mean_square = (x.clone() * x.clone()).mean_dim(2);
        x * (mean_square + epsilon).sqrt().recip()
    }

    /// `sum_t normalise(input[t]) * error[t]`, `[examples, width]`.
    pub(super) fn products(self, input: Tensor<3>, error: Tensor<3>) -> Tensor<2> {
        let single = input.dtype() == DType::F32 && error.dtype() == DType::F32;
        if !(single && supports(&input.device())) {
            return time_sums(self.apply(input) * error);
        }
        let [examples, time, width] = error.dims();
        let device = error.device();
        let (x, e) = (input.into_data(), error.into_data());
        let (x, e) = (
            x.as_slice::<f32>().unwrap_or(&[]),
            e.as_slice::<f32>().unwrap_or(&[]),
        );
        let size = time * width;
        let mut sums = vec![0.0_f32; examples * width];
        sums.par_chunks_mut(width.max(1))
            .zip(x.par_chunks(size.max(1)).zip(e.par_chunks(size.max(1))))
            .for_each(|(sum, (x, e))| {
                for (x, e) in x.chunks_exact(width).zip(e.chunks_exact(width)) {
                    let (mean, inverse) = self.statistics(x);
                    for (sum, (x, e)) in sum.iter_mut().zip(x.iter().zip(e)) {
                        *sum += (x - mean) * inverse * e;
                    }
                }
            });
        Tensor::from_data(TensorData::new(sums, [examples, width]), &device)
    }

    /// What is taken from a row, and what it is then multiplied by.
    fn statistics(self, row: &[f32]) -> (f32, f32) {
        let count = row.len() as f64;
        let (mean, epsilon) = match self {
            Self::Layer { epsilon } => ((by_lanes(row, |x| x) / count) as f32, epsilon),
            Self::RootMeanSquare { epsilon } => (0.0, epsilon),
        };
        let square = by_lanes(row, |x| (x - mean) * (x - mean)) / count;
        (mean, (1.0 / (square + epsilon).sqrt()) as f32)
    }
}

/// Sum of a function over a row with eight accumulators, so that the loop vectorises.
fn by_lanes(row: &[f32], of: impl Fn(f32) -> f32) -> f64 {
    let mut lanes = [0.0_f32; 8];
    let chunks = row.chunks_exact(8);
    let rest: f64 = chunks.remainder().iter().map(|x| f64::from(of(*x))).sum();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += of(*x);
        }
    }
    lanes.iter().map(|lane| f64::from(*lane)).sum::<f64>() + rest
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use burn::tensor::{Device, Distribution, Tensor};

    use super::*;

    #[test]
    fn one_pass_gives_what_the_operations_give() {
        let device = Device::flex();
        for kind in [
            Normalisation::Layer { epsilon: 1e-5 },
            Normalisation::RootMeanSquare { epsilon: 1e-2 },
        ] {
            let random =
                || Tensor::<3>::random([3, 5, 21], Distribution::Normal(0.7, 2.0), &device);
            let (x, e) = (random(), random());
            let expected = (kind.apply(x.clone()) * e.clone())
                .sum_dim(1)
                .reshape([3, 21]);
            let difference = (kind.products(x, e) - expected)
                .abs()
                .max()
                .into_scalar::<f32>();
            assert!(difference < 2e-5, "{kind:?}: {difference}");
        }
    }
}
