//! Clipping and summing, exactly.
//!
//! Every unit's gradient is scaled to at most the clipping norm C of its group and truncated toward zero to a grid of
//! C / 2^30 in each coordinate; the sum is then a sum of 64-bit integers.
//!
//! * Truncation can only shorten a vector, so the norm stays at most C.
//! * Integer sums do not round: the order of units, the micro-batches and the threads change nothing, bit for bit, and one
//!   unit moves the sum by exactly its own contribution. A float sum has a larger sensitivity than its terms suggest
//!   (Casacuberta et al. 2022).
//! * Noise is rounded to the same grid, so that the release is post-processing of sum plus real-valued noise.
//!
//! `docs/proofs/clipped-sum.md` proves the bound for every implementation of the passes ([`crate::Kernel`]): all of them sum integers
//! exactly; norms and products are in double precision on the CPU backends and in single precision elsewhere, so the integers
//! differ between devices by about 1e-7 of C, never between orders, micro-batches or threads. If a unit's norm is not finite
//! it is not added at all. The grid is 1e-9 of C in a coordinate, far below any noise that protects anyone.

use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use rldp_accounting::Adjacency;

use crate::adaclip::AffineTransform;
use crate::error::{OptimError, positive, same_length};
use crate::gradients::{Layout, PerExampleGradients};
use crate::kernels::{Kernel, release};
use crate::random::{GridNoise, Random};
use crate::source::{GridSums, Prepared, UnitGradients};

/// Grid steps per clipping norm (or per bound, for scalar queries).
pub(crate) const GRID: f64 = (1_u64 << 30) as f64;

/// Clipping aims at C (1 - 2^-16): covers the rounding of norms summed in single precision (5.5e-6 relative), of the scale
/// and of the product, so that the clipped norm is at most C on every backend. The bias is far below the noise.
pub(crate) const SLACK: f64 = 1.0 / 65536.0;

/// Most units of one sum: with the noise they stay within 56 bits, which two 32-bit limbs and every float sum of theirs hold.
const MOST_UNITS: usize = 1 << 23;

/// Clipping norms lie between this and its inverse, so that all arithmetic in single precision stays in range.
const SMALLEST_NORM: f64 = 1.0 / (1_u128 << 80) as f64;

/// How a unit's gradient is scaled.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub enum ClipRule {
    /// Scale `min(1, C / norm)` (Abadi et al. 2016).
    #[default]
    Threshold,
    /// Scale `C / (norm + stability)`: automatic clipping (Bu et al. 2023); with stability 0, normalisation.
    Normalize {
        /// Added to the norm; not negative.
        stability: f64,
    },
}

/// A clipping norm and rule for one group.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clip {
    norm: f64,
    rule: ClipRule,
}

impl Clip {
    /// A checked clipping function.
    ///
    /// # Errors
    /// A norm outside [2^-80, 2^80], or a negative stability.
    pub fn new(norm: f64, rule: ClipRule) -> Result<Self, OptimError> {
        if !(SMALLEST_NORM..=1.0 / SMALLEST_NORM).contains(&norm) {
            return Err(OptimError::OutOfRange {
                what: "a clipping norm",
                value: norm,
                range: "in [2^-80, 2^80]",
            });
        }
        if let ClipRule::Normalize { stability } = rule
            && !(stability >= 0.0 && stability.is_finite())
        {
            return Err(OptimError::OutOfRange {
                what: "the stability of normalised clipping",
                value: stability,
                range: "finite and not negative",
            });
        }
        Ok(Self { norm, rule })
    }

    /// The clipping norm C.
    #[must_use]
    pub fn norm(&self) -> f64 {
        self.norm
    }

    /// How far one changed unit can move the sum of clipped gradients, in Euclidean norm.
    ///
    /// # Guarantee
    /// An upper bound for the given adjacency: C if a unit is added, removed or zeroed, 2 C if it is replaced.
    #[must_use]
    pub fn sensitivity(&self, adjacency: Adjacency) -> f64 {
        match adjacency {
            Adjacency::AddRemove | Adjacency::ZeroOut => self.norm,
            // Replacement is a removal and an addition, and so is, at worst, any other single-unit change.
            _ => 2.0 * self.norm,
        }
    }

