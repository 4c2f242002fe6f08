//! One object that couples sampling, clipping, noise and the accountant's event.

use std::sync::Arc;

use rldp_accounting::effective::{effective_noise_multiplier, split};
use rldp_accounting::ledger::Event;
use rldp_accounting::{Adjacency, Segment};

use crate::adaclip::AffineTransform;
use crate::clip::{Clip, ClipRule, check_noise_multiplier};
use crate::error::{OptimError, positive, same_length};
use crate::gradients::Layout;
use crate::micro_batch::{MicroBatch, UnitRows};
use crate::random::Random;
use crate::sampling::PoissonSampler;
use crate::step::Step;

/// What a step pays to tell its controller beside the gradient: shares of the step's precision `1 / sigma_eff^2`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Telemetry {
    /// Share for the count of clipped units in every group; 0 releases none.
    pub clip_counts: f64,
    /// Share for the sum of the units' losses; 0 releases none.
    pub loss: f64,
    /// Losses are clipped to `[0, loss_bound]` before they are summed.
    pub loss_bound: f64,
}

impl Telemetry {
    /// Nothing but the gradient.
    pub const NONE: Self = Self {
        clip_counts: 0.0,
        loss: 0.0,
        loss_bound: 1.0,
    };
}

impl Default for Telemetry {
    fn default() -> Self {
        Self::NONE
    }
}

/// All numbers of a private step.
///
/// # Guarantee
/// A step taken with [`crate::Accumulator`] under this plan, on a batch in which each unit is included independently with
/// the plan's sampling rate, is dominated by [`StepPlan::segment`] with one step (add/remove adjacency): the group noise
/// multipliers and telemetry are derived from the effective noise multiplier here and nowhere else.
#[derive(Debug, Clone, PartialEq)]
pub struct StepPlan {
    sampling_rate: f64,
    population: usize,
    noise_multiplier: f64,
    clipping_norms: Vec<f64>,
    rule: ClipRule,
    weights: Vec<f64>,
    telemetry: Telemetry,
    transforms: Option<Arc<[AffineTransform]>>,
    group_noise_multipliers: Vec<f64>,
    clip_count_noise: Option<f64>,
    loss_noise_multiplier: Option<f64>,
}

impl StepPlan {
    /// A plan that splits the noise evenly over the groups and releases no telemetry.
    ///
    /// `noise_multiplier` is the effective one, of the whole step. `population` is the *public* number of units that the
    /// batch is expected from: sums are divided by `sampling_rate * population`, never by the realised batch size.
    ///
    /// # Errors
    /// A number out of range, or no groups.
    pub fn new(
        sampling_rate: f64,
        population: usize,
        noise_multiplier: f64,
        clipping_norms: &[f64],
    ) -> Result<Self, OptimError> {
        if !(sampling_rate > 0.0 && sampling_rate <= 1.0) {
            return Err(OptimError::OutOfRange {
                what: "the sampling rate",
                value: sampling_rate,
                range: "in (0, 1]",
            });
        }
        positive("the population", population as f64)?;
        check_noise_multiplier(noise_multiplier)?;
        if clipping_norms.is_empty() {
            return Err(OptimError::Empty);
        }
        for &norm in clipping_norms {
            Clip::new(norm, ClipRule::Threshold)?;
        }
        Self {
            sampling_rate,
            population,
            noise_multiplier,
            clipping_norms: clipping_norms.to_vec(),
            rule: ClipRule::Threshold,
            weights: vec![1.0; clipping_norms.len()],
            telemetry: Telemetry::NONE,
            transforms: None,
            group_noise_multipliers: Vec::new(),
            clip_count_noise: None,
            loss_noise_multiplier: None,
        }
        .derived()
    }

    /// The same plan with this split of the noise: group l gets a share of the precision proportional to `weights[l]`.
    ///
    /// # Errors
    /// Not one positive weight per group.
    pub fn with_noise_weights(mut self, weights: &[f64]) -> Result<Self, OptimError> {
        same_length("noise weights", self.clipping_norms.len(), weights.len())?;
        self.weights = weights.to_vec();
        self.derived()
    }

