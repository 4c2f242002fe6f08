//! Many short runs, each with several faults.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use rand::rngs::ChaCha20Rng;
use rand::{RngExt as _, SeedableRng as _};
use rldp::budget::BudgetKind;
use rldp::controller::ControllerKind;
use rldp::trainer::LEDGER_FILE;
use serde::Serialize;

use super::check;
use super::faults::{Ended, Moment, SmallDisk, count_lines, damage, kill, run, tear};
use super::worker::Work;
use crate::error::ExampleError;

/// How large a campaign is.
#[derive(Clone, Debug, Args)]
pub struct Plan {
    /// Kills to make, at least
    #[arg(long, default_value_t = 200)]
    pub kills: u64,
    /// Seed of the faults (their exact moments depend on the machine)
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Do not try to mount a small file system; write failures then come from file-size limits alone
    #[arg(long)]
    pub no_mount: bool,
    /// Print the figures as JSON
    #[arg(long)]
    pub json: bool,
}

/// What a campaign did and found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figures {
    /// Runs brought to their end.
    pub runs: u64,
    /// Of them, runs over all parameters.
    pub full_runs: u64,
    /// Seeded runs, equal to the uninterrupted run byte for byte.
    pub seeded_identical: u64,
    /// Processes killed while they worked.
    pub kills: u64,
    /// Kills that came before the ledger's first line.
    pub kills_before_ledger: u64,
    /// Kills after which the ledger held an event whose release had not happened, or not been witnessed.
    pub kills_between_ledger_and_use: u64,
    /// Writes that failed since a file had reached its size limit.
    pub size_limits: u64,
    /// Writes that failed since the file system was full.
    pub full_disks: u64,
    /// Of the failed writes, those of each file.
    pub failed_writes: BTreeMap<String, u64>,
    /// Ledgers whose last line was torn.
    pub torn_lines: u64,
    /// Newest checkpoints that were damaged.
    pub damaged_checkpoints: u64,
    /// Processes that went on with a run.
    pub resumptions: u64,
    /// Comparisons of ledger and witness, each with epsilon counted >= epsilon released.
    pub comparisons: u64,
    /// Largest excess of the epsilon counted over the epsilon released.
    pub largest_excess: f64,
    /// Seconds.
    pub seconds: f64,
}

/// Seed, budget, controller, and whether all parameters are trained.
const KINDS: [(Option<u64>, BudgetKind, ControllerKind, bool); 8] = [
    (Some(5), BudgetKind::Fixed, ControllerKind::Sac, false),
    (None, BudgetKind::Fixed, ControllerKind::Sac, false),
    (Some(6), BudgetKind::Deck, ControllerKind::Random, false),
    (None, BudgetKind::Deck, ControllerKind::Random, false),
    (Some(7), BudgetKind::Filter, ControllerKind::Rule, false),
    (None, BudgetKind::Filter, ControllerKind::Rule, false),
    (Some(8), BudgetKind::Fixed, ControllerKind::Constant, true),
    (None, BudgetKind::Fixed, ControllerKind::Constant, true),
];
/// Size of the small disk once it is no longer full, in KiB.
const ROOM: u64 = 65_536;

