//! What a run remembers between two processes.

use std::path::Path;

use rldp_accounting::Segment;
use rldp_accounting::ledger::{Event, Header};
use rldp_lora::{LoraConfig, TensorFile, write_tensors};
use serde::{Deserialize, Serialize};

use super::interval::IntervalStatistics;
use super::trained::Trained;
use crate::controller::{Controller, Decision};
use crate::error::RldpError;
use crate::report::SelfAudit;

/// Trained parameters and running statistics in a checkpoint.
const TENSOR_FILE: &str = "tensors.safetensors";

/// What a run does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Stage {
    /// Release the number of validation units.
    CountValidation,
    /// Release the number of test units.
    CountTest,
    /// Release the test loss before training.
    TestBefore,
    /// Release the validation loss before training.
    ValidationBefore,
    /// Let the controller decide for the first time.
    Decide,
    /// Take steps until the interval ends.
    Step,
    /// Release the validation loss after an interval.
    Validation,
    /// Tell the controller the outcome, and let it decide for the next interval.
    Learn,
    /// Release the test loss after training.
    TestAfter,
    /// Nothing more.
    Done,
}

/// What was spent and lost: in the ledger, but its result in no checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// Optimizer steps.
    pub steps: u64,
    /// Held-out queries.
    pub queries: u64,
}

/// How far a run is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Progress {
    pub stage: Stage,
    /// Steps spent, lost ones included.
    pub taken: u64,
    /// Steps that moved the adapters.
    pub applied: u64,
    /// Index of the interval in progress.
    pub interval: u64,
    /// First released validation loss.
    pub initial: f64,
    /// Last released validation loss, and the one before it.
    pub loss: f64,
    pub before: f64,
    /// In force.
    pub decision: Option<Decision>,
    /// The budget was played out before the interval's end.
    pub played_out: bool,
    pub lost: Lost,
}

impl Progress {
    pub fn new() -> Self {
        Self {
            stage: Stage::CountValidation,
            taken: 0,
            applied: 0,
            interval: 0,
            initial: 0.0,
            loss: 0.0,
            before: 0.0,
            decision: None,
            played_out: false,
            lost: Lost::default(),
        }
    }
}

/// The small things of a checkpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct State {
    /// Fingerprint of the ledger's header: whose checkpoint this is.
    pub run: String,
    /// Events in the ledger when this was written.
    pub ledger_events: u64,
    /// Length of the metrics file when this was written.
    pub metrics_bytes: u64,
    /// Position in a seeded run's stream, as text; a private run's generator is never saved.
    pub random: Option<String>,
    pub progress: Progress,
    /// Released numbers of held-out units.
    pub validation_count: Option<f64>,
    pub test_count: Option<f64>,
    pub statistics: IntervalStatistics,
    pub self_audit: SelfAudit,
    pub controller: serde_json::Value,
}

/// The fingerprint of a ledger's header.
pub(super) fn run_fingerprint(header: &Header) -> Result<String, RldpError> {
    let text = serde_json::to_string(header).map_err(|source| RldpError::Json {
        what: "the ledger's header",
        source,
    })?;
    Ok(blake3::hash(text.as_bytes()).to_hex().to_string())
}

/// Writes the large things of a checkpoint into its folder, and gives the controller's small ones.
pub(super) fn save<M, S: Trained<M>>(
    folder: &Path,
    model: &M,
    step: &S,
    statistics: &IntervalStatistics,
    controller: &dyn Controller,
) -> Result<serde_json::Value, RldpError> {
    let mut tensors = statistics.save_last()?;
    tensors.extend(step.tensors(model)?);
    write_tensors(&folder.join(TENSOR_FILE), &tensors)?;
    drop(tensors);
    step.save_state(folder)?;
    controller.save_state(folder)
}

/// Takes the large things of a checkpoint from its folder.
pub(super) fn restore<M, S: Trained<M>>(
    folder: &Path,
    state: &State,
    lora: &LoraConfig,
    model: M,
    step: &mut S,
    controller: &mut dyn Controller,
) -> Result<(M, IntervalStatistics), RldpError> {
    let file = TensorFile::open(&folder.join(TENSOR_FILE))?;
    let model = step.with_tensors(model, &file, lora)?;
    step.restore_state(folder)?;
    controller.restore_state(&state.controller, folder)?;
    let mut statistics = state.statistics.clone();
    statistics.restore_last(&file, step.device())?;
    Ok((model, statistics))
}

/// The steps of a ledger's events, one by one.
pub(super) fn steps(events: &[Event]) -> Result<Vec<Segment>, RldpError> {
    let mut steps = Vec::new();
    for event in events {
        if let Event::Step {
            sampling_rate,
            noise_multiplier,
            ..
        } = event
        {
            steps.push(Segment::new(*sampling_rate, *noise_multiplier, 1)?);
        }
    }
    Ok(steps)
}

/// How many queries of a part are among the events.
pub(super) fn queries(events: &[Event], name: &str) -> u64 {
    events
        .iter()
        .filter(|event| matches!(event, Event::Query { part, .. } if part == name))
        .count() as u64
}
