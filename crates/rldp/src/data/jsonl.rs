//! One JSON object per line.

use std::collections::HashMap;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;

use super::error::{DataError, Place, shown_name};
use super::read::Limits;
use super::table::{Table, TableBuilder};

/// Columns are the union of all keys in order of first appearance; a key that a record lacks, or `null`, is a
/// missing value. Numbers and booleans become text; lists and objects become compact JSON.
pub(crate) fn parse(source: &str, text: &str, limits: &Limits) -> Result<Table, DataError> {
    let mut columns: Vec<String> = Vec::new();
    let mut index_of: HashMap<String, usize> = HashMap::new();
    let mut table = TableBuilder::new(source, Vec::new(), limits.max_bytes);
    let mut cells: Vec<Option<String>> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let number = number as u64 + 1;
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        if !line.starts_with('{') {
            return Err(DataError::NotAnObject {
                place: Place::line(source, number),
                found: kind(line),
            });
        }
        let Record(pairs) =
            serde_json::from_str(line).map_err(|error| json_error(source, number, &error))?;
        cells.clear();
        cells.resize(columns.len(), None);
        for (name, cell) in pairs {
            let place = || Place::line(source, number);
            let index = match index_of.get(&name) {
                Some(index) => *index,
                None if columns.len() == limits.max_columns => {
                    return Err(DataError::TooManyColumns {
                        place: place(),
                        limit: limits.max_columns,
                    });
                }
                None => {
                    columns.push(name.clone());
                    index_of.insert(name.clone(), columns.len() - 1);
                    cells.push(None);
                    columns.len() - 1
                }
            };
            let cell = match cell {
                Cell::Text(cell) => cell,
                Cell::Nul => return Err(DataError::NulByte { place: place() }),
                Cell::Inexact => {
                    return Err(DataError::InexactNumber {
                        place: place(),
                        name: shown_name(&name),
                    });
                }
            };
            let bytes = cell.len().max(name.len());
            if bytes > limits.max_field_bytes {
                return Err(DataError::HugeField {
                    place: place(),
                    cell: index + 1,
                    bytes,
                    limit: limits.max_field_bytes,
                });
            }
            if cells[index].replace(cell).is_some() {
                return Err(DataError::DuplicateColumn {
                    place: place(),
                    name: shown_name(&name),
                });
            }
        }
        for cell in &cells {
            table.cell(cell.as_deref().unwrap_or_default())?;
        }
        table.end_row(number);
    }
    table.finish(Some(columns))
}

fn kind(line: &str) -> &'static str {
    match line.as_bytes().first() {
        Some(b'[') => "a list",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "true or false",
        Some(b'n') => "null",
        Some(b'-' | b'0'..=b'9') => "a number",
        _ => "something else",
    }
}

/// Position and kind of the error. The parser's own message may quote the text, so it is left out.
fn json_error(source: &str, line: u64, error: &serde_json::Error) -> DataError {
    DataError::Json {
        place: Place::at(source, line, error.column() as u64),
        problem: match error.classify() {
            Category::Eof => "it ends too early",
            Category::Syntax => "syntax",
            Category::Data => "unexpected kind of value",
            Category::Io => "reading failed",
        },
    }
}

/// The pairs in the file's order, duplicates included, which a map would hide.
struct Record(Vec<(String, Cell)>);

enum Cell {
    Text(String),
    /// A string with a NUL, escaped or not.
    Nul,
    /// A whole number beyond what a float holds exactly.
    Inexact,
}

impl<'de> Deserialize<'de> for Record {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Record;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Record, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Record(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

impl<'de> Deserialize<'de> for Cell {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(CellVisitor)
    }
}

struct CellVisitor;

fn nested<E: de::Error>(value: Result<serde_json::Value, E>) -> Result<Cell, E> {
    Ok(Cell::Text(value?.to_string()))
}

impl<'de> Visitor<'de> for CellVisitor {
    type Value = Cell;
    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value")
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<Cell, E> {
        if text.contains('\0') {
            return Ok(Cell::Nul);
        }
        Ok(Cell::Text(text.to_owned()))
    }
    fn visit_bool<E>(self, value: bool) -> Result<Cell, E> {
        Ok(Cell::Text(value.to_string()))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Cell, E> {
        Ok(Cell::Text(value.to_string()))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Cell, E> {
        Ok(Cell::Text(value.to_string()))
    }
    fn visit_f64<E>(self, value: f64) -> Result<Cell, E> {
        const EXACT: f64 = 9_007_199_254_740_992.0; // 2^53
        if value.abs() >= EXACT {
            return Ok(Cell::Inexact);
        }
        Ok(Cell::Text(value.to_string()))
    }
    fn visit_unit<E>(self) -> Result<Cell, E> {
        Ok(Cell::Text(String::new()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, sequence: A) -> Result<Cell, A::Error> {
        nested(serde_json::Value::deserialize(
            de::value::SeqAccessDeserializer::new(sequence),
        ))
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Cell, A::Error> {
        nested(serde_json::Value::deserialize(
            de::value::MapAccessDeserializer::new(map),
        ))
    }
}
