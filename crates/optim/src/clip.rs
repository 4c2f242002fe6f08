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
//! *Proof that the norm stays at most C.* Let g be a unit's (combined) gradient, d <= 2^32 its coordinates, n its computed
//! norm. Native: n^2 is a double-precision sum of non-negative terms, so n = |g| (1 + e) with |e| <= (d + 4) 2^-53 < 2^-20. The
//! factor f = C (1 - 2^-16) / n (or less), the products f g_j and the final division each err by a few 2^-53 relative, and
//! truncation only shrinks, so the norm of the result is at most C (1 - 2^-16) (1 + 2^-20) (1 + 2^-50) < C. Reference: n^2 is a tree
//! of sums of 32 terms; in single precision each level errs by at most 32 x 2^-24, so |e| <= 5.5e-6 up to 32^5 coordinates;
//! factor and products err by 2^-24 each; (1 - 1.52e-5) (1 + 5.5e-6) (1 + 1.2e-7) < 1. A unit that is not scaled has
//! n <= C (1 - 2^-16) and the same bound holds. If n is not finite the unit is not added at all.
//!
//! The grid is 1e-9 of C in a coordinate, far below any noise that protects anyone. With [`crate::Kernel::Reference`] the
//! sum *inside* one micro-batch is a float sum of the backend, exact only to about units x 2^-24.

use burn::tensor::{Device, Tensor, TensorData};
use rldp_accounting::Adjacency;

use crate::error::{OptimError, positive, same_length};
use crate::gradients::{Layout, PerExampleGradients};
use crate::kernels::Kernel;
use crate::random::{Random, add_grid_noise};

/// Grid steps per clipping norm (or per bound, for scalar queries).
pub(crate) const GRID: f64 = (1_u64 << 30) as f64;

/// Clipping aims at C (1 - 2^-16): covers the rounding of norms summed in single precision (5.5e-6 relative), of the scale
/// and of the product, so that the clipped norm is at most C on every backend. The bias is far below the noise.
pub(crate) const SLACK: f64 = 1.0 / 65536.0;

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
    /// A norm that is not positive and finite, or a negative stability.
    pub fn new(norm: f64, rule: ClipRule) -> Result<Self, OptimError> {
        positive("a clipping norm", norm)?;
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
    /// Per group, all tensors one after the other, in grid units.
    sums: Vec<Vec<i64>>,
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
            sums: layout
                .groups
                .iter()
                .map(|group| vec![0; group.dimension()])
                .collect(),
            clip_balance: vec![0; clips.len()],
            layout: layout.clone(),
            clips: clips.to_vec(),
            kernel: None,
        })
    }

    /// Uses this implementation rather than the fastest for the device.
    #[must_use]
    pub fn with_kernel(mut self, kernel: Kernel) -> Self {
        self.kernel = Some(kernel);
        self
    }

    /// Clips every unit of a micro-batch and adds it.
    ///
    /// # Guarantee
    /// One unit changes the sum of group l by a vector of norm at most [`Clip::sensitivity`]. A unit with a coordinate that is
    /// not finite, in any group, contributes zero to all groups and counts as clipped.
    ///
    /// # Errors
    /// Shapes that are not the layout's; a device that cannot be read.
    pub fn add(&mut self, gradients: &PerExampleGradients) -> Result<(), OptimError> {
        self.layout.check(gradients)?;
        let units = gradients.rows.units();
        if units == 0 {
            return Ok(());
        }
        let mut norms = Vec::with_capacity(gradients.groups.len());
        for group in &gradients.groups {
            let mut squares = vec![0.0; units];
            for tensor in &group.tensors {
                let kernel = self.kernel_for(tensor);
                for (sum, square) in squares
                    .iter_mut()
                    .zip(kernel.squared_norms(tensor, &gradients.rows)?)
                {
                    *sum += square;
                }
            }
            norms.push(squares.into_iter().map(f64::sqrt).collect::<Vec<f64>>());
        }
        let sound: Vec<bool> = (0..units)
            .map(|unit| norms.iter().all(|norms| norms[unit].is_finite()))
            .collect();
        for (index, group) in gradients.groups.iter().enumerate() {
            let clip = self.clips[index];
            let mut factors = Vec::with_capacity(units);
            for (&norm, &sound) in norms[index].iter().zip(&sound) {
                factors.push(if sound { clip.factor(norm) } else { 0.0 });
                self.clip_balance[index] += if sound && norm <= clip.norm { -1 } else { 1 };
            }
            let mut start = 0;
            for tensor in &group.tensors {
                let end = start + tensor.dims()[1];
                let kernel = self.kernel_for(tensor);
                kernel.add_scaled(
                    tensor,
                    &gradients.rows,
                    &factors,
                    &mut self.sums[index][start..end],
                )?;
                start = end;
            }
        }
        Ok(())
    }

    fn kernel_for(&self, tensor: &Tensor<2>) -> Kernel {
        self.kernel
            .unwrap_or_else(|| Kernel::for_device(&tensor.device()))
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
            .zip(self.sums)
            .zip(self.clips)
            .zip(noise_multipliers);
        Ok(groups
            .map(|(((group, mut sum), clip), &sigma)| {
                add_grid_noise(&mut sum, sigma * GRID, random);
                let step = clip.norm / GRID / divisor;
                let mut start = 0;
                let gradients = group
                    .widths
                    .iter()
                    .map(|&width| {
                        let values: Vec<f32> = sum[start..start + width]
                            .iter()
                            .map(|&value| (value as f64 * step) as f32)
                            .collect();
                        start += width;
                        Tensor::from_data(TensorData::new(values, [width]), &device)
                    })
                    .collect();
                NoisyGroup {
                    name: group.name,
                    gradients,
                    noise_std: sigma * clip.norm / divisor,
                }
            })
            .collect())
    }

    /// Per group, clipped units minus unclipped ones.
    pub(crate) fn clip_balance(&self) -> &[i64] {
        &self.clip_balance
    }

    /// The raw sums in the gradients' own units, for tests of the clipping itself.
    #[cfg(test)]
    pub(crate) fn raw(&self, group: usize) -> Vec<f64> {
        let step = self.clips[group].norm / GRID;
        self.sums[group]
            .iter()
            .map(|&value| value as f64 * step)
            .collect()
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
    /// Standard deviation of the noise in each coordinate.
    pub noise_std: f64,
}
