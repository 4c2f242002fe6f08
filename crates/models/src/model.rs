use burn::module::Module;
use burn::tensor::{Int, Tensor};
use rldp_lora::{HostTensor, LinearLayers, frozen};

use crate::loss::{self, TokenLosses};
use crate::{Batch, KvCache, ModelError};

/// A causal language model: what the loss, generation and training need of an architecture.
///
/// An architecture of your own implements this trait and [`LinearLayers`], and is then fine-tuned,
/// sampled from and saved like the built-in ones.
pub trait LanguageModel: Module + LinearLayers {
    /// The states before the first block, `[examples, time, hidden]`, in f32.
    ///
    /// The first token stands at position `start`.
    ///
    /// # Panics
    ///
    /// If the tokens do not fit into [`Self::positions`].
    fn embed(&self, input_ids: Tensor<2, Int>, start: usize) -> Tensor<3>;

    /// How many blocks there are.
    fn blocks(&self) -> usize;

    /// The states after block `index`.
    ///
    /// With a cache, the states are those of the tokens after the ones the cache has seen; the
    /// block's keys and values join it ([`KvCache::extend`]).
    fn block(&self, index: usize, states: Tensor<3>, cache: Option<&mut KvCache>) -> Tensor<3>;

    /// The final norm.
    fn normalize(&self, states: Tensor<3>) -> Tensor<3>;

    /// The output projection, `[vocabulary, hidden]`, in f32, f16 or bf16; for tied models the token
    /// embedding.
    fn head(&self) -> Tensor<2>;

    /// How many tokens fit into one sequence.
    fn positions(&self) -> usize;

    /// How many tokens there are.
    fn vocabulary(&self) -> usize;

    /// Layers a LoRA adapter goes to unless told otherwise.
    fn default_targets(&self) -> Vec<String>;

    /// The weights under their Hugging Face names, without adapters.
    ///
    /// # Errors
    ///
    /// When a tensor cannot be read from its device.
    fn host_weights(&self) -> Result<Vec<HostTensor>, ModelError>;

    /// The last hidden states, `[examples, time, hidden]`, after the final norm.
    ///
    /// With a cache, `input_ids` follow the tokens the cache has seen, and join them.
    ///
    /// # Panics
    ///
    /// If the tokens do not fit into [`Self::positions`].
    fn hidden_states(
        &self,
        input_ids: Tensor<2, Int>,
        mut cache: Option<&mut KvCache>,
    ) -> Tensor<3> {
        let [_, time] = input_ids.dims();
        let start = cache.as_ref().map_or(0, |cache| cache.len());
        let mut states = self.embed(input_ids, start);
        for index in 0..self.blocks() {
            states = self.block(index, states, cache.as_deref_mut());
        }
        if let Some(cache) = cache {
            cache.advance(time);
        }
        self.normalize(states)
    }

    /// Next-token logits at every position, `[examples, time, vocabulary]`.
    ///
    /// For right-padded rows no mask is needed: a token never sees what comes after it.
    fn forward(&self, input_ids: Tensor<2, Int>) -> Tensor<3> {
        let hidden = self.hidden_states(input_ids, None);
        frozen::linear(hidden, self.head().swap_dims(0, 1), None)
    }

    /// Each example's loss: the mean over its counted targets of `-ln p(target)`, `[examples]`.
    ///
    /// An example without counted targets has loss zero.
    fn per_example_loss(&self, batch: &Batch) -> Tensor<1> {
        self.per_example_token_loss(batch).means()
    }

    /// Each example's sum of `-ln p(target)` and count of targets.
    fn per_example_token_loss(&self, batch: &Batch) -> TokenLosses {
        let hidden = self.hidden_states(batch.input_ids.clone(), None);
        loss::token_losses(hidden, self.head(), batch)
    }
}
