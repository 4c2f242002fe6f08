//! What can be clipped: the seam between gradient sources and the clipped sum.

use burn::tensor::Tensor;

use crate::error::{OptimError, same_length};
use crate::gradients::{Layout, PerExampleGradients};
use crate::kernels::{Kernel, TensorSum, Units, read};
use crate::row_map::RowMap;

/// The gradients of one micro-batch's privacy units, in whatever form a source has them.
///
/// [`PerExampleGradients`] are one: one row per example, in memory. A source that never has them there (ghost norms,
/// book-keeping) implements this instead, and goes through the same clipping, sums, noise and accounting with
/// [`crate::Accumulator::add_units`].
///
/// What the methods pass is raw: it belongs to the clipped sum and to nothing else.
pub trait UnitGradients {
    /// Names and sizes of the groups.
    fn layout(&self) -> Layout;

    /// Number of units.
    fn units(&self) -> usize;

    /// The squared norm of every unit's gradient in every group, `[group][unit]`; not finite if a coordinate is not.
    ///
    /// # Guarantee
    /// A norm must not be below the true one by more than a relative 2^-17, for a unit is scaled to `C (1 - 2^-16)` by it.
    ///
    /// # Errors
    /// A device that cannot be read.
    fn squared_norms(&self) -> Result<Vec<Vec<f64>>, OptimError>;

    /// Adds `sum_u factors[group][u] * gradient_u` of every group to `sums`; a unit of factor zero must add zero, whatever
    /// it holds (a NaN, say).
    ///
    /// # Guarantee
    /// The gradients must be those that [`UnitGradients::squared_norms`] measured.
    ///
    /// # Errors
    /// A device that cannot be read.
    fn add_scaled(&self, factors: &[Vec<f64>], sums: &mut GridSums) -> Result<(), OptimError>;
}

/// Running sums of scaled gradients: whole numbers of grid units, for every tensor of every group.
///
/// Nothing reads it but the mechanism that adds noise.
pub struct GridSums {
    /// Per group, one sum for every tensor.
    groups: Vec<Vec<TensorSum>>,
}

impl GridSums {
    pub(crate) fn new(layout: &Layout) -> Self {
        let groups = layout.groups.iter();
        Self {
            groups: groups
                .map(|group| group.widths.iter().map(|_| TensorSum::default()).collect())
                .collect(),
        }
    }

    /// Adds one tensor's scaled rows, rounded toward zero to whole numbers coordinate by coordinate and unit by unit, so that the sum
    /// is exact. `rows` is `[rows, coordinates]`; `factors` has one number per unit of the map.
    ///
    /// # Errors
    /// [`OptimError::LengthMismatch`] for factors that do not fit; a device that cannot be read; a group or tensor that does not exist.
    pub fn add_rows(
        &mut self,
        group: usize,
        tensor: usize,
        rows: &Tensor<2>,
        map: &RowMap,
        factors: &[f64],
    ) -> Result<(), OptimError> {
        same_length("scale factors", map.units(), factors.len())?;
        same_length("rows of a gradient tensor", map.rows(), rows.dims()[0])?;
        Units::new(rows, map, None)?.add_scaled(factors, self.sum(group, tensor)?)
    }

    /// Adds one tensor's sum over units, made in floats by the source, rounded toward zero to whole numbers.
    ///
    /// A float sum is not exact: a unit can move it by a little more than its own contribution, through the rounding of the
    /// others'. Prefer [`GridSums::add_rows`].
    ///
    /// # Errors
    /// A device that cannot be read; a group or tensor that does not exist.
    pub fn add_float_sum(
        &mut self,
        group: usize,
        tensor: usize,
        sum: Tensor<1>,
    ) -> Result<(), OptimError> {
        let values = read("scaled sums", sum.inner())?;
        self.sum(group, tensor)?.add(values);
        Ok(())
    }

    fn sum(&mut self, group: usize, tensor: usize) -> Result<&mut TensorSum, OptimError> {
        let groups = self.groups.len();
        let group = self
            .groups
            .get_mut(group)
            .ok_or(OptimError::LengthMismatch {
                what: "gradient groups",
                expected: groups,
                found: group + 1,
            })?;
        let tensors = group.len();
        group.get_mut(tensor).ok_or(OptimError::LengthMismatch {
            what: "tensors of a gradient group",
            expected: tensors,
            found: tensor + 1,
        })
    }

    /// The sums, to add noise to.
    pub(crate) fn into_groups(self) -> Vec<Vec<TensorSum>> {
        self.groups
    }

    /// One group's integers, for tests of the clipping itself.
    #[cfg(test)]
    pub(crate) fn raw(&self, group: usize, widths: &[usize]) -> Vec<i64> {
        let tensors = self.groups[group].iter().zip(widths);
        tensors.flat_map(|(sum, &width)| sum.raw(width)).collect()
    }
}

/// The squared norm of every unit in one tensor of per-example gradients, `[rows, coordinates]`: what a source that makes one tensor at
/// a time adds up over a group's tensors.
///
/// # Errors
/// A device that cannot be read; [`OptimError::LengthMismatch`] for another number of rows than the map's.
pub fn squared_norms(rows: &Tensor<2>, map: &RowMap) -> Result<Vec<f64>, OptimError> {
    same_length("rows of a gradient tensor", map.rows(), rows.dims()[0])?;
    let norms = Units::squared_norms(&[Units::new(rows, map, None)?])?;
    Ok(norms.into_iter().next().unwrap_or_default())
}

/// Per-example gradients in the form that the kernels read.
pub(crate) struct Prepared<'a> {
    gradients: &'a PerExampleGradients,
    /// All tensors of all groups.
    tensors: Vec<Units>,
}

impl<'a> Prepared<'a> {
    pub(crate) fn new(
        gradients: &'a PerExampleGradients,
        kernel: Option<Kernel>,
    ) -> Result<Self, OptimError> {
        let tensors = gradients.groups.iter().flat_map(|group| &group.tensors);
        let tensors = tensors
            .map(|tensor| Units::new(tensor, &gradients.rows, kernel))
            .collect::<Result<_, _>>()?;
        Ok(Self { gradients, tensors })
    }
}

impl UnitGradients for Prepared<'_> {
    fn layout(&self) -> Layout {
        self.gradients.layout()
    }

    fn units(&self) -> usize {
        self.gradients.rows.units()
    }

    fn squared_norms(&self) -> Result<Vec<Vec<f64>>, OptimError> {
        let mut tensors = Units::squared_norms(&self.tensors)?.into_iter();
        let groups = self.gradients.groups.iter();
        Ok(groups
            .map(|group| {
                let mut squares = vec![0.0; self.units()];
                for norms in tensors.by_ref().take(group.tensors.len()) {
                    for (sum, square) in squares.iter_mut().zip(norms) {
                        *sum += square;
                    }
                }
                squares
            })
            .collect())
    }

    fn add_scaled(&self, factors: &[Vec<f64>], sums: &mut GridSums) -> Result<(), OptimError> {
        let mut tensors = self.tensors.iter();
        for (index, (group, factors)) in self.gradients.groups.iter().zip(factors).enumerate() {
            for (tensor, units) in tensors.by_ref().take(group.tensors.len()).enumerate() {
                units.add_scaled(factors, sums.sum(index, tensor)?)?;
            }
        }
        Ok(())
    }
}
