//! A private fine-tuning run, from encoded units to a run folder.

mod audit;
mod bits;
mod checkpoint;
mod config;
mod encode;
mod examples;
mod fingerprint;
mod folder;
mod held_out;
mod interval;
mod manifest;
mod plain;
mod post;
mod records;
mod resume;
mod run;
mod step;
mod summary;
mod trained;

pub use checkpoint::{CHECKPOINT_FOLDER, CHECKPOINT_VERSION};
pub use config::TrainerConfig;
pub use encode::Encoding;
pub use examples::{MicroBatch, TokenUnit, micro_batches};
pub use fingerprint::{model_fingerprint, token_fingerprint};
pub use folder::{LOCK_FILE, RunFolder};
pub use held_out::{HeldOut, ReleasedLoss, public_loss};
pub use interval::{AdapterStatistics, IntervalStatistics};
pub use manifest::{ARTEFACTS, Coverage, Entry, MANIFEST_FILE, MANIFEST_VERSION, Manifest};
pub use plain::{PlainStep, PlainSummary, fine_tune_without_privacy};
pub use records::{
    DecisionRecord, HeldOutRecord, MetricsWriter, Record, Silent, StepRecord, Watcher,
};
pub use resume::Lost;
pub use run::{
    ADAPTER_FOLDER, LEDGER_FILE, METRICS_FILE, PUBLIC_VALIDATION, RunSetup, STUDY, Study,
    TrainingData, fine_tune,
};
pub(crate) use run::{Task, carry_out};
pub use step::{PrivateStep, per_unit_gradients};
pub use summary::{AdapterSummary, RunSummary};
pub(crate) use trained::{Trained, restore_optimizer, save_optimizer, squared_norm};
