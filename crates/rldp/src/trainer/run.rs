//! A whole private fine-tuning run.

use std::path::PathBuf;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor};
use rldp_accounting::ledger::{Event, Header, LEDGER_VERSION, Ledger, LedgerWriter};
use rldp_accounting::{Adjacency, PrivacyTarget, Segment};
use rldp_lora::peft::save_adapter;
use rldp_lora::{LoraConfig, adapters};
use rldp_models::LanguageModel;
use rldp_optim::{Random, SecureRandom, SeededRandom, StepRelease};
use serde_json::json;

use super::audit::self_audit;
use super::config::TrainerConfig;
use super::examples::TokenUnit;
use super::held_out::{HeldOut, public_loss};
use super::interval::IntervalStatistics;
use super::records::{DecisionRecord, HeldOutRecord, MetricsWriter, Record, StepRecord, Watcher};
use super::step::PrivateStep;
use super::summary::{AdapterSummary, RunSummary};
use crate::budget::Budget;
use crate::controller::{
    AdapterView, Controller, Decision, Observation, Outcome, Visible, WarmUpRule,
};
use crate::error::RldpError;

/// The private table, encoded, in its three disjoint parts.
pub struct TrainingData {
    /// Units to train on.
    pub training: Vec<TokenUnit>,
    /// Units whose released loss steers the controller.
    pub validation: Vec<TokenUnit>,
    /// Units whose released loss is the result.
    pub test: Vec<TokenUnit>,
    /// Public text to read validation losses from instead, exactly and for free.
    pub public_validation: Option<Vec<TokenUnit>>,
    /// Number of units in the table, taken to be public.
    pub units: usize,
    /// Expected number of units in the training part: `units` times its share.
    pub training_population: usize,
    /// What a unit is, in words.
    pub unit: String,
    /// Keyed fingerprint of the table.
    pub fingerprint: String,
}

/// Where and how a run takes place, beside its settings.
pub struct RunSetup {
    /// The settings.
    pub config: TrainerConfig,
    /// The adapters' settings, for their file.
    pub lora: LoraConfig,
    /// The base model's name, for the adapter's file.
    pub base_model: String,
    /// Where to compute, without autodiff.
    pub device: Device,
    /// A seed makes the run reproducible and not private.
    pub seed: Option<u64>,
    /// The run folder; it must exist and hold no run.
    pub folder: PathBuf,
    /// When the run was started, as text.
    pub created: String,
}

/// The ledger's file in a run folder.
pub const LEDGER_FILE: &str = "ledger.jsonl";
/// The metrics' file in a run folder.
pub const METRICS_FILE: &str = "metrics.jsonl";
/// The adapter's folder in a run folder.
pub const ADAPTER_FOLDER: &str = "adapter";

/// Fine-tunes `model`'s adapters on the training part and writes the run folder: ledger, metrics, adapter and what
/// the controller learned. Gives what was released.
///
/// # Guarantee
/// Without a seed, everything written, given back and told to `watcher` is (`config.epsilon`, delta)-DP for adding
/// or removing one unit, whatever the controller does (`docs/guarantee.md`). With a seed nothing is private, and the
/// ledger says so.
///
/// # Errors
/// See [`RldpError`]. What was spent before an error is in the ledger.
pub fn fine_tune<M: LanguageModel>(
    model: &mut M,
    data: TrainingData,
    controller: &mut dyn Controller,
    setup: &RunSetup,
    watcher: &mut dyn Watcher,
) -> Result<RunSummary, RldpError> {
    setup.config.validate()?;
    let mut run = Run::prepare(model, data, controller.name(), setup, watcher)?;
    run.train(model, controller, watcher)?;
    let adapter = setup.folder.join(ADAPTER_FOLDER);
    save_adapter(model, &setup.lora, Some(&setup.base_model), &adapter)?;
    let mut files = vec![
        LEDGER_FILE.to_owned(),
        METRICS_FILE.to_owned(),
        ADAPTER_FOLDER.to_owned(),
    ];
    files.extend(controller.save(&setup.folder)?);
    watcher.end();
    run.summary(files)
}

/// The state of a run.
struct Run<'a> {
    setup: &'a RunSetup,
    controller: &'static str,
    unit: String,
    units: usize,
    delta: f64,
    sampling_rate: f64,
    budget: Budget,
    ledger: LedgerWriter,
    metrics: MetricsWriter,
    random: Box<dyn Random>,
    step: PrivateStep,
    validation: Option<HeldOut>,
    public_validation: Option<Vec<TokenUnit>>,
    test: HeldOut,
    self_audit: crate::report::SelfAudit,
    statistics: IntervalStatistics,
    records: Vec<Record>,
}

