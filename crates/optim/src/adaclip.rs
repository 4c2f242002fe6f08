//! Clipping in coordinates of one's own: an affine map before clipping, its inverse after the noise.

use burn::tensor::{Device, Tensor, TensorData};

use crate::accumulate::StepRelease;
use crate::error::{OptimError, positive, same_length};
use crate::gradients::{GroupLayout, Layout};
use crate::kernels::read;
use crate::plan::StepPlan;

/// `w = (g - shift) / scale`, coordinate by coordinate, for one clipping group; shifts and scales must be public or released.
///
/// A plan with transforms ([`StepPlan::with_transforms`]) clips the units' transformed gradients, adds the noise to their sum, and turns the
/// noisy mean back: `scale * mean + shift`. The clipping norm, and so the sensitivity, is that of the transformed gradients; the noise in a
/// coordinate is in proportion to its scale. Units missing from or above the expected batch bias the mean by their share of the shift.
#[derive(Debug, Clone, PartialEq)]
pub struct AffineTransform {
    shift: Vec<f32>,
    scale: Vec<f32>,
}

impl AffineTransform {
    /// A transform with one shift and one scale for each coordinate of the group's tensors, one after the other.
    ///
    /// # Errors
    /// Lengths that differ, a shift that is not finite, a scale that is not positive and finite.
    pub fn new(shift: Vec<f32>, scale: Vec<f32>) -> Result<Self, OptimError> {
        same_length("scales of a transform", shift.len(), scale.len())?;
        for &scale in &scale {
            positive("a transform's scale", scale.into())?;
        }
        if let Some(&shift) = shift.iter().find(|shift| !shift.is_finite()) {
            return Err(OptimError::OutOfRange {
                what: "a transform's shift",
                value: shift.into(),
                range: "finite",
            });
        }
        Ok(Self { shift, scale })
    }

    /// Number of coordinates.
    #[must_use]
    pub fn dimension(&self) -> usize {
        self.shift.len()
    }

    /// The scales.
    #[must_use]
    pub fn scale(&self) -> &[f32] {
        &self.scale
    }

    /// Root mean square of the scales: what the noise of the whole group is multiplied by.
    pub(crate) fn root_mean_square(&self) -> f64 {
        let squares = self.scale.iter().map(|&scale| f64::from(scale).powi(2));
        (squares.sum::<f64>() / self.scale.len().max(1) as f64).sqrt()
    }

    /// `[1, width]` tensors of shifts and scales of the coordinates from `start`.
    fn on(&self, start: usize, width: usize, device: &Device) -> (Tensor<2>, Tensor<2>) {
        let tensor = |values: &[f32]| {
            let values = values[start..start + width].to_vec();
            Tensor::from_data(TensorData::new(values, [1, width]), device)
        };
        (tensor(&self.shift), tensor(&self.scale))
    }

    /// Transforms units, `[units, width]`, whose first coordinate is the group's `start`.
    pub(crate) fn apply(&self, units: Tensor<2>, start: usize) -> Tensor<2> {
        let (shift, scale) = self.on(start, units.dims()[1], &units.device());
        (units - shift) / scale
    }

    /// Turns a noisy mean back.
    pub(crate) fn invert(&self, mean: Tensor<1>, start: usize) -> Tensor<1> {
        let width = mean.dims()[0];
        let (shift, scale) = self.on(start, width, &mean.device());
        mean * scale.reshape([width]) + shift.reshape([width])
    }
}

/// The settings of [`AdaClip`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdaClipOptions {
    /// Decay of the running mean, in [0, 1).
    pub mean_decay: f64,
    /// Decay of the running variance, in [0, 1).
    pub variance_decay: f64,
    /// Standard deviation of every coordinate before anything is known.
    pub initial_deviation: f64,
    /// Bounds of a variance estimate.
    pub variance_bounds: [f64; 2],
}

impl Default for AdaClipOptions {
    fn default() -> Self {
        Self {
            mean_decay: 0.99,
            variance_decay: 0.9,
            initial_deviation: 1.0,
            variance_bounds: [1e-12, 10.0],
        }
    }
}

/// AdaClip (Pichapati et al. 2019): coordinates are shifted by a running mean and scaled so that noise goes where gradients vary.
///
/// With the deviations `s_j` the scales are `b_j = sqrt(s_j) sqrt(s_1 + ... + s_d)`, which among all scales with an expected
/// transformed norm of at most one add the least noise. Mean and deviations are estimated from releases alone, so they cost
/// nothing: [`AdaClip::update`] takes nothing else. A variance estimate is the squared deviation of the release from the mean, less the variance
/// of its noise.
#[derive(Debug, Clone)]
pub struct AdaClip {
    options: AdaClipOptions,
    groups: Vec<(GroupLayout, Vec<Estimate>)>,
}

#[derive(Debug, Clone, Copy)]
struct Estimate {
    mean: f64,
    variance: f64,
}

