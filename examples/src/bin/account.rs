//! `account`: privacy questions on the command line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use rldp_accounting::curve::{Point, privacy_curve, privacy_curve_svg};
use rldp_accounting::ledger::Ledger;
use rldp_accounting::pld::{PldOptions, accountant};
use rldp_accounting::print::AtLeast;
use rldp_accounting::summary::summary;
use rldp_accounting::{AccountingError, Adjacency, PrivacyTarget, Segment, calibrate};
use rldp_examples::error::{ExampleError, finish};
use serde_json::json;

/// Shown below the help.
const EXAMPLES: &str = "Examples:
  account epsilon --q 0.01 --sigma 1 --steps 10000 --svg curve.svg
  account epsilon --q 0.01 --sigma 1 --steps 1000 --q 0.01 --sigma 2 --steps 500   (two segments)
  account sigma --epsilon 2 --delta 1e-5 --q 0.01 --steps 1000
  account ledger run/ledger.jsonl";

/// Answers privacy questions about DP-SGD: the Poisson-subsampled Gaussian mechanism.
#[derive(Parser)]
#[command(name = "account", version, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    question: Question,
}

#[derive(Subcommand)]
enum Question {
    /// Epsilon of a run, by all accountants side by side
    Epsilon(Epsilon),
    /// The smallest noise multiplier for a budget
    Sigma(Sigma),
    /// The most steps for a budget
    Steps(Steps),
    /// Epsilon of a run's ledger, recomputed from the ledger alone
    Ledger(LedgerFile),
}

/// Which two tables count as neighbours.
#[derive(Clone, Copy, ValueEnum)]
enum Neighbours {
    /// One unit is added or removed
    AddRemove,
    /// One unit's contribution is replaced by zero
    ZeroOut,
    /// One unit is replaced by another; known without sampling only (q = 1)
    ReplaceOne,
}

impl From<Neighbours> for Adjacency {
    fn from(neighbours: Neighbours) -> Self {
        match neighbours {
            Neighbours::AddRemove => Self::AddRemove,
            Neighbours::ZeroOut => Self::ZeroOut,
            Neighbours::ReplaceOne => Self::ReplaceOne,
        }
    }
}

