//! Checkpoints, policy files, refusals, and the mistakes seen in derived code.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::path::PathBuf;

use burn_rl::{Policy as _, PolicyLearner};
use common::{cube, devices, small, step, values};
use rldp_sac::{
    ActorObjective, AgentReduction, AgentRng, Observation, Policy, PolicyContents, Sac, SacConfig,
    SacError, SacTrainer, TensorMap, Transition,
};

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("rldp-sac-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn parameters(agent: &Sac) -> TensorMap {
    let mut map = TensorMap::default();
    agent.learner().export_actor(&mut map).unwrap();
    agent.learner().export_critics(&mut map).unwrap();
    map
}

fn run(agent: &mut Sac, agents: usize, steps: std::ops::Range<u64>) {
    for index in steps {
        step(agent, agents, index);
        agent.learn().unwrap();
    }
}

#[test]
fn an_interrupted_run_equals_the_uninterrupted_one() {
    let everything = small()
        .with_horizon(3)
        .with_layer_norm(true)
        .with_dropout(0.1)
        .with_critics(4, 2, ActorObjective::Mean)
        .with_actor_period(2)
        .with_updates_per_step(2)
        .with_replay_capacity(15)
        .with_normalize_observations(true)
        .with_normalize_rewards(true);
    for (name, device) in devices() {
        for (case, (config, agents)) in [(small(), 1), (everything.clone(), 3)]
            .into_iter()
            .enumerate()
        {
            let folder = Folder::new(&format!("resume-{name}-{case}"));
            let mut straight = Sac::new(config, 2, 2, 5, &device).unwrap();
            run(&mut straight, agents, 0..23);
            straight.save(folder.0.join("middle")).unwrap();
            run(&mut straight, agents, 23..40);

            let mut resumed = Sac::load(folder.0.join("middle"), &device).unwrap();
            run(&mut resumed, agents, 23..40);
            straight.save(folder.0.join("straight")).unwrap();
            resumed.save(folder.0.join("resumed")).unwrap();
            let read = |name: &str| std::fs::read(folder.0.join(name)).unwrap();
            assert!(read("straight") == read("resumed"), "{name}, case {case}");
            assert!(read("straight") != read("middle"));
            let left = std::fs::read_dir(&folder.0).unwrap().count();
            assert_eq!(left, 3, "no temporary file stays behind");
        }
    }
}

#[test]
fn damaged_and_foreign_files_are_refused() {
    let (_, device) = devices().remove(0);
    let folder = Folder::new("damaged");
    let path = folder.0.join("checkpoint");
    assert!(matches!(
        Sac::load(&path, &device),
        Err(SacError::Io { .. })
    ));
    let mut agent = Sac::new(small(), 2, 1, 5, &device).unwrap();
    run(&mut agent, 1, 0..6);
    agent.save(&path).unwrap();
    assert!(
        matches!(Policy::load(&path, &device), Err(SacError::Format { .. })),
        "a checkpoint is not a policy"
    );
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert!(matches!(
        Sac::load(&path, &device),
        Err(SacError::Format { .. })
    ));
}

#[test]
fn a_policy_file_serves_any_number_of_agents() {
    for (name, device) in devices() {
        let folder = Folder::new(&format!("policy-{name}"));
        let path = folder.0.join("sac_policy.safetensors");
        let config = small().with_normalize_observations(true);
        let mut teacher = Sac::new(config.clone(), 2, 2, 1, &device).unwrap();
        run(&mut teacher, 2, 0..12);
        let description = serde_json::json!({ "features": ["a", "b"] });
        teacher
            .save_policy(&path, PolicyContents::ActorAndCritics, description.clone())
            .unwrap();

        let rows: Observation = (0..5)
            .map(|i| vec![i as f32 / 5.0, -0.3])
            .collect::<Vec<_>>()
            .into();
        let expected = teacher.act(&rows, false).unwrap();
        let policy = Policy::load(&path, &device).unwrap();
        assert_eq!(policy.act(&rows, None).unwrap(), expected);
        assert_eq!(policy.description(), &description);
        let mut pupil = Sac::new(config, 2, 2, 99, &device).unwrap();
        assert_ne!(pupil.act(&rows, false).unwrap(), expected);
        assert_eq!(pupil.load_policy(&path).unwrap(), description);
        assert_eq!(pupil.act(&rows, false).unwrap(), expected);
        let bytes = std::fs::read(&path).unwrap();
        pupil.load_policy_bytes(&bytes).unwrap();
        assert_eq!(pupil.act(&rows, false).unwrap(), expected);
        let mut poisoned = bytes;
        let last = poisoned.len() - 4;
        poisoned[last..].copy_from_slice(&f32::NAN.to_le_bytes());
        let refused = pupil.load_policy_bytes(&poisoned);
        assert!(
            matches!(&refused, Err(SacError::Format { reason, .. }) if reason.contains("NaN")),
            "{refused:?}"
        );
        std::fs::write(&path, &poisoned).unwrap();
        assert!(Policy::load(&path, &device).is_err());
        teacher
            .save_policy(&path, PolicyContents::ActorAndCritics, description.clone())
            .unwrap();
        assert_eq!(parameters(&pupil), parameters(&teacher));
        assert_eq!(pupil.alpha(), teacher.alpha());
        assert!(!pupil.is_warming_up());
        run(&mut pupil, 7, 0..3);
        assert_ne!(
            parameters(&pupil),
            parameters(&teacher),
            "refined from the first step on"
        );

        let mut other = Sac::new(small(), 2, 2, 1, &device).unwrap();
        let refused = other.load_policy(&path);
        assert!(
            matches!(
                refused,
                Err(SacError::Config {
                    name: "normalize_observations",
                    ..
                })
            ),
            "{refused:?}"
        );
    }
}

