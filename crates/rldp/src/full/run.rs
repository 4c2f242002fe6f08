//! A whole private run over all parameters: fixed noise, flat clipping, no controller.

use burn::tensor::Device;
use rldp_accounting::ledger::{Event, Header, LEDGER_VERSION, Ledger, LedgerWriter};
use rldp_accounting::{Adjacency, PrivacyTarget, Segment};
use rldp_models::FullParameters;
use rldp_optim::{
    Accumulator, Beta1, DpOptimizer, Grouping, ParameterGroups, PerExampleGradients, Private,
    Random, RowMap, SecureRandom, SeededRandom, SteeredAdam, StepPlan, StepRelease,
};
use serde_json::json;

use super::gradients::{apply, parameter_groups, per_example_gradients};
use crate::budget::{Budget, BudgetKind};
use crate::error::RldpError;
use crate::trainer::{
    HeldOut, HeldOutRecord, LEDGER_FILE, METRICS_FILE, MetricsWriter, Record, RunSetup, StepRecord,
    TokenUnit, TrainerConfig, TrainingData, Watcher, micro_batches,
};

/// The first-moment decay of Adam.
const BETA_1: f64 = 0.9;
/// Added to the root of Adam's second moment: far below the noise of any released gradient.
const ADAM_EPSILON: f64 = 1e-12;

/// What a full-parameter run released.
#[derive(Debug, Clone)]
pub struct FullSummary {
    /// Upper bound on epsilon, recomputed from the ledger.
    pub epsilon_upper: f64,
    /// Delta.
    pub delta: f64,
    /// How many numbers were trained.
    pub parameters: usize,
    /// The test part's released losses, before and after.
    pub test: [HeldOutRecord; 2],
    /// Whether the noise was cryptographic; a seeded run is not private.
    pub private: bool,
}

