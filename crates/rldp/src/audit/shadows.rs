//! Shadow adapters: what the same training makes of other draws of people.

use burn::tensor::Device;
use rldp_accounting::ledger::{BudgetRecord, Header, LEDGER_VERSION, LedgerWriter};
use rldp_accounting::{Adjacency, PrivacyTarget, Segment};
use rldp_audit::attack::lira::Shadow;
use rldp_lora::{LoraConfig, add_lora};
use rldp_models::LanguageModel;
use rldp_optim::{Random, SecureRandom};

use super::losses::token_losses;
use super::mechanism::plan_of_record;
use super::people::Person;
use crate::error::RldpError;
use crate::trainer::{PlainStep, PrivateStep, StepRecord, TokenUnit, TrainerConfig};

/// How the attacked model was trained, step by step.
#[derive(Clone, Debug)]
pub enum ShadowSteps {
    /// By these private steps: sampling, norms, noise, learning rates and momenta are taken over.
    Private {
        /// The steps.
        records: Vec<StepRecord>,
        /// Their sampling rate.
        sampling_rate: f64,
        /// The number of units that sums were divided by.
        population: usize,
    },
    /// Without privacy.
    Plain,
}

/// Everything that shadow adapters are trained from.
pub struct ShadowTraining<'a> {
    /// Settings of the run.
    pub config: &'a TrainerConfig,
    /// Settings of its adapters.
    pub lora: &'a LoraConfig,
    /// Its steps.
    pub steps: &'a ShadowSteps,
    /// Training units that are not attacked: every shadow has them all.
    pub others: &'a [TokenUnit],
}

/// Trains `count` shadow adapters on `base`, each on the unattacked units and half of the attacked people, by a coin each, and scores
/// the people under each by minus their mean token loss. `between` is called after each.
///
/// # Errors
/// From training.
pub fn train_shadows<M: LanguageModel>(
    base: &M,
    people: &[Person],
    training: &ShadowTraining<'_>,
    count: usize,
    device: &Device,
    between: &mut dyn FnMut(usize),
) -> Result<Vec<Shadow>, RldpError> {
    let mut random = SecureRandom::new()?;
    let mut shadows: Vec<Shadow> = Vec::with_capacity(count);
    for index in 0..count {
        // Every second shadow has whom the one before it had not, so that two suffice to see everyone in and out.
        let included: Vec<bool> = match shadows.last() {
            Some(Shadow { included, .. }) if index % 2 == 1 => {
                included.iter().map(|included| !included).collect()
            }
            _ => people.iter().map(|_| random.bernoulli(0.5)).collect(),
        };
        let mut units = training.others.to_vec();
        units.extend(
            people
                .iter()
                .zip(&included)
                .filter(|(_, included)| **included)
                .map(|(person, _)| person.unit.clone()),
        );
        let mut model = base.clone();
        add_lora(&mut model, training.lora, random.next_u64())?;
        train(&mut model, units, training, device, &mut random)?;
        let scores = mean_losses(&model, people, training.config.micro_batch, device)?
            .into_iter()
            .map(|loss| -loss)
            .collect();
        shadows.push(Shadow { scores, included });
        between(index + 1);
    }
    Ok(shadows)
}

fn train<M: LanguageModel>(
    model: &mut M,
    units: Vec<TokenUnit>,
    training: &ShadowTraining<'_>,
    device: &Device,
    random: &mut dyn Random,
) -> Result<(), RldpError> {
    let config = training.config;
    match training.steps {
        ShadowSteps::Plain => {
            let mut step = PlainStep::new(units, config, device)?;
            for taken in 0..config.steps {
                step.take(model, config.scheduled_learning_rate(taken), random)?;
            }
        }
        ShadowSteps::Private {
            records,
            sampling_rate,
            population,
        } => {
            // A shadow's ledger is nobody's record; its steps go through the same door as the run's nevertheless.
            let folder = tempfile::tempdir().map_err(RldpError::file(std::env::temp_dir()))?;
            let header = Header {
                version: LEDGER_VERSION,
                created: "a shadow model of an audit".to_owned(),
                unit: "one row".to_owned(),
                adjacency: Adjacency::AddRemove,
                target: PrivacyTarget::new(1.0, 1e-5)?,
                private: false,
                budget: BudgetRecord::Fixed {
                    segment: Segment::new(*sampling_rate, 1.0, records.len().max(1) as u64)?,
                },
                parameters: serde_json::Value::Null,
            };
            let mut ledger = LedgerWriter::create(folder.path().join("ledger.jsonl"), &header)?;
            // A shadow's sampler runs at the run's rate, whatever the number of units it happens to have.
            let config = TrainerConfig {
                batch_size: sampling_rate * *population as f64,
                training_loss_share: 0.0,
                ..config.clone()
            };
            let mut step = PrivateStep::new(&*model, units, *population, &config, device)?;
            for record in records {
                let plan = plan_of_record(record, *sampling_rate, *population)?;
                step.take(
                    record.step,
                    model,
                    &plan,
                    record.learning_rate,
                    record.beta_1,
                    &mut ledger,
                    random,
                )?;
            }
        }
    }
    Ok(())
}

/// Every person's mean token loss, the mean over their rows.
pub(super) fn mean_losses<M: LanguageModel>(
    model: &M,
    people: &[Person],
    micro_batch: usize,
    device: &Device,
) -> Result<Vec<f64>, RldpError> {
    let rows: Vec<&[u32]> = people
        .iter()
        .flat_map(|person| person.unit.rows.iter().map(Vec::as_slice))
        .collect();
    let mut losses = token_losses(model, &rows, micro_batch, device)?.into_iter();
    Ok(people
        .iter()
        .map(|person| {
            let of_rows: Vec<f64> = losses
                .by_ref()
                .take(person.unit.rows.len())
                .map(|row| row.iter().sum::<f64>() / row.len().max(1) as f64)
                .collect();
            of_rows.iter().sum::<f64>() / of_rows.len().max(1) as f64
        })
        .collect())
}
