//! Full-parameter training of a GPT-2 model from random weights.

use std::path::Path;
use std::time::Instant;

use burn::grad_clipping::GradientClippingConfig;
use burn::module::Module;
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::Device;
use rldp_models::{Batch, CausalLm, Gpt2, Gpt2Config, LanguageModel, SpecialTokens};
use serde::{Deserialize, Serialize};
use tokenizers::Tokenizer;

use crate::error::ExampleError;
use crate::pretrain::corpus::Corpus;
use crate::pretrain::packing::Packer;
use crate::pretrain::schedule::learning_rate;
use crate::pretrain::tokenizer::{self, END_OF_TEXT};

/// Texts the tokenizer is learned from.
const TOKENIZER_TEXTS: usize = 20_000;
/// Sequences the held-out loss is measured on.
const HELD_OUT_ROWS: usize = 64;
/// The corpus streams of one run must differ; the held-out texts come from this far away.
const HELD_OUT_SEED: u64 = 0x4845_4c44;
/// Each parameter's gradient is cut to this norm.
const GRADIENT_NORM: f32 = 1.0;

/// Size of the model and length of the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PretrainOptions {
    /// Optimizer steps.
    pub steps: usize,
    /// Sequences per step.
    pub batch_size: usize,
    /// Tokens per sequence, and so the longest text that the model can read: a position that training never saw would
    /// stay at its random start.
    pub length: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Seed of texts and weights.
    pub seed: u64,
    /// Stop after this many minutes, whatever the step; such a run cannot be repeated exactly.
    pub minutes: Option<f64>,
    /// Blocks.
    pub layers: usize,
    /// Width of the hidden states.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Tokens in the vocabulary.
    pub vocabulary: usize,
}

impl Default for PretrainOptions {
    fn default() -> Self {
        Self {
            steps: 5000,
            batch_size: 2,
            length: 256,
            learning_rate: 3e-3,
            seed: 0,
            minutes: None,
            layers: 4,
            width: 128,
            heads: 4,
            vocabulary: 1024,
        }
    }
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Steps taken.
    pub step: usize,
    /// Steps of the whole run.
    pub steps: usize,
    /// Mean loss of this step, in nats a token.
    pub loss: f64,
    /// Tokens seen so far.
    pub tokens: u64,
    /// Seconds since the first step began.
    pub seconds: f64,
}

impl StepReport {
    /// Tokens a second so far.
    #[must_use]
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.seconds.max(1e-9)
    }

    /// Seconds left at the speed so far.
    #[must_use]
    pub fn seconds_left(&self) -> f64 {
        self.seconds / self.step.max(1) as f64 * (self.steps - self.step) as f64
    }
}

/// What a run was and gave, as saved beside the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// The options.
    pub options: PretrainOptions,
    /// Steps taken.
    pub steps: usize,
    /// Tokens seen.
    pub tokens: u64,
    /// Parameters of the model.
    pub parameters: usize,
    /// Mean training loss over the last tenth of the steps, in nats a token.
    pub training_loss: f64,
    /// Loss on generated texts of another seed, in nats a token.
    pub held_out_loss: f64,
    /// Wall time of the steps.
    pub seconds: f64,
}

/// A freshly trained model.
#[derive(Debug)]
pub struct Pretrained {
    /// The model, without gradients.
    pub model: CausalLm,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// What the run was.
    pub record: RunRecord,
}

impl Pretrained {
    /// Writes a Hugging Face folder: `config.json`, `model.safetensors`, `tokenizer.json`, and `generation/run.json`.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), ExampleError> {
        let end = self.tokenizer.token_to_id(END_OF_TEXT);
        let special = SpecialTokens {
            bos: end,
            eos: end.into_iter().collect(),
            pad: None,
        };
        self.model.save(folder, &special)?;
        tokenizer::save(&self.tokenizer, folder, self.record.options.length)?;
        let notes = folder.join("generation");
        std::fs::create_dir_all(&notes).map_err(ExampleError::file(&notes))?;
        let path = notes.join("run.json");
        let record = serde_json::to_string_pretty(&self.record)
            .map_err(|error| ExampleError::Other(error.to_string()))?;
        std::fs::write(&path, record + "\n").map_err(ExampleError::file(&path))
    }
}

