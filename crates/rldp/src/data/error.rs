//! What can go wrong between a file on disk and a unit's text.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// A place in an input file. Lines and columns count from one; a column is a byte within its line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file, as the user named it.
    pub file: String,
    /// The line, counting from one.
    pub line: u64,
    /// The byte within the line, counting from one, where it is known.
    pub column: Option<u64>,
}

impl Place {
    pub(crate) fn line(file: &str, line: u64) -> Self {
        Self {
            file: file.to_owned(),
            line,
            column: None,
        }
    }

    pub(crate) fn at(file: &str, line: u64, column: u64) -> Self {
        Self {
            file: file.to_owned(),
            line,
            column: Some(column),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.file, self.line)?;
        if let Some(column) = self.column {
            write!(formatter, ":{column}")?;
        }
        Ok(())
    }
}

/// The column names of a table, shortened for a message.
///
/// Column names are treated as public: they are the table's schema. In a file that lacks a header line the first
/// record is taken for one, so names are cut to 40 characters and control characters are replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnNames(pub Vec<String>);

const NAME_CHARACTERS: usize = 40;
const NAMES_SHOWN: usize = 60;

pub(crate) fn shown_name(name: &str) -> String {
    let mut shown: String = name
        .chars()
        .take(NAME_CHARACTERS)
        .map(|character| {
            if character.is_control() {
                ' '
            } else {
                character
            }
        })
        .collect();
    if name.chars().nth(NAME_CHARACTERS).is_some() {
        shown.push_str("...");
    }
    shown
}

impl ColumnNames {
    pub(crate) fn of(columns: &[String]) -> Self {
        Self(columns.iter().map(|name| shown_name(name)).collect())
    }
}

impl fmt::Display for ColumnNames {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.len().min(NAMES_SHOWN);
        formatter.write_str(&self.0[..shown].join(", "))?;
        if shown < self.0.len() {
            write!(formatter, ", and {} more", self.0.len() - shown)?;
        }
        Ok(())
    }
}

