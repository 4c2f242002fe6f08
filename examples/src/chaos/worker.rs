//! The run that is killed: a tiny model on a tiny table, with a witness of every release.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use rldp::budget::BudgetKind;
use rldp::controller::ControllerKind;
use rldp::data::DataKey;
use rldp::trainer::{
    Record, RunFolder, RunSetup, TokenUnit, TrainerConfig, TrainingData, Watcher, fine_tune,
    model_fingerprint, token_fingerprint,
};
use rldp_accounting::ledger::Event;
use rldp_lora::{LoraConfig, adapter_parameters, add_lora};
use rldp_models::{CausalLm, Gpt2, Gpt2Config, LanguageModel as _, SpecialTokens};

use crate::device::{NAMES, device};
use crate::error::ExampleError;
use crate::finetune::run::MODEL_FOLDER;

/// The target of the runs.
pub const EPSILON: f64 = 8.0;
/// Delta of the runs.
pub const DELTA: f64 = 1e-3;
/// Optimizer steps of a run.
pub const STEPS: u64 = 8;
/// Units of the made-up table, training part and held-out parts.
const UNITS: [u32; 3] = [24, 6, 6];
/// Exit status of a worker whose witness could not be written: its release must not be used.
const NO_WITNESS: i32 = 70;

/// What kind of run a worker does.
#[derive(Clone, Debug, Args)]
pub struct Work {
    /// The run folder
    #[arg(long)]
    pub folder: PathBuf,
    /// File that every release is written to before it is used
    #[arg(long)]
    pub witness: PathBuf,
    /// A seed makes the run reproducible
    #[arg(long)]
    pub seed: Option<u64>,
    /// Budget
    #[arg(long)]
    pub budget: BudgetKind,
    /// Controller
    #[arg(long)]
    pub controller: ControllerKind,
    /// Train all parameters; budget and controller are not used then
    #[arg(long)]
    pub full: bool,
    /// Steps between checkpoints
    #[arg(long)]
    pub checkpoint_every: u64,
}

/// Begins the run, or goes on with it.
///
/// # Errors
/// Whatever the run says.
pub fn work(work: &Work) -> Result<(), ExampleError> {
    let device = device(NAMES[0])?;
    let mut model = Gpt2::random(&Gpt2Config::new(31, 12, 1, 8, 2), 3, &device)?;
    let base_model_fingerprint = model_fingerprint(&model);
    let lora = LoraConfig::new(2, model.default_targets());
    let whole = work.full.then(|| CausalLm::from(model.clone()));
    let seed = work.seed.unwrap_or_else(rand::random);
    add_lora(&mut model, &lora, seed)?;
    let dimensions: Vec<usize> = adapter_parameters(&model)
        .iter()
        .map(|adapter| adapter.trainable_parameters())
        .collect();
    let config = TrainerConfig {
        epsilon: EPSILON,
        delta: Some(DELTA),
        budget: work.budget,
        controller: work.controller,
        steps: STEPS,
        decisions: 3,
        batch_size: 6.0,
        micro_batch: 4,
        lora_rank: 2,
        ..TrainerConfig::default()
    };
    let mut controllers = config.controller_setup(dimensions);
    controllers.agent.warm_up = 1;
    controllers.agent.updates = 2;
    let mut controller = config.controller.build(&controllers, seed, &device)?;
    let [training, validation, test] = [0, 1, 2].map(|part| units(UNITS[part], part as u32));
    let key = DataKey::from_seed(1);
    let data = TrainingData {
        token_fingerprint: token_fingerprint(&[&training, &validation, &test], &key),
        training,
        validation,
        test,
        public_validation: None,
        units: UNITS.iter().sum::<u32>() as usize,
        training_population: UNITS[0] as usize,
        unit: "one row".to_owned(),
        fingerprint: "made up".to_owned(),
    };
    let setup = RunSetup {
        config,
        lora,
        base_model: "tiny".to_owned(),
        base_model_fingerprint,
        device,
        seed: work.seed,
        folder: RunFolder::open(&work.folder)?,
        resume: true,
        checkpoint_every: work.checkpoint_every,
        created: "1970-01-01T00:00:00Z".to_owned(),
        study: None,
    };
    let mut witness = Witness::open(&work.witness)?;
    match whole {
        None => {
            fine_tune(&mut model, data, controller.as_mut(), &setup, &mut witness)?;
        }
        Some(model) => {
            let (model, _) = rldp::full::fine_tune(model, data, &setup, &mut witness)?;
            setup.folder.write_folder(MODEL_FOLDER, |folder| {
                Ok(model.save(folder, &SpecialTokens::default())?)
            })?;
        }
    }
    Ok(())
}

fn units(count: u32, salt: u32) -> Vec<TokenUnit> {
    (0..count)
        .map(|unit| TokenUnit {
            rows: vec![
                (0..4 + unit % 3)
                    .map(|t| (unit * 7 + t * t + salt) % 31)
                    .collect(),
            ],
        })
        .collect()
}

/// Writes every release down at the moment it exists: the count that the ledger is held against.
struct Witness(File);

impl Witness {
    /// Goes on after the last whole line.
    fn open(path: &Path) -> Result<Self, ExampleError> {
        let known = std::fs::read(path).unwrap_or_default();
        let whole = known.iter().rposition(|byte| *byte == b'\n');
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .and_then(|file| {
                file.set_len(whole.map_or(0, |end| end as u64 + 1))?;
                Ok(Self(file))
            })
            .map_err(ExampleError::file(path))
    }
}

impl Watcher for Witness {
    fn phase(&mut self, text: &str) {
        eprintln!("{text}");
    }
    fn begin(&mut self, _steps: u64) {}
    fn released(&mut self, event: &Event) {
        let written = serde_json::to_string(event)
            .map_err(std::io::Error::other)
            .and_then(|line| self.0.write_all(format!("{line}\n").as_bytes()));
        if written.is_err() {
            std::process::exit(NO_WITNESS);
        }
    }
    fn record(&mut self, _record: &Record) {}
    fn end(&mut self) {}
}
