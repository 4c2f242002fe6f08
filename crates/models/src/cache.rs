use burn::tensor::Tensor;

/// Keys and values of the tokens seen so far, one pair per layer.
#[derive(Debug, Clone, Default)]
pub struct KvCache {
    layers: Vec<[Tensor<4>; 2]>,
    length: usize,
}

impl KvCache {
    /// A cache that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many tokens it has seen.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether it has seen nothing.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Adds the new tokens' keys and values, `[batch, heads, time, head]`, of a layer and returns
    /// all of that layer. Layers come in order, each once per call of
    /// [`hidden_states`](crate::LanguageModel::hidden_states).
    pub fn extend(&mut self, layer: usize, key: Tensor<4>, value: Tensor<4>) -> [Tensor<4>; 2] {
        match self.layers.get_mut(layer) {
            Some(pair) => {
                let joined = [(pair[0].clone(), key), (pair[1].clone(), value)]
                    .map(|(old, new)| Tensor::cat(vec![old, new], 2));
                *pair = joined.clone();
                joined
            }
            None => {
                self.layers.push([key.clone(), value.clone()]);
                [key, value]
            }
        }
    }

    /// Counts the new tokens, once all layers have seen them.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.length += tokens;
    }
}
