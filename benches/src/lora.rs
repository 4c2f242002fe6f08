//! Steps of LoRA training.

use std::time::Instant;

use burn::module::Module;
use burn::optim::{AdamConfig, GradientsAccumulator, GradientsParams, ModuleOptimizer};
use burn::tensor::Device;
use rldp::trainer::{MicroBatch, TokenUnit, micro_batches, per_unit_gradients};
use rldp_accounting::ledger::LedgerWriter;
use rldp_lora::{LoraConfig, adapter_parameters, adapters, add_lora, freeze_base, set_adapters};
use rldp_models::{Activations, CausalLm, Gpt2, LanguageModel};
use rldp_optim::{
    Accumulator, DpOptimizer, Layout, ParameterGroups, ParameterSlot, SecureRandom, StepPlan,
};

use crate::{Error, Parts, Shape, ledger, texts};

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

impl LoraStep {
    /// A model with random weights and a batch of these lengths.
    ///
    /// # Errors
    /// Those of the crates.
    pub fn new(shape: Shape, lengths: &[usize]) -> Result<Self, Error> {
        let device = Device::default();
        let config = shape.config();
        let mut model = CausalLm::from(Gpt2::random(&config, 1, &device)?);
        add_lora(&mut model, &LoraConfig::new(8, ["c_attn"]), 1)?;
        let unit = |text| TokenUnit { rows: vec![text] };
        let units: Vec<TokenUnit> = texts(&config, lengths).map(unit).collect();
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
            let (gradients, _) = per_unit_gradients(&self.model, batch, Activations::Kept)?;
            parts.gradients += clock.elapsed().as_secs_f64();
            let clock = Instant::now();
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
