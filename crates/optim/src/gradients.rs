//! Per-example gradients, and which rows of them belong to which privacy unit.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use burn::tensor::Tensor;

use crate::adaclip::AffineTransform;
use crate::error::{OptimError, same_length};
use crate::kernels::combined_units;

/// The gradients of one clipping group: tensors of shape `[rows, coordinates]`, one row per example.
///
/// All tensors of a group share ONE norm ("pairwise" clipping when they are the A and B of an adapter). Raw values: the
/// type has no `Debug` and no `Clone`.
pub struct GroupGradients {
    /// The group's name, as in the [`Layout`].
    pub name: String,
    /// Its tensors, each `[rows, d_k]`.
    pub tensors: Vec<Tensor<2>>,
}

impl GroupGradients {
    /// A group from per-example gradients of any rank, whose first dimension is the example.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            tensors: Vec::new(),
        }
    }

    /// Adds a tensor whose first dimension is the row; the others are flattened.
    #[must_use]
    pub fn with<const D: usize>(mut self, tensor: Tensor<D>) -> Self {
        let dims = tensor.dims();
        let rows = dims.first().copied().unwrap_or(1);
        let width = dims.iter().skip(1).product();
        // An autodiff wrapper would record what is done to the gradients; nothing here is differentiated.
        self.tensors.push(tensor.inner().reshape([rows, width]));
        self
    }
}

/// A micro-batch of per-example gradients: groups in the layout's order, and the map from rows to units.
pub struct PerExampleGradients {
    pub(crate) groups: Vec<GroupGradients>,
    pub(crate) rows: RowMap,
}

impl PerExampleGradients {
    /// A micro-batch.
    ///
    /// # Errors
    /// [`OptimError::Empty`] without groups or tensors, [`OptimError::ShapeMismatch`] if a tensor has not one row per row
    /// of the map.
    pub fn new(groups: Vec<GroupGradients>, rows: RowMap) -> Result<Self, OptimError> {
        if groups.is_empty() || groups.iter().any(|group| group.tensors.is_empty()) {
            return Err(OptimError::Empty);
        }
        for group in &groups {
            for (index, tensor) in group.tensors.iter().enumerate() {
                let found = tensor.dims();
                if found[0] != rows.rows() {
                    return Err(OptimError::ShapeMismatch {
                        group: group.name.clone(),
                        tensor: index,
                        expected: [rows.rows(), found[1]],
                        found,
                    });
                }
            }
        }
        Ok(Self { groups, rows })
    }

    /// All tensors in one group of this name, for flat clipping.
    #[must_use]
    pub fn flattened(self, name: &str) -> Self {
        let tensors = self
            .groups
            .into_iter()
            .flat_map(|group| group.tensors)
            .collect();
        Self {
            groups: vec![GroupGradients {
                name: name.to_owned(),
                tensors,
            }],
            rows: self.rows,
        }
    }

    /// Every unit's gradient in the coordinates of the groups' transforms, one row a unit.
    pub(crate) fn transformed(&self, transforms: &[AffineTransform]) -> Self {
        let groups = self.groups.iter().zip(transforms);
        let groups = groups
            .map(|(group, transform)| {
                let mut start = 0;
                let tensors = group.tensors.iter();
                GroupGradients {
                    name: group.name.clone(),
                    tensors: tensors
                        .map(|tensor| {
                            let units = combined_units(tensor, &self.rows);
                            let width = units.dims()[1];
                            let units = transform.apply(units, start);
                            start += width;
                            units
                        })
                        .collect(),
                }
            })
            .collect();
        Self {
            groups,
            rows: RowMap::one_each(self.rows.units()),
        }
    }

    /// The shapes, which are public.
    #[must_use]
    pub fn layout(&self) -> Layout {
        Layout {
            groups: self
                .groups
                .iter()
                .map(|group| GroupLayout {
                    name: group.name.clone(),
                    widths: group
                        .tensors
                        .iter()
                        .map(|tensor| tensor.dims()[1])
                        .collect(),
                })
                .collect(),
        }
    }
}

/// Names and sizes of the clipping groups: all that an empty batch needs to be released.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The groups, in order.
    pub groups: Vec<GroupLayout>,
}

/// One group of a [`Layout`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupLayout {
    /// The group's name.
    pub name: String,
    /// Number of coordinates of each of its tensors.
    pub widths: Vec<usize>,
}

impl GroupLayout {
    /// Coordinates of all tensors together.
    #[must_use]
    pub fn dimension(&self) -> usize {
        self.widths.iter().sum()
    }
}

impl Layout {
    /// A layout from names and numbers of coordinates.
    pub fn new<N: Into<String>>(groups: impl IntoIterator<Item = (N, Vec<usize>)>) -> Self {
        let groups = groups
            .into_iter()
            .map(|(name, widths)| GroupLayout {
                name: name.into(),
                widths,
            })
            .collect();
        Self { groups }
    }

    /// All tensors in one group of this name, for flat clipping.
    #[must_use]
    pub fn flattened(&self, name: &str) -> Self {
        let widths = self
            .groups
            .iter()
            .flat_map(|group| group.widths.iter().copied())
            .collect();
        Self::new([(name, widths)])
    }

