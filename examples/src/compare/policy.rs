//! Pre-training of the agent's policy on public and synthetic runs.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use burn::tensor::Device;
use rand::rngs::ChaCha20Rng;
use rand::{RngExt as _, SeedableRng as _};
use rldp::controller::{AgentController, RuleController};
use rldp::trainer::{PUBLIC_VALIDATION, RunSummary, STUDY, TrainerConfig};
use rldp_sac::{PolicyContents, Sac};
use serde::{Deserialize, Serialize};

use super::study::TaskSettings;
use super::task::{Assignment, Rewards, Task};
use crate::error::ExampleError;

/// The agent with its replay and optimizers, to go on from.
pub const AGENT_FILE: &str = "agent.safetensors";
/// One line an episode.
pub const EPISODES_FILE: &str = "episodes.jsonl";
/// The policy.
pub const POLICY_FILE: &str = "policy.safetensors";

/// What a policy is pre-trained on: a TOML file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Curriculum {
    /// Its name.
    pub name: String,
    /// The tasks, drawn with equal chance; all must give the model as many adapters.
    #[serde(rename = "task")]
    pub tasks: Vec<TaskSettings>,
    /// Epsilons are drawn between these, evenly in their logarithm.
    pub epsilon: [f64; 2],
    /// Factors on the learning rate, drawn likewise: a policy must find its way also from a wrong one.
    pub learning_rate_factor: [f64; 2],
    /// Factors on LoRA's alpha, and so on how far a step of the same learning rate goes: the best rate must not be a number that
    /// could be learned by heart.
    #[serde(default = "one")]
    pub lora_alpha_factor: [f64; 2],
    /// Factors on the first clipping norms.
    pub clipping_norm_factor: [f64; 2],
    /// Episodes: runs from their start to their end.
    pub episodes: u64,
    /// Settings of the runs, as in [`TrainerConfig`].
    #[serde(default)]
    pub trainer: TrainerConfig,
}

/// What is known of an episode.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Episode {
    episode: u64,
    task: String,
    epsilon: f64,
    learning_rate: f64,
    lora_alpha: f64,
    clipping_norm: f64,
    seed: u64,
    loss_before: f64,
    loss: f64,
    /// Of the warm-up rule on the same draws.
    rule_loss: f64,
    temperature: f64,
    transitions: u64,
    updates: u64,
    seconds: f64,
}

