//! `chaos`: kills short private runs at random moments, starves them of disk, tears their ledgers, and checks that nothing is
//! lost and nothing under-counted; see `chaos --help`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use rldp_examples::chaos::campaign::{Plan, campaign, tell};
use rldp_examples::chaos::worker::{Work, work};
use rldp_examples::error::{ExampleError, finish};

/// Kill short private runs at random moments, starve them of disk, tear their ledgers, damage their checkpoints, and check
/// after each fault that the ledger counts at least what was released, that every run resumes to its end, that seeded runs
/// end as if nothing had happened, and that no file is left behind.
#[derive(Parser)]
#[command(name = "chaos", version)]
struct Arguments {
    #[command(flatten)]
    plan: Plan,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Subcommand)]
enum Role {
    /// The run that is killed
    #[command(hide = true)]
    Worker(Work),
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return finish(Err(ExampleError::Usage(error))),
    };
    finish(match &arguments.role {
        Some(Role::Worker(own)) => work(own),
        None => campaign(&arguments.plan).and_then(|figures| {
            if arguments.plan.json {
                let text = serde_json::to_string_pretty(&figures)
                    .map_err(|error| ExampleError::Other(error.to_string()))?;
                println!("{text}");
            } else {
                tell(&figures);
            }
            Ok(())
        }),
    })
}
