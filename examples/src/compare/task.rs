//! A model and a table, loaded once for many runs.

use std::collections::HashMap;
use std::sync::Arc;

use burn::tensor::Device;
use rldp::audit::{Person, attack_canaries, attack_people, canary_units, members_and_others};
use rldp::controller::Controller;
use rldp::data::{
    Corpus, CorpusOptions, DataKey, Fractions, ReadOptions, Table, Template, read_bytes,
    read_table, units,
};
use rldp::trainer::{
    Encoding, RunFolder, RunSetup, RunSummary, Silent, Study, TokenUnit, TrainerConfig,
    TrainingData, fine_tune, model_fingerprint, token_fingerprint,
};
use rldp_audit::extraction::secret::CanarySet;
use rldp_lora::{LoraConfig, adapter_parameters, add_lora};
use rldp_models::{CausalLm, LanguageModel, LoadedModel, hub};

use super::attacks::{Attacked, Attacks};
use super::study::TaskSettings;
use crate::embedded;
use crate::error::ExampleError;
use crate::pretrain;

/// Seed of generated tables: not one that a base model was trained with.
const GENERATED_SEED: u64 = 0x7e57_0006;

/// A loaded model and table. The table's parts are encoded once per seed and length.
pub struct Task {
    settings: TaskSettings,
    device: Device,
    loaded: LoadedModel,
    base_model: String,
    fingerprint: String,
    table: Table,
    template: Option<Template>,
    units: usize,
    parts: HashMap<PartsKey, Parts>,
}

/// One seeded run of a task.
#[derive(Clone, Copy, Debug)]
pub struct Assignment<'a> {
    /// The trainer's settings.
    pub config: &'a TrainerConfig,
    /// The seed of everything.
    pub seed: u64,
    /// Exact test losses are recorded after every so many steps.
    pub every: u64,
    /// How validation losses reach the controller.
    pub rewards: Rewards,
    /// Put into the training part, if the model is to be attacked.
    pub canaries: Option<&'a CanarySet>,
}

/// What a run leaves.
pub struct Finished<C> {
    /// What was recorded.
    pub summary: RunSummary,
    /// The controller.
    pub controller: C,
    /// The model with its adapters.
    pub model: CausalLm,
}

/// How a run's validation losses reach the controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rewards {
    /// Released, as in a private run.
    Released,
    /// Exact: for tables that are public.
    Exact,
}

/// What the encoded parts depend on.
#[derive(Clone, PartialEq, Eq, Hash)]
struct PartsKey {
    seed: u64,
    max_length: usize,
    max_rows: usize,
    share: u64,
}

#[derive(Clone)]
struct Parts {
    corpus: Arc<Corpus>,
    training: Vec<TokenUnit>,
    validation: Vec<TokenUnit>,
    test: Vec<TokenUnit>,
    token_fingerprint: String,
}

