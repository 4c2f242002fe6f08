//! Perplexity of a text under a model.
//!
//! `cargo run --release -p rldp-models --example perplexity -- MODEL [--bf16] [TEXT]`
//!
//! `MODEL` is a Hugging Face folder or hub id. The text is read from standard input if not given.
//! Every token but the first is predicted from all before it; texts longer than the model's
//! context are cut into windows that do not overlap. `--bf16` keeps the matrices in bf16.
#![allow(clippy::unwrap_used)]

use std::io::Read;

use burn::tensor::Device;
use rldp_models::{Batch, CausalLm, LanguageModel, ModelError, Row, WeightPrecision, hub};

fn main() -> Result<(), ModelError> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut precision = WeightPrecision::F32;
    arguments.retain(|argument| {
        let half = argument == "--bf16";
        if half {
            precision = WeightPrecision::Bf16;
        }
        !half
    });
    let Some(model) = arguments.first() else {
        eprintln!("usage: perplexity MODEL [--bf16] [TEXT]");
        std::process::exit(2);
    };
    let text = arguments.get(1).cloned().unwrap_or_else(|| {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).unwrap();
        text.trim_end().to_owned()
    });
    let device = Device::default();
    let loaded = CausalLm::load_with(&hub::resolve(model)?, &device, precision, |_| {})?;
    let tokens = loaded.tokenizer()?.encode(&text, true)?;
    let (mut sum, mut count) = (0.0, 0.0);
    // One position more than the context: the last token of a window is only a target.
    for window in tokens.chunks(loaded.model.positions() + 1) {
        let batch = Batch::from_rows(&[Row::new(window.to_vec())], &device)?;
        let losses = loaded.model.per_example_token_loss(&batch);
        sum += losses.sums.into_scalar::<f32>();
        count += losses.counts.into_scalar::<f32>();
    }
    let mean = sum / count;
    println!(
        "{count} tokens predicted, mean loss {mean:.4} nats, perplexity {:.2}",
        mean.exp()
    );
    Ok(())
}
