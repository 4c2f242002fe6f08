//! Sampling text, token by token, with cached keys and values.

use std::ops::ControlFlow;

use burn::tensor::{Device, Tensor, TensorData, module::linear};
use rand::{Rng, RngExt};
use rldp_lora::frozen::widen;

use crate::{KvCache, LanguageModel, ModelError};

/// How the next token is chosen and when to stop.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationOptions {
    /// Tokens to add at most.
    pub max_new_tokens: usize,
    /// Divides the logits; 0 always takes the most likely token.
    pub temperature: f64,
    /// Choose among this many most likely tokens; all if absent.
    pub top_k: Option<usize>,
    /// Choose among the most likely tokens that together have this probability.
    pub top_p: f64,
    /// Tokens that end the text; they are not part of it.
    pub stop_tokens: Vec<u32>,
}

impl Default for GenerationOptions {
    fn default() -> Self {
        Self {
            max_new_tokens: 128,
            temperature: 1.0,
            top_k: None,
            top_p: 1.0,
            stop_tokens: Vec::new(),
        }
    }
}

impl GenerationOptions {
    /// Always the most likely token.
    pub fn greedy(max_new_tokens: usize) -> Self {
        Self {
            max_new_tokens,
            temperature: 0.0,
            ..Self::default()
        }
    }

    fn validate(&self) -> Result<(), ModelError> {
        let invalid = |name, requirement, value: String| {
            Err(ModelError::InvalidOption {
                name,
                requirement,
                value,
            })
        };
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            let value = self.temperature.to_string();
            return invalid("temperature", "finite and not negative", value);
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return invalid("top_p", "in (0, 1]", self.top_p.to_string());
        }
        if self.top_k == Some(0) {
            return invalid("top_k", "at least 1", "0".to_owned());
        }
        Ok(())
    }
}

/// Continues a prompt and returns the new tokens.
///
/// Each new token is shown to `on_token` as soon as it is chosen; breaking ends the text after it.
/// The text also ends when the model's positions are used up. With temperature 0 the result does
/// not depend on `rng` and equals the argmax of the uncached forward pass at every step.
///
/// # Errors
///
/// [`ModelError::InvalidOption`], [`ModelError::InvalidBatch`] for an empty prompt,
/// [`ModelError::TokenOutOfRange`], [`ModelError::ContextTooLong`] for a prompt beyond the model's
/// positions, [`ModelError::NonFiniteLogits`].
pub fn generate<M: LanguageModel>(
    model: &M,
    prompt: &[u32],
    options: &GenerationOptions,
    device: &Device,
    rng: &mut impl Rng,
    mut on_token: impl FnMut(u32) -> ControlFlow<()>,
) -> Result<Vec<u32>, ModelError> {
    options.validate()?;
    if prompt.is_empty() {
        return Err(ModelError::InvalidBatch {
            problem: "generation needs a prompt of at least one token".to_owned(),
        });
    }
    let vocabulary = model.vocabulary();
    if let Some(token) = prompt.iter().find(|token| **token as usize >= vocabulary) {
        return Err(ModelError::TokenOutOfRange {
            token: *token,
            vocabulary,
        });
    }
    let positions = model.positions();
    if prompt.len() > positions {
        return Err(ModelError::ContextTooLong {
            tokens: prompt.len(),
            positions,
        });
    }

    let device = device.clone().without_autodiff();
    // Widened once: every token needs all of it.
    let head = widen(model.head().without_autodiff()).swap_dims(0, 1);
    let mut cache = KvCache::new();
    let mut input = prompt.to_vec();
    let mut output = Vec::new();
    while output.len() < options.max_new_tokens && cache.len() + input.len() <= positions {
        let ids: Vec<i64> = input.iter().map(|token| i64::from(*token)).collect();
        let time = ids.len();
        let ids = Tensor::from_data(TensorData::new(ids, [1, time]), &device);
        let hidden = model
            .hidden_states(ids, Some(&mut cache))
            .without_autodiff();
        let last = hidden.narrow(1, time - 1, 1);
        let logits: Vec<f32> = linear(last, head.clone(), None)
            .to_data()
            .iter::<f32>()
            .collect();
        let position = cache.len() - 1;
        let token =
            choose(&logits, options, rng).ok_or(ModelError::NonFiniteLogits { position })?;
        if options.stop_tokens.contains(&token) {
            break;
        }
        output.push(token);
        if on_token(token).is_break() {
            break;
        }
        input = vec![token];
    }
    Ok(output)
}

/// The next token; nothing if the logits are no distribution.
fn choose(logits: &[f32], options: &GenerationOptions, rng: &mut impl Rng) -> Option<u32> {
    if logits.iter().any(|logit| logit.is_nan()) {
        return None;
    }
    let mut candidates: Vec<(u32, f64)> = (0u32..)
        .zip(logits)
        .map(|(token, logit)| (token, f64::from(*logit)))
        .collect();
    // Ties go to the smaller id, as an argmax has it.
    let best = *candidates
        .iter()
        .reduce(|best, next| if next.1 > best.1 { next } else { best })?;
    if !best.1.is_finite() {
        return None;
    }
    if options.temperature == 0.0 {
        return Some(best.0);
    }
    candidates.sort_by(|left, right| right.1.total_cmp(&left.1).then(left.0.cmp(&right.0)));
    candidates.truncate(options.top_k.unwrap_or(candidates.len()));
    for (_, weight) in &mut candidates {
        *weight = ((*weight - best.1) / options.temperature).exp();
    }
    let total: f64 = candidates.iter().map(|(_, weight)| weight).sum();
    // The smallest set of most likely tokens that reaches the probability, never empty.
    let mut kept = 0.0;
    let mut count = 0;
    for (_, weight) in &candidates {
        kept += weight;
        count += 1;
        if kept >= options.top_p * total {
            break;
        }
    }
    candidates.truncate(count);
    let mut left = rng.random::<f64>() * kept;
    for (token, weight) in &candidates {
        left -= weight;
        if left < 0.0 {
            return Some(*token);
        }
    }
    candidates.last().map(|(token, _)| *token)
}
