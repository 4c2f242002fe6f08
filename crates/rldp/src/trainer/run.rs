//! A whole private fine-tuning run, from its start or from where an interrupted one stopped.

use burn::tensor::{Device, Tensor};
use rldp_accounting::ledger::{BudgetRecord, Event, Header, LEDGER_VERSION, Ledger, LedgerWriter};
use rldp_accounting::{Adjacency, PrivacyTarget, Segment};
use rldp_lora::LoraConfig;
use rldp_lora::peft::save_adapter;
use rldp_models::LanguageModel;
use rldp_optim::{Random, SecureRandom, SeededRandom, StepRelease};
use serde_json::json;

use super::audit::{TRIALS, self_audit};
use super::checkpoint::{CHECKPOINT_FOLDER, Checkpoints, Loaded};
use super::config::TrainerConfig;
use super::examples::TokenUnit;
use super::folder::RunFolder;
use super::held_out::{HeldOut, public_loss};
use super::interval::IntervalStatistics;
use super::records::{DecisionRecord, HeldOutRecord, MetricsWriter, Record, StepRecord, Watcher};
use super::resume::{self, Lost, Progress, Stage, State};
use super::step::PrivateStep;
use super::summary::{AdapterSummary, RunSummary};
use super::trained::Trained;
use crate::budget::{Budget, Registered};
use crate::controller::{
    AdapterView, Controller, Decision, Observation, Outcome, StepView, Visible, WarmUpRule,
};
use crate::error::RldpError;
use crate::report::SelfAudit;

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
    /// Keyed fingerprint of the three parts: see [`token_fingerprint`](super::token_fingerprint).
    pub token_fingerprint: String,
}

impl TrainingData {
    /// Refuses an empty part, but for the validation part of a run that does not ask it.
    pub(crate) fn check<M, S: Trained<M>>(&self) -> Result<(), RldpError> {
        for (part, units, needed) in [
            ("training", &self.training, true),
            (VALIDATION, &self.validation, S::STEERED),
            (TEST, &self.test, true),
        ] {
            if needed && units.is_empty() {
                return Err(RldpError::EmptyPart {
                    part,
                    units: self.units,
                });
            }
        }
        Ok(())
    }
}

/// Where and how a run takes place, beside its settings.
pub struct RunSetup {
    /// The settings.
    pub config: TrainerConfig,
    /// The adapters' settings, for their file.
    pub lora: LoraConfig,
    /// The base model's name, for the adapter's file.
    pub base_model: String,
    /// Fingerprint of the base model's weights: see [`model_fingerprint`](super::model_fingerprint).
    pub base_model_fingerprint: String,
    /// Where to compute, without autodiff.
    pub device: Device,
    /// A seed makes the run reproducible and not private.
    pub seed: Option<u64>,
    /// The run folder.
    pub folder: RunFolder,
    /// Go on with the run that the folder holds. A folder without a run begins one either way.
    pub resume: bool,
    /// A checkpoint is written after every so many steps, and after every held-out query.
    pub checkpoint_every: u64,
    /// When the run was started, as text.
    pub created: String,
    /// What a seeded run may look at beside what it releases; refused without a seed.
    pub study: Option<Study>,
}

/// A study compares methods on data that is public, or whose owners allow it: its runs are seeded, so not private, and may
/// record exact losses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Study {
    /// Exact losses of the test part are recorded before the first step, after every so many steps, and after the last.
    pub every: u64,
}

/// The part's name in records of exact losses on public validation text.
pub const PUBLIC_VALIDATION: &str = "public-validation";
/// The part's name in records of exact test losses.
pub const STUDY: &str = "exact-test";

/// The ledger's file in a run folder.
pub const LEDGER_FILE: &str = "ledger.jsonl";
/// The metrics' file in a run folder.
pub const METRICS_FILE: &str = "metrics.jsonl";
/// The adapter's folder in a run folder.
pub const ADAPTER_FOLDER: &str = "adapter";

