//! The flags of `finetune`, which a TOML file can set too.

use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _, Parser, ValueEnum};
use rldp::budget::BudgetKind;
use rldp::controller::{AgentOptions, ControllerKind, PostProcessing};
use rldp::trainer::TrainerConfig;
use rldp_models::WeightPrecision;
use serde::{Deserialize, Serialize};

use crate::error::ExampleError;

/// The settings in a run folder.
pub const SETTINGS_FILE: &str = "config.toml";

/// The library's defaults, so that every default is stated once.
fn defaults() -> TrainerConfig {
    TrainerConfig::default()
}

/// What a run trains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trainable {
    /// LoRA adapters.
    #[default]
    Lora,
    /// Every parameter.
    Full,
}

/// Fine-tune a language model with LoRA under differential privacy, steered by a Soft Actor-Critic agent.
///
/// Without arguments: the embedded GPT-2-architecture base model on the embedded SUPPORT2 table (9,105 hospital
/// patients), at epsilon 8. Every flag can also stand in a TOML file given with --config; flags win.
#[derive(Clone, Debug, Parser, Serialize, Deserialize)]
#[command(
    name = "finetune",
    version,
    args_override_self = true,
    allow_negative_numbers = true
)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Settings {
    /// Base model: a Hugging Face folder (config.json, *.safetensors, tokenizer.json) or a hub id such as
    /// openai-community/gpt2 [default: the embedded model]
    #[arg(long, value_name = "DIR|ID")]
    pub model: Option<String>,
    /// Type the base model's matrices are held in: f32, stored (the file's own) or bf16; arithmetic and adapters are f32
    #[arg(long, default_value_t)]
    #[serde(default)]
    pub weights: WeightPrecision,
    /// Private table: CSV, JSONL or plain text (one record a line), each also gzipped [default: embedded SUPPORT2]
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// MiniJinja file that renders a row of the table into text
    #[arg(long, value_name = "FILE")]
    pub template: Option<PathBuf>,
    /// Column that holds the text, instead of a template
    #[arg(long, value_name = "NAME")]
    pub text_column: Option<String>,
    /// Column that names the person; all rows of a person are one privacy unit [default: each row is a unit]
    #[arg(long, value_name = "NAME")]
    pub unit_column: Option<String>,
    /// Public text (same formats and template) to read validation losses from without noise
    #[arg(long, value_name = "FILE")]
    pub public_validation: Option<PathBuf>,
    /// Privacy budget epsilon, in nats
    #[arg(long, default_value_t = defaults().epsilon)]
    pub epsilon: f64,
    /// Privacy budget delta, a probability [default: 1/N^1.1 for N privacy units]
    #[arg(long)]
    pub delta: Option<f64>,
    /// Optimizer steps
    #[arg(long, default_value_t = defaults().steps)]
    pub steps: u64,
    /// Expected privacy units per step (Poisson sampling)
    #[arg(long, default_value_t = defaults().batch_size)]
    pub batch_size: f64,
    /// Rows computed at once: memory and speed only
    #[arg(long, default_value_t = defaults().micro_batch)]
    pub micro_batch: usize,
    /// Gradient checkpointing: keep only the blocks' inputs in memory and run each block again in the backward pass
    #[arg(long)]
    #[serde(default)]
    pub gradient_checkpointing: bool,
    /// Longest row, in tokens; longer rows are cut
    #[arg(long, default_value_t = defaults().max_length)]
    pub max_length: usize,
    /// Most rows of one unit that are used
    #[arg(long, default_value_t = defaults().max_rows_per_unit)]
    pub max_rows_per_unit: usize,
    /// What is trained: lora (adapters, steered by a controller) or full (every parameter of the model, one clipping norm,
    /// the same noise at every step; the trained model is saved whole)
    #[arg(long, value_enum, default_value_t = Trainable::default())]
    #[serde(default)]
    pub trainable: Trainable,
    /// Rank of the LoRA adapters
    #[arg(long, default_value_t = defaults().lora_rank)]
    pub lora_rank: usize,
    /// LoRA alpha: adapters are scaled by alpha / rank
    #[arg(long, default_value_t = defaults().lora_alpha)]
    pub lora_alpha: f64,
    /// Modules that get an adapter, by name or suffix, comma separated [default: every linear layer of the blocks]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub lora_targets: Option<Vec<String>>,
    /// Peak learning rate of the inner Adam, per step
    #[arg(long, default_value_t = defaults().learning_rate)]
    pub learning_rate: f64,
    /// First clipping norm of every adapter, in gradient norm of a unit's mean-token loss
    #[arg(long, default_value_t = defaults().clipping_norm)]
    pub clipping_norm: f64,
    /// Who steers: sac, sac-scratch, sac-frozen, sac-radii, sac-noise, sac-learning-rate, paper, rule, random, constant,
    /// constant-per-adapter, automatic, quantile, quantile-per-adapter, adaclip, decay or global-adapt
    #[arg(long, default_value_t = ControllerKind::default())]
    pub controller: ControllerKind,
    /// How noise may vary: fixed, deck or filter
    #[arg(long, default_value_t = BudgetKind::default())]
    pub budget: BudgetKind,
    /// Decisions of the controller in the run
    #[arg(long, default_value_t = defaults().decisions)]
    pub decisions: u64,
    /// Saved agent policy to start from
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Share of the known noise variance to subtract from Adam's second moments, 0 (off) to 1 (DP-AdamBC)
    #[arg(long, default_value_t = defaults().post_processing.noise_correction)]
    pub noise_correction: f64,
    /// Gain of the filter over released gradients, above 0 and at most 1 (off) (DiSK)
    #[arg(long, default_value_t = defaults().post_processing.denoising_gain)]
    pub denoising_gain: f64,
    /// Decay of the exponential moving average of the parameters, 0 (off) or more and below 1
    #[arg(long, default_value_t = defaults().post_processing.averaging_decay)]
    pub averaging_decay: f64,
    /// Share of the steps at the run's end whose parameters are averaged, 0 (off) to 1
    #[arg(long, default_value_t = defaults().post_processing.tail_averaging)]
    pub tail_averaging: f64,
    /// Bound that per-unit losses are clipped to before they are released, in nats per token: higher losses read as
    /// this, and the noise in the released losses is proportional to it
    #[arg(long, default_value_t = defaults().loss_bound)]
    pub loss_bound: f64,
    /// Expected units held out for validation, and again for the test
    #[arg(long, default_value_t = defaults().held_out_units)]
    pub held_out_units: usize,
    /// Canaries to draw for an audit: made-up texts with a secret, half of them (by coin flips) put among the training
    /// units. Their list, canaries.json, is the auditor's: see `audit`
    #[arg(long, value_name = "N", default_value_t = 0)]
    #[serde(default)]
    pub canaries: usize,
    /// How many units hold each canary, the numbers in turn, comma separated; lower bounds on epsilon use those inserted once
    #[arg(
        long,
        value_name = "NUMBERS",
        value_delimiter = ',',
        default_value = "1"
    )]
    #[serde(default = "once")]
    pub canary_repeats: Vec<u32>,
    /// TOML file of canary formats, instead of random words, a number and a rare clinical fact
    #[arg(long, value_name = "FILE")]
    #[serde(default)]
    pub canary_formats: Option<PathBuf>,
    /// Train WITHOUT privacy: no clipping, no noise, exact losses. For showing that an attack works
    #[arg(long)]
    #[serde(default)]
    pub non_private: bool,
    /// Where to compute: flex, ndarray, cuda or wgpu, as compiled in
    #[arg(long, default_value = "flex")]
    pub device: String,
    /// Make the run reproducible; ledger and report are then marked NOT private
    #[arg(long)]
    pub seed: Option<u64>,
    /// Run folder to create [default: a folder under runs named by the time]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Go on with the interrupted run in this folder, with the settings it was started with
    #[arg(long, value_name = "DIR", conflicts_with_all = ["out", "config"])]
    #[serde(skip)]
    pub resume: Option<PathBuf>,
    /// Steps between checkpoints: what a crash can cost
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[serde(default = "one")]
    pub checkpoint_every: u64,
    /// TOML file with any of these flags as keys
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
}