    /// Refuses gradients of another shape.
    pub(crate) fn check(&self, gradients: &PerExampleGradients) -> Result<(), OptimError> {
        self.check_layout(&gradients.layout())
    }

    /// Refuses another layout.
    pub(crate) fn check_layout(&self, found: &Self) -> Result<(), OptimError> {
        same_length("gradient groups", self.groups.len(), found.groups.len())?;
        for (index, (own, group)) in self.groups.iter().zip(&found.groups).enumerate() {
            if own.name != group.name {
                return Err(OptimError::GroupMismatch {
                    index,
                    expected: own.name.clone(),
                    found: group.name.clone(),
                });
            }
            same_length(
                "tensors of a gradient group",
                own.widths.len(),
                group.widths.len(),
            )?;
            for (tensor, (&expected, &found)) in own.widths.iter().zip(&group.widths).enumerate() {
                if found != expected {
                    return Err(OptimError::WidthMismatch {
                        group: own.name.clone(),
                        tensor,
                        expected,
                        found,
                    });
                }
            }
        }
        Ok(())
    }
}

/// Which rows belong to which privacy unit, and with what weight; rows of no unit are padding and count for nothing.
///
/// All rows of a unit must be in one micro-batch: they are added up *before* the norm is taken, since the guarantee is
/// for the unit. No `Debug`: it tells who is in the batch.
#[derive(Clone)]
pub struct RowMap {
    rows: usize,
    /// Rows of unit `u` are `members[offsets[u]..offsets[u + 1]]`.
    offsets: Arc<[usize]>,
    members: Arc<[(usize, f32)]>,
}

impl RowMap {
    /// Every row is a unit of its own, with weight one.
    #[must_use]
    pub fn one_each(rows: usize) -> Self {
        Self::padded(rows, 0)
    }

    /// The first `units` rows are units of their own; `padding` further rows are ignored.
    #[must_use]
    pub fn padded(units: usize, padding: usize) -> Self {
        Self {
            rows: units + padding,
            offsets: (0..=units).collect(),
            members: (0..units).map(|row| (row, 1.0)).collect(),
        }
    }

    /// Rows with equal numbers form one unit and are added up with these weights; `None` is padding.
    ///
    /// # Errors
    /// Lengths that differ, or a weight that is not finite.
    pub fn summed(unit_of_row: &[Option<usize>], weights: &[f32]) -> Result<Self, OptimError> {
        same_length("row weights", unit_of_row.len(), weights.len())?;
        if let Some(&weight) = weights.iter().find(|weight| !weight.is_finite()) {
            return Err(OptimError::OutOfRange {
                what: "a row's weight",
                value: weight.into(),
                range: "finite",
            });
        }
        let mut position = HashMap::new();
        let mut units: Vec<Vec<(usize, f32)>> = Vec::new();
        for (row, (unit, &weight)) in unit_of_row.iter().zip(weights).enumerate() {
            if let Some(unit) = unit {
                let slot = *position.entry(*unit).or_insert(units.len());
                if slot == units.len() {
                    units.push(Vec::new());
                }
                units[slot].push((row, weight));
            }
        }
        let mut offsets = vec![0];
        for unit in &units {
            offsets.push(offsets.last().copied().unwrap_or(0) + unit.len());
        }
        Ok(Self {
            rows: unit_of_row.len(),
            offsets: offsets.into(),
            members: units.into_iter().flatten().collect(),
        })
    }

    /// Rows with equal numbers form one unit, whose gradient is their mean; `None` is padding.
    #[must_use]
    pub fn averaged(unit_of_row: &[Option<usize>]) -> Self {
        let mut counts = HashMap::new();
        for unit in unit_of_row.iter().flatten() {
            *counts.entry(*unit).or_insert(0_usize) += 1;
        }
        let weights: Vec<f32> = unit_of_row
            .iter()
            .map(|unit| {
                unit.as_ref()
                    .and_then(|unit| counts.get(unit))
                    .map_or(0.0, |&n| 1.0 / n as f32)
            })
            .collect();
        // Equal lengths and finite weights by construction; padding alone is a map without units.
        Self::summed(unit_of_row, &weights).unwrap_or_else(|_| Self::padded(0, unit_of_row.len()))
    }

    /// Number of rows, padding included.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of units.
    #[must_use]
    pub fn units(&self) -> usize {
        self.offsets.len() - 1
    }

    /// The rows of one unit with their weights.
    pub(crate) fn unit(&self, unit: usize) -> &[(usize, f32)] {
        let range: Range<usize> = self.offsets[unit]..self.offsets[unit + 1];
        &self.members[range]
    }

    /// Where each unit's members begin and end, and the members' rows and weights.
    #[cfg(feature = "cube")]
    pub(crate) fn as_columns(&self) -> (Vec<u32>, Vec<u32>, Vec<f32>) {
        (
            self.offsets.iter().map(|&offset| offset as u32).collect(),
            self.members.iter().map(|&(row, _)| row as u32).collect(),
            self.members.iter().map(|&(_, weight)| weight).collect(),
        )
    }

    /// Whether unit `u` is row `u` with weight one, for every unit.
    pub(crate) fn is_plain(&self) -> bool {
        (0..self.units()).all(|unit| self.unit(unit) == [(unit, 1.0)])
    }
}
