//! `compare`: runs a study of controllers, a part at a time, and writes its tables and its page.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use burn::tensor::Device;
use clap::Parser;
use rldp_examples::compare::plan::{Job, jobs};
use rldp_examples::compare::report;
use rldp_examples::compare::run::run;
use rldp_examples::compare::store::Store;
use rldp_examples::compare::study::Study;
use rldp_examples::compare::task::Task;
use rldp_examples::device::{NAMES, device};
use rldp_examples::error::{ExampleError, finish};
use rldp_examples::finetune::clock;

/// Compares controllers over epsilons and seeds on one model and one table.
///
/// A study is a TOML file (examples/assets/studies). Its finished runs are lines of runs.jsonl in the output folder and are never
/// made again; say the same command tomorrow to go on. After each call runs.csv, curves.csv and report.html show what there is.
/// All runs are seeded, so NOT private, and test losses are exact: for data that is public, or whose owners allow it.
#[derive(Parser)]
#[command(name = "compare", version)]
struct Arguments {
    /// The study's file
    #[arg(long, value_name = "FILE")]
    study: PathBuf,
    /// Output folder [default: runs/studies/NAME]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Begin no run that may not end within this many minutes [default: no limit]
    #[arg(long)]
    minutes: Option<f64>,
    /// Make only the k-th of n parts of the runs: 1/2 and 2/2 in two processes share a study
    #[arg(long, value_name = "K/N", default_value = "1/1")]
    shard: String,
    /// Make only runs whose arm has this in its name
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Make at most this many runs
    #[arg(long)]
    runs: Option<usize>,
    /// List the missing runs and stop
    #[arg(long)]
    list: bool,
    /// Device to compute on
    #[arg(long, default_value = NAMES[0])]
    device: String,
}

fn main() -> ExitCode {
    finish(
        Arguments::try_parse()
            .map_err(ExampleError::Usage)
            .and_then(|arguments| compare(&arguments)),
    )
}

/// The k-th of n processes, counted from zero.
fn shard(text: &str) -> Result<(usize, usize), ExampleError> {
    let parts = text
        .split_once('/')
        .and_then(|(k, n)| Some((k.parse::<usize>().ok()?, n.parse::<usize>().ok()?)));
    match parts {
        Some((k, n)) if k >= 1 && k <= n => Ok((k - 1, n)),
        _ => Err(ExampleError::Flag {
            flag: "shard",
            value: text.to_owned(),
            reason: "write K/N with K from 1 to N".to_owned(),
        }),
    }
}

fn compare(arguments: &Arguments) -> Result<(), ExampleError> {
    let begun = Instant::now();
    let (own, shards) = shard(&arguments.shard)?;
    let device = device(&arguments.device)?;
    let study = Study::read(&arguments.study)?;
    let folder = arguments
        .out
        .clone()
        .unwrap_or_else(|| Path::new("runs/studies").join(&study.name));
    let store = Store::open(&folder)?;
    let limit = arguments.minutes.map_or(Duration::MAX, |minutes| {
        Duration::from_secs_f64(60.0 * minutes.max(0.0))
    });
    let (mut private, mut public) = (None, None);
    let mut longest = Duration::ZERO;
    let mut made = 0;
    loop {
        let done = store.read()?;
        let all = jobs(&study, &done).map_err(ExampleError::Other)?;
        let missing: Vec<&Job> = all
            .iter()
            .filter(|job| job.shard(shards) == own)
            .filter(|job| !done.contains_key(&job.key()))
            .filter(|job| {
                arguments
                    .only
                    .as_ref()
                    .is_none_or(|text| job.arm.contains(text))
            })
            .collect();
        if arguments.list {
            for job in &missing {
                println!("{} {}", job.key(), job.cell);
            }
            println!("{} of {} known runs are missing", missing.len(), all.len());
            return Ok(());
        }
        let Some(job) = missing.first() else {
            break;
        };
        if begun.elapsed() + longest > limit || arguments.runs.is_some_and(|most| made >= most) {
            break;
        }
        let task = task(&study, job, &mut private, &mut public, &device)?;
        let started = Instant::now();
        let result = run(job, task, study.curve_every, study.attacks.as_ref())?;
        longest = longest.max(started.elapsed());
        store.append(&result)?;
        made += 1;
        eprintln!(
            "{} left | {} at epsilon {} seed {} {}: perplexity {:.4} -> {:.4}, {:.1} s, controller {:.2} s",
            missing.len() - 1,
            job.arm,
            job.config.epsilon,
            job.seed,
            job.cell,
            result.loss_before.exp(),
            result.perplexity(),
            result.seconds,
            result.controller_seconds
        );
    }
    let done = store.read()?;
    let keys: Vec<String> = jobs(&study, &done)
        .map_err(ExampleError::Other)?
        .iter()
        .map(Job::key)
        .collect();
    let left = keys.iter().filter(|key| !done.contains_key(*key)).count();
    report::write(&study, &done, &keys, &clock::now(), &folder)?;
    println!(
        "{made} runs made, {left} of {} known runs left; {}",
        keys.len(),
        folder.join(report::REPORT_FILE).display()
    );
    Ok(())
}

/// The task of a job, loaded when it is first needed.
fn task<'a>(
    study: &Study,
    job: &Job,
    private: &'a mut Option<Task>,
    public: &'a mut Option<Task>,
    device: &Device,
) -> Result<&'a mut Task, ExampleError> {
    let (slot, settings) = match (&study.public, job.public) {
        (Some(other), true) => (public, &other.task),
        _ => (private, &study.task),
    };
    let loaded = match slot.take() {
        Some(task) => task,
        None => Task::load(settings, device)?,
    };
    Ok(slot.insert(loaded))
}