/// Runs the campaign in a temporary folder.
///
/// # Errors
/// The first thing that does not hold, with the run it was found in.
pub fn campaign(plan: &Plan) -> Result<Figures, ExampleError> {
    let temporary = tempfile::tempdir().map_err(ExampleError::file(std::env::temp_dir()))?;
    let mut random = ChaCha20Rng::seed_from_u64(plan.seed);
    let mut figures = Figures::default();
    let begun = Instant::now();
    let mut baselines: Vec<Option<(PathBuf, Duration, usize)>> = vec![None; KINDS.len()];
    let mut number = 0;
    while figures.kills < plan.kills {
        let kind = number % KINDS.len();
        let (seed, budget, controller, full) = KINDS[kind];
        let home = temporary.path().join(number.to_string());
        number += 1;
        let work = |home: &Path, checkpoint_every| Work {
            folder: home.join("run"),
            witness: home.join("witness"),
            seed,
            budget,
            controller,
            full,
            checkpoint_every,
        };
        let (uninterrupted, time, lines) = match &baselines[kind] {
            Some(known) => known.clone(),
            None => {
                let home = temporary.path().join(format!("whole-{kind}"));
                std::fs::create_dir_all(&home).map_err(ExampleError::file(&home))?;
                let whole = work(&home, 1);
                let begun = Instant::now();
                finished(&run(&whole, None)?)?;
                check::compare(&whole.folder, &whole.witness)?;
                check::clean(&whole.folder)?;
                let lines = count_lines(&whole.folder.join(LEDGER_FILE));
                let known = (whole.folder, begun.elapsed(), lines);
                baselines[kind] = Some(known.clone());
                known
            }
        };
        std::fs::create_dir_all(&home).map_err(ExampleError::file(&home))?;
        let work = work(&home, [1, 1, 3][random.random_range(0..3)]);
        let mut victim = Victim {
            work: &work,
            uninterrupted: &uninterrupted,
            time,
            lines,
            plan,
            random: &mut random,
            figures: &mut figures,
        };
        victim
            .torment()
            .map_err(|error| ExampleError::Other(format!("run {number} ({work:?}): {error}")))?;
        figures.runs += 1;
        figures.full_runs += u64::from(full);
        eprintln!(
            "{} runs, {} kills, {} write failures, {:.0} s",
            figures.runs,
            figures.kills,
            figures.size_limits + figures.full_disks,
            begun.elapsed().as_secs_f64()
        );
        std::fs::remove_dir_all(&home).map_err(ExampleError::file(&home))?;
    }
    figures.seconds = begun.elapsed().as_secs_f64();
    Ok(figures)
}

/// A run under attack.
struct Victim<'a> {
    work: &'a Work,
    uninterrupted: &'a Path,
    /// What the uninterrupted run took, and its ledger's lines.
    time: Duration,
    lines: usize,
    plan: &'a Plan,
    random: &'a mut ChaCha20Rng,
    figures: &'a mut Figures,
}

