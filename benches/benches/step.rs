//! Whole steps of LoRA training, private and ordinary, on even and uneven texts: the shapes of `benches/peers/training.py`.
#![allow(missing_docs, clippy::unwrap_used)]

use criterion::{Criterion, criterion_group, criterion_main};
use rldp_benches::{LoraStep, Shape, Texts};

fn steps(c: &mut Criterion) {
    let mut group = c.benchmark_group("LoRA");
    group.sample_size(10);
    for (name, shape) in [("mini", Shape::Mini), ("gpt2s", Shape::Gpt2Small)] {
        for (kind, texts) in [
            ("128 tokens", Texts::Even),
            ("SMS lengths", Texts::Sms),
            ("notes' lengths", Texts::Notes),
        ] {
            let mut step = LoraStep::new(shape, &shape.lengths(texts)).unwrap();
            group.bench_function(format!("{name}, {kind}, ordinary"), |b| {
                b.iter(|| step.plain().unwrap())
            });
            group.bench_function(format!("{name}, {kind}, private"), |b| {
                b.iter(|| step.private().unwrap())
            });
        }
    }
    group.finish();
}

criterion_group!(benches, steps);
criterion_main!(benches);