#[test]
fn bad_input_is_refused_with_its_value_and_changes_nothing() {
    let (_, device) = devices().remove(0);
    let folder = Folder::new("refused");
    let mut agent = Sac::new(small(), 2, 1, 5, &device).unwrap();
    run(&mut agent, 2, 0..5);
    agent.save(folder.0.join("before")).unwrap();
    let good = || Transition {
        observation: vec![vec![0.0, 1.0]; 2].into(),
        action: vec![vec![0.5]; 2],
        reward: 1.0,
        next_observation: vec![vec![1.0, 0.0]; 2].into(),
        terminated: false,
        truncated: false,
    };
    let mut bad = good();
    bad.reward = f64::INFINITY;
    let error = agent.observe(bad).unwrap_err();
    assert!(
        matches!(error, SacError::NonFinite { what: "reward", value, .. } if value == f64::INFINITY)
    );
    let mut bad = good();
    bad.next_observation.agents[1][0] = f32::NEG_INFINITY;
    let error = agent.observe(bad).unwrap_err();
    assert!(
        error.to_string().contains("-inf at agent 1, feature 0"),
        "{error}"
    );
    let mut bad = good();
    bad.observation.agents[0][1] = f32::NAN;
    assert!(
        matches!(agent.act(&bad.observation, false), Err(SacError::NonFinite { value, .. }) if value.is_nan())
    );
    assert!(matches!(
        agent.observe(bad),
        Err(SacError::NonFinite {
            what: "observation",
            feature: 1,
            ..
        })
    ));
    let mut bad = good();
    bad.action[1][0] = -1.5;
    assert!(
        matches!(agent.observe(bad), Err(SacError::ActionRange { value, agent: 1, .. }) if value == -1.5)
    );
    let mut bad = good();
    bad.observation.agents.pop();
    assert!(matches!(
        agent.observe(bad),
        Err(SacError::Shape {
            actual: 1,
            expected: 2,
            ..
        })
    ));
    assert!(matches!(
        agent.act(&Observation::default(), true),
        Err(SacError::Shape { .. })
    ));
    agent.save(folder.0.join("after")).unwrap();
    let read = |name: &str| std::fs::read(folder.0.join(name)).unwrap();
    assert!(read("before") == read("after"));
    agent.observe(good()).unwrap();

    let mut fresh = Sac::new(small(), 2, 1, 5, &device).unwrap();
    assert!(matches!(fresh.update(1), Err(SacError::EmptyReplay)));
    for config in [
        small().with_hidden(vec![]),
        small().with_dropout(1.0),
        small().with_discount(f64::NAN),
    ] {
        assert!(matches!(
            Sac::new(config, 2, 1, 0, &device),
            Err(SacError::Config { .. })
        ));
    }
}

#[test]
fn rewards_and_next_states_stay_with_their_actions() {
    let (_, device) = devices().remove(0);
    let mut agent = Sac::new(small(), 1, 1, 5, &device).unwrap();
    for index in 0..6u8 {
        let at = |index: u8| Observation::single(vec![f32::from(index)]);
        agent
            .observe(Transition {
                observation: at(index),
                action: vec![vec![f32::from(index) / 10.0]],
                reward: f64::from(index) * 100.0,
                next_observation: at(index + 1),
                terminated: index == 2,
                truncated: index == 4,
            })
            .unwrap();
    }
    let replay = agent.replay().unwrap();
    assert_eq!(replay.len(), 6);
    for index in 0..6u8 {
        let stored = replay.get(usize::from(index)).unwrap();
        assert_eq!(stored.observation, [f32::from(index)]);
        assert_eq!(
            stored.next_observation,
            [f32::from(index) + 1.0],
            "the next state, not the same one"
        );
        assert_eq!(stored.action, [f32::from(index) / 10.0]);
        assert_eq!(
            stored.reward,
            f32::from(index) * 100.0,
            "the reward of this action"
        );
        assert_eq!(
            stored.discount,
            if index == 2 { 0.0 } else { 0.99 },
            "only a terminal state ends the future"
        );
    }
}

