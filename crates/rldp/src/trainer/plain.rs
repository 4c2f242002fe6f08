//! Training without privacy: no clipping, no noise, no guarantee. It shows that an attack works, and trains shadow models for
//! attacks on such runs.

use burn::optim::ModuleOptimizer;
use burn::tensor::{Device, Tensor, TensorData};
use rldp_accounting::ledger::{BudgetRecord, Event, Header, LEDGER_VERSION, LedgerWriter};
use rldp_accounting::{Adjacency, PrivacyTarget};
use rldp_lora::peft::save_adapter;
use rldp_lora::{
    adapter_gradients_params, adapter_parameters, adapters, expand_adapters, per_example_gradients,
    set_adapters,
};
use rldp_models::LanguageModel;
use rldp_optim::{Beta1, PoissonSampler, Random, SecureRandom, SeededRandom, SteeredAdam};
use serde_json::json;

use super::config::TrainerConfig;
use super::examples::{TokenUnit, micro_batches};
use super::held_out::public_loss;
use super::records::{HeldOutRecord, MetricsWriter, Record, Watcher};
use super::run::{ADAPTER_FOLDER, LEDGER_FILE, METRICS_FILE, RunSetup, TrainingData};
use crate::error::RldpError;

/// Adam's customary settings.
const BETA_1: f64 = 0.9;
const ADAM_EPSILON: f64 = 1e-8;

/// Steps of ordinary training on the mean loss of sampled units. **Not private.**
pub struct PlainStep {
    units: Vec<TokenUnit>,
    sampler: PoissonSampler,
    micro_batch: usize,
    optimizer: ModuleOptimizer,
    device: Device,
}

impl PlainStep {
    /// Prepares steps on units that are sampled as a private step samples them.
    ///
    /// # Errors
    /// A batch larger than the number of units.
    pub fn new(
        units: Vec<TokenUnit>,
        config: &TrainerConfig,
        device: &Device,
    ) -> Result<Self, RldpError> {
        let rate = config.batch_size / units.len().max(1) as f64;
        if rate > 1.0 {
            return Err(RldpError::OutOfRange {
                what: "batch size",
                value: config.batch_size,
                range: "(0, units in training]",
            });
        }
        Ok(Self {
            sampler: PoissonSampler::new(units.len(), rate)?,
            units,
            micro_batch: config.micro_batch,
            optimizer: SteeredAdam::new(Beta1::new(BETA_1), config.beta_2, ADAM_EPSILON).into(),
            device: device.clone(),
        })
    }

    /// One step down the gradient of the batch's mean loss; an empty batch changes nothing.
    ///
    /// # Errors
    /// From the adapters.
    pub fn take<M: LanguageModel>(
        &mut self,
        model: &mut M,
        learning_rate: f64,
        random: &mut dyn Random,
    ) -> Result<(), RldpError> {
        let sampled: Vec<&TokenUnit> = self
            .sampler
            .sample(random)
            .into_iter()
            .map(|index| &self.units[index])
            .collect();
        let mut total: Option<Tensor<1>> = None;
        // One copy of every adapter, shared by all rows: its gradient is the sum of theirs.
        let tracked = expand_adapters(model, 1)?;
        for batch in micro_batches(&sampled, self.micro_batch, &self.device)? {
            let rows = batch.weight_of_row.len();
            let weights = Tensor::<1>::from_data(
                TensorData::new(batch.weight_of_row.clone(), [rows]),
                &self.device,
            );
            let loss = (tracked.per_example_loss(&batch.batch) * weights).sum();
            total = Some(match total {
                None => loss,
                Some(total) => total + loss,
            });
        }
        let Some(total) = total else {
            return Ok(());
        };
        let mut gradients = (total / sampled.len() as f64).backward();
        let gradients = per_example_gradients(&tracked, &mut gradients)?;
        let gradients = adapter_gradients_params(&adapter_parameters(model), gradients)?;
        let moved = self
            .optimizer
            .step(learning_rate, adapters(model), gradients);
        set_adapters(model, moved)?;
        Ok(())
    }
}

