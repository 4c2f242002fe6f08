//! Plain text: a table with the single column `text`.

use super::error::{DataError, Place};
use super::read::{Limits, TextRecords};
use super::table::{Table, TableBuilder};

pub(crate) fn parse(
    source: &str,
    text: &str,
    records: TextRecords,
    limits: &Limits,
) -> Result<Table, DataError> {
    let mut table = TableBuilder::new(source, vec!["text".to_owned()], limits.max_bytes);
    let mut push = |record: &str, line: u64| {
        if record.len() > limits.max_field_bytes {
            return Err(DataError::HugeField {
                place: Place::line(source, line),
                cell: 1,
                bytes: record.len(),
                limit: limits.max_field_bytes,
            });
        }
        table.cell(record)?;
        table.end_row(line);
        Ok(())
    };
    let mut paragraph = String::new();
    let mut first = 0;
    for (number, line) in text.lines().enumerate() {
        let number = number as u64 + 1;
        let blank = line.trim().is_empty();
        match records {
            TextRecords::Line if !blank => push(line, number)?,
            TextRecords::Line => {}
            TextRecords::Paragraph if blank => {
                if !paragraph.is_empty() {
                    push(&paragraph, first)?;
                    paragraph.clear();
                }
            }
            TextRecords::Paragraph => {
                if paragraph.is_empty() {
                    first = number;
                } else {
                    paragraph.push('\n');
                }
                paragraph.push_str(line);
            }
        }
    }
    if !paragraph.is_empty() {
        push(&paragraph, first)?;
    }
    table.finish(None)
}