    /// Factor from a gradient of this norm to grid units; the scaled norm is at most (1 - SLACK) GRID.
    fn factor(&self, norm: f64) -> f64 {
        let aim = self.norm * (1.0 - SLACK);
        let scale = match self.rule {
            ClipRule::Threshold if norm <= aim => 1.0,
            ClipRule::Threshold => aim / norm,
            ClipRule::Normalize { stability } if norm + stability > 0.0 => aim / (norm + stability),
            ClipRule::Normalize { .. } => 0.0,
        };
        let factor = scale / self.norm * GRID;
        if factor.is_finite() { factor } else { 0.0 }
    }
}

/// The running sum of clipped gradients of one batch. Raw: to be consumed by [`ClippedSum::release`].
pub struct ClippedSum {
    layout: Layout,
    clips: Vec<Clip>,
    kernel: Option<Kernel>,
    transforms: Option<Arc<[AffineTransform]>>,
    sums: GridSums,
    units: usize,
    /// Per group, clipped units minus unclipped ones.
    clip_balance: Vec<i64>,
}

impl ClippedSum {
    /// An empty sum for these groups.
    ///
    /// # Errors
    /// No groups, or not one clip per group.
    pub fn new(layout: &Layout, clips: &[Clip]) -> Result<Self, OptimError> {
        if layout.groups.is_empty() {
            return Err(OptimError::Empty);
        }
        same_length("clipping norms", layout.groups.len(), clips.len())?;
        Ok(Self {
            sums: GridSums::new(layout),
            clip_balance: vec![0; clips.len()],
            units: 0,
            layout: layout.clone(),
            clips: clips.to_vec(),
            kernel: None,
            transforms: None,
        })
    }

    /// Uses this implementation rather than the fastest for the device.
    #[must_use]
    pub fn with_kernel(mut self, kernel: Kernel) -> Self {
        self.kernel = Some(kernel);
        self
    }

    /// Clips in the coordinates of these transforms, one per group, and turns the release back.
    ///
    /// # Errors
    /// Not one transform per group with the group's number of coordinates.
    pub fn with_transforms(
        mut self,
        transforms: Arc<[AffineTransform]>,
    ) -> Result<Self, OptimError> {
        same_length("transforms", self.layout.groups.len(), transforms.len())?;
        for (group, transform) in self.layout.groups.iter().zip(transforms.iter()) {
            let (expected, found) = (group.dimension(), transform.dimension());
            same_length("coordinates of a transform", expected, found)?;
        }
        self.transforms = Some(transforms);
        Ok(self)
    }

    /// Clips every unit of a micro-batch and adds it.
    ///
    /// # Guarantee
    /// One unit changes the sum of group l by a vector of norm at most [`Clip::sensitivity`]. A unit with a coordinate that is
    /// not finite, in any group, contributes zero to all groups and counts as clipped.
    ///
    /// # Errors
    /// Shapes that are not the layout's; a device that cannot be read; more than 2^23 units.
    pub fn add(&mut self, gradients: &PerExampleGradients) -> Result<(), OptimError> {
        self.layout.check(gradients)?;
        if gradients.rows.units() == 0 {
            return Ok(());
        }
        match &self.transforms {
            None => self.add_checked(&Prepared::new(gradients, self.kernel)?),
            Some(transforms) => {
                let gradients = gradients.transformed(transforms);
                self.add_checked(&Prepared::new(&gradients, self.kernel)?)
            }
        }
    }

    /// As [`ClippedSum::add`], for gradients in any form.
    ///
    /// # Guarantee
    /// That of [`ClippedSum::add`], if the source keeps the guarantees of [`UnitGradients`].
    ///
    /// # Errors
    /// Shapes that are not the layout's; errors of the source; more than 2^23 units; [`OptimError::TransformedSource`].
    pub fn add_units<G: UnitGradients + ?Sized>(
        &mut self,
        gradients: &G,
    ) -> Result<(), OptimError> {
        self.layout.check_layout(&gradients.layout())?;
        if self.transforms.is_some() {
            return Err(OptimError::TransformedSource);
        }
        if gradients.units() == 0 {
            return Ok(());
        }
        self.add_checked(gradients)
    }