impl Task {
    /// Loads the task.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn load(settings: &TaskSettings, device: &Device) -> Result<Self, ExampleError> {
        let (loaded, base_model) = match &settings.model {
            None => (
                embedded::base_model(device)?,
                embedded::BASE_MODEL_NAME.to_owned(),
            ),
            Some(path) => {
                let folder = hub::resolve(&path.to_string_lossy())?;
                let name = path
                    .file_name()
                    .map(|name| name.to_string_lossy().into_owned());
                (
                    CausalLm::load(&folder, device, |_| {})?,
                    name.unwrap_or_default(),
                )
            }
        };
        let mut template = settings
            .template
            .as_deref()
            .map(Template::from_file)
            .transpose()?;
        let mut settings = settings.clone();
        let table = if let Some(count) = settings.generated {
            settings.text_column = Some("text".to_owned());
            generated(count)?
        } else if let Some(path) = &settings.data {
            read_table(path, &ReadOptions::default())?
        } else {
            if template.is_none() && settings.text_column.is_none() {
                template = Some(embedded::support2_note()?);
            }
            embedded::support2()?
        };
        let units = units(&table, settings.unit_column.as_deref())?.len();
        Ok(Self {
            fingerprint: model_fingerprint(&loaded.model),
            settings,
            device: device.clone(),
            loaded,
            base_model,
            table,
            template,
            units,
            parts: HashMap::new(),
        })
    }

    /// Privacy units in the table.
    #[must_use]
    pub fn units(&self) -> usize {
        self.units
    }

    /// The encoded parts of the table under the seed's split.
    fn parts(&mut self, config: &TrainerConfig, seed: u64) -> Result<Parts, ExampleError> {
        let share = config.held_out_share(self.units);
        let key = PartsKey {
            seed,
            max_length: config.max_length.min(self.loaded.model.positions()),
            max_rows: config.max_rows_per_unit,
            share: share.to_bits(),
        };
        if let Some(parts) = self.parts.get(&key) {
            return Ok(parts.clone());
        }
        let data_key = DataKey::from_seed(seed);
        let options = CorpusOptions {
            text_column: self.settings.text_column.clone(),
            template: self.template.clone(),
            unit_column: self.settings.unit_column.clone(),
            fractions: Fractions::new(1.0 - 2.0 * share, share, share)?,
        };
        let corpus = Corpus::build(&self.table, &options, &data_key)?;
        let encoding = self.encoding(config)?;
        let [training, validation, test] = [
            encoding.units(&corpus.train)?,
            encoding.units(&corpus.validation)?,
            encoding.units(&corpus.test)?,
        ];
        let parts = Parts {
            token_fingerprint: token_fingerprint(&[&training, &validation, &test], &data_key),
            training,
            validation,
            test,
            corpus: Arc::new(corpus),
        };
        // One seed at a time is enough, and memory is not endless.
        self.parts.clear();
        self.parts.insert(key, parts.clone());
        Ok(parts)
    }

    fn encoding(&self, config: &TrainerConfig) -> Result<Encoding<'_>, ExampleError> {
        Ok(Encoding {
            tokenizer: self.loaded.tokenizer()?,
            special_tokens: &self.loaded.special_tokens,
            max_length: config.max_length.min(self.loaded.model.positions()),
            max_rows: config.max_rows_per_unit,
        })
    }

    /// The canaries of a seed: see [`Attacks::draw`].
    ///
    /// # Errors
    /// As [`Attacks::draw`].
    pub fn canaries(
        &self,
        attacks: &Attacks,
        seed: u64,
    ) -> Result<Option<CanarySet>, ExampleError> {
        attacks.draw(seed, self.loaded.tokenizer()?)
    }

    /// One seeded run, with the controller that `build` makes for the adapters' dimensions. Under [`Rewards::Exact`] the validation
    /// part is read as public text.
    ///
    /// # Errors
    /// Those of the run.
    pub fn run<C: Controller>(
        &mut self,
        assignment: Assignment<'_>,
        build: impl FnOnce(Vec<usize>) -> Result<C, ExampleError>,
    ) -> Result<Finished<C>, ExampleError> {
        let Assignment {
            config,
            seed,
            every,
            rewards,
            canaries,
        } = assignment;
        let mut parts = self.parts(config, seed)?;
        let inserted = match canaries {
            Some(set) => canary_units(set, &self.encoding(config)?)?,
            None => Vec::new(),
        };
        let share = config.held_out_share(self.units);
        let public_validation = match rewards {
            Rewards::Released => None,
            Rewards::Exact => Some(parts.validation.clone()),
        };
        let training_population =
            ((1.0 - 2.0 * share) * self.units as f64).round() as usize + inserted.len();
        parts.training.extend(inserted);
        let data = TrainingData {
            training: parts.training,
            validation: parts.validation,
            test: parts.test,
            public_validation,
            units: self.units,
            training_population,
            unit: parts.corpus.unit.clone(),
            fingerprint: parts.corpus.fingerprint.clone(),
            token_fingerprint: parts.token_fingerprint,
        };
        let mut model = self.loaded.model.clone();
        let lora = LoraConfig {
            alpha: config.lora_alpha,
            ..LoraConfig::new(config.lora_rank, model.default_targets())
        };
        add_lora(&mut model, &lora, seed)?;
        let dimensions = adapter_parameters(&model)
            .iter()
            .map(|adapter| adapter.trainable_parameters())
            .collect();
        let mut controller = build(dimensions)?;
        let folder = tempfile::tempdir().map_err(ExampleError::file(std::env::temp_dir()))?;
        let setup = RunSetup {
            config: config.clone(),
            lora,
            base_model: self.base_model.clone(),
            base_model_fingerprint: self.fingerprint.clone(),
            device: self.device.clone(),
            seed: Some(seed),
            folder: RunFolder::open(folder.path().join("run"))?,
            resume: false,
            checkpoint_every: u64::MAX,
            created: String::new(),
            study: Some(Study { every }),
        };
        let summary = fine_tune(&mut model, data, &mut controller, &setup, &mut Silent)?;
        Ok(Finished {
            summary,
            controller,
            model,
        })
    }

    /// Attacks a model that [`Task::run`] trained with these settings, this seed and these canaries.
    ///
    /// # Errors
    /// Too few canaries or people; no randomness.
    pub fn attack(
        &mut self,
        tuned: &CausalLm,
        assignment: Assignment<'_>,
        delta: f64,
        attacks: &Attacks,
    ) -> Result<Attacked, ExampleError> {
        let Assignment {
            config,
            seed,
            canaries,
            ..
        } = assignment;
        let parts = self.parts(config, seed)?;
        let (base, options, device) = (&self.loaded.model, attacks.options(), &self.device);
        let canaries = match canaries {
            None => None,
            Some(set) => {
                let encoding = self.encoding(config)?;
                Some(attack_canaries(
                    tuned, base, set, &encoding, delta, &options, device,
                )?)
            }
        };
        let people = if attacks.people == 0 {
            None
        } else {
            let corpus = &parts.corpus;
            let others = [parts.validation, parts.test].concat();
            let other_texts = [corpus.validation.as_slice(), corpus.test.as_slice()].concat();
            let [ins, outs] =
                members_and_others(parts.training.len(), others.len(), attacks.people)?;
            let person = |index: &usize, member: bool| match member {
                true => Person::new(&corpus.train[*index], parts.training[*index].clone(), true),
                false => Person::new(&other_texts[*index], others[*index].clone(), false),
            };
            let people: Vec<Person> = ins
                .iter()
                .map(|index| person(index, true))
                .chain(outs.iter().map(|index| person(index, false)))
                .collect();
            // What the model writes is compared with nothing here: see `audit`.
            Some(attack_people(
                tuned,
                base,
                &people,
                &[],
                &[],
                [&[], &[]],
                &options,
                device,
            )?)
        };
        Ok(Attacked { canaries, people }.without_curves())
    }
}

/// A table of texts from the grammar that the embedded model was trained on.
fn generated(count: usize) -> Result<Table, ExampleError> {
    let texts = pretrain::corpus::Corpus::new(GENERATED_SEED)?.texts(count)?;
    let mut lines = String::new();
    for text in texts {
        lines.push_str(&serde_json::json!({ "text": text }).to_string());
        lines.push('\n');
    }
    Ok(read_bytes(
        "generated.jsonl",
        lines.as_bytes(),
        &ReadOptions::default(),
    )?)
}
