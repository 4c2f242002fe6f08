//! What the benches of the training step share: the shapes that `benches/peers/training.py` times too.

use std::time::Instant;

use burn::module::Module;
use burn::optim::{AdamConfig, GradientsAccumulator, GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Distribution, Tensor};
use rldp::trainer::{MicroBatch, TokenUnit, micro_batches};
use rldp_accounting::ledger::{BudgetRecord, Header, LEDGER_VERSION, LedgerWriter};
use rldp_accounting::{Adjacency, PrivacyTarget};
// The binaries' allocator, for everything that links this.
use rldp_examples as _;
use rldp_lora::{
    LoraConfig, adapter_parameters, adapters, add_lora, expand_adapters, freeze_base,
    per_example_gradients, set_adapters,
};
use rldp_models::{CausalLm, Gpt2, Gpt2Config, LanguageModel};
use rldp_optim::{
    Accumulator, DpOptimizer, GroupGradients, Layout, ParameterGroups, ParameterSlot,
    PerExampleGradients, RowMap, SecureRandom, StepPlan,
};

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

/// A training step of LoRA r = 8 on `c_attn` with Adam, private or not, from the trainer's micro-batches.
pub struct LoraStep {
    model: CausalLm,
    batches: Vec<MicroBatch>,
    rows: usize,
    device: Device,
    plan: StepPlan,
    layout: Layout,
    ledger: LedgerWriter,
    steps: u64,
    random: SecureRandom,
    private: DpOptimizer,
    plain: ModuleOptimizer,
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

impl LoraStep {
    /// A model with random weights and a batch of these lengths.
    ///
    /// # Errors
    /// Those of the crates.
    pub fn new(shape: Shape, lengths: &[usize]) -> Result<Self, Error> {
        let device = Device::default();
        let config = match shape {
            Shape::Mini => Gpt2Config::new(2048, 128, 4, 256, 4),
            Shape::Gpt2Small => Gpt2Config::new(50257, 1024, 12, 768, 12),
        };
        let mut model = CausalLm::from(Gpt2::random(&config, 1, &device)?);
        add_lora(&mut model, &LoraConfig::new(8, ["c_attn"]), 1)?;
        let unit = |(row, length): (usize, &usize)| {
            let token = |t| ((row * 31 + t * 7) % config.vocabulary) as u32;
            TokenUnit {
                rows: vec![(0..=*length).map(token).collect()],
            }
        };
        let units: Vec<TokenUnit> = lengths.iter().enumerate().map(unit).collect();
        let batches = micro_batches(&units.iter().collect::<Vec<_>>(), 32, &device)?;
        let mut groups = ParameterGroups::new();
        for adapter in adapter_parameters(&model) {
            let slot = |id, [rows, columns]: [usize; 2]| ParameterSlot {
                id,
                shape: vec![1, rows, columns],
            };
            let slots = vec![
                slot(adapter.a_id, adapter.a_shape),
                slot(adapter.b_id, adapter.b_shape),
            ];
            groups = groups.with(adapter.name, slots);
        }
        let layout = groups.layout();
        let radii = vec![1.0; layout.groups.len()];
        let rows = lengths.len();
        let plan = StepPlan::new(rows as f64 / 1000.0, 1000, 1.0, &radii)?;
        Ok(Self {
            model,
            batches,
            rows,
            device,
            ledger: ledger(&plan)?,
            steps: 0,
            plan,
            layout,
            random: SecureRandom::new()?,
            private: DpOptimizer::new(AdamConfig::new().init(), groups),
            plain: AdamConfig::new().init(),
        })
    }

    /// A private step.
    ///
    /// # Errors
    /// Those of the crates.
    pub fn private(&mut self) -> Result<Parts, Error> {
        let mut parts = Parts::default();
        let mut accumulator = Accumulator::begin(&self.plan, &self.layout)?;
        for batch in &self.batches {
            let clock = Instant::now();
            let rows = batch.unit_of_row.len();
            let expanded = expand_adapters(&self.model, rows)?;
            let mut gradients = expanded.per_example_loss(&batch.batch).sum().backward();
            let groups = per_example_gradients(&expanded, &mut gradients)?
                .into_iter()
                .map(|adapter| {
                    let group = GroupGradients::new(adapter.name);
                    let group = match adapter.a {
                        Some(a) => group.with(a),
                        None => group,
                    };
                    group.with(adapter.b)
                })
                .collect();
            parts.gradients += clock.elapsed().as_secs_f64();
            let clock = Instant::now();
            let gradients = PerExampleGradients::new(groups, RowMap::one_each(rows))?;
            accumulator.add(&gradients, None)?;
            parts.clipping += clock.elapsed().as_secs_f64();
        }
        let clock = Instant::now();
        self.steps += 1;
        self.ledger.append(&self.plan.event(self.steps))?;
        let release = accumulator.release(&mut self.random, &self.device)?;
        parts.noise = clock.elapsed().as_secs_f64();
        let clock = Instant::now();
        let moved = self.private.step(1e-4, adapters(&self.model), &release)?;
        set_adapters(&mut self.model, moved)?;
        parts.update = clock.elapsed().as_secs_f64();
        Ok(parts)
    }

    /// An ordinary step: the gradient of the mean loss, Adam.
    ///
    /// # Errors
    /// Those of the crates.
    pub fn plain(&mut self) -> Result<Parts, Error> {
        let mut parts = Parts::default();
        let mut accumulator = GradientsAccumulator::new();
        let clock = Instant::now();
        let model = self.model.clone().train();
        let model = freeze_base(model);
        let trained = adapters(&model);
        for batch in &self.batches {
            let loss = model.per_example_loss(&batch.batch).sum() / self.rows as f64;
            let gradients = GradientsParams::from_grads(loss.backward(), &trained);
            accumulator.accumulate(&trained, gradients);
        }
        parts.gradients = clock.elapsed().as_secs_f64();
        let clock = Instant::now();
        let moved = self.plain.step(1e-4, trained, accumulator.grads());
        set_adapters(&mut self.model, moved)?;
        parts.update = clock.elapsed().as_secs_f64();
        Ok(parts)
    }
}
