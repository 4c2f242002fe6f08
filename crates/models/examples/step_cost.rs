//! Time and peak memory of a private LoRA step next to the ordinary one.
//!
//! `cargo run --release -p rldp-models --example step_cost -- [private|checkpointed|plain|full|forward] [small|tiny|stories|FOLDER] [batch] [time] [steps]`
//!
//! `small` is GPT-2 small's shape (124 million parameters), `tiny` 4 layers of width 256, `stories` a
//! Llama of stories260k's shape; anything else is a model folder, whose matrices are held in the
//! file's own type. Run it once per mode: the peak is the process's.
//!
//! `... --example step_cost -- load FOLDER [f32|stored|bf16]` loads a model folder and stops.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Instant;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Device;
use rldp_lora::{LoraConfig, add_lora};
use rldp_models::{
    Activations, Batch, CausalLm, Gpt2, Gpt2Config, LanguageModel, Llama, LlamaConfig, ModelError,
    Row, WeightPrecision, per_example_pass,
};

fn main() -> Result<(), ModelError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let text = |index: usize, default: &str| {
        let given = arguments.get(index).map(String::as_str);
        given.unwrap_or(default).to_owned()
    };
    let (mode, shape) = (text(0, "private"), text(1, "tiny"));
    if mode == "load" {
        let start = Instant::now();
        let precision: WeightPrecision = text(2, "f32").parse()?;
        let folder = Path::new(&shape);
        let loaded = CausalLm::load_with(folder, &Device::default(), precision, |_| {})?;
        let (seconds, parameters) = (start.elapsed().as_secs_f64(), loaded.model.num_params());
        println!(
            "{parameters} parameters in {seconds:.1} s, peak {} MB",
            peak_megabytes()
        );
        return Ok(());
    }
    let number = |index, default| text(index, default).parse::<usize>().unwrap();
    let (examples, time, steps) = (number(2, "32"), number(3, "128"), number(4, "5"));

    let device = Device::default();
    let mut model: CausalLm = match shape.as_str() {
        "small" => Gpt2::random(&Gpt2Config::new(50257, 1024, 12, 768, 12), 1, &device)?.into(),
        "stories" => {
            let mut config = LlamaConfig::new(512, 512, 5, 64, 8);
            config.kv_heads = 4;
            config.inner = 172;
            Llama::random(&config, 1, &device)?.into()
        }
        "tiny" => Gpt2::random(&Gpt2Config::new(2048, 1024, 4, 256, 8), 1, &device)?.into(),
        folder => {
            let precision = WeightPrecision::Stored;
            CausalLm::load_with(Path::new(folder), &device, precision, |_| {})?.model
        }
    };
    let config = LoraConfig::new(8, model.default_targets());
    match mode.as_str() {
        "full" => model = model.unfreeze().train(),
        "plain" => {
            add_lora(&mut model, &config, 1)?;
            model = model.train();
        }
        _ => add_lora(&mut model, &config, 1)?,
    }
    let vocabulary = model.vocabulary();
    let row = |row: usize| {
        Row::new(
            (0..=time)
                .map(|t| ((row * 31 + t * 7) % vocabulary) as u32)
                .collect(),
        )
    };
    let rows: Vec<Row> = (0..examples).map(row).collect();
    let batch = Batch::from_rows(&rows, &device)?;

    let mut best = f64::INFINITY;
    for _ in 0..steps {
        let start = Instant::now();
        match mode.as_str() {
            "private" | "checkpointed" => {
                let activations = match mode.as_str() {
                    "private" => Activations::Kept,
                    _ => Activations::Recomputed,
                };
                let pass = per_example_pass(&model, &batch, activations)?;
                assert_eq!(pass.gradients[0].b.dims()[0], examples);
            }
            "forward" => drop(model.per_example_loss(&batch).into_data()),
            _ => {
                let gradients = model.per_example_loss(&batch).mean().backward();
                drop(GradientsParams::from_grads(gradients, &model));
            }
        }
        best = best.min(start.elapsed().as_secs_f64());
    }
    println!(
        "{mode} {shape} batch {examples} x {time}: {:.1} ms per step, peak {} MB",
        best * 1e3,
        peak_megabytes()
    );
    Ok(())
}

/// The process's largest resident size so far, from Linux's own account; 0 elsewhere.
fn peak_megabytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    let kilobytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<usize>().ok());
    kilobytes.unwrap_or(0) / 1024
}
