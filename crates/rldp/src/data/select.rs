//! Which text a row stands for.

use super::error::{ColumnNames, DataError};
use super::table::Table;
use super::template::{BoundTemplate, Template};

/// How a row of a certain table becomes text.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum TextSource {
    /// The cell of one column, as it is but for spaces at its ends.
    Column {
        /// Index of the column.
        index: usize,
        /// Its name.
        name: String,
    },
    /// A template.
    Template(BoundTemplate),
}

impl TextSource {
    /// Chooses the text: the named column, or the template, or the only column there is.
    ///
    /// # Errors
    /// [`DataError::NoTextChosen`] names the columns of a table with several where neither is given;
    /// [`DataError::TwoTexts`], [`DataError::UnknownColumn`], [`DataError::TemplateVariable`].
    pub fn choose(
        table: &Table,
        text_column: Option<&str>,
        template: Option<&Template>,
    ) -> Result<Self, DataError> {
        match (text_column, template) {
            (Some(name), Some(_)) => Err(DataError::TwoTexts {
                text_column: name.to_owned(),
            }),
            (Some(name), None) => {
                let index = find_column(table, name, "--text-column")?;
                Ok(Self::Column {
                    index,
                    name: name.to_owned(),
                })
            }
            (None, Some(template)) => Ok(Self::Template(template.bind(table)?)),
            (None, None) => match table.columns() {
                [only] => Ok(Self::Column {
                    index: 0,
                    name: only.clone(),
                }),
                columns => Err(DataError::NoTextChosen {
                    file: table.source().to_owned(),
                    columns: ColumnNames::of(columns),
                }),
            },
        }
    }

    /// The row's text; empty where there is none.
    ///
    /// # Errors
    /// Those of [`BoundTemplate::render`].
    pub fn text(&self, table: &Table, row: usize) -> Result<String, DataError> {
        match self {
            Self::Column { index, .. } => Ok(table.cell(row, *index).trim().to_owned()),
            Self::Template(template) => template.render(table, row),
        }
    }
}

pub(crate) fn find_column(
    table: &Table,
    name: &str,
    role: &'static str,
) -> Result<usize, DataError> {
    table
        .column_index(name)
        .ok_or_else(|| DataError::UnknownColumn {
            role,
            name: name.to_owned(),
            columns: ColumnNames::of(table.columns()),
        })
}