impl Victim<'_> {
    /// Several faults, then the end.
    fn torment(&mut self) -> Result<(), ExampleError> {
        let mut disk = None;
        if !self.plan.no_mount && self.random.random_bool(0.3) {
            let kib = self.random.random_range(16..400);
            disk = SmallDisk::mount(&self.work.folder, kib);
        }
        if let Some(disk) = &disk {
            let ended = run(self.work, None)?;
            if self.failed(&ended, "No space left on device")? {
                self.figures.full_disks += 1;
            }
            self.compare()?;
            disk.grow(ROOM)?;
        }
        let rounds = self.random.random_range(2..7);
        for _ in 0..rounds {
            if self.random.random_bool(0.2) {
                let blocks = self.random.random_range(1..60);
                let ended = run(self.work, Some(blocks))?;
                if self.failed(&ended, "File too large")? {
                    self.figures.size_limits += 1;
                }
                self.compare()?;
            }
            let moment = self.moment();
            let ended = kill(self.work, moment)?;
            self.figures.resumptions += 1;
            if let Some(status) = ended.status {
                // It was done before the moment came.
                if !status.success() {
                    return Err(unexpected(&ended));
                }
                break;
            }
            self.figures.kills += 1;
            self.compare()?;
            self.count_moment()?;
            let begun = count_lines(&self.work.folder.join(LEDGER_FILE)) > 1;
            if begun && self.random.random_bool(0.25) {
                tear(&self.work.folder, self.random)?;
                self.figures.torn_lines += 1;
                self.compare()?;
            }
            if self.random.random_bool(0.15) && damage(&self.work.folder, self.random)? {
                self.figures.damaged_checkpoints += 1;
            }
        }
        finished(&run(self.work, None)?)?;
        self.figures.resumptions += 1;
        self.compare()?;
        if self.work.seed.is_none() {
            check::played_out(&self.work.folder)?;
        } else {
            check::same(&self.work.folder, self.uninterrupted)?;
            self.figures.seeded_identical += 1;
        }
        check::clean(&self.work.folder)?;
        drop(disk);
        Ok(())
    }

    /// Mostly near an event of the ledger, where things are in the balance.
    fn moment(&mut self) -> Moment {
        if self.random.random_bool(0.2) {
            return Moment::After(self.time.mul_f64(self.random.random_range(0.0..1.2)));
        }
        let now = count_lines(&self.work.folder.join(LEDGER_FILE));
        let lines = self
            .random
            .random_range(0..self.lines.max(now) + 1)
            .max(now);
        Moment::Lines(
            lines,
            Duration::from_micros(self.random.random_range(0..30_000)),
        )
    }

    fn compare(&mut self) -> Result<(), ExampleError> {
        if let Some(compared) = check::compare(&self.work.folder, &self.work.witness)? {
            self.figures.comparisons += 1;
            let excess = compared.counted - compared.released;
            self.figures.largest_excess = self.figures.largest_excess.max(excess);
        }
        Ok(())
    }

    fn count_moment(&mut self) -> Result<(), ExampleError> {
        let ledger = self.work.folder.join(LEDGER_FILE);
        if count_lines(&ledger) == 0 {
            self.figures.kills_before_ledger += 1;
            return Ok(());
        }
        let last = rldp_accounting::ledger::Ledger::read(&ledger)?.events.pop();
        let seen = check::witnessed(&self.work.witness)?;
        let used = last.is_none_or(|last| {
            matches!(last, rldp_accounting::ledger::Event::Note { .. }) || seen.contains(&last)
        });
        self.figures.kills_between_ledger_and_use += u64::from(!used);
        Ok(())
    }

    /// Whether the worker ended with a write that failed, told by a typed error.
    fn failed(&mut self, ended: &Ended, reason: &str) -> Result<bool, ExampleError> {
        if ended.status.is_some_and(|status| status.success()) {
            return Ok(false);
        }
        let line = ended.stderr.lines().last().unwrap_or_default();
        if ended.status.and_then(|status| status.code()) == Some(70) {
            // The witness itself did not fit.
            *self
                .figures
                .failed_writes
                .entry("witness".to_owned())
                .or_default() += 1;
            return Ok(true);
        }
        if !line.starts_with("error: ")
            || !line.contains(reason)
            || ended.stderr.contains("panicked")
        {
            return Err(unexpected(ended));
        }
        let file = [
            "ledger",
            "metrics",
            "checkpoints",
            "adapter",
            "model",
            "policy",
        ]
        .into_iter()
        .find(|name| line.contains(name))
        .unwrap_or("another file");
        *self
            .figures
            .failed_writes
            .entry(file.to_owned())
            .or_default() += 1;
        Ok(true)
    }
}

fn unexpected(ended: &Ended) -> ExampleError {
    ExampleError::Other(format!(
        "a worker ended with {:?}: {}",
        ended.status, ended.stderr
    ))
}

fn finished(ended: &Ended) -> Result<(), ExampleError> {
    if ended.status.is_some_and(|status| status.success()) {
        Ok(())
    } else {
        Err(unexpected(ended))
    }
}

/// Prints the figures.
pub fn tell(figures: &Figures) {
    println!(
        "{} runs brought to their end in {:.0} s, {} of them over all parameters",
        figures.runs, figures.seconds, figures.full_runs
    );
    println!(
        "  kills                     {} ({} before the ledger began, {} between an event and its use)",
        figures.kills, figures.kills_before_ledger, figures.kills_between_ledger_and_use
    );
    println!(
        "  write failures            {} (file-size limit {}, full file system {}): {:?}",
        figures.size_limits + figures.full_disks,
        figures.size_limits,
        figures.full_disks,
        figures.failed_writes
    );
    println!("  torn ledger lines         {}", figures.torn_lines);
    println!(
        "  damaged checkpoints       {}",
        figures.damaged_checkpoints
    );
    println!("  resumptions               {}", figures.resumptions);
    println!(
        "  ledger against witness    {} comparisons: every release in the ledger, epsilon counted >= epsilon released (largest excess {:.3})",
        figures.comparisons, figures.largest_excess
    );
    println!(
        "  seeded runs               {} of {} identical to the uninterrupted run, byte for byte",
        figures.seeded_identical, figures.seeded_identical
    );
    println!("  files left behind         none");
}
