//! Audits of a whole run's mechanism: sampling, clipping, noise and divisor of every step together, without private data.
//!
//! [`TrainingAudit`] repeats the run with and without one worst-case canary and bounds epsilon by Clopper-Pearson;
//! [`audit_in_one_run`] puts many canaries into one run and bounds it as Steinke et al. (2023) do.

use burn::tensor::{Device, Tensor, TensorData};
use rldp_accounting::{Segment, epsilon_upper};
use rldp_optim::{
    Accumulator, GroupGradients, Layout, OptimError, PerExampleGradients, PoissonSampler, Private,
    Random, RowMap, StepPlan,
};
use serde::{Deserialize, Serialize};

use crate::bounds::AttackCounts;
use crate::error::{AuditError, open_unit};
use crate::one_run::{OneRunReport, one_run};

/// Chooses the units of each step's batch.
pub trait Batches {
    /// Begins a run over `units` units.
    fn begin(&mut self, units: usize, random: &mut dyn Random);

    /// The units of the next batch, at the plan's sampling rate.
    ///
    /// # Errors
    /// A sampling rate out of range.
    fn next(&mut self, plan: &StepPlan, random: &mut dyn Random) -> Result<Vec<usize>, AuditError>;
}

/// The sampler that runs use, [`PoissonSampler`].
#[derive(Debug, Clone, Copy, Default)]
pub struct PoissonBatches {
    units: usize,
}

impl Batches for PoissonBatches {
    fn begin(&mut self, units: usize, _random: &mut dyn Random) {
        self.units = units;
    }

    fn next(&mut self, plan: &StepPlan, random: &mut dyn Random) -> Result<Vec<usize>, AuditError> {
        Ok(PoissonSampler::new(self.units, plan.sampling_rate())?.sample(random))
    }
}

/// Units in the data beside the canary of a [`TrainingAudit`]: they point along a coordinate of their own.
const CROWD: usize = 9;

/// The steps of a run with Dirac canaries: unit `i`'s gradient is far above every clipping norm, along coordinate `i` of every
/// group.
struct DiracRun<'a> {
    plans: &'a [StepPlan],
    coordinates: usize,
    device: &'a Device,
}

impl DiracRun<'_> {
    /// One run on units with these coordinates. Gives each coordinate's log-likelihood ratio of "a unit points here" over "none
    /// does", summed over the steps, as if the mechanism were what the plans claim.
    fn scores(
        &self,
        coordinate_of_unit: &[usize],
        batches: &mut dyn Batches,
        random: &mut dyn Random,
    ) -> Result<Vec<f64>, AuditError> {
        let mut scores = vec![0.0; self.coordinates];
        batches.begin(coordinate_of_unit.len(), random);
        for plan in self.plans {
            let sampled = batches.next(plan, random)?;
            let layout = Layout::new(
                (0..plan.clipping_norms().len())
                    .map(|group| (group.to_string(), vec![self.coordinates])),
            );
            let mut step = Accumulator::begin(plan, &layout)?;
            if !sampled.is_empty() {
                let gradients = self.gradients(plan, &sampled, coordinate_of_unit)?;
                let losses = plan.loss_noise_multiplier().map(|_| {
                    let bound = plan.telemetry().loss_bound as f32;
                    let losses = TensorData::new(vec![2.0 * bound; sampled.len()], [sampled.len()]);
                    Private::new(Tensor::from_data(losses, self.device))
                });
                step.add(&gradients, losses)?;
            }
            let release = step.release(random, self.device)?;
            // The groups' numbers at a coordinate, weighted by their shifts, are one Gaussian of this precision.
            let multipliers = plan.group_noise_multipliers();
            let precision: f64 = multipliers.iter().map(|sigma| sigma.powi(-2)).sum();
            let mut shifts = vec![0.0; self.coordinates];
            for ((group, norm), sigma) in release
                .groups
                .iter()
                .zip(plan.clipping_norms())
                .zip(multipliers)
            {
                for tensor in &group.gradients {
                    let values = tensor.clone().try_into_vec_as::<f64>().map_err(|error| {
                        OptimError::Device {
                            what: "a release",
                            message: error.to_string(),
                        }
                    })?;
                    for (shift, value) in shifts.iter_mut().zip(values) {
                        *shift += value * plan.expected_batch() / (norm * sigma * sigma);
                    }
                }
            }
            let rate = plan.sampling_rate();
            for (score, shift) in scores.iter_mut().zip(shifts) {
                *score += ln_mixture(rate, shift - 0.5 * precision);
            }
        }
        Ok(scores)
    }

    fn gradients(
        &self,
        plan: &StepPlan,
        sampled: &[usize],
        coordinate_of_unit: &[usize],
    ) -> Result<PerExampleGradients, AuditError> {
        let groups = plan
            .clipping_norms()
            .iter()
            .enumerate()
            .map(|(index, norm)| {
                let mut values = vec![0.0_f32; sampled.len() * self.coordinates];
                for (row, unit) in sampled.iter().enumerate() {
                    values[row * self.coordinates + coordinate_of_unit[*unit]] =
                        (1000.0 * norm) as f32;
                }
                let values = TensorData::new(values, [sampled.len(), self.coordinates]);
                GroupGradients::new(index.to_string())
                    .with(Tensor::<2>::from_data(values, self.device))
            })
            .collect();
        Ok(PerExampleGradients::new(
            groups,
            RowMap::one_each(sampled.len()),
        )?)
    }
}

