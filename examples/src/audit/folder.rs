//! A finished run's folder, read for an audit.

use std::path::Path;

use burn::tensor::Device;
use rldp::trainer::{ADAPTER_FOLDER, LEDGER_FILE, METRICS_FILE, Record, RunFolder, StepRecord};
use rldp_accounting::ledger::{BudgetRecord, Event, Ledger};
use rldp_audit::extraction::secret::CanarySet;
use rldp_lora::{LoraConfig, peft};
use rldp_models::CausalLm;

use crate::error::ExampleError;
use crate::finetune::canaries::{self, CANARY_FILE};
use crate::finetune::run::MODEL_FOLDER;
use crate::finetune::settings::{SETTINGS_FILE, Settings};

/// What a run folder says.
pub struct AuditedRun {
    /// The folder, locked: no run is going on in it.
    pub folder: RunFolder,
    /// The run's settings.
    pub settings: Settings,
    /// The ledger.
    pub ledger: Ledger,
    /// The steps that were taken; none without privacy.
    pub steps: Vec<StepRecord>,
    /// Its canaries, if it had any.
    pub canaries: Option<CanarySet>,
}

impl AuditedRun {
    /// Reads the folder of a finished run.
    ///
    /// # Errors
    /// A folder without a finished run; damaged files.
    pub fn read(path: &Path) -> Result<Self, ExampleError> {
        if !path.join(ADAPTER_FOLDER).is_dir() && !path.join(MODEL_FOLDER).is_dir() {
            return Err(ExampleError::Other(format!(
                "{} holds no finished run: there is no {ADAPTER_FOLDER} or {MODEL_FOLDER} in it",
                path.display()
            )));
        }
        let settings_path = path.join(SETTINGS_FILE);
        let text =
            std::fs::read_to_string(&settings_path).map_err(ExampleError::file(&settings_path))?;
        let settings: Settings = toml::from_str(&text).map_err(|error| ExampleError::Toml {
            path: settings_path,
            message: error.message().to_owned(),
        })?;
        let metrics_path = path.join(METRICS_FILE);
        let text =
            std::fs::read_to_string(&metrics_path).map_err(ExampleError::file(&metrics_path))?;
        let mut steps = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let record = serde_json::from_str(line).map_err(|error| {
                ExampleError::Other(format!(
                    "{}, line {}: {error}",
                    metrics_path.display(),
                    index + 1
                ))
            })?;
            if let Record::Step(step) = record {
                steps.push(step);
            }
        }
        let canary_path = path.join(CANARY_FILE);
        let canaries = canary_path
            .exists()
            .then(|| canaries::read(&canary_path))
            .transpose()?;
        Ok(Self {
            ledger: Ledger::read(path.join(LEDGER_FILE))?,
            folder: RunFolder::open(path)?,
            settings,
            steps,
            canaries,
        })
    }

    /// The model that the run released, and its adapters' settings if it trained adapters.
    ///
    /// # Errors
    /// Damaged files.
    pub fn tuned(
        &self,
        base: &CausalLm,
        device: &Device,
    ) -> Result<(CausalLm, Option<LoraConfig>), ExampleError> {
        let adapter = self.folder.join(ADAPTER_FOLDER);
        if adapter.is_dir() {
            let mut tuned = base.clone();
            let lora = peft::load_adapter(&mut tuned, &adapter)?;
            return Ok((tuned, Some(lora)));
        }
        let model = self.folder.join(MODEL_FOLDER);
        Ok((CausalLm::load(&model, device, |_| {})?.model, None))
    }

    /// The delta of the run's guarantee.
    #[must_use]
    pub fn delta(&self) -> f64 {
        self.ledger.header.target.delta
    }

    /// The epsilon that the run claims for the training part; none without privacy.
    ///
    /// # Errors
    /// A ledger that contradicts itself.
    pub fn claimed_epsilon(&self) -> Result<Option<f64>, ExampleError> {
        if matches!(self.ledger.header.budget, BudgetRecord::Unprotected) {
            return Ok(None);
        }
        Ok(Some(
            self.ledger.epsilon_upper(self.delta())?.training.guarantee,
        ))
    }

    /// The sampling rate of its steps.
    #[must_use]
    pub fn sampling_rate(&self) -> Option<f64> {
        self.ledger.events.iter().find_map(|event| match event {
            Event::Step { sampling_rate, .. } => Some(*sampling_rate),
            _ => None,
        })
    }

    /// The number that sums were divided by, over the sampling rate.
    #[must_use]
    pub fn training_population(&self) -> Option<usize> {
        let population = self.ledger.header.parameters.get("training_population")?;
        population.as_u64().map(|population| population as usize)
    }

    /// The controller's name.
    #[must_use]
    pub fn controller(&self) -> String {
        let controller = self.ledger.header.parameters.get("controller");
        controller
            .and_then(serde_json::Value::as_str)
            .unwrap_or("none")
            .to_owned()
    }
}