impl<'a> Run<'a> {
    fn prepare<M: LanguageModel>(
        model: &M,
        data: TrainingData,
        controller: &'static str,
        setup: &'a RunSetup,
        watcher: &mut dyn Watcher,
    ) -> Result<Self, RldpError> {
        let config = &setup.config;
        for (part, units) in [
            ("training", &data.training),
            ("validation", &data.validation),
            ("test", &data.test),
        ] {
            if units.is_empty() {
                return Err(RldpError::EmptyPart {
                    part,
                    units: data.units,
                });
            }
        }
        let delta = config.delta_for(data.units);
        let target = PrivacyTarget::new(config.epsilon, delta)?;
        let step = PrivateStep::new(
            model,
            data.training,
            data.training_population,
            config,
            &setup.device,
        )?;
        let sampling_rate = config.batch_size / data.training_population as f64;
        watcher.phase("calibrating the noise to the budget");
        let budget = Budget::calibrate(config.budget, &target, sampling_rate, config.steps)?;
        let mut random: Box<dyn Random> = match setup.seed {
            None => Box::new(SecureRandom::new()?),
            Some(seed) => Box::new(SeededRandom::new(seed)),
        };
        watcher.phase("auditing the mechanism with canaries");
        let dimensions: Vec<usize> = step
            .references()
            .iter()
            .map(|adapter| adapter.trainable_parameters())
            .collect();
        let rule = WarmUpRule::new(&dimensions, config.clipping_norm)?;
        let first = Segment::new(sampling_rate, budget.nominal(), 1)?;
        let plan = step.plan(&first, &rule.decision())?;
        let self_audit = self_audit(&plan, delta, &setup.device, random.as_mut())?;
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
                "training_population": data.training_population,
                "batch_size": config.batch_size,
                "fingerprint": data.fingerprint,
                "controller": controller,
                "base_model": setup.base_model,
            }),
        };
        let mut ledger = LedgerWriter::create(setup.folder.join(LEDGER_FILE), &header)?;
        if let Some(seed) = setup.seed {
            ledger.append(&Event::Note {
                text: format!("NOT private: all randomness comes from the seed {seed}"),
            })?;
        }
        let metrics = MetricsWriter::create(&setup.folder.join(METRICS_FILE))?;
        let validation = match data.public_validation {
            Some(_) => None,
            None => Some(HeldOut::new(
                "validation",
                data.validation,
                &target,
                config.decisions + 1,
                config.loss_bound,
                &mut ledger,
                random.as_mut(),
            )?),
        };
        let test = HeldOut::new(
            "test",
            data.test,
            &target,
            2,
            config.loss_bound,
            &mut ledger,
            random.as_mut(),
        )?;
        let statistics = IntervalStatistics::new(step.references().len());
        Ok(Self {
            setup,
            controller,
            unit: data.unit,
            units: data.units,
            delta,
            sampling_rate,
            budget,
            ledger,
            metrics,
            random,
            step,
            validation,
            public_validation: data.public_validation,
            test,
            self_audit,
            statistics,
            records: Vec::new(),
        })
    }

    fn train<M: LanguageModel>(
        &mut self,
        model: &mut M,
        controller: &mut dyn Controller,
        watcher: &mut dyn Watcher,
    ) -> Result<(), RldpError> {
        let config = &self.setup.config;
        let decisions = config.decisions.min(config.steps);
        watcher.phase("releasing the losses before training");
        self.test_loss(model, 0, watcher)?;
        let initial = self.validation_loss(model, 0, watcher)?;
        watcher.begin(config.steps);
        let mut loss = initial;
        let mut taken = 0;
        let mut decision = None;
        let mut finished = false;
        for index in 0..decisions {
            let end = (index + 1) * config.steps / decisions;
            let current = match decision.take() {
                None => {
                    let observation = self.observation(model, taken, loss, initial, loss, None)?;
                    controller.decide(&observation)?
                }
                Some(current) => current,
            };
            self.record(decision_record(taken, &current), watcher)?;
            while taken < end {
                match self.one_step(model, taken, &current, watcher)? {
                    true => taken += 1,
                    false => {
                        finished = true;
                        break;
                    }
                }
            }
            let before = loss;
            loss = self.validation_loss(model, taken, watcher)?;
            let next = self.observation(model, taken, loss, initial, before, Some(&current))?;
            finished |= index + 1 == decisions;
            controller.outcome(&Outcome {
                reward: next.improvement,
                next: next.clone(),
                finished,
            })?;
            if finished {
                break;
            }
            decision = Some(controller.decide(&next)?);
        }
        self.test_loss(model, taken, watcher)
    }

    /// Takes one step; false when the budget is played out.
    fn one_step<M: LanguageModel>(
        &mut self,
        model: &mut M,
        taken: u64,
        decision: &Decision,
        watcher: &mut dyn Watcher,
    ) -> Result<bool, RldpError> {
        let config = &self.setup.config;
        let Some(segment) = self.budget.play(decision.noise.0)? else {
            return Ok(false);
        };
        let plan = self.step.plan(&segment, decision)?;
        let learning_rate = config.scheduled_learning_rate(taken) * decision.learning_rate_factor;
        let before = (taken == 0).then(|| squared_norms(&adapters(model)));
        let release = self.step.take(
            taken + 1,
            model,
            &plan,
            learning_rate,
            decision.beta_1,
            &mut self.ledger,
            self.random.as_mut(),
        )?;
        if let Some(before) = before {
            check_moved(&before, &squared_norms(&adapters(model)), learning_rate)?;
        }
        let clipped: Option<Vec<f64>> = release.clipped_fractions.as_ref().map(|fractions| {
            fractions
                .values
                .iter()
                .map(|value| *value.value())
                .collect()
        });
        self.observe(&release, clipped.as_deref());
        let record = Record::Step(StepRecord {
            step: taken + 1,
            noise_multiplier: plan.noise_multiplier(),
            group_noise_multipliers: plan.group_noise_multipliers().to_vec(),
            clipping_norms: plan.clipping_norms().to_vec(),
            clipped_fractions: clipped,
            training_loss: release.mean_loss.as_ref().map(|loss| *loss.value.value()),
            learning_rate,
            beta_1: decision.beta_1,
            epsilon_spent: self.budget.epsilon_played(self.delta)?,
        });
        self.record(record, watcher)?;
        Ok(true)
    }

    /// Takes a release into the interval's statistics.
    fn observe(&mut self, release: &StepRelease, clipped: Option<&[f64]>) {
        let noise: Vec<f64> = release.groups.iter().map(|group| group.noise_std).collect();
        let gradients = release
            .groups
            .iter()
            .map(|group| Tensor::cat(group.gradients.clone(), 0))
            .collect();
        self.statistics.add(gradients, &noise, clipped);
    }

    fn observation<M: LanguageModel>(
        &mut self,
        model: &M,
        taken: u64,
        loss: Visible,
        initial: Visible,
        last: Visible,
        decision: Option<&Decision>,
    ) -> Result<Observation, RldpError> {
        let config = &self.setup.config;
        let norms = squared_norms(&adapters(model));
        if let Some(bad) = norms.iter().find(|norm| !norm.is_finite()) {
            return Err(RldpError::NotFinite {
                what: "an adapter's norm",
                step: taken,
                value: *bad,
            });
        }
        let count = self.step.references().len();
        let views = self
            .statistics
            .take()
            .into_iter()
            .enumerate()
            .map(|(index, statistics)| AdapterView {
                dimension: self.step.references()[index].trainable_parameters(),
                clipped_fraction: Visible::post_processed(statistics.clipped_fraction),
                signal_to_noise: Visible::post_processed(statistics.signal_to_noise),
                cosine: Visible::post_processed(statistics.cosine),
                parameter_norm: Visible::post_processed(norms[index].sqrt()),
                clipping_norm: decision.map_or(config.clipping_norm, |d| d.clipping_norms[index]),
                noise_weight: decision.map_or(1.0 / count as f64, |d| d.noise_weights[index]),
            })
            .collect();
        Ok(Observation {
            progress: taken as f64 / config.steps as f64,
            spent: self.budget.epsilon_played(self.delta)? / config.epsilon,
            validation_loss: loss,
            initial_loss: initial,
            improvement: Visible::post_processed(last.get() - loss.get()),
            noise_multiplier: self.budget.nominal() * decision.map_or(1.0, |d| d.noise.0),
            learning_rate_factor: decision.map_or(1.0, |d| d.learning_rate_factor),
            beta_1: decision.map_or(0.8, |d| d.beta_1),
            adapters: views,
        })
    }

    /// The validation loss: released from the validation part, or exact on public text.
    fn validation_loss<M: LanguageModel>(
        &mut self,
        model: &M,
        taken: u64,
        watcher: &mut dyn Watcher,
    ) -> Result<Visible, RldpError> {
        let (config, device) = (&self.setup.config, &self.setup.device);
        let (part, loss, noise) = match (&mut self.validation, &self.public_validation) {
            (Some(part), _) => {
                let released = part.release_loss(
                    model,
                    config.micro_batch,
                    device,
                    &mut self.ledger,
                    self.random.as_mut(),
                )?;
                (part.part(), Visible::from(&released.loss), released.noise)
            }
            (None, units) => {
                let units = units.as_deref().unwrap_or_default();
                let loss = public_loss(model, units, config.micro_batch, device)?;
                ("public-validation", Visible::public(loss), 0.0)
            }
        };
        self.held_out_record(part, taken, loss.get(), noise, watcher)?;
        Ok(loss)
    }

    fn test_loss<M: LanguageModel>(
        &mut self,
        model: &M,
        taken: u64,
        watcher: &mut dyn Watcher,
    ) -> Result<(), RldpError> {
        let released = self.test.release_loss(
            model,
            self.setup.config.micro_batch,
            &self.setup.device,
            &mut self.ledger,
            self.random.as_mut(),
        )?;
        self.held_out_record(
            "test",
            taken,
            *released.loss.value(),
            released.noise,
            watcher,
        )
    }

    fn held_out_record(
        &mut self,
        part: &str,
        step: u64,
        loss: f64,
        noise: f64,
        watcher: &mut dyn Watcher,
    ) -> Result<(), RldpError> {
        if !loss.is_finite() {
            return Err(RldpError::NotFinite {
                what: "a held-out loss",
                step,
                value: loss,
            });
        }
        let record = Record::HeldOut(HeldOutRecord {
            step,
            part: part.to_owned(),
            loss,
            noise,
        });
        self.record(record, watcher)
    }

    fn record(&mut self, record: Record, watcher: &mut dyn Watcher) -> Result<(), RldpError> {
        self.metrics.append(&record)?;
        watcher.record(&record);
        self.records.push(record);
        Ok(())
    }

    /// Reads the ledger back and sums the run up: the epsilon reported is the one that anyone can recompute.
    fn summary(self, files: Vec<String>) -> Result<RunSummary, RldpError> {
        let accountant = self.budget.accountant();
        drop(self.ledger);
        let ledger = Ledger::read(self.setup.folder.join(LEDGER_FILE))?;
        let epsilon = ledger.epsilon_upper(self.delta)?;
        Ok(RunSummary {
            config: self.setup.config.clone(),
            controller: self.controller,
            unit: self.unit,
            units: self.units,
            epsilon_upper: epsilon.overall,
            delta: self.delta,
            sampling_rate: self.sampling_rate,
            seed: self.setup.seed,
            accountant,
            self_audit: self.self_audit,
            adapters: self
                .step
                .references()
                .iter()
                .map(|adapter| AdapterSummary {
                    name: adapter.name.clone(),
                    parameters: adapter.trainable_parameters(),
                })
                .collect(),
            records: self.records,
            files,
        })
    }
}