/// `ln(1 - q + q e^x)`.
fn ln_mixture(rate: f64, x: f64) -> f64 {
    if x > 0.0 {
        x + (rate + (1.0 - rate) * (-x).exp()).ln()
    } else {
        (rate * x.exp_m1()).ln_1p()
    }
}

/// An audit of many runs, half of them with the canary.
///
/// Half of the runs choose the threshold, the other half measure. The claim is tested at several deltas at once, since a broken
/// mechanism may keep its promise at a small delta and break it at a large one (shuffling does).
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingAudit {
    runs: usize,
    confidence: f64,
    deltas: Vec<f64>,
}

/// Claim and lower bound at one delta.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ClaimAt {
    /// Delta.
    pub delta: f64,
    /// Epsilon that the accountant certifies for the run's steps.
    pub claimed_epsilon: f64,
    /// Epsilon that the attack refutes.
    pub lower_bound: f64,
}

/// The outcome of a [`TrainingAudit`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TrainingAuditReport {
    /// Claim and bound at each delta.
    pub claims: Vec<ClaimAt>,
    /// Probability that a correct mechanism passes is at least this: all bounds hold together.
    pub confidence: f64,
    /// Runs made.
    pub runs: usize,
    /// Whether no bound exceeds its claim.
    pub passed: bool,
}

impl TrainingAudit {
    /// An audit of this many runs, with a false-alarm rate of 1e-6, at this delta and at 0.01, 0.1, 0.3, 0.5 and 0.7.
    ///
    /// # Errors
    /// Fewer than 400 runs, delta outside (0, 1).
    pub fn new(runs: usize, delta: f64) -> Result<Self, AuditError> {
        if runs < 400 {
            return Err(AuditError::TooFew {
                what: "runs",
                found: runs,
                needed: 400,
            });
        }
        Ok(Self {
            runs,
            confidence: 1.0 - 1e-6,
            deltas: vec![open_unit("delta", delta)?, 0.01, 0.1, 0.3, 0.5, 0.7],
        })
    }

    /// The same audit with another confidence.
    ///
    /// # Errors
    /// Confidence outside (0, 1).
    pub fn with_confidence(mut self, confidence: f64) -> Result<Self, AuditError> {
        self.confidence = open_unit("the confidence", confidence)?;
        Ok(self)
    }