/// Fine-tunes `model`'s adapters on the training part and writes the run folder: ledger, metrics, adapter and what
/// the controller learned. Gives what was released.
///
/// A run that was interrupted at any moment goes on if called again with [`RunSetup::resume`]. A seeded run then ends
/// as if it had never been interrupted, bit for bit. In a private run whatever the ledger holds stays spent: a step or query
/// whose result was lost is not taken again, the noise of all others is drawn afresh, and the run ends with fewer
/// updates, never with a larger epsilon.
///
/// # Guarantee
/// Without a seed, everything written, given back and told to `watcher` is (`config.epsilon`, delta)-DP for adding
/// or removing one unit, whatever the controller does and however often the run is interrupted and resumed
/// (`docs/guarantee.md`). With a seed nothing is private, and the ledger says so.
///
/// # Errors
/// See [`RldpError`]. What was spent before an error is in the ledger. A folder that holds a run which is not to be
/// resumed, or one that was started with other settings, data or model, is refused.
pub fn fine_tune<M: LanguageModel>(
    model: &mut M,
    data: TrainingData,
    controller: &mut dyn Controller,
    setup: &RunSetup,
    watcher: &mut dyn Watcher,
) -> Result<RunSummary, RldpError> {
    setup.config.validate()?;
    data.check::<M, PrivateStep>()?;
    let mut data = data;
    let step = PrivateStep::new(
        model,
        std::mem::take(&mut data.training),
        data.training_population,
        &setup.config,
        &setup.device,
    )?;
    let what = json!(setup.lora);
    let task = Task {
        config: &setup.config,
        kind: ("lora", what),
    };
    // Base weights are shared, not copied.
    let (trained, run) = carry_out(model.clone(), step, data, task, controller, setup, watcher)?;
    *model = trained;
    setup.folder.write_folder(ADAPTER_FOLDER, |folder| {
        Ok(save_adapter(
            model,
            &setup.lora,
            Some(&setup.base_model),
            folder,
        )?)
    })?;
    let mut files = vec![
        LEDGER_FILE.to_owned(),
        METRICS_FILE.to_owned(),
        ADAPTER_FOLDER.to_owned(),
    ];
    files.extend(controller.save(setup.folder.path())?);
    watcher.end();
    run.summary(files)
}

/// What a run does, beside its setup.
pub(crate) struct Task<'a> {
    /// The settings in force.
    pub config: &'a TrainerConfig,
    /// What of the header's parameters says which parameters are trained: its name and its value.
    pub kind: (&'static str, serde_json::Value),
}

/// Trains from the start or from where an interrupted run stopped, whatever `step` moves, and gives the trained model.
///
/// # Guarantee
/// That of [`fine_tune`].
///
/// # Errors
/// Those of [`fine_tune`].
pub(crate) fn carry_out<'a, M: LanguageModel, S: Trained<M>>(
    model: M,
    step: S,
    data: TrainingData,
    task: Task<'a>,
    controller: &mut dyn Controller,
    setup: &'a RunSetup,
    watcher: &mut dyn Watcher,
) -> Result<(M, Run<'a, S>), RldpError> {
    if setup.study.is_some() && setup.seed.is_none() {
        return Err(RldpError::StudyWithoutSeed);
    }
    let (mut run, model) = Run::prepare(model, step, data, task, controller, setup, watcher)?;
    let model = run.train(model, controller, watcher)?;
    let model = run.step.averaged(&model)?.unwrap_or(model);
    Ok((model, run))
}

/// A run's source of randomness. Only the seeded one has a position that can be kept.
enum RunRandom {
    Private(SecureRandom),
    Seeded(SeededRandom),
}

impl RunRandom {
    /// A private run draws a fresh key in every process: no noise is ever drawn twice.
    fn new(seed: Option<u64>, position: u128) -> Result<Self, RldpError> {
        Ok(match seed {
            None => Self::Private(SecureRandom::new()?),
            Some(seed) => Self::Seeded(SeededRandom::at(seed, position)),
        })
    }

    fn source(&mut self) -> &mut dyn Random {
        match self {
            Self::Private(random) => random,
            Self::Seeded(random) => random,
        }
    }

    fn position(&self) -> Option<String> {
        match self {
            Self::Private(_) => None,
            Self::Seeded(random) => Some(random.position().to_string()),
        }
    }
}

/// The state of a run.
pub(crate) struct Run<'a, S> {
    setup: &'a RunSetup,
    config: &'a TrainerConfig,
    /// What is trained: names and how many numbers each has.
    parts: Vec<(String, usize)>,
    /// What the run gives away, in words.
    result: &'static str,
    /// Fingerprint of the ledger's header.
    run: String,
    controller: &'static str,
    unit: String,
    units: usize,
    delta: f64,
    sampling_rate: f64,
    budget: Budget,
    ledger: LedgerWriter,
    metrics: MetricsWriter,
    random: RunRandom,
    step: S,
    validation: Option<HeldOut>,
    public_validation: Option<Vec<TokenUnit>>,
    test: HeldOut,
    self_audit: SelfAudit,
    statistics: IntervalStatistics,
    records: Vec<Record>,
    progress: Progress,
    checkpoints: Checkpoints,
}

/// What a run is about, before anything is spent.
struct Ground<'a, S> {
    config: &'a TrainerConfig,
    step: S,
    parts: Vec<(String, usize)>,
    target: PrivacyTarget,
    sampling_rate: f64,
    unit: String,
    units: usize,
    validation: Option<HeldOut>,
    public_validation: Option<Vec<TokenUnit>>,
    test: HeldOut,
    /// The header's parameters, but for the nominal noise multiplier.
    parameters: serde_json::Value,
}

/// The header's parameter that wishes are relative to.
const NOMINAL: &str = "nominal_noise_multiplier";

