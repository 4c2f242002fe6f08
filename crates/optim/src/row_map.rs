//! Which rows of per-example gradients belong to which privacy unit.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::error::{OptimError, same_length};

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