#[test]
fn the_temperature_follows_its_target() {
    for (_, device) in devices() {
        for (target, rises) in [(5.0, true), (-50.0, false)] {
            let mut agent =
                Sac::new(small().with_target_entropy(Some(target)), 2, 1, 5, &device).unwrap();
            let before = agent.alpha();
            run(&mut agent, 1, 0..20);
            assert_eq!(agent.alpha() > before, rises);
            assert!((agent.alpha() - before).abs() > 1e-3);
        }
    }
}

#[test]
fn every_trainable_parameter_is_trained() {
    for (name, device) in devices() {
        let config = small()
            .with_layer_norm(true)
            .with_critics(3, 2, ActorObjective::Minimum);
        let mut agent = Sac::new(config, 2, 2, 5, &device).unwrap();
        let before = parameters(&agent);
        run(&mut agent, 2, 0..8);
        let after = parameters(&agent);
        let mut seen = 0;
        for (tensor, old) in before.iter() {
            let new = after.get(tensor, &old.shape).unwrap();
            let moved = new
                .iter()
                .zip(&old.values)
                .filter(|(new, old)| new != old)
                .count();
            // Rectifiers may be shut for many units; a tensor that stands still has no gradient at all.
            assert!(
                4 * moved > new.len(),
                "{name}: {tensor} moved in {moved} of {} places",
                new.len()
            );
            seen += 1;
        }
        assert_eq!(
            seen,
            8 + 6 * (4 + 4 + 2),
            "actor, three critics and their targets"
        );
    }
}

#[test]
fn agents_share_weights_and_their_order_is_theirs() {
    for (_, device) in devices() {
        let mut agent = Sac::new(small(), 3, 2, 5, &device).unwrap();
        let rows: Vec<Vec<f32>> = (0..4)
            .map(|i| vec![i as f32 * 0.3, -0.2, 1.0 - i as f32 * 0.5])
            .collect();
        let together = agent.act(&rows.clone().into(), false).unwrap();
        for (row, action) in rows.iter().zip(&together) {
            let alone = agent.act(&Observation::single(row.clone()), false).unwrap();
            alone[0]
                .iter()
                .zip(action)
                .for_each(|(a, b)| assert!((a - b).abs() < 1e-6));
        }
        let learner = agent.learner();
        let flat = |rows: &[Vec<f32>]| rows.concat();
        let observations = cube(flat(&rows), [1, 4, 3], &device);
        let actions = cube(flat(&together), [1, 4, 2], &device);
        let joint = values(learner.critics().forward(
            observations.clone(),
            actions,
            &Default::default(),
            AgentReduction::Mean,
        ));
        let mut mean = vec![0.0; 2];
        for (row, action) in rows.iter().zip(&together) {
            let (o, a) = (
                cube(row.clone(), [1, 1, 3], &device),
                cube(action.clone(), [1, 1, 2], &device),
            );
            let alone = values(learner.critics().forward(
                o,
                a,
                &Default::default(),
                AgentReduction::Mean,
            ));
            mean.iter_mut()
                .zip(alone)
                .for_each(|(sum, value)| *sum += value / 4.0);
        }
        joint
            .iter()
            .zip(&mean)
            .for_each(|(a, b)| assert!((a - b).abs() < 1e-6));

        let noise = || cube(AgentRng::new(3).normals(8), [1, 4, 2], &device);
        let distribution = learner.distribution(observations);
        let mean = values(distribution.sample(noise(), AgentReduction::Mean).log_prob)[0];
        let sum = values(distribution.sample(noise(), AgentReduction::Sum).log_prob)[0];
        assert!((4.0 * mean - sum).abs() < 1e-4);
        assert_eq!(SacConfig::default().joint_target_entropy(4, 2), -2.0);
        assert_eq!(
            SacConfig::default()
                .with_joint_log_prob(AgentReduction::Sum)
                .joint_target_entropy(4, 2),
            -8.0
        );
    }
}