impl<'a, S> Ground<'a, S> {
    fn new<M>(
        step: S,
        data: TrainingData,
        task: Task<'a>,
        controller: &'static str,
        setup: &RunSetup,
    ) -> Result<Self, RldpError>
    where
        S: Trained<M>,
    {
        let Task {
            config,
            kind: (kind, value),
        } = task;
        let target = PrivacyTarget::new(config.epsilon, config.delta_for(data.units))?;
        let mut parameters = json!({
            "units": data.units,
            "training_population": data.training_population,
            "batch_size": config.batch_size,
            "fingerprint": data.fingerprint,
            "token_fingerprint": data.token_fingerprint,
            "public_validation": data.public_validation.is_some(),
            "controller": controller,
            "base_model": setup.base_model,
            "base_model_fingerprint": setup.base_model_fingerprint,
            "seed": setup.seed,
            "settings": settings(config, setup.seed)?,
        });
        parameters[kind] = value;
        let held_out = |part, units, queries| {
            HeldOut::prepare(part, units, &target, queries, config.loss_bound)
        };
        let validation = match data.public_validation {
            None if S::STEERED => Some(held_out(
                VALIDATION,
                data.validation,
                config.decisions() + 1,
            )?),
            _ => None,
        };
        Ok(Self {
            config,
            parts: step.parts(),
            step,
            sampling_rate: config.batch_size / data.training_population as f64,
            unit: data.unit,
            units: data.units,
            validation,
            public_validation: data.public_validation.filter(|_| S::STEERED),
            test: held_out(TEST, data.test, 2)?,
            target,
            parameters,
        })
    }

    fn header(&self, setup: &RunSetup, budget: BudgetRecord, nominal: f64) -> Header {
        let mut parameters = self.parameters.clone();
        parameters[NOMINAL] = json!(nominal);
        Header {
            version: LEDGER_VERSION,
            created: setup.created.clone(),
            unit: self.unit.clone(),
            adjacency: Adjacency::AddRemove,
            target: self.target,
            private: setup.seed.is_none(),
            budget,
            parameters,
        }
    }
}

const VALIDATION: &str = "validation";
const TEST: &str = "test";

/// The settings as the ledger registers them. How many rows are computed at once and what is kept in memory changes no
/// guarantee, and a private run may be resumed with less; a seeded run must repeat itself.
fn settings(config: &TrainerConfig, seed: Option<u64>) -> Result<serde_json::Value, RldpError> {
    let mut settings = serde_json::to_value(config).map_err(|source| RldpError::Json {
        what: "the settings",
        source,
    })?;
    if let (None, Some(settings)) = (seed, settings.as_object_mut()) {
        settings.remove("micro-batch");
        settings.remove("gradient-checkpointing");
    }
    Ok(settings)
}

impl<'a, S> Run<'a, S> {
    fn prepare<M>(
        model: M,
        step: S,
        data: TrainingData,
        task: Task<'a>,
        controller: &mut dyn Controller,
        setup: &'a RunSetup,
        watcher: &mut dyn Watcher,
    ) -> Result<(Self, M), RldpError>
    where
        S: Trained<M>,
    {
        let ground = Ground::new(step, data, task, controller.name(), setup)?;
        let ledger_path = setup.folder.join(LEDGER_FILE);
        if setup.folder.holds_run()? {
            if !setup.resume {
                return Err(RldpError::RunExists {
                    path: setup.folder.path().to_owned(),
                });
            }
            Self::resumed(model, ground, controller, setup, watcher)
        } else {
            if setup.folder.join(CHECKPOINT_FOLDER).exists() {
                return Err(RldpError::Damaged {
                    path: ledger_path,
                    reason: "there are checkpoints without a ledger: what was spent is not known"
                        .to_owned(),
                });
            }
            setup.folder.clear_unbegun()?;
            let run = Self::begun(ground, controller.name(), setup, watcher)?;
            Ok((run, model))
        }
    }

    /// A run from its start.
    fn begun<M>(
        ground: Ground<'a, S>,
        controller: &'static str,
        setup: &'a RunSetup,
        watcher: &mut dyn Watcher,
    ) -> Result<Self, RldpError>
    where
        S: Trained<M>,
    {
        let config = ground.config;
        watcher.phase("calibrating the noise to the budget");
        let budget = Budget::calibrate_levels(
            config.budget,
            &ground.target,
            ground.sampling_rate,
            config.steps,
            &config.deck_levels(),
        )?;
        let mut random = RunRandom::new(setup.seed, 0)?;
        let self_audit = audit(&ground, &budget, setup, &mut random, watcher)?;
        let header = ground.header(setup, budget.record(), budget.nominal());
        let ledger = LedgerWriter::create(setup.folder.join(LEDGER_FILE), &header)?;
        let metrics = MetricsWriter::create(&setup.folder.join(METRICS_FILE))?;
        let (checkpoints, _) = Checkpoints::open::<State>(&setup.folder)?;
        let mut run = Self {
            run: resume::run_fingerprint(&header)?,
            setup,
            config,
            result: S::RESULT,
            controller,
            unit: ground.unit,
            units: ground.units,
            delta: ground.target.delta,
            sampling_rate: ground.sampling_rate,
            budget,
            ledger,
            metrics,
            random,
            statistics: IntervalStatistics::new(ground.parts.len()),
            parts: ground.parts,
            step: ground.step,
            validation: ground.validation,
            public_validation: ground.public_validation,
            test: ground.test,
            self_audit,
            records: Vec::new(),
            progress: Progress::new(),
            checkpoints,
        };
        run.note_seed()?;
        Ok(run)
    }

