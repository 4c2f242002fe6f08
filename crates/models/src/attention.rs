use burn::tensor::activation::softmax;
use burn::tensor::{Device, Tensor, TensorData};

use crate::cache::KvCache;
use crate::device_cache::DeviceCache;
use crate::fused::{causal_attention, masked_softmax};

/// Causal self-attention over any number of heads that share key and value heads.
///
/// Right padding needs no mask: a token never sees what comes after it, and the loss leaves the
/// padding out.
#[derive(Debug, Clone)]
pub(crate) struct Attention {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) scale: f64,
    /// How many tokens back a token sees, itself included.
    pub(crate) window: Option<usize>,
    pub(crate) masks: DeviceCache<MaskKey, 1>,
}

/// Queries, keys, tokens before the first query, heads folded into the rows, window.
pub(crate) type MaskKey = (usize, usize, usize, usize, Option<usize>);

impl Attention {
    /// Attends with `[batch, time, heads, head]` queries and `[batch, time, kv heads, head]` keys
    /// and values; gives `[batch, time, heads * head]`.
    pub(crate) fn forward(
        &self,
        query: Tensor<4>,
        key: Tensor<4>,
        value: Tensor<4>,
        cache: Option<(&mut KvCache, usize)>,
    ) -> Tensor<3> {
        if cache.is_none()
            && let Some(context) = causal_attention(self, &query, &key, &value)
        {
            return context;
        }
        self.composed(query, key, value, cache)
    }

    /// The same from Burn's operations.
    pub(crate) fn composed(
        &self,
        query: Tensor<4>,
        key: Tensor<4>,
        value: Tensor<4>,
        cache: Option<(&mut KvCache, usize)>,
    ) -> Tensor<3> {
        let [batch, time, heads, dim] = query.dims();
        let group = heads / self.kv_heads;
        let device = query.device();

        // Query heads that share a key head become rows of one product: no key is copied.
        let query = query * self.scale;
        let query = if group == 1 {
            query.swap_dims(1, 2)
        } else {
            query
                .reshape([batch, time, self.kv_heads, group, dim])
                .permute([0, 2, 3, 1, 4])
                .reshape([batch, self.kv_heads, group * time, dim])
        };
        let (key, value) = (key.swap_dims(1, 2), value.swap_dims(1, 2));
        let (past, [key, value]) = match cache {
            Some((cache, layer)) => (cache.len(), cache.extend(layer, key, value)),
            None => (0, [key, value]),
        };

        let keys = key.dims()[2];
        let scores = query.matmul(key.swap_dims(2, 3));
        let weights = match self.mask(time, keys, past, group, &device) {
            Some(mask) => masked_softmax(scores, mask),
            None => softmax(scores, 3),
        };
        let context = weights.matmul(value);
        if group == 1 {
            context.swap_dims(1, 2).reshape([batch, time, heads * dim])
        } else {
            context
                .reshape([batch, self.kv_heads, group, time, dim])
                .permute([0, 3, 1, 2, 4])
                .reshape([batch, time, heads * dim])
        }
    }

    /// Zero where a query sees a key, minus infinity elsewhere, `[1, 1, group * queries, keys]`;
    /// nothing if every query sees every key.
    fn mask(
        &self,
        queries: usize,
        keys: usize,
        past: usize,
        group: usize,
        device: &Device,
    ) -> Option<Tensor<4>> {
        let window = self.window.filter(|window| *window < keys);
        if queries == 1 && window.is_none() {
            return None;
        }
        let build = |device: &Device| {
            let visible = |query: usize, key: usize| {
                let position = past + query;
                key <= position && window.is_none_or(|window| position - key < window)
            };
            let one: Vec<f32> = (0..queries)
                .flat_map(|query| (0..keys).map(move |key| (query, key)))
                .map(|(query, key)| {
                    if visible(query, key) {
                        0.0
                    } else {
                        f32::NEG_INFINITY
                    }
                })
                .collect();
            let data = TensorData::new(one.repeat(group), [1, 1, group * queries, keys]);
            [Tensor::from_data(data, device)]
        };
        // While generating, every step has its own mask; caching those would be waste.
        let [mask] = if past > 0 {
            build(&device.clone().without_autodiff())
        } else {
            let key = (queries, keys, past, group, window);
            self.masks.get(key, device, build)
        };
        Some(mask)
    }
}
