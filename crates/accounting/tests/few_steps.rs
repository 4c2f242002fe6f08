//! Few and sparse steps, whose characteristic function hardly decays, against nested integrals of the closed form.
#![allow(clippy::unwrap_used, missing_docs)]

use proptest::prelude::*;
use rldp_accounting::pld::{self, PldOptions};
use rldp_accounting::{Segment, epsilon_lower, epsilon_upper};

/// Three-point Gauss-Legendre panels on x for N(0, sigma^2): points, losses and probabilities under the mixture.
struct Grid {
    losses: Vec<f64>,
    masses: Vec<f64>,
}

fn upper_tail(x: f64) -> f64 {
    0.5 * libm::erfc(x * std::f64::consts::FRAC_1_SQRT_2)
}

impl Grid {
    fn new(q: f64, sigma: f64, panels: usize) -> Self {
        let (low, high) = (-8.0 * sigma, 1.0 + 9.0 * sigma);
        let half = 0.5 * (high - low) / panels as f64;
        let (mut losses, mut masses) = (Vec::new(), Vec::new());
        for i in 0..panels {
            let middle = low + (2 * i + 1) as f64 * half;
            for (node, weight) in [
                (-0.6f64.sqrt(), 5.0 / 9.0),
                (0.0, 8.0 / 9.0),
                (0.6f64.sqrt(), 5.0 / 9.0),
            ] {
                let x = middle + node * half;
                let y = (q * ((2.0 * x - 1.0) / (2.0 * sigma * sigma)).exp_m1()).ln_1p();
                let density = (-x * x / (2.0 * sigma * sigma)).exp()
                    / (sigma * (2.0 * std::f64::consts::PI).sqrt());
                losses.push(y);
                masses.push(weight * half * density * y.exp());
            }
        }
        Self { losses, masses }
    }
}

/// delta of one step in the remove direction, at any real epsilon.
fn one(q: f64, sigma: f64, epsilon: f64) -> f64 {
    let inner = (epsilon.exp_m1() + q) / q;
    if inner <= 0.0 {
        return -epsilon.exp_m1();
    }
    let x = sigma * sigma * inner.ln() + 0.5;
    (q * upper_tail((x - 1.0) / sigma) - (epsilon.exp_m1() + q) * upper_tail(x / sigma)).max(0.0)
}

/// delta of `n` (2 or 3) steps.
fn truth(q: f64, sigma: f64, n: u64, epsilon: f64, panels: usize) -> f64 {
    let grid = Grid::new(q, sigma, panels);
    let pairs = || grid.losses.iter().zip(&grid.masses);
    let two = |e: f64| -> f64 { pairs().map(|(y, p)| p * one(q, sigma, e - y)).sum() };
    match n {
        2 => two(epsilon),
        _ => pairs().map(|(y, p)| p * two(epsilon - y)).sum(),
    }
}

fn check(q: f64, sigma: f64, n: u64, delta: f64, panels: usize) -> Result<(), TestCaseError> {
    let run = [Segment::new(q, sigma, n).unwrap()];
    let (lower, upper) = (
        epsilon_lower(&run, delta).unwrap(),
        epsilon_upper(&run, delta).unwrap(),
    );
    prop_assert!(upper - lower <= 1e-3, "{} {}", lower, upper);
    // One step's delta bends within about q of ln(1 - q): the panels must resolve that, and then are good to 1e-4 of delta.
    const QUADRATURE: f64 = 1e-4;
    let at_upper = truth(q, sigma, n, upper, panels);
    prop_assert!(
        at_upper <= delta * (1.0 + QUADRATURE),
        "upper {}: {:e} above {:e}",
        upper,
        at_upper,
        delta
    );
    if lower > 0.0 {
        let at_lower = truth(q, sigma, n, lower, panels);
        prop_assert!(
            at_lower >= delta * (1.0 - QUADRATURE),
            "lower {}: {:e} below {:e}",
            lower,
            at_lower,
            delta
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn two_steps_hold_the_truth(q in -4.0..-1.0f64, sigma in 0.5..2.0f64, d in -10.0..-3.0f64) {
        check(10f64.powf(q), sigma, 2, 10f64.powf(d), 40_000)?;
    }

    #[test]
    fn three_steps_hold_the_truth(q in -1.9..-0.5f64, sigma in 0.7..2.0f64, d in -9.0..-3.0f64) {
        check(10f64.powf(q), sigma, 3, 10f64.powf(d), 800)?;
    }
}

/// Cases whose interval was 0.43 and 0.014 wide before losses were put on a lattice, at the accuracy asked for.
#[test]
fn sparse_runs_reach_the_accuracy_asked_for() {
    for (q, sigma, steps, delta, error) in [
        (1e-4, 0.5, 3, 1e-10, 1e-3),
        (1e-4, 0.5, 3, 1e-10, 1e-5),
        (1e-4, 0.8, 3000, 1e-10, 1e-3),
        (1e-3, 0.8, 10, 1e-5, 1e-4),
        // 1.6e-3 wide while the mass next to no loss went through the fast transform.
        (1e-4, 0.8, 100_000, 1e-10, 1e-3),
        (6.6e-9, 0.26, 879, 1.5e-10, 1e-3),
    ] {
        let options = PldOptions {
            epsilon_error: error,
            ..PldOptions::default()
        };
        let run = [Segment::new(q, sigma, steps).unwrap()];
        let interval = pld::accountant(&run, options)
            .unwrap()
            .epsilon_interval(delta)
            .unwrap();
        assert!(
            interval.upper - interval.lower <= error,
            "{q} {sigma} {steps}: {interval:?}"
        );
        assert!(interval.lower > 0.0);
    }
}

/// Steps of very different sizes on one lattice, with a plain Gaussian among them.
#[test]
fn mixed_sparse_runs_are_tight() {
    let run = [
        Segment::new(0.006574156607403504, 6.522420361859413, 18).unwrap(),
        Segment::new(0.000003989617408910087, 47.27802115158189, 356).unwrap(),
        Segment::new(1e-3, 0.7, 3).unwrap(),
        Segment::new(1.0, 400.0, 2).unwrap(),
    ];
    let (lower, upper) = (
        epsilon_lower(&run, 1e-7).unwrap(),
        epsilon_upper(&run, 1e-7).unwrap(),
    );
    assert!(lower > 0.0 && upper - lower <= 1e-3, "{lower} {upper}");
}

/// Many steps that hardly ever lose anything beside a few that sometimes do: rounding over the many swamped the few, and the
/// interval was 0.144 wide; and losses of hundreds beside thousands of small ones.
#[test]
fn rare_losses_among_many_steps_are_tight() {
    type Run<'a> = (&'a [(f64, f64, u64)], f64, f64);
    let runs: [Run; 2] = [
        (
            &[
                (3.71e-6, 1.139, 52_469),
                (3.89e-6, 1.488, 27_944),
                (6.47e-5, 0.7617, 6),
            ],
            1.7e-10,
            3e-3,
        ),
        (
            &[(3.53e-4, 2.813, 2030), (0.2074, 0.1142, 33)],
            7.26e-4,
            1e-3,
        ),
    ];
    for (run, delta, width) in runs {
        let run: Vec<_> = run
            .iter()
            .map(|(q, sigma, n)| Segment::new(*q, *sigma, *n).unwrap())
            .collect();
        let (lower, upper) = (
            epsilon_lower(&run, delta).unwrap(),
            epsilon_upper(&run, delta).unwrap(),
        );
        assert!(lower > 0.0 && upper - lower <= width, "{lower} {upper}");
    }
}
