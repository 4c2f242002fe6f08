//! From sampled units to micro-batches of one fixed shape.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use crate::error::OptimError;
use crate::row_map::RowMap;

/// Which rows of a table belong to which privacy unit.
///
/// No `Debug`: it tells who has how many rows.
#[derive(Clone)]
pub struct UnitRows {
    units: Arc<[Vec<usize>]>,
}

impl UnitRows {
    /// Every row is a unit of its own.
    #[must_use]
    pub fn one_each(rows: usize) -> Self {
        Self {
            units: (0..rows).map(|row| vec![row]).collect(),
        }
    }

    /// Rows with equal keys are one unit, the i-th key being that of row i. Units are numbered in the order of their first row.
    #[must_use]
    pub fn from_keys<K: Eq + Hash>(keys: impl IntoIterator<Item = K>) -> Self {
        let mut places = HashMap::new();
        let mut units: Vec<Vec<usize>> = Vec::new();
        for (row, key) in keys.into_iter().enumerate() {
            let place = *places.entry(key).or_insert(units.len());
            if place == units.len() {
                units.push(Vec::new());
            }
            units[place].push(row);
        }
        Self {
            units: units.into(),
        }
    }

    /// Number of units.
    #[must_use]
    pub fn units(&self) -> usize {
        self.units.len()
    }

    /// Rows of the unit that has most.
    #[must_use]
    pub fn largest(&self) -> usize {
        self.units.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// Lays sampled units out in micro-batches of exactly `rows` rows, whole units only; what a micro-batch does not fill is padding.
    /// No units make no micro-batch.
    ///
    /// ```
    /// use rldp_optim::UnitRows;
    /// // Rows 0 and 2 are one person's.
    /// let people = UnitRows::from_keys(["ann", "bob", "ann", "eve"]);
    /// let batches = people.micro_batches(&[0, 1, 2], 2)?;
    /// let rows: Vec<_> = batches.iter().map(|batch| batch.rows().to_vec()).collect();
    /// assert_eq!(rows, [vec![Some(0), Some(2)], vec![Some(1), Some(3)]]);
    /// let batches = people.micro_batches(&[1], 4)?;
    /// assert_eq!(batches[0].rows(), [Some(1), None, None, None]);
    /// assert_eq!(batches[0].filled(0), [1, 0, 0, 0]);
    /// # Ok::<(), rldp_optim::OptimError>(())
    /// ```
    ///
    /// # Errors
    /// [`OptimError::UnknownUnit`] for a unit that does not exist; [`OptimError::UnitTooLarge`] for a unit with more rows than a
    /// micro-batch: its rows must be added up before they are clipped.
    pub fn micro_batches(
        &self,
        units: &[usize],
        rows: usize,
    ) -> Result<Vec<MicroBatch>, OptimError> {
        let mut batches = Vec::new();
        let mut current: Vec<&[usize]> = Vec::new();
        let mut used = 0;
        for &unit in units {
            let own = self.units.get(unit).ok_or(OptimError::UnknownUnit {
                units: self.units(),
            })?;
            if own.len() > rows {
                return Err(OptimError::UnitTooLarge { rows });
            }
            if used + own.len() > rows {
                batches.push(MicroBatch::new(&current, rows)?);
                current.clear();
                used = 0;
            }
            current.push(own);
            used += own.len();
        }
        if !current.is_empty() {
            batches.push(MicroBatch::new(&current, rows)?);
        }
        Ok(batches)
    }
}

/// The rows of one micro-batch, and which unit each belongs to. A unit's gradient is the mean of its rows'.
///
/// It can be added to one step once: there is no `Clone`, and [`crate::Step::add`] takes it. No `Debug`: it tells who is in the batch.
#[must_use = "a micro-batch that is not added to its step is missing from it"]
pub struct MicroBatch {
    rows: Vec<Option<usize>>,
    map: RowMap,
    /// The step it was sampled for; none if it was made by hand.
    pub(crate) step: Option<u64>,
}

impl MicroBatch {
    fn new(units: &[&[usize]], rows: usize) -> Result<Self, OptimError> {
        let mut slots = Vec::with_capacity(rows);
        let mut unit_of_row = Vec::with_capacity(rows);
        let mut weights = Vec::with_capacity(rows);
        for (number, unit) in units.iter().enumerate() {
            for &row in *unit {
                slots.push(Some(row));
                unit_of_row.push(Some(number));
                weights.push(1.0 / unit.len() as f32);
            }
        }
        slots.resize(rows, None);
        unit_of_row.resize(rows, None);
        weights.resize(rows, 0.0);
        Ok(Self {
            rows: slots,
            map: RowMap::summed(&unit_of_row, &weights)?,
            step: None,
        })
    }

    /// The table's row in each place; `None` is padding, which may hold anything.
    #[must_use]
    pub fn rows(&self) -> &[Option<usize>] {
        &self.rows
    }

    /// The table's row in each place, and `padding` in the places that are not used.
    #[must_use]
    pub fn filled(&self, padding: usize) -> Vec<usize> {
        self.rows.iter().map(|row| row.unwrap_or(padding)).collect()
    }

    /// Which rows are which unit's.
    #[must_use]
    pub fn row_map(&self) -> &RowMap {
        &self.map
    }
}