    /// Audits runs of these steps, with batches from `batches`.
    ///
    /// # Guarantee
    /// If the steps keep the plans' promise and the batches are Poisson samples, the audit passes with probability at least the
    /// confidence.
    ///
    /// # Errors
    /// No steps; a plan that the step refuses.
    pub fn run(
        &self,
        plans: &[StepPlan],
        batches: &mut dyn Batches,
        device: &Device,
        random: &mut dyn Random,
    ) -> Result<TrainingAuditReport, AuditError> {
        let segments = segments(plans)?;
        let run = DiracRun {
            plans,
            coordinates: 2,
            device,
        };
        let quarter = self.runs / 4;
        // The crowd's coordinate is 0, the canary's 1.
        let mut observe = |canary: bool| -> Result<Vec<f64>, AuditError> {
            let mut units = vec![0; CROWD];
            if canary {
                units.push(1);
            }
            let mut scores = Vec::with_capacity(quarter);
            for _ in 0..quarter {
                scores.push(run.scores(&units, batches, random)?[1]);
            }
            scores.sort_by(f64::total_cmp);
            Ok(scores)
        };
        let choosing = [observe(false)?, observe(true)?];
        let measuring = [observe(false)?, observe(true)?];
        let each = 1.0 - (1.0 - self.confidence) / self.deltas.len() as f64;
        let claims = self
            .deltas
            .iter()
            .map(|&delta| {
                let threshold = best_threshold(&choosing, delta, each)?;
                Ok(ClaimAt {
                    delta,
                    claimed_epsilon: epsilon_upper(&segments, delta)?,
                    lower_bound: counts(&measuring, threshold).epsilon_lower(delta, each)?,
                })
            })
            .collect::<Result<Vec<_>, AuditError>>()?;
        Ok(TrainingAuditReport {
            passed: claims
                .iter()
                .all(|claim| claim.lower_bound <= claim.claimed_epsilon),
            claims,
            confidence: self.confidence,
            runs: 4 * quarter,
        })
    }
}

/// What the accountant is told of these steps.
fn segments(plans: &[StepPlan]) -> Result<Vec<Segment>, AuditError> {
    if plans.is_empty() {
        return Err(AuditError::TooFew {
            what: "steps",
            found: 0,
            needed: 1,
        });
    }
    Ok(plans
        .iter()
        .map(|plan| plan.segment(1))
        .collect::<Result<_, _>>()?)
}

/// Counts of an attack that says "in" above the threshold, from sorted scores.
fn counts(scores: &[Vec<f64>; 2], threshold: f64) -> AttackCounts {
    let at_most = |scores: &[f64]| scores.partition_point(|score| *score <= threshold) as u64;
    let [out, inside] = scores;
    AttackCounts {
        negatives: out.len() as u64,
        false_positives: out.len() as u64 - at_most(out),
        positives: inside.len() as u64,
        false_negatives: at_most(inside),
    }
}

/// The threshold with the largest bound, among 200 quantiles of the scores.
fn best_threshold(scores: &[Vec<f64>; 2], delta: f64, confidence: f64) -> Result<f64, AuditError> {
    let mut best = (f64::NEG_INFINITY, 0.0);
    for scores_of in scores {
        let step = (scores_of.len() / 100).max(1);
        for threshold in scores_of.iter().step_by(step).chain(scores_of.last()) {
            let bound = counts(scores, *threshold).epsilon_lower(delta, confidence)?;
            if bound > best.0 {
                best = (bound, *threshold);
            }
        }
    }
    Ok(best.1)
}

/// Audits one run of these steps with `canaries` Dirac canaries, each included by a fair coin, and bounds the whole run's epsilon.
///
/// # Guarantee
/// If the steps keep the plans' promise, the bound exceeds the run's epsilon at `delta` with probability at most
/// `1 - confidence`.
///
/// # Errors
/// No steps, fewer than two canaries, delta or confidence out of range.
pub fn audit_in_one_run(
    plans: &[StepPlan],
    canaries: usize,
    delta: f64,
    confidence: f64,
    device: &Device,
    random: &mut dyn Random,
) -> Result<OneRunReport, AuditError> {
    segments(plans)?;
    let included: Vec<bool> = (0..canaries).map(|_| random.bernoulli(0.5)).collect();
    let units: Vec<usize> = (0..canaries).filter(|index| included[*index]).collect();
    let run = DiracRun {
        plans,
        coordinates: canaries,
        device,
    };
    let scores = run.scores(&units, &mut PoissonBatches::default(), random)?;
    one_run(&scores, &included, delta, confidence)
}

#[cfg(test)]
mod tests {
    use super::ln_mixture;

    #[test]
    fn the_mixture_is_its_formula_where_that_can_be_computed() {
        for (rate, x) in [(0.1, 2.0), (0.1, -2.0), (1.0, 0.7), (1e-3, 30.0_f64)] {
            let plain = (1.0_f64 - rate + rate * x.exp()).ln();
            assert!((ln_mixture(rate, x) - plain).abs() < 1e-12 * plain.abs().max(1.0));
        }
        assert!((ln_mixture(0.5, 2000.0) - (2000.0 + 0.5_f64.ln())).abs() < 1e-9);
    }
}