/// Errors of the data readers, templates, units and splits.
///
/// # Guarantee
/// No variant carries or prints the content of a cell, a record or a rendered text: only file names, line numbers,
/// column names, sizes, and pieces of the user's own template.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A file could not be opened or read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The format could not be told from the file's name.
    #[error(
        "{file}: cannot tell the format from the name; known endings: .csv, .tsv, .jsonl, .ndjson, .json (one object a line), .txt, .text, each also with .gz"
    )]
    UnknownFormat {
        /// The file.
        file: String,
    },
    /// The gzip stream is damaged, truncated, or followed by something else.
    #[error("{file}: the gzip data is damaged or cut off ({kind})")]
    Gzip {
        /// The file.
        file: String,
        /// Kind of the decoder's error.
        kind: io::ErrorKind,
    },
    /// The file, once decompressed, is larger than the limit.
    #[error("{file}: larger than the limit of {limit} bytes once decompressed")]
    TooLarge {
        /// The file.
        file: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// The file has no content.
    #[error("{file}: the file is empty")]
    Empty {
        /// The file.
        file: String,
    },
    /// The file has a header line but no record.
    #[error("{file}: there is no record in the file")]
    NoRecords {
        /// The file.
        file: String,
    },
    /// A byte sequence is not UTF-8.
    #[error("{place}: not valid UTF-8{hint}")]
    NotUtf8 {
        /// Where the first bad byte is.
        place: Place,
        /// Empty, or what the encoding seems to be.
        hint: &'static str,
    },
    /// A NUL byte, which no text file has.
    #[error("{place}: a NUL byte; this is not a text file, or it is damaged")]
    NulByte {
        /// Where it is.
        place: Place,
    },
    /// A record has another number of cells than the header.
    #[error("{place}: {found} cells where the header has {expected}")]
    Ragged {
        /// The record's first line.
        place: Place,
        /// Columns of the header.
        expected: usize,
        /// Cells of the record.
        found: usize,
    },
    /// A quoted cell that never ends.
    #[error("{place}: a quoted cell of the record that starts here is never closed")]
    UnclosedQuote {
        /// The record's first line.
        place: Place,
    },
    /// Two columns with one name, or one key twice in a JSON object.
    #[error("{place}: the column `{name}` occurs twice")]
    DuplicateColumn {
        /// The header or the record.
        place: Place,
        /// The name.
        name: String,
    },
    /// More columns than the limit.
    #[error("{place}: more than {limit} columns")]
    TooManyColumns {
        /// The header or the record.
        place: Place,
        /// The limit.
        limit: usize,
    },
    /// A cell, record or column name longer than the limit.
    #[error("{place}: cell {cell} has {bytes} bytes, more than the limit of {limit}")]
    HugeField {
        /// The record's first line.
        place: Place,
        /// Number of the cell within the record, counting from one.
        cell: usize,
        /// Its size.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// A line of a JSONL file is not valid JSON.
    #[error("{place}: not valid JSON ({problem})")]
    Json {
        /// Where parsing stopped.
        place: Place,
        /// What is wrong, without the text.
        problem: &'static str,
    },
    /// A line of a JSONL file is valid JSON but not an object.
    #[error(
        "{place}: every line must be one JSON object, `{{\"column\": value, ...}}`; this one starts like {found}"
    )]
    NotAnObject {
        /// The line.
        place: Place,
        /// What it looks like.
        found: &'static str,
    },
    /// A whole number too large to be kept exactly: two people's identifiers could become one.
    #[error(
        "{place}: the number in column `{name}` is too large to be read exactly; write it as a string"
    )]
    InexactNumber {
        /// The line.
        place: Place,
        /// The column.
        name: String,
    },
    /// A column asked for by name does not exist.
    #[error("there is no column `{name}` for {role}; the columns are: {columns}")]
    UnknownColumn {
        /// What it was wanted for, such as `--text-column`.
        role: &'static str,
        /// The name asked for.
        name: String,
        /// The names there are.
        columns: ColumnNames,
    },
    /// Several columns and neither a text column nor a template.
    #[error("{file} has {} columns; say which one holds the text (--text-column NAME) or how a row becomes text (--template FILE). The columns are: {columns}", columns.0.len())]
    NoTextChosen {
        /// The file.
        file: String,
        /// Its columns.
        columns: ColumnNames,
    },
    /// Both a text column and a template.
    #[error("both a text column (`{text_column}`) and a template were given; give one of them")]
    TwoTexts {
        /// The text column.
        text_column: String,
    },
    /// The template does not parse.
    #[error("template {template}, line {line}: {problem}")]
    TemplateSyntax {
        /// The template's name.
        template: String,
        /// Line of the template.
        line: usize,
        /// The parser's words.
        problem: String,
    },
    /// The template uses a variable that is no column.
    #[error(
        "template {template}: unknown variable `{name}`; the columns are: {columns} (a name that is no identifier: row[\"...\"], or with every other character as an underscore)"
    )]
    TemplateVariable {
        /// The template's name.
        template: String,
        /// The variable.
        name: String,
        /// The columns there are.
        columns: ColumnNames,
    },
    /// The template failed on a row.
    #[error("template {template}, line {line}: {problem} (for the record at {place})")]
    TemplateRender {
        /// The template's name.
        template: String,
        /// Line of the template, zero where it is not known.
        line: usize,
        /// What went wrong, without any value of the row.
        problem: String,
        /// The record.
        place: Place,
    },
    /// A record without an identifier of its privacy unit.
    #[error(
        "{place}: the unit column `{column}` is empty; every record must name the person it belongs to"
    )]
    MissingUnit {
        /// The record.
        place: Place,
        /// The unit column.
        column: String,
    },
    /// Fractions of the split that do not make sense.
    #[error(
        "the split {train}/{validation}/{test} is not three fractions from 0 to 1 that add up to 1, with some training data"
    )]
    Fractions {
        /// Part for training.
        train: f64,
        /// Part for validation.
        validation: f64,
        /// Part for the test.
        test: f64,
    },
    /// Every record is empty once rendered.
    #[error("{file}: no record has any text")]
    NoText {
        /// The file.
        file: String,
    },
    /// A key that is not 64 hexadecimal digits.
    #[error("a data key is 64 hexadecimal digits")]
    BadKey,
    /// The operating system gave no randomness.
    #[error("the operating system gave no randomness for the data key")]
    NoRandomness,
}