fn decision_record(taken: u64, decision: &Decision) -> Record {
    Record::Decision(DecisionRecord {
        step: taken,
        learning_rate_factor: decision.learning_rate_factor,
        beta_1: decision.beta_1,
        noise_wish: decision.noise.0,
        noise_weights: decision.noise_weights.clone(),
    })
}

/// Squared Euclidean norm of every adapter's parameters.
fn squared_norms(adapters: &rldp_lora::Adapters) -> Vec<f64> {
    struct Sum(f64);
    impl ModuleVisitor for Sum {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let value = param.val().without_autodiff();
            self.0 += f64::from((value.clone() * value).sum().into_scalar::<f32>());
        }
    }
    adapters
        .layers
        .iter()
        .map(|layer| {
            let mut sum = Sum(0.0);
            layer.visit(&mut sum);
            sum.0
        })
        .collect()
}

/// Refuses a first step that changed nothing or broke the adapters.
fn check_moved(before: &[f64], after: &[f64], learning_rate: f64) -> Result<(), RldpError> {
    if let Some(bad) = after.iter().find(|norm| !norm.is_finite()) {
        return Err(RldpError::NotFinite {
            what: "an adapter's norm",
            step: 1,
            value: *bad,
        });
    }
    if before == after {
        return Err(RldpError::NothingMoved {
            step: 1,
            learning_rate,
        });
    }
    Ok(())
}
