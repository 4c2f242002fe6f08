//! A whole private run over all parameters: fixed noise, flat clipping, no controller to learn.

use std::path::Path;

use burn::tensor::Device;
use rldp_accounting::Segment;
use rldp_accounting::ledger::LedgerWriter;
use rldp_lora::{HostTensor, LoraConfig, TensorFile};
use rldp_models::FullParameters;
use rldp_optim::{
    Accumulator, Beta1, DpOptimizer, Grouping, ParameterGroups, PerExampleGradients, Private,
    Random, RowMap, SteeredAdam, StepPlan, StepRelease,
};
use serde_json::json;

use super::checkpoint;
use super::gradients::{apply, parameter_groups, per_example_gradients};
use crate::budget::BudgetKind;
use crate::controller::{ConstantController, ControllerKind, Decision, PostProcessing};
use crate::error::RldpError;
use crate::trainer::{
    LEDGER_FILE, METRICS_FILE, RunSetup, RunSummary, Task, TokenUnit, Trained, TrainerConfig,
    TrainingData, Watcher, carry_out, micro_batches, restore_optimizer, save_optimizer,
    squared_norm,
};

/// The first-moment decay of Adam.
const BETA_1: f64 = 0.9;
/// Added to the root of Adam's second moment: far below the noise of any released gradient.
const ADAM_EPSILON: f64 = 1e-12;
/// The name of all parameters together.
const ALL: &str = "all parameters";

/// Fine-tunes all parameters of `model` on the training part and writes ledger, metrics and checkpoints into the run folder.
/// Gives the trained model back.
///
/// One clipping norm over everything (`config.clipping_norm`), the same noise at every step, the scheduled learning rate.
/// What `config` and `setup` say about adapters, controllers, budgets and post-processing is not used, nor is the validation
/// part. An interrupted run goes on as [`crate::trainer::fine_tune`]'s does: with the same bookkeeping, and the same checkpoints.
///
/// # Guarantee
/// Without a seed, the model given back, everything written and everything told to `watcher` is (`config.epsilon`,
/// delta)-DP for adding or removing one unit, however often the run is interrupted and resumed: the steps are those of
/// [`FullStep`], the test losses a [`HeldOut`](crate::trainer::HeldOut) part's.
///
/// # Errors
/// See [`RldpError`]. What was spent before an error is in the ledger. A folder that holds a run which is not to be
/// resumed, or one that was started with other settings, data or model, is refused.
pub fn fine_tune<M: FullParameters>(
    model: M,
    data: TrainingData,
    setup: &RunSetup,
    watcher: &mut dyn Watcher,
) -> Result<(M, RunSummary), RldpError> {
    setup.config.validate()?;
    data.check::<M, FullStep>()?;
    let config = TrainerConfig {
        controller: ControllerKind::Constant,
        budget: BudgetKind::Fixed,
        deck_ratios: Vec::new(),
        decisions: 1,
        interval: None,
        clip_count_share: 0.0,
        training_loss_share: 0.0,
        post_processing: PostProcessing::default(),
        ..setup.config.clone()
    };
    let model = checkpoint::numbered(model.valid().freeze());
    let mut data = data;
    let step = FullStep::new(
        &model,
        std::mem::take(&mut data.training),
        data.training_population,
        &config,
        &setup.device,
    )?;
    let mut controller = ConstantController::flat(config.clipping_norm)?;
    let task = Task {
        config: &config,
        kind: ("trainable", json!("full")),
    };
    let (model, run) = carry_out(model, step, data, task, &mut controller, setup, watcher)?;
    watcher.end();
    let summary = run.summary(vec![LEDGER_FILE.to_owned(), METRICS_FILE.to_owned()])?;
    Ok((model, summary))
}

/// Private steps over all parameters of a model, on one training part.
pub struct FullStep {
    units: Vec<TokenUnit>,
    population: usize,
    micro_batch: usize,
    clipping_norm: f64,
    groups: ParameterGroups,
    optimizer: DpOptimizer,
    beta_1: Beta1,
    device: Device,
}

impl FullStep {
    /// Prepares steps with flat clipping and Adam. `population` is the public number of units that the training part is
    /// expected to hold.
    ///
    /// # Errors
    /// [`RldpError::UncoveredParameters`]; [`RldpError::OutOfRange`] for a batch larger than the population.
    pub fn new<M: FullParameters>(
        model: &M,
        units: Vec<TokenUnit>,
        population: usize,
        config: &TrainerConfig,
        device: &Device,
    ) -> Result<Self, RldpError> {
        let sampling_rate = config.batch_size / population as f64;
        if sampling_rate > 1.0 {
            return Err(RldpError::OutOfRange {
                what: "batch size",
                value: config.batch_size,
                range: "(0, units in training]",
            });
        }
        let groups = parameter_groups(model, &Grouping::Flat)?;
        let beta_1 = Beta1::new(BETA_1);
        let adam = SteeredAdam::new(beta_1.clone(), config.beta_2, ADAM_EPSILON);
        Ok(Self {
            units,
            population,
            micro_batch: config.micro_batch,
            clipping_norm: config.clipping_norm,
            optimizer: DpOptimizer::new(adam, groups.clone()),
            groups,
            beta_1,
            device: device.clone(),
        })
    }