fn one() -> u64 {
    1
}

fn once() -> Vec<u32> {
    vec![1]
}

impl Settings {
    /// Reads the command line, and the TOML file it names; a flag that stands on the command line wins.
    ///
    /// # Errors
    /// [`ExampleError::Usage`] for flags clap refuses, [`ExampleError::Toml`] for a bad file.
    pub fn from_arguments<I, T>(arguments: I) -> Result<Self, ExampleError>
    where
        I: IntoIterator<Item = T>,
        T: Into<std::ffi::OsString> + Clone,
    {
        let matches = Self::command()
            .try_get_matches_from(arguments)
            .map_err(ExampleError::Usage)?;
        let settings = Self::from_arg_matches(&matches).map_err(ExampleError::Usage)?;
        match (&settings.resume, &settings.config) {
            (Some(folder), _) => {
                let path = folder.join(SETTINGS_FILE);
                if !path.is_file() {
                    let path = folder.clone();
                    return Err(rldp::RldpError::NoRun { path }.into());
                }
                settings.clone().overlaid(&matches, &path)
            }
            (None, Some(path)) => settings.clone().overlaid(&matches, path),
            (None, None) => Ok(settings),
        }
    }

    /// These settings with the file's values wherever the command line says nothing.
    fn overlaid(self, matches: &ArgMatches, path: &Path) -> Result<Self, ExampleError> {
        let bad = |message: String| ExampleError::Toml {
            path: path.to_owned(),
            message,
        };
        let text = std::fs::read_to_string(path).map_err(ExampleError::file(path))?;
        // The parser's own text shows the line, and whoever names a table of patients here must not find it in a log.
        let file: toml::Table = text.parse().map_err(|e: toml::de::Error| {
            let offset = e.span().map_or(0, |span| span.start);
            let line = 1 + text.bytes().take(offset).filter(|b| *b == b'\n').count();
            bad(format!("line {line} is not valid TOML"))
        })?;
        let mut merged = toml::Table::try_from(&self).map_err(|e| bad(e.to_string()))?;
        for (key, value) in file {
            let id = key.replace('-', "_");
            let on_command_line = matches
                .try_contains_id(&id)
                .is_ok_and(|_| matches.value_source(&id) == Some(ValueSource::CommandLine));
            if !on_command_line {
                merged.insert(key, value);
            }
        }
        let mut settings: Self = merged
            .try_into()
            .map_err(|e: toml::de::Error| bad(e.to_string()))?;
        settings.config = self.config;
        settings.resume = self.resume;
        Ok(settings)
    }

