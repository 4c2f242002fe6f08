//! One private step: begin, add micro-batches, release.

use burn::tensor::{Device, Tensor};

use crate::clip::{ClippedSum, GRID};
use crate::error::{OptimError, same_length};
use crate::gradients::{Layout, PerExampleGradients};
use crate::kernels::{Kernel, read};
use crate::plan::StepPlan;
use crate::private::{Private, Released};
use crate::query::CentredSum;
use crate::random::{Random, add_grid_noise};
use crate::source::UnitGradients;

/// Collects the micro-batches of one step and releases it once.
///
/// Micro-batch sizes, order and padding change nothing; a step without any micro-batch (an empty batch) is released like
/// every other.
pub struct Accumulator {
    plan: StepPlan,
    sum: ClippedSum,
    loss: Option<CentredSum>,
}

impl Accumulator {
    /// Begins a step under a plan, for groups of these names and sizes.
    ///
    /// # Errors
    /// Not one clipping norm per group.
    pub fn begin(plan: &StepPlan, layout: &Layout) -> Result<Self, OptimError> {
        let loss = match plan.loss_noise_multiplier() {
            Some(_) => Some(CentredSum::new(plan.telemetry().loss_bound)?),
            None => None,
        };
        let sum = ClippedSum::new(layout, &plan.clips()?)?;
        Ok(Self {
            sum: match plan.transforms() {
                Some(transforms) => sum.with_transforms(transforms.clone())?,
                None => sum,
            },
            plan: plan.clone(),
            loss,
        })
    }

    /// Uses this implementation of the kernels rather than the fastest for the device.
    #[must_use]
    pub fn with_kernel(mut self, kernel: Kernel) -> Self {
        self.sum = self.sum.with_kernel(kernel);
        self
    }

    /// Clips and adds a micro-batch. `losses`, one per row, are needed if the plan pays for a loss, and only then; a unit's
    /// loss is the weighted sum of its rows' losses, with the weights of its gradient.
    ///
    /// All rows of a unit must come in one call: a unit that comes twice in a step would count as two.
    ///
    /// # Errors
    /// Shapes that are not the layout's, losses that do not fit the plan, a device that cannot be read.
    pub fn add(
        &mut self,
        gradients: &PerExampleGradients,
        losses: Option<Private<Tensor<1>>>,
    ) -> Result<(), OptimError> {
        let rows = &gradients.rows;
        let unit_losses = match losses {
            None => None,
            Some(losses) => {
                let losses = read("losses", losses.into_inner().inner())?;
                same_length("losses", rows.rows(), losses.len())?;
                let of_unit = |unit: usize| {
                    let members = rows.unit(unit).iter();
                    members
                        .map(|&(row, weight)| f64::from(weight) * losses[row])
                        .sum()
                };
                Some((0..rows.units()).map(of_unit).collect())
            }
        };
        self.check_losses(rows.units(), unit_losses.as_ref())?;
        self.sum.add(gradients)?;
        self.add_losses(unit_losses);
        Ok(())
    }

    /// As [`Accumulator::add`], for gradients in any form; `losses` has one number per unit.
    ///
    /// # Errors
    /// Those of [`Accumulator::add`] and of the source.
    pub fn add_units<G: UnitGradients + ?Sized>(
        &mut self,
        gradients: &G,
        losses: Option<Private<Vec<f64>>>,
    ) -> Result<(), OptimError> {
        let losses = losses.map(Private::into_inner);
        self.check_losses(gradients.units(), losses.as_ref())?;
        self.sum.add_units(gradients)?;
        self.add_losses(losses);
        Ok(())
    }

    /// Refuses losses that do not fit the plan, before anything is added, so that an error leaves the sums whole.
    fn check_losses(&self, units: usize, losses: Option<&Vec<f64>>) -> Result<(), OptimError> {
        let planned = self.loss.is_some();
        if planned != losses.is_some() {
            return Err(OptimError::LossTelemetry { planned });
        }
        losses.map_or(Ok(()), |losses| same_length("losses", units, losses.len()))
    }

    fn add_losses(&mut self, losses: Option<Vec<f64>>) {
        if let Some(sum) = &mut self.loss {
            for loss in losses.into_iter().flatten() {
                sum.add(loss);
            }
        }
    }

