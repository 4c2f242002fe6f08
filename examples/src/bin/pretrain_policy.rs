//! `pretrain_policy`: trains the agent's policy on public and synthetic runs.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use rldp_examples::compare::policy::{Curriculum, POLICY_FILE, pretrain};
use rldp_examples::device::{NAMES, device};
use rldp_examples::error::{ExampleError, finish};

/// Trains the agent's policy over many cheap seeded runs on public or generated text, one after another.
///
/// The result is policy.safetensors in the output folder, for `finetune --policy`. Say the same command again to go on: the agent,
/// its replay and the number of episodes are kept there. Nothing private may be among the tasks.
#[derive(Parser)]
#[command(name = "pretrain_policy", version)]
struct Arguments {
    /// What to train on: a TOML file (examples/assets/studies/policy.toml)
    #[arg(long, value_name = "FILE")]
    curriculum: PathBuf,
    /// Output folder [default: runs/policies/NAME]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Begin no episode after this many minutes [default: no limit]
    #[arg(long)]
    minutes: Option<f64>,
    /// Device to compute on
    #[arg(long, default_value = NAMES[0])]
    device: String,
}

fn main() -> ExitCode {
    finish(
        Arguments::try_parse()
            .map_err(ExampleError::Usage)
            .and_then(|arguments| run(&arguments)),
    )
}

fn run(arguments: &Arguments) -> Result<(), ExampleError> {
    let path = &arguments.curriculum;
    let text = std::fs::read_to_string(path).map_err(ExampleError::file(path))?;
    let curriculum: Curriculum = toml::from_str(&text).map_err(|error| ExampleError::Toml {
        path: path.clone(),
        message: error.to_string(),
    })?;
    curriculum.trainer.validate()?;
    let folder = arguments
        .out
        .clone()
        .unwrap_or_else(|| Path::new("runs/policies").join(&curriculum.name));
    let limit = arguments.minutes.map_or(Duration::MAX, |minutes| {
        Duration::from_secs_f64(60.0 * minutes.max(0.0))
    });
    let root = path.parent().unwrap_or(Path::new("."));
    pretrain(
        &curriculum,
        root,
        &folder,
        limit,
        &device(&arguments.device)?,
    )?;
    println!("{}", folder.join(POLICY_FILE).display());
    Ok(())
}
