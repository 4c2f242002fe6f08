//! Mechanisms under audit.

use burn::tensor::{Device, Tensor, TensorData};
use rldp_optim::{
    Accumulator, GroupGradients, Layout, OptimError, PerExampleGradients, Private, Random, RowMap,
    StepPlan,
};

use crate::error::AuditError;

/// Something that releases numbers about a batch with or without one more unit, the canary.
///
/// The numbers should be scaled to noise of standard deviation about one.
pub trait Mechanism {
    /// One release, with fresh randomness.
    ///
    /// # Errors
    /// Whatever keeps the mechanism from releasing.
    fn release(&mut self, canary: bool) -> Result<Vec<f64>, AuditError>;

    /// The best linear attack if the mechanism is what it claims to be: a weight for each number.
    fn claimed_weights(&self) -> Vec<f64>;
}

/// Units in the batch beside the canary. They point in a direction of their own, so that anything the canary does to others'
/// contributions (a division by the realised batch size, clipping after averaging) is seen.
const CROWD: usize = 3;

/// The real step of `rldp-optim`, with a worst-case ("Dirac") canary: a gradient far above every clipping norm along one
/// coordinate of every group, and a loss at the bound.
pub struct StepMechanism<'a> {
    plan: StepPlan,
    layout: Layout,
    batches: [PerExampleGradients; 2],
    device: Device,
    random: &'a mut dyn Random,
}

impl<'a> StepMechanism<'a> {
    /// The step under this plan; the batch is given, so the sampling rate takes no part.
    ///
    /// # Errors
    /// A plan that the step refuses.
    pub fn new(
        plan: &StepPlan,
        device: &Device,
        random: &'a mut dyn Random,
    ) -> Result<Self, AuditError> {
        let layout =
            Layout::new((0..plan.clipping_norms().len()).map(|group| (group.to_string(), vec![2])));
        let batch = |canary: bool| {
            let rows = CROWD + usize::from(canary);
            let groups = plan
                .clipping_norms()
                .iter()
                .enumerate()
                .map(|(index, &norm)| {
                    let mut values = [0.0, (10.0 * norm) as f32].repeat(CROWD);
                    if canary {
                        values.extend([(1000.0 * norm) as f32, 0.0]);
                    }
                    GroupGradients::new(index.to_string()).with(Tensor::<2>::from_data(
                        TensorData::new(values, [rows, 2]),
                        device,
                    ))
                })
                .collect();
            PerExampleGradients::new(groups, RowMap::one_each(rows))
        };
        Ok(Self {
            batches: [batch(false)?, batch(true)?],
            plan: plan.clone(),
            layout,
            device: device.clone(),
            random,
        })
    }

    fn losses(&self, canary: bool) -> Option<Private<Tensor<1>>> {
        let telemetry = self.plan.telemetry();
        self.plan.loss_noise_multiplier().map(|_| {
            let mut losses = vec![(0.5 * telemetry.loss_bound) as f32; CROWD];
            losses.extend(canary.then_some((2.0 * telemetry.loss_bound) as f32));
            let count = losses.len();
            Private::new(Tensor::from_data(
                TensorData::new(losses, [count]),
                &self.device,
            ))
        })
    }
}

impl Mechanism for StepMechanism<'_> {
    fn release(&mut self, canary: bool) -> Result<Vec<f64>, AuditError> {
        let mut step = Accumulator::begin(&self.plan, &self.layout)?;
        step.add(&self.batches[usize::from(canary)], self.losses(canary))?;
        let release = step.release(self.random, &self.device)?;
        // Scaled with what the plan claims, not with what the release says of itself.
        let batch = self.plan.expected_batch();
        let mut observed = Vec::with_capacity(3 * release.groups.len() + 1);
        let claimed = self
            .plan
            .clipping_norms()
            .iter()
            .zip(self.plan.group_noise_multipliers());
        for (group, (norm, sigma)) in release.groups.iter().zip(claimed) {
            for tensor in &group.gradients {
                let values = tensor.clone().try_into_vec_as::<f64>().map_err(|error| {
                    OptimError::Device {
                        what: "a release",
                        message: error.to_string(),
                    }
                })?;
                observed.extend(
                    values
                        .into_iter()
                        .map(|value| value * batch / (sigma * norm)),
                );
            }
        }
        if let (Some(fractions), Some(noise)) =
            (&release.clipped_fractions, self.plan.clip_count_noise())
        {
            observed.extend(
                fractions
                    .values
                    .iter()
                    .map(|value| value.value() * batch / noise),
            );
        }
        if let (Some(loss), Some(sigma)) = (&release.mean_loss, self.plan.loss_noise_multiplier()) {
            observed.push(
                loss.value.value() * batch / (sigma * 0.5 * self.plan.telemetry().loss_bound),
            );
        }
        Ok(observed)
    }

    fn claimed_weights(&self) -> Vec<f64> {
        // For independent unit noise the best weights are the shifts that the canary makes.
        let mut weights: Vec<f64> = self
            .plan
            .group_noise_multipliers()
            .iter()
            .flat_map(|sigma| [1.0 / sigma, 0.0])
            .collect();
        if let Some(noise) = self.plan.clip_count_noise() {
            weights.extend(vec![0.5 / noise; self.plan.clipping_norms().len()]);
        }
        weights.extend(self.plan.loss_noise_multiplier().map(|sigma| 1.0 / sigma));
        weights
    }
}
