use std::path::Path;

use burn::tensor::Device;

use crate::causal_lm::CausalLm;
use crate::checkpoint::{Checkpoint, Progress};
use crate::config::{Settings, SpecialTokens};
use crate::llama::Variant;
use crate::precision::WeightPrecision;
use crate::tokenizer::Tokenizer;
use crate::{Gpt2, Gpt2Config, LanguageModel, Llama, LlamaConfig, ModelError};

/// Builds a model from its settings and weights.
type Builder<M> = Box<dyn Fn(Settings, Checkpoint<'_>) -> Result<M, ModelError> + Send + Sync>;

/// Which architectures can be loaded, by the `model_type` of `config.json`.
///
/// # Example
///
/// A model that is a Llama under another name:
///
/// ```
/// use rldp_models::{CausalLm, Llama, LlamaConfig, Registry, llama::Variant};
///
/// let mut registry = Registry::builtin();
/// registry.register("llama_of_ours", |settings, checkpoint| {
///     let config = LlamaConfig::from_settings(Variant::Llama, settings)?;
///     Ok(CausalLm::Llama(Llama::from_checkpoint(&config, checkpoint)?))
/// });
/// assert!(registry.names().contains(&"llama_of_ours"));
/// ```
///
/// An architecture that is not built from these parts implements [`LanguageModel`]; then use a
/// registry of your own model type.
pub struct Registry<M> {
    builders: Vec<(String, Builder<M>)>,
}

impl<M> Default for Registry<M> {
    fn default() -> Self {
        Self {
            builders: Vec::new(),
        }
    }
}

impl Registry<CausalLm> {
    /// GPT-2, Llama and Mistral.
    pub fn builtin() -> Self {
        let mut registry = Self::default();
        registry.register("gpt2", |settings, checkpoint| {
            let config = Gpt2Config::from_settings(settings)?;
            Ok(CausalLm::Gpt2(Gpt2::from_checkpoint(&config, checkpoint)?))
        });
        for (name, variant) in [("llama", Variant::Llama), ("mistral", Variant::Mistral)] {
            registry.register(name, move |settings, checkpoint| {
                let config = LlamaConfig::from_settings(variant, settings)?;
                Ok(CausalLm::Llama(Llama::from_checkpoint(
                    &config, checkpoint,
                )?))
            });
        }
        registry
    }
}

impl<M> Registry<M> {
    /// Adds an architecture, or replaces the one of that name.
    pub fn register(
        &mut self,
        model_type: &str,
        build: impl Fn(Settings, Checkpoint<'_>) -> Result<M, ModelError> + Send + Sync + 'static,
    ) {
        self.builders.retain(|(name, _)| name != model_type);
        self.builders.push((model_type.to_owned(), Box::new(build)));
    }

    /// The names known, in the order they were added.
    pub fn names(&self) -> Vec<&str> {
        self.builders
            .iter()
            .map(|(name, _)| name.as_str())
            .collect()
    }
}

impl<M: LanguageModel> Registry<M> {
    /// Loads a Hugging Face model folder onto a device, reporting progress after every tensor.
    ///
    /// The weights are held in f32 and need no gradients. The tokenizer is loaded if the folder has
    /// one.
    ///
    /// # Errors
    ///
    /// Unknown or unsupported settings by name; missing, unexpected, wrong-shaped, wrong-typed or
    /// non-finite tensors by name; broken files by path.
    pub fn load(
        &self,
        folder: &Path,
        device: &Device,
        progress: impl FnMut(Progress),
    ) -> Result<LoadedModel<M>, ModelError> {
        self.load_with(folder, device, WeightPrecision::F32, progress)
    }

    /// The same with the matrices held in a type of choice.
    ///
    /// # Errors
    ///
    /// Those of [`Self::load`]; [`ModelError::UnsupportedPrecision`] naming a tensor whose type the
    /// device's backend lacks.
    pub fn load_with(
        &self,
        folder: &Path,
        device: &Device,
        precision: WeightPrecision,
        mut progress: impl FnMut(Progress),
    ) -> Result<LoadedModel<M>, ModelError> {
        let path = folder.join("config.json");
        let settings = Settings::read(&path)?;
        let special_tokens = settings.special_tokens()?;
        let model_type = settings.model_type()?;
        let (_, build) = self
            .builders
            .iter()
            .find(|(name, _)| *name == model_type)
            .ok_or_else(|| ModelError::UnknownArchitecture {
                path,
                model_type,
                known: self.names().into_iter().map(str::to_owned).collect(),
            })?;
        let checkpoint = Checkpoint::open(folder, device, &mut progress)?;
        let model = build(settings, checkpoint.with_precision(precision))?;
        Ok(LoadedModel {
            model,
            special_tokens,
            tokenizer: Tokenizer::find(folder)?,
            folder: folder.to_owned(),
        })
    }
}

/// A model with what belongs to it.
#[derive(Debug)]
#[non_exhaustive]
pub struct LoadedModel<M = CausalLm> {
    /// The model, all weights frozen.
    pub model: M,
    /// Ids of special tokens from `config.json`.
    pub special_tokens: SpecialTokens,
    /// The tokenizer, if the folder has one.
    pub tokenizer: Option<Tokenizer>,
    /// The folder it came from.
    pub folder: std::path::PathBuf,
}

impl<M> LoadedModel<M> {
    /// The tokenizer.
    ///
    /// # Errors
    ///
    /// [`ModelError::MissingTokenizer`] naming the folder.
    pub fn tokenizer(&self) -> Result<&Tokenizer, ModelError> {
        self.tokenizer
            .as_ref()
            .ok_or_else(|| ModelError::MissingTokenizer {
                folder: self.folder.clone(),
            })
    }
}
