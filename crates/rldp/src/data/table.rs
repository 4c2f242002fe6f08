//! A table of text cells in one allocation.

use std::fmt;

use super::error::{DataError, Place};

/// Rows of text cells under named columns; an empty cell is a missing value.
///
/// Cells lie one after another in a single string, so that a table with millions of cells costs little more than
/// its file. `Debug` prints sizes and column names, never a cell.
pub struct Table {
    source: String,
    columns: Vec<String>,
    text: String,
    /// End of every cell in `text`.
    ends: Vec<u32>,
    /// For every row, and once more at the end: index of its first cell in `ends`.
    starts: Vec<u32>,
    /// First line of every row.
    lines: Vec<u32>,
}

impl Table {
    /// Name of the file the table was read from.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The column names, in the file's order.
    #[must_use]
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// How many rows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Index of the column of that name.
    #[must_use]
    pub fn column_index(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column == name)
    }

    /// The cell, or an empty string where the row or column does not exist.
    #[must_use]
    pub fn cell(&self, row: usize, column: usize) -> &str {
        if row >= self.len() {
            return "";
        }
        let first = self.starts[row] as usize;
        let index = first + column;
        if index >= self.starts[row + 1] as usize {
            return "";
        }
        let start = if index == 0 {
            0
        } else {
            self.ends[index - 1] as usize
        };
        &self.text[start..self.ends[index] as usize]
    }

    /// The row's cells, one for every column.
    pub fn row(&self, row: usize) -> impl Iterator<Item = &str> {
        (0..self.columns.len()).map(move |column| self.cell(row, column))
    }

    /// Where the row begins in its file.
    #[must_use]
    pub fn place(&self, row: usize) -> Place {
        let line = self.lines.get(row).map_or(0, |line| u64::from(*line));
        Place::line(&self.source, line)
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Table")
            .field("source", &self.source)
            .field("columns", &self.columns)
            .field("rows", &self.len())
            .finish_non_exhaustive()
    }
}

/// Fills a [`Table`] cell by cell.
pub(crate) struct TableBuilder {
    table: Table,
    limit: u64,
}

impl TableBuilder {
    pub(crate) fn new(source: &str, columns: Vec<String>, limit: u64) -> Self {
        Self {
            table: Table {
                source: source.to_owned(),
                columns,
                text: String::new(),
                ends: Vec::new(),
                starts: vec![0],
                lines: Vec::new(),
            },
            limit: limit.min(u64::from(u32::MAX)),
        }
    }

    /// Adds a cell to the row being built.
    pub(crate) fn cell(&mut self, cell: &str) -> Result<(), DataError> {
        self.table.text.push_str(cell);
        let end = u32::try_from(self.table.text.len());
        // The number of cells must fit as well, since rows index them.
        match (end, u32::try_from(self.table.ends.len() + 1)) {
            (Ok(end), Ok(_)) => {
                self.table.ends.push(end);
                Ok(())
            }
            _ => Err(DataError::TooLarge {
                file: self.table.source.clone(),
                limit: self.limit,
            }),
        }
    }

    /// Ends the row, which began at `line`.
    pub(crate) fn end_row(&mut self, line: u64) {
        self.table.starts.push(self.table.ends.len() as u32);
        self.table
            .lines
            .push(u32::try_from(line).unwrap_or(u32::MAX));
    }

    pub(crate) fn finish(self, columns: Option<Vec<String>>) -> Result<Table, DataError> {
        let mut table = self.table;
        if let Some(columns) = columns {
            table.columns = columns;
        }
        if table.is_empty() {
            return Err(DataError::NoRecords { file: table.source });
        }
        table.text.shrink_to_fit();
        Ok(table)
    }
}

/// Column names as used everywhere: trimmed, unnamed ones called `column_N`, no name twice.
pub(crate) fn tidy_columns<'a>(
    names: impl Iterator<Item = &'a str>,
    place: &Place,
) -> Result<Vec<String>, DataError> {
    let mut columns: Vec<String> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for (index, name) in names.enumerate() {
        let name = match name.trim() {
            "" => format!("column_{}", index + 1),
            name => name.to_owned(),
        };
        if !seen.insert(name.clone()) {
            return Err(DataError::DuplicateColumn {
                place: place.clone(),
                name: super::error::shown_name(&name),
            });
        }
        columns.push(name);
    }
    Ok(columns)
}