/// An agent that is one of its kind weighs as much as all the others together: in values and in log-probabilities, and so in
/// what the actor is moved by.
#[test]
fn balanced_agents_weigh_by_kind() {
    let balanced = AgentReduction::Balanced { solo: 1 };
    for (_, device) in devices() {
        let agent = Sac::new(small(), 3, 2, 5, &device).unwrap();
        let learner = agent.learner();
        let rows: Vec<f32> = (0..12).map(|i| (i as f32).sin()).collect();
        let actions: Vec<f32> = (0..8).map(|i| 0.9 * (i as f32).cos()).collect();
        let of = |reduction, observations: &[f32], actions: &[f32]| {
            let agents = observations.len() / 3;
            let observations = cube(observations.to_vec(), [1, agents, 3], &device);
            let actions = cube(actions.to_vec(), [1, agents, 2], &device);
            let gaussian = learner.distribution(observations.clone());
            let mut found = values(gaussian.log_prob(actions.clone(), reduction));
            let masks = Default::default();
            found.extend(values(learner.critics().forward(
                observations,
                actions,
                &masks,
                reduction,
            )));
            found
        };
        let together = of(balanced, &rows, &actions);
        let others = of(AgentReduction::Mean, &rows[..9], &actions[..6]);
        let alone = of(AgentReduction::Mean, &rows[9..], &actions[6..]);
        for ((together, others), alone) in together.iter().zip(&others).zip(&alone) {
            let expected = 0.5 * (others + alone);
            assert!(
                (together - expected).abs() < 1e-5,
                "{together} is not {expected}"
            );
        }
        // Without others there is nothing to balance.
        assert_eq!(
            of(balanced, &rows[..3], &actions[..2]),
            of(AgentReduction::Mean, &rows[..3], &actions[..2])
        );
    }
}

/// Of 36 agents the last one alone matters: its action is found when it is balanced against the others.
#[test]
fn a_balanced_agent_learns_among_many() {
    let device = burn::tensor::Device::default();
    let config = small()
        .with_random_steps(64)
        .with_discount(0.0)
        .with_learning_rate(3e-3)
        .with_initial_temperature(0.02)
        .with_joint_log_prob(AgentReduction::Balanced { solo: 1 });
    let mut agent = Sac::new(config, 3, 2, 7, &device).unwrap();
    let mut rows = vec![vec![0.5, 0.0, 0.0]; 35];
    rows.push(vec![0.0, 1.0, 0.0]);
    for _ in 0..160 {
        let action = agent.act(&rows.clone().into(), true).unwrap();
        agent
            .observe(Transition {
                observation: rows.clone().into(),
                reward: -f64::from((action[35][0] - 0.6).powi(2)),
                action,
                next_observation: rows.clone().into(),
                terminated: true,
                truncated: false,
            })
            .unwrap();
        agent.learn().unwrap();
    }
    agent.update(200).unwrap();
    let action = agent.act(&rows.into(), false).unwrap();
    assert!((action[35][0] - 0.6).abs() < 0.2, "{}", action[35][0]);
}

#[test]
fn an_initial_deviation_starts_around_zero() {
    for (_, device) in devices() {
        let config = small().with_initial_std(Some(0.1)).with_random_steps(0);
        let mut agent = Sac::new(config, 2, 3, 5, &device).unwrap();
        let observation = Observation::single(vec![0.7, -1.0]);
        assert!(
            agent.act(&observation, false).unwrap()[0]
                .iter()
                .all(|a| a.abs() < 0.02)
        );
        let drawn: Vec<f32> = (0..200)
            .flat_map(|_| agent.act(&observation, true).unwrap().concat())
            .collect();
        let deviation = (drawn.iter().map(|a| a * a).sum::<f32>() / drawn.len() as f32).sqrt();
        // 600 draws: relative standard error 3 %; 20 % is beyond six of them.
        assert!((deviation - 0.1).abs() < 0.02, "{deviation}");
    }
}

#[test]
fn burn_rl_traits_and_buffer_drive_the_same_learner() {
    for (_, device) in devices() {
        let mut agent = Sac::new(small(), 2, 2, 5, &device).unwrap();
        run(&mut agent, 3, 0..20);
        let replay = agent.replay().unwrap();
        let buffer = replay.to_burn_rl(&device);
        assert_eq!(buffer.len(), replay.len());
        let mut trainer = SacTrainer::new(agent.learner().clone(), 0);
        let mut policy = trainer.policy();
        let rows = vec![vec![0.1, 0.2], vec![0.3, -0.4]];
        let observation = || rldp_sac::AgentRows(cube(rows.concat(), [1, 2, 2], &device));
        let (before, contexts) = policy.action(observation(), true);
        assert_eq!(contexts.len(), 1);
        let expected = agent.act(&rows.clone().into(), false).unwrap().concat();
        assert_eq!(values(before.0), expected);
        let output = trainer.train(buffer.sample(16));
        assert!(output.item.unwrap().critic_loss.is_finite());
        policy.update(output.policy);
        assert_ne!(values(policy.action(observation(), true).0.0), expected);
    }
}
