//! The accountant, on the work that `benches/peers/accounting.py` times in the Python libraries.
#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use rldp_accounting::pld::{self, PldOptions};
use rldp_accounting::{PrivacyTarget, Segment, calibrate, rdp};

const DELTA: f64 = 1e-5;

fn hundred() -> Vec<Segment> {
    (0..100)
        .map(|i| Segment::new(0.01, 0.8 + 0.01 * f64::from(i), 100).unwrap())
        .collect()
}

fn epsilon(c: &mut Criterion) {
    let one = [Segment::new(0.01, 1.0, 10_000).unwrap()];
    c.bench_function("accounting/pld upper, 10,000 steps", |b| {
        b.iter(|| pld::epsilon_upper(black_box(&one), DELTA).unwrap());
    });
    c.bench_function("accounting/pld lower, 10,000 steps", |b| {
        b.iter(|| pld::epsilon_lower(black_box(&one), DELTA).unwrap());
    });
    let list = hundred();
    c.bench_function("accounting/pld upper, 100 segments", |b| {
        b.iter(|| pld::epsilon_upper(black_box(&list), DELTA).unwrap());
    });
    let accountant = pld::accountant(&list, PldOptions::default()).unwrap();
    accountant.epsilon_upper(DELTA).unwrap();
    let step = Segment::new(0.01, 1.2345, 1).unwrap();
    c.bench_function("accounting/pld, one incremental step", |b| {
        b.iter_batched(
            || accountant.clone(),
            |mut a| {
                a.compose(black_box(&step)).unwrap();
                a.epsilon_upper(DELTA).unwrap()
            },
            BatchSize::SmallInput,
        );
    });
}

fn others(c: &mut Criterion) {
    let target = PrivacyTarget::new(2.0, DELTA).unwrap();
    c.bench_function("accounting/calibration", |b| {
        b.iter(|| calibrate::noise_multiplier(black_box(&target), 0.01, 1000).unwrap());
    });
    let orders: Vec<f64> = (0..100).map(|i| 1.1 + 0.5 * f64::from(i)).collect();
    let one = Segment::new(0.01, 1.0, 10_000).unwrap();
    c.bench_function("accounting/rdp, 100 orders", |b| {
        b.iter(|| {
            let mut accountant = rdp::RdpAccountant::new(black_box(orders.clone())).unwrap();
            accountant.compose(&one).unwrap();
            accountant.epsilon_upper(DELTA).unwrap()
        });
    });
}

criterion_group!(benches, epsilon, others);
criterion_main!(benches);
