//! The one error type of this crate.

use std::path::PathBuf;

use thiserror::Error;

/// Everything that can go wrong in a run. Variants carry the offending value, never private text.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RldpError {
    /// A number outside its range.
    #[error("{what} is {value}, which is outside {range}")]
    OutOfRange {
        /// What the number is.
        what: &'static str,
        /// The offending value.
        value: f64,
        /// The range it must lie in.
        range: &'static str,
    },
    /// A name that is none of those known.
    #[error("unknown {what} '{given}': known are {known}")]
    UnknownName {
        /// What kind of thing was named.
        what: &'static str,
        /// The name given.
        given: String,
        /// The names known.
        known: String,
    },
    /// The model has no adapter to train.
    #[error("the model has no adapter: none of its layers matched the target modules")]
    NoAdapters,
    /// A model to be trained in full has parameters that it does not show layer by layer, such as adapters.
    #[error(
        "{tensors} parameter tensors are in none of the layers that the model shows; remove adapters before training all parameters"
    )]
    UncoveredParameters {
        /// How many tensors.
        tensors: usize,
    },
    /// A model to be trained in full holds parameters in half precision, in which small updates would be lost.
    #[error(
        "{tensors} parameter tensors are held in half precision; load the model in f32 to train all parameters"
    )]
    HalfPrecision {
        /// How many tensors.
        tensors: usize,
    },
    /// A private run was asked for what only a seeded one may show.
    #[error(
        "exact losses are for seeded studies: without a seed a run is private, and must not show them"
    )]
    StudyWithoutSeed,
    /// A part of the data holds no unit.
    #[error("the {part} part holds no privacy unit: {units} units in all")]
    EmptyPart {
        /// Which part.
        part: &'static str,
        /// Units in the whole table.
        units: usize,
    },
    /// A held-out part was asked more often than its budget was calibrated for.
    #[error("the {part} part has answered all the queries its budget allows")]
    QueriesSpent {
        /// Which part.
        part: &'static str,
    },
    /// Two lists that must have one entry per adapter differ in length.
    #[error("{what} has {found} entries for {expected} adapters")]
    AdapterCount {
        /// Which list.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The number of adapters.
        expected: usize,
    },
    /// The first update moved no weight.
    #[error(
        "after step {step} no trained weight has moved (learning rate {learning_rate}): the run would spend privacy and learn nothing"
    )]
    NothingMoved {
        /// The step.
        step: u64,
        /// The learning rate used.
        learning_rate: f64,
    },
    /// A released loss or a trained weight is not a finite number.
    #[error("{what} is not a finite number after step {step}: {value}")]
    NotFinite {
        /// What is not finite.
        what: &'static str,
        /// The step.
        step: u64,
        /// Its value.
        value: f64,
    },
    /// The run folder holds a run already.
    #[error(
        "{path} holds a run already; go on with it by --resume, or name another folder with --out"
    )]
    RunExists {
        /// The folder.
        path: PathBuf,
    },
    /// The folder to resume from holds no run.
    #[error("{path} holds no run to resume; start one there with --out")]
    NoRun {
        /// The folder.
        path: PathBuf,
    },
    /// Another process works on the run folder.
    #[error("{path} is in use by another process")]
    FolderInUse {
        /// The folder.
        path: PathBuf,
    },
    /// A resumed run was given other settings, data or another model than it was started with.
    #[error("the run cannot be resumed with other settings: {}", differences.join("; "))]
    Changed {
        /// What differs, each with the value then and now.
        differences: Vec<String>,
    },
    /// A file of an interrupted run that cannot be used.
    #[error("{path}: {reason}")]
    Damaged {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A checkpoint of another version of this crate.
    #[error("{path} is a checkpoint of version {found}; this build reads version {supported}")]
    CheckpointVersion {
        /// The checkpoint.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The version read here.
        supported: u32,
    },
    /// A file could not be written or read.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A value could not be written as JSON.
    #[error("cannot write {what} as JSON: {source}")]
    Json {
        /// What was to be written.
        what: &'static str,
        /// The cause.
        source: serde_json::Error,
    },
    /// The mechanism failed its own audit.
    #[error(
        "the self-audit's lower bound {lower_bound} exceeds the claimed epsilon {claimed}: the mechanism is broken, nothing was trained"
    )]
    SelfAuditFailed {
        /// Empirical lower bound on epsilon.
        lower_bound: f64,
        /// The claimed epsilon.
        claimed: f64,
    },
    /// From the data readers.
    #[error(transparent)]
    Data(#[from] crate::data::DataError),
    /// From the accountant.
    #[error(transparent)]
    Accounting(#[from] rldp_accounting::AccountingError),
    /// From the optimizer.
    #[error(transparent)]
    Optim(#[from] rldp_optim::OptimError),
    /// From the adapters.
    #[error(transparent)]
    Lora(#[from] rldp_lora::LoraError),
    /// From the models.
    #[error(transparent)]
    Model(#[from] rldp_models::ModelError),
    /// From the agent.
    #[error(transparent)]
    Sac(#[from] rldp_sac::SacError),
    /// From the audit.
    #[error(transparent)]
    Audit(#[from] rldp_audit::AuditError),
}

impl RldpError {
    /// Wraps an input or output error with the path it happened at.
    pub fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}
