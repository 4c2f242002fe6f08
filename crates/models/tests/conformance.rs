//! Agreement with Hugging Face transformers and PEFT on four tiny models.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::BTreeMap;

use common::{
    Golden, MODELS, devices, golden_batch, goldens, load, load_folder, max_difference,
    model_folder, norm, read_all, values,
};
use rldp_lora::{
    expand_adapters, merge_adapters, merge_and_unload, peft::load_adapter, per_example_gradients,
    unmerge_adapters,
};
use rldp_models::{CausalLm, LanguageModel};

const LOGITS: f64 = 5e-5;
const MERGED: f64 = 1e-4;
const LOSS: f64 = 5e-6;
const GRADIENT: f64 = 5e-5;
const NORM: f64 = 1e-5;

/// Compares logits where the attention mask is 1, and losses.
fn check_outputs(
    case: &str,
    model: &CausalLm,
    io: &BTreeMap<String, Golden>,
    inputs: &BTreeMap<String, Golden>,
) {
    for (_, device) in devices() {
        // The caller loops over devices too; inputs go where the model is.
        if device != model.head().device() {
            continue;
        }
        let batch = golden_batch(inputs, &device);
        let logits = model.forward(batch.input_ids.clone());
        let vocabulary = logits.dims()[2];
        let seen = |index: usize| inputs["attention_mask"].values[index / vocabulary] == 1.0;
        let worst = max_difference(&values(logits), &io["logits_f64"].values, seen);
        assert!(worst < LOGITS, "{case}: logits differ by {worst:e}");
        let losses = values(model.per_example_loss(&batch));
        let worst = max_difference(&losses, &io["loss_per_example_f64"].values, |_| true);
        assert!(worst < LOSS, "{case}: losses differ by {worst:e}");
        let tokens = model.per_example_token_loss(&batch);
        let mean =
            values(tokens.sums).iter().sum::<f64>() / values(tokens.counts).iter().sum::<f64>();
        let worst = (mean - io["loss_mean_over_tokens"].values[0]).abs();
        assert!(
            worst < LOSS,
            "{case}: mean over tokens differs by {worst:e}"
        );
    }
}

#[test]
fn base_models_agree() {
    let mut cases = 0;
    for (backend, device) in devices() {
        for name in MODELS {
            let io = read_all(&model_folder(name).join("io.safetensors"));
            check_outputs(&format!("{backend} {name}"), &load(name, &device), &io, &io);
            cases += 1;
        }
    }
    println!("{cases} models checked");
    assert_eq!(cases, MODELS.len() * devices().len());
}

#[test]
fn other_file_forms_load_to_the_same_model() {
    let mut cases = 0;
    for (backend, device) in devices() {
        for name in MODELS {
            let source = model_folder(name);
            let io = read_all(&source.join("io.safetensors"));
            let mut forms = vec![("config.v5.json", "model.safetensors")];
            if name == "gpt2" {
                forms.push(("config.json", "model.hub_style.safetensors"));
            }
            for (config, weights) in forms {
                let folder = tempfile::tempdir().unwrap();
                std::fs::copy(source.join(config), folder.path().join("config.json")).unwrap();
                std::fs::copy(
                    source.join(weights),
                    folder.path().join("model.safetensors"),
                )
                .unwrap();
                let model = load_folder(folder.path(), &device);
                check_outputs(
                    &format!("{backend} {name} {config} {weights}"),
                    &model,
                    &io,
                    &io,
                );
                cases += 1;
            }
        }
    }
    println!("{cases} file forms checked");
    assert_eq!(cases, (MODELS.len() + 1) * devices().len());
}

#[test]
fn adapters_agree_plain_expanded_and_merged() {
    let mut cases = 0;
    for (backend, device) in devices() {
        for name in MODELS {
            let case = format!("{backend} {name}");
            let folder = model_folder(name);
            let inputs = read_all(&folder.join("io.safetensors"));
            let io = read_all(&folder.join("io_lora.safetensors"));
            let mut model = load(name, &device);
            let config = load_adapter(&mut model, &folder.join("adapter")).unwrap();
            assert_eq!((config.rank, config.alpha), (4, 8.0));
            check_outputs(&case, &model, &io, &inputs);
            let examples = inputs["input_ids"].shape[0];
            let expanded = expand_adapters(&model, examples).unwrap();
            check_outputs(&format!("{case} expanded"), &expanded, &io, &inputs);

            let batch = golden_batch(&inputs, &device);
            let merged_logits = |model: &CausalLm| {
                let logits = model.forward(batch.input_ids.clone());
                let vocabulary = logits.dims()[2];
                let seen =
                    |index: usize| inputs["attention_mask"].values[index / vocabulary] == 1.0;
                max_difference(&values(logits), &io["merged_logits"].values, seen)
            };
            merge_adapters(&mut model).unwrap();
            let worst = merged_logits(&model);
            assert!(worst < MERGED, "{case}: merged logits differ by {worst:e}");
            unmerge_adapters(&mut model).unwrap();
            check_outputs(&format!("{case} unmerged"), &model, &io, &inputs);
            merge_and_unload(&mut model).unwrap();
            assert!(merged_logits(&model) < MERGED, "{case}: unloaded");
            cases += 1;
        }
    }
    println!("{cases} adapters checked");
    assert_eq!(cases, MODELS.len() * devices().len());
}

