//! Checkpoints of everything: a run continued from one is, bit for bit, the run that was never interrupted.

use std::path::Path;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use crate::agent::Sac;
use crate::config::SacConfig;
use crate::error::SacError;
use crate::learner::{Learner, LearnerState};
use crate::normalize::{RewardScale, RunningNormalizer};
use crate::nstep::StepAccumulator;
use crate::replay::{ReplayBuffer, ReplayState};
use crate::rng::{AgentRng, RngState};
use crate::tensors::{self, TensorMap};

const KEY: &str = "rldp_sac_checkpoint";
const WHAT: &str = "checkpoint of an agent";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    config: SacConfig,
    obs_dim: usize,
    act_dim: usize,
    learner: LearnerState,
    replay: Option<ReplayState>,
    accumulator: StepAccumulator,
    normalizer: RunningNormalizer,
    reward_scale: RewardScale,
    explore_rng: RngState,
    learn_rng: RngState,
    steps: u64,
    pretrained: bool,
}

impl Sac {
    /// Writes networks, targets, optimizers, temperature, replay, unfinished n-step sums, normalisers and random state
    /// into one safetensors file.
    ///
    /// # Guarantee
    ///
    /// The file appears whole or not at all, and [`load`](Self::load) gives an agent whose further acts and updates equal
    /// this one's bit for bit on the same device.
    ///
    /// # Errors
    ///
    /// [`SacError::Io`] where it cannot be written, [`SacError::Backend`] where the device fails to hand values over.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), SacError> {
        let path = path.as_ref();
        let mut map = TensorMap::default();
        let learner = self.learner.export(&mut map)?;
        let header = Header {
            version: VERSION,
            config: self.config().clone(),
            obs_dim: self.learner.obs_dim(),
            act_dim: self.learner.act_dim(),
            learner,
            replay: self.replay.as_ref().map(|replay| replay.export(&mut map)),
            accumulator: self.accumulator.clone(),
            normalizer: self.normalizer.clone(),
            reward_scale: self.reward_scale.clone(),
            explore_rng: self.explore_rng.state(),
            learn_rng: self.learn_rng.state(),
            steps: self.steps,
            pretrained: self.pretrained,
        };
        let text = serde_json::to_string(&header)
            .map_err(|error| format_error(path, error.to_string()))?;
        tensors::write(path, &map, KEY, text)
    }

    /// Reads what [`save`](Self::save) wrote.
    ///
    /// # Errors
    ///
    /// [`SacError::Io`], [`SacError::Format`], or the tensor that does not fit.
    pub fn load(path: impl AsRef<Path>, device: &Device) -> Result<Self, SacError> {
        let path = path.as_ref();
        let (map, text) = tensors::read(path, KEY, WHAT)?;
        let header: Header =
            serde_json::from_str(&text).map_err(|error| format_error(path, error.to_string()))?;
        if header.version != VERSION {
            return Err(format_error(
                path,
                format!("version {} (this crate reads {VERSION})", header.version),
            ));
        }
        let rng = |state: &RngState| {
            AgentRng::from_state(state)
                .ok_or_else(|| format_error(path, "damaged random state".to_owned()))
        };
        Ok(Self {
            learner: Learner::restore(
                header.config,
                header.obs_dim,
                header.act_dim,
                header.learner,
                &map,
                device,
            )?,
            replay: header
                .replay
                .map(|state| ReplayBuffer::restore(&state, &map))
                .transpose()?,
            accumulator: header.accumulator,
            normalizer: header.normalizer,
            reward_scale: header.reward_scale,
            explore_rng: rng(&header.explore_rng)?,
            learn_rng: rng(&header.learn_rng)?,
            steps: header.steps,
            pretrained: header.pretrained,
        })
    }
}

fn format_error(path: &Path, reason: String) -> SacError {
    SacError::Format {
        path: path.to_owned(),
        expected: WHAT,
        reason,
    }
}
