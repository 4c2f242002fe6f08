//! What an attacker can gain, against the plain Gaussian mechanism, whose trade-off function is known.
#![allow(clippy::unwrap_used, missing_docs)]

use rldp_accounting::pld::{self, PldOptions};
use rldp_accounting::views::{attacker_view, bayes_risk_lower, false_negative_rate_lower};
use rldp_accounting::{Segment, gaussian};

/// Phi(x).
fn normal(x: f64) -> f64 {
    0.5 * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2)
}

/// The x with Phi(x) = p, by bisection.
fn normal_quantile(p: f64) -> f64 {
    let (mut low, mut high) = (-40.0, 40.0);
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if normal(middle) < p {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

/// Points of the privacy curve, evenly spaced up to `to`.
fn epsilons(to: f64) -> Vec<f64> {
    (1..=400).map(|i| to * f64::from(i) / 400.0).collect()
}

/// The Gaussian's trade-off function is Phi(Phi^-1(1 - alpha) - mu): the bound is never above it, and near it.
#[test]
fn trade_off_of_gaussians_is_theirs() {
    for (sigma, steps) in [(1.0, 1), (4.0, 9), (30.0, 100)] {
        let run = [Segment::new(1.0, sigma, steps).unwrap()];
        let mu = (steps as f64).sqrt() / sigma;
        let accountant = pld::accountant(&run, PldOptions::default()).unwrap();
        let view = attacker_view(&accountant, &epsilons(8.0 * mu + 0.5 * mu * mu)).unwrap();
        // Advantage 2 Phi(mu / 2) - 1, error Phi(-mu / 2).
        let advantage = 2.0 * normal(0.5 * mu) - 1.0;
        assert!(
            (view.advantage_upper - advantage).abs() < 1e-12
                && view.advantage_upper >= advantage - 1e-15
        );
        assert!((view.bayes_risk_lower - normal(-0.5 * mu)).abs() < 1e-12);
        for &(rate, bound) in &view.trade_off {
            let exact = match rate {
                0.0 => 1.0,
                1.0 => 0.0,
                _ => normal(-mu - normal_quantile(rate)),
            };
            assert!(bound <= exact + 1e-12, "{mu} {rate}: {bound} above {exact}");
            assert!(
                bound >= exact - 2e-3,
                "{mu} {rate}: {bound} far below {exact}"
            );
        }
    }
}

/// A trade-off curve falls, is convex, is its own inverse (both directions are covered), and agrees with the privacy curve.
#[test]
fn trade_off_curves_have_their_shape() {
    let runs = [
        vec![Segment::new(0.05, 1.0, 200).unwrap()],
        vec![
            Segment::new(0.02, 0.8, 50).unwrap(),
            Segment::new(1.0, 9.0, 3).unwrap(),
        ],
    ];
    for run in runs {
        let accountant = pld::accountant(&run, PldOptions::default()).unwrap();
        let view = attacker_view(&accountant, &[0.2, 0.5, 1.0, 2.0, 3.0, 5.0]).unwrap();
        let at = |rate: f64| {
            view.privacy_curve
                .iter()
                .map(|&(e, d)| false_negative_rate_lower(rate, e, d).unwrap())
                .fold(0.0, f64::max)
        };
        // At no false positives: what the smallest delta of the curve leaves.
        let least = view.privacy_curve.iter().map(|p| p.1).fold(1.0, f64::min);
        assert_eq!(view.trade_off[0], (0.0, 1.0 - least));
        for pair in view.trade_off.windows(2) {
            assert!(pair[1].1 <= pair[0].1, "{pair:?}");
        }
        for three in view.trade_off.windows(3) {
            let [(a, x), (b, y), (c, z)] = [three[0], three[1], three[2]];
            let chord = x + (z - x) * (b - a) / (c - a);
            assert!(y <= chord + 1e-12, "{three:?}");
        }
        for &(rate, bound) in &view.trade_off {
            assert_eq!(bound, at(rate));
            // f(f(alpha)) = alpha where the curve is not flat at 0.
            if bound > 0.0 && rate > 0.0 {
                assert!(
                    (at(bound) - rate).abs() < 1e-9,
                    "{rate} {bound} {}",
                    at(bound)
                );
            }
        }
        // Each point of the privacy curve is a line below the trade-off curve, and certified.
        for &(e, d) in &view.privacy_curve {
            assert_eq!(d, accountant.delta_upper(e).unwrap());
            for &(rate, bound) in &view.trade_off {
                assert!(bound >= 1.0 - d - e.exp() * rate);
            }
        }
        assert_eq!(view.advantage_upper, accountant.delta_upper(0.0).unwrap());
    }
}

/// Bayes risk at any prior, against its closed form for one (epsilon, delta): min of both guesses and the knee.
#[test]
fn bayes_risk_has_its_closed_form() {
    for (prior, epsilon, delta) in [
        (0.5, 1.0, 1e-5),
        (0.1, 1.0, 1e-3),
        (0.9, 0.3, 0.05),
        (0.5, 0.0, 0.0),
    ] {
        let knee = (1.0 - delta) / (1.0 + f64::exp(epsilon));
        let wanted = f64::min(knee, f64::min(prior, 1.0 - prior) * (1.0 - delta));
        let risk = bayes_risk_lower(prior, epsilon, delta).unwrap();
        assert!((risk - wanted).abs() < 1e-15, "{prior}: {risk} {wanted}");
    }
    // The Gaussian at prior 1/2 can be no worse than its own test.
    let delta = gaussian::delta_for(0.0, 2.0).unwrap();
    let risk = bayes_risk_lower(0.5, 0.0, delta).unwrap();
    assert!((risk - normal(-0.25)).abs() < 1e-12);
}