/// Per-example gradients of a model's adapters under PEFT's names and layout, `[examples, ..]`.
fn gradients(name: &str, device: &burn::tensor::Device) -> BTreeMap<String, Golden> {
    let folder = model_folder(name);
    let inputs = read_all(&folder.join("io.safetensors"));
    let batch = golden_batch(&inputs, device);
    let mut model = load(name, device);
    load_adapter(&mut model, &folder.join("adapter")).unwrap();
    let expanded = expand_adapters(&model, batch.examples()).unwrap();
    let mut grads = expanded.per_example_loss(&batch).sum().backward();
    let list = per_example_gradients(&expanded, &mut grads).unwrap();
    let mut named = BTreeMap::new();
    for gradient in list {
        for (factor, tensor) in [("A", gradient.a.unwrap()), ("B", gradient.b)] {
            let tensor = tensor.swap_dims(1, 2);
            let key = format!("base_model.model.{}.lora_{factor}.weight", gradient.name);
            let shape = tensor.dims().to_vec();
            let values = values(tensor);
            named.insert(key, Golden { shape, values });
        }
    }
    named
}

#[test]
fn per_example_gradients_norms_and_clipped_sums_agree() {
    let mut tensors = 0;
    for (backend, device) in devices() {
        for name in MODELS {
            let folder = goldens().join("gradsample").join(name);
            let expected = read_all(&folder.join("lora_per_example_grads.safetensors"));
            let sums = read_all(&folder.join("lora_clipped_sums.safetensors"));
            let text = std::fs::read_to_string(folder.join("lora_norms.json")).unwrap();
            let norms: serde_json::Value = serde_json::from_str(&text).unwrap();
            let found = gradients(name, &device);
            assert!(
                found.keys().eq(expected.keys()),
                "{backend} {name}: other tensors"
            );
            let examples = expected.values().next().unwrap().shape[0];
            let slice = |golden: &Golden, example: usize| {
                let size = golden.values.len() / examples;
                golden.values[example * size..(example + 1) * size].to_vec()
            };
            let close = |found: f64, expected: f64, what: &str| {
                let relative = (found - expected).abs() / expected;
                assert!(relative < NORM, "{backend} {name} {what}: {relative:e}");
            };

            let mut global = vec![0.0; examples];
            let mut pairs: BTreeMap<String, Vec<f64>> = BTreeMap::new();
            for (key, golden) in &expected {
                assert_eq!(found[key].shape, golden.shape, "{backend} {name} {key}");
                let pair = key.rsplit_once(".lora_").unwrap().0.to_owned();
                let squares = pairs.entry(pair).or_insert_with(|| vec![0.0; examples]);
                for example in 0..examples {
                    let (ours, theirs) = (slice(&found[key], example), slice(golden, example));
                    let worst = max_difference(&ours, &theirs, |_| true);
                    let limit = GRADIENT * norm(&theirs);
                    assert!(
                        worst <= limit,
                        "{backend} {name} {key} [{example}]: {worst:e}"
                    );
                    let expected = norms["tensor_norm"][key][example].as_f64().unwrap();
                    close(norm(&ours), expected, key);
                    squares[example] += norm(&ours).powi(2);
                    global[example] += norm(&ours).powi(2);
                }
                tensors += 1;
            }
            for example in 0..examples {
                for (pair, squares) in &pairs {
                    let expected = norms["pair_norm"][pair][example].as_f64().unwrap();
                    close(squares[example].sqrt(), expected, pair);
                }
                let expected = norms["global_norm"][example].as_f64().unwrap();
                close(global[example].sqrt(), expected, "global");
            }

            let global_clip = norms["global_clip"].as_f64().unwrap();
            for (key, ours) in &found {
                let pair = key.rsplit_once(".lora_").unwrap().0;
                let pair_clip = norms["pair_clips"][pair].as_f64().unwrap();
                for (kind, clip, squares) in [
                    ("global", global_clip, &global),
                    ("per_pair", pair_clip, &pairs[pair]),
                    ("unclipped", f64::INFINITY, &global),
                ] {
                    let expected = &sums[&format!("{kind}/{key}")].values;
                    let mut sum = vec![0.0; expected.len()];
                    for (example, square) in squares.iter().enumerate() {
                        let scale = (clip / square.sqrt()).min(1.0);
                        for (sum, value) in sum.iter_mut().zip(slice(ours, example)) {
                            *sum += scale * value;
                        }
                    }
                    let worst = max_difference(&sum, expected, |_| true);
                    let limit = GRADIENT * norm(expected);
                    assert!(worst <= limit, "{backend} {name} {kind}/{key}: {worst:e}");
                }
            }
        }
    }
    println!("{tensors} adapter tensors checked");
    assert!(tensors >= 90 * devices().len());
}
