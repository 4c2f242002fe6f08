//! `report.html`: what a run did, what it guarantees, and what it does not, on one self-contained page.
//!
//! Fill a [`RunReport`] with plain values and call [`RunReport::to_html`]. The page holds its styles and its charts (inline SVG)
//! and fetches nothing; there are no scripts in it. It follows the reader's light or dark preference, and prints.
//!
//! Everything put into a report is published with it: only released or public values belong here. Text is escaped,
//! so that a file name or a generated sample cannot become markup.
//!
//! # Example
//! ```
//! use rldp::report::{Guarantee, RunReport, Series};
//!
//! let mut report = RunReport::new(
//!     "SUPPORT2 notes",
//!     Guarantee {
//!         unit: "one row (one patient)".into(),
//!         adjacency: "add or remove one unit".into(),
//!         epsilon: 7.9931,
//!         target_epsilon: 8.0,
//!         delta: 5.6e-5,
//!         accountant: "privacy loss distribution, certified upper bound".into(),
//!         covered: vec!["the adapter".into(), "every figure on this page".into()],
//!         not_covered: vec!["exact losses printed by other programs".into()],
//!     },
//! );
//! report.epsilon = Series::new("spent", vec![(0.0, 0.0), (1.0, 2.1), (2.0, 2.9)]);
//! // Rounded up, never down.
//! assert!(report.to_html().contains("7.994"));
//! ```

mod article;
mod chart;
mod guarantee;
mod markup;
mod number;
mod page;
mod section;
mod series;

#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;

pub use article::Article;
pub use chart::{Chart, Scale};
pub use guarantee::{Guarantee, SelfAudit};
pub use section::Section;
pub use series::Series;

/// One large number at the top of the report.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figure {
    /// What it is, such as `Validation perplexity after`.
    pub label: String,
    /// The value as it is to be shown, with its unit.
    pub value: String,
    /// A line of small print: how it was measured.
    pub note: String,
}

impl Figure {
    /// A figure; `note` may be empty.
    #[must_use]
    pub fn new(
        label: impl Into<String>,
        value: impl Into<String>,
        note: impl Into<String>,
    ) -> Self {
        Self {
            label: label.into(),
            value: value.into(),
            note: note.into(),
        }
    }
}

/// A table with a header line.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TableData {
    /// Names of the columns.
    pub header: Vec<String>,
    /// Rows; short ones are filled with empty cells, and what exceeds the header is kept.
    pub rows: Vec<Vec<String>>,
}

/// A text the models wrote, before and after private fine-tuning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// What both were given.
    pub prompt: String,
    /// What the base model wrote.
    pub before: String,
    /// What the fine-tuned model wrote: post-processing of the adapter, so covered by its guarantee.
    pub after: String,
}

/// Everything a run's report shows. Empty parts are left out of the page.
#[derive(Clone, Debug)]
pub struct RunReport {
    /// The page's title, such as the data set's name.
    pub title: String,
    /// One line under it: model, data, controller.
    pub subtitle: String,
    /// When it was written, as text.
    pub created: String,
    /// The seed of a seeded run: such a run is not private, and the page says so loudly.
    pub seed: Option<u64>,
    /// The run had no privacy at all: the page says so loudly, and prints no guarantee.
    pub unprotected: bool,
    /// Further warnings, each in a banner of its own (raw telemetry, delta above 1/N, a failed self-audit).
    pub warnings: Vec<String>,
    /// What is promised.
    pub guarantee: Guarantee,
    /// Large numbers at the top.
    pub figures: Vec<Figure>,
    /// Released validation perplexity by step.
    pub perplexity: Vec<Series>,
    /// Released training loss by step, in nats per token.
    pub loss: Vec<Series>,
    /// Epsilon spent by step.
    pub epsilon: Series,
    /// Clipping radius by step, one series per adapter.
    pub radii: Vec<Series>,
    /// Noisy share of clipped units by step, one series per adapter.
    pub clipped: Vec<Series>,
    /// Effective noise multiplier by step.
    pub noise_multiplier: Vec<Series>,
    /// Noise multiplier by step, one series per adapter.
    pub adapter_noise_multipliers: Vec<Series>,
    /// Standard deviation of the noise in the averaged gradient by step, one series per adapter.
    pub noise_std: Vec<Series>,
    /// Learning rate by step.
    pub learning_rate: Vec<Series>,
    /// Charts of other kinds.
    pub more_charts: Vec<Chart>,
    /// Claimed epsilon against the audited lower bound.
    pub self_audit: Option<SelfAudit>,
    /// Texts before and after.
    pub samples: Vec<Sample>,
    /// The adapters: name, shape, last radius and the like.
    pub adapters: TableData,
    /// Queries asked of held-out people: part, name, step, noise, released value.
    pub held_out_queries: TableData,
    /// Settings of the run, by name.
    pub configuration: Vec<(String, String)>,
    /// Versions and machine, by name.
    pub environment: Vec<(String, String)>,
}

impl RunReport {
    /// A report that says only what is guaranteed; fill in the rest.
    #[must_use]
    pub fn new(title: impl Into<String>, guarantee: Guarantee) -> Self {
        Self {
            title: title.into(),
            subtitle: String::new(),
            created: String::new(),
            seed: None,
            unprotected: false,
            warnings: Vec::new(),
            guarantee,
            figures: Vec::new(),
            perplexity: Vec::new(),
            loss: Vec::new(),
            epsilon: Series::default(),
            radii: Vec::new(),
            clipped: Vec::new(),
            noise_multiplier: Vec::new(),
            adapter_noise_multipliers: Vec::new(),
            noise_std: Vec::new(),
            learning_rate: Vec::new(),
            more_charts: Vec::new(),
            self_audit: None,
            samples: Vec::new(),
            adapters: TableData::default(),
            held_out_queries: TableData::default(),
            configuration: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// The page.
    #[must_use]
    pub fn to_html(&self) -> String {
        page::render(self)
    }

    /// Writes the page: first beside `path`, then moved there, so that a crash leaves the old page or the new one.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        write_page(&self.to_html(), path)
    }
}

/// Writes a page beside its place, and moves it there when it is whole and on the disk.
fn write_page(html: &str, path: &Path) -> io::Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    io::Write::write_all(&mut file, html.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}
