//! Denoising of released gradients: post-processing, free of privacy cost.

use burn::tensor::Tensor;

use crate::accumulate::StepRelease;
use crate::error::{OptimError, same_length};

/// A filter over the steps' released gradients, `f <- (1 - k) f + k g`: the update of the simplified Kalman filter of
/// Zhang et al. 2025 (DiSK, Algorithm 1), whose prediction step is to take the gradients at
/// [`GradientFilter::look_ahead`]. The first step's gradient is taken whole.
///
/// With gain `k = 1` gradients pass unchanged, bit for bit.
#[derive(Debug, Clone, Default)]
pub struct GradientFilter {
    /// Per group: the filtered gradients, and the variance of the noise in each coordinate.
    state: Vec<(Vec<Tensor<1>>, f64)>,
}

impl GradientFilter {
    /// The smallest gain worth setting: below it a run of a few hundred steps hardly hears its gradients.
    pub const SMALLEST_GAIN: f64 = 0.05;

    /// A filter that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A filter restored from its parts: per group the filtered gradients and the noise variance.
    #[must_use]
    pub fn from_parts(state: Vec<(Vec<Tensor<1>>, f64)>) -> Self {
        Self { state }
    }

    /// Per group the filtered gradients and the noise variance, for a checkpoint.
    #[must_use]
    pub fn parts(&self) -> &[(Vec<Tensor<1>>, f64)] {
        &self.state
    }

    /// How far along its last displacement a parameter should be moved before the gradients are taken, in lengths of that
    /// displacement: `(1 - k) / k`, at which DiSK's two gradients of a step become one (its gamma).
    #[must_use]
    pub fn look_ahead(gain: f64) -> f64 {
        if gain > 0.0 && gain < 1.0 {
            (1.0 - gain) / gain
        } else {
            0.0
        }
    }

    /// Replaces a release's gradients by the filtered ones, and their noise by what is left of it. A gain outside (0, 1), or
    /// one that is no number, counts as one.
    ///
    /// # Errors
    /// A release of other groups than the last one's.
    pub fn apply(&mut self, release: &mut StepRelease, gain: f64) -> Result<(), OptimError> {
        let gain = if gain > 0.0 && gain < 1.0 { gain } else { 1.0 };
        if !self.state.is_empty() {
            same_length("filtered groups", self.state.len(), release.groups.len())?;
        }
        for (index, group) in release.groups.iter_mut().enumerate() {
            let variance = group.noise_std * group.noise_std;
            let Some((last, known)) = self.state.get_mut(index).filter(|_| gain < 1.0) else {
                continue;
            };
            same_length("filtered tensors", last.len(), group.gradients.len())?;
            for (last, new) in last.iter().zip(&mut group.gradients) {
                *new = last.clone().mul_scalar(1.0 - gain) + new.clone().mul_scalar(gain);
            }
            group.noise_std = ((1.0 - gain).powi(2) * *known + gain * gain * variance).sqrt();
        }
        self.state = release
            .groups
            .iter()
            .map(|group| (group.gradients.clone(), group.noise_std * group.noise_std))
            .collect();
        Ok(())
    }
}
