//! Llama 2, 3 and 3.2 (Touvron et al. 2023) and Mistral (Jiang et al. 2023).
//!
//! The two differ in what their configurations may say: Mistral has a sliding window and no biases.

use burn::module::{Module, Param, ParamId};
use burn::tensor::{Device, Int, Tensor, module::embedding};
use rldp_lora::frozen::widen;
use rldp_lora::{ForwardHook, HostTensor, LinearLayers, LoraLinear};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::attention::{Attention, MaskKey};
use crate::checkpoint::{Checkpoint, Start, Weights};
use crate::config::Settings;
use crate::device_cache::DeviceCache;
use crate::full::{FullParameters, LayerKind, LayerSlot, linear_slot};
use crate::fused::{gated_silu, linear};
use crate::linear::{
    LinearSpec, Storage, host_linears, take_linear, visit_blocks, visit_blocks_mut,
};
use crate::norm::{RmsNorm, frozen};
use crate::random::RandomWeights;
use crate::rotary::{RopeConfig, RopeScaling, Rotary};
use crate::{KvCache, LanguageModel, ModelError};

/// The shape of a Llama or a Mistral.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LlamaConfig {
    /// Which of the two it is.
    pub variant: Variant,
    /// How many tokens there are.
    pub vocabulary: usize,
    /// How many tokens fit into one sequence.
    pub positions: usize,
    /// How many blocks.
    pub layers: usize,
    /// Width of the hidden states.
    pub width: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; they divide the query heads.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Width inside the MLP.
    pub inner: usize,
    /// Added to the mean square in the norms.
    pub norm_epsilon: f64,
    /// Rotary positions.
    pub rope: RopeConfig,
    /// How many tokens back a token sees, itself included; all if absent.
    pub window: Option<usize>,
    /// Whether the attention's projections have biases.
    pub attention_bias: bool,
    /// Whether the MLP's projections have biases.
    pub mlp_bias: bool,
    /// Whether the output projection is the token embedding.
    pub tied_head: bool,
}

/// Which family a configuration belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// Llama 2, 3, 3.1, 3.2 and models of that architecture.
    Llama,
    /// Mistral 7B and models of that architecture.
    Mistral,
}

impl LlamaConfig {
    /// A Llama of the given size with as many key heads as query heads and a tied head.
    pub fn new(
        vocabulary: usize,
        positions: usize,
        layers: usize,
        width: usize,
        heads: usize,
    ) -> Self {
        Self {
            variant: Variant::Llama,
            vocabulary,
            positions,
            layers,
            width,
            heads,
            kv_heads: heads,
            head_dim: width / heads.max(1),
            inner: 4 * width,
            norm_epsilon: 1e-5,
            rope: RopeConfig {
                theta: 10_000.0,
                scaling: RopeScaling::Default,
            },
            window: None,
            attention_bias: false,
            mlp_bias: false,
            tied_head: true,
        }
    }

    /// Reads the settings of a `config.json`, refusing what is not implemented.
    ///
    /// # Errors
    ///
    /// A missing, unsupported or unknown setting by name; sizes that contradict each other.
    pub fn from_settings(variant: Variant, mut settings: Settings) -> Result<Self, ModelError> {
        let width = settings.require_usize("hidden_size")?;
        let heads = settings.require_usize("num_attention_heads")?;
        let llama = variant == Variant::Llama;
        let mut flag = |name: &str, default: bool| -> Result<bool, ModelError> {
            Ok(settings.take_bool(name)?.unwrap_or(default))
        };
        let tied_head = flag("tie_word_embeddings", false)?;
        let attention_bias = llama && flag("attention_bias", false)?;
        let mlp_bias = llama && flag("mlp_bias", false)?;
        let window = match variant {
            Variant::Llama => None,
            // Transformers' own default, for a configuration that does not say null.
            Variant::Mistral if !settings.contains("sliding_window") => Some(4096),
            Variant::Mistral => settings.take_usize("sliding_window")?,
        };
        let config = Self {
            variant,
            vocabulary: settings.require_usize("vocab_size")?,
            positions: settings
                .take_usize("max_position_embeddings")?
                .unwrap_or(2048),
            layers: settings.require_usize("num_hidden_layers")?,
            width,
            heads,
            kv_heads: settings.take_usize("num_key_value_heads")?.unwrap_or(heads),
            head_dim: settings.take_usize("head_dim")?.unwrap_or(width / heads),
            inner: settings.require_usize("intermediate_size")?,
            norm_epsilon: settings.take_f64("rms_norm_eps")?.unwrap_or(1e-6),
            rope: RopeConfig::take(&mut settings)?,
            window,
            attention_bias,
            mlp_bias,
            tied_head,
        };
        settings.only("hidden_act", "silu")?;
        settings.finish()?;
        config.validate()?;
        Ok(config)
    }

