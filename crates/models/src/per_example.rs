//! Losses and per-example gradients of a batch in one call, with or without the blocks'
//! intermediate values kept.

use burn::tensor::Tensor;
use rldp_lora::{
    AdapterGradients, CollectedGradients, LoraError, expand_adapters, expand_adapters_repeatably,
    per_example_gradients,
};
use serde::{Deserialize, Serialize};

use crate::loss::token_losses;
use crate::{Batch, LanguageModel, ModelError};

/// What the backward pass finds in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activations {
    /// Every intermediate value of every block: the fastest.
    #[default]
    Kept,
    /// The input of every block; one block at a time is run again for its backward pass (gradient
    /// checkpointing, Chen et al. 2016). About a third more computation; memory for the
    /// intermediate values of one block instead of all.
    Recomputed,
}

/// What one pass over a batch gives.
#[derive(Debug, Clone)]
pub struct PerExample {
    /// Each example's loss, `[examples]`, without autodiff.
    pub losses: Tensor<1>,
    /// Each example's own gradient of its loss, in the order of the model's layers.
    pub gradients: Vec<AdapterGradients>,
}

/// Each example's loss ([`LanguageModel::per_example_loss`]) and its gradients by the adapters.
///
/// The result does not depend on `activations`, except that dropout masks are drawn anew by every
/// call: with [`Activations::Recomputed`] from a random seed, so that both runs of a block have the
/// same.
///
/// # Guarantee
///
/// Slice `i` of every gradient is the gradient of example `i`'s loss and depends on no other
/// example, as [`expand_adapters`] states; running a block again from its stored input repeats the
/// same computation, and the chain rule joins the blocks' gradients.
///
/// # Errors
///
/// Those of [`expand_adapters`] and [`per_example_gradients`]. With [`Activations::Recomputed`],
/// adapters outside the blocks and the final norm have no gradient:
/// [`LoraError::MissingGradient`].
pub fn per_example_pass<M: LanguageModel>(
    model: &M,
    batch: &Batch,
    activations: Activations,
) -> Result<PerExample, ModelError> {
    match activations {
        Activations::Kept => {
            let expanded = expand_adapters(model, batch.examples())?;
            let losses = expanded.per_example_loss(batch);
            let mut gradients = losses.clone().sum().backward();
            Ok(PerExample {
                losses: losses.without_autodiff(),
                gradients: per_example_gradients(&expanded, &mut gradients)?,
            })
        }
        Activations::Recomputed => recomputed(model, batch, rand::random()),
    }
}

fn recomputed<M: LanguageModel>(
    model: &M,
    batch: &Batch,
    dropout_seed: u64,
) -> Result<PerExample, ModelError> {
    let expanded = expand_adapters_repeatably(model, batch.examples(), dropout_seed)?;
    let mut collected = CollectedGradients::new(&expanded);

    // Forward without autodiff: nothing but the blocks' inputs outlives its block.
    let plain = expanded.valid();
    let mut inputs = Vec::with_capacity(plain.blocks());
    let mut states = plain.embed(batch.input_ids.clone(), 0);
    for index in 0..plain.blocks() {
        let next = plain.block(index, states.clone(), None);
        inputs.push(states);
        states = next;
    }

    let last = leaf(states);
    let hidden = expanded.normalize(last.clone());
    let losses = token_losses(hidden, expanded.head(), batch).means();
    let mut gradients = losses.clone().sum().backward();
    collected.take(&expanded, &mut gradients);
    // Without a counted target nothing depends on the states.
    let mut upstream = last
        .grad_remove(&mut gradients)
        .unwrap_or_else(|| last.clone().without_autodiff().zeros_like());
    drop((last, gradients));

    for (index, input) in inputs.into_iter().enumerate().rev() {
        if collected.is_complete() {
            break;
        }
        let input = leaf(input);
        let output = expanded.block(index, input.clone(), None);
        let mut gradients = (output * upstream).sum().backward();
        collected.take(&expanded, &mut gradients);
        upstream = input
            .grad_remove(&mut gradients)
            .ok_or_else(|| missing(index))?;
    }
    Ok(PerExample {
        losses: losses.without_autodiff(),
        gradients: collected.finish()?,
    })
}

fn leaf(states: Tensor<3>) -> Tensor<3> {
    states.without_autodiff().autodiff().require_grad()
}

