//! Full-parameter steps: private next to ordinary, whole steps with Adam, on the shape that `benches/peers/full_parameter.py` times.
#![allow(missing_docs, clippy::unwrap_used)]

use criterion::{Criterion, criterion_group, criterion_main};
use rldp_benches::{FullStep, Shape, Texts};

fn steps(c: &mut Criterion) {
    let mut group = c.benchmark_group("full, mini");
    group.sample_size(10);
    let lengths = Shape::Mini.lengths(Texts::Even);
    for rows in [4, 8] {
        let mut step = FullStep::new(Shape::Mini, &lengths, rows).unwrap();
        group.bench_function(format!("{rows} rows at a time, ordinary"), |b| {
            b.iter(|| step.plain().unwrap());
        });
        let mut step = FullStep::new(Shape::Mini, &lengths, rows).unwrap();
        group.bench_function(format!("{rows} rows at a time, private"), |b| {
            b.iter(|| step.private().unwrap());
        });
    }
    group.finish();
}

criterion_group!(benches, steps);
criterion_main!(benches);
