//! What controllers see and how far they reach.
#![allow(clippy::unwrap_used, missing_docs)]

use burn::tensor::Device;
use proptest::prelude::*;
use rldp::budget::BudgetKind;
use rldp::controller::{
    ACTION, ActionSpace, AdapterView, AgentController, Bounds, Controller, ControllerKind,
    ControllerSetup, Decision, Observation, Outcome, PostProcessing, RowKind, Visible, WarmUpRule,
};
use rldp::trainer::TrainerConfig;

const DIMENSIONS: [usize; 3] = [100, 300, 600];

fn observation(progress: f64, clipped: f64, wild: f64) -> Observation {
    let adapters = DIMENSIONS
        .iter()
        .map(|dimension| AdapterView {
            dimension: *dimension,
            clipped_fraction: Visible::public(clipped),
            signal_to_noise: Visible::public(wild),
            descent: Visible::public(wild),
            descent_noise: Visible::public(wild),
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
        loss_noise: 0.0,
        improvement: Visible::public(wild),
        noise_multiplier: 1.0,
        learning_rate: 5e-3,
        learning_rate_factor: 1.0,
        beta_1: 0.8,
        post_processing: PostProcessing::default(),
        adapters,
    }
}

fn setup() -> ControllerSetup {
    let config = TrainerConfig {
        clipping_norm: 0.1,
        budget: BudgetKind::Deck,
        ..TrainerConfig::default()
    };
    config.controller_setup(DIMENSIONS.to_vec())
}

/// Every action there is.
fn all_actions() -> ActionSpace {
    let bounds = Bounds {
        noise_correction_distance: 0.5,
        denoising_distance: 0.4,
        averaging_distance: 0.9,
        ..Bounds::FULL
    };
    ActionSpace::new(bounds, true, PostProcessing::default())
}

#[test]
fn features_are_bounded_whatever_is_seen() {
    for wild in [0.0, 1e300, -1e300, f64::NAN, f64::INFINITY] {
        let rows = all_actions().features(&observation(0.5, wild, wild));
        assert_eq!(rows.len(), DIMENSIONS.len() + 3);
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
    let mut seen = observation(0.5, 0.95, 0.0);
    for (adapter, share) in seen.adapters.iter_mut().zip([1.0, 0.95, 0.2]) {
        adapter.clipped_fraction = Visible::public(share);
    }
    rule.follow(&seen);
    assert_eq!(rule.learning_rate_factor(), 1.0);
    let norms = rule.decision().clipping_norms;
    assert!(norms[0] > 0.1 && norms[2] < 0.1, "{norms:?}");
    assert!((norms[1] - 0.1).abs() < 1e-12, "{norms:?}");
}

proptest! {
    #[test]
    fn no_action_leaves_the_bounds(
        action in proptest::collection::vec(proptest::collection::vec(-3.0_f32..3.0, ACTION), 6),
        last in 0.25_f64..4.0,
    ) {
        let rule = WarmUpRule::new(&DIMENSIONS, 0.1).unwrap();
        let (plain, bounds) = (rule.decision(), Bounds::FULL);
        let moved = all_actions().apply(&rule, &action, last);
        let post = moved.post_processing.unwrap();
        prop_assert!((0.0..=0.5 + 1e-9).contains(&post.noise_correction));
        prop_assert!((0.6 - 1e-9..=1.0).contains(&post.denoising_gain));
        prop_assert!((0.0..=0.9 + 1e-9).contains(&post.averaging_decay));
        prop_assert!((moved.noise_weights.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        for (norm, from) in moved.clipping_norms.iter().zip(&plain.clipping_norms) {
            let ratio = norm / from;
            prop_assert!((1.0 / bounds.clipping_factor - 1e-9..=bounds.clipping_factor + 1e-9).contains(&ratio));
        }
        let step = moved.learning_rate_factor / last;
        prop_assert!(step <= bounds.learning_rate_step + 1e-9 && step >= 1.0 / bounds.learning_rate_step - 1e-9);
        let range = bounds.learning_rate_factor;
        prop_assert!((1.0 / range - 1e-9..=range + 1e-9).contains(&moved.learning_rate_factor));
        prop_assert!((0.7 - 1e-9..=0.9 + 1e-9).contains(&moved.beta_1));
        prop_assert!((0.8 - 1e-9..=1.25 + 1e-9).contains(&moved.noise.0));
    }
}

#[test]
fn an_action_of_zero_is_the_rule() {
    let rule = WarmUpRule::new(&DIMENSIONS, 0.1).unwrap();
    let still = all_actions().apply(&rule, &vec![vec![0.0; ACTION]; 6], 1.0);
    assert_eq!(still.post_processing, Some(PostProcessing::default()));
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

/// What all adapters' steps gained together, each in its own units of noise.
fn gaining(deviations: f64) -> Observation {
    let mut seen = observation(0.5, 0.95, 0.0);
    for adapter in &mut seen.adapters {
        adapter.descent_noise = Visible::public(0.3);
        adapter.descent = Visible::public(deviations * 0.3 / 3.0_f64.sqrt());
    }
    assert!((seen.descent() - deviations).abs() < 1e-9);
    seen
}

/// Steps that gain plainly become longer, those that lose become shorter, the more noise the less is asked of them, and
/// nothing leads out of the range.
#[test]
fn the_learning_rate_follows_the_descent() {
    let factor = |seen: &Observation, times: usize| {
        let mut rule = WarmUpRule::new(&DIMENSIONS, 0.1)
            .unwrap()
            .following_descent(100.0);
        for _ in 0..times {
            rule.follow(seen);
        }
        assert_eq!(
            rule.decision().learning_rate_factor,
            rule.learning_rate_factor()
        );
        rule.learning_rate_factor()
    };
    // The aim is 0.011 x 100 deviations at a noise multiplier of one.
    assert!((factor(&gaining(1.1), 1) - 1.0).abs() < 1e-9);
    let [low, high] = [-2.0, 5.0].map(|gain| factor(&gaining(gain), 1));
    assert!(
        (0.6..0.7).contains(&low) && (1.5..1.7).contains(&high),
        "{low} and {high}"
    );
    assert!(
        factor(&gaining(1.1), 2)
            < factor(
                &Observation {
                    noise_multiplier: 2.0,
                    ..gaining(1.1)
                },
                2
            )
    );
    assert_eq!(factor(&gaining(50.0), 100), 10.0);
    assert_eq!(factor(&gaining(-50.0), 100), 0.1);
    // Nothing measured, and no number.
    let nothing = observation(0.0, 0.95, 0.0);
    assert_eq!(nothing.descent(), 0.0);
    let mut broken = gaining(1.0);
    broken.adapters[0].descent = Visible::public(f64::NAN);
    assert_eq!(factor(&broken, 3), 1.0);
}

/// The same observations make a seeded agent decide the same, warm-up first, and then leave the rule.
#[test]
fn the_agent_starts_with_the_rule_and_then_moves() {
    let decisions = || {
        let mut agent = ControllerKind::SacScratch
            .build(&setup(), 7, &Device::default())
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
    assert_eq!(first[0].learning_rate_factor, rule.learning_rate_factor);
    assert_ne!(first[1].beta_1, rule.beta_1);
    assert_eq!(first, decisions());
}

/// A controller restored from a checkpoint decides on exactly as the one that was never interrupted.
#[test]
fn every_controller_goes_on_from_its_state() {
    for (name, kind) in ControllerKind::NAMES {
        let build = |seed| kind.build(&setup(), seed, &Device::default()).unwrap();
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

/// What each arm may move, and that nothing else moves, whatever the action.
#[test]
fn every_arm_moves_its_own_settings_only() {
    let rule = WarmUpRule::new(&DIMENSIONS, 0.1).unwrap();
    let plain = rule.decision();
    let moved = |kind: ControllerKind, budget: BudgetKind| -> Vec<&'static str> {
        let mut setup = setup();
        setup.budget = budget;
        setup.agent = kind.agent_options(&setup.agent);
        let actions = setup.actions();
        let rows = actions.features(&observation(0.5, 0.9, 0.1)).len();
        // Not the same for all adapters: equal factors on all weights are no change of the split.
        let action: Vec<Vec<f32>> = (0..rows)
            .map(|row| vec![0.9 - 0.3 * row as f32; ACTION])
            .collect();
        let decision = actions.apply(&rule, &action, 1.0);
        let mut changed = Vec::new();
        if decision.clipping_norms != plain.clipping_norms {
            changed.push("radii");
        }
        if decision
            .noise_weights
            .iter()
            .zip(&plain.noise_weights)
            .any(|(a, b)| (a - b).abs() > 1e-9)
        {
            changed.push("split");
        }
        if decision.noise != plain.noise {
            changed.push("noise");
        }
        if decision.learning_rate_factor != plain.learning_rate_factor {
            changed.push("rate");
        }
        if decision.beta_1 != plain.beta_1 {
            changed.push("momentum");
        }
        let steered = Decision {
            clipping_norms: plain.clipping_norms.clone(),
            noise_weights: plain.noise_weights.clone(),
            noise: plain.noise,
            learning_rate_factor: plain.learning_rate_factor,
            beta_1: plain.beta_1,
            ..decision
        };
        assert_eq!(steered, plain, "{kind} moved something else");
        changed
    };
    use ControllerKind::{Paper, Sac, SacLearningRate, SacNoise, SacRadii};
    let deck = BudgetKind::Deck;
    assert_eq!(moved(Sac, deck), ["rate", "momentum"]);
    assert_eq!(moved(SacRadii, deck), ["radii"]);
    assert_eq!(moved(SacNoise, deck), ["split", "noise"]);
    assert_eq!(moved(SacNoise, BudgetKind::Fixed), ["split"]);
    assert_eq!(moved(SacLearningRate, deck), ["rate", "momentum"]);
    assert_eq!(moved(Paper, deck), ["radii", "split", "noise"]);
}

/// Rows stand for what they move: a switched-off kind has no row, and an agent always has one.
#[test]
fn there_is_a_row_for_everything_that_can_move() {
    let kinds = |bounds, noise| ActionSpace::new(bounds, noise, PostProcessing::default()).kinds();
    assert_eq!(all_actions().kinds(), RowKind::ALL);
    assert_eq!(
        kinds(Bounds::FULL, false),
        [
            RowKind::Adapter,
            RowKind::Pace,
            RowKind::Noise,
            RowKind::Filter
        ]
    );
    assert_eq!(kinds(Bounds::default(), true), [RowKind::Pace]);
    assert_eq!(kinds(Bounds::NONE, true), [RowKind::Pace]);
    // Minus one for each live component, the entropy of the uniform draw for an idle one.
    let radii = Bounds {
        clipping_factor: 2.0,
        ..Bounds::NONE
    };
    let target = ActionSpace::new(radii, false, PostProcessing::default()).target_entropy();
    assert!((target - (std::f64::consts::LN_2 - 1.0)).abs() < 1e-12);
    assert_eq!(
        ActionSpace::new(Bounds::default(), false, PostProcessing::default()).target_entropy(),
        -2.0
    );
}

/// An agent without exploration noise from other runs, which stores one-step transitions.
fn one_step_agent() -> AgentController {
    let mut setup = setup();
    setup.agent.from_scratch = true;
    setup.agent.warm_up = 0;
    setup.agent.updates = 40;
    setup.agent.sac = setup.agent.sac.clone().with_horizon(1);
    AgentController::new(&setup, 7, &Device::default()).unwrap()
}

/// The rule that the agent of [`setup`] moves around.
fn agents_rule() -> WarmUpRule {
    WarmUpRule::new(&DIMENSIONS, 0.1)
        .unwrap()
        .following_descent(setup().batch_size)
}

/// Runs an agent through these validation losses, and gives its decisions.
fn episode(agent: &mut AgentController, losses: &[f64]) -> Vec<Decision> {
    let last = losses.len() - 1;
    let at = |index: usize, before: f64| {
        let mut seen = observation(index as f64 / last as f64, 0.95, 0.1);
        seen.validation_loss = Visible::public(losses[index]);
        seen.improvement = Visible::public(before - losses[index]);
        seen
    };
    let mut seen = at(0, losses[0]);
    let mut decisions = Vec::new();
    for index in 1..=last {
        decisions.push(agent.decide(&seen).unwrap());
        let next = at(index, losses[index - 1]);
        let outcome = Outcome {
            reward: next.improvement,
            next: next.clone(),
            finished: index == last,
        };
        agent.outcome(&outcome).unwrap();
        seen = next;
    }
    decisions
}

/// Mistakes seen in derived code: the next state is not the state, and a reward belongs to the action before it.
#[test]
fn transitions_hold_what_happened() {
    let losses = [4.0, 2.0, 1.0, 0.8, 0.7];
    let mut agent = one_step_agent();
    let decisions = episode(&mut agent, &losses);
    let replay = agent.agent().replay().unwrap();
    assert_eq!(replay.len(), losses.len() - 1);
    let mut rule = agents_rule();
    let actions = setup().actions();
    let mut factor = 1.0;
    for index in 0..replay.len() {
        let stored = replay.get(index).unwrap();
        assert_ne!(stored.observation, stored.next_observation);
        if index > 0 {
            assert_eq!(
                stored.observation,
                replay.get(index - 1).unwrap().next_observation
            );
        }
        let reward = 10.0 * (losses[index] / losses[index + 1]).ln();
        assert!(
            (f64::from(stored.reward) - reward).abs() < 1e-5,
            "{} is not {reward}",
            stored.reward
        );
        // The stored action is the one that the decision came from.
        let action: Vec<Vec<f32>> = stored.action.chunks(ACTION).map(<[f32]>::to_vec).collect();
        let decision = actions.apply(&rule, &action, factor);
        assert_eq!(decision.noise_weights, decisions[index].noise_weights);
        assert_eq!(
            decision.learning_rate_factor,
            decisions[index].learning_rate_factor
        );
        factor = decision.learning_rate_factor / rule.learning_rate_factor();
        rule.follow(&observation(0.5, 0.95, 0.1));
    }
}

/// Mistakes seen in derived code: a fixed temperature, and an encoder of the statistics that is never trained.
#[test]
fn temperature_and_policy_learn() {
    let mut agent = one_step_agent();
    let alpha = agent.agent().alpha();
    let seen = observation(0.5, 0.3, 0.7);
    let rows = setup().actions().features(&seen);
    let mut before = agent.agent().clone();
    episode(&mut agent, &[4.0, 2.0, 1.0, 0.8, 0.7]);
    assert!(agent.agent().learner().updates() > 0);
    assert_ne!(agent.agent().alpha(), alpha);
    let mut after = agent.into_agent();
    let mode = |sac: &mut rldp_sac::Sac| sac.act(&rows.clone().into(), false).unwrap();
    assert_ne!(mode(&mut before), mode(&mut after));
}

/// Mistakes seen in derived code: rewards three orders of magnitude apart, and ones that are no numbers because something
/// vanished in a denominator.
#[test]
fn rewards_are_of_one_size_and_always_numbers() {
    let reward = |before: f64, after: f64| {
        let mut agent = one_step_agent();
        episode(&mut agent, &[before, after, after]);
        agent.agent().replay().unwrap().get(0).unwrap().reward
    };
    // Perplexity 55 to 7.4 in the first interval, 1.90 to 1.87 in a late one.
    let (early, late) = (reward(4.0, 2.0), reward(0.642, 0.626));
    assert!(
        early > late && late > 0.0 && early / late < 50.0,
        "{early} and {late}"
    );
    for (before, after) in [(1.0, 0.0), (1.0, -0.3), (0.0, 0.0), (1e-300, 1e300)] {
        assert!(reward(before, after).is_finite());
    }
    // The same loss at the same spending: nothing to divide by, and nothing earned.
    assert_eq!(reward(1.0, 1.0), 0.0);
}

/// A frozen policy neither explores nor learns.
#[test]
fn a_frozen_agent_repeats_itself() {
    let mut setup = setup();
    setup.agent.frozen = true;
    setup.agent.warm_up = 0;
    let mut agent = AgentController::new(&setup, 7, &Device::default()).unwrap();
    let first = agent.decide(&observation(0.5, 0.95, 0.1)).unwrap();
    let mut again = AgentController::new(&setup, 7, &Device::default()).unwrap();
    episode(&mut again, &[4.0, 2.0, 1.0]);
    assert!(again.agent().replay().is_none());
    assert_eq!(again.agent().learner().updates(), 0);
    assert_eq!(
        again
            .decide(&observation(0.5, 0.95, 0.1))
            .unwrap()
            .noise_weights,
        first.noise_weights
    );
}

/// Where the noise of the held-out loss drowns the reward the agent acts by its policy's mode and learns nothing.
#[test]
fn an_agent_that_hears_nothing_does_not_learn() {
    let run = |noise: f64| {
        let mut agent = one_step_agent();
        let mut seen = observation(0.0, 0.95, 0.1);
        seen.loss_noise = noise;
        let decisions: Vec<Decision> = (0..4)
            .map(|index| {
                let decision = agent.decide(&seen).unwrap();
                let outcome = Outcome {
                    reward: Visible::public(0.1),
                    next: seen.clone(),
                    finished: index == 3,
                };
                agent.outcome(&outcome).unwrap();
                decision
            })
            .collect();
        (agent.agent().learner().updates(), decisions)
    };
    let (updates, quiet) = run(0.0);
    assert!(updates > 0 && quiet[0] != quiet[1]);
    let (updates, loud) = run(0.5);
    assert_eq!(updates, 0);
    // The same action twice: it moves the learning rate once more from where it was, and the rule moves its own.
    let mut rule = agents_rule();
    rule.follow(&observation(0.0, 0.95, 0.1));
    let moved = rule.learning_rate_factor();
    assert!(moved > 1.0);
    let expected = Decision {
        learning_rate_factor: loud[0].learning_rate_factor.powi(2) * moved,
        ..loud[0].clone()
    };
    assert!((loud[1].learning_rate_factor - expected.learning_rate_factor).abs() < 1e-12);
    let second = Decision {
        learning_rate_factor: expected.learning_rate_factor,
        ..loud[1].clone()
    };
    assert_eq!(second, expected);
}

/// A reward beyond another run's: nothing is left where both fall alike.
#[test]
fn a_baseline_is_taken_off_the_reward() {
    let losses = [4.0, 2.0, 1.0, 0.8];
    let rewards = |baseline: &[f64]| -> Vec<f32> {
        let mut agent = one_step_agent().with_baseline(baseline);
        episode(&mut agent, &losses);
        let replay = agent.agent().replay().unwrap();
        (0..replay.len())
            .map(|index| replay.get(index).unwrap().reward)
            .collect()
    };
    assert!(rewards(&losses).iter().all(|reward| reward.abs() < 1e-6));
    let plain = rewards(&[]);
    let beyond = rewards(&[4.0, 3.0, 2.0, 0.8]);
    for (index, fall) in [4.0_f64 / 3.0, 3.0 / 2.0, 2.0 / 0.8]
        .into_iter()
        .enumerate()
    {
        let expected = f64::from(plain[index]) - 10.0 * fall.ln();
        assert!((f64::from(beyond[index]) - expected).abs() < 1e-4);
    }
}

/// The shipped policy is one of this agent's: a new agent acts by it, and not as one that starts from nothing.
#[test]
fn an_agent_acts_by_the_shipped_policy() {
    let decision = |from_scratch: bool, policy: Option<std::path::PathBuf>| {
        let mut setup = setup();
        setup.budget = BudgetKind::Fixed;
        setup.agent.frozen = true;
        setup.agent.warm_up = 0;
        setup.agent.from_scratch = from_scratch;
        setup.agent.policy = policy;
        let mut agent = AgentController::new(&setup, 7, &Device::default()).unwrap();
        agent.decide(&gaining(1.5)).unwrap()
    };
    let shipped = decision(false, None);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), rldp::controller::shipped_policy()).unwrap();
    assert_eq!(shipped, decision(false, Some(file.path().to_owned())));
    assert_ne!(shipped, decision(true, None));
}