/// The tasks are public, so rewards are exact validation losses: the noise of released ones would drown most of what there is to
/// learn.
///
/// Runs episodes until they are done or the time is over, and writes the policy after each: what is in `folder` goes on.
///
/// # Errors
/// Files, and those of the runs.
pub fn pretrain(
    curriculum: &Curriculum,
    root: &Path,
    folder: &Path,
    limit: Duration,
    device: &Device,
) -> Result<(), ExampleError> {
    std::fs::create_dir_all(folder).map_err(ExampleError::file(folder))?;
    let begun = Instant::now();
    let mut settings = curriculum.tasks.clone();
    for task in &mut settings {
        for path in [&mut task.model, &mut task.data, &mut task.template]
            .into_iter()
            .flatten()
        {
            *path = root.join(&*path);
        }
    }
    let mut tasks: Vec<Option<Task>> = settings.iter().map(|_| None).collect();
    let agent_path = folder.join(AGENT_FILE);
    let episodes_path = folder.join(EPISODES_FILE);
    let mut agent = match agent_path.exists() {
        true => Some(Sac::load(&agent_path, device).map_err(rldp::RldpError::from)?),
        false => None,
    };
    let mut done = lines(&episodes_path)?;
    while done < curriculum.episodes && begun.elapsed() < limit {
        let started = Instant::now();
        // Every episode's draws depend on its number alone, so that going on is the same as never having stopped.
        let mut random = ChaCha20Rng::seed_from_u64(done);
        let index = random.random_range(0..settings.len());
        let mut config = curriculum.trainer.clone();
        let mut between = |[low, high]: [f64; 2]| low * (high / low).powf(random.random::<f64>());
        config.epsilon = between(curriculum.epsilon);
        config.learning_rate *= between(curriculum.learning_rate_factor);
        config.clipping_norm *= between(curriculum.clipping_norm_factor);
        config.lora_alpha *= between(curriculum.lora_alpha_factor);
        let seed = random.random::<u32>().into();
        if tasks[index].is_none() {
            tasks[index] = Some(Task::load(&settings[index], device)?);
        }
        let Some(task) = &mut tasks[index] else {
            continue;
        };
        // What the rule earns on the same draws, to be taken off the agent's rewards.
        let assignment = Assignment {
            config: &config,
            seed,
            every: config.steps,
            rewards: Rewards::Exact,
            canaries: None,
        };
        let plain = task.run(assignment, |dimensions| {
            let rule = RuleController::new(&dimensions, config.clipping_norm)?;
            Ok(rule.following_descent(config.batch_size))
        })?;
        let baseline: Vec<f64> = plain
            .summary
            .held_out(PUBLIC_VALIDATION)
            .map(|record| record.loss)
            .collect();
        let from = agent.take();
        let steered = task.run(assignment, |dimensions| {
            let mut setup = config.controller_setup(dimensions);
            // Not from the shipped policy, but from another curriculum's if one is named.
            setup.agent.from_scratch = setup.agent.policy.is_none();
            let agent = match from {
                None => AgentController::new(&setup, 1, device)?,
                Some(agent) => AgentController::with_agent(&setup, agent)?,
            };
            Ok(agent.with_baseline(&baseline))
        })?;
        let sac = steered.controller.into_agent();
        let losses: Vec<f64> = steered
            .summary
            .held_out(STUDY)
            .map(|record| record.loss)
            .collect();
        let episode = Episode {
            episode: done,
            task: settings[index].label(),
            epsilon: config.epsilon,
            learning_rate: config.learning_rate,
            lora_alpha: config.lora_alpha,
            clipping_norm: config.clipping_norm,
            seed,
            loss_before: losses.first().copied().unwrap_or(f64::NAN),
            loss: losses.last().copied().unwrap_or(f64::NAN),
            rule_loss: last_study_loss(&plain.summary),
            temperature: sac.alpha(),
            transitions: sac.steps(),
            updates: sac.learner().updates(),
            seconds: started.elapsed().as_secs_f64(),
        };
        keep(&sac, curriculum, &episode, folder)?;
        eprintln!(
            "episode {}: {} at epsilon {:.2}, learning rate {:.4}, alpha {:.2}, loss {:.3} -> {:.4}, the rule's {:.4}, temperature {:.4}, {:.1} s",
            done,
            episode.task,
            episode.epsilon,
            episode.learning_rate,
            episode.lora_alpha,
            episode.loss_before,
            episode.loss,
            episode.rule_loss,
            episode.temperature,
            episode.seconds
        );
        agent = Some(sac);
        done += 1;
    }
    Ok(())
}

fn one() -> [f64; 2] {
    [1.0, 1.0]
}

fn last_study_loss(summary: &RunSummary) -> f64 {
    let last = summary.held_out(STUDY).last();
    last.map_or(f64::NAN, |record| record.loss)
}

/// Writes the policy, the agent, and at last the episode's line: a crash before it repeats the episode, from an agent that may
/// have learned from it once already.
fn keep(
    sac: &Sac,
    curriculum: &Curriculum,
    episode: &Episode,
    folder: &Path,
) -> Result<(), ExampleError> {
    let description = serde_json::json!({
        "trained_by": "pretrain_policy",
        "curriculum": curriculum.name,
        "episodes": episode.episode + 1,
        "tasks": curriculum.tasks.iter().map(TaskSettings::label).collect::<Vec<_>>(),
    });
    let policy: PathBuf = folder.join(POLICY_FILE);
    sac.save_policy(&policy, PolicyContents::ActorAndCritics, description)
        .map_err(rldp::RldpError::from)?;
    sac.save(folder.join(AGENT_FILE))
        .map_err(rldp::RldpError::from)?;
    let path = folder.join(EPISODES_FILE);
    let mut text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(ExampleError::file(&path)(error)),
    };
    text.push_str(
        &serde_json::to_string(episode)
            .map_err(|error| ExampleError::Other(format!("an episode as JSON: {error}")))?,
    );
    text.push('\n');
    let partial = folder.join(format!("{EPISODES_FILE}.tmp"));
    std::fs::write(&partial, text).map_err(ExampleError::file(&partial))?;
    std::fs::rename(&partial, &path).map_err(ExampleError::file(path))
}

fn lines(path: &Path) -> Result<u64, ExampleError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().count() as u64),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(ExampleError::file(path)(error)),
    }
}
