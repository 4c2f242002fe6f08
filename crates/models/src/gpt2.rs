//! GPT-2 (Radford et al. 2019): learned positions, pre-norm blocks, Conv1D weights, tied head.

use burn::module::{Module, Param, ParamId};
use burn::tensor::{Int, Tensor, module::embedding};
use rldp_lora::frozen::widen;
use rldp_lora::{ForwardHook, HostTensor, LinearLayers, LoraLinear};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::activation::Activation;
use crate::attention::Attention;
use crate::checkpoint::{Checkpoint, Start, Weights};
use crate::config::Settings;
use crate::full::{FullParameters, LayerKind, LayerSlot, linear_slot};
use crate::fused::{linear, packed_causal_attention};
use crate::linear::{
    LinearSpec, Storage, host_linears, take_linear, visit_blocks, visit_blocks_mut,
};
use crate::norm::{LayerNorm, frozen};
use crate::random::RandomWeights;
use crate::{KvCache, LanguageModel, ModelError};

/// The shape of a GPT-2.
///
/// # Example
///
/// ```
/// use rldp_models::{Gpt2, Gpt2Config, LanguageModel};
///
/// let config = Gpt2Config::new(1000, 128, 4, 64, 4); // vocabulary, positions, layers, width, heads
/// let model = Gpt2::random(&config, 7, &Default::default())?;
/// assert_eq!(model.positions(), 128);
/// # Ok::<(), rldp_models::ModelError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Gpt2Config {
    /// How many tokens there are.
    pub vocabulary: usize,
    /// How many tokens fit into one sequence.
    pub positions: usize,
    /// How many blocks.
    pub layers: usize,
    /// Width of the hidden states.
    pub width: usize,
    /// Attention heads; they divide the width.
    pub heads: usize,
    /// Width inside the MLP.
    pub inner: usize,
    /// Added to the variance in the norms.
    pub norm_epsilon: f64,
    /// Activation of the MLP.
    pub activation: Activation,
    /// Whether attention scores are divided by the square root of the head's width.
    pub scale_attention: bool,
    /// Whether attention scores are also divided by the layer's number.
    pub scale_by_layer: bool,
    /// Whether the output projection is the token embedding.
    pub tied_head: bool,
}

impl Gpt2Config {
    /// The usual GPT-2 of the given size: an MLP four times as wide, `gelu_new`, tied head.
    pub fn new(
        vocabulary: usize,
        positions: usize,
        layers: usize,
        width: usize,
        heads: usize,
    ) -> Self {
        Self {
            vocabulary,
            positions,
            layers,
            width,
            heads,
            inner: 4 * width,
            norm_epsilon: 1e-5,
            activation: Activation::GeluNew,
            scale_attention: true,
            scale_by_layer: false,
            tied_head: true,
        }
    }

    /// Reads the settings of a `config.json`, refusing what is not implemented.
    ///
    /// # Errors
    ///
    /// A missing, unsupported or unknown setting by name; sizes that contradict each other.
    pub fn from_settings(mut settings: Settings) -> Result<Self, ModelError> {
        let width = settings.require_usize("n_embd")?;
        let activation = match settings.take("activation_function") {
            None => Activation::GeluNew,
            Some(value) => serde_json::from_value(value.clone()).map_err(|_| {
                let known = "implemented are gelu_new, gelu_pytorch_tanh, gelu and relu";
                settings.refuse("activation_function", &value, known)
            })?,
        };
        let config = Self {
            vocabulary: settings.require_usize("vocab_size")?,
            positions: settings.require_usize("n_positions")?,
            layers: settings.require_usize("n_layer")?,
            width,
            heads: settings.require_usize("n_head")?,
            inner: settings.take_usize("n_inner")?.unwrap_or(4 * width),
            norm_epsilon: settings.take_f64("layer_norm_epsilon")?.unwrap_or(1e-5),
            activation,
            scale_attention: settings.take_bool("scale_attn_weights")?.unwrap_or(true),
            scale_by_layer: settings
                .take_bool("scale_attn_by_inverse_layer_idx")?
                .unwrap_or(false),
            tied_head: settings.take_bool("tie_word_embeddings")?.unwrap_or(true),
        };
        settings.only("add_cross_attention", false)?;
        settings.only("reorder_and_upcast_attn", false)?;
        // The context length under its name in the first releases.
        settings.only("n_ctx", config.positions)?;
        settings.finish()?;
        config.validate()?;
        Ok(config)
    }

