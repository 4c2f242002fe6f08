//! What `finetune` does, step by step.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use burn::tensor::Device;
use rand::SeedableRng as _;
use rand::rngs::ChaCha20Rng;
use rldp::data::{
    Corpus, CorpusOptions, DataKey, Fractions, ReadOptions, Table, Template, TextSource, TextUnit,
    public_texts, read_table, units,
};
use rldp::report::Sample;
use rldp::trainer::{
    Encoding, MANIFEST_FILE, Manifest, RunFolder, RunSetup, RunSummary, TrainerConfig,
    TrainingData, Watcher, fine_tune, fine_tune_without_privacy, model_fingerprint,
    token_fingerprint,
};
use rldp_lora::{LoraConfig, adapter_parameters, add_lora};
use rldp_models::{
    CausalLm, GenerationOptions, LanguageModel, LoadedModel, SpecialTokens, Tokenizer, generate,
    hub,
};

use super::canaries;
use super::clock;
use super::plain;
use super::progress::Progress;
use super::settings::{SETTINGS_FILE, Settings, Trainable};
use crate::device::device;
use crate::embedded;
use crate::error::ExampleError;

/// File in the run folder that holds the key of the split; private.
pub(crate) const KEY_FILE: &str = "data.key";
/// The report in the run folder.
pub(crate) const REPORT_FILE: &str = "report.html";
/// The folder of a model that was trained whole, in the run folder.
pub(crate) const MODEL_FOLDER: &str = "model";
/// Tokens of a sample in the report.
const SAMPLE_TOKENS: usize = 90;

/// The private table and how its rows become text.
pub(crate) struct Source {
    pub(crate) name: String,
    pub(crate) table: Table,
    pub(crate) template: Option<Template>,
}