    /// An interrupted run, from its last checkpoint and its ledger.
    fn resumed<M>(
        model: M,
        mut ground: Ground<'a, S>,
        controller: &mut dyn Controller,
        setup: &'a RunSetup,
        watcher: &mut dyn Watcher,
    ) -> Result<(Self, M), RldpError>
    where
        S: Trained<M>,
    {
        let config = ground.config;
        let path = setup.folder.join(LEDGER_FILE);
        let found = Ledger::read(&path)?;
        // What was registered is played on, not calibrated again: another build may round otherwise.
        let nominal = found.header.parameters[NOMINAL].as_f64();
        let header = ground.header(setup, found.header.budget.clone(), nominal.unwrap_or(1.0));
        let differences = found.header.differences(&header);
        if !differences.is_empty() {
            return Err(RldpError::Changed { differences });
        }
        if !matches!(found.header.budget, BudgetRecord::Filter { .. }) {
            // A filter refuses beyond its target by itself.
            let registered = found.epsilon_upper(ground.target.delta)?.training.guarantee;
            if registered > config.epsilon * (1.0 + 1e-9) {
                return Err(RldpError::Damaged {
                    path,
                    reason: "the registered budget exceeds the target".to_owned(),
                });
            }
        }
        let run = resume::run_fingerprint(&found.header)?;
        let (checkpoints, loaded) = Checkpoints::open::<State>(&setup.folder)?;
        if let Some(foreign) = loaded.as_ref().filter(|loaded| loaded.state.run != run) {
            return Err(RldpError::Damaged {
                path: foreign.folder.clone(),
                reason: "the checkpoint is of another run than the ledger".to_owned(),
            });
        }
        let state = loaded.as_ref().map(|loaded| &loaded.state);
        let done = state.map_or(0, |state| state.ledger_events);
        let registered = Registered {
            record: &header.budget,
            target: &ground.target,
            sampling_rate: ground.sampling_rate,
            steps: config.steps,
            nominal: nominal.unwrap_or(1.0),
        };
        let (ledger, spent) = if setup.seed.is_some() {
            LedgerWriter::repeat(&path, &header, done)?
        } else {
            let budget = Budget::restore(&registered, resume::steps(&found.events)?)?;
            for part in ground.validation.iter_mut().chain([&mut ground.test]) {
                part.restore(resume::queries(&found.events, part.part()), None);
            }
            LedgerWriter::resume(&path, &header, &in_doubt(&ground, &budget, &found))?
        };
        if (spent.events.len() as u64) < done {
            return Err(RldpError::Damaged {
                path,
                reason: "the ledger is shorter than the checkpoint says".to_owned(),
            });
        }
        let budget = Budget::restore(&registered, resume::steps(&spent.events)?)?;
        let before = |part: &str| resume::queries(&spent.events[..done as usize], part);
        let after = |part: &str| resume::queries(&spent.events[done as usize..], part);
        let mut progress = state.map_or_else(Progress::new, |state| state.progress.clone());
        let (validation_count, test_count) = state.map_or((None, None), |state| {
            (state.validation_count, state.test_count)
        });
        // The torn line may have spent more since the ledger was read.
        let already = |part: &HeldOut| resume::queries(&found.events, part.part());
        let seeded = setup.seed.is_some();
        for (part, count) in [
            (ground.validation.as_mut(), validation_count),
            (Some(&mut ground.test), test_count),
        ] {
            if let Some(part) = part {
                let name = part.part();
                let total = before(name) + after(name);
                part.restore(if seeded { total } else { total - already(part) }, count);
            }
        }
        progress.lost.queries += after(VALIDATION) + after(TEST);
        let taken = resume::steps(&spent.events)?.len() as u64;
        progress.lost.steps += taken - progress.taken;
        progress.taken = taken;

        let position = state
            .and_then(|state| state.random.as_deref())
            .map(str::parse)
            .transpose()
            .map_err(|_| RldpError::Damaged {
                path: setup.folder.join(CHECKPOINT_FOLDER),
                reason: "the random position is no number".to_owned(),
            })?;
        let mut random = RunRandom::new(setup.seed, position.unwrap_or(0))?;
        let metrics_path = setup.folder.join(METRICS_FILE);
        let bytes = state.map_or(0, |state| state.metrics_bytes);
        let (metrics, records) = MetricsWriter::resume(&metrics_path, bytes)?;
        let (model, statistics, self_audit) = match &loaded {
            Some(Loaded { folder, state, .. }) => {
                let lora = &setup.lora;
                let (model, statistics) =
                    resume::restore(folder, state, lora, model, &mut ground.step, controller)?;
                (model, statistics, state.self_audit.clone())
            }
            None => (
                model,
                IntervalStatistics::new(ground.parts.len()),
                audit(&ground, &budget, setup, &mut random, watcher)?,
            ),
        };
        for error in loaded.iter().flat_map(|loaded| &loaded.damaged) {
            watcher.phase(&format!("{error}: going on from the checkpoint before it"));
        }
        watcher.phase(&format!(
            "resuming after step {} of {} ({} steps and {} queries spent, their results lost)",
            progress.taken, config.steps, progress.lost.steps, progress.lost.queries
        ));
        let mut resumed = Self {
            run,
            setup,
            config,
            parts: ground.parts,
            result: S::RESULT,
            controller: controller.name(),
            unit: ground.unit,
            units: ground.units,
            delta: ground.target.delta,
            sampling_rate: ground.sampling_rate,
            budget,
            ledger,
            metrics,
            random,
            statistics,
            step: ground.step,
            validation: ground.validation,
            public_validation: ground.public_validation,
            test: ground.test,
            self_audit,
            records,
            progress,
            checkpoints,
        };
        if !seeded {
            let Lost { steps, queries } = resumed.progress.lost;
            resumed.ledger.append(&Event::Note {
                text: format!(
                    "resumed; {steps} steps and {queries} queries so far were spent without their result being kept"
                ),
            })?;
        } else if done == 0 {
            resumed.note_seed()?;
        }
        Ok((resumed, model))
    }

