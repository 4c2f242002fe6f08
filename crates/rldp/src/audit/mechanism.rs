//! The steps of a finished run, taken again on canary gradients.

use burn::tensor::Device;
use rldp_audit::audit_in_one_run;
use rldp_audit::one_run::OneRunReport;
use rldp_optim::{Random, StepPlan};
use serde::{Deserialize, Serialize};

use crate::error::RldpError;
use crate::trainer::StepRecord;

/// Lower bound on a whole run's epsilon, from its mechanism alone.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MechanismReport {
    /// Steps of the run.
    pub steps: usize,
    /// Dirac canaries, each in or out by a fair coin.
    pub canaries: usize,
    /// Bound and guesses.
    pub bound: OneRunReport,
}

/// The plan of a step that was taken, up to its telemetry, which is left out: the gradients' noise is what it was.
///
/// # Errors
/// Figures that no step could have.
pub fn plan_of_record(
    record: &StepRecord,
    sampling_rate: f64,
    population: usize,
) -> Result<StepPlan, RldpError> {
    let precision: f64 = record
        .group_noise_multipliers
        .iter()
        .map(|sigma| sigma.powi(-2))
        .sum();
    // Telemetry takes a part of a step's noise, so the gradients alone have no less.
    if precision.powf(-0.5) < record.noise_multiplier * (1.0 - 1e-6) {
        return Err(RldpError::OutOfRange {
            what: "noise multiplier of a step's groups together",
            value: precision.powf(-0.5),
            range: "no less than the step's effective noise multiplier",
        });
    }
    let weights: Vec<f64> = record
        .group_noise_multipliers
        .iter()
        .map(|sigma| sigma.powi(-2) / precision)
        .collect();
    // The gradients alone have a little more noise than the whole step, whose telemetry is paid for too.
    let plan = StepPlan::new(
        sampling_rate,
        population,
        precision.powf(-0.5),
        &record.clipping_norms,
    )?;
    Ok(plan.with_noise_weights(&weights)?)
}

/// Takes the run's steps again on gradients of `canaries` Dirac canaries with fresh coins, batches and noise, and bounds the
/// run's epsilon from below. No private data take part.
///
/// # Guarantee
/// If the mechanism keeps its promise, the bound exceeds the epsilon of the steps at `delta` with probability at most
/// `1 - confidence`.
///
/// # Errors
/// No steps, or figures that no step could have.
#[allow(clippy::too_many_arguments)]
pub fn attack_mechanism(
    records: &[StepRecord],
    sampling_rate: f64,
    canaries: usize,
    delta: f64,
    confidence: f64,
    device: &Device,
    random: &mut dyn Random,
) -> Result<MechanismReport, RldpError> {
    let plans = records
        .iter()
        .map(|record| plan_of_record(record, sampling_rate, canaries))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(MechanismReport {
        steps: plans.len(),
        canaries,
        bound: audit_in_one_run(&plans, canaries, delta, confidence, device, random)?,
    })
}
