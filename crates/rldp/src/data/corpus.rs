//! The whole way: table, units, parts, texts.

use std::fmt;

use super::error::DataError;
use super::key::{DataKey, fingerprint};
use super::select::TextSource;
use super::split::{Fractions, Part, Splitter};
use super::table::Table;
use super::template::Template;
use super::unit::{Unit, units};

/// The texts of one privacy unit. `Debug` prints how many there are.
#[derive(Clone, PartialEq, Eq)]
pub struct TextUnit {
    /// One text per row that has any, at least one.
    pub texts: Vec<String>,
}

impl fmt::Debug for TextUnit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "TextUnit({} texts)", self.texts.len())
    }
}

/// How a table becomes a [`Corpus`].
#[derive(Clone, Debug, Default)]
pub struct CorpusOptions {
    /// The column that holds the text.
    pub text_column: Option<String>,
    /// The template that renders a row.
    pub template: Option<Template>,
    /// The column that names the person a row belongs to.
    pub unit_column: Option<String>,
    /// How large the parts are.
    pub fractions: Fractions,
}

/// A data set ready for private training.
#[derive(Clone, Debug)]
pub struct Corpus {
    /// Units to train on.
    pub train: Vec<TextUnit>,
    /// Units to take decisions on.
    pub validation: Vec<TextUnit>,
    /// Units to measure the result on.
    pub test: Vec<TextUnit>,
    /// The table's keyed [`fingerprint`].
    pub fingerprint: String,
    /// What a unit is, in words, for ledger and report: `one row`, or `all rows with the same patient_nbr`.
    pub unit: String,
    /// Units left out since none of their rows has any text. Which ones are left out depends on each unit alone, so
    /// privacy is not touched; the number itself is private.
    pub units_without_text: usize,
}

impl Corpus {
    /// Groups the table's rows into units, assigns every unit to a part by the keyed hash of its id, and only then
    /// renders the texts.
    ///
    /// # Errors
    /// See [`DataError`]; [`DataError::NoText`] if every text is empty.
    pub fn build(table: &Table, options: &CorpusOptions, key: &DataKey) -> Result<Self, DataError> {
        let source = TextSource::choose(
            table,
            options.text_column.as_deref(),
            options.template.as_ref(),
        )?;
        let units = units(table, options.unit_column.as_deref())?;
        let splitter = Splitter::new(key, options.fractions);
        let mut corpus = Self {
            train: Vec::new(),
            validation: Vec::new(),
            test: Vec::new(),
            fingerprint: fingerprint(table, key),
            unit: options.unit_column.as_ref().map_or_else(
                || "one row".to_owned(),
                |column| format!("all rows with the same {column}"),
            ),
            units_without_text: 0,
        };
        for unit in &units {
            let part = splitter.part(&unit.id);
            let texts = texts_of(table, &source, unit)?;
            if texts.is_empty() {
                corpus.units_without_text += 1;
                continue;
            }
            corpus.part_mut(part).push(TextUnit { texts });
        }
        if corpus.units_without_text == units.len() {
            return Err(DataError::NoText {
                file: table.source().to_owned(),
            });
        }
        Ok(corpus)
    }

    /// The units of a part.
    #[must_use]
    pub fn part(&self, part: Part) -> &[TextUnit] {
        match part {
            Part::Train => &self.train,
            Part::Validation => &self.validation,
            Part::Test => &self.test,
        }
    }

    fn part_mut(&mut self, part: Part) -> &mut Vec<TextUnit> {
        match part {
            Part::Train => &mut self.train,
            Part::Validation => &mut self.validation,
            Part::Test => &mut self.test,
        }
    }
}

/// Every text of a table without units or parts: for public text, such as a public validation file.
///
/// # Errors
/// See [`DataError`]; [`DataError::NoText`] if every text is empty.
pub fn public_texts(
    table: &Table,
    text_column: Option<&str>,
    template: Option<&Template>,
) -> Result<Vec<String>, DataError> {
    let source = TextSource::choose(table, text_column, template)?;
    let mut texts = Vec::with_capacity(table.len());
    for row in 0..table.len() {
        let text = source.text(table, row)?;
        if !text.is_empty() {
            texts.push(text);
        }
    }
    if texts.is_empty() {
        return Err(DataError::NoText {
            file: table.source().to_owned(),
        });
    }
    Ok(texts)
}

fn texts_of(table: &Table, source: &TextSource, unit: &Unit) -> Result<Vec<String>, DataError> {
    let mut texts = Vec::with_capacity(unit.rows.len());
    for row in &unit.rows {
        let text = source.text(table, *row)?;
        if !text.is_empty() {
            texts.push(text);
        }
    }
    Ok(texts)
}
