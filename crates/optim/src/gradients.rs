//! Per-example gradients.

use burn::tensor::Tensor;

use crate::adaclip::AffineTransform;
use crate::error::{OptimError, same_length};
use crate::kernels::combined_units;
use crate::row_map::RowMap;

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
