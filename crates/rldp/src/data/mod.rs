//! Private tables: from a file to the texts of privacy units, split into parts.
//!
//! ```text
//! file --read_table--> Table --units--> Unit ids --Splitter--> parts --TextSource--> texts
//! ```
//!
//! [`Corpus::build`] goes the whole way. Whatever is wrong with a file is a [`DataError`] with file and line, and no error,
//! log or `Debug` output of this module ever holds the text of a record.
//!
//! # Example
//! ```
//! use rldp::data::{Corpus, CorpusOptions, DataKey, ReadOptions, Template, read_bytes};
//!
//! let table = read_bytes("visits.csv", b"id,age,reason\n7,62.8,cough\n7,63.1,\n9,41.0,fall\n", &ReadOptions::default())?;
//! let options = CorpusOptions {
//!     template: Some(Template::new("note", "Aged {{ age|fixed }}{% if reason %}, seen for {{ reason }}{% endif %}.")?),
//!     unit_column: Some("id".into()),
//!     ..CorpusOptions::default()
//! };
//! let corpus = Corpus::build(&table, &options, &DataKey::from_seed(1))?;
//! assert_eq!(corpus.train.len() + corpus.validation.len() + corpus.test.len(), 2);
//! # Ok::<(), rldp::data::DataError>(())
//! ```

mod corpus;
mod csv;
mod error;
mod jsonl;
mod key;
mod read;
mod select;
mod split;
mod table;
mod template;
mod text;
mod unit;

#[cfg(test)]
mod tests;

pub use corpus::{Corpus, CorpusOptions, TextUnit, public_texts};
pub use error::{ColumnNames, DataError, Place};
pub use key::{DataKey, fingerprint};
pub use read::{Format, Limits, ReadOptions, TextRecords, read_bytes, read_table};
pub use select::TextSource;
pub use split::{Fractions, Part, Splitter};
pub use table::Table;
pub use template::{BoundTemplate, Template};
pub use unit::{Unit, UnitId, units};