impl AdaClip {
    /// Nothing known yet.
    ///
    /// # Errors
    /// A decay outside [0, 1), or a deviation or bound that is not positive.
    pub fn new(layout: &Layout, options: AdaClipOptions) -> Result<Self, OptimError> {
        for (what, value) in [
            ("the decay of the mean", options.mean_decay),
            ("the decay of the variance", options.variance_decay),
        ] {
            if !(0.0..1.0).contains(&value) {
                return Err(OptimError::OutOfRange {
                    what,
                    value,
                    range: "in [0, 1)",
                });
            }
        }
        positive("the initial deviation", options.initial_deviation)?;
        let [low, high] = options.variance_bounds;
        positive("the lower bound of a variance", low)?;
        positive("the range of a variance", high - low)?;
        let start = Estimate {
            mean: 0.0,
            variance: options.initial_deviation.powi(2).clamp(low, high),
        };
        let groups = layout.groups.iter();
        Ok(Self {
            options,
            groups: groups
                .map(|group| (group.clone(), vec![start; group.dimension()]))
                .collect(),
        })
    }

    /// The running means and variances, group by group and coordinate by coordinate: released numbers, for a checkpoint.
    #[must_use]
    pub fn estimates(&self) -> Vec<[f64; 2]> {
        let all = self.groups.iter().flat_map(|(_, estimates)| estimates);
        all.map(|at| [at.mean, at.variance]).collect()
    }

    /// Takes over [`AdaClip::estimates`] of one with the same layout.
    ///
    /// # Errors
    /// Another number of coordinates; a mean that is not finite, a variance outside its bounds. Nothing is taken over then.
    pub fn set_estimates(&mut self, estimates: &[[f64; 2]]) -> Result<(), OptimError> {
        let expected = self.groups.iter().map(|(_, own)| own.len()).sum();
        same_length("estimates of coordinates", expected, estimates.len())?;
        let [low, high] = self.options.variance_bounds;
        for &[mean, variance] in estimates {
            let sound = mean.is_finite() && (low..=high).contains(&variance);
            if !sound {
                return Err(OptimError::OutOfRange {
                    what: "an estimate of a coordinate",
                    value: if mean.is_finite() { variance } else { mean },
                    range: "a finite mean, a variance within its bounds",
                });
            }
        }
        let own = self.groups.iter_mut().flat_map(|(_, own)| own);
        for (own, &[mean, variance]) in own.zip(estimates) {
            *own = Estimate { mean, variance };
        }
        Ok(())
    }

    /// The transforms for the next step's plan.
    ///
    /// # Errors
    /// None for estimates from finite releases.
    pub fn transforms(&self) -> Result<Vec<AffineTransform>, OptimError> {
        let groups = self.groups.iter();
        groups
            .map(|(_, estimates)| {
                let total: f64 = estimates.iter().map(|at| at.variance.sqrt()).sum();
                let shift = estimates.iter().map(|at| at.mean as f32).collect();
                let scale = estimates
                    .iter()
                    .map(|at| (at.variance.sqrt() * total).sqrt() as f32)
                    .collect();
                AffineTransform::new(shift, scale)
            })
            .collect()
    }

    /// Learns from a release of this plan, which must have had [`AdaClip::transforms`].
    ///
    /// # Errors
    /// A release or a plan of other groups; a device that cannot be read.
    pub fn update(&mut self, plan: &StepPlan, release: &StepRelease) -> Result<(), OptimError> {
        let transforms = plan.transforms().ok_or(OptimError::NoTransforms)?;
        same_length("released groups", self.groups.len(), release.groups.len())?;
        same_length("transforms", self.groups.len(), transforms.len())?;
        let noise = plan
            .clipping_norms()
            .iter()
            .zip(plan.group_noise_multipliers())
            .map(|(norm, sigma)| norm * sigma / plan.expected_batch());
        let mut updated = Vec::with_capacity(self.groups.len());
        for (((layout, estimates), group), (transform, noise)) in self
            .groups
            .iter()
            .zip(&release.groups)
            .zip(transforms.iter().zip(noise))
        {
            let mut values = Vec::with_capacity(estimates.len());
            for tensor in &group.gradients {
                values.extend(read("released gradients", tensor.clone())?);
            }
            same_length("released coordinates", layout.dimension(), values.len())?;
            same_length(
                "scales of a transform",
                layout.dimension(),
                transform.dimension(),
            )?;
            let next = estimates.iter().zip(values).zip(transform.scale());
            let next: Vec<Estimate> = next
                .map(|((at, value), &scale)| {
                    self.options.next(*at, value, f64::from(scale) * noise)
                })
                .collect();
            updated.push(next);
        }
        for ((_, estimates), next) in self.groups.iter_mut().zip(updated) {
            *estimates = next;
        }
        Ok(())
    }
}

impl AdaClipOptions {
    fn next(&self, at: Estimate, value: f64, noise: f64) -> Estimate {
        let [low, high] = self.variance_bounds;
        let variance = ((value - at.mean).powi(2) - noise * noise).clamp(low, high);
        Estimate {
            mean: self.mean_decay * at.mean + (1.0 - self.mean_decay) * value,
            variance: self.variance_decay * at.variance + (1.0 - self.variance_decay) * variance,
        }
    }
}