/// Learns a tokenizer, then trains a model from random weights on generated text, telling `on_step` after every step.
///
/// The same options give the same texts and starting weights; the trained weights agree as far as the device's
/// arithmetic is repeatable.
///
/// # Errors
/// Options that make no model, or a loss that is not finite.
pub fn pretrain(
    options: &PretrainOptions,
    device: &Device,
    mut on_step: impl FnMut(&StepReport),
) -> Result<Pretrained, ExampleError> {
    let tokenizer = tokenizer::train(
        &Corpus::new(options.seed)?.texts(TOKENIZER_TEXTS)?,
        options.vocabulary,
    )?;
    let config = Gpt2Config::new(
        tokenizer.get_vocab_size(true),
        options.length,
        options.layers,
        options.width,
        options.heads,
    );
    let mut model = CausalLm::from(Gpt2::random(&config, options.seed, device)?)
        .unfreeze()
        .train();
    let mut optimizer = AdamWConfig::new()
        .with_beta_2(0.98)
        .with_epsilon(1e-8)
        .with_weight_decay(0.01)
        .with_grad_clipping(Some(GradientClippingConfig::Norm(GRADIENT_NORM)))
        .init();
    let mut packer = Packer::new(Corpus::new(options.seed)?, &tokenizer)?;
    let mut losses = Vec::with_capacity(options.steps);
    let (mut tokens, begun) = (0, Instant::now());
    for step in 0..options.steps {
        let batch = Batch::from_rows(&packer.rows(options.batch_size, options.length)?, device)?;
        let mean = model.per_example_loss(&batch).mean();
        let loss = f64::from(mean.clone().detach().into_scalar::<f32>());
        if !loss.is_finite() {
            return Err(ExampleError::Other(format!(
                "the loss of step {step} is {loss}: try a lower learning rate"
            )));
        }
        let gradients = GradientsParams::from_grads(mean.backward(), &model);
        model = optimizer.step(
            learning_rate(step, options.steps, options.learning_rate),
            model,
            gradients,
        );
        losses.push(loss);
        tokens += (options.batch_size * options.length) as u64;
        let seconds = begun.elapsed().as_secs_f64();
        on_step(&StepReport {
            step: step + 1,
            steps: options.steps,
            loss,
            tokens,
            seconds,
        });
        if options
            .minutes
            .is_some_and(|minutes| seconds >= 60.0 * minutes)
        {
            break;
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    let model = model.valid();
    let held_out_loss = held_out_loss(&model, &tokenizer, options, device)?;
    let last = &losses[losses.len() - losses.len().div_ceil(10)..];
    let record = RunRecord {
        options: options.clone(),
        steps: losses.len(),
        tokens,
        parameters: model.num_params(),
        training_loss: last.iter().sum::<f64>() / last.len().max(1) as f64,
        held_out_loss,
        seconds,
    };
    Ok(Pretrained {
        model,
        tokenizer,
        record,
    })
}

/// Mean loss per token on texts of another seed.
fn held_out_loss(
    model: &CausalLm,
    tokenizer: &Tokenizer,
    options: &PretrainOptions,
    device: &Device,
) -> Result<f64, ExampleError> {
    let mut packer = Packer::new(Corpus::new(options.seed ^ HELD_OUT_SEED)?, tokenizer)?;
    let mut sum = 0.0;
    let rows = packer.rows(HELD_OUT_ROWS, options.length)?;
    for part in rows.chunks(8) {
        let batch = Batch::from_rows(part, device)?;
        sum += f64::from(model.per_example_loss(&batch).sum().into_scalar::<f32>());
    }
    Ok(sum / rows.len() as f64)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::device::{NAMES, device};

    fn tiny() -> PretrainOptions {
        PretrainOptions {
            steps: 40,
            batch_size: 4,
            length: 32,
            learning_rate: 1e-2,
            layers: 1,
            width: 32,
            heads: 2,
            vocabulary: 320,
            ..PretrainOptions::default()
        }
    }

    #[test]
    fn the_loss_falls_from_chance_and_the_folder_loads() {
        let device = device(NAMES[0]).unwrap();
        let mut reports = Vec::new();
        let trained = pretrain(&tiny(), &device, |report| reports.push(*report)).unwrap();
        assert_eq!(reports.len(), 40);
        let chance = (320_f64).ln();
        assert!(
            (reports[0].loss - chance).abs() < 0.1,
            "{} is not chance, {chance}",
            reports[0].loss
        );
        let record = &trained.record;
        assert!(record.training_loss < chance - 1.0, "{record:?}");
        assert!(record.held_out_loss < chance - 1.0, "{record:?}");
        assert_eq!(record.tokens, 40 * 4 * 32);

        let folder = tempfile::tempdir().unwrap();
        trained.save(folder.path()).unwrap();
        let loaded = CausalLm::load(folder.path(), &device, |_| {}).unwrap();
        assert_eq!(loaded.special_tokens.eos, [0]);
        assert_eq!(loaded.tokenizer().unwrap().vocabulary(), 320);
        let again = held_out_loss(&loaded.model, &trained.tokenizer, &tiny(), &device).unwrap();
        assert!(
            (again - record.held_out_loss).abs() < 1e-6,
            "{again} {}",
            record.held_out_loss
        );
    }

    #[test]
    fn a_seed_decides_the_run() {
        let device = device(NAMES[0]).unwrap();
        let losses = |seed| {
            let mut losses = Vec::new();
            let options = PretrainOptions {
                steps: 3,
                seed,
                ..tiny()
            };
            pretrain(&options, &device, |report| losses.push(report.loss)).unwrap();
            losses
        };
        let first = losses(1);
        // Threads may add in another order, so not bit for bit.
        assert!(
            first
                .iter()
                .zip(losses(1))
                .all(|(a, b)| (a - b).abs() < 1e-4)
        );
        assert!(
            first
                .iter()
                .zip(losses(2))
                .any(|(a, b)| (a - b).abs() > 1e-4)
        );
    }
}
