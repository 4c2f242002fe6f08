//! Clipping, summing, noise and accounting of one step, at the LoRA adapters of the two models that the engine's benches time.
//!
//! Their sum is to be below 2 % of a step.
#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;

use burn::tensor::{Device, Distribution, Tensor};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use rldp_accounting::pld::{self, PldOptions};
use rldp_optim::random::standard_normals;
use rldp_optim::{
    Accumulator, GroupGradients, Kernel, PerExampleGradients, RowMap, SecureRandom, StepPlan,
};

/// Name, layers, width, batch; rank 8 on c_attn.
const SHAPES: [(&str, usize, usize, usize); 2] = [("mini", 4, 256, 32), ("gpt2s", 12, 768, 8)];
const RANK: usize = 8;

fn gradients(layers: usize, width: usize, batch: usize) -> PerExampleGradients {
    let device = Device::default();
    let random =
        |shape: [usize; 3]| Tensor::<3>::random(shape, Distribution::Normal(0.0, 1.0), &device);
    let groups = (0..layers).map(|layer| {
        GroupGradients::new(format!("layer {layer}"))
            .with(random([batch, width, RANK]))
            .with(random([batch, RANK, 3 * width]))
    });
    PerExampleGradients::new(groups.collect(), RowMap::one_each(batch)).unwrap()
}

fn step(c: &mut Criterion) {
    let device = Device::default();
    for (name, layers, width, batch) in SHAPES {
        let gradients = gradients(layers, width, batch);
        let layout = gradients.layout();
        let plan = StepPlan::new(0.01, 100 * batch, 1.0, &vec![1.0; layers]).unwrap();
        for kernel in [Kernel::for_device(&device), Kernel::Reference] {
            c.bench_function(&format!("clip/{name}, norms and sum, {kernel:?}"), |b| {
                b.iter_batched(
                    || {
                        Accumulator::begin(&plan, &layout)
                            .unwrap()
                            .with_kernel(kernel)
                    },
                    |mut step| {
                        step.add(black_box(&gradients), None).unwrap();
                        step
                    },
                    BatchSize::LargeInput,
                );
            });
        }
        let mut random = SecureRandom::new().unwrap();
        c.bench_function(&format!("clip/{name}, noise and release"), |b| {
            b.iter_batched(
                || {
                    let mut step = Accumulator::begin(&plan, &layout).unwrap();
                    step.add(&gradients, None).unwrap();
                    step
                },
                |step| step.release(&mut random, &device).unwrap(),
                BatchSize::LargeInput,
            );
        });
        let accountant =
            pld::accountant(&[plan.segment(1000).unwrap()], PldOptions::default()).unwrap();
        accountant.epsilon_upper(1e-5).unwrap();
        c.bench_function(&format!("clip/{name}, accounting one more step"), |b| {
            b.iter_batched(
                || accountant.clone(),
                |mut accountant| {
                    accountant.compose(&plan.segment(1).unwrap()).unwrap();
                    accountant.epsilon_upper(1e-5).unwrap()
                },
                BatchSize::SmallInput,
            );
        });
    }
}

fn noise(c: &mut Criterion) {
    let mut random = SecureRandom::new().unwrap();
    c.bench_function("clip/a million standard normals", |b| {
        b.iter(|| standard_normals(&mut random, 1_000_000));
    });
}

criterion_group!(benches, step, noise);
criterion_main!(benches);
