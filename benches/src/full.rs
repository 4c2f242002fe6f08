//! Steps of full-parameter training.

use std::time::Instant;

use burn::module::Module;
use burn::optim::{AdamConfig, GradientsAccumulator, GradientsParams, ModuleOptimizer};
use burn::tensor::Device;
use rldp::full::{apply, parameter_groups, per_example_gradients};
use rldp_accounting::ledger::LedgerWriter;
use rldp_models::{Batch, CausalLm, Gpt2, LanguageModel, Row};
use rldp_optim::{
    Accumulator, DpOptimizer, Grouping, ParameterGroups, PerExampleGradients, RowMap, SecureRandom,
    StepPlan,
};

use crate::{Error, Parts, Shape, ledger, texts};

/// A training step of all parameters with Adam and flat clipping, private or not.
pub struct FullStep {
    /// Always there between steps.
    model: Option<CausalLm>,
    batches: Vec<Batch>,
    rows: usize,
    device: Device,
    plan: StepPlan,
    groups: ParameterGroups,
    ledger: LedgerWriter,
    steps: u64,
    random: SecureRandom,
    private: DpOptimizer,
    plain: ModuleOptimizer,
}

impl FullStep {
    /// A model with random weights and a batch of these lengths, computed `at_a_time` rows at once: small micro-batches keep a
    /// processor's caches warm, private or not.
    ///
    /// # Errors
    /// Those of the crates.
    pub fn new(shape: Shape, lengths: &[usize], at_a_time: usize) -> Result<Self, Error> {
        let device = Device::default();
        let config = shape.config();
        let model = CausalLm::from(Gpt2::random(&config, 1, &device)?);
        let rows: Vec<Row> = texts(&config, lengths).map(Row::new).collect();
        let batches = rows.chunks(at_a_time.max(1));
        let batches = batches.map(|rows| Batch::from_rows(rows, &device));
        let groups = parameter_groups(&model, &Grouping::Flat)?;
        let plan = StepPlan::new(rows.len() as f64 / 1000.0, 1000, 1.0, &[1.0])?;
        Ok(Self {
            model: Some(model),
            batches: batches.collect::<Result<_, _>>()?,
            rows: rows.len(),
            device,
            ledger: ledger(&plan)?,
            steps: 0,
            plan,
            random: SecureRandom::new()?,
            private: DpOptimizer::new(AdamConfig::new().init(), groups.clone()),
            plain: AdamConfig::new().init(),
            groups,
        })
    }

    fn model(&mut self) -> Result<CausalLm, Error> {
        Ok(self.model.take().ok_or("an earlier step failed")?)
    }

    /// A private step.
    ///
    /// # Errors
    /// Those of the crates.
    pub fn private(&mut self) -> Result<Parts, Error> {
        let mut parts = Parts::default();
        let model = self.model()?;
        let mut accumulator = Accumulator::begin(&self.plan, &self.groups.layout())?;
        for batch in &self.batches {
            let clock = Instant::now();
            let (gradients, _) = per_example_gradients(&model, batch, &self.groups)?;
            parts.gradients += clock.elapsed().as_secs_f64();
            let clock = Instant::now();
            let rows = RowMap::one_each(batch.examples());
            accumulator.add(&PerExampleGradients::new(gradients, rows)?, None)?;
            parts.clipping += clock.elapsed().as_secs_f64();
        }
        let clock = Instant::now();
        self.steps += 1;
        self.ledger.append(&self.plan.event(self.steps))?;
        let release = accumulator.release(&mut self.random, &self.device)?;
        parts.noise = clock.elapsed().as_secs_f64();
        let clock = Instant::now();
        self.model = Some(apply(&mut self.private, 1e-4, model, &release)?);
        parts.update = clock.elapsed().as_secs_f64();
        Ok(parts)
    }

    /// An ordinary step: the gradient of the mean loss, Adam.
    ///
    /// # Errors
    /// Those of the crates.
    pub fn plain(&mut self) -> Result<Parts, Error> {
        let mut parts = Parts::default();
        let model = self.model()?.unfreeze().train();
        let mut accumulator = GradientsAccumulator::new();
        let clock = Instant::now();
        for batch in &self.batches {
            let loss = model.per_example_loss(batch).sum() / self.rows as f64;
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            accumulator.accumulate(&model, gradients);
        }
        parts.gradients = clock.elapsed().as_secs_f64();
        let clock = Instant::now();
        self.model = Some(self.plain.step(1e-4, model, accumulator.grads()));
        parts.update = clock.elapsed().as_secs_f64();
        Ok(parts)
    }
}