/// Fine-tunes as the settings say, and tells the terminal what came out.
///
/// # Errors
/// See [`ExampleError`].
pub fn run(settings: &Settings) -> Result<(), ExampleError> {
    settings.check()?;
    let config = settings.trainer();
    config.validate().map_err(ExampleError::Rldp)?;
    if settings.non_private && settings.trainable == Trainable::Full {
        return Err(ExampleError::Flag {
            flag: "non-private",
            value: "with --trainable full".to_owned(),
            reason: "training without privacy changes adapters only".to_owned(),
        });
    }
    let device = device(&settings.device)?;
    let mut progress = Progress::new(config.epsilon);

    let resumed = settings.resume.as_ref().map(RunFolder::open).transpose()?;
    if let Some(folder) = &resumed
        && folder.join(MANIFEST_FILE).exists()
    {
        println!("{} is complete already", folder.path().display());
        return Ok(());
    }
    let source = source(settings)?;
    // Refuses a table without a text before anything is created.
    TextSource::choose(
        &source.table,
        settings.text_column.as_deref(),
        source.template.as_ref(),
    )?;
    let unit_count = units(&source.table, settings.unit_column.as_deref())?.len();
    progress.phase(&format!("{}: {unit_count} privacy units", source.name));
    let delta = config.delta_for(unit_count);
    if delta * unit_count as f64 >= 1.0 {
        progress.phase(&format!(
            "warning: delta {delta:.2e} is not below 1/N for N = {unit_count} units: publishing one person's record outright could \
             meet it"
        ));
    }
    let mut loaded = load_model(settings, &device, &mut progress)?;

    let resume = resumed.is_some();
    let folder = match resumed {
        Some(folder) => folder,
        None => create_folder(settings)?,
    };
    if !resume {
        write_settings(settings, &folder)?;
    }
    let key = data_key(settings, &folder)?;
    let share = config.held_out_share(unit_count);
    let options = CorpusOptions {
        text_column: settings.text_column.clone(),
        template: source.template.clone(),
        unit_column: settings.unit_column.clone(),
        fractions: Fractions::new(1.0 - 2.0 * share, share, share)?,
    };
    let corpus = Corpus::build(&source.table, &options, &key)?;
    let encoding = Encoding {
        tokenizer: loaded.tokenizer()?,
        special_tokens: &loaded.special_tokens,
        max_length: config.max_length.min(loaded.model.positions()),
        max_rows: config.max_rows_per_unit,
    };
    let inserted = canaries::insert(settings, &encoding, &folder)?;
    let training_population =
        ((1.0 - 2.0 * share) * unit_count as f64).round() as usize + inserted.len();
    let [mut training, validation, test] = [
        encoding.units(&corpus.train)?,
        encoding.units(&corpus.validation)?,
        encoding.units(&corpus.test)?,
    ];
    training.extend(inserted);
    let data = TrainingData {
        token_fingerprint: token_fingerprint(&[&training, &validation, &test], &key),
        training,
        validation,
        test,
        public_validation: public_validation(settings, &options, &encoding)?,
        units: unit_count,
        training_population,
        unit: corpus.unit.clone(),
        fingerprint: corpus.fingerprint.clone(),
    };

    if settings.trainable == Trainable::Full {
        let lora = LoraConfig::new(1, [""]);
        let fingerprint = model_fingerprint(&loaded.model);
        let setup = run_setup(settings, config, lora, fingerprint, &device, folder);
        return train_everything(loaded, data, &setup, &source.name, &mut progress);
    }

    let before = sample(&loaded, &loaded.model, &device)?;
    let base_model_fingerprint = model_fingerprint(&loaded.model);
    let lora = lora_config(settings, &loaded.model);
    // The start of the adapters needs no secrecy, but must differ between runs unless a seed is given.
    let seed = settings.seed.unwrap_or_else(rand::random);
    add_lora(&mut loaded.model, &lora, seed)?;
    let dimensions: Vec<usize> = adapter_parameters(&loaded.model)
        .iter()
        .map(|adapter| adapter.trainable_parameters())
        .collect();
    let controllers = config.controller_setup(dimensions);
    let mut controller = config.controller.build(&controllers, seed, &device)?;

    let setup = run_setup(
        settings,
        config,
        lora,
        base_model_fingerprint,
        &device,
        folder,
    );
    let begun = Instant::now();
    let mut model = loaded.model.clone();
    if settings.non_private {
        let summary = fine_tune_without_privacy(&mut model, data, &setup, &mut progress)?;
        let sample = Sample {
            prompt: String::new(),
            before,
            after: sample(&loaded, &model, &device)?,
        };
        return plain::finish(&summary, &setup, &source.name, sample, begun);
    }
    let summary = fine_tune(&mut model, data, controller.as_mut(), &setup, &mut progress)?;
    let seconds = begun.elapsed().as_secs_f64();

    let after = sample(&loaded, &model, &device)?;
    let samples = Sample {
        prompt: String::new(),
        before,
        after,
    };
    write_report(&summary, &setup, &source.name, samples)?;
    let guarantee = summary.guarantee().sentence();
    write_manifest(&setup, &guarantee)?;
    tell(&summary, setup.folder.path(), seconds);
    Ok(())
}

/// Lists the folder's files, which also says that the run is complete.
fn write_manifest(setup: &RunSetup, guarantee: &str) -> Result<(), ExampleError> {
    let private = setup.seed.is_none();
    let guarantee = if private {
        guarantee.to_owned()
    } else {
        "none: all randomness came from a seed".to_owned()
    };
    Ok(Manifest::of(&setup.folder, private, guarantee)?.write(&setup.folder)?)
}

fn run_setup(
    settings: &Settings,
    config: TrainerConfig,
    lora: LoraConfig,
    base_model_fingerprint: String,
    device: &Device,
    folder: RunFolder,
) -> RunSetup {
    RunSetup {
        config,
        lora,
        base_model: settings
            .model
            .clone()
            .unwrap_or_else(|| embedded::BASE_MODEL_NAME.to_owned()),
        base_model_fingerprint,
        device: device.clone(),
        seed: settings.seed,
        folder,
        resume: settings.resume.is_some(),
        checkpoint_every: settings.checkpoint_every,
        created: clock::now(),
        study: None,
    }
}

