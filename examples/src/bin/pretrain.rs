//! `pretrain`: trains a small GPT-2 model from scratch on text that it generates itself.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use rldp_examples::device::{NAMES, device};
use rldp_examples::error::{ExampleError, finish};
use rldp_examples::pretrain::corpus::Corpus;
use rldp_examples::pretrain::train::{PretrainOptions, StepReport, pretrain};

/// Pre-trains a small GPT-2-architecture language model, and its tokenizer, on synthetic English.
///
/// The text comes from a seeded grammar: everyday stories, facts and figures, general clinical prose about invented
/// patients. No private table is read. The result is a Hugging Face folder; the one embedded in `finetune` and
/// `generate` was made by this program.
#[derive(Parser)]
#[command(name = "pretrain", version)]
struct Arguments {
    /// Optimizer steps
    #[arg(long, default_value_t = PretrainOptions::default().steps)]
    steps: usize,
    /// Sequences per step
    #[arg(long, default_value_t = PretrainOptions::default().batch_size)]
    batch_size: usize,
    /// Tokens per sequence; also the longest text that the model can read
    #[arg(long, default_value_t = PretrainOptions::default().length)]
    length: usize,
    /// Peak learning rate of AdamW, reached after 5 % of the steps and lowered along a cosine to a tenth
    #[arg(long, default_value_t = PretrainOptions::default().learning_rate)]
    learning_rate: f64,
    /// Seed of texts and starting weights
    #[arg(long, default_value_t = PretrainOptions::default().seed)]
    seed: u64,
    /// Folder to write
    #[arg(long, default_value = "runs/base-model")]
    out: PathBuf,
    /// Stop after this many minutes of training, whatever the step [default: no limit]
    #[arg(long)]
    minutes: Option<f64>,
    /// Blocks of the model
    #[arg(long, default_value_t = PretrainOptions::default().layers)]
    layers: usize,
    /// Width of the hidden states
    #[arg(long, default_value_t = PretrainOptions::default().width)]
    width: usize,
    /// Attention heads; they divide the width
    #[arg(long, default_value_t = PretrainOptions::default().heads)]
    heads: usize,
    /// Tokens in the vocabulary (at least 257: the bytes and the end-of-text token)
    #[arg(long = "vocab", default_value_t = PretrainOptions::default().vocabulary)]
    vocabulary: usize,
    /// Device to compute on
    #[arg(long, default_value = NAMES[0])]
    device: String,
    /// Print this many texts of the corpus and stop
    #[arg(long, value_name = "COUNT")]
    show_texts: Option<usize>,
}

fn main() -> ExitCode {
    finish(run())
}

fn run() -> Result<(), ExampleError> {
    let arguments = Arguments::try_parse().map_err(ExampleError::Usage)?;
    if let Some(count) = arguments.show_texts {
        for text in Corpus::new(arguments.seed)?.texts(count)? {
            writeln!(std::io::stdout(), "{text}\n")
                .map_err(ExampleError::file("standard output"))?;
        }
        return Ok(());
    }
    check(&arguments)?;
    let options = PretrainOptions {
        steps: arguments.steps,
        batch_size: arguments.batch_size,
        length: arguments.length,
        learning_rate: arguments.learning_rate,
        seed: arguments.seed,
        minutes: arguments.minutes,
        layers: arguments.layers,
        width: arguments.width,
        heads: arguments.heads,
        vocabulary: arguments.vocabulary,
    };
    let every = (options.steps / 100).clamp(1, 50);
    let mut average = Average::default();
    let trained = pretrain(&options, &device(&arguments.device)?, |report| {
        average.add(report.loss);
        if report.step % every == 0 || report.step == report.steps {
            show(report, average.take());
        }
    })?;
    trained.save(&arguments.out)?;
    let record = &trained.record;
    println!(
        "{} parameters, {} steps, {} tokens in {:.0} s; training loss {:.3}, held-out loss {:.3} nats a token; wrote {}",
        record.parameters,
        record.steps,
        record.tokens,
        record.seconds,
        record.training_loss,
        record.held_out_loss,
        arguments.out.display()
    );
    Ok(())
}

fn check(arguments: &Arguments) -> Result<(), ExampleError> {
    let flag = |flag, value: String, reason: &str| {
        Err(ExampleError::Flag {
            flag,
            value,
            reason: reason.to_owned(),
        })
    };
    for (name, value) in [
        ("steps", arguments.steps),
        ("batch-size", arguments.batch_size),
        ("length", arguments.length),
        ("layers", arguments.layers),
        ("width", arguments.width),
    ] {
        if value == 0 {
            return flag(name, "0".to_owned(), "must be at least 1");
        }
    }
    if arguments.vocabulary < 257 {
        return flag(
            "vocab",
            arguments.vocabulary.to_string(),
            "must be at least 257: 256 bytes and the end-of-text token",
        );
    }
    if !(arguments.learning_rate > 0.0 && arguments.learning_rate.is_finite()) {
        return flag(
            "learning-rate",
            arguments.learning_rate.to_string(),
            "must be positive",
        );
    }
    Ok(())
}

/// Mean loss since the last line.
#[derive(Default)]
struct Average {
    sum: f64,
    count: u32,
}

impl Average {
    fn add(&mut self, loss: f64) {
        self.sum += loss;
        self.count += 1;
    }

    fn take(&mut self) -> f64 {
        let mean = self.sum / f64::from(self.count.max(1));
        *self = Self::default();
        mean
    }
}

fn show(report: &StepReport, loss: f64) {
    let left = report.seconds_left();
    println!(
        "step {:>5}/{}  loss {loss:.3}  {:>6.0} tokens/s  {:.0} min {:02.0} s left",
        report.step,
        report.steps,
        report.tokens_per_second(),
        (left / 60.0).floor(),
        (left % 60.0).floor(),
    );
}