    /// The settings as a `config.json`.
    pub fn to_settings(&self) -> Value {
        json!({
            "activation_function": self.activation,
            "architectures": ["GPT2LMHeadModel"],
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "initializer_range": 0.02,
            "layer_norm_epsilon": self.norm_epsilon,
            "model_type": "gpt2",
            "n_embd": self.width,
            "n_head": self.heads,
            "n_inner": self.inner,
            "n_layer": self.layers,
            "n_positions": self.positions,
            "resid_pdrop": 0.0,
            "scale_attn_by_inverse_layer_idx": self.scale_by_layer,
            "scale_attn_weights": self.scale_attention,
            "tie_word_embeddings": self.tied_head,
            "torch_dtype": "float32",
            "vocab_size": self.vocabulary,
        })
    }

    fn validate(&self) -> Result<(), ModelError> {
        if self.heads == 0 || !self.width.is_multiple_of(self.heads) {
            return Err(ModelError::InvalidConfig {
                problem: format!("{} heads do not divide width {}", self.heads, self.width),
            });
        }
        Ok(())
    }
}

/// A GPT-2 language model.
#[derive(Module, Debug)]
pub struct Gpt2 {
    token_embedding: Param<Tensor<2>>,
    position_embedding: Param<Tensor<2>>,
    blocks: Vec<Block>,
    final_norm: LayerNorm,
    head: Option<Param<Tensor<2>>>,
    #[module(skip)]
    embedding_hook: Option<ForwardHook>,
    #[module(skip)]
    config: Gpt2Config,
}

#[derive(Module, Debug)]
struct Block {
    norm_1: LayerNorm,
    qkv: LoraLinear,
    attention_out: LoraLinear,
    norm_2: LayerNorm,
    mlp_in: LoraLinear,
    mlp_out: LoraLinear,
    #[module(skip)]
    attention: Attention,
    #[module(skip)]
    activation: Activation,
}

impl Gpt2 {
    /// A model with random weights, to be trained in full: `model.unfreeze().train()`.
    ///
    /// The weights depend on the seed only, not on the device.
    ///
    /// # Errors
    ///
    /// [`ModelError::InvalidConfig`].
    pub fn random(
        config: &Gpt2Config,
        seed: u64,
        device: &burn::tensor::Device,
    ) -> Result<Self, ModelError> {
        Self::build(config, &mut RandomWeights::new(seed, device))
    }