/// Trains every parameter and saves the model as a Hugging Face folder.
fn train_everything(
    loaded: LoadedModel,
    data: TrainingData,
    setup: &RunSetup,
    name: &str,
    progress: &mut Progress,
) -> Result<(), ExampleError> {
    let before = sample(&loaded, &loaded.model, &setup.device)?;
    let begun = Instant::now();
    // Nothing else may hold the weights, or the optimizer would have to copy them.
    let LoadedModel {
        model,
        special_tokens,
        tokenizer,
        folder: source,
        ..
    } = loaded;
    let (model, summary) = rldp::full::fine_tune(model, data, setup, progress)?;
    let seconds = begun.elapsed().as_secs_f64();
    setup.folder.write_folder(MODEL_FOLDER, |folder| {
        model.save(folder, &special_tokens)?;
        for name in [
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
        ] {
            let to = folder.join(name);
            let from = source.join(name);
            if from.exists() {
                std::fs::copy(from, &to)
                    .map(|_| ())
                    .map_err(rldp::RldpError::file(&to))?;
            } else if name == "tokenizer.json" && source == Path::new(embedded::BASE_MODEL_NAME) {
                std::fs::write(&to, embedded::BASE_MODEL_TOKENIZER)
                    .map_err(rldp::RldpError::file(&to))?;
            }
        }
        Ok(())
    })?;
    let after = match &tokenizer {
        Some(tokenizer) => text(tokenizer, &special_tokens, &model, &setup.device)?,
        None => String::new(),
    };
    let samples = Sample {
        prompt: String::new(),
        before,
        after,
    };
    write_report(&summary, setup, name, samples)?;
    write_manifest(setup, &summary.guarantee().sentence())?;
    let parameters: usize = summary.adapters.iter().map(|part| part.parameters).sum();
    println!("{parameters} parameters trained");
    tell(&summary, setup.folder.path(), seconds);
    println!("model: {}", setup.folder.join(MODEL_FOLDER).display());
    Ok(())
}

/// The key of the split and the fingerprints: of a seeded run from its seed, else the one kept in the folder, else a new
/// one, kept there.
fn data_key(settings: &Settings, folder: &RunFolder) -> Result<DataKey, ExampleError> {
    if let Some(seed) = settings.seed {
        return Ok(DataKey::from_seed(seed));
    }
    let path = folder.join(KEY_FILE);
    // A run that was begun without its key has lost it: another would deal people anew over the parts.
    if path.exists() || folder.holds_run()? {
        return Ok(DataKey::kept(&path)?);
    }
    let key = DataKey::random()?;
    key.keep(&path)?;
    Ok(key)
}

pub(crate) fn source(settings: &Settings) -> Result<Source, ExampleError> {
    let template = settings
        .template
        .as_deref()
        .map(Template::from_file)
        .transpose()?;
    match &settings.data {
        Some(path) => Ok(Source {
            // The report shows this, and may be published; where the table lies is nobody's business.
            name: path.file_name().map_or_else(
                || "a table".to_owned(),
                |name| name.to_string_lossy().into_owned(),
            ),
            table: read_table(path, &ReadOptions::default())?,
            template,
        }),
        None => Ok(Source {
            name: "SUPPORT2 (embedded)".to_owned(),
            table: embedded::support2()?,
            template: match template {
                None if settings.text_column.is_none() => Some(embedded::support2_note()?),
                given => given,
            },
        }),
    }
}

pub(crate) fn load_model(
    settings: &Settings,
    device: &Device,
    progress: &mut dyn Watcher,
) -> Result<LoadedModel, ExampleError> {
    match &settings.model {
        None => {
            progress.phase("loading the embedded base model");
            embedded::base_model(device)
        }
        Some(name) => {
            progress.phase(&format!("loading {}", hub::without_password(name)));
            let folder = hub::resolve(name)?;
            Ok(CausalLm::load_with(
                &folder,
                device,
                settings.weights,
                |_| {},
            )?)
        }
    }
}

fn lora_config(settings: &Settings, model: &CausalLm) -> LoraConfig {
    let targets = settings
        .lora_targets
        .clone()
        .unwrap_or_else(|| model.default_targets());
    LoraConfig {
        alpha: settings.lora_alpha,
        ..LoraConfig::new(settings.lora_rank, targets)
    }
}