fn missing(block: usize) -> LoraError {
    LoraError::MissingGradient {
        adapter: format!("input of block {block}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use burn::tensor::{Device, Tensor, TensorData};
    use rldp_lora::{
        AdapterGradients, LoraConfig, adapters, add_lora, expand_adapters_repeatably,
        per_example_gradients, set_adapters,
    };

    use super::recomputed;
    use crate::llama::Variant;
    use crate::{Batch, CausalLm, Gpt2, Gpt2Config, LanguageModel, Llama, LlamaConfig, Row};

    fn device() -> Device {
        Device::default()
    }

    fn models() -> Vec<(&'static str, CausalLm)> {
        let gpt2 = Gpt2Config::new(40, 16, 3, 16, 2);
        let mut llama = LlamaConfig::new(40, 16, 3, 16, 4);
        llama.kv_heads = 2;
        let mut mistral = llama.clone();
        mistral.variant = Variant::Mistral;
        mistral.window = Some(3);
        mistral.tied_head = false;
        vec![
            ("gpt2", Gpt2::random(&gpt2, 1, &device()).unwrap().into()),
            ("llama", Llama::random(&llama, 2, &device()).unwrap().into()),
            (
                "mistral",
                Llama::random(&mistral, 3, &device()).unwrap().into(),
            ),
        ]
    }

    /// Adapters whose second factor is not zero.
    fn adapt(model: &mut CausalLm, config: &LoraConfig) {
        add_lora(model, config, 5).unwrap();
        let mut list = adapters(model);
        for layer in &mut list.layers {
            layer.b = layer.b.clone().map(|b| {
                let shape = b.shape();
                let wave = (0..shape.num_elements()).map(|i| 2.0 * (i as f32).sin());
                let data = TensorData::new(wave.collect::<Vec<f32>>(), shape);
                let b: Tensor<3> = Tensor::from_data(data, &b.device().without_autodiff());
                b.autodiff().require_grad()
            });
        }
        set_adapters(model, list).unwrap();
    }

    fn batch() -> Batch {
        let rows = [
            Row::new((0..12).collect()),
            Row::new(vec![7, 3, 9]),
            Row {
                tokens: (20..30).collect(),
                prompt: 5,
            },
        ];
        Batch::from_rows(&rows, &device()).unwrap()
    }

    fn norm(tensor: &Tensor<3>) -> f32 {
        let square = tensor.clone() * tensor.clone();
        square.sum().into_scalar::<f32>().sqrt()
    }

    /// Up to rounding: without autodiff the backend may compute a block in other steps.
    fn assert_close(what: &str, found: &Tensor<3>, expected: &Tensor<3>) {
        let scale = norm(expected);
        assert!(scale > 0.0, "{what}: nothing to compare");
        let difference = norm(&(found.clone() - expected.clone()));
        assert!(
            difference < 5e-5 * scale,
            "{what}: {difference:e} of {scale:e}"
        );
    }

    fn assert_same(what: &str, found: &[AdapterGradients], expected: &[AdapterGradients]) {
        assert_eq!(found.len(), expected.len(), "{what}");
        for (found, expected) in found.iter().zip(expected) {
            let what = format!("{what} {}", found.name);
            assert_eq!(found.name, expected.name);
            assert_close(&what, &found.b, &expected.b);
            assert_eq!(found.a.is_some(), expected.a.is_some(), "{what}");
            if let (Some(found), Some(expected)) = (&found.a, &expected.a) {
                assert_close(&what, found, expected);
            }
        }
    }

    #[test]
    fn recomputing_repeats_the_plain_backward() {
        let batch = batch();
        let mut cases = 0;
        for (name, base) in models() {
            let all = base.default_targets();
            let last = vec![match &base {
                CausalLm::Gpt2(_) => "h.2.attn.c_attn".to_owned(),
                CausalLm::Llama(_) => "layers.2.self_attn.q_proj".to_owned(),
            }];
            for (targets, dropout, freeze_a) in [
                (&all, 0.0, false),
                (&all, 0.3, false),
                (&all, 0.3, true),
                (&last, 0.3, false),
            ] {
                let what = format!("{name} {targets:?} dropout {dropout} freeze {freeze_a}");
                let config = LoraConfig {
                    dropout,
                    freeze_a,
                    ..LoraConfig::new(2, targets.clone())
                };
                let mut model = base.clone();
                adapt(&mut model, &config);
                let expanded = expand_adapters_repeatably(&model, 3, 9).unwrap();
                let losses = expanded.per_example_loss(&batch);
                let mut gradients = losses.clone().sum().backward();
                let expected = per_example_gradients(&expanded, &mut gradients).unwrap();

                let found = recomputed(&model, &batch, 9).unwrap();
                let distance = |found: Tensor<1>| {
                    let difference = found - losses.clone().without_autodiff();
                    difference.abs().max().into_scalar::<f32>()
                };
                assert!(distance(found.losses) < 2e-6, "{what}");
                assert_same(&what, &found.gradients, &expected);
                if dropout > 0.0 {
                    let other = recomputed(&model, &batch, 10).unwrap();
                    assert!(distance(other.losses) > 1e-4, "{what}: no dropout");
                }
                cases += 1;
            }
        }
        assert_eq!(cases, 12);
    }

    #[test]
    fn rows_without_targets_have_zero_gradient() {
        let (_, mut model) = models().remove(1);
        let config = LoraConfig::new(2, model.default_targets());
        adapt(&mut model, &config);
        let rows = [Row::new(vec![4]), Row::new(vec![5])];
        let batch = Batch::from_rows(&rows, &device()).unwrap();
        let found = recomputed(&model, &batch, 1).unwrap();
        assert_eq!(found.losses.into_data().iter::<f32>().sum::<f32>(), 0.0);
        for gradient in found.gradients {
            assert_eq!(gradient.b.abs().max().into_scalar::<f32>(), 0.0);
        }
    }
}