    /// The settings as a `config.json`.
    pub fn to_settings(&self) -> Value {
        let mut settings = json!({
            "attention_dropout": 0.0,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.width,
            "initializer_range": 0.02,
            "intermediate_size": self.inner,
            "max_position_embeddings": self.positions,
            "model_type": self.variant,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": self.norm_epsilon,
            "rope_theta": self.rope.theta,
            "tie_word_embeddings": self.tied_head,
            "torch_dtype": "float32",
            "vocab_size": self.vocabulary,
        });
        settings["rope_scaling"] = match &self.rope.scaling {
            RopeScaling::Default => Value::Null,
            scaling => json!(scaling),
        };
        match self.variant {
            Variant::Llama => {
                settings["architectures"] = json!(["LlamaForCausalLM"]);
                settings["attention_bias"] = json!(self.attention_bias);
                settings["mlp_bias"] = json!(self.mlp_bias);
            }
            Variant::Mistral => {
                settings["architectures"] = json!(["MistralForCausalLM"]);
                settings["sliding_window"] = json!(self.window);
            }
        }
        settings
    }

    fn validate(&self) -> Result<(), ModelError> {
        let problem = if self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            format!(
                "{} key heads do not divide {} query heads",
                self.kv_heads, self.heads
            )
        } else if self.head_dim == 0 || !self.head_dim.is_multiple_of(2) {
            format!("head width {} is not a positive even number", self.head_dim)
        } else if self.window == Some(0) {
            "a sliding window of 0 sees nothing".to_owned()
        } else {
            return Ok(());
        };
        Err(ModelError::InvalidConfig { problem })
    }
}

/// A Llama or Mistral language model.
#[derive(Module, Debug)]
pub struct Llama {
    token_embedding: Param<Tensor<2>>,
    blocks: Vec<Block>,
    final_norm: RmsNorm,
    head: Option<Param<Tensor<2>>>,
    #[module(skip)]
    embedding_hook: Option<ForwardHook>,
    #[module(skip)]
    config: LlamaConfig,
}

#[derive(Module, Debug)]
struct Block {
    norm_1: RmsNorm,
    query: LoraLinear,
    key: LoraLinear,
    value: LoraLinear,
    attention_out: LoraLinear,
    norm_2: RmsNorm,
    gate: LoraLinear,
    up: LoraLinear,
    down: LoraLinear,
    #[module(skip)]
    attention: Attention,
    #[module(skip)]
    rotary: Rotary,
}

/// Constants all blocks share.
struct Shared {
    masks: DeviceCache<MaskKey, 1>,
    rotary: Rotary,
}

impl Llama {
    /// A model with random weights, to be trained in full: `model.unfreeze().train()`.
    ///
    /// The weights depend on the seed only, not on the device.
    ///
    /// # Errors
    ///
    /// [`ModelError::InvalidConfig`].
    pub fn random(config: &LlamaConfig, seed: u64, device: &Device) -> Result<Self, ModelError> {
        Self::build(config, &mut RandomWeights::new(seed, device))
    }