    /// Takes the weights of a checkpoint, with or without the `transformer.` prefix.
    ///
    /// # Errors
    ///
    /// Those of the checkpoint, naming the tensor.
    pub fn from_checkpoint(
        config: &Gpt2Config,
        mut checkpoint: Checkpoint<'_>,
    ) -> Result<Self, ModelError> {
        let tied = config.tied_head;
        checkpoint.rename(|name| {
            let name = name.strip_prefix("transformer.").unwrap_or(name);
            // The causal mask was once stored as buffers; a tied head may be stored a second time.
            let buffer = name.starts_with("h.")
                && (name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias"));
            let drop = buffer || (tied && name == "lm_head.weight");
            (!drop).then(|| name.to_owned())
        })?;
        let model = Self::build(config, &mut checkpoint)?;
        checkpoint.finish()?;
        Ok(model)
    }

    /// The model's shape.
    pub fn config(&self) -> &Gpt2Config {
        &self.config
    }

    fn build<W: Weights>(config: &Gpt2Config, weights: &mut W) -> Result<Self, ModelError> {
        config.validate()?;
        let embedding = Start::Normal(0.02);
        let Gpt2Config {
            vocabulary,
            positions,
            width,
            norm_epsilon,
            ..
        } = *config;
        let token_embedding = weights.take("wte.weight", [vocabulary, width], embedding)?;
        let position_embedding = weights.take("wpe.weight", [positions, width], embedding)?;
        let masks = crate::device_cache::DeviceCache::default();
        let blocks = (0..config.layers)
            .map(|layer| Block::build(config, layer, &masks, weights))
            .collect::<Result<_, _>>()?;
        let final_norm = LayerNorm::take(weights, "ln_f", width, norm_epsilon)?;
        let head = match config.tied_head {
            true => None,
            false => Some(weights.take("lm_head.weight", [vocabulary, width], embedding)?),
        };
        Ok(Self {
            token_embedding: frozen(token_embedding),
            position_embedding: frozen(position_embedding),
            blocks,
            final_norm,
            head: head.map(frozen),
            embedding_hook: None,
            config: config.clone(),
        })
    }
}

impl Block {
    fn build<W: Weights>(
        config: &Gpt2Config,
        layer: usize,
        masks: &crate::device_cache::DeviceCache<crate::attention::MaskKey, 1>,
        weights: &mut W,
    ) -> Result<Self, ModelError> {
        let width = config.width;
        let head_dim = width / config.heads;
        let name = |part: &str| format!("h.{layer}.{part}");
        // Projections back into the residual stream start smaller, by the number of additions.
        let residual = 0.02 / (2.0 * config.layers as f64).sqrt();
        let spec = |inputs, outputs, deviation| LinearSpec {
            inputs,
            outputs,
            bias: true,
            storage: Storage::InOut,
            deviation,
        };
        let mut scale = 1.0;
        if config.scale_attention {
            scale /= (head_dim as f64).sqrt();
        }
        if config.scale_by_layer {
            scale /= (layer + 1) as f64;
        }
        let epsilon = config.norm_epsilon;
        Ok(Self {
            norm_1: LayerNorm::take(weights, &name("ln_1"), width, epsilon)?,
            qkv: take_linear(weights, &name("attn.c_attn"), spec(width, 3 * width, 0.02))?,
            attention_out: take_linear(
                weights,
                &name("attn.c_proj"),
                spec(width, width, residual),
            )?,
            norm_2: LayerNorm::take(weights, &name("ln_2"), width, epsilon)?,
            mlp_in: take_linear(weights, &name("mlp.c_fc"), spec(width, config.inner, 0.02))?,
            mlp_out: take_linear(
                weights,
                &name("mlp.c_proj"),
                spec(config.inner, width, residual),
            )?,
            attention: Attention {
                heads: config.heads,
                kv_heads: config.heads,
                head_dim,
                scale,
                window: None,
                masks: masks.clone(),
            },
            activation: config.activation,
        })
    }

    fn forward(&self, x: Tensor<3>, cache: Option<(&mut KvCache, usize)>) -> Tensor<3> {
        let [examples, time, width] = x.dims();
        let qkv = linear(&self.qkv, self.norm_1.forward(x.clone()), None);
        let part = |index: usize| {
            let shape = [
                examples,
                time,
                self.attention.heads,
                self.attention.head_dim,
            ];
            qkv.clone().narrow(2, index * width, width).reshape(shape)
        };
        let whole = match cache {
            None => packed_causal_attention(&self.attention, &qkv),
            Some(_) => None,
        };
        let context =
            whole.unwrap_or_else(|| self.attention.forward(part(0), part(1), part(2), cache));
        let x = linear(&self.attention_out, context, Some(x));
        let inner = linear(&self.mlp_in, self.norm_2.forward(x.clone()), None);
        linear(&self.mlp_out, self.activation.forward(inner), Some(x))
    }
}

impl LanguageModel for Gpt2 {
    fn embed(&self, input_ids: Tensor<2, Int>, start: usize) -> Tensor<3> {
        let [_, time] = input_ids.dims();
        let positions = self.position_embedding.val().narrow(0, start, time);
        let states = widen(embedding(self.token_embedding.val(), input_ids));
        let states = states + widen(positions).unsqueeze();
        match &self.embedding_hook {
            None => states,
            Some(hook) => hook.call(states.clone(), states),
        }
    }

    fn blocks(&self) -> usize {
        self.blocks.len()
    }

    fn block(&self, index: usize, states: Tensor<3>, cache: Option<&mut KvCache>) -> Tensor<3> {
        self.blocks[index].forward(states, cache.map(|cache| (cache, index)))
    }

    fn normalize(&self, states: Tensor<3>) -> Tensor<3> {
        self.final_norm.forward(states)
    }

    fn head(&self) -> Tensor<2> {
        self.head.as_ref().unwrap_or(&self.token_embedding).val()
    }