/// Fine-tunes all parameters of `model` on the training part and writes ledger and metrics into the run folder. Gives the
/// trained model back.
///
/// One clipping norm over everything (`config.clipping_norm`), the same noise at every step, the scheduled learning rate.
/// What `config` and `setup` say about adapters and controllers is not used, nor is the validation part.
///
/// # Guarantee
/// Without a seed, the model given back, everything written and everything told to `watcher` is (`config.epsilon`,
/// delta)-DP for adding or removing one unit: the steps are those of [`FullStep`], the test losses a [`HeldOut`] part's.
///
/// # Errors
/// See [`RldpError`]. What was spent before an error is in the ledger. There are no checkpoints: an interrupted run of this
/// kind is not resumed, and what it spent is spent.
pub fn fine_tune<M: FullParameters>(
    model: M,
    data: TrainingData,
    setup: &RunSetup,
    watcher: &mut dyn Watcher,
) -> Result<(M, FullSummary), RldpError> {
    let config = &setup.config;
    config.validate()?;
    if setup.folder.holds_run()? {
        let path = setup.folder.path().to_owned();
        return Err(if setup.resume {
            RldpError::NotResumable { path }
        } else {
            RldpError::RunExists { path }
        });
    }
    setup.folder.clear_unbegun()?;
    for (part, units) in [("training", &data.training), ("test", &data.test)] {
        if units.is_empty() {
            return Err(RldpError::EmptyPart {
                part,
                units: data.units,
            });
        }
    }
    let delta = config.delta_for(data.units);
    let target = PrivacyTarget::new(config.epsilon, delta)?;
    let mut random: Box<dyn Random> = match setup.seed {
        None => Box::new(SecureRandom::new()?),
        Some(seed) => Box::new(SeededRandom::new(seed)),
    };
    let population = data.training_population;
    let mut step = FullStep::new(&model, data.training, population, config, &setup.device)?;
    watcher.phase("calibrating the noise to the budget");
    let rate = config.batch_size / population as f64;
    let mut budget = Budget::calibrate(BudgetKind::Fixed, &target, rate, config.steps)?;
    let header = Header {
        version: LEDGER_VERSION,
        created: setup.created.clone(),
        unit: data.unit.clone(),
        adjacency: Adjacency::AddRemove,
        target,
        private: setup.seed.is_none(),
        budget: budget.record(),
        parameters: json!({
            "units": data.units,
            "training_population": population,
            "batch_size": config.batch_size,
            "fingerprint": data.fingerprint,
            "trainable": "full",
            "base_model": setup.base_model,
            "base_model_fingerprint": setup.base_model_fingerprint,
        }),
    };
    let mut ledger = LedgerWriter::create(setup.folder.join(LEDGER_FILE), &header)?;
    if let Some(seed) = setup.seed {
        ledger.append(&Event::Note {
            text: format!("NOT private: all randomness comes from the seed {seed}"),
        })?;
    }
    let mut metrics = MetricsWriter::create(&setup.folder.join(METRICS_FILE))?;
    let mut record = |record: Record, watcher: &mut dyn Watcher| {
        watcher.record(&record);
        metrics.append(&record)
    };
    let mut part = HeldOut::new(
        "test",
        data.test,
        &target,
        2,
        config.loss_bound,
        &mut ledger,
        random.as_mut(),
    )?;
    let mut test_loss =
        |model: &M, taken: u64, ledger: &mut LedgerWriter, random: &mut dyn Random| {
            let released =
                part.release_loss(model, config.micro_batch, &setup.device, ledger, random)?;
            let loss = *released.loss.value();
            if !loss.is_finite() {
                return Err(RldpError::NotFinite {
                    what: "a held-out loss",
                    step: taken,
                    value: loss,
                });
            }
            Ok(HeldOutRecord {
                step: taken,
                part: "test".to_owned(),
                loss,
                noise: released.noise,
            })
        };

    let mut model = model.valid().freeze();
    watcher.phase("releasing the loss before training");
    let before = test_loss(&model, 0, &mut ledger, random.as_mut())?;
    record(Record::HeldOut(before.clone()), watcher)?;
    watcher.begin(config.steps);
    let mut taken = 0;
    while let Some(segment) = budget.play(1.0)? {
        let plan = step.plan(&segment)?;
        let learning_rate = config.scheduled_learning_rate(taken);
        let (moved, release) = step.take(
            taken + 1,
            model,
            &plan,
            learning_rate,
            &mut ledger,
            random.as_mut(),
        )?;
        model = moved;
        taken += 1;
        let line = Record::Step(StepRecord {
            step: taken,
            noise_multiplier: plan.noise_multiplier(),
            group_noise_multipliers: plan.group_noise_multipliers().to_vec(),
            clipping_norms: plan.clipping_norms().to_vec(),
            clipped_fractions: release.clipped_fractions.map(|fractions| {
                fractions
                    .values
                    .iter()
                    .map(|value| *value.value())
                    .collect()
            }),
            training_loss: release.mean_loss.map(|loss| *loss.value.value()),
            learning_rate,
            beta_1: BETA_1,
            epsilon_spent: budget.epsilon_played(delta)?,
        });
        record(line, watcher)?;
    }
    let after = test_loss(&model, taken, &mut ledger, random.as_mut())?;
    record(Record::HeldOut(after.clone()), watcher)?;
    watcher.end();
    drop(ledger);
    let epsilon = Ledger::read(setup.folder.join(LEDGER_FILE))?.epsilon_upper(delta)?;
    let summary = FullSummary {
        epsilon_upper: epsilon.overall,
        delta,
        parameters: model.num_params(),
        test: [before, after],
        private: setup.seed.is_none(),
    };
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
        let adam = SteeredAdam::new(Beta1::new(BETA_1), config.beta_2, ADAM_EPSILON);
        Ok(Self {
            units,
            population,
            micro_batch: config.micro_batch,
            clipping_norm: config.clipping_norm,
            optimizer: DpOptimizer::new(adam, groups.clone()),
            groups,
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
        // With the plan's own rate: what is sampled is what is accounted.
        let sampled: Vec<&TokenUnit> = plan
            .sampler_over(self.units.len())?
            .sample(random)
            .into_iter()
            .map(|index| &self.units[index])
            .collect();
        let mut accumulator = Accumulator::begin(plan, &self.groups.layout())?;
        for batch in micro_batches(&sampled, self.micro_batch, &self.device)? {
            let (gradients, losses) = per_example_gradients(&model, &batch.batch, &self.groups)?;
            let units: Vec<Option<usize>> = batch.unit_of_row.iter().copied().map(Some).collect();
            let rows = RowMap::summed(&units, &batch.weight_of_row)?;
            let losses = plan.loss_noise_multiplier().map(|_| Private::new(losses));
            accumulator.add(&PerExampleGradients::new(gradients, rows)?, losses)?;
        }
        ledger.append(&plan.event(number))?;
        let release = accumulator.release(random, &self.device)?;
        let model = apply(&mut self.optimizer, learning_rate, model, &release)?;
        Ok((model, release))
    }
}