    fn note_seed(&mut self) -> Result<(), RldpError> {
        if let Some(seed) = self.setup.seed {
            self.ledger.append(&Event::Note {
                text: format!("NOT private: all randomness comes from the seed {seed}"),
            })?;
        }
        Ok(())
    }

    fn train<M: LanguageModel>(
        &mut self,
        mut model: M,
        controller: &mut dyn Controller,
        watcher: &mut dyn Watcher,
    ) -> Result<M, RldpError>
    where
        S: Trained<M>,
    {
        let mut begun = false;
        while self.progress.stage != Stage::Done {
            let stage = self.progress.stage;
            if stage == Stage::CountValidation {
                watcher.phase("releasing the losses before training");
            } else if matches!(stage, Stage::Decide | Stage::Step) && !begun {
                watcher.begin(self.config.steps);
                begun = true;
            }
            model = self.advance(model, controller, watcher)?;
            // What was released is worth keeping at once; the rest can be done again.
            let worth = match stage {
                Stage::Decide | Stage::Learn => false,
                Stage::Step => {
                    self.progress.stage == Stage::Step
                        && self
                            .progress
                            .taken
                            .is_multiple_of(self.setup.checkpoint_every.max(1))
                }
                _ => true,
            };
            // A study's run is cheap, and is repeated rather than resumed.
            if worth && self.setup.study.is_none() {
                self.checkpoint(&model, controller)?;
            }
        }
        Ok(model)
    }

    /// Does the next thing: at most one release.
    fn advance<M: LanguageModel>(
        &mut self,
        mut model: M,
        controller: &mut dyn Controller,
        watcher: &mut dyn Watcher,
    ) -> Result<M, RldpError>
    where
        S: Trained<M>,
    {
        let config = self.config;
        let decisions = config.decisions();
        self.progress.stage = match self.progress.stage {
            Stage::CountValidation => {
                if let Some(part) = &mut self.validation {
                    count_units(part, &mut self.ledger, &mut self.random, watcher)?;
                }
                Stage::CountTest
            }
            Stage::CountTest => {
                count_units(&mut self.test, &mut self.ledger, &mut self.random, watcher)?;
                Stage::TestBefore
            }
            Stage::TestBefore => {
                // One is kept for the end.
                self.test_loss(&model, 2, watcher)?;
                self.study_loss(&model, watcher)?;
                Stage::ValidationBefore
            }
            Stage::ValidationBefore => {
                // Without any query left, the bound is the one number known beforehand.
                let loss = self.validation_loss(&model, 1, watcher)?;
                self.progress.initial = loss.unwrap_or(config.loss_bound);
                self.progress.loss = self.progress.initial;
                self.progress.before = self.progress.initial;
                Stage::Decide
            }
            Stage::Decide => {
                let observation = self.observation(&model, None)?;
                let decision = controller.decide(&observation)?;
                self.decided(decision, watcher)?;
                Stage::Step
            }
            Stage::Step => {
                let end = config.interval_end(self.progress.interval);
                if self.progress.taken >= end || self.progress.played_out {
                    Stage::Validation
                } else {
                    (model, self.progress.played_out) =
                        self.one_step(model, controller, watcher)?;
                    if let Some(study) = self.setup.study
                        && !self.progress.played_out
                        && self.progress.taken < config.steps
                        && self.progress.taken.is_multiple_of(study.every.max(1))
                    {
                        self.study_loss(&model, watcher)?;
                    }
                    Stage::Step
                }
            }
            Stage::Validation => {
                let planned = decisions - self.progress.interval;
                let loss = self.validation_loss(&model, planned, watcher)?;
                self.progress.before = self.progress.loss;
                self.progress.loss = loss.unwrap_or(self.progress.before);
                Stage::Learn
            }
            Stage::Learn => {
                let decision = self.progress.decision.clone();
                let next = self.observation(&model, decision.as_ref())?;
                self.progress.interval += 1;
                let finished = self.progress.interval == decisions || self.progress.played_out;
                controller.outcome(&Outcome {
                    reward: next.improvement,
                    next: next.clone(),
                    finished,
                })?;
                if finished {
                    Stage::TestAfter
                } else {
                    let decision = controller.decide(&next)?;
                    self.decided(decision, watcher)?;
                    Stage::Step
                }
            }
            Stage::TestAfter => {
                self.test_loss(&model, 1, watcher)?;
                self.study_loss(&model, watcher)?;
                Stage::Done
            }
            Stage::Done => Stage::Done,
        };
        Ok(model)
    }

