//! What steering costs: one action of the agent, and one update, for a model of GPT-2 small's number of adapters.
//!
//! Compare with a fine-tuning step of that shape (`full` and the models' `step_cost` example): a step of GPT-2 small at batch 64
//! and 128 tokens takes tens of seconds on two CPU cores.
#![allow(clippy::unwrap_used, missing_docs)]

use burn::tensor::Device;
use criterion::{Criterion, criterion_group, criterion_main};
use rldp::controller::{ACTION, AgentOptions, FEATURES};
use rldp_sac::{Sac, Transition};

/// Twelve blocks with four adapted layers each, and the run's own row.
const ROWS: usize = 12 * 4 + 1;

fn observation(step: usize) -> Vec<Vec<f32>> {
    (0..ROWS)
        .map(|row| {
            (0..FEATURES)
                .map(|column| ((step + row * column) as f32).sin())
                .collect()
        })
        .collect()
}

fn agent(criterion: &mut Criterion) {
    let device = Device::flex();
    let mut sac = Sac::new(AgentOptions::default().sac, FEATURES, ACTION, 1, &device).unwrap();
    for step in 0..64 {
        let action = sac.act(&observation(step).into(), true).unwrap();
        sac.observe(Transition {
            observation: observation(step).into(),
            action,
            reward: (step as f64).cos(),
            next_observation: observation(step + 1).into(),
            terminated: step % 10 == 9,
            truncated: false,
        })
        .unwrap();
    }
    let seen = observation(99);
    let mut group = criterion.benchmark_group("agent");
    group.sample_size(20);
    group.bench_function("act/49 rows", |bencher| {
        bencher.iter(|| sac.act(&seen.clone().into(), true).unwrap());
    });
    group.bench_function("update/49 rows, batch 32", |bencher| {
        bencher.iter(|| sac.update(1).unwrap());
    });
    group.finish();
}

criterion_group!(benches, agent);
criterion_main!(benches);
