//! Policy files: the actor alone, or with its critics, to act with or to start from.

use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::actor::Actor;
use crate::agent::{Sac, to_action_rows};
use crate::error::SacError;
use crate::net::{assign, flatten, host};
use crate::normalize::{RewardScale, RunningNormalizer};
use crate::rng::AgentRng;
use crate::tensors::{self, TensorMap};
use crate::transition::{Observation, flatten_rows};

const KEY: &str = "rldp_sac_policy";
const WHAT: &str = "policy file";
const VERSION: u32 = 1;

/// What a policy file holds besides the actor and its observation normaliser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyContents {
    /// Nothing: enough to act.
    Actor,
    /// Critics, targets, temperature and reward scale too: what further learning should start from, since untrained
    /// critics would first drag a good actor down.
    ActorAndCritics,
}

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    obs_dim: usize,
    act_dim: usize,
    hidden: Vec<usize>,
    normalizer: Option<RunningNormalizer>,
    normalized_limit: f64,
    critics: Option<CriticHeader>,
    description: serde_json::Value,
}

#[derive(Serialize, Deserialize)]
struct CriticHeader {
    alpha: f64,
    reward_scale: RewardScale,
}

/// A frozen policy, for any number of agents.
#[derive(Clone)]
pub struct Policy {
    actor: Actor,
    obs_dim: usize,
    act_dim: usize,
    normalizer: Option<(RunningNormalizer, f64)>,
    description: serde_json::Value,
    device: Device,
}

impl Policy {
    /// Reads a policy file.
    ///
    /// # Errors
    ///
    /// [`SacError::Io`], [`SacError::Format`], or the tensor that does not fit.
    pub fn load(path: impl AsRef<Path>, device: &Device) -> Result<Self, SacError> {
        let (map, header) = read(path.as_ref())?;
        let device = device.clone().without_autodiff();
        let actor = Actor::import(
            &header.hidden,
            header.obs_dim,
            header.act_dim,
            &map,
            &device,
        )?;
        Ok(Self {
            actor: assign(actor.clone(), &flatten(&actor), false),
            obs_dim: header.obs_dim,
            act_dim: header.act_dim,
            normalizer: header
                .normalizer
                .map(|normalizer| (normalizer, header.normalized_limit)),
            description: header.description,
            device,
        })
    }

    /// Observation features of one agent.
    #[must_use]
    pub fn obs_dim(&self) -> usize {
        self.obs_dim
    }

    /// Action dimensions of one agent.
    #[must_use]
    pub fn act_dim(&self) -> usize {
        self.act_dim
    }

    /// What was said about the policy when it was saved.
    #[must_use]
    pub fn description(&self) -> &serde_json::Value {
        &self.description
    }

    /// One action row per agent: the mode, or a draw where a generator is given.
    ///
    /// # Errors
    ///
    /// [`SacError::Shape`] or [`SacError::NonFinite`] for a bad observation.
    pub fn act(
        &self,
        observation: &Observation,
        rng: Option<&mut AgentRng>,
    ) -> Result<Vec<Vec<f32>>, SacError> {
        let agents = observation.agents.len();
        let mut values = flatten_rows(
            "observation",
            "observation features",
            &observation.agents,
            self.obs_dim,
        )?;
        if agents == 0 {
            return Err(SacError::Shape {
                what: "number of agents",
                actual: 0,
                expected: 1,
            });
        }
        if let Some((normalizer, limit)) = &self.normalizer {
            normalizer.apply(&mut values, *limit);
        }
        let input = Tensor::from_data(
            TensorData::new(values, [1, agents, self.obs_dim]),
            &self.device,
        );
        let distribution = self.actor.forward(input);
        let action = match rng {
            None => distribution.mode(),
            Some(rng) => {
                let noise = TensorData::new(
                    rng.normals(agents * self.act_dim),
                    [1, agents, self.act_dim],
                );
                distribution
                    .sample(Tensor::from_data(noise, &self.device), Default::default())
                    .action
            }
        };
        Ok(to_action_rows(&host(action)?, self.act_dim))
    }
}

