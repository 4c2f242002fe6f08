//! Confidence bounds and attack figures against closed forms.
#![allow(clippy::unwrap_used, missing_docs)]

use proptest::prelude::*;
use rldp_audit::attack::{loss_scores, membership};
use rldp_audit::bounds::{AttackCounts, epsilon_of_mu, probability_lower, probability_upper};
use statrs::distribution::{Binomial, DiscreteCDF};

#[test]
fn limits_equal_known_values() {
    // Two-sided 95 % for 5 of 10, from tables.
    assert!((probability_lower(5, 10, 0.025).unwrap() - 0.187_086_0).abs() < 1e-6);
    assert!((probability_upper(5, 10, 0.025).unwrap() - 0.812_914_0).abs() < 1e-6);
    // No events: 1 - alpha^(1/n); the rule of three.
    let exact = 1.0 - 0.05_f64.powf(1.0 / 1000.0);
    assert!((probability_upper(0, 1000, 0.05).unwrap() - exact).abs() < 1e-10);
    assert_eq!(probability_upper(7, 7, 0.05).unwrap(), 1.0);
    assert_eq!(probability_lower(0, 7, 0.05).unwrap(), 0.0);
}

proptest! {
    #[test]
    fn at_the_upper_limit_so_few_events_have_probability_alpha(trials in 1_u64..3000, share in 0.0_f64..1.0, exponent in 1_i32..7) {
        let alpha = 10_f64.powi(-exponent);
        let events = (share * (trials - 1) as f64) as u64;
        let limit = probability_upper(events, trials, alpha).unwrap();
        let so_few = Binomial::new(limit.min(1.0), trials).unwrap().cdf(events);
        prop_assert!(so_few <= alpha * (1.0 + 1e-6), "{so_few}");
        prop_assert!(so_few >= alpha * 0.999, "{so_few}: needlessly wide");
        prop_assert!(probability_lower(events, trials, alpha).unwrap() <= events as f64 / trials as f64);
    }

    #[test]
    fn an_attack_that_guesses_proves_nothing(trials in 1_u64..2000, share in 0.0_f64..1.0) {
        let says_in = (share * trials as f64) as u64;
        let counts = AttackCounts { negatives: trials, false_positives: says_in, positives: trials, false_negatives: trials - says_in };
        prop_assert_eq!(counts.epsilon_lower(1e-5, 0.95).unwrap(), 0.0);
        prop_assert_eq!(counts.mu_lower(0.95).unwrap(), 0.0);
    }
}

#[test]
fn a_perfect_attack_is_bounded_by_its_trials() {
    let counts = AttackCounts {
        negatives: 1000,
        false_positives: 0,
        positives: 1000,
        false_negatives: 0,
    };
    let limit = 1.0 - 0.025_f64.powf(1.0 / 1000.0);
    let epsilon = counts.epsilon_lower(1e-5, 0.95).unwrap();
    assert!((epsilon - ((1.0 - 1e-5 - limit) / limit).ln()).abs() < 1e-6);
    assert!(counts.mu_lower(0.95).unwrap() > 5.0);
}

#[test]
fn epsilon_of_one_gaussian_is_the_analytic_one() {
    assert!((epsilon_of_mu(1.0, 1e-5).unwrap() - 4.377_172).abs() < 1e-4);
    assert_eq!(epsilon_of_mu(0.0, 1e-5).unwrap(), 0.0);
}

#[test]
fn impossible_counts_are_refused() {
    assert!(probability_upper(3, 2, 0.05).is_err());
    assert!(probability_upper(0, 0, 0.05).is_err());
    assert!(probability_upper(1, 2, 0.0).is_err());
    assert!(probability_lower(3, 2, 0.05).is_err());
}

#[test]
fn attack_figures_of_small_cases_are_right() {
    let report = membership(
        &[3.0, 2.0, 2.0, 0.5],
        &[1.0, 2.0, 0.0, -1.0],
        &[0.25, 0.01],
        0.95,
    )
    .unwrap();
    // Pairs: 3 beats all; each 2 beats three and ties one; 0.5 beats two.
    assert!((report.auc.estimate - (4.0 + 3.5 + 3.5 + 2.0) / 16.0).abs() < 1e-12);
    assert!(report.auc.lower < report.auc.estimate && report.auc.estimate < report.auc.upper);
    // One of four non-members may be above: the threshold is the second largest, 1.
    assert_eq!(
        (
            report.true_rates[0].reached,
            report.true_rates[0].true_positive_rate.estimate
        ),
        (0.25, 0.75)
    );
    assert_eq!(
        (
            report.true_rates[1].reached,
            report.true_rates[1].true_positive_rate.estimate
        ),
        (0.0, 0.25)
    );
    assert_eq!(report.curve.first(), Some(&(0.0, 0.0)));
    assert_eq!(report.curve.last(), Some(&(1.0, 1.0)));
}

#[test]
fn losses_of_members_that_are_smaller_give_an_auc_of_one() {
    let report = membership(
        &loss_scores(&[0.1, 0.2]),
        &loss_scores(&[1.0, 2.0]),
        &[0.1],
        0.9,
    )
    .unwrap();
    assert_eq!(report.auc.estimate, 1.0);
    assert!(membership(&[1.0], &[1.0, 2.0], &[], 0.95).is_err());
    assert!(membership(&[1.0, f64::NAN], &[1.0, 2.0], &[], 0.95).is_err());
    assert!(membership(&[1.0, 2.0], &[1.0, 2.0], &[0.0], 0.95).is_err());
}
