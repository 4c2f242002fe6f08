//! The self-audit: attack one's own mechanism and compare what is found with what is claimed.

use burn::tensor::Device;
use rldp_optim::{Random, StepPlan};
use serde::{Deserialize, Serialize};

use crate::bounds::{AttackCounts, epsilon_of_mu};
use crate::error::{AuditError, open_unit};
use crate::mechanism::{Mechanism, StepMechanism};

/// An audit of one step, for a batch that is known but for the canary: the guarantee without the help of sampling.
///
/// Half of the trials choose the attack (which observations, how weighted, at which threshold), the other half measure it, so
/// that the confidence is honest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SelfAudit {
    trials: usize,
    confidence: f64,
    delta: f64,
}

impl Default for SelfAudit {
    /// 4,000 trials with a false-alarm rate of 1e-6 at delta 1e-5.
    fn default() -> Self {
        Self {
            trials: 4000,
            confidence: 1.0 - 1e-6,
            delta: 1e-5,
        }
    }
}

/// The outcome of a [`SelfAudit`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SelfAuditReport {
    /// What the step claims without sampling: 1 / noise multiplier.
    pub claimed_mu: f64,
    /// Lower bound on mu that the attack proves.
    pub lower_bound_mu: f64,
    /// Epsilon of the claim at `delta`, for one step whose batch is known.
    pub claimed_epsilon: f64,
    /// Epsilon of the lower bound on mu.
    pub lower_bound_epsilon: f64,
    /// Lower bound on epsilon from the same trials without the assumption that the noise is Gaussian.
    pub lower_bound_epsilon_any_mechanism: f64,
    /// Delta of the epsilons.
    pub delta: f64,
    /// Probability that a correct mechanism passes is at least this.
    pub confidence: f64,
    /// Trials, half with and half without the canary.
    pub trials: usize,
    /// Whether the lower bound is at most the claim. If not, the mechanism is broken and nothing it released is protected.
    pub passed: bool,
}

impl SelfAudit {
    /// An audit of this many trials.
    ///
    /// # Errors
    /// Fewer than 400: then nothing could be found.
    pub fn new(trials: usize) -> Result<Self, AuditError> {
        if trials < 400 {
            return Err(AuditError::TooFew {
                what: "trials",
                found: trials,
                needed: 400,
            });
        }
        Ok(Self {
            trials,
            ..Self::default()
        })
    }

    /// The same audit with another confidence: `1 - confidence` is the chance of a false alarm.
    ///
    /// # Errors
    /// Confidence outside (0, 1).
    pub fn with_confidence(mut self, confidence: f64) -> Result<Self, AuditError> {
        self.confidence = open_unit("the confidence", confidence)?;
        Ok(self)
    }

    /// The same audit with another delta.
    ///
    /// # Errors
    /// Delta outside (0, 1).
    pub fn with_delta(mut self, delta: f64) -> Result<Self, AuditError> {
        self.delta = open_unit("delta", delta)?;
        Ok(self)
    }

    /// Audits the real step under a plan. No private data take part.
    ///
    /// # Guarantee
    /// A step that keeps its plan's promise passes with probability at least the confidence, and the bounds exceed the claim
    /// with probability at most `1 - confidence`.
    ///
    /// # Errors
    /// A plan that the step refuses.
    pub fn run(
        &self,
        plan: &StepPlan,
        device: &Device,
        random: &mut dyn Random,
    ) -> Result<SelfAuditReport, AuditError> {
        let mut mechanism = StepMechanism::new(plan, device, random)?;
        self.run_on(&mut mechanism, 1.0 / plan.noise_multiplier())
    }

    /// Audits any mechanism against the claim that it is `claimed_mu`-Gaussian-DP.
    ///
    /// # Errors
    /// What the mechanism returns; observations of different lengths.
    pub fn run_on(
        &self,
        mechanism: &mut dyn Mechanism,
        claimed_mu: f64,
    ) -> Result<SelfAuditReport, AuditError> {
        let quarter = self.trials / 4;
        let mut observe = |canary: bool| -> Result<Vec<Vec<f64>>, AuditError> {
            (0..quarter).map(|_| mechanism.release(canary)).collect()
        };
        let training = [observe(false)?, observe(true)?];
        let measuring = [observe(false)?, observe(true)?];
        let width = training[0].first().map_or(0, Vec::len);
        for trial in training.iter().chain(&measuring).flatten() {
            if trial.len() != width {
                return Err(AuditError::Observations {
                    expected: width,
                    found: trial.len(),
                });
            }
        }
        let attack = Attack::choose(&training, &mechanism.claimed_weights(), self.confidence)?;
        let counts = attack.counts(&measuring);
        let lower_bound_mu = counts.mu_lower(self.confidence)?;
        Ok(SelfAuditReport {
            claimed_mu,
            lower_bound_mu,
            claimed_epsilon: epsilon_of_mu(claimed_mu, self.delta)?,
            lower_bound_epsilon: epsilon_of_mu(lower_bound_mu, self.delta)?,
            lower_bound_epsilon_any_mechanism: counts.epsilon_lower(self.delta, self.confidence)?,
            delta: self.delta,
            confidence: self.confidence,
            trials: 4 * quarter,
            passed: lower_bound_mu <= claimed_mu,
        })
    }
}