impl Sac {
    /// Writes a policy file; `description` is free and comes back on loading (say, the names of the features).
    ///
    /// # Errors
    ///
    /// [`SacError::Io`] where it cannot be written, [`SacError::Backend`] where the device fails to hand values over.
    pub fn save_policy(
        &self,
        path: impl AsRef<Path>,
        contents: PolicyContents,
        description: serde_json::Value,
    ) -> Result<(), SacError> {
        let path = path.as_ref();
        let mut map = TensorMap::default();
        self.learner.export_actor(&mut map)?;
        let critics = match contents {
            PolicyContents::Actor => None,
            PolicyContents::ActorAndCritics => {
                self.learner.export_critics(&mut map)?;
                Some(CriticHeader {
                    alpha: self.alpha(),
                    reward_scale: self.reward_scale.clone(),
                })
            }
        };
        let config = self.config();
        let header = Header {
            version: VERSION,
            obs_dim: self.learner.obs_dim(),
            act_dim: self.learner.act_dim(),
            hidden: config.hidden.clone(),
            normalizer: config
                .normalize_observations
                .then(|| self.normalizer.clone()),
            normalized_limit: config.normalized_limit,
            critics,
            description,
        };
        let text = serde_json::to_string(&header)
            .map_err(|error| format_error(path, error.to_string()))?;
        tensors::write(path, &map, KEY, text)
    }

    /// Takes over the actor of a policy file, and its normaliser, critics and temperature where it has them; optimizers
    /// start afresh and exploration no longer begins at random. Returns the file's description.
    ///
    /// # Errors
    ///
    /// [`SacError::Config`] where the file was made under other settings, else as [`Policy::load`]; then the agent is as
    /// it was.
    pub fn load_policy(&mut self, path: impl AsRef<Path>) -> Result<serde_json::Value, SacError> {
        let (map, header) = read(path.as_ref())?;
        self.take_over(&map, header)
    }

    /// As [`Sac::load_policy`], from the bytes of such a file.
    ///
    /// # Errors
    ///
    /// Those of [`Sac::load_policy`].
    pub fn load_policy_bytes(&mut self, bytes: &[u8]) -> Result<serde_json::Value, SacError> {
        let path = Path::new("in memory");
        let (map, header) = checked(tensors::parse(bytes, path, KEY, WHAT)?, path)?;
        self.take_over(&map, header)
    }

    fn take_over(
        &mut self,
        map: &TensorMap,
        header: Header,
    ) -> Result<serde_json::Value, SacError> {
        let config = self.config();
        let differs = |name, value: String| {
            let expected = "the setting that the policy file was made with";
            Err(SacError::Config {
                name,
                value,
                expected,
            })
        };
        if header.hidden != config.hidden {
            return differs("hidden", format!("{:?}", config.hidden));
        }
        if header.normalizer.is_some() != config.normalize_observations {
            return differs(
                "normalize_observations",
                config.normalize_observations.to_string(),
            );
        }
        if header.obs_dim != self.learner.obs_dim() {
            return differs("obs_dim", self.learner.obs_dim().to_string());
        }
        if header.act_dim != self.learner.act_dim() {
            return differs("act_dim", self.learner.act_dim().to_string());
        }
        let mut learner = self.learner.clone();
        learner.import_actor(map)?;
        if let Some(critics) = header.critics {
            learner.import_critics(map)?;
            learner.set_alpha(critics.alpha)?;
            self.reward_scale = critics.reward_scale;
        }
        self.learner = learner;
        if let Some(normalizer) = header.normalizer {
            self.normalizer = normalizer;
        }
        self.pretrained = true;
        Ok(header.description)
    }
}

fn read(path: &Path) -> Result<(TensorMap, Header), SacError> {
    checked(tensors::read(path, KEY, WHAT)?, path)
}

/// The header, if this crate reads it and every weight is a finite number.
fn checked((map, text): (TensorMap, String), path: &Path) -> Result<(TensorMap, Header), SacError> {
    for (name, tensor) in map.iter() {
        if let Some(value) = tensor.values.iter().find(|value| !value.is_finite()) {
            return Err(format_error(path, format!("`{name}` holds a {value}")));
        }
    }
    let header: Header =
        serde_json::from_str(&text).map_err(|error| format_error(path, error.to_string()))?;
    if header.version != VERSION {
        return Err(format_error(
            path,
            format!("version {} (this crate reads {VERSION})", header.version),
        ));
    }
    Ok((map, header))
}

fn format_error(path: &Path, reason: String) -> SacError {
    SacError::Format {
        path: path.to_owned(),
        expected: WHAT,
        reason,
    }
}