fn public_validation(
    settings: &Settings,
    options: &CorpusOptions,
    encoding: &Encoding<'_>,
) -> Result<Option<Vec<rldp::trainer::TokenUnit>>, ExampleError> {
    let Some(path) = &settings.public_validation else {
        return Ok(None);
    };
    let table = read_table(path, &ReadOptions::default())?;
    let texts = public_texts(
        &table,
        options.text_column.as_deref(),
        options.template.as_ref(),
    )?;
    let units: Vec<TextUnit> = texts
        .into_iter()
        .map(|text| TextUnit { texts: vec![text] })
        .collect();
    Ok(Some(encoding.units(&units)?))
}

fn create_folder(settings: &Settings) -> Result<RunFolder, ExampleError> {
    let path = settings
        .out
        .clone()
        .unwrap_or_else(|| Path::new("runs").join(clock::now().replace(':', "-")));
    let folder = RunFolder::open(path)?;
    if folder.holds_run()? {
        let path = folder.path().to_owned();
        return Err(rldp::RldpError::RunExists { path }.into());
    }
    Ok(folder)
}

fn write_settings(settings: &Settings, folder: &RunFolder) -> Result<(), ExampleError> {
    let text = toml::to_string(settings).map_err(|error| ExampleError::Toml {
        path: folder.join(SETTINGS_FILE),
        message: error.to_string(),
    })?;
    Ok(folder.write(SETTINGS_FILE, text.as_bytes())?)
}

/// A text the model writes from nothing: of the fine-tuned one, post-processing of its adapter.
fn sample(loaded: &LoadedModel, model: &CausalLm, device: &Device) -> Result<String, ExampleError> {
    text(loaded.tokenizer()?, &loaded.special_tokens, model, device)
}

fn text(
    tokenizer: &Tokenizer,
    special_tokens: &SpecialTokens,
    model: &CausalLm,
    device: &Device,
) -> Result<String, ExampleError> {
    let Some(bos) = special_tokens.bos else {
        return Ok(String::new());
    };
    let options = GenerationOptions {
        max_new_tokens: SAMPLE_TOKENS,
        temperature: 0.8,
        top_p: 0.95,
        stop_tokens: special_tokens.eos.clone(),
        ..GenerationOptions::default()
    };
    let mut random = ChaCha20Rng::seed_from_u64(1);
    let tokens = generate(model, &[bos], &options, device, &mut random, |_| {
        ControlFlow::Continue(())
    })?;
    Ok(tokenizer.decode(&tokens)?)
}

fn write_report(
    summary: &RunSummary,
    setup: &RunSetup,
    data: &str,
    sample: Sample,
) -> Result<(), ExampleError> {
    let mut report = summary.report("Private fine-tuning run");
    report.subtitle = format!(
        "{} on {data}, steered by {}",
        setup.base_model, summary.controller
    );
    report.created = setup.created.clone();
    if summary.delta * summary.units as f64 >= 1.0 {
        report.warnings.push(format!(
            "Delta is {:.2e}, which is not below 1/N for N = {} units: a mechanism that publishes one person's record \
             outright could meet it.",
            summary.delta, summary.units
        ));
    }
    if !sample.before.is_empty() {
        report.samples.push(sample);
    }
    report.environment = vec![
        ("rldp".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        (
            "system".to_owned(),
            format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        ),
    ];
    Ok(setup
        .folder
        .write(REPORT_FILE, report.to_html().as_bytes())?)
}

fn tell(summary: &RunSummary, folder: &Path, seconds: f64) {
    for (part, name) in [("validation", "validation"), ("test", "test")] {
        if let Some((before, after)) = summary.perplexities(part) {
            println!("{name} perplexity (released): {before:.2} before, {after:.2} after");
        }
    }
    println!("trained in {seconds:.0} s");
    if summary.seed.is_some() {
        println!("NOT PRIVATE: this run's randomness came from a seed.");
    } else {
        println!("{}", summary.guarantee().sentence());
    }
    println!(
        "run folder: {} (start with {REPORT_FILE})",
        folder.display()
    );
}
