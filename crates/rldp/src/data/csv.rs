//! CSV and TSV with a header line.

use super::error::{DataError, Place};
use super::read::Limits;
use super::table::{Table, TableBuilder, tidy_columns};

pub(crate) fn parse(
    source: &str,
    text: &str,
    delimiter: u8,
    limits: &Limits,
) -> Result<Table, DataError> {
    // Ragged records are let through by the parser and refused here, so that the error says where.
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .delimiter(delimiter)
        .from_reader(text.as_bytes());
    let mut record = csv::StringRecord::new();
    let mut last = Start { line: 1, byte: 0 };
    if !next(source, text, &mut reader, &mut record, &mut last)? {
        return Err(DataError::Empty {
            file: source.to_owned(),
        });
    }
    let header = Place::line(source, last.line);
    if record.len() > limits.max_columns {
        return Err(DataError::TooManyColumns {
            place: header,
            limit: limits.max_columns,
        });
    }
    check_fields(source, &record, last.line, limits)?;
    let columns = tidy_columns(record.iter(), &header)?;
    let width = columns.len();
    let mut table = TableBuilder::new(source, columns, limits.max_bytes);
    while next(source, text, &mut reader, &mut record, &mut last)? {
        if record.len() != width {
            // A quote left open swallows what follows, which shows as a ragged record: say what it really is.
            check_closed(source, text, &last, delimiter)?;
            return Err(DataError::Ragged {
                place: Place::line(source, last.line),
                expected: width,
                found: record.len(),
            });
        }
        if let Err(error) = check_fields(source, &record, last.line, limits) {
            check_closed(source, text, &last, delimiter)?;
            return Err(error);
        }
        for cell in &record {
            table.cell(cell)?;
        }
        table.end_row(last.line);
    }
    check_closed(source, text, &last, delimiter)?;
    table.finish(None)
}

/// Where a record starts.
struct Start {
    line: u64,
    byte: usize,
}

impl Start {
    /// Moves on to the record that the parser found at `byte`. The parser counts the second half of a CRLF and blank
    /// lines as part of what follows them, so lines are counted here.
    fn advance(&mut self, text: &str, byte: usize) {
        let bytes = text.as_bytes();
        let blank = bytes.get(byte..).unwrap_or_default();
        let skipped = blank
            .iter()
            .take_while(|byte| matches!(byte, b'\r' | b'\n'))
            .count();
        let passed = bytes.get(self.byte..byte + skipped).unwrap_or_default();
        self.line += passed.iter().filter(|byte| **byte == b'\n').count() as u64;
        self.byte = byte + skipped;
    }
}

fn next(
    source: &str,
    text: &str,
    reader: &mut csv::Reader<&[u8]>,
    record: &mut csv::StringRecord,
    start: &mut Start,
) -> Result<bool, DataError> {
    // The text is UTF-8 and the parser flexible, so that only reading could fail, and memory does not.
    let more = reader.read_record(record).map_err(|error| DataError::Io {
        path: source.into(),
        source: std::io::Error::other(match error.kind() {
            csv::ErrorKind::Io(_) => "reading the table failed",
            _ => "the table could not be parsed",
        }),
    })?;
    if more && let Some(position) = record.position() {
        start.advance(text, position.byte() as usize);
    }
    Ok(more)
}

fn check_fields(
    source: &str,
    record: &csv::StringRecord,
    line: u64,
    limits: &Limits,
) -> Result<(), DataError> {
    match record
        .iter()
        .enumerate()
        .find(|(_, cell)| cell.len() > limits.max_field_bytes)
    {
        None => Ok(()),
        Some((index, cell)) => Err(DataError::HugeField {
            place: Place::line(source, line),
            cell: index + 1,
            bytes: cell.len(),
            limit: limits.max_field_bytes,
        }),
    }
}

/// The parser accepts a quote that is still open at the end of the file; a reader of private records must not.
fn check_closed(source: &str, text: &str, last: &Start, delimiter: u8) -> Result<(), DataError> {
    let record = text.as_bytes().get(last.byte..).unwrap_or_default();
    if ends_inside_quotes(record, delimiter) {
        return Err(DataError::UnclosedQuote {
            place: Place::line(source, last.line),
        });
    }
    Ok(())
}

/// Whether `bytes`, which begin where a record does, end within a quoted cell.
fn ends_inside_quotes(bytes: &[u8], delimiter: u8) -> bool {
    let mut inside = false;
    let mut cell_start = true;
    let mut index = 0;
    while index < bytes.len() {
        let byte = bytes[index];
        if inside {
            if byte == b'"' {
                if bytes.get(index + 1) == Some(&b'"') {
                    index += 1;
                } else {
                    inside = false;
                }
            }
            cell_start = false;
        } else if byte == b'"' && cell_start {
            inside = true;
        } else {
            cell_start = byte == delimiter || byte == b'\n' || byte == b'\r';
        }
        index += 1;
    }
    inside
}
