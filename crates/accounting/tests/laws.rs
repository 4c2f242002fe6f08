//! Laws that hold for every mechanism, over random ones.
#![allow(clippy::unwrap_used, missing_docs)]

use proptest::prelude::*;
use rldp_accounting::effective::{Composite, effective_noise_multiplier, split};
use rldp_accounting::pld::{self, PldAccountant, PldOptions};
use rldp_accounting::{
    PrivacyTarget, Segment, calibrate, epsilon_lower, epsilon_upper, gaussian, gdp, rdp, views,
};

/// Bounds may be this far off the truth.
const SLACK: f64 = 1.2e-3;

fn segment() -> impl Strategy<Value = Segment> {
    (-3.0..0.0f64, -0.4..1.0f64, 0.0..3.5f64).prop_map(|(q, sigma, steps)| {
        Segment::new(10f64.powf(q), 10f64.powf(sigma), 10f64.powf(steps) as u64).unwrap()
    })
}

fn delta() -> impl Strategy<Value = f64> {
    (-10.0..-2.0f64).prop_map(|d| 10f64.powf(d))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn lower_is_below_upper_is_below_rdp(s in segment(), d in delta()) {
        let (upper, lower) = (epsilon_upper(&[s], d).unwrap(), epsilon_lower(&[s], d).unwrap());
        prop_assert!(lower <= upper);
        prop_assert!(upper <= rdp::epsilon_upper(&[s], d).unwrap().epsilon * (1.0 + 1e-9) + SLACK);
        // The accuracy that the default options promise.
        prop_assert!(upper - lower <= 1e-3, "{} {}", lower, upper);
    }

    #[test]
    fn monotone_in_everything(s in segment(), d in delta()) {
        // The truth is monotone, so what is certainly lost here is at most what may be lost by more of anything.
        let (q, sigma, steps) = (s.sampling_rate(), s.noise_multiplier(), s.steps());
        let upper = |q: f64, sigma: f64, steps: u64, d: f64| {
            epsilon_upper(&[Segment::new(q, sigma, steps).unwrap()], d).unwrap()
        };
        let here = epsilon_lower(&[s], d).unwrap();
        prop_assert!(upper((q * 1.05).min(1.0), sigma, steps, d) >= here);
        prop_assert!(upper(q, sigma * 0.95, steps, d) >= here);
        prop_assert!(upper(q, sigma, steps + 1, d) >= here);
        prop_assert!(upper(q, sigma, steps, d * 0.9) >= here);
    }

    #[test]
    fn order_and_splitting_change_nothing(a in segment(), b in segment(), d in delta(), cut in 0.1..0.9f64) {
        let together = epsilon_upper(&[a, b], d).unwrap();
        prop_assert_eq!(together, epsilon_upper(&[b, a], d).unwrap());
        let first = (a.steps() as f64 * cut) as u64;
        if first > 0 && first < a.steps() {
            let parts = [a.with_steps(first).unwrap(), b, a.with_steps(a.steps() - first).unwrap()];
            prop_assert_eq!(together, epsilon_upper(&parts, d).unwrap());
        }
    }

    #[test]
    fn incremental_is_the_same_as_at_once(list in prop::collection::vec(segment(), 2..5), d in delta()) {
        let mut accountant = PldAccountant::default();
        let mut lost = 0.0;
        for (i, s) in list.iter().enumerate() {
            accountant.compose(s).unwrap();
            let (upper, lower) = (accountant.epsilon_upper(d).unwrap(), accountant.epsilon_lower(d).unwrap());
            // Both enclose the same truth, which no further segment can lower.
            prop_assert!(epsilon_lower(&list[..=i], d).unwrap() <= upper);
            prop_assert!(lower <= epsilon_upper(&list[..=i], d).unwrap());
            prop_assert!(upper >= lost, "{} {}", upper, lost);
            lost = lower.max(lost);
        }
    }

    #[test]
    fn delta_and_epsilon_are_inverse(s in segment(), d in delta()) {
        let accountant = pld::accountant(&[s], PldOptions::default()).unwrap();
        let epsilon = accountant.epsilon_upper(d).unwrap();
        // At the certified epsilon the true delta is at most d.
        prop_assert!(accountant.delta_lower(epsilon).unwrap() <= d * (1.0 + 1e-9));
        let lower = accountant.epsilon_lower(d).unwrap();
        prop_assert!(lower == 0.0 || accountant.delta_upper(lower).unwrap() >= d * (1.0 - 1e-9));
    }

    #[test]
    fn one_step_agrees_with_its_composition(q in -3.0..-0.05f64, sigma in -0.3..0.8f64, d in delta()) {
        // Two steps lose more than one and at most what two lose by basic composition.
        let s = Segment::new(10f64.powf(q), 10f64.powf(sigma), 1).unwrap();
        let one = epsilon_upper(&[s], d).unwrap();
        let two = epsilon_lower(&[s.with_steps(2).unwrap()], 2.0 * d).unwrap();
        prop_assert!(two <= 2.0 * one * (1.0 + 1e-9));
        prop_assert!(epsilon_upper(&[s.with_steps(2).unwrap()], d).unwrap() >= one - 1e-9);
    }

    #[test]
    fn unsubsampled_is_exact(sigma in 0.5..50.0f64, steps in 1u64..2000, d in delta()) {
        let list = [Segment::new(1.0, sigma, steps).unwrap()];
        let exact = gaussian::epsilon_for(sigma / (steps as f64).sqrt(), d).unwrap();
        let close = |x: f64| (x - exact).abs() <= 1e-9 * exact;
        prop_assert!(close(epsilon_upper(&list, d).unwrap()) && close(epsilon_lower(&list, d).unwrap()));
        prop_assert!(close(gdp::epsilon_upper(gdp::mu(&list).unwrap(), d).unwrap()));
    }

    #[test]
    fn almost_unsubsampled_is_almost_exact(sigma in 1.0..20.0f64, steps in 1u64..500, d in delta()) {
        // The contour at q just below 1 against the closed form at 1.
        let near = epsilon_upper(&[Segment::new(1.0 - 1e-9, sigma, steps).unwrap()], d).unwrap();
        let exact = epsilon_upper(&[Segment::new(1.0, sigma, steps).unwrap()], d).unwrap();
        prop_assert!((near - exact).abs() <= SLACK, "{} {}", near, exact);
    }

    #[test]
    fn calibration_meets_its_target(e in 0.3..10.0f64, d in delta(), q in -2.5..-0.5f64, steps in 10u64..3000) {
        let target = PrivacyTarget::new(e, d).unwrap();
        let q = 10f64.powf(q);
        let sigma = calibrate::noise_multiplier(&target, q, steps).unwrap();
        let segment = |x: f64| [Segment::new(q, x, steps).unwrap()];
        prop_assert!(epsilon_upper(&segment(sigma), d).unwrap() <= e);
        prop_assert!(epsilon_lower(&segment(sigma * 0.98), d).unwrap() > e * 0.98 - SLACK);
        let scale = calibrate::deck_scale(&target, &[Segment::new(q, 0.9, steps).unwrap(), Segment::new(q, 1.3, steps).unwrap()]);
        let scale = scale.unwrap();
        let deck = [Segment::new(q, 0.9 * scale, steps).unwrap(), Segment::new(q, 1.3 * scale, steps).unwrap()];
        prop_assert!(epsilon_upper(&deck, d).unwrap() <= e);
    }

    #[test]
    fn gaussian_queries_meet_their_target(e in 0.1..20.0f64, d in delta(), n in 1u64..500) {
        let target = PrivacyTarget::new(e, d).unwrap();
        let sigma = calibrate::gaussian_queries(&target, n).unwrap();
        let epsilon = epsilon_upper(&[Segment::new(1.0, sigma, n).unwrap()], d).unwrap();
        prop_assert!(epsilon <= e && epsilon > e * (1.0 - 1e-9));
    }

    #[test]
    fn effective_noise_splits_back(sigma in 0.1..10.0f64, weights in prop::collection::vec(0.01..5.0f64, 1..30)) {
        let groups = split(sigma, &weights).unwrap();
        prop_assert!((effective_noise_multiplier(&groups).unwrap() / sigma - 1.0).abs() < 1e-12);
        prop_assert!(groups.iter().all(|g| *g >= sigma * (1.0 - 1e-12)));
        let with = Composite::new(groups.clone()).with_clip_counts(groups.len(), 20.0);
        let wanted = (sigma.powi(-2) + groups.len() as f64 / (4.0 * 400.0)).powf(-0.5);
        prop_assert!((with.noise_multiplier().unwrap() / wanted - 1.0).abs() < 1e-12);
    }

    #[test]
    fn an_attacker_gains_no_more_than_the_views_say(e in 0.0..8.0f64, d in delta(), prior in 0.01..0.99f64) {
        let advantage = views::advantage_upper(e, d).unwrap();
        // Randomised response with failure probability d attains both bounds.
        let truth = (1.0 - d) * e.exp() / (1.0 + e.exp()) + d;
        let lie = (1.0 - d) / (1.0 + e.exp());
        prop_assert!((truth - lie - advantage).abs() < 1e-12);
        let risk = views::bayes_risk_lower(prior, e, d).unwrap();
        prop_assert!(risk <= prior.min(1.0 - prior) + 1e-12);
        let balanced = views::bayes_risk_lower(0.5, e, d).unwrap();
        prop_assert!((balanced - 0.5 * (1.0 - advantage)).abs() < 1e-12);
        prop_assert!(views::false_negative_rate_lower(lie, e, d).unwrap() <= lie + 1e-12);
    }

    #[test]
    fn max_steps_is_the_last_that_fits(e in 0.5..6.0f64, sigma in 0.7..3.0f64) {
        let target = PrivacyTarget::new(e, 1e-5).unwrap();
        let steps = calibrate::max_steps(&target, 0.02, sigma).unwrap();
        let epsilon = |n: u64| epsilon_upper(&[Segment::new(0.02, sigma, n).unwrap()], 1e-5).unwrap();
        prop_assert!(steps == 0 || epsilon(steps) <= e);
        prop_assert!(epsilon(steps + 1) > e);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// A run whose every step differs, asked after each: the line at hand, the next one and the guards against the truth.
    #[test]
    fn a_growing_run_stays_certified(
        q in -2.5..-0.5f64, low in 0.6..1.5f64, spread in 0.0..1.0f64, steps in 2usize..100, d in delta(), kinds in 1u32..40,
    ) {
        let mut accountant = PldAccountant::default();
        let mut lost = 0.0;
        for i in 0..steps {
            let fraction = f64::from((i as u32 * 7919) % kinds) / f64::from(kinds);
            accountant.compose(&Segment::new(10f64.powf(q), low + spread * fraction, 1).unwrap()).unwrap();
            let upper = accountant.epsilon_upper(d).unwrap();
            prop_assert!(upper >= lost, "step {}: {} below {}", i, upper, lost);
            if i % 37 == 1 || i + 1 == steps {
                lost = epsilon_lower(accountant.segments(), d).unwrap();
                prop_assert!(upper >= lost && upper <= lost + SLACK, "step {}: {} {}", i, lost, upper);
            }
        }
    }
}

/// Smoothing moved this one's bound further than its estimate said: the interval was 1.27e-3 wide.
#[test]
fn a_growing_sparse_run_stays_tight() {
    let mut accountant = PldAccountant::default();
    for i in 0..7 {
        let sigma = 0.7806867066379006 + 0.5420565678091183 * f64::from((i * 7919) % 7) / 7.0;
        let step = Segment::new(10f64.powf(-2.447738320571513), sigma, 1).unwrap();
        accountant.compose(&step).unwrap();
        accountant.epsilon_upper(1.4429450557601743e-5).unwrap();
    }
    let interval = accountant.epsilon_interval(1.4429450557601743e-5).unwrap();
    assert!(interval.upper - interval.lower <= 1e-3, "{interval:?}");
}

/// Whatever was asked first, no later bound may rest on a line that lacks a segment.
#[test]
fn the_order_of_questions_changes_no_guarantee() {
    let step = |sigma: f64| Segment::new(0.02, sigma, 300).unwrap();
    for first in 0..3 {
        let mut accountant = PldAccountant::default();
        accountant.compose(&step(1.0)).unwrap();
        match first {
            0 => drop(accountant.epsilon_lower(1e-6).unwrap()),
            1 => drop(accountant.epsilon_upper(1e-3).unwrap()),
            _ => drop(accountant.delta_upper(1.0).unwrap()),
        }
        for sigma in [0.9, 1.1, 1.3] {
            accountant.compose(&step(sigma)).unwrap();
            let truth = epsilon_lower(accountant.segments(), 1e-6).unwrap();
            let upper = accountant.epsilon_upper(1e-6).unwrap();
            assert!(
                upper >= truth && upper <= truth + 1e-3,
                "{first}: {upper} {truth}"
            );
            assert!(accountant.epsilon_lower(1e-6).unwrap() <= upper);
        }
    }
}

/// Found by the law of calibration: two units in the last place over the target, hidden by equal logarithms.
#[test]
fn a_calibrated_deck_never_exceeds_its_target_by_rounding() {
    let target = PrivacyTarget::new(8.35046393974038, 4.5505411336821604e-6).unwrap();
    let q = 10f64.powf(-0.6863107559758534);
    let shape = [0.9, 1.3].map(|sigma| Segment::new(q, sigma, 1206).unwrap());
    let scale = calibrate::deck_scale(&target, &shape).unwrap();
    let deck = shape.map(|card| card.scaled(scale).unwrap());
    assert!(epsilon_upper(&deck, target.delta).unwrap() <= target.epsilon);
}

/// delta in both directions of one step that releases several Gaussian queries of one Poisson-sampled batch, by integrating over
/// the whole space of outputs: `shifts` are the sensitivities, `sigmas` the noises. By the trapezoidal rule, with kinks.
fn product_mechanism(
    q: f64,
    shifts: &[f64],
    sigmas: &[f64],
    epsilon: f64,
    points: usize,
) -> (f64, f64) {
    // ln of (with unit / without unit) is linear in the outputs; each axis gives its part of it and its two masses.
    let axes: Vec<Vec<(f64, f64)>> = shifts
        .iter()
        .zip(sigmas)
        .map(|(shift, sigma)| {
            let (low, high) = (-8.0 * sigma, shift + 8.0 * sigma);
            let width = (high - low) / points as f64;
            (0..points)
                .map(|i| {
                    let x = low + (i as f64 + 0.5) * width;
                    let out = (-x * x / (2.0 * sigma * sigma)).exp()
                        / (sigma * (2.0 * std::f64::consts::PI).sqrt());
                    let ratio = (x * shift - 0.5 * shift * shift) / (sigma * sigma);
                    (ratio, out * width)
                })
                .collect()
        })
        .collect();
    let (mut remove, mut add) = (0.0, 0.0);
    let mut at = vec![0; axes.len()];
    loop {
        let (mut ratio, mut out) = (0.0, 1.0);
        for (axis, &i) in axes.iter().zip(&at) {
            ratio += axis[i].0;
            out *= axis[i].1;
        }
        // All queries share the one coin of Poisson sampling.
        let with = out * (1.0 - q + q * ratio.exp());
        remove += (with - epsilon.exp() * out).max(0.0);
        add += (out - epsilon.exp() * with).max(0.0);
        let Some(axis) = (0..at.len()).find(|&a| at[a] + 1 < points) else {
            return (remove, add);
        };
        at[axis] += 1;
        at[..axis].fill(0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The formula of sigma_eff, groups and telemetry together, against the mechanism that releases them one beside the other.
    #[test]
    fn groups_and_telemetry_are_one_gaussian(
        q in 0.02..1.0f64, groups in prop::collection::vec(0.7..3.0f64, 1..3), counts in prop::option::of(0.5..3.0f64),
        loss in prop::option::of((0.5..4.0f64, 0.8..3.0f64)), epsilon in 0.0..1.2f64,
    ) {
        // Sensitivities and noises of what is released, in the units in which it is.
        let (mut shifts, mut sigmas) = (vec![1.0; groups.len()], groups.clone());
        let mut step = Composite::new(groups.clone());
        if let Some(noise) = counts {
            // One centred bit: it moves by a half.
            shifts.push(0.5);
            sigmas.push(noise);
            step = step.with_clip_counts(1, noise);
        }
        if let (Some((bound, ratio)), true) = (loss, shifts.len() < 3) {
            shifts.push(bound);
            sigmas.push(bound * ratio);
            step = step.with_loss_sum(bound, bound * ratio);
        }
        let points = match shifts.len() { 1 => 40_000, 2 => 700, _ => 130 };
        let (remove, add) = product_mechanism(q, &shifts, &sigmas, epsilon, points);
        let closed = pld::one_step_delta(q, step.noise_multiplier().unwrap(), epsilon).unwrap();
        // The kink of the payoff, over cells of a hundredth to a tenth of a standard deviation.
        prop_assert!((closed.remove - remove).abs() < 3e-4, "{:?} {}", closed, remove);
        prop_assert!((closed.add - add).abs() < 3e-4, "{:?} {}", closed, add);
    }
}

/// Small epsilon, large sigma, tiny delta: mpmath at 60 digits. The difference of two nearly equal tails loses digits if its
/// width is not kept exactly.
#[test]
fn gaussian_tails_keep_their_digits() {
    for (epsilon, sigma, truth) in [
        (
            0.043301177936687266,
            592.1939391542721,
            1.7110268851217535e-149,
        ),
        (
            0.04085977474068929,
            723.4583546454118,
            1.1512277573574626e-196,
        ),
        (
            0.018824818278196924,
            527.8519855224866,
            2.7194512496472275e-27,
        ),
    ] {
        let delta = gaussian::delta_for(epsilon, sigma).unwrap();
        assert!(
            (delta / truth - 1.0).abs() < 5e-13,
            "{epsilon} {sigma}: {delta:e}"
        );
    }
}
