//! What the benches of the training step share: the shapes that `benches/peers/training.py` times too.

mod full;
mod lora;

use std::time::Instant;

use burn::tensor::{Device, Distribution, Tensor};
use rldp_accounting::ledger::{BudgetRecord, Header, LEDGER_VERSION, LedgerWriter};
use rldp_accounting::{Adjacency, PrivacyTarget};
// The binaries' allocator, for everything that links this.
use rldp_examples as _;
use rldp_models::Gpt2Config;
use rldp_optim::StepPlan;

pub use full::FullStep;
pub use lora::LoraStep;

/// Errors of any crate.
pub type Error = Box<dyn std::error::Error>;

/// Tokens of 32 texts: quantiles of the SMS collection's lengths at four characters a token, in a random order.
pub const SMS_LENGTHS: [usize; 32] = [
    12, 34, 16, 12, 41, 8, 10, 8, 28, 26, 15, 14, 31, 18, 40, 10, 11, 42, 11, 36, 6, 38, 8, 42, 24,
    60, 22, 13, 9, 19, 20, 17,
];

/// Tokens of 32 notes on diabetic patients (`examples/assets/templates/diabetes130.jinja`), made in the same way.
pub const NOTE_LENGTHS: [usize; 32] = [
    63, 82, 75, 67, 65, 71, 84, 64, 68, 70, 72, 81, 68, 56, 90, 94, 60, 88, 74, 74, 85, 62, 72, 76,
    82, 80, 78, 86, 77, 70, 79, 66,
];

/// The texts of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Texts {
    /// 128 tokens each.
    Even,
    /// As long as SMS are.
    Sms,
    /// As long as notes on diabetic patients are.
    Notes,
}

/// A GPT-2 shape with its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// 4 layers of width 256, 4 heads, 2,048 tokens; 32 rows.
    Mini,
    /// GPT-2 small; 8 rows.
    Gpt2Small,
}

impl Shape {
    /// Rows of a batch of even texts.
    pub fn rows(self) -> usize {
        match self {
            Self::Mini => 32,
            Self::Gpt2Small => 8,
        }
    }

    /// The model.
    fn config(self) -> Gpt2Config {
        match self {
            Self::Mini => Gpt2Config::new(2048, 128, 4, 256, 4),
            Self::Gpt2Small => Gpt2Config::new(50257, 1024, 12, 768, 12),
        }
    }

    /// The lengths of the batch's texts.
    pub fn lengths(self, texts: Texts) -> Vec<usize> {
        match texts {
            Texts::Even => vec![128; self.rows()],
            Texts::Sms => SMS_LENGTHS.to_vec(),
            Texts::Notes => NOTE_LENGTHS.to_vec(),
        }
    }
}

/// Seconds of the parts of a step.
#[derive(Debug, Clone, Copy, Default)]
pub struct Parts {
    /// Forward and backward.
    pub gradients: f64,
    /// Clipping and summing.
    pub clipping: f64,
    /// The ledger's line, on disk before the release, and the noise.
    pub noise: f64,
    /// The optimizer.
    pub update: f64,
}

impl Parts {
    /// What privacy adds to the gradients and the update: percent of a step of these seconds.
    pub fn privacy_percent(&self, seconds: f64) -> f64 {
        100.0 * (self.clipping + self.noise) / seconds
    }
}

/// Billions of operations a second of Burn's matrix product, the best of some: `[1024, 768]` by `[768, 3072]`.
pub fn product_rate() -> f64 {
    let device = Device::default();
    let random = |rows: usize, columns: usize| {
        let values = Distribution::Uniform(-1.0, 1.0);
        Tensor::<2>::random([rows, columns], values, &device)
    };
    let (left, right) = (random(1024, 768), random(768, 3072));
    let best = (0..30)
        .map(|_| {
            let clock = Instant::now();
            let product = left.clone().matmul(right.clone());
            let seconds = clock.elapsed().as_secs_f64();
            drop(product);
            seconds
        })
        .fold(f64::INFINITY, f64::min);
    2.0 * 1024.0 * 768.0 * 3072.0 / best * 1e-9
}

/// The process's largest resident size so far, from Linux's own account; 0 elsewhere.
pub fn peak_megabytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    let kilobytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<usize>().ok());
    kilobytes.unwrap_or(0) / 1024
}

/// A ledger in a file of its own, as a run writes it.
fn ledger(plan: &StepPlan) -> Result<LedgerWriter, Error> {
    let header = Header {
        version: LEDGER_VERSION,
        created: String::new(),
        unit: "one row".into(),
        adjacency: Adjacency::AddRemove,
        target: PrivacyTarget::new(8.0, 1e-5)?,
        private: true,
        budget: BudgetRecord::Fixed {
            segment: plan.segment(1_000_000)?,
        },
        parameters: Default::default(),
    };
    let nanoseconds = std::time::UNIX_EPOCH.elapsed()?.as_nanos();
    let name = format!("rldp-bench-{}-{nanoseconds}.jsonl", std::process::id());
    Ok(LedgerWriter::create(
        std::env::temp_dir().join(name),
        &header,
    )?)
}

/// Texts of these many tokens to predict, for a model.
fn texts(config: &Gpt2Config, lengths: &[usize]) -> impl Iterator<Item = Vec<u32>> {
    let vocabulary = config.vocabulary;
    let text = move |(row, length): (usize, &usize)| {
        let token = |t| ((row * 31 + t * 7) % vocabulary) as u32;
        (0..=*length).map(token).collect()
    };
    lengths.iter().enumerate().map(text)
}

/// The best and the median of some steps' seconds, after one that warms caches and pages up, and the best one's parts.
///
/// # Errors
/// The step's.
pub fn timed(
    steps: usize,
    mut step: impl FnMut() -> Result<Parts, Error>,
) -> Result<(f64, f64, Parts), Error> {
    step()?;
    let mut taken = Vec::with_capacity(steps.max(1));
    for _ in 0..steps.max(1) {
        let clock = Instant::now();
        let parts = step()?;
        taken.push((clock.elapsed().as_secs_f64(), parts));
    }
    taken.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (best, parts) = taken[0];
    Ok((best, taken[taken.len() / 2].0, parts))
}
