//! What a user writes to add an architecture, and what then works with it.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use burn::module::{Module, Param, ParamId};
use burn::tensor::activation::tanh;
use burn::tensor::{Int, Tensor, module::embedding};
use common::{devices, max_difference, norm, values};
use rand::{SeedableRng, rngs::ChaCha12Rng};
use rldp_lora::{HostTensor, LinearLayers, LoraConfig, LoraLinear, add_lora, write_tensors};
use rldp_models::checkpoint::{Checkpoint, Start, Weights};
use rldp_models::config::Settings;
use rldp_models::{
    Activations, Batch, GenerationOptions, KvCache, LanguageModel, ModelError, Registry, Row,
    generate, per_example_pass,
};
use serde_json::json;

/// Residual layers on a token embedding, each token by itself.
#[derive(Module, Debug)]
struct Markov {
    tokens: Param<Tensor<2>>,
    layers: Vec<LoraLinear>,
}

impl Markov {
    fn build(mut settings: Settings, mut weights: Checkpoint<'_>) -> Result<Self, ModelError> {
        let vocabulary = settings.require_usize("vocab_size")?;
        let width = settings.require_usize("hidden_size")?;
        let count = settings.require_usize("num_layers")?;
        settings.finish()?;
        let start = Start::Normal(0.1);
        let tokens = weights.take("tokens", [vocabulary, width], start)?;
        let layers = (0..count)
            .map(|n| weights.take(&format!("layers.{n}.weight"), [width, width], start))
            .map(|weight| weight.map(|weight| LoraLinear::new(weight, None)))
            .collect::<Result<_, _>>()?;
        weights.finish()?;
        Ok(Self {
            tokens: Param::initialized(ParamId::new(), tokens),
            layers,
        })
    }
}

impl LinearLayers for Markov {
    fn visit_linears(&self, visit: &mut dyn FnMut(&str, &LoraLinear)) {
        for (n, layer) in self.layers.iter().enumerate() {
            visit(&format!("layers.{n}"), layer);
        }
    }

    fn visit_linears_mut(&mut self, visit: &mut dyn FnMut(&str, &mut LoraLinear)) {
        for (n, layer) in self.layers.iter_mut().enumerate() {
            visit(&format!("layers.{n}"), layer);
        }
    }
}

impl LanguageModel for Markov {
    fn embed(&self, input_ids: Tensor<2, Int>, _start: usize) -> Tensor<3> {
        embedding(self.tokens.val(), input_ids)
    }

    fn blocks(&self) -> usize {
        self.layers.len()
    }

    fn block(&self, index: usize, states: Tensor<3>, _cache: Option<&mut KvCache>) -> Tensor<3> {
        states.clone() + tanh(self.layers[index].forward(states))
    }

    fn normalize(&self, states: Tensor<3>) -> Tensor<3> {
        states
    }

    fn head(&self) -> Tensor<2> {
        self.tokens.val()
    }

    fn positions(&self) -> usize {
        64
    }

    fn vocabulary(&self) -> usize {
        self.tokens.dims()[0]
    }

    fn default_targets(&self) -> Vec<String> {
        vec!["all-linear".to_owned()]
    }

    fn host_weights(&self) -> Result<Vec<HostTensor>, ModelError> {
        let mut list = vec![HostTensor::from_tensor("tokens", self.tokens.val())?];
        for (n, layer) in self.layers.iter().enumerate() {
            let name = format!("layers.{n}.weight");
            list.push(HostTensor::from_tensor(&name, layer.weight.val())?);
        }
        Ok(list)
    }
}

fn checkpoint() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let settings = json!({
        "model_type": "markov", "vocab_size": 11, "hidden_size": 4, "num_layers": 3
    });
    std::fs::write(folder.path().join("config.json"), settings.to_string()).unwrap();
    let tensor = |name: &str, shape: [usize; 2], step: f32| HostTensor {
        name: name.to_owned(),
        shape: shape.to_vec(),
        data: (0..shape[0] * shape[1])
            .map(|i| (step * i as f32).sin())
            .collect(),
    };
    let mut tensors = vec![tensor("tokens", [11, 4], 0.7)];
    tensors.extend((0..3).map(|n| tensor(&format!("layers.{n}.weight"), [4, 4], 0.3 + n as f32)));
    write_tensors(&folder.path().join("model.safetensors"), &tensors).unwrap();
    folder
}

#[test]
fn an_architecture_of_ones_own_loads_trains_and_generates() {
    let mut registry = Registry::default();
    registry.register("markov", Markov::build);
    let folder = checkpoint();
    for (backend, device) in devices() {
        let mut model = registry.load(folder.path(), &device, |_| {}).unwrap().model;
        let config = LoraConfig::new(2, model.default_targets());
        add_lora(&mut model, &config, 1).unwrap();
        let rows = [Row::new(vec![1, 2, 3, 4]), Row::new(vec![9, 8])];
        let batch = Batch::from_rows(&rows, &device).unwrap();
        let kept = per_example_pass(&model, &batch, Activations::Kept).unwrap();
        let again = per_example_pass(&model, &batch, Activations::Recomputed).unwrap();
        assert_eq!(kept.gradients.len(), 3);
        for (kept, again) in kept.gradients.into_iter().zip(again.gradients) {
            let (kept, again) = (values(kept.b), values(again.b));
            assert!(norm(&kept) > 0.0, "{backend}");
            let worst = max_difference(&again, &kept, |_| true);
            assert!(worst <= 2e-6 * norm(&kept), "{backend}: {worst:e}");
        }
        let options = GenerationOptions::greedy(5);
        let mut rng = ChaCha12Rng::seed_from_u64(1);
        let made = generate(&model, &[3], &options, &device, &mut rng, |_| {
            std::ops::ControlFlow::Continue(())
        });
        assert_eq!(made.unwrap().len(), 5, "{backend}");
    }
}