#[derive(Args)]
struct Epsilon {
    /// Sampling rate: probability of a unit to be in a batch; repeat q, sigma and steps together for several segments
    #[arg(long, required = true)]
    q: Vec<f64>,
    /// Noise multiplier: noise standard deviation over clipping norm
    #[arg(long, required = true)]
    sigma: Vec<f64>,
    /// Steps
    #[arg(long, required = true)]
    steps: Vec<u64>,
    /// Delta, a probability
    #[arg(long, default_value_t = 1e-5)]
    delta: f64,
    /// The neighbouring relation
    #[arg(long, value_enum, default_value = "add-remove")]
    adjacency: Neighbours,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Draw the privacy curve (delta over epsilon) into this SVG file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

#[derive(Args)]
struct Budget {
    /// Target epsilon, in nats
    #[arg(long)]
    epsilon: f64,
    /// Target delta, a probability
    #[arg(long, default_value_t = 1e-5)]
    delta: f64,
    /// Sampling rate
    #[arg(long)]
    q: f64,
    /// The neighbouring relation
    #[arg(long, value_enum, default_value = "add-remove")]
    adjacency: Neighbours,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Sigma {
    #[command(flatten)]
    budget: Budget,
    /// Steps
    #[arg(long)]
    steps: u64,
}

#[derive(Args)]
struct Steps {
    #[command(flatten)]
    budget: Budget,
    /// Noise multiplier
    #[arg(long)]
    sigma: f64,
}

#[derive(Args)]
struct LedgerFile {
    /// The ledger of a run: ledger.jsonl
    file: PathBuf,
    /// Delta, a probability [default: the ledger's own]
    #[arg(long)]
    delta: Option<f64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let answer = Arguments::try_parse()
        .map_err(ExampleError::Usage)
        .and_then(|arguments| match arguments.question {
            Question::Epsilon(question) => epsilon(&question),
            Question::Sigma(question) => sigma(&question),
            Question::Steps(question) => steps(&question),
            Question::Ledger(question) => ledger(&question),
        });
    finish(answer)
}

fn epsilon(question: &Epsilon) -> Result<(), ExampleError> {
    let count = question.q.len();
    for (flag, length) in [
        ("sigma", question.sigma.len()),
        ("steps", question.steps.len()),
    ] {
        if length != count {
            return Err(ExampleError::Flag {
                flag,
                value: format!("({length} times)"),
                reason: format!("--q is given {count} times; give all three equally often"),
            });
        }
    }
    let segments = (0..count)
        .map(|index| {
            Segment::new(
                question.q[index],
                question.sigma[index],
                question.steps[index],
            )
        })
        .collect::<Result<Vec<_>, _>>()?;
    let adjacency = question.adjacency.into();
    let answer = summary(&segments, question.delta, adjacency)?;
    if question.json {
        print_json(&json!(answer));
    } else {
        print!("{answer}");
    }
    if let Some(path) = &question.svg {
        let options = PldOptions {
            adjacency,
            ..PldOptions::default()
        };
        let pld = accountant(&segments, options)?;
        let epsilon = pld.epsilon_upper(question.delta)?;
        let points = privacy_curve(&pld, 1.5 * epsilon.max(0.1), 120)?;
        let mark = Point {
            epsilon,
            delta: question.delta,
        };
        let picture = privacy_curve_svg(
            &format!("privacy curve, {adjacency} adjacency"),
            &[("certified upper bound (PLD)", &points)],
            Some(mark),
        );
        std::fs::write(path, picture).map_err(ExampleError::file(path))?;
    }
    Ok(())
}

fn sigma(question: &Sigma) -> Result<(), ExampleError> {
    let Budget {
        epsilon,
        delta,
        q,
        adjacency,
        json,
    } = question.budget;
    let adjacency = Adjacency::from(adjacency);
    let target = PrivacyTarget::new(epsilon, delta)?;
    let noise_multiplier =
        calibrate::noise_multiplier(&target, q, question.steps)? / noise_factor(adjacency, q)?;
    let options = PldOptions {
        adjacency,
        ..PldOptions::default()
    };
    let run = [Segment::new(q, noise_multiplier, question.steps)?];
    let achieved = accountant(&run, options)?.epsilon_upper(delta)?;
    if json {
        print_json(&json!({
            "noise_multiplier": noise_multiplier,
            "epsilon_upper": achieved,
            "delta": delta,
            "adjacency": adjacency,
        }));
    } else {
        println!(
            "noise multiplier {:.9} (its epsilon is at most {:.6} at delta {delta:e})",
            AtLeast(noise_multiplier),
            AtLeast(achieved)
        );
    }
    Ok(())
}

fn steps(question: &Steps) -> Result<(), ExampleError> {
    let Budget {
        epsilon,
        delta,
        q,
        adjacency,
        json,
    } = question.budget;
    let adjacency = Adjacency::from(adjacency);
    let target = PrivacyTarget::new(epsilon, delta)?;
    let sigma = question.sigma * noise_factor(adjacency, q)?;
    let steps = calibrate::max_steps(&target, q, sigma)?;
    if json {
        print_json(&json!({ "steps": steps, "delta": delta, "adjacency": adjacency }));
    } else {
        println!("{steps} steps");
    }
    Ok(())
}

/// Add/remove noise multiplier that is worth one of this adjacency: a power of two, so that no rounding comes in.
fn noise_factor(adjacency: Adjacency, q: f64) -> Result<f64, AccountingError> {
    Ok(adjacency
        .as_add_remove(&Segment::new(q, 1.0, 1)?)?
        .noise_multiplier())
}

fn ledger(question: &LedgerFile) -> Result<(), ExampleError> {
    let ledger = Ledger::read(&question.file)?;
    let delta = question.delta.unwrap_or(ledger.header.target.delta);
    let answer = ledger.epsilon_upper(delta)?;
    if question.json {
        print_json(&json!(answer));
        return Ok(());
    }
    println!(
        "unit: {}; adjacency: {:?}; delta {delta:e}",
        ledger.header.unit, ledger.header.adjacency
    );
    println!(
        "training: epsilon at most {:.6} ({}, {} steps played{})",
        AtLeast(answer.training.guarantee),
        answer.training.method,
        answer.training.steps,
        answer
            .training
            .played
            .map_or_else(String::new, |played| format!(
                ", which alone cost {:.6}",
                AtLeast(played)
            ))
    );
    for part in &answer.parts {
        println!(
            "{}: epsilon at most {:.6} ({} queries)",
            part.part,
            AtLeast(part.epsilon),
            part.queries
        );
    }
    println!(
        "the run: epsilon at most {:.6}, the largest of its disjoint parts",
        AtLeast(answer.overall)
    );
    if answer.torn {
        println!("the last line is torn: its step is counted as released");
    }
    if !answer.private {
        println!("NOT PRIVATE: this run's randomness came from a seed");
    }
    Ok(())
}

fn print_json(value: &serde_json::Value) {
    println!("{value:#}");
}