    fn positions(&self) -> usize {
        self.config.positions
    }

    fn vocabulary(&self) -> usize {
        self.config.vocabulary
    }

    fn default_targets(&self) -> Vec<String> {
        vec!["c_attn".to_owned(), "c_proj".to_owned(), "c_fc".to_owned()]
    }

    fn host_weights(&self) -> Result<Vec<HostTensor>, ModelError> {
        let mut tensors = Vec::new();
        let mut add = |name: String, tensor: Tensor<2>| -> Result<(), ModelError> {
            tensors.push(HostTensor::from_tensor(&name, tensor)?);
            Ok(())
        };
        add(
            "transformer.wte.weight".to_owned(),
            self.token_embedding.val(),
        )?;
        add(
            "transformer.wpe.weight".to_owned(),
            self.position_embedding.val(),
        )?;
        if let Some(head) = &self.head {
            add("lm_head.weight".to_owned(), head.val())?;
        }
        tensors.extend(host_linears(self, Storage::InOut)?);
        let mut norms = vec![("transformer.ln_f".to_owned(), &self.final_norm)];
        for (layer, block) in self.blocks.iter().enumerate() {
            norms.push((format!("transformer.h.{layer}.ln_1"), &block.norm_1));
            norms.push((format!("transformer.h.{layer}.ln_2"), &block.norm_2));
        }
        for (name, norm) in norms {
            for (part, value) in [("weight", &norm.weight), ("bias", &norm.bias)] {
                let name = format!("{name}.{part}");
                tensors.push(HostTensor::from_tensor(&name, value.val())?);
            }
        }
        Ok(tensors)
    }
}

impl Block {
    fn linears(&self) -> [(&'static str, &LoraLinear); 4] {
        [
            ("attn.c_attn", &self.qkv),
            ("attn.c_proj", &self.attention_out),
            ("mlp.c_fc", &self.mlp_in),
            ("mlp.c_proj", &self.mlp_out),
        ]
    }

    fn linears_mut(&mut self) -> [(&'static str, &mut LoraLinear); 4] {
        [
            ("attn.c_attn", &mut self.qkv),
            ("attn.c_proj", &mut self.attention_out),
            ("mlp.c_fc", &mut self.mlp_in),
            ("mlp.c_proj", &mut self.mlp_out),
        ]
    }
}

impl FullParameters for Gpt2 {
    fn visit_layers_mut(&mut self, visit: &mut dyn FnMut(LayerSlot<'_>)) {
        visit(LayerSlot {
            name: "transformer.wte".to_owned(),
            kind: LayerKind::Embedding {
                tokens: self.token_embedding.id,
                vocabulary: self.config.vocabulary,
                positions: Some((self.position_embedding.id, self.config.positions)),
            },
            hook: &mut self.embedding_hook,
        });
        for (layer, block) in self.blocks.iter_mut().enumerate() {
            let name = |part: &str| format!("transformer.h.{layer}.{part}");
            visit(block.norm_1.slot(name("ln_1")));
            visit(linear_slot(name("attn.c_attn"), &mut block.qkv));
            visit(linear_slot(name("attn.c_proj"), &mut block.attention_out));
            visit(block.norm_2.slot(name("ln_2")));
            visit(linear_slot(name("mlp.c_fc"), &mut block.mlp_in));
            visit(linear_slot(name("mlp.c_proj"), &mut block.mlp_out));
        }
        visit(self.final_norm.slot("transformer.ln_f".to_owned()));
    }

    fn head_parameter(&self) -> (&'static str, ParamId) {
        match &self.head {
            Some(head) => ("lm_head", head.id),
            None => ("transformer.wte", self.token_embedding.id),
        }
    }
}

impl LinearLayers for Gpt2 {
    fn visit_linears(&self, visit: &mut dyn FnMut(&str, &LoraLinear)) {
        visit_blocks(&self.blocks, "transformer.h", Block::linears, visit);
    }

    fn visit_linears_mut(&mut self, visit: &mut dyn FnMut(&str, &mut LoraLinear)) {
        visit_blocks_mut(&mut self.blocks, "transformer.h", Block::linears_mut, visit);
    }

    fn fan_in_fan_out(&self) -> bool {
        true
    }
}
