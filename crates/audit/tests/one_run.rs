//! The one-run bound against mechanisms whose outcomes can all be listed.
#![allow(clippy::unwrap_used, missing_docs)]

use burn::tensor::Device;
use proptest::prelude::*;
use rldp_accounting::{Segment, epsilon_upper};
use rldp_audit::audit_in_one_run;
use rldp_audit::one_run::{Guesses, one_run};
use rldp_optim::{SecureRandom, StepPlan};

/// Probability of at least `correct` right guesses about `canaries` bits, by listing every pattern of right and wrong answers of
/// randomised response, whose answers are right independently with probability e^epsilon / (1 + e^epsilon).
fn listed(canaries: u32, correct: u32, epsilon: f64) -> f64 {
    let right = epsilon.exp() / (1.0 + epsilon.exp());
    (0..1_u32 << canaries)
        .filter(|pattern| pattern.count_ones() >= correct)
        .map(|pattern| {
            let rights = pattern.count_ones() as i32;
            right.powi(rights) * (1.0 - right).powi(canaries as i32 - rights)
        })
        .sum()
}

#[test]
fn for_randomised_response_the_p_value_is_the_probability() {
    for canaries in 1..=10_u32 {
        for correct in 0..=canaries {
            for epsilon in [0.0, 0.3, 1.0, 4.0] {
                let guesses = Guesses {
                    canaries: u64::from(canaries),
                    guesses: u64::from(canaries),
                    correct: u64::from(correct),
                };
                let (bound, truth) = (
                    guesses.p_value(epsilon, 0.0).unwrap(),
                    listed(canaries, correct, epsilon),
                );
                assert!(
                    bound >= truth * (1.0 - 1e-10),
                    "{canaries} {correct} {epsilon}: {bound} below {truth}"
                );
                assert!(
                    bound <= truth * (1.0 + 1e-8) + 1e-15,
                    "{canaries} {correct} {epsilon}: {bound} above {truth}"
                );
            }
        }
    }
}

/// The bound of Theorem 5.2 written out term by term from listed patterns.
fn theorem(canaries: u32, correct: u32, epsilon: f64, delta: f64) -> f64 {
    let at_least = |v: i64| listed(canaries, v.max(0) as u32, epsilon);
    let f = at_least(i64::from(correct));
    let steepest = (1..=i64::from(canaries))
        .map(|i| (at_least(i64::from(correct) - i) - f) / i as f64)
        .fold(0.0, f64::max);
    (f + 2.0 * f64::from(canaries) * delta * steepest).min(1.0)
}

#[test]
fn with_delta_the_p_value_is_the_theorem_written_out() {
    for canaries in 1..=9_u32 {
        for correct in 0..=canaries {
            for (epsilon, delta) in [(0.5, 1e-3), (1.0, 0.01), (2.0, 0.05), (0.1, 0.3)] {
                let guesses = Guesses {
                    canaries: u64::from(canaries),
                    guesses: u64::from(canaries),
                    correct: u64::from(correct),
                };
                let (found, expected) = (
                    guesses.p_value(epsilon, delta).unwrap(),
                    theorem(canaries, correct, epsilon, delta),
                );
                assert!(
                    (found - expected).abs() < 1e-8,
                    "{canaries} {correct} {epsilon} {delta}: {found} is not {expected}"
                );
            }
        }
    }
}

/// Two mechanisms that use their delta in the worst ways known: with probability delta everything is published, or each bit is
/// published with probability delta, and randomised response otherwise. Every outcome is listed.
#[test]
fn no_mechanism_that_uses_its_delta_up_beats_the_bound() {
    for canaries in 1..=9_u32 {
        for correct in 1..=canaries {
            for (epsilon, delta) in [(0.0, 0.1), (0.5, 0.02), (1.0, 0.2), (3.0, 0.01)] {
                let bound = Guesses {
                    canaries: u64::from(canaries),
                    guesses: u64::from(canaries),
                    correct: u64::from(correct),
                }
                .p_value(epsilon, delta)
                .unwrap();
                let all_at_once = delta + (1.0 - delta) * listed(canaries, correct, epsilon);
                let right = epsilon.exp() / (1.0 + epsilon.exp());
                let each = delta + (1.0 - delta) * right;
                let one_by_one = listed(canaries, correct, (each / (1.0 - each)).ln());
                for truth in [all_at_once, one_by_one] {
                    assert!(
                        truth <= bound + 1e-12,
                        "{canaries} {correct} ({epsilon}, {delta}): {truth} above {bound}"
                    );
                }
            }
        }
    }
}

