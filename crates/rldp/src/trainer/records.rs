//! What a run writes down as it goes: one JSON line per step, and the events a progress display listens to.
//!
//! Everything here is released or public, so that the file may be shown. Times are left out: how long a step takes tells
//! how many units were sampled.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use rldp_accounting::ledger::Event;
use serde::{Deserialize, Serialize};

use crate::error::RldpError;

/// One line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Record {
    /// After an optimizer step.
    Step(StepRecord),
    /// After a held-out query.
    HeldOut(HeldOutRecord),
    /// After a decision of the controller.
    Decision(DecisionRecord),
}

/// Figures of one optimizer step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Steps taken so far, this one included.
    pub step: u64,
    /// Effective noise multiplier of the step, all terms together.
    pub noise_multiplier: f64,
    /// Noise multiplier of every group: of each adapter, or one of all together where clipping is flat.
    pub group_noise_multipliers: Vec<f64>,
    /// Clipping norm of every group.
    pub clipping_norms: Vec<f64>,
    /// Released clipped share of every adapter, if paid for.
    pub clipped_fractions: Option<Vec<f64>>,
    /// Released mean training loss in nats, if paid for.
    pub training_loss: Option<f64>,
    /// Learning rate used.
    pub learning_rate: f64,
    /// First-moment decay used.
    pub beta_1: f64,
    /// Epsilon of the steps so far, as if their noise had been fixed in advance: for show, since the
    /// guarantee is that of the whole registered budget.
    pub epsilon_spent: f64,
}

/// A released held-out loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldOutRecord {
    /// Steps taken before the query.
    pub step: u64,
    /// Which part: "validation", "test" or "public-validation".
    pub part: String,
    /// Released mean loss in nats per token; exact for public text.
    pub loss: f64,
    /// Standard deviation of the noise in `loss`.
    pub noise: f64,
}

impl HeldOutRecord {
    /// The perplexity: exp of the released loss.
    #[must_use]
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }
}

/// A decision of the controller and what it was worth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecisionRecord {
    /// Steps taken before the decision.
    pub step: u64,
    /// Learning-rate factor chosen.
    pub learning_rate_factor: f64,
    /// First-moment decay chosen.
    pub beta_1: f64,
    /// Noise level wished for, relative to the calibrated one.
    pub noise_wish: f64,
    /// Noise weights chosen.
    pub noise_weights: Vec<f64>,
}

/// What someone who watches a run is told.
pub trait Watcher {
    /// A phase began: loading, auditing, calibrating, and so on.
    fn phase(&mut self, text: &str);
    /// The first step is about to be taken.
    fn begin(&mut self, steps: u64);
    /// Noisy figures were released, and nothing has been done with them yet; the ledger has the event already.
    fn released(&mut self, event: &Event) {
        let _ = event;
    }
    /// A record was written.
    fn record(&mut self, record: &Record);
    /// The run ended.
    fn end(&mut self);
}

/// A watcher that looks away.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Watcher for Silent {
    fn phase(&mut self, _text: &str) {}
    fn begin(&mut self, _steps: u64) {}
    fn record(&mut self, _record: &Record) {}
    fn end(&mut self) {}
}

/// `metrics.jsonl`, written line by line.
#[derive(Debug)]
pub struct MetricsWriter {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl MetricsWriter {
    /// Opens a new file; an existing one is refused.
    ///
    /// # Errors
    /// [`RldpError::File`].
    pub fn create(path: &Path) -> Result<Self, RldpError> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(RldpError::file(path))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            bytes: 0,
        })
    }

    /// Goes on after the first `bytes` bytes of a file, and gives the records in them; what followed is cut off.
    ///
    /// # Errors
    /// [`RldpError::File`]; [`RldpError::Damaged`] for a file that is shorter or holds no records.
    pub fn resume(path: &Path, bytes: u64) -> Result<(Self, Vec<Record>), RldpError> {
        let io = |error| RldpError::file(path)(error);
        let damaged = |reason: String| RldpError::Damaged {
            path: path.to_owned(),
            reason,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(bytes == 0)
            .truncate(false)
            .open(path)
            .map_err(io)?;
        let mut text = String::new();
        (&mut file)
            .take(bytes)
            .read_to_string(&mut text)
            .map_err(io)?;
        if text.len() as u64 != bytes {
            return Err(damaged(
                "the file is shorter than the checkpoint says".to_owned(),
            ));
        }
        let records = text
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()
            .map_err(|error| damaged(format!("not a metrics record: {error}")))?;
        file.set_len(bytes)
            .and_then(|()| file.seek(SeekFrom::Start(bytes)))
            .map_err(io)?;
        let writer = Self {
            path: path.to_owned(),
            file,
            bytes,
        };
        Ok((writer, records))
    }

    /// Appends a line.
    ///
    /// # Errors
    /// [`RldpError::File`] or [`RldpError::Json`].
    pub fn append(&mut self, record: &Record) -> Result<(), RldpError> {
        let mut line = serde_json::to_string(record).map_err(|source| RldpError::Json {
            what: "a metrics record",
            source,
        })?;
        line.push('\n');
        self.file
            .write_all(line.as_bytes())
            .map_err(RldpError::file(&self.path))?;
        self.bytes += line.len() as u64;
        Ok(())
    }

    /// Waits for the disk, and gives the file's length for [`MetricsWriter::resume`].
    ///
    /// # Errors
    /// [`RldpError::File`].
    pub fn sync(&self) -> Result<u64, RldpError> {
        self.file.sync_data().map_err(RldpError::file(&self.path))?;
        Ok(self.bytes)
    }
}