    /// The plan of a step that plays `segment`.
    ///
    /// # Errors
    /// Numbers out of range.
    pub fn plan(&self, segment: &Segment) -> Result<StepPlan, RldpError> {
        Ok(StepPlan::new(
            segment.sampling_rate(),
            self.population,
            segment.noise_multiplier(),
            &[self.clipping_norm],
        )?)
    }

    /// Takes one step under `plan` and gives the moved model and what was released. The ledger's line is on disk before
    /// anything noisy exists.
    ///
    /// # Guarantee
    /// The release, and the model it moves, are dominated by one step of [`StepPlan::segment`]: a unit's gradient is the
    /// weighted mean of its rows', clipped as one vector over all parameters.
    ///
    /// # Errors
    /// Errors of the ledger, of the gradients and of the mechanism; the step counts as spent if its line was written.
    pub fn take<M: FullParameters>(
        &mut self,
        number: u64,
        model: M,
        plan: &StepPlan,
        learning_rate: f64,
        ledger: &mut LedgerWriter,
        random: &mut dyn Random,
    ) -> Result<(M, StepRelease), RldpError> {
        let release = self.release(number, &model, plan, ledger, random)?;
        let model = self.apply(model, &release, learning_rate, BETA_1)?;
        Ok((model, release))
    }
}

impl<M: FullParameters> Trained<M> for FullStep {
    const STEERED: bool = false;
    const RESULT: &'static str = "the model";

    fn parts(&self) -> Vec<(String, usize)> {
        let slots = self.groups.iter().flat_map(|(_, slots)| slots);
        let numbers = slots.map(|slot| slot.shape.iter().product::<usize>()).sum();
        vec![(ALL.to_owned(), numbers)]
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn plan(&self, segment: &Segment, decision: &Decision) -> Result<StepPlan, RldpError> {
        Ok(StepPlan::new(
            segment.sampling_rate(),
            self.population,
            segment.noise_multiplier(),
            &decision.clipping_norms,
        )?)
    }

    /// Nothing is done to what was released.
    fn set_post_processing(&mut self, _post_processing: PostProcessing) {}

    fn release(
        &mut self,
        number: u64,
        model: &M,
        plan: &StepPlan,
        ledger: &mut LedgerWriter,
        random: &mut dyn Random,
    ) -> Result<StepRelease, RldpError> {
        // With the plan's own rate: what is sampled is what is accounted.
        let sampled: Vec<&TokenUnit> = plan
            .sampler_over(self.units.len())?
            .sample(random)
            .into_iter()
            .map(|index| &self.units[index])
            .collect();
        let mut accumulator = Accumulator::begin(plan, &self.groups.layout())?;
        for batch in micro_batches(&sampled, self.micro_batch, &self.device)? {
            let (gradients, losses) = per_example_gradients(model, &batch.batch, &self.groups)?;
            let units: Vec<Option<usize>> = batch.unit_of_row.iter().copied().map(Some).collect();
            let rows = RowMap::summed(&units, &batch.weight_of_row)?;
            let losses = plan.loss_noise_multiplier().map(|_| Private::new(losses));
            accumulator.add(&PerExampleGradients::new(gradients, rows)?, losses)?;
        }
        ledger.append(&plan.event(number))?;
        Ok(accumulator.release(random, &self.device)?)
    }

    fn apply(
        &mut self,
        model: M,
        release: &StepRelease,
        learning_rate: f64,
        beta_1: f64,
    ) -> Result<M, RldpError> {
        self.beta_1.set(beta_1);
        apply(&mut self.optimizer, learning_rate, model, release)
    }

    fn averaged(&self, _model: &M) -> Result<Option<M>, RldpError> {
        Ok(None)
    }

    fn squared_norms(&self, model: &M) -> Vec<f64> {
        vec![squared_norm(model)]
    }

    fn tensors(&self, model: &M) -> Result<Vec<HostTensor>, RldpError> {
        checkpoint::tensors(model)
    }

    fn with_tensors(
        &self,
        model: M,
        file: &TensorFile,
        _lora: &LoraConfig,
    ) -> Result<M, RldpError> {
        checkpoint::with_tensors(model, file, &self.device)
    }

    fn save_state(&self, folder: &Path) -> Result<(), RldpError> {
        save_optimizer(&self.optimizer, folder)
    }

    fn restore_state(&mut self, folder: &Path) -> Result<(), RldpError> {
        restore_optimizer(&mut self.optimizer, folder)
    }
}
