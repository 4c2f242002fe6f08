//! One run of a study, and what is kept of it.

use std::path::Path;
use std::time::{Duration, Instant};

use rldp::RldpError;
use rldp::controller::{Controller, Decision, Observation, Outcome, StepView};
use rldp::trainer::{Record, RunSummary, STUDY};
use rldp_optim::AffineTransform;
use serde::{Deserialize, Serialize};

use super::attacks::{Attacked, Attacks};
use super::plan::Job;
use super::study::Grade;
use super::task::{Assignment, Finished, Rewards, Task};
use crate::error::ExampleError;

/// What is kept of a finished run: one line of a study's store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RunResult {
    /// Which run of the study: see [`Job::key`].
    pub key: String,
    /// The arm.
    pub arm: String,
    /// Its grade.
    pub grade: Grade,
    /// A run to tune with, not to compare.
    pub tuning: bool,
    /// The cell of the arm's grid, in words.
    pub cell: String,
    /// The controller's name.
    pub controller: String,
    /// Target epsilon.
    pub epsilon: f64,
    /// The seed.
    pub seed: u64,
    /// Steps taken.
    pub steps: u64,
    /// Exact mean test loss in nats per token, before training and after.
    pub loss_before: f64,
    /// See `loss_before`.
    pub loss: f64,
    /// Exact test losses by steps taken.
    pub curve: Vec<(u64, f64)>,
    /// Epsilon of the whole run, from its ledger.
    pub epsilon_upper: f64,
    /// Delta.
    pub delta: f64,
    /// What was decided, by steps taken.
    pub course: Vec<CoursePoint>,
    /// Adapters steered.
    pub adapters: usize,
    /// Seconds the run took, all told.
    pub seconds: f64,
    /// Seconds of those that the controller took.
    pub controller_seconds: f64,
    /// What attacks on the model found, if the study asks for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attacked: Option<Attacked>,
}

impl RunResult {
    /// Exact test perplexity after training.
    #[must_use]
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }
}

/// The settings in force at the first step after a decision.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CoursePoint {
    /// The step.
    pub step: u64,
    /// Learning rate.
    pub learning_rate: f64,
    /// First-moment decay.
    pub beta_1: f64,
    /// Effective noise multiplier.
    pub noise_multiplier: f64,
    /// Geometric mean of the adapters' clipping norms.
    pub radius: f64,
    /// Largest of the adapters' clipping norms over the smallest.
    pub radius_spread: f64,
    /// Largest share of an adapter in the noise split, in equal shares.
    pub largest_weight: f64,
    /// Mean released clipped share, if it was paid for.
    pub clipped: Option<f64>,
}

/// Runs a job, and attacks the model of a comparison's run if the study says how.
///
/// # Errors
/// Those of the run; [`ExampleError::Other`] if it ended without an exact loss.
pub fn run(
    job: &Job,
    task: &mut Task,
    every: u64,
    attacks: Option<&Attacks>,
) -> Result<RunResult, ExampleError> {
    let begun = Instant::now();
    let (kind, device) = (job.config.controller, burn::tensor::Device::default());
    let attacks = attacks.filter(|_| !job.tuning);
    let canaries = match attacks {
        Some(attacks) => task.canaries(attacks, job.seed)?,
        None => None,
    };
    let assignment = Assignment {
        config: &job.config,
        seed: job.seed,
        every,
        rewards: Rewards::Released,
        canaries: canaries.as_ref(),
    };
    let Finished {
        summary,
        controller,
        model,
    } = task.run(assignment, |dimensions| {
        let setup = job.config.controller_setup(dimensions);
        Ok(Timed {
            inner: kind.build(&setup, job.seed, &device)?,
            spent: Duration::ZERO,
        })
    })?;
    let seconds = begun.elapsed().as_secs_f64();
    let curve: Vec<(u64, f64)> = summary
        .held_out(STUDY)
        .map(|record| (record.step, record.loss))
        .collect();
    let (Some(&(_, loss_before)), Some(&(steps, loss))) = (curve.first(), curve.last()) else {
        return Err(ExampleError::Other("a run without exact losses".to_owned()));
    };
    let attacked = match attacks {
        Some(attacks) => Some(task.attack(&model, assignment, summary.delta, attacks)?),
        None => None,
    };
    Ok(RunResult {
        key: job.key(),
        arm: job.arm.clone(),
        grade: job.grade,
        tuning: job.tuning,
        cell: job.cell.clone(),
        controller: summary.controller.to_owned(),
        epsilon: job.config.epsilon,
        seed: job.seed,
        steps,
        loss_before,
        loss,
        curve,
        epsilon_upper: summary.epsilon_upper,
        delta: summary.delta,
        course: course(&summary),
        adapters: summary.adapters.len(),
        seconds,
        controller_seconds: controller.spent.as_secs_f64(),
        attacked,
    })
}

/// The first step after every decision.
fn course(summary: &RunSummary) -> Vec<CoursePoint> {
    let mut points = Vec::new();
    let mut weights: Option<&[f64]> = None;
    for record in &summary.records {
        match record {
            Record::Decision(decision) => weights = Some(&decision.noise_weights),
            Record::Step(step) => {
                let Some(weights) = weights.take() else {
                    continue;
                };
                let count = step.clipping_norms.len().max(1) as f64;
                let norms = step.clipping_norms.iter();
                let (low, high) = norms
                    .clone()
                    .fold((f64::INFINITY, 0.0_f64), |(low, high), norm| {
                        (low.min(*norm), high.max(*norm))
                    });
                let largest = weights.iter().copied().fold(0.0, f64::max);
                points.push(CoursePoint {
                    step: step.step,
                    learning_rate: step.learning_rate,
                    beta_1: step.beta_1,
                    noise_multiplier: step.noise_multiplier,
                    radius: (norms.map(|norm| norm.ln()).sum::<f64>() / count).exp(),
                    radius_spread: high / low,
                    largest_weight: largest * weights.len() as f64,
                    clipped: step
                        .clipped_fractions
                        .as_ref()
                        .map(|shares| shares.iter().sum::<f64>() / count),
                });
            }
            Record::HeldOut(_) => {}
        }
    }
    points
}

/// A controller with a watch on it.
struct Timed {
    inner: Box<dyn Controller>,
    spent: Duration,
}

impl Timed {
    fn timed<T>(&mut self, call: impl FnOnce(&mut dyn Controller) -> T) -> T {
        let begun = Instant::now();
        let result = call(self.inner.as_mut());
        self.spent += begun.elapsed();
        result
    }
}

impl Controller for Timed {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn decide(&mut self, observation: &Observation) -> Result<Decision, RldpError> {
        self.timed(|inner| inner.decide(observation))
    }

    fn step(&mut self, step: &StepView<'_>, decision: &mut Decision) -> Result<(), RldpError> {
        self.timed(|inner| inner.step(step, decision))
    }

    fn transforms(&self) -> Result<Option<Vec<AffineTransform>>, RldpError> {
        self.inner.transforms()
    }

    fn outcome(&mut self, outcome: &Outcome) -> Result<(), RldpError> {
        self.timed(|inner| inner.outcome(outcome))
    }

    fn save_state(&self, folder: &Path) -> Result<serde_json::Value, RldpError> {
        self.inner.save_state(folder)
    }

    fn restore_state(&mut self, state: &serde_json::Value, folder: &Path) -> Result<(), RldpError> {
        self.inner.restore_state(state, folder)
    }

    fn save(&self, folder: &Path) -> Result<Vec<String>, RldpError> {
        self.inner.save(folder)
    }
}
