//! Time and peak memory of a private full-parameter step next to the ordinary one.
//!
//! `cargo run --release -p rldp-benches --example full_cost -- [private|plain] [mini|gpt2s] [batch] [rows at a time] [tokens] [steps]`
//!
//! Both take whole steps: forward, backward, (clipping, noise) and Adam, over all parameters of a GPT-2. `mini` is 4 layers of
//! width 256, 2,048 tokens; `gpt2s` GPT-2 small. Run it once per mode: the peak is the process's.
#![allow(clippy::unwrap_used)]

use std::time::Instant;

use burn::module::Module;
use burn::optim::{AdamConfig, GradientsAccumulator, GradientsParams};
use burn::tensor::Device;
use rldp::full::{apply, parameter_groups, per_example_gradients};
use rldp_benches::peak_megabytes;
use rldp_models::{Batch, CausalLm, Gpt2, Gpt2Config, LanguageModel, Row};
use rldp_optim::{
    Accumulator, DpOptimizer, Grouping, PerExampleGradients, RowMap, SecureRandom, StepPlan,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let text = |index: usize, default: &str| {
        let given = arguments.get(index).map(String::as_str);
        given.unwrap_or(default).to_owned()
    };
    let number = |index, default| text(index, default).parse::<usize>().unwrap();
    let (mode, shape) = (text(0, "private"), text(1, "mini"));
    let (examples, at_a_time) = (number(2, "32"), number(3, "4"));
    let (time, steps) = (number(4, "128"), number(5, "5"));

    let device = Device::default();
    let config = match shape.as_str() {
        "gpt2s" => Gpt2Config::new(50257, 1024, 12, 768, 12),
        _ => Gpt2Config::new(2048, 128, 4, 256, 4),
    };
    let mut model = CausalLm::from(Gpt2::random(&config, 1, &device)?);
    let row = |row: usize| {
        let token = |t| ((row * 31 + t * 7) % config.vocabulary) as u32;
        Row::new((0..=time).map(token).collect())
    };
    let rows: Vec<Row> = (0..examples).map(row).collect();
    let batches = rows
        .chunks(at_a_time)
        .map(|rows| Batch::from_rows(rows, &device))
        .collect::<Result<Vec<_>, _>>()?;

    let groups = parameter_groups(&model, &Grouping::Flat)?;
    let layout = groups.layout();
    let plan = StepPlan::new(examples as f64 / 1000.0, 1000, 1.0, &[1.0])?;
    let mut random = SecureRandom::new()?;
    let mut private = DpOptimizer::new(AdamConfig::new().init(), groups.clone());
    let mut plain = AdamConfig::new().init();
    let mut times = Vec::new();
    for _ in 0..steps {
        let start = Instant::now();
        if mode == "private" {
            let mut parts = [0.0; 4];
            let mut accumulator = Accumulator::begin(&plan, &layout)?;
            for batch in &batches {
                let clock = Instant::now();
                let (gradients, _) = per_example_gradients(&model, batch, &groups)?;
                parts[0] += clock.elapsed().as_secs_f64();
                let rows = RowMap::one_each(batch.examples());
                accumulator.add(&PerExampleGradients::new(gradients, rows)?, None)?;
                parts[1] += clock.elapsed().as_secs_f64();
            }
            let clock = Instant::now();
            let release = accumulator.release(&mut random, &device)?;
            parts[2] = clock.elapsed().as_secs_f64();
            model = apply(&mut private, 1e-4, model, &release)?;
            parts[3] = clock.elapsed().as_secs_f64() - parts[2];
            parts[1] -= parts[0];
            println!("  gradients, clipped sum, noise, update: {parts:.3?}");
        } else {
            model = model.unfreeze().train();
            let mut accumulator = GradientsAccumulator::new();
            for batch in &batches {
                let loss = model.per_example_loss(batch).sum() / examples as f64;
                let gradients = GradientsParams::from_grads(loss.backward(), &model);
                accumulator.accumulate(&model, gradients);
            }
            model = plain.step(1e-4, model, accumulator.grads());
        }
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    println!(
        "{mode} {shape} batch {examples} x {time}, {at_a_time} rows at a time: {:.0} ms a step at best, {:.0} ms median, peak {} MB",
        times[0] * 1e3,
        times[times.len() / 2] * 1e3,
        peak_megabytes()
    );
    Ok(())
}