    /// Refuses flags that would have no effect together with others.
    ///
    /// # Errors
    /// [`ExampleError::Flag`] naming the flag.
    pub fn check(&self) -> Result<(), ExampleError> {
        let refuse = |flag, value: String, reason: &str| {
            Err(ExampleError::Flag {
                flag,
                value,
                reason: reason.to_owned(),
            })
        };
        let weights = self.weights.to_string();
        if self.weights != WeightPrecision::F32 {
            if self.model.is_none() {
                return refuse("weights", weights, "needs --model: the embedded one is f32");
            }
            if self.trainable == Trainable::Full {
                let reason =
                    "training all parameters needs f32: half precision loses small updates";
                return refuse("weights", weights, reason);
            }
        }
        if self.checkpoint_every == 0 {
            let reason = "is a number of steps, at least 1";
            return refuse("checkpoint-every", "0".to_owned(), reason);
        }
        if self.gradient_checkpointing && self.trainable == Trainable::Full {
            let reason = "is implemented for --trainable lora";
            return refuse("gradient-checkpointing", "true".to_owned(), reason);
        }
        Ok(())
    }

    /// The trainer's part of the settings.
    #[must_use]
    pub fn trainer(&self) -> TrainerConfig {
        TrainerConfig {
            epsilon: self.epsilon,
            delta: self.delta,
            steps: self.steps,
            batch_size: self.batch_size,
            micro_batch: self.micro_batch,
            gradient_checkpointing: self.gradient_checkpointing,
            max_length: self.max_length,
            max_rows_per_unit: self.max_rows_per_unit,
            lora_rank: self.lora_rank,
            lora_alpha: self.lora_alpha,
            learning_rate: self.learning_rate,
            clipping_norm: self.clipping_norm,
            controller: self.controller,
            budget: self.budget,
            decisions: self.decisions,
            loss_bound: self.loss_bound,
            held_out_units: self.held_out_units,
            agent: AgentOptions {
                policy: self.policy.clone(),
                ..AgentOptions::default()
            },
            post_processing: PostProcessing {
                noise_correction: self.noise_correction,
                denoising_gain: self.denoising_gain,
                averaging_decay: self.averaging_decay,
                tail_averaging: self.tail_averaging,
            },
            ..TrainerConfig::default()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn flags_without_effect_are_refused_by_name() {
        let check = |flags: &[&str]| {
            let arguments = ["finetune"].iter().chain(flags);
            Settings::from_arguments(arguments).unwrap().check()
        };
        for good in [
            &[][..],
            &["--gradient-checkpointing"],
            &["--model", "m", "--weights", "stored"],
            &["--trainable", "full"],
        ] {
            check(good).unwrap();
        }
        for (name, bad) in [
            ("weights", &["--weights", "bf16"][..]),
            (
                "weights",
                &["--model", "m", "--weights", "stored", "--trainable", "full"],
            ),
            (
                "gradient-checkpointing",
                &["--gradient-checkpointing", "--trainable", "full"],
            ),
        ] {
            match check(bad) {
                Err(ExampleError::Flag { flag, .. }) => assert_eq!(flag, name),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn the_command_line_wins_over_the_file_and_the_file_over_the_defaults() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.toml");
        std::fs::write(&path, "epsilon = 3.0\nbatch-size = 10.0\nseed = 4\n").unwrap();
        let arguments = [
            "finetune",
            "--config",
            path.to_str().unwrap(),
            "--epsilon",
            "2",
        ];
        let settings = Settings::from_arguments(arguments).unwrap();
        assert_eq!(settings.epsilon, 2.0);
        assert_eq!(settings.batch_size, 10.0);
        assert_eq!(settings.seed, Some(4));
        assert_eq!(settings.steps, TrainerConfig::default().steps);
    }

    #[test]
    fn an_unknown_key_of_the_file_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.toml");
        std::fs::write(&path, "epsilom = 3.0\n").unwrap();
        let error = Settings::from_arguments(["finetune", "--config", path.to_str().unwrap()]);
        assert!(error.unwrap_err().to_string().contains("epsilom"));
    }
}