/// What a run without privacy has to say.
#[derive(Clone, Debug)]
pub struct PlainSummary {
    /// The settings.
    pub config: TrainerConfig,
    /// Privacy units in the table.
    pub units: usize,
    /// The exact held-out losses.
    pub records: Vec<HeldOutRecord>,
}

impl PlainSummary {
    /// First and last exact perplexity of a part.
    #[must_use]
    pub fn perplexities(&self, part: &str) -> Option<(f64, f64)> {
        let mut of_part = self.records.iter().filter(|record| record.part == part);
        let first = of_part.next()?;
        Some((
            first.perplexity(),
            of_part.next_back().unwrap_or(first).perplexity(),
        ))
    }
}

/// Fine-tunes `model`'s adapters **without privacy**: no clipping, no noise, exact held-out losses. Writes a run folder like
/// [`super::fine_tune`]'s, whose ledger has no budget and so no epsilon. Such a run cannot be resumed.
///
/// # Errors
/// See [`RldpError`].
pub fn fine_tune_without_privacy<M: LanguageModel>(
    model: &mut M,
    data: TrainingData,
    setup: &RunSetup,
    watcher: &mut dyn Watcher,
) -> Result<PlainSummary, RldpError> {
    let config = &setup.config;
    config.validate()?;
    let delta = config.delta_for(data.units);
    let header = Header {
        version: LEDGER_VERSION,
        created: setup.created.clone(),
        unit: data.unit.clone(),
        adjacency: Adjacency::AddRemove,
        target: PrivacyTarget::new(config.epsilon, delta)?,
        private: false,
        budget: BudgetRecord::Unprotected,
        parameters: json!({
            "units": data.units,
            "training_population": data.training_population,
            "batch_size": config.batch_size,
            "fingerprint": data.fingerprint,
            "base_model": setup.base_model,
        }),
    };
    let mut ledger = LedgerWriter::create(setup.folder.join(LEDGER_FILE), &header)?;
    ledger.append(&Event::Note {
        text: "NOT private: no gradient is clipped and no noise is added in this run".to_owned(),
    })?;
    let mut metrics = MetricsWriter::create(&setup.folder.join(METRICS_FILE))?;
    let mut random: Box<dyn Random> = match setup.seed {
        None => Box::new(SecureRandom::new()?),
        Some(seed) => Box::new(SeededRandom::new(seed)),
    };
    let parts = [("validation", data.validation), ("test", data.test)];
    let mut step = PlainStep::new(data.training, config, &setup.device)?;
    let mut records = Vec::new();
    let decisions = config.decisions.clamp(1, config.steps);
    watcher.begin(config.steps);
    let mut taken = 0;
    for index in 0..=decisions {
        let end = index * config.steps / decisions;
        while taken < end {
            let rate = config.scheduled_learning_rate(taken);
            step.take(model, rate, random.as_mut())?;
            taken += 1;
        }
        for (part, units) in &parts {
            let loss = public_loss(model, units, config.micro_batch, &setup.device)?;
            if !loss.is_finite() {
                return Err(RldpError::NotFinite {
                    what: "a held-out loss",
                    step: taken,
                    value: loss,
                });
            }
            let record = HeldOutRecord {
                step: taken,
                part: (*part).to_owned(),
                loss,
                noise: 0.0,
            };
            watcher.phase(&format!(
                "step {taken}/{}: {part} loss {loss:.4}",
                config.steps
            ));
            let line = Record::HeldOut(record.clone());
            metrics.append(&line)?;
            watcher.record(&line);
            records.push(record);
        }
    }
    setup.folder.write_folder(ADAPTER_FOLDER, |folder| {
        Ok(save_adapter(
            model,
            &setup.lora,
            Some(&setup.base_model),
            folder,
        )?)
    })?;
    watcher.end();
    Ok(PlainSummary {
        config: config.clone(),
        units: data.units,
        records,
    })
}
