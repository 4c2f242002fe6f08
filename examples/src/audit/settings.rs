//! The flags of `audit`.

use std::path::PathBuf;

use clap::{ArgGroup, Parser};
use rldp::audit::AttackOptions;

fn defaults() -> AttackOptions {
    AttackOptions::default()
}

/// Attack what a finished run of `finetune` released.
///
/// Canaries and mechanism: no private record takes part, the results go into RUN/audit.json and RUN/report.html, and the run's guarantee
/// covers them. People: membership inference on the run's own records. No guarantee covers that; it goes into RUN/audit-private.json
/// and RUN/audit-private.html, which are the data owner's.
#[derive(Clone, Debug, Parser)]
#[command(name = "audit", version, group(ArgGroup::new("what").required(true).args(["run", "table"])))]
pub struct Settings {
    /// Folder of a finished run
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
    /// Print one CSV line for each of these audited run folders instead, from their audit.json
    #[arg(long, value_name = "DIR", num_args = 1..)]
    pub table: Vec<PathBuf>,
    /// With --table: also what was found about people, from audit-private.json
    #[arg(long, requires = "table")]
    pub people_too: bool,
    /// Shadow adapters for the likelihood-ratio attacks: each costs as much as the run; from 4 on they tell something
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub shadows: usize,
    /// Members attacked at most, and others at most; 0 attacks nobody and reads no private record
    #[arg(long, value_name = "N", default_value_t = defaults().most_people)]
    pub people: usize,
    /// Dirac canaries on which the run's steps are taken again, at least 2; 0 for none
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub mechanism_canaries: usize,
    /// Other secrets that each canary is compared with
    #[arg(long, value_name = "N", default_value_t = defaults().exposure_samples)]
    pub exposure_samples: usize,
    /// Texts sampled from each canary's beginning, and from nothing
    #[arg(long, value_name = "N", default_value_t = defaults().generations)]
    pub generations: usize,
    /// Confidence of every interval and lower bound
    #[arg(long, default_value_t = defaults().confidence)]
    pub confidence: f64,
    /// The run's table, if it lies elsewhere now
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// Where to compute [default: where the run did]
    #[arg(long)]
    pub device: Option<String>,
}

impl Settings {
    /// The library's settings.
    #[must_use]
    pub fn options(&self, micro_batch: usize) -> AttackOptions {
        AttackOptions {
            confidence: self.confidence,
            micro_batch,
            most_people: self.people,
            exposure_samples: self.exposure_samples,
            generations: self.generations,
            ..AttackOptions::default()
        }
    }
}
