//! Full-parameter steps: private next to ordinary, whole steps with Adam, on the shape that `benches/peers/full_parameter.py` times.
#![allow(missing_docs, clippy::unwrap_used)]

use burn::module::Module;
use burn::optim::{AdamConfig, GradientsAccumulator, GradientsParams};
use burn::tensor::Device;
use criterion::{Criterion, criterion_group, criterion_main};
use rldp::full::{apply, parameter_groups, per_example_gradients};
use rldp_benches as _;
use rldp_models::{Batch, CausalLm, Gpt2, Gpt2Config, LanguageModel, Row};
use rldp_optim::{
    Accumulator, DpOptimizer, Grouping, PerExampleGradients, RowMap, SecureRandom, StepPlan,
};

const EXAMPLES: usize = 32;
const TOKENS: usize = 128;
/// Rows computed at once: small micro-batches keep a processor's caches warm, private or not.
const AT_A_TIME: usize = 4;

/// "mini": 4 layers of width 256, 4 heads, 2,048 tokens in the vocabulary.
fn mini(device: &Device) -> (CausalLm, Vec<Batch>) {
    let config = Gpt2Config::new(2048, TOKENS, 4, 256, 4);
    let model = Gpt2::random(&config, 1, device).unwrap().into();
    let row = |row: usize| {
        let token = |t| ((row * 31 + t * 7) % config.vocabulary) as u32;
        Row::new((0..=TOKENS).map(token).collect())
    };
    let rows: Vec<Row> = (0..EXAMPLES).map(row).collect();
    let batches = rows
        .chunks(AT_A_TIME)
        .map(|rows| Batch::from_rows(rows, device).unwrap())
        .collect();
    (model, batches)
}

fn steps(c: &mut Criterion) {
    let device = Device::default();
    let mut group = c.benchmark_group("full, mini");
    group.sample_size(10);

    let (model, batches) = mini(&device);
    let mut model = Some(model.unfreeze().train());
    let mut optimizer = AdamConfig::new().init();
    group.bench_function("ordinary step", |b| {
        b.iter(|| {
            let current = model.take().unwrap();
            let mut accumulator = GradientsAccumulator::new();
            for batch in &batches {
                let loss = current.per_example_loss(batch).sum() / EXAMPLES as f64;
                let gradients = GradientsParams::from_grads(loss.backward(), &current);
                accumulator.accumulate(&current, gradients);
            }
            model = Some(optimizer.step(1e-4, current, accumulator.grads()));
        });
    });

    let (model, batches) = mini(&device);
    let groups = parameter_groups(&model, &Grouping::Flat).unwrap();
    let plan = StepPlan::new(EXAMPLES as f64 / 1000.0, 1000, 1.0, &[1.0]).unwrap();
    let mut optimizer = DpOptimizer::new(AdamConfig::new().init(), groups.clone());
    let mut random = SecureRandom::new().unwrap();
    let mut model = Some(model);
    group.bench_function("private step", |b| {
        b.iter(|| {
            let current = model.take().unwrap();
            let mut accumulator = Accumulator::begin(&plan, &groups.layout()).unwrap();
            for batch in &batches {
                let (gradients, _) = per_example_gradients(&current, batch, &groups).unwrap();
                let rows = RowMap::one_each(batch.examples());
                let gradients = PerExampleGradients::new(gradients, rows).unwrap();
                accumulator.add(&gradients, None).unwrap();
            }
            let release = accumulator.release(&mut random, &device).unwrap();
            model = Some(apply(&mut optimizer, 1e-4, current, &release).unwrap());
        });
    });
    group.finish();
}

criterion_group!(benches, steps);
criterion_main!(benches);
