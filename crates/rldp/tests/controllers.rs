//! What controllers see and how far they reach.
#![allow(clippy::unwrap_used, missing_docs)]

use burn::tensor::Device;
use proptest::prelude::*;
use rldp::controller::{
    AdapterView, AgentOptions, Bounds, ControllerKind, Observation, Outcome, Visible, WarmUpRule,
};

const DIMENSIONS: [usize; 3] = [100, 300, 600];

fn observation(progress: f64, clipped: f64, wild: f64) -> Observation {
    let adapters = DIMENSIONS
        .iter()
        .map(|dimension| AdapterView {
            dimension: *dimension,
            clipped_fraction: Visible::public(clipped),
            signal_to_noise: Visible::public(wild),
            cosine: Visible::public(wild),
            parameter_norm: Visible::public(wild),
            clipping_norm: 0.1,
            noise_weight: 1.0 / 3.0,
        })
        .collect();
    Observation {
        progress,
        spent: progress,
        validation_loss: Visible::public(2.0 - progress),
        initial_loss: Visible::public(2.0),
        improvement: Visible::public(wild),
        noise_multiplier: 1.0,
        learning_rate_factor: 1.0,
        beta_1: 0.8,
        adapters,
    }
}

#[test]
fn features_are_bounded_whatever_is_seen() {
    for wild in [0.0, 1e300, -1e300, f64::NAN, f64::INFINITY] {
        let rows = observation(0.5, wild, wild).features();
        assert_eq!(rows.len(), DIMENSIONS.len() + 1);
        for row in &rows {
            assert_eq!(row.len(), rows[0].len());
            assert!(
                row.iter()
                    .all(|value| value.is_finite() && value.abs() <= 4.0)
            );
        }
    }
}

#[test]
fn the_rule_splits_noise_by_dimension_and_follows_the_clipped_share() {
    let mut rule = WarmUpRule::new(&DIMENSIONS, 0.1).unwrap();
    assert_eq!(rule.decision().noise_weights, [0.1, 0.3, 0.6]);
    rule.follow([1.0, 0.95, 0.2].into_iter().map(Visible::public));
    let norms = rule.decision().clipping_norms;
    assert!(norms[0] > 0.1 && norms[2] < 0.1, "{norms:?}");
    assert!((norms[1] - 0.1).abs() < 1e-12, "{norms:?}");
}

proptest! {
    #[test]
    fn no_action_leaves_the_bounds(
        action in proptest::collection::vec(proptest::collection::vec(-3.0_f32..3.0, 3), 4),
        last in 0.5_f64..2.0,
    ) {
        let rule = WarmUpRule::new(&DIMENSIONS, 0.1).unwrap();
        let (plain, bounds) = (rule.decision(), Bounds::default());
        let moved = rule.moved(&action, &bounds, last);
        prop_assert!((moved.noise_weights.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        for (norm, from) in moved.clipping_norms.iter().zip(&plain.clipping_norms) {
            let ratio = norm / from;
            prop_assert!((1.0 / bounds.clipping_factor - 1e-9..=bounds.clipping_factor + 1e-9).contains(&ratio));
        }
        let step = moved.learning_rate_factor / last;
        prop_assert!(step <= bounds.learning_rate_step + 1e-9 && step >= 1.0 / bounds.learning_rate_step - 1e-9);
        prop_assert!((0.7 - 1e-9..=0.9 + 1e-9).contains(&moved.beta_1));
        prop_assert!((0.8 - 1e-9..=1.25 + 1e-9).contains(&moved.noise.0));
    }
}

#[test]
fn an_action_of_zero_is_the_rule() {
    let rule = WarmUpRule::new(&DIMENSIONS, 0.1).unwrap();
    let still = rule.moved(&vec![vec![0.0; 3]; 4], &Bounds::default(), 1.0);
    for (a, b) in still
        .noise_weights
        .iter()
        .zip(&rule.decision().noise_weights)
    {
        assert!((a - b).abs() < 1e-12);
    }
    assert_eq!(still.clipping_norms, rule.decision().clipping_norms);
    assert_eq!(still.learning_rate_factor, 1.0);
}

/// The same observations make a seeded agent decide the same, warm-up first, and then leave the rule.
#[test]
fn the_agent_starts_with_the_rule_and_then_moves() {
    let decisions = || {
        let mut agent = ControllerKind::Sac
            .build(
                &DIMENSIONS,
                0.1,
                AgentOptions::default(),
                7,
                &Device::default(),
            )
            .unwrap();
        let mut list = Vec::new();
        for step in 0..6 {
            let progress = f64::from(step) / 6.0;
            list.push(agent.decide(&observation(progress, 0.95, 0.1)).unwrap());
            let outcome = Outcome {
                reward: Visible::public(0.1),
                next: observation(progress + 1.0 / 6.0, 0.95, 0.1),
                finished: step == 5,
            };
            agent.outcome(&outcome).unwrap();
        }
        list
    };
    let first = decisions();
    let rule = WarmUpRule::new(&DIMENSIONS, 0.1).unwrap().decision();
    assert_eq!(first[0].clipping_norms, rule.clipping_norms);
    assert_eq!(first[1].learning_rate_factor, rule.learning_rate_factor);
    assert_ne!(first[2].clipping_norms, rule.clipping_norms);
    assert_eq!(first, decisions());
}

/// A controller restored from a checkpoint decides on exactly as the one that was never interrupted.
#[test]
fn every_controller_goes_on_from_its_state() {
    for (name, kind) in ControllerKind::NAMES {
        let build = |seed| {
            kind.build(
                &DIMENSIONS,
                0.1,
                AgentOptions::default(),
                seed,
                &Device::default(),
            )
            .unwrap()
        };
        let step = |controller: &mut dyn rldp::controller::Controller, index: u32| {
            let progress = f64::from(index) / 8.0;
            let decision = controller.decide(&observation(progress, 0.9, 0.1)).unwrap();
            let outcome = Outcome {
                reward: Visible::public(0.1 / f64::from(index + 1)),
                next: observation(progress + 0.125, 0.97, 0.3),
                finished: index == 7,
            };
            controller.outcome(&outcome).unwrap();
            decision
        };
        let mut uninterrupted = build(7);
        for index in 0..4 {
            step(uninterrupted.as_mut(), index);
        }
        let folder = tempfile::tempdir().unwrap();
        let state = uninterrupted.save_state(folder.path()).unwrap();
        let text = state.to_string();
        let state: serde_json::Value = serde_json::from_str(&text).unwrap();
        // Another seed: nothing may come from how the restored one was built.
        let mut restored = build(8);
        restored.restore_state(&state, folder.path()).unwrap();
        for index in 4..8 {
            assert_eq!(
                step(uninterrupted.as_mut(), index),
                step(restored.as_mut(), index),
                "{name} at {index}"
            );
        }
        let foreign = serde_json::json!({"rule": 3});
        assert!(
            restored.restore_state(&foreign, folder.path()).is_err(),
            "{name} took a foreign state"
        );
    }
}