    /// The same plan with this telemetry, at the same effective noise multiplier: the gradients get more noise.
    ///
    /// # Errors
    /// Shares that are negative or leave nothing for the gradient, or a bound that is not positive.
    pub fn with_telemetry(mut self, telemetry: Telemetry) -> Result<Self, OptimError> {
        self.telemetry = telemetry;
        self.derived()
    }

    /// The same plan with this clipping rule.
    ///
    /// # Errors
    /// A negative stability.
    pub fn with_rule(mut self, rule: ClipRule) -> Result<Self, OptimError> {
        Clip::new(1.0, rule)?;
        self.rule = rule;
        Ok(self)
    }

    /// The same plan in coordinates of one's own, one transform per group. Clipping norms then bound the *transformed* gradients.
    ///
    /// # Errors
    /// Not one transform per group.
    pub fn with_transforms(mut self, transforms: Vec<AffineTransform>) -> Result<Self, OptimError> {
        same_length("transforms", self.clipping_norms.len(), transforms.len())?;
        self.transforms = Some(transforms.into());
        Ok(self)
    }

    /// The transforms, if any.
    #[must_use]
    pub fn transforms(&self) -> Option<&Arc<[AffineTransform]>> {
        self.transforms.as_ref()
    }

    /// Computes the noise of every part from the effective noise multiplier.
    fn derived(mut self) -> Result<Self, OptimError> {
        let Telemetry {
            clip_counts,
            loss,
            loss_bound,
        } = self.telemetry;
        for (what, value) in [
            ("the clip counts' share", clip_counts),
            ("the loss's share", loss),
        ] {
            if !(0.0..1.0).contains(&value) {
                return Err(OptimError::OutOfRange {
                    what,
                    value,
                    range: "in [0, 1)",
                });
            }
        }
        let gradient_share = 1.0 - clip_counts - loss;
        if gradient_share <= 0.0 {
            return Err(OptimError::OutOfRange {
                what: "the gradient's share beside telemetry",
                value: gradient_share,
                range: "positive",
            });
        }
        positive("the loss bound", loss_bound)?;
        // Rounding in the shares and in the square roots must never leave less noise than promised.
        let sigma = self.noise_multiplier * (1.0 + 1e-12);
        self.group_noise_multipliers = split(sigma / gradient_share.sqrt(), &self.weights)?;
        let groups = self.clipping_norms.len() as f64;
        // Centred bits: G counts of sensitivity 1/2 each have G / (4 noise^2) of precision.
        self.clip_count_noise =
            (clip_counts > 0.0).then(|| sigma * (groups / (4.0 * clip_counts)).sqrt());
        self.loss_noise_multiplier = (loss > 0.0).then(|| sigma / loss.sqrt());
        for &sigma in self
            .group_noise_multipliers
            .iter()
            .chain(&self.telemetry_noise_multipliers())
        {
            check_noise_multiplier(sigma)?;
        }
        Ok(self)
    }

    /// Probability of each unit to be in the batch.
    #[must_use]
    pub fn sampling_rate(&self) -> f64 {
        self.sampling_rate
    }

    /// The public number of units.
    #[must_use]
    pub fn population(&self) -> usize {
        self.population
    }

    /// Sampling rate times population, which all sums are divided by.
    #[must_use]
    pub fn expected_batch(&self) -> f64 {
        self.sampling_rate * self.population as f64
    }

    /// The effective noise multiplier of the whole step, telemetry included.
    #[must_use]
    pub fn noise_multiplier(&self) -> f64 {
        self.noise_multiplier
    }

    /// Clipping norm of each group.
    #[must_use]
    pub fn clipping_norms(&self) -> &[f64] {
        &self.clipping_norms
    }

    /// The clipping rule.
    #[must_use]
    pub fn rule(&self) -> ClipRule {
        self.rule
    }

    /// Noise multiplier of each group: noise standard deviation over clipping norm.
    #[must_use]
    pub fn group_noise_multipliers(&self) -> &[f64] {
        &self.group_noise_multipliers
    }

    /// The telemetry.
    #[must_use]
    pub fn telemetry(&self) -> Telemetry {
        self.telemetry
    }

    /// Noise multipliers of the telemetry at unit sensitivity: all clip counts as one vector, then the loss; of each, only
    /// if the plan releases it.
    #[must_use]
    pub fn telemetry_noise_multipliers(&self) -> Vec<f64> {
        let counts = self
            .clip_count_noise
            .map(|noise| noise / (0.5 * (self.clipping_norms.len() as f64).sqrt()));
        counts
            .into_iter()
            .chain(self.loss_noise_multiplier)
            .collect()
    }

