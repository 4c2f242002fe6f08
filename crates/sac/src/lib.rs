#![doc = include_str!("../README.md")]

mod actor;
mod adam;
mod agent;
mod batch;
mod bridge;
mod checkpoint;
mod config;
mod critic;
mod error;
mod learner;
mod net;
mod normalize;
mod nstep;
mod policy;
mod replay;
mod rng;
mod tensors;
mod transition;

pub use actor::{Actor, Gaussian, LOG_STD_RANGE, Sample};
pub use agent::Sac;
pub use batch::{Batch, Noise, Targets, UpdateReport};
pub use bridge::{AgentRows, SacPolicy, SacPolicyState, SacTrainer};
pub use config::{ActorObjective, AgentReduction, SacConfig};
pub use critic::{Critics, DropoutMasks};
pub use error::SacError;
pub use learner::Learner;
pub use normalize::{RewardScale, RunningNormalizer};
pub use nstep::StepAccumulator;
pub use policy::{Policy, PolicyContents};
pub use replay::{ReplayBuffer, ReplayShape, StoredTransition};
pub use rng::{AgentRng, RngState};
pub use tensors::{HostTensor, TensorMap};
pub use transition::{Observation, Transition};
