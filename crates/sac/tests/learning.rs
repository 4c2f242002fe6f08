//! Short problems with known answers.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::devices;
use rldp_sac::{AgentRng, Observation, Sac, SacConfig, Transition};

/// The best action of an agent that sees `feature`.
fn best(feature: f32) -> f32 {
    0.6 * feature
}

/// One-step episodes: each agent should answer its own feature, and only the mean reward is told.
fn bandit(config: SacConfig, agents: usize, steps: u32, device: &burn::tensor::Device) -> f32 {
    let mut agent = Sac::new(
        config.with_hidden(vec![32, 32]).with_batch_size(32),
        1,
        1,
        3,
        device,
    )
    .unwrap();
    let mut rng = AgentRng::new(9);
    for _ in 0..steps {
        let features: Vec<f32> = (0..agents)
            .map(|_| (2.0 * rng.uniform() - 1.0) as f32)
            .collect();
        let observation: Observation = features.iter().map(|&f| vec![f]).collect::<Vec<_>>().into();
        let action = agent.act(&observation, true).unwrap();
        let cost = |(f, a): (&f32, &Vec<f32>)| f64::from(a[0] - best(*f)).powi(2);
        let reward = -5.0 * features.iter().zip(&action).map(cost).sum::<f64>() / agents as f64;
        let next_observation = observation.clone();
        agent
            .observe(Transition {
                observation,
                action,
                reward,
                next_observation,
                terminated: true,
                truncated: false,
            })
            .unwrap();
        agent.learn().unwrap();
    }
    let probes = [-0.8f32, -0.4, 0.0, 0.4, 0.8];
    let rows: Vec<Vec<f32>> = probes.iter().map(|&f| vec![f]).collect();
    let actions = agent.act(&rows.into(), false).unwrap();
    probes
        .iter()
        .zip(actions)
        .map(|(&f, a)| (a[0] - best(f)).abs())
        .fold(0.0, f32::max)
}

#[test]
fn a_bandit_is_learned() {
    for (name, device) in devices() {
        let error = bandit(
            SacConfig::default().with_learning_rate(3e-3),
            1,
            1000,
            &device,
        );
        println!("{name}: worst error {error}");
        assert!(error < 0.15, "{name}: {error}");
    }
}

#[test]
fn a_shared_policy_learns_from_the_mean_reward() {
    for (name, device) in devices() {
        let error = bandit(
            SacConfig::default().with_learning_rate(3e-3),
            3,
            1500,
            &device,
        );
        println!("{name}: worst error {error}");
        assert!(error < 0.2, "{name}: {error}");
    }
}

#[test]
fn many_updates_make_few_transitions_enough() {
    for (name, device) in devices() {
        let config = SacConfig::droq()
            .with_learning_rate(3e-3)
            .with_actor_period(2)
            .with_random_steps(20);
        let error = bandit(
            config
                .with_normalize_rewards(true)
                .with_normalize_observations(true),
            1,
            120,
            &device,
        );
        println!("{name}: worst error {error}");
        assert!(error < 0.25, "{name}: {error}");
    }
}

/// Reward 1 at every step, gamma 1/2, episodes of one step: worth 2 where the episode is cut off, 1 where it truly ends.
#[test]
fn an_episode_cut_off_has_a_future() {
    for (name, device) in devices() {
        for (horizon, length) in [(1, 1), (3, 2)] {
            for terminated in [false, true] {
                let config = SacConfig::default()
                    .with_hidden(vec![16])
                    .with_learning_rate(3e-3)
                    .with_discount(0.5)
                    .with_target_rate(0.05)
                    .with_initial_temperature(1e-4)
                    .with_target_entropy(Some(-50.0))
                    .with_horizon(horizon)
                    .with_random_steps(0);
                let mut agent = Sac::new(config, 1, 1, 3, &device).unwrap();
                for step in 1..=400u32 {
                    let observation = Observation::single(vec![1.0]);
                    let last = step % length == 0;
                    let action = agent.act(&observation, true).unwrap();
                    let next_observation = observation.clone();
                    let (terminated, truncated) = (last && terminated, last && !terminated);
                    agent
                        .observe(Transition {
                            observation,
                            action,
                            reward: 1.0,
                            next_observation,
                            terminated,
                            truncated,
                        })
                        .unwrap();
                    agent.learn().unwrap();
                }
                // With two-step episodes that end, half the states are worth 1.5 and half 1, and all look alike.
                let expected = match (terminated, length) {
                    (false, _) => 2.0,
                    (true, 1) => 1.0,
                    (true, _) => 1.25,
                };
                let value = agent.update(1).unwrap().mean_value;
                assert!(
                    (value - expected).abs() < 0.2,
                    "{name}, horizon {horizon}: {value} against {expected}"
                );
            }
        }
    }
}