#[test]
fn known_bounds() {
    let bound = |canaries, guesses, correct, delta| {
        Guesses {
            canaries,
            guesses,
            correct,
        }
        .epsilon_lower(delta, 0.95)
        .unwrap()
    };
    // All of 1,000 right: (e^eps / (1 + e^eps))^1000 = 0.05.
    let accuracy = 0.05_f64.powf(1e-3);
    assert!((bound(1000, 1000, 1000, 0.0) - (accuracy / (1.0 - accuracy)).ln()).abs() < 1e-6);
    // Half right says nothing; delta costs something; abstaining from the hard ones helps.
    assert_eq!(bound(1000, 1000, 500, 0.0), 0.0);
    assert!(bound(1000, 1000, 900, 1e-5) < bound(1000, 1000, 900, 0.0));
    assert!(bound(1000, 100, 95, 1e-5) > bound(1000, 1000, 600, 1e-5));
}

#[test]
fn impossible_counts_are_refused() {
    let guesses = |canaries, guesses, correct| Guesses {
        canaries,
        guesses,
        correct,
    };
    assert!(guesses(1, 2, 1).p_value(1.0, 0.0).is_err());
    assert!(guesses(2, 1, 2).p_value(1.0, 0.0).is_err());
    assert!(guesses(2, 2, 1).p_value(-1.0, 0.0).is_err());
    assert!(guesses(2, 2, 1).p_value(1.0, 2.0).is_err());
    assert!(guesses(2, 2, 1).epsilon_lower(0.1, 1.0).is_err());
    assert!(one_run(&[1.0], &[true], 1e-5, 0.95).is_err());
    assert!(one_run(&[1.0, 2.0], &[true], 1e-5, 0.95).is_err());
    assert!(one_run(&[1.0, f64::NAN], &[true, false], 1e-5, 0.95).is_err());
}

proptest! {
    #[test]
    fn the_bound_is_not_refuted_further_up(canaries in 2_u64..400, share in 0.0_f64..1.0, right in 0.0_f64..1.0, delta in 0.0_f64..0.01) {
        let guesses = (share * canaries as f64) as u64;
        let correct = (right * guesses as f64) as u64;
        let counted = Guesses { canaries, guesses, correct };
        let bound = counted.epsilon_lower(delta, 0.95).unwrap();
        prop_assert!(counted.p_value(bound + 1e-6, delta).unwrap() >= 0.05 * (1.0 - 1e-6));
        if bound > 0.0 {
            prop_assert!(counted.p_value(bound, delta).unwrap() < 1.0 - 0.95);
        }
    }
}

#[test]
fn the_most_telling_scores_are_guessed() {
    let included: Vec<bool> = (0..400).map(|index| index % 2 == 0).collect();
    // Twenty canaries on each side give themselves away, the rest is noise that leans neither way.
    let scores: Vec<f64> = (0..400)
        .map(|index| match index {
            0..40 => {
                if included[index] {
                    10.0
                } else {
                    -10.0
                }
            }
            _ => ((index / 2 * 37) % 101) as f64 / 101.0,
        })
        .collect();
    let report = one_run(&scores, &included, 1e-6, 0.95).unwrap();
    assert_eq!((report.guesses.guesses, report.guesses.correct), (40, 40));
    assert!(report.epsilon_lower > 1.5, "{report:?}");
}

/// A run whose canaries all sit in every batch, hit by next to no noise, is broken, and a private one's bound stays below its
/// epsilon. False-alarm rate 1e-6.
#[test]
fn a_run_of_many_canaries_is_bounded_below_its_claim_and_seen_through_without_noise() {
    let mut random = SecureRandom::new().unwrap();
    let device = Device::default();
    // A small delta: 2 m delta would otherwise be above the false-alarm rate, and nothing could be refuted.
    let (confidence, delta) = (1.0 - 1e-6, 1e-12);
    let plans = |noise_multiplier: f64| {
        vec![StepPlan::new(0.5, 100, noise_multiplier, &[0.1, 0.2]).unwrap(); 6]
    };
    let broken =
        audit_in_one_run(&plans(0.01), 200, delta, confidence, &device, &mut random).unwrap();
    // Of 200 canaries three are expected in none of six batches, and so look like those left out.
    assert!(broken.epsilon_lower > 1.0, "{broken:?}");
    for noise_multiplier in [0.5, 1.0, 3.0] {
        let report = audit_in_one_run(
            &plans(noise_multiplier),
            200,
            delta,
            confidence,
            &device,
            &mut random,
        )
        .unwrap();
        let claim =
            epsilon_upper(&[Segment::new(0.5, noise_multiplier, 6).unwrap()], delta).unwrap();
        assert!(report.epsilon_lower <= claim, "{report:?} above {claim}");
    }
}