    fn decided(&mut self, decision: Decision, watcher: &mut dyn Watcher) -> Result<(), RldpError> {
        self.record(decision_record(self.progress.taken, &decision), watcher)?;
        self.progress.decision = Some(decision);
        Ok(())
    }

    /// Writes everything that the rest of the run depends on to the disk.
    fn checkpoint<M>(&mut self, model: &M, controller: &dyn Controller) -> Result<(), RldpError>
    where
        S: Trained<M>,
    {
        let state = State {
            run: self.run.clone(),
            ledger_events: self.ledger.events(),
            metrics_bytes: self.metrics.sync()?,
            random: self.random.position(),
            progress: self.progress.clone(),
            validation_count: self.validation.as_ref().and_then(HeldOut::count),
            test_count: self.test.count(),
            statistics: self.statistics.clone(),
            self_audit: self.self_audit.clone(),
            controller: serde_json::Value::Null,
        };
        let (step, statistics) = (&self.step, &self.statistics);
        self.checkpoints.write(|folder| {
            let controller = resume::save(folder, model, step, statistics, controller)?;
            Ok(State {
                controller,
                ..state
            })
        })
    }

    /// Takes one step, and tells whether the budget is played out: then none was taken.
    fn one_step<M>(
        &mut self,
        model: M,
        controller: &mut dyn Controller,
        watcher: &mut dyn Watcher,
    ) -> Result<(M, bool), RldpError>
    where
        S: Trained<M>,
    {
        let config = self.config;
        let taken = self.progress.taken;
        let mut decision = self
            .progress
            .decision
            .clone()
            .ok_or(RldpError::NoAdapters)?;
        let Some(segment) = self.budget.play(decision.noise.0)? else {
            return Ok((model, true));
        };
        let plan = self.step.plan(&segment, &decision)?;
        let plan = match controller.transforms()? {
            Some(transforms) => plan.with_transforms(transforms)?,
            None => plan,
        };
        self.step
            .set_post_processing(decision.post_processing.unwrap_or(config.post_processing));
        let learning_rate = config.scheduled_learning_rate(taken) * decision.learning_rate_factor;
        let beta_1 = decision.beta_1;
        let release = self.step.release(
            taken + 1,
            &model,
            &plan,
            &mut self.ledger,
            self.random.source(),
        )?;
        let release = if decision.gradient_factor == 1.0 {
            release
        } else {
            release.scaled(decision.gradient_factor)
        };
        self.progress.taken += 1;
        watcher.released(&plan.event(taken + 1));
        let before = (self.progress.applied == 0).then(|| self.step.squared_norms(&model));
        let here = S::STEERED.then(|| self.step.flat_parameters(&model));
        let model = self.step.apply(model, &release, learning_rate, beta_1)?;
        self.progress.applied += 1;
        if let Some(before) = before {
            check_moved(&before, &self.step.squared_norms(&model), learning_rate)?;
        }
        let seen: Option<Vec<Visible>> = release
            .clipped_fractions
            .as_ref()
            .map(|fractions| fractions.values.iter().map(Visible::from).collect());
        let adapters = self.parts.len();
        // What holds for all adapters together is shown at each of them.
        let clipped = seen.as_ref().map(|seen| match seen.as_slice() {
            [one] => vec![one.get(); adapters],
            several => several.iter().map(|share| share.get()).collect(),
        });
        if S::STEERED {
            self.observe(&release, clipped.as_deref());
        }
        if let Some(here) = here {
            let there = self.step.flat_parameters(&model).into_iter();
            let moved = there.zip(here).map(|(after, before)| after - before);
            self.statistics.moved(moved.collect());
        }
        controller.step(
            &StepView {
                step: taken + 1,
                steps: config.steps,
                clipped_fractions: seen.as_deref(),
                plan: &plan,
                release: &release,
            },
            &mut decision,
        )?;
        self.progress.decision = Some(decision);
        let record = Record::Step(StepRecord {
            step: taken + 1,
            noise_multiplier: plan.noise_multiplier(),
            group_noise_multipliers: plan.group_noise_multipliers().to_vec(),
            clipping_norms: plan.clipping_norms().to_vec(),
            clipped_fractions: clipped,
            training_loss: release.mean_loss.as_ref().map(|loss| *loss.value.value()),
            learning_rate,
            beta_1,
            epsilon_spent: self.budget.epsilon_played(self.delta)?,
        });
        self.record(record, watcher)?;
        Ok((model, false))
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

    /// What the controller sees now; `decision` is the one in force.
    fn observation<M>(
        &mut self,
        model: &M,
        decision: Option<&Decision>,
    ) -> Result<Observation, RldpError>
    where
        S: Trained<M>,
    {
        let config = self.config;
        let Progress {
            taken,
            initial,
            loss,
            before,
            ..
        } = self.progress;
        let norms = self.step.squared_norms(model);
        if let Some(bad) = norms.iter().find(|norm| !norm.is_finite()) {
            return Err(RldpError::NotFinite {
                what: "the norm of the trained weights",
                step: taken,
                value: *bad,
            });
        }
        let count = self.parts.len();
        let views = self
            .statistics
            .take()
            .into_iter()
            .enumerate()
            .map(|(index, statistics)| AdapterView {
                dimension: self.parts[index].1,
                clipped_fraction: Visible::post_processed(statistics.clipped_fraction),
                signal_to_noise: Visible::post_processed(statistics.signal_to_noise),
                cosine: Visible::post_processed(statistics.cosine),
                descent: Visible::post_processed(statistics.descent),
                descent_noise: Visible::post_processed(statistics.descent_noise),
                parameter_norm: Visible::post_processed(norms[index].sqrt()),
                clipping_norm: decision
                    .map_or(config.clipping_norm, |d| d.of_adapter(index, count).0),
                noise_weight: decision.map_or(1.0 / count as f64, |d| d.of_adapter(index, count).1),
            })
            .collect();
        Ok(Observation {
            progress: taken as f64 / config.steps as f64,
            spent: self.budget.epsilon_played(self.delta)? / config.epsilon,
            validation_loss: Visible::post_processed(loss),
            initial_loss: Visible::post_processed(initial),
            improvement: Visible::post_processed(before - loss),
            loss_noise: self
                .validation
                .as_ref()
                .and_then(HeldOut::loss_noise)
                .unwrap_or(0.0),
            noise_multiplier: self.budget.nominal() * decision.map_or(1.0, |d| d.noise.0),
            learning_rate: config.scheduled_learning_rate(taken),
            learning_rate_factor: decision.map_or(1.0, |d| d.learning_rate_factor),
            beta_1: decision.map_or(0.8, |d| d.beta_1),
            post_processing: decision
                .and_then(|d| d.post_processing)
                .unwrap_or(config.post_processing),
            adapters: views,
        })
    }

    /// The validation loss: released from the validation part, or exact on public text. None if fewer than `planned`
    /// queries are left, since a crash lost one: the later ones matter more.
    fn validation_loss<M: LanguageModel>(
        &mut self,
        model: &M,
        planned: u64,
        watcher: &mut dyn Watcher,
    ) -> Result<Option<f64>, RldpError>
    where
        S: Trained<M>,
    {
        let (config, device) = (self.config, &self.setup.device);
        let averaged = self.step.averaged(model)?;
        let model = averaged.as_ref().unwrap_or(model);
        let (part, loss, noise) = match (&mut self.validation, &self.public_validation) {
            (Some(part), _) => {
                if part.count().is_none() || part.left() < planned {
                    return Ok(None);
                }
                let released = part.release_loss(
                    model,
                    config.micro_batch,
                    device,
                    &mut self.ledger,
                    self.random.source(),
                )?;
                watcher.released(&part.event("mean loss"));
                (part.part(), *released.loss.value(), released.noise)
            }
            (None, None) => return Ok(None),
            (None, Some(units)) => {
                let loss = public_loss(model, units, config.micro_batch, device)?;
                (PUBLIC_VALIDATION, loss, 0.0)
            }
        };
        self.held_out_record(part, loss, noise, watcher)?;
        Ok(Some(loss))
    }

    /// Releases the test loss, unless fewer than `planned` queries are left.
    fn test_loss<M: LanguageModel>(
        &mut self,
        model: &M,
        planned: u64,
        watcher: &mut dyn Watcher,
    ) -> Result<(), RldpError>
    where
        S: Trained<M>,
    {
        if self.test.count().is_none() || self.test.left() < planned {
            return Ok(());
        }
        let averaged = self.step.averaged(model)?;
        let model = averaged.as_ref().unwrap_or(model);
        let released = self.test.release_loss(
            model,
            self.config.micro_batch,
            &self.setup.device,
            &mut self.ledger,
            self.random.source(),
        )?;
        watcher.released(&self.test.event("mean loss"));
        self.held_out_record(TEST, *released.loss.value(), released.noise, watcher)
    }

    /// Records the exact test loss of a study.
    fn study_loss<M: LanguageModel>(
        &mut self,
        model: &M,
        watcher: &mut dyn Watcher,
    ) -> Result<(), RldpError>
    where
        S: Trained<M>,
    {
        if self.setup.study.is_none() {
            return Ok(());
        }
        let averaged = self.step.averaged(model)?;
        let model = averaged.as_ref().unwrap_or(model);
        let (micro_batch, device) = (self.config.micro_batch, &self.setup.device);
        let loss = self.test.exact_loss(model, micro_batch, device)?;
        self.held_out_record(STUDY, loss, 0.0, watcher)
    }

    fn held_out_record(
        &mut self,
        part: &str,
        loss: f64,
        noise: f64,
        watcher: &mut dyn Watcher,
    ) -> Result<(), RldpError> {
        let step = self.progress.taken;
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
    pub(crate) fn summary(self, files: Vec<String>) -> Result<RunSummary, RldpError> {
        let accountant = self.budget.accountant();
        drop(self.ledger);
        let ledger = Ledger::read(self.setup.folder.join(LEDGER_FILE))?;
        let epsilon = ledger.epsilon_upper(self.delta)?;
        Ok(RunSummary {
            config: self.config.clone(),
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
                .parts
                .into_iter()
                .map(|(name, parameters)| AdapterSummary { name, parameters })
                .collect(),
            result: self.result,
            records: self.records,
            files,
            lost: self.progress.lost,
        })
    }
}

/// Releases a part's number of units, unless that is known or its queries are spent.
fn count_units(
    part: &mut HeldOut,
    ledger: &mut LedgerWriter,
    random: &mut RunRandom,
    watcher: &mut dyn Watcher,
) -> Result<(), RldpError> {
    if part.count().is_none() && part.left() > 0 {
        part.release_count(ledger, random.source())?;
        watcher.released(&part.event("number of units"));
    }
    Ok(())
}

/// The audit of the run's own first step, on made-up gradients.
fn audit<M, S: Trained<M>>(
    ground: &Ground<'_, S>,
    budget: &Budget,
    setup: &RunSetup,
    random: &mut RunRandom,
    watcher: &mut dyn Watcher,
) -> Result<SelfAudit, RldpError> {
    // An audit of the machine, not of a method: once a study is enough, and the tests have it.
    let trials = if setup.study.is_some() { 400 } else { TRIALS };
    watcher.phase("auditing the mechanism with canaries");
    let dimensions: Vec<usize> = ground.parts.iter().map(|(_, numbers)| *numbers).collect();
    let rule = WarmUpRule::new(&dimensions, ground.config.clipping_norm)?;
    let first = Segment::new(ground.sampling_rate, budget.nominal(), 1)?;
    let plan = ground.step.plan(&first, &rule.decision())?;
    self_audit(
        &plan,
        trials,
        ground.target.delta,
        &setup.device,
        random.source(),
    )
}

/// What a torn last line of the ledger may have been: the step that loses most, and a query of any part that has one left.
fn in_doubt<S>(ground: &Ground<'_, S>, budget: &Budget, ledger: &Ledger) -> Vec<Event> {
    let step = budget.worst_left().map(|step| Event::Step {
        step: ledger.steps() + 1,
        sampling_rate: step.sampling_rate(),
        noise_multiplier: step.noise_multiplier(),
        group_noise_multipliers: Vec::new(),
        clipping_norms: Vec::new(),
        telemetry: Vec::new(),
    });
    let parts = ground.validation.iter().chain([&ground.test]);
    step.into_iter()
        .chain(
            parts
                .filter(|part| part.left() > 0)
                .map(|part| part.event("lost in a crash")),
        )
        .collect()
}

/// The decision as a record; under flat clipping without weights, since there is no split.
fn decision_record(taken: u64, decision: &Decision) -> Record {
    Record::Decision(DecisionRecord {
        step: taken,
        learning_rate_factor: decision.learning_rate_factor,
        beta_1: decision.beta_1,
        noise_wish: decision.noise.0,
        noise_weights: decision.noise_weights.clone(),
    })
}

/// Refuses a first step that changed nothing or broke the adapters.
fn check_moved(before: &[f64], after: &[f64], learning_rate: f64) -> Result<(), RldpError> {
    if let Some(bad) = after.iter().find(|norm| !norm.is_finite()) {
        return Err(RldpError::NotFinite {
            what: "the norm of the trained weights",
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
