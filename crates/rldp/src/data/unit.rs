//! Privacy units: whose presence the guarantee hides.

use std::collections::HashMap;
use std::fmt;

use super::error::DataError;
use super::select::find_column;
use super::table::Table;

/// Values of a unit column that say there is none. Grouping such records into one unit, or leaving each alone, would
/// both give some person less than the promised protection, so they are refused.
const MISSING: [&str; 8] = ["", "?", "NA", "N/A", "NaN", "nan", "NULL", "null"];

/// Who a unit is: an opaque value that can be assigned to a part of the split, and nothing else.
///
/// It is derived from private data without a key (a person's number could be found by trying them all), so it cannot
/// be printed or serialised.
#[derive(Clone, PartialEq, Eq)]
pub struct UnitId([u8; 32]);

impl UnitId {
    fn named(name: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"unit:");
        hasher.update(name.as_bytes());
        Self(*hasher.finalize().as_bytes())
    }

    fn of_row<'a>(cells: impl Iterator<Item = &'a str>) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"row:");
        for cell in cells {
            hasher.update(&(cell.len() as u64).to_le_bytes());
            hasher.update(cell.as_bytes());
        }
        Self(*hasher.finalize().as_bytes())
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for UnitId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("UnitId(..)")
    }
}

/// One privacy unit: all the rows of one person, or a single row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Who it is.
    pub id: UnitId,
    /// Its rows in the table, ascending.
    pub rows: Vec<usize>,
}

/// The table's units, in order of their first row.
///
/// With a unit column, all rows with the same value, spaces at its ends left aside, are one unit. Without one, every
/// row is a unit of its own.
///
/// # Guarantee
/// A unit's id depends on that unit's own records alone. In particular the id of a single row is a hash of its cells,
/// not of its number: a removed row would shift the numbers of all later ones, so that adding or removing one record
/// would move others between training, validation and test, and the parts would no longer compose in parallel. (Rows that
/// are equal in every cell get equal ids and so land in the same part, still as separate units.)
///
/// # Errors
/// [`DataError::UnknownColumn`]; [`DataError::MissingUnit`] for a record whose unit is empty or a usual word for "missing".
pub fn units(table: &Table, unit_column: Option<&str>) -> Result<Vec<Unit>, DataError> {
    let Some(name) = unit_column else {
        return Ok((0..table.len())
            .map(|row| Unit {
                id: UnitId::of_row(table.row(row)),
                rows: vec![row],
            })
            .collect());
    };
    let column = find_column(table, name, "--unit-column")?;
    let mut units: Vec<Unit> = Vec::new();
    let mut index_of: HashMap<&str, usize> = HashMap::new();
    for row in 0..table.len() {
        let value = table.cell(row, column).trim();
        if MISSING.contains(&value) {
            return Err(DataError::MissingUnit {
                place: table.place(row),
                column: name.to_owned(),
            });
        }
        let index = *index_of.entry(value).or_insert_with(|| {
            units.push(Unit {
                id: UnitId::named(value),
                rows: Vec::new(),
            });
            units.len() - 1
        });
        units[index].rows.push(row);
    }
    Ok(units)
}
