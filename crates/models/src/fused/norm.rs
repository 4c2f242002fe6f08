//! Layer and root-mean-square normalisation and their gradients by the input, row by row.

use rayon::prelude::*;

use super::math::{self, by_lanes};
use super::product::Shared;

/// Which normalisation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// `(x - mean) / sqrt(variance + epsilon)`.
    Layer { epsilon: f64 },
    /// `x / sqrt(mean square + epsilon)`.
    RootMeanSquare { epsilon: f64 },
}

/// Elements a thread takes at a time.
const GRAIN: usize = 1 << 14;

impl Kind {
    /// The row's mean (zero for the second kind) and the factor that normalises it.
    #[inline(always)]
    fn moments(self, x: &[f32]) -> (f32, f32) {
        let size = x.len() as f32;
        let add = |sum: f32, value: f32| sum + value;
        match self {
            Self::Layer { epsilon } => {
                let mean = by_lanes(x, 0.0, add) / size;
                let square = squares(x, mean) / size;
                (mean, (1.0 / (f64::from(square) + epsilon).sqrt()) as f32)
            }
            Self::RootMeanSquare { epsilon } => {
                let square = squares(x, 0.0) / size;
                (0.0, (1.0 / (f64::from(square) + epsilon).sqrt()) as f32)
            }
        }
    }

    /// Writes every element of `y`. Only layer norms use the bias.
    pub(crate) fn forward(self, x: &[f32], weight: &[f32], bias: &[f32], y: Shared) {
        let width = weight.len();
        let rows = (GRAIN / width).max(1) * width;
        x.par_chunks(rows).enumerate().for_each(|(index, x)| {
            // SAFETY: chunks do not overlap.
            let y = unsafe { y.slice(index * rows..index * rows + x.len()) };
            forward(self, x, weight, bias, y);
        });
    }

    /// Turns the gradient by the output into that by the input: with `h` the normalised row and
    /// `u = g w`, `(u - mean(u) - h mean(u h)) inverse`, the first mean for layer norms only.
    pub(crate) fn backward(self, x: &[f32], weight: &[f32], grad: &mut [f32]) {
        let width = weight.len();
        let rows = (GRAIN / width).max(1) * width;
        grad.par_chunks_mut(rows)
            .zip(x.par_chunks(rows))
            .for_each(|(grad, x)| backward(self, x, weight, grad));
    }
}

math::widest! {
    fn forward(kind: Kind, x: &[f32], weight: &[f32], bias: &[f32], y: &mut [f32]) {
        let width = weight.len();
        for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            let (mean, inverse) = kind.moments(x);
            match kind {
                Kind::Layer { .. } => {
                    for (((y, x), weight), bias) in y.iter_mut().zip(x).zip(weight).zip(bias) {
                        *y = (x - mean) * inverse * weight + bias;
                    }
                }
                Kind::RootMeanSquare { .. } => {
                    for ((y, x), weight) in y.iter_mut().zip(x).zip(weight) {
                        *y = x * inverse * weight;
                    }
                }
            }
        }
    }
}

math::widest! {
    fn backward(kind: Kind, x: &[f32], weight: &[f32], grad: &mut [f32]) {
        let width = weight.len();
        let add = |sum: f32, value: f32| sum + value;
        for (grad, x) in grad.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            let (mean, inverse) = kind.moments(x);
            for (grad, weight) in grad.iter_mut().zip(weight) {
                *grad *= weight;
            }
            let centre = match kind {
                Kind::Layer { .. } => by_lanes(grad, 0.0, add) / width as f32,
                Kind::RootMeanSquare { .. } => 0.0,
            };
            let slope = product(grad, x, mean) * inverse * inverse / width as f32;
            for (grad, x) in grad.iter_mut().zip(x) {
                *grad = (*grad - centre - (x - mean) * slope) * inverse;
            }
        }
    }
}

/// Sum of `(x - mean)^2`.
#[inline(always)]
fn squares(x: &[f32], mean: f32) -> f32 {
    product_of(x, |_, x| (x - mean) * (x - mean))
}

/// Sum of `g (x - mean)`.
#[inline(always)]
fn product(grad: &[f32], x: &[f32], mean: f32) -> f32 {
    product_of(x, |index, x| grad[index] * (x - mean))
}

/// Sums over sixteen interleaved parts: one chain of additions cannot be vectorised.
#[inline(always)]
fn product_of(x: &[f32], term: impl Fn(usize, f32) -> f32) -> f32 {
    const LANES: usize = 16;
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for (number, chunk) in chunks.iter().enumerate() {
        for (lane, (sum, x)) in lanes.iter_mut().zip(chunk).enumerate() {
            *sum += term(number * LANES + lane, *x);
        }
    }
    let start = chunks.len() * LANES;
    let tail = rest.iter().enumerate();
    lanes.iter().sum::<f32>() + tail.map(|(index, x)| term(start + index, *x)).sum::<f32>()
}