    /// Adds the noise and divides by the expected batch size.
    ///
    /// # Guarantee
    /// For batches sampled with the plan's sampling rate the release is dominated by [`StepPlan::segment`] with one step, if
    /// `random` is a [`crate::SecureRandom`]. Write the ledger's line *before* calling this.
    ///
    /// # Errors
    /// None for a plan that was built; checks of the parts are passed on.
    pub fn release(
        self,
        random: &mut dyn Random,
        device: &Device,
    ) -> Result<StepRelease, OptimError> {
        let batch = self.plan.expected_batch();
        let clipped_fractions = self.plan.clip_count_noise().map(|noise| {
            // Bits of +-1/2 are half a grid each way.
            let mut counts: Vec<i64> = self
                .sum
                .clip_balance()
                .iter()
                .map(|&balance| balance.saturating_mul((GRID / 2.0) as i64))
                .collect();
            add_grid_noise(&mut counts, noise * GRID, random);
            let values = counts
                .into_iter()
                .map(|count| Released::new(0.5 + count as f64 / GRID / batch))
                .collect();
            ClippedFractions {
                values,
                noise_std: noise / batch,
            }
        });
        let mean_loss = match (self.loss, self.plan.loss_noise_multiplier()) {
            (Some(sum), Some(sigma)) => {
                let (value, noise_std) = sum.release(sigma, batch, random);
                Some(MeanLoss { value, noise_std })
            }
            _ => None,
        };
        let private = random.is_private();
        let groups =
            self.sum
                .release(self.plan.group_noise_multipliers(), batch, random, device)?;
        Ok(StepRelease {
            groups,
            clipped_fractions,
            mean_loss,
            private,
        })
    }
}

/// What a step tells the world: everything here is noisy and may be logged, stored and acted on.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StepRelease {
    /// The gradient groups, in the layout's order.
    pub groups: Vec<ReleasedGroup>,
    /// Shares of clipped units, if the plan pays for them.
    pub clipped_fractions: Option<ClippedFractions>,
    /// Mean loss of the batch, if the plan pays for it.
    pub mean_loss: Option<MeanLoss>,
    /// False if the noise came from a seeded generator: then nothing here is private.
    pub private: bool,
}

impl StepRelease {
    /// The release of a flat plan, whose one group holds all tensors, cut into the groups of `layout`: post-processing.
    /// Clipped shares stay as they were released, one for all.
    ///
    /// # Errors
    /// More than one group, or other numbers of tensors or coordinates than the layout's.
    pub fn cut(mut self, layout: &Layout) -> Result<Self, OptimError> {
        same_length("groups of a flat release", 1, self.groups.len())?;
        let tensors = layout.groups.iter().map(|group| group.widths.len()).sum();
        let Some(flat) = self.groups.pop() else {
            return Err(OptimError::Empty);
        };
        same_length("tensors of a flat release", tensors, flat.gradients.len())?;
        let noise_std = flat.noise_std;
        let mut gradients = flat.gradients.into_iter();
        for group in &layout.groups {
            let own: Vec<Tensor<1>> = gradients.by_ref().take(group.widths.len()).collect();
            for (width, gradient) in group.widths.iter().zip(&own) {
                same_length("coordinates of a tensor", *width, gradient.dims()[0])?;
            }
            self.groups.push(ReleasedGroup {
                name: group.name.clone(),
                gradients: own,
                noise_std,
            });
        }
        Ok(self)
    }

    /// All groups as one of this name, the inverse of [`StepRelease::cut`]: post-processing. The noise told of is the root mean
    /// square over the coordinates; clipped shares stay as they were released.
    #[must_use]
    pub fn joined(mut self, name: &str) -> Self {
        let (mut gradients, mut square, mut width) = (Vec::new(), 0.0, 0.0);
        for group in std::mem::take(&mut self.groups) {
            let own: usize = group.gradients.iter().map(|tensor| tensor.dims()[0]).sum();
            square += own as f64 * group.noise_std * group.noise_std;
            width += own as f64;
            gradients.extend(group.gradients);
        }
        self.groups.push(ReleasedGroup {
            name: name.to_owned(),
            gradients,
            noise_std: (square / f64::max(width, 1.0)).sqrt(),
        });
        self
    }

    /// The release with every gradient times `factor`, a public number: post-processing.
    #[must_use]
    pub fn scaled(mut self, factor: f64) -> Self {
        for group in &mut self.groups {
            for gradient in &mut group.gradients {
                *gradient = gradient.clone().mul_scalar(factor);
            }
            group.noise_std *= factor.abs();
        }
        self
    }
}

/// One group's noisy mean gradient.
pub type ReleasedGroup = crate::clip::NoisyGroup;

/// Noisy shares of units clipped, per group. Sampling and noise can carry them outside [0, 1].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ClippedFractions {
    /// One per group.
    pub values: Vec<Released<f64>>,
    /// Standard deviation of the noise in each.
    pub noise_std: f64,
}

/// The noisy mean of the units' clipped losses.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct MeanLoss {
    /// The mean; noise can carry it outside `[0, bound]`.
    pub value: Released<f64>,
    /// Standard deviation of its noise.
    pub noise_std: f64,
}
