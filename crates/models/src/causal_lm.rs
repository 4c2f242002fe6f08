use std::path::Path;

use burn::module::{Module, ParamId};
use burn::tensor::{Device, Int, Tensor};
use rldp_lora::{HostTensor, LinearLayers, LoraLinear, write_tensors};
use serde_json::Value;

use crate::checkpoint::{Progress, SINGLE_FILE};
use crate::config::SpecialTokens;
use crate::full::{FullParameters, LayerSlot};
use crate::precision::WeightPrecision;
use crate::registry::{LoadedModel, Registry};
use crate::{Gpt2, KvCache, LanguageModel, Llama, ModelError};

/// A language model of any built-in architecture.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // A program holds one or two of these.
pub enum CausalLm {
    /// GPT-2.
    Gpt2(Gpt2),
    /// Llama or Mistral.
    Llama(Llama),
}

/// Calls the same method of whichever model is inside.
macro_rules! each {
    ($self:ident, $model:ident => $call:expr) => {
        match $self {
            CausalLm::Gpt2($model) => $call,
            CausalLm::Llama($model) => $call,
        }
    };
}

impl CausalLm {
    /// Loads a Hugging Face model folder of a built-in architecture: [`Registry::load`].
    ///
    /// # Errors
    ///
    /// See there.
    pub fn load(
        folder: &Path,
        device: &Device,
        progress: impl FnMut(Progress),
    ) -> Result<LoadedModel, ModelError> {
        Registry::builtin().load(folder, device, progress)
    }

    /// The same with the matrices held in a type of choice: [`Registry::load_with`].
    ///
    /// # Errors
    ///
    /// See there.
    pub fn load_with(
        folder: &Path,
        device: &Device,
        precision: WeightPrecision,
        progress: impl FnMut(Progress),
    ) -> Result<LoadedModel, ModelError> {
        Registry::builtin().load_with(folder, device, precision, progress)
    }

    /// The model's settings as a `config.json`.
    pub fn to_settings(&self) -> Value {
        each!(self, model => model.config().to_settings())
    }

    /// Writes `config.json` and `model.safetensors` (f32) where Hugging Face tools find them.
    ///
    /// The tokenizer's files are the caller's to copy.
    ///
    /// # Errors
    ///
    /// [`ModelError::UnmergedAdapters`] while adapters are attached; [`ModelError::Io`].
    pub fn save(&self, folder: &Path, special_tokens: &SpecialTokens) -> Result<(), ModelError> {
        if !rldp_lora::adapter_parameters(self).is_empty() {
            return Err(ModelError::UnmergedAdapters);
        }
        let io = |path: &Path| {
            let path = path.to_owned();
            |source| ModelError::Io { path, source }
        };
        std::fs::create_dir_all(folder).map_err(io(folder))?;
        write_tensors(&folder.join(SINGLE_FILE), &self.host_weights()?)?;
        let mut settings = self.to_settings();
        settings["bos_token_id"] = special_tokens.bos.into();
        settings["pad_token_id"] = special_tokens.pad.into();
        settings["eos_token_id"] = match special_tokens.eos.as_slice() {
            [] => Value::Null,
            [one] => (*one).into(),
            several => several.into(),
        };
        let path = folder.join("config.json");
        std::fs::write(&path, format!("{settings:#}\n")).map_err(io(&path))
    }
}

impl From<Gpt2> for CausalLm {
    fn from(model: Gpt2) -> Self {
        Self::Gpt2(model)
    }
}

impl From<Llama> for CausalLm {
    fn from(model: Llama) -> Self {
        Self::Llama(model)
    }
}

impl LanguageModel for CausalLm {
    fn embed(&self, input_ids: Tensor<2, Int>, start: usize) -> Tensor<3> {
        each!(self, model => model.embed(input_ids, start))
    }

    fn blocks(&self) -> usize {
        each!(self, model => model.blocks())
    }

    fn block(&self, index: usize, states: Tensor<3>, cache: Option<&mut KvCache>) -> Tensor<3> {
        each!(self, model => model.block(index, states, cache))
    }

    fn normalize(&self, states: Tensor<3>) -> Tensor<3> {
        each!(self, model => model.normalize(states))
    }

    fn head(&self) -> Tensor<2> {
        each!(self, model => model.head())
    }

    fn positions(&self) -> usize {
        each!(self, model => model.positions())
    }

    fn vocabulary(&self) -> usize {
        each!(self, model => model.vocabulary())
    }

    fn default_targets(&self) -> Vec<String> {
        each!(self, model => model.default_targets())
    }

    fn host_weights(&self) -> Result<Vec<HostTensor>, ModelError> {
        each!(self, model => model.host_weights())
    }
}

impl FullParameters for CausalLm {
    fn visit_layers_mut(&mut self, visit: &mut dyn FnMut(LayerSlot<'_>)) {
        each!(self, model => model.visit_layers_mut(visit));
    }

    fn head_parameter(&self) -> (&'static str, ParamId) {
        each!(self, model => model.head_parameter())
    }
}

impl LinearLayers for CausalLm {
    fn visit_linears(&self, visit: &mut dyn FnMut(&str, &LoraLinear)) {
        each!(self, model => model.visit_linears(visit));
    }

    fn visit_linears_mut(&mut self, visit: &mut dyn FnMut(&str, &mut LoraLinear)) {
        each!(self, model => model.visit_linears_mut(visit));
    }

    fn fan_in_fan_out(&self) -> bool {
        each!(self, model => model.fan_in_fan_out())
    }
}