    /// Takes the weights of a checkpoint.
    ///
    /// # Errors
    ///
    /// Those of the checkpoint, naming the tensor.
    pub fn from_checkpoint(
        config: &LlamaConfig,
        mut checkpoint: Checkpoint<'_>,
    ) -> Result<Self, ModelError> {
        let tied = config.tied_head;
        checkpoint.rename(|name| {
            // Old files hold the rotary frequencies; a tied head may be stored a second time.
            let drop = name.ends_with(".rotary_emb.inv_freq") || (tied && name == "lm_head.weight");
            (!drop).then(|| name.to_owned())
        })?;
        let model = Self::build(config, &mut checkpoint)?;
        checkpoint.finish()?;
        Ok(model)
    }

    /// The model's shape.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    fn build<W: Weights>(config: &LlamaConfig, weights: &mut W) -> Result<Self, ModelError> {
        config.validate()?;
        let LlamaConfig {
            vocabulary, width, ..
        } = *config;
        let start = Start::Normal(0.02);
        let token_embedding =
            weights.take("model.embed_tokens.weight", [vocabulary, width], start)?;
        let shared = Shared {
            masks: DeviceCache::default(),
            rotary: Rotary::new(&config.rope, config.head_dim),
        };
        let blocks = (0..config.layers)
            .map(|layer| Block::build(config, layer, &shared, weights))
            .collect::<Result<_, _>>()?;
        let final_norm = RmsNorm::take(weights, "model.norm", width, config.norm_epsilon)?;
        let head = match config.tied_head {
            true => None,
            false => Some(weights.take("lm_head.weight", [vocabulary, width], start)?),
        };
        Ok(Self {
            token_embedding: frozen(token_embedding),
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
        config: &LlamaConfig,
        layer: usize,
        shared: &Shared,
        weights: &mut W,
    ) -> Result<Self, ModelError> {
        let LlamaConfig {
            width,
            inner,
            heads,
            kv_heads,
            head_dim,
            ..
        } = *config;
        let mut linear = |part: &str, inputs: usize, outputs: usize, bias: bool| {
            let spec = LinearSpec {
                inputs,
                outputs,
                bias,
                storage: Storage::OutIn,
                deviation: 0.02,
            };
            take_linear(weights, &format!("model.layers.{layer}.{part}"), spec)
        };
        let bias = config.attention_bias;
        let query = linear("self_attn.q_proj", width, heads * head_dim, bias)?;
        let key = linear("self_attn.k_proj", width, kv_heads * head_dim, bias)?;
        let value = linear("self_attn.v_proj", width, kv_heads * head_dim, bias)?;
        let attention_out = linear("self_attn.o_proj", heads * head_dim, width, bias)?;
        let gate = linear("mlp.gate_proj", width, inner, config.mlp_bias)?;
        let up = linear("mlp.up_proj", width, inner, config.mlp_bias)?;
        let down = linear("mlp.down_proj", inner, width, config.mlp_bias)?;
        let mut norm = |part: &str| {
            let name = format!("model.layers.{layer}.{part}");
            RmsNorm::take(weights, &name, width, config.norm_epsilon)
        };
        Ok(Self {
            norm_1: norm("input_layernorm")?,
            norm_2: norm("post_attention_layernorm")?,
            query,
            key,
            value,
            attention_out,
            gate,
            up,
            down,
            attention: Attention {
                heads,
                kv_heads,
                head_dim,
                scale: 1.0 / (head_dim as f64).sqrt(),
                window: config.window,
                masks: shared.masks.clone(),
            },
            rotary: shared.rotary.clone(),
        })
    }

    fn forward(&self, x: Tensor<3>, cache: Option<(&mut KvCache, usize)>) -> Tensor<3> {
        let [examples, time, _] = x.dims();
        let start = cache.as_ref().map_or(0, |(cache, _)| cache.len());
        let split = |projection: Tensor<3>, heads: usize| {
            projection.reshape([examples, time, heads, self.attention.head_dim])
        };
        let normed = self.norm_1.forward(x.clone());
        let query = split(
            linear(&self.query, normed.clone(), None),
            self.attention.heads,
        );
        let key = split(
            linear(&self.key, normed.clone(), None),
            self.attention.kv_heads,
        );
        let value = split(linear(&self.value, normed, None), self.attention.kv_heads);
        let context = self.attention.forward(
            self.rotary.forward(query, start),
            self.rotary.forward(key, start),
            value,
            cache,
        );
        let x = linear(&self.attention_out, context, Some(x));
        let normed = self.norm_2.forward(x.clone());
        let gate = linear(&self.gate, normed.clone(), None);
        let up = linear(&self.up, normed, None);
        linear(&self.down, gated_silu(gate, up), Some(x))
    }

    fn linears(&self) -> [(&'static str, &LoraLinear); 7] {
        [
            ("self_attn.q_proj", &self.query),
            ("self_attn.k_proj", &self.key),
            ("self_attn.v_proj", &self.value),
            ("self_attn.o_proj", &self.attention_out),
            ("mlp.gate_proj", &self.gate),
            ("mlp.up_proj", &self.up),
            ("mlp.down_proj", &self.down),
        ]
    }

    fn linears_mut(&mut self) -> [(&'static str, &mut LoraLinear); 7] {
        [
            ("self_attn.q_proj", &mut self.query),
            ("self_attn.k_proj", &mut self.key),
            ("self_attn.v_proj", &mut self.value),
            ("self_attn.o_proj", &mut self.attention_out),
            ("mlp.gate_proj", &mut self.gate),
            ("mlp.up_proj", &mut self.up),
            ("mlp.down_proj", &mut self.down),
        ]
    }
}

impl LanguageModel for Llama {
    fn embed(&self, input_ids: Tensor<2, Int>, _start: usize) -> Tensor<3> {
        let states = widen(embedding(self.token_embedding.val(), input_ids));
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
        [
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ]
        .map(str::to_owned)
        .to_vec()
    }

    fn host_weights(&self) -> Result<Vec<HostTensor>, ModelError> {
        let mut tensors = vec![HostTensor::from_tensor(
            "model.embed_tokens.weight",
            self.token_embedding.val(),
        )?];
        if let Some(head) = &self.head {
            tensors.push(HostTensor::from_tensor("lm_head.weight", head.val())?);
        }
        tensors.extend(host_linears(self, Storage::OutIn)?);
        let mut norms = vec![("model.norm".to_owned(), &self.final_norm)];
        for (layer, block) in self.blocks.iter().enumerate() {
            let name = |part: &str| format!("model.layers.{layer}.{part}");
            norms.push((name("input_layernorm"), &block.norm_1));
            norms.push((name("post_attention_layernorm"), &block.norm_2));
        }
        for (name, norm) in norms {
            let name = format!("{name}.weight");
            tensors.push(HostTensor::from_tensor(&name, norm.weight.val())?);
        }
        Ok(tensors)
    }
}

impl FullParameters for Llama {
    fn visit_layers_mut(&mut self, visit: &mut dyn FnMut(LayerSlot<'_>)) {
        visit(LayerSlot {
            name: "model.embed_tokens".to_owned(),
            kind: LayerKind::Embedding {
                tokens: self.token_embedding.id,
                vocabulary: self.config.vocabulary,
                positions: None,
            },
            hook: &mut self.embedding_hook,
        });
        for (layer, block) in self.blocks.iter_mut().enumerate() {
            let name = |part: &str| format!("model.layers.{layer}.{part}");
            visit(block.norm_1.slot(name("input_layernorm")));
            visit(block.norm_2.slot(name("post_attention_layernorm")));
            for (part, linear) in block.linears_mut() {
                visit(linear_slot(name(part), linear));
            }
        }
        visit(self.final_norm.slot("model.norm".to_owned()));
    }

    fn head_parameter(&self) -> (&'static str, ParamId) {
        match &self.head {
            Some(head) => ("lm_head", head.id),
            None => ("model.embed_tokens", self.token_embedding.id),
        }
    }
}

impl LinearLayers for Llama {
    fn visit_linears(&self, visit: &mut dyn FnMut(&str, &LoraLinear)) {
        visit_blocks(&self.blocks, "model.layers", Block::linears, visit);
    }

    fn visit_linears_mut(&mut self, visit: &mut dyn FnMut(&str, &mut LoraLinear)) {
        visit_blocks_mut(&mut self.blocks, "model.layers", Block::linears_mut, visit);
    }
}