    /// Standard deviation of the noise on each count of clipped units, if any.
    #[must_use]
    pub fn clip_count_noise(&self) -> Option<f64> {
        self.clip_count_noise
    }

    /// Noise multiplier of the loss sum (whose sensitivity is half the bound), if any.
    #[must_use]
    pub fn loss_noise_multiplier(&self) -> Option<f64> {
        self.loss_noise_multiplier
    }

    /// How far one changed unit can move all groups' clipped sums together: `sqrt(sum_l C_l^2)`, twice that if a unit is replaced.
    ///
    /// It is the sensitivity of the whole only for equal noise in all groups; with the groups' own noise the accountant needs
    /// [`StepPlan::noise_multiplier`].
    #[must_use]
    pub fn total_sensitivity(&self, adjacency: Adjacency) -> f64 {
        let squares = (0..self.clipping_norms.len())
            .filter_map(|group| self.sensitivity(group, adjacency))
            .map(|sensitivity| sensitivity * sensitivity);
        squares.sum::<f64>().sqrt()
    }

    /// How far one changed unit can move the clipped sum of a group (of transformed gradients, if the plan has transforms); `None` for a group that does not exist.
    #[must_use]
    pub fn sensitivity(&self, group: usize, adjacency: Adjacency) -> Option<f64> {
        let norm = *self.clipping_norms.get(group)?;
        Clip::new(norm, self.rule)
            .ok()
            .map(|clip| clip.sensitivity(adjacency))
    }

    /// A sampler with the plan's rate over the plan's population.
    ///
    /// # Errors
    /// None for a plan that was built.
    pub fn sampler(&self) -> Result<PoissonSampler, OptimError> {
        self.sampler_over(self.population)
    }

    /// A sampler with the plan's rate over the units that are really there. Their number may differ from the public one, which
    /// the sums are divided by all the same.
    ///
    /// # Errors
    /// None for a plan that was built.
    pub fn sampler_over(&self, units: usize) -> Result<PoissonSampler, OptimError> {
        PoissonSampler::new(units, self.sampling_rate)
    }

    /// Samples the batch of step `number` from a table's units, and lays it out in micro-batches of `rows` rows.
    ///
    /// # Errors
    /// Not one clipping norm per group of the layout; a unit with more rows than a micro-batch.
    pub fn begin(
        &self,
        number: u64,
        layout: &Layout,
        table: &UnitRows,
        rows: usize,
        random: &mut dyn Random,
    ) -> Result<(Step, Vec<MicroBatch>), OptimError> {
        Step::begin(self, number, layout, table, rows, random)
    }

    /// What an accountant must be told about `steps` steps of this plan.
    ///
    /// # Errors
    /// No steps.
    pub fn segment(&self, steps: u64) -> Result<Segment, OptimError> {
        Ok(Segment::new(
            self.sampling_rate,
            self.noise_multiplier,
            steps,
        )?)
    }

    /// The ledger's line for one step of this plan; to be written before the step is released.
    #[must_use]
    pub fn event(&self, step: u64) -> Event {
        Event::Step {
            step,
            sampling_rate: self.sampling_rate,
            noise_multiplier: self.noise_multiplier,
            group_noise_multipliers: self.group_noise_multipliers.clone(),
            clipping_norms: self.clipping_norms.clone(),
            telemetry: self.telemetry_noise_multipliers(),
        }
    }

    /// The effective noise multiplier computed back from the noise of all parts: never below [`StepPlan::noise_multiplier`].
    ///
    /// # Errors
    /// None for a plan that was built; the accountant's checks are passed on.
    pub fn recomputed_noise_multiplier(&self) -> Result<f64, OptimError> {
        let mut parts = self.group_noise_multipliers.clone();
        parts.extend(self.telemetry_noise_multipliers());
        Ok(effective_noise_multiplier(&parts)?)
    }

    pub(crate) fn clips(&self) -> Result<Vec<Clip>, OptimError> {
        self.clipping_norms
            .iter()
            .map(|&norm| Clip::new(norm, self.rule))
            .collect()
    }
}
