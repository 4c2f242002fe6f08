//! From a file, plain or gzipped, to a [`Table`].

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;

use super::error::{DataError, Place};
use super::table::Table;
use super::{csv, jsonl, text};

/// How records lie in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// Comma-separated values with a header line (RFC 4180).
    Csv,
    /// The same with tabs.
    Tsv,
    /// One JSON object per line.
    JsonLines,
    /// Plain text; see [`TextRecords`].
    Text,
}

impl Format {
    /// The format that a file's name tells, an ending `.gz` left aside.
    ///
    /// # Errors
    /// [`DataError::UnknownFormat`] for any other ending.
    pub fn of_name(name: &str) -> Result<Self, DataError> {
        let lower = name.to_lowercase();
        let stem = lower.strip_suffix(".gz").unwrap_or(&lower);
        match stem.rsplit_once('.').map(|(_, ending)| ending) {
            Some("csv") => Ok(Self::Csv),
            Some("tsv" | "tab") => Ok(Self::Tsv),
            Some("jsonl" | "ndjson" | "json") => Ok(Self::JsonLines),
            Some("txt" | "text") => Ok(Self::Text),
            _ => Err(DataError::UnknownFormat {
                file: name.to_owned(),
            }),
        }
    }
}

/// What one record of a plain text file is, and so, without a unit column, what is protected.
///
/// The choice is the user's and never guessed from the file: what is protected must not depend on the data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TextRecords {
    /// Every line that is not blank.
    #[default]
    Line,
    /// Every paragraph: lines up to the next blank one, joined as they are.
    Paragraph,
}

/// Bounds on what a file may make the reader hold in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the whole file once decompressed; never more than 4 GiB. Default 1 GiB.
    pub max_bytes: u64,
    /// Bytes of one cell. Default 1 MiB.
    pub max_field_bytes: usize,
    /// Columns. Default 4,096.
    pub max_columns: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_bytes: 1 << 30,
            max_field_bytes: 1 << 20,
            max_columns: 4096,
        }
    }
}

/// How to read a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// The format; `None` goes by the file's name.
    pub format: Option<Format>,
    /// What a record of a plain text file is.
    pub text_records: TextRecords,
    /// Bounds.
    pub limits: Limits,
}

/// Reads a table from a file; gzip is recognised by its first bytes, whatever the name.
///
/// # Errors
/// See [`DataError`]: everything a file can have wrong is told with file and line, never with its content.
pub fn read_table(path: &Path, options: &ReadOptions) -> Result<Table, DataError> {
    let source = path.display().to_string();
    let format = options
        .format
        .map_or_else(|| Format::of_name(&source), Ok)?;
    let io_error = |source| DataError::Io {
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(io_error)?;
    let mut magic = Vec::with_capacity(2);
    (&mut file)
        .take(2)
        .read_to_end(&mut magic)
        .map_err(io_error)?;
    let gzipped = magic == GZIP;
    let stream = io::Cursor::new(magic).chain(file);
    let bytes = if gzipped {
        decompress(stream, &source, &options.limits)?
    } else {
        take(stream, &source, &options.limits, io_error)?
    };
    parse(&source, bytes, format, options)
}

/// Reads a table from bytes in memory, such as an embedded file; `name` stands for the file's name.
///
/// # Errors
/// As [`read_table`].
pub fn read_bytes(name: &str, bytes: &[u8], options: &ReadOptions) -> Result<Table, DataError> {
    let format = options.format.map_or_else(|| Format::of_name(name), Ok)?;
    let bytes = if bytes.starts_with(&GZIP) {
        decompress(bytes, name, &options.limits)?
    } else {
        let io_error = |source| DataError::Io {
            path: name.into(),
            source,
        };
        take(bytes, name, &options.limits, io_error)?
    };
    parse(name, bytes, format, options)
}

const GZIP: [u8; 2] = [0x1f, 0x8b];

fn decompress(stream: impl Read, source: &str, limits: &Limits) -> Result<Vec<u8>, DataError> {
    let damaged = |error: io::Error| DataError::Gzip {
        file: source.to_owned(),
        kind: error.kind(),
    };
    take(MultiGzDecoder::new(stream), source, limits, damaged)
}

/// Everything the stream holds, or an error as soon as it holds more than the limit: a gzip bomb costs no more
/// memory than the limit allows.
fn take(
    stream: impl Read,
    source: &str,
    limits: &Limits,
    on_error: impl Fn(io::Error) -> DataError,
) -> Result<Vec<u8>, DataError> {
    let limit = limits.max_bytes.min(u64::from(u32::MAX));
    let mut bytes = Vec::new();
    stream
        .take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(on_error)?;
    if bytes.len() as u64 > limit {
        return Err(DataError::TooLarge {
            file: source.to_owned(),
            limit,
        });
    }
    Ok(bytes)
}

fn parse(
    source: &str,
    bytes: Vec<u8>,
    format: Format,
    options: &ReadOptions,
) -> Result<Table, DataError> {
    let text = decode(source, bytes)?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    if text.trim().is_empty() {
        return Err(DataError::Empty {
            file: source.to_owned(),
        });
    }
    match format {
        Format::Csv => csv::parse(source, text, b',', &options.limits),
        Format::Tsv => csv::parse(source, text, b'\t', &options.limits),
        Format::JsonLines => jsonl::parse(source, text, &options.limits),
        Format::Text => text::parse(source, text, options.text_records, &options.limits),
    }
}

/// Checks the encoding of the whole file before anything is parsed.
fn decode(source: &str, bytes: Vec<u8>) -> Result<String, DataError> {
    let hint = if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        "; it looks like UTF-16"
    } else {
        ""
    };
    let text = String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        DataError::NotUtf8 {
            place: place_of(source, error.as_bytes(), good),
            hint,
        }
    })?;
    if let Some(offset) = text.bytes().position(|byte| byte == 0) {
        return Err(DataError::NulByte {
            place: place_of(source, text.as_bytes(), offset),
        });
    }
    Ok(text)
}

fn place_of(source: &str, bytes: &[u8], offset: usize) -> Place {
    let before = &bytes[..offset];
    let line = 1 + before.iter().filter(|byte| **byte == b'\n').count() as u64;
    let start = before
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |newline| newline + 1);
    Place::at(source, line, (offset - start) as u64 + 1)
}
