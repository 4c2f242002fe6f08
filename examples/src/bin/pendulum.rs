//! Soft Actor-Critic on Pendulum-v1: swings a pendulum up and prints a learning curve.
//!
//! The dynamics are those of the public environment; settings default to `configurations[0]` of the reference curve in
//! `crates/sac/tests/fixtures/pendulum_curve.json`, so that the two can be laid side by side.
//!
//! ```text
//! cargo run --release -p rldp-examples --bin pendulum -- --seed 0
//! ```

use std::error::Error;
use std::f64::consts::PI;
use std::time::Instant;

use burn::tensor::Device;
use clap::Parser;
use rldp_sac::{AgentRng, Observation, Sac, SacConfig, Transition};

const EPISODE: u32 = 200;
const MAX_SPEED: f64 = 8.0;
const MAX_TORQUE: f64 = 2.0;
const TIME_STEP: f64 = 0.05;
const GRAVITY: f64 = 10.0;
/// Mean return of stable-baselines3's SAC over three seeds, and of the random policy, from the reference curve.
const REFERENCE: &str =
    "reference: -995 at 2000, -156 at 5000, -118 at 10000 steps; random policy -1215";

#[derive(Parser)]
#[command(about = "Trains Soft Actor-Critic on Pendulum-v1 and prints a learning curve")]
struct Arguments {
    /// Environment steps.
    #[arg(long, default_value_t = 10_000)]
    steps: u32,
    /// Seed of agent and environment.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Steps between evaluations.
    #[arg(long, default_value_t = 1_000)]
    evaluate_every: u32,
    /// Episodes of one evaluation.
    #[arg(long, default_value_t = 10)]
    episodes: u32,
    /// Updates per step.
    #[arg(long, default_value_t = 1)]
    updates: usize,
    /// Where to leave the policy file, if anywhere.
    #[arg(long)]
    policy: Option<std::path::PathBuf>,
}

/// A pole on a hinge, driven by a torque too weak to lift it at once.
struct Pendulum {
    angle: f64,
    speed: f64,
}

impl Pendulum {
    fn start(rng: &mut AgentRng) -> Self {
        Self {
            angle: (2.0 * rng.uniform() - 1.0) * PI,
            speed: 2.0 * rng.uniform() - 1.0,
        }
    }

    fn observation(&self) -> Observation {
        Observation::single(vec![
            self.angle.cos() as f32,
            self.angle.sin() as f32,
            self.speed as f32,
        ])
    }

    /// Applies an action in [-1, 1] and returns the reward.
    fn step(&mut self, action: f32) -> f64 {
        let torque = f64::from(action).clamp(-1.0, 1.0) * MAX_TORQUE;
        let from_upright = (self.angle + PI).rem_euclid(2.0 * PI) - PI;
        let cost = from_upright.powi(2) + 0.1 * self.speed.powi(2) + 0.001 * torque.powi(2);
        let acceleration = 1.5 * GRAVITY * self.angle.sin() + 3.0 * torque;
        self.speed = (self.speed + acceleration * TIME_STEP).clamp(-MAX_SPEED, MAX_SPEED);
        self.angle += self.speed * TIME_STEP;
        -cost
    }
}

/// Mean undiscounted return of the policy's mode; the same starts at every evaluation.
fn evaluate(agent: &mut Sac, episodes: u32) -> Result<f64, Box<dyn Error>> {
    let mut rng = AgentRng::new(1000);
    let mut total = 0.0;
    for _ in 0..episodes {
        let mut pendulum = Pendulum::start(&mut rng);
        for _ in 0..EPISODE {
            let action = agent.act(&pendulum.observation(), false)?;
            total += pendulum.step(action[0][0]);
        }
    }
    Ok(total / f64::from(episodes.max(1)))
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let config = SacConfig::default()
        .with_hidden(vec![64, 64])
        .with_batch_size(64)
        .with_learning_rate(1e-3)
        .with_random_steps(100)
        .with_replay_capacity(50_000)
        .with_updates_per_step(arguments.updates);
    let mut agent = Sac::new(config, 3, 1, arguments.seed, &Device::default())?;
    let mut rng = AgentRng::new(arguments.seed);
    let mut pendulum = Pendulum::start(&mut rng);
    let started = Instant::now();
    println!("{REFERENCE}");
    println!(
        "{:>7} {:>9} {:>12} {:>10}  curve",
        "steps", "return", "temperature", "seconds"
    );
    for step in 1..=arguments.steps {
        let observation = pendulum.observation();
        let action = agent.act(&observation, true)?;
        let reward = pendulum.step(action[0][0]);
        let truncated = step % EPISODE == 0;
        let next_observation = pendulum.observation();
        agent.observe(Transition {
            observation,
            action,
            reward,
            next_observation,
            terminated: false,
            truncated,
        })?;
        if truncated {
            pendulum = Pendulum::start(&mut rng);
        }
        agent.learn()?;
        if step % arguments.evaluate_every == 0 || step == arguments.steps {
            let mean = evaluate(&mut agent, arguments.episodes)?;
            let bar = "#".repeat(((mean + 1600.0) / 40.0).clamp(0.0, 40.0) as usize);
            let seconds = started.elapsed().as_secs_f64();
            println!(
                "{step:>7} {mean:>9.1} {:>12.4} {seconds:>10.1}  {bar}",
                agent.alpha()
            );
        }
    }
    if let Some(path) = arguments.policy {
        let description =
            serde_json::json!({ "environment": "Pendulum-v1", "steps": arguments.steps });
        agent.save_policy(&path, rldp_sac::PolicyContents::Actor, description)?;
        println!("policy in {}", path.display());
    }
    Ok(())
}
