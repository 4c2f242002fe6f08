//! A private fine-tuning run, from encoded units to a run folder.

mod audit;
mod config;
mod encode;
mod examples;
mod held_out;
mod interval;
mod records;
mod run;
mod step;
mod summary;

pub use config::TrainerConfig;
pub use encode::Encoding;
pub use examples::{MicroBatch, TokenUnit, micro_batches};
pub use held_out::{HeldOut, ReleasedLoss, public_loss};
pub use interval::{AdapterStatistics, IntervalStatistics};
pub use records::{
    DecisionRecord, HeldOutRecord, MetricsWriter, Record, Silent, StepRecord, Watcher,
};
pub use run::{ADAPTER_FOLDER, LEDGER_FILE, METRICS_FILE, RunSetup, TrainingData, fine_tune};
pub use step::PrivateStep;
pub use summary::{AdapterSummary, RunSummary};