    fn add_checked<G: UnitGradients + ?Sized>(&mut self, gradients: &G) -> Result<(), OptimError> {
        let units = gradients.units();
        if self.units + units > MOST_UNITS {
            return Err(OptimError::TooLarge {
                what: "units in one sum",
                most: MOST_UNITS,
            });
        }
        let squares = gradients.squared_norms()?;
        same_length("groups of norms", self.clips.len(), squares.len())?;
        for squares in &squares {
            same_length("norms of a group", units, squares.len())?;
        }
        let sound: Vec<bool> = (0..units)
            .map(|unit| squares.iter().all(|squares| squares[unit].is_finite()))
            .collect();
        let mut factors = Vec::with_capacity(squares.len());
        let mut balance = self.clip_balance.clone();
        for ((clip, squares), balance) in self.clips.iter().zip(&squares).zip(&mut balance) {
            factors.push(
                squares
                    .iter()
                    .zip(&sound)
                    .map(|(square, &sound)| {
                        let norm = square.sqrt();
                        *balance += if sound && norm <= clip.norm { -1 } else { 1 };
                        if sound { clip.factor(norm) } else { 0.0 }
                    })
                    .collect::<Vec<f64>>(),
            );
        }
        gradients.add_scaled(&factors, &mut self.sums)?;
        self.clip_balance = balance;
        self.units += units;
        Ok(())
    }

    /// Adds noise of standard deviation `noise_multipliers[l] * C_l` to every coordinate of group l and divides by `divisor`.
    ///
    /// # Guarantee
    /// The Gaussian mechanism with these noise multipliers on the clipped sums, followed by post-processing. Together they
    /// are one query of noise multiplier `(sum_l sigma_l^-2)^(-1/2)`. `divisor` must be public.
    ///
    /// # Errors
    /// Not one noise multiplier per group, or a number out of range.
    pub fn release(
        self,
        noise_multipliers: &[f64],
        divisor: f64,
        random: &mut dyn Random,
        device: &Device,
    ) -> Result<Vec<NoisyGroup>, OptimError> {
        same_length(
            "noise multipliers",
            self.clips.len(),
            noise_multipliers.len(),
        )?;
        positive("the divisor of a sum", divisor)?;
        for &sigma in noise_multipliers {
            check_noise_multiplier(sigma)?;
        }
        let device = device.clone().inner();
        let groups = self
            .layout
            .groups
            .into_iter()
            .zip(self.sums.into_groups())
            .zip(self.clips)
            .zip(noise_multipliers)
            .enumerate();
        groups
            .map(|(index, (((group, sums), clip), &sigma))| {
                let transform = self.transforms.as_ref().map(|all| &all[index]);
                let noise = GridNoise::new(sigma * GRID, random);
                let step = clip.norm / GRID / divisor;
                let mut gradients = release(sums, &group.widths, &noise, step, &device)?;
                if let Some(transform) = transform {
                    let mut start = 0;
                    for (gradient, &width) in gradients.iter_mut().zip(&group.widths) {
                        *gradient = transform.invert(gradient.clone(), start);
                        start += width;
                    }
                }
                let scale = transform.map_or(1.0, AffineTransform::root_mean_square);
                Ok(NoisyGroup {
                    name: group.name,
                    gradients,
                    noise_std: scale * sigma * clip.norm / divisor,
                })
            })
            .collect()
    }

    /// Per group, clipped units minus unclipped ones.
    pub(crate) fn clip_balance(&self) -> &[i64] {
        &self.clip_balance
    }

    /// The raw sums in the gradients' own units, for tests of the clipping itself.
    #[cfg(test)]
    pub(crate) fn raw(&self, group: usize) -> Vec<f64> {
        let step = self.clips[group].norm / GRID;
        let sums = self.integers(group).into_iter();
        sums.map(|value| value as f64 * step).collect()
    }

    /// The raw sums in grid units.
    #[cfg(test)]
    pub(crate) fn integers(&self, group: usize) -> Vec<i64> {
        self.sums.raw(group, &self.layout.groups[group].widths)
    }
}

/// Refuses noise that is absent, or so large that grid units overflow.
pub(crate) fn check_noise_multiplier(sigma: f64) -> Result<(), OptimError> {
    if sigma > 0.0 && sigma <= 1e6 {
        Ok(())
    } else {
        Err(OptimError::OutOfRange {
            what: "a noise multiplier",
            value: sigma,
            range: "in (0, 1e6]",
        })
    }
}

/// One group of released gradients.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct NoisyGroup {
    /// The group's name.
    pub name: String,
    /// Noisy sums over the divisor, one flat tensor for each tensor of the group.
    pub gradients: Vec<Tensor<1>>,
    /// Standard deviation of the noise in each coordinate; with a transform, the root mean square over the coordinates.
    pub noise_std: f64,
}
