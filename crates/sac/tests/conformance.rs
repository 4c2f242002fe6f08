//! One and three updates against references computed in float64 and cross-checked against stable-baselines3.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;

use burn::tensor::{Device, Tensor, TensorData};
use common::{cube, devices, values};
use rldp_sac::{
    AgentReduction, AgentRng, Batch, DropoutMasks, Learner, Noise, Sac, SacConfig, TensorMap,
};
use safetensors::SafeTensors;
use serde_json::Value;

const VALUE_TOLERANCE: f64 = 1e-5;
const PARAMETER_TOLERANCE: f64 = 1e-6;

type Golden = BTreeMap<String, (Vec<usize>, Vec<f64>)>;

fn folder() -> PathBuf {
    match std::env::var_os("RLDP_GOLDENS") {
        Some(root) => PathBuf::from(root).join("sac"),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures"),
    }
}

fn golden(name: &str) -> Golden {
    let bytes = std::fs::read(folder().join(name)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let read = |data: &[u8]| {
        data.chunks(8)
            .map(|c| f64::from_le_bytes(c.try_into().unwrap()))
            .collect()
    };
    file.tensors()
        .into_iter()
        .map(|(name, view)| (name, (view.shape().to_vec(), read(view.data()))))
        .collect()
}

struct Fixture {
    inputs: Golden,
    outputs: Golden,
    json: Value,
    device: Device,
    checked: usize,
    worst: f64,
}

impl Fixture {
    fn new(device: &Device) -> Self {
        let json = std::fs::read_to_string(folder().join("sac_step.json")).unwrap();
        Self {
            inputs: golden("inputs.safetensors"),
            outputs: golden("outputs.safetensors"),
            json: serde_json::from_str(&json).unwrap(),
            device: device.clone(),
            checked: 0,
            worst: 0.0,
        }
    }

    fn number(&self, name: &str) -> f64 {
        self.json["config"][name].as_f64().unwrap()
    }

    fn size(&self, name: &str) -> usize {
        self.number(name) as usize
    }

    fn learner(&self) -> Learner {
        self.initialise(
            Learner::new(
                self.config(),
                self.size("O"),
                self.size("A"),
                &mut AgentRng::new(0),
                &self.device,
            )
            .unwrap(),
        )
    }

    fn config(&self) -> SacConfig {
        let hidden = vec![self.size("H"); self.size("hidden_layers")];
        SacConfig::default()
            .with_hidden(hidden)
            .with_learning_rate(self.number("lr"))
            .with_discount(self.number("gamma"))
            .with_target_rate(self.number("tau"))
            .with_target_entropy(Some(self.number("target_entropy")))
    }

    fn initialise(&self, mut learner: Learner) -> Learner {
        let mut map = TensorMap::default();
        for (name, (shape, values)) in &self.inputs {
            if let Some(name) = name.strip_prefix("init/") {
                map.insert(
                    name,
                    shape.clone(),
                    values.iter().map(|&v| v as f32).collect(),
                );
            }
        }
        learner.import_actor(&map).unwrap();
        learner.import_critics(&map).unwrap();
        learner.set_alpha(self.number("log_alpha").exp()).unwrap();
        learner
    }

    fn input(&self, name: &str) -> Vec<f32> {
        self.inputs[&format!("batch/{name}")]
            .1
            .iter()
            .map(|&v| v as f32)
            .collect()
    }

    fn rows(&self, name: &str, width: usize) -> Tensor<3> {
        cube(self.input(name), [self.size("B"), 1, width], &self.device)
    }

    fn batch(&self) -> Batch {
        let (size, gamma) = (self.size("B"), self.number("gamma"));
        let discounts = self
            .input("done")
            .iter()
            .map(|&done| (gamma * f64::from(1.0 - done)) as f32)
            .collect();
        let line =
            |values: Vec<f32>| Tensor::from_data(TensorData::new(values, [size]), &self.device);
        Batch {
            observations: self.rows("obs", self.size("O")),
            actions: self.rows("act", self.size("A")),
            next_observations: self.rows("next_obs", self.size("O")),
            rewards: line(self.input("rew")),
            discounts: line(discounts),
        }
    }

    fn noise(&self) -> Noise {
        Noise {
            current: self.rows("noise_obs", self.size("A")),
            next: self.rows("noise_next", self.size("A")),
        }
    }

    fn compare(&mut self, name: &str, expected: &[f64], actual: &[f32], tolerance: f64) {
        assert_eq!(actual.len(), expected.len(), "{name}");
        for (actual, expected) in actual.iter().zip(expected) {
            let error = (f64::from(*actual) - expected).abs();
            assert!(
                error <= tolerance * expected.abs().max(1.0),
                "{name}: {actual} against {expected}"
            );
            self.worst = self.worst.max(error / tolerance);
            self.checked += 1;
        }
    }

    fn check(&mut self, name: &str, actual: &[f32], tolerance: f64) {
        let expected = self.outputs[name].1.clone();
        self.compare(name, &expected, actual, tolerance);
    }

    fn check_number(&mut self, name: &str, expected: f64, actual: f64) {
        self.compare(name, &[expected], &[actual as f32], VALUE_TOLERANCE);
    }

    fn check_parameters(&mut self, prefix: &str, learner: &Learner) {
        let mut map = TensorMap::default();
        learner.export_actor(&mut map).unwrap();
        learner.export_critics(&mut map).unwrap();
        let names: Vec<String> = self
            .outputs
            .keys()
            .filter(|n| n.starts_with(prefix))
            .cloned()
            .collect();
        assert!(names.len() > 10);
        for name in names {
            let local = name.strip_prefix(prefix).unwrap();
            let actual = match local {
                "log_alpha" => vec![learner.alpha().ln() as f32],
                _ => map.get(local, &self.outputs[&name].0).unwrap().to_vec(),
            };
            self.check(&name, &actual, PARAMETER_TOLERANCE);
        }
    }
}

#[test]
fn values_at_the_initial_parameters() {
    for (name, device) in devices() {
        let mut fixture = Fixture::new(&device);
        let learner = fixture.learner();
        let (batch, noise) = (fixture.batch(), fixture.noise());
        let distribution = learner.distribution(batch.observations.clone());
        let sample = distribution.sample(noise.current, AgentReduction::Mean);
        fixture.check(
            "values/mu",
            &values(distribution.mean.clone()),
            VALUE_TOLERANCE,
        );
        fixture.check(
            "values/log_std",
            &values(distribution.log_std.clone()),
            VALUE_TOLERANCE,
        );
        fixture.check("values/pre_tanh", &values(sample.pre_tanh), VALUE_TOLERANCE);
        fixture.check(
            "values/action",
            &values(sample.action.clone()),
            VALUE_TOLERANCE,
        );
        fixture.check("values/log_prob", &values(sample.log_prob), VALUE_TOLERANCE);
        let of_batch = distribution.log_prob(batch.actions.clone(), AgentReduction::Mean);
        fixture.check(
            "values/log_prob_of_batch_act",
            &values(of_batch),
            VALUE_TOLERANCE,
        );

        let next = learner.distribution(batch.next_observations.clone());
        fixture.check("values/next_mu", &values(next.mean), VALUE_TOLERANCE);
        fixture.check(
            "values/next_log_std",
            &values(next.log_std),
            VALUE_TOLERANCE,
        );
        let targets = learner.targets(&batch, noise.next, learner.alpha(), &mut AgentRng::new(0));
        fixture.check(
            "values/next_action",
            &values(targets.sample.action),
            VALUE_TOLERANCE,
        );
        fixture.check(
            "values/next_log_prob",
            &values(targets.sample.log_prob),
            VALUE_TOLERANCE,
        );
        fixture.check(
            "values/td_target",
            &values(targets.targets),
            VALUE_TOLERANCE,
        );
        let size = fixture.size("B");
        let mut pairs = vec![("q1_target_next", "q2_target_next", targets.values)];
        let masks = DropoutMasks::default();
        let observations = batch.observations.clone();
        pairs.push((
            "q1",
            "q2",
            learner.critics().forward(
                observations.clone(),
                batch.actions,
                &masks,
                AgentReduction::Mean,
            ),
        ));
        pairs.push((
            "q1_pi",
            "q2_pi",
            learner
                .critics()
                .forward(observations, sample.action, &masks, AgentReduction::Mean),
        ));
        for (first, second, tensor) in pairs {
            let both = values(tensor);
            fixture.check(&format!("values/{first}"), &both[..size], VALUE_TOLERANCE);
            fixture.check(&format!("values/{second}"), &both[size..], VALUE_TOLERANCE);
        }
        println!(
            "{name}: {} values checked, worst at {:.3} of its tolerance",
            fixture.checked, fixture.worst
        );
        assert!(fixture.checked > 200);
    }
}

#[test]
fn losses_and_parameters_after_one_and_three_updates() {
    for (name, device) in devices() {
        let mut fixture = Fixture::new(&device);
        let mut learner = fixture.learner();
        let losses = fixture.json["losses_updates_1_to_3"]
            .as_array()
            .unwrap()
            .clone();
        for (update, expected) in losses.iter().enumerate() {
            let (batch, noise) = (fixture.batch(), fixture.noise());
            let report = learner
                .update_with_noise(&batch, noise, &mut AgentRng::new(0))
                .unwrap();
            let loss = |name: &str| expected[name].as_f64().unwrap();
            fixture.check_number("critic_loss", loss("critic_loss"), report.critic_loss);
            fixture.check_number("actor_loss", loss("actor_loss"), report.actor_loss.unwrap());
            fixture.check_number(
                "temperature_loss",
                loss("temperature_loss"),
                report.temperature_loss.unwrap(),
            );
            match update {
                0 => fixture.check_parameters("after1/", &learner),
                2 => fixture.check_parameters("after3/", &learner),
                _ => {}
            }
        }
        println!(
            "{name}: {} values checked, worst at {:.3} of its tolerance",
            fixture.checked, fixture.worst
        );
        assert!(fixture.checked > 4000, "{}", fixture.checked);
    }
}

/// The gradients themselves: Adam's first step is blind to their scale, but its first moment is a tenth of them.
#[test]
fn gradients_at_the_initial_parameters() {
    for (name, device) in devices() {
        let mut fixture = Fixture::new(&device);
        // The references are taken before any step, so the critics must not move before the actor's turn.
        let mut config = fixture.config();
        config.critic_learning_rate = 1e-30;
        let mut agent = Sac::new(config, fixture.size("O"), fixture.size("A"), 0, &device).unwrap();
        *agent.learner_mut() = fixture.initialise(agent.learner().clone());
        let (batch, noise) = (fixture.batch(), fixture.noise());
        agent
            .learner_mut()
            .update_with_noise(&batch, noise, &mut AgentRng::new(0))
            .unwrap();
        let path =
            std::env::temp_dir().join(format!("rldp-sac-{}-{name}-gradients", std::process::id()));
        agent.save(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();

        let actor = ["actor.fc1", "actor.fc2", "actor.mu", "actor.log_std"]
            .map(|layer| vec![layer.to_owned()]);
        let critics =
            ["fc1", "fc2", "out"].map(|layer| vec![format!("q1.{layer}"), format!("q2.{layer}")]);
        for (tensor, loss, layers) in [
            ("adam.actor.moment_1", "actor_loss", actor.as_slice()),
            ("adam.critics.moment_1", "critic_loss", critics.as_slice()),
        ] {
            let mut expected = Vec::new();
            for members in layers {
                for part in ["weight", "bias"] {
                    for member in members {
                        let (shape, values) =
                            &fixture.outputs[&format!("grad/{loss}/{member}.{part}")];
                        // [out, in] there, [in, out] here.
                        let (out, inputs) = (shape[0], shape.get(1).copied().unwrap_or(1));
                        expected.extend(
                            (0..out * inputs).map(|k| values[(k % out) * inputs + k / out]),
                        );
                    }
                }
            }
            let moments = file.tensor(tensor).unwrap().data().to_vec();
            let moments = moments
                .chunks(4)
                .map(|c| f32::from_le_bytes(c.try_into().unwrap()));
            let actual: Vec<f32> = moments.map(|moment| moment / (1.0 - 0.9f32)).collect();
            fixture.compare(tensor, &expected, &actual, VALUE_TOLERANCE);
        }
        println!(
            "{name}: {} gradients checked, worst at {:.3} of its tolerance",
            fixture.checked, fixture.worst
        );
        assert!(fixture.checked > 1000);
    }
}