/// A linear attack: says "in" if the weighted sum of the observations is above the threshold.
struct Attack {
    weights: Vec<f64>,
    threshold: f64,
}

impl Attack {
    /// The attack that does best on the training trials: of the one that is best for the claimed mechanism, one fitted to the
    /// observations, and single observations either way.
    fn choose(
        training: &[Vec<Vec<f64>>; 2],
        claimed: &[f64],
        confidence: f64,
    ) -> Result<Self, AuditError> {
        let fitted = fitted_weights(training);
        let width = fitted.len();
        let mut candidates = vec![claimed.to_vec(), fitted.clone()];
        for (index, weight) in fitted
            .iter()
            .enumerate()
            .filter(|(_, weight)| **weight != 0.0)
        {
            let mut single = vec![0.0; width];
            single[index] = weight.signum();
            candidates.push(single);
        }
        let mut best = (
            f64::NEG_INFINITY,
            Self {
                weights: claimed.to_vec(),
                threshold: 0.0,
            },
        );
        for weights in candidates
            .into_iter()
            .filter(|weights| weights.len() == width)
        {
            for threshold in thresholds(training, &weights) {
                let attack = Self {
                    weights: weights.clone(),
                    threshold,
                };
                let bound = attack.counts(training).mu_lower(confidence)?;
                if bound > best.0 {
                    best = (bound, attack);
                }
            }
        }
        Ok(best.1)
    }

    fn counts(&self, trials: &[Vec<Vec<f64>>; 2]) -> AttackCounts {
        let says_in = |trials: &[Vec<f64>]| {
            trials
                .iter()
                .filter(|trial| score(trial, &self.weights) > self.threshold)
                .count() as u64
        };
        AttackCounts {
            negatives: trials[0].len() as u64,
            false_positives: says_in(&trials[0]),
            positives: trials[1].len() as u64,
            false_negatives: trials[1].len() as u64 - says_in(&trials[1]),
        }
    }
}

/// A score; an observation that is not a number says nothing.
fn score(observed: &[f64], weights: &[f64]) -> f64 {
    observed
        .iter()
        .zip(weights)
        .map(|(value, weight)| if *weight == 0.0 { 0.0 } else { value * weight })
        .sum()
}

/// A few thresholds between the two classes' scores: their means, the points between, and beyond.
fn thresholds(training: &[Vec<Vec<f64>>; 2], weights: &[f64]) -> Vec<f64> {
    let mean = |trials: &[Vec<f64>]| {
        trials
            .iter()
            .map(|trial| score(trial, weights))
            .sum::<f64>()
            / trials.len().max(1) as f64
    };
    let (out, canary) = (mean(&training[0]), mean(&training[1]));
    [0.0, 0.25, 0.5, 0.75, 1.0]
        .iter()
        .map(|share| out + share * (canary - out))
        .collect()
}

/// Shift over variance of each observation, zero where the shift could be chance: Fisher's discriminant for independent noise.
fn fitted_weights(training: &[Vec<Vec<f64>>; 2]) -> Vec<f64> {
    let width = training[0].first().map_or(0, Vec::len);
    (0..width)
        .map(|index| {
            let moments = |trials: &[Vec<f64>]| {
                let n = trials.len() as f64;
                let mean = trials.iter().map(|trial| trial[index]).sum::<f64>() / n;
                let variance = trials
                    .iter()
                    .map(|trial| (trial[index] - mean).powi(2))
                    .sum::<f64>()
                    / n;
                (mean, variance)
            };
            let (out, canary) = (moments(&training[0]), moments(&training[1]));
            let shift = canary.0 - out.0;
            // Noise that is all but absent must not divide by zero; 1e-12 is six orders below the unit noise claimed.
            let variance = 0.5 * (out.1 + canary.1) + 1e-12;
            let significant =
                shift.abs() > 3.0 * (2.0 * variance / training[0].len() as f64).sqrt();
            if significant { shift / variance } else { 0.0 }
        })
        .collect()
}
