//! Models whose matrices are held in half precision.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use burn::tensor::{DType, Device};
use common::{
    MODELS, copy, devices, golden_batch, halved, load, load_folder, max_difference, model_folder,
    norm, read_all, tensors, values, write,
};
use half::bf16;
use rand::{SeedableRng, rngs::ChaCha12Rng};
use rldp_lora::peft::load_adapter;
use rldp_lora::{LinearLayers, LoraError, merge_adapters, unmerge_adapters};
use rldp_models::{
    Activations, Batch, CausalLm, GenerationOptions, LanguageModel, ModelError, WeightPrecision,
    generate, per_example_pass,
};
use safetensors::tensor::Dtype;

const HALVES: [(Dtype, DType); 2] = [(Dtype::BF16, DType::BF16), (Dtype::F16, DType::F16)];

/// The devices whose backend has half-precision tensors.
fn half_devices() -> Vec<(&'static str, Device)> {
    let mut list = devices();
    list.retain(|(_, device)| device.supports_dtype(DType::BF16));
    list
}

fn load_as(folder: &std::path::Path, device: &Device, precision: WeightPrecision) -> CausalLm {
    let loaded = CausalLm::load_with(folder, device, precision, |_| {});
    loaded.unwrap().model
}

fn matrix_types(model: &CausalLm) -> Vec<DType> {
    let mut types = vec![model.head().dtype()];
    model.visit_linears(&mut |_, layer| {
        types.push(layer.weight.val().dtype());
        types.extend(layer.bias.as_ref().map(|bias| bias.val().dtype()));
    });
    types
}

/// Losses and all per-example gradients, in order.
fn pass(model: &CausalLm, batch: &Batch, activations: Activations) -> Vec<Vec<f64>> {
    let pass = per_example_pass(model, batch, activations).unwrap();
    let mut list = vec![values(pass.losses)];
    for gradient in pass.gradients {
        list.extend([values(gradient.a.unwrap()), values(gradient.b)]);
    }
    list
}

#[test]
fn stored_halves_compute_what_their_f32_copies_compute() {
    let mut compared = 0;
    for (backend, device) in half_devices() {
        for name in MODELS {
            for (dtype, held) in HALVES {
                let case = format!("{backend} {name} {held:?}");
                let folder = halved(name, dtype);
                let adapter = model_folder(name).join("adapter");
                let batch = golden_batch(
                    &read_all(&model_folder(name).join("io.safetensors")),
                    &device,
                );
                let mut wide = load_folder(folder.path(), &device);
                let mut half = load_as(folder.path(), &device, WeightPrecision::Stored);
                for found in matrix_types(&half) {
                    // Biases are vectors and stay f32.
                    assert!(found == held || (name == "gpt2" && found == DType::F32));
                }
                assert!(matrix_types(&wide).iter().all(|dtype| *dtype == DType::F32));
                load_adapter(&mut wide, &adapter).unwrap();
                load_adapter(&mut half, &adapter).unwrap();
                let logits = |model: &CausalLm| values(model.forward(batch.input_ids.clone()));
                let worst = max_difference(&logits(&half), &logits(&wide), |_| true);
                assert!(worst < 2e-6, "{case}: logits differ by {worst:e}");
                for activations in [Activations::Kept, Activations::Recomputed] {
                    let pairs = pass(&half, &batch, activations).into_iter().zip(pass(
                        &wide,
                        &batch,
                        activations,
                    ));
                    for (found, expected) in pairs {
                        let worst = max_difference(&found, &expected, |_| true);
                        assert!(worst <= 2e-6 * norm(&expected), "{case}: {worst:e}");
                        compared += 1;
                    }
                }

                // Merging widens; taking the adapter out again restores every bit.
                let before = half.host_weights().unwrap();
                merge_adapters(&mut half).unwrap();
                merge_adapters(&mut wide).unwrap();
                let worst = max_difference(&logits(&half), &logits(&wide), |_| true);
                assert!(worst < 2e-6, "{case}: merged logits differ by {worst:e}");
                unmerge_adapters(&mut half).unwrap();
                assert_eq!(half.host_weights().unwrap(), before, "{case}");
                assert_eq!(half.head().dtype(), held, "{case}");
                half.visit_linears(&mut |_, layer| {
                    assert_eq!(layer.weight.val().dtype(), held, "{case}");
                });
            }
        }
    }
    println!("{compared} tensors compared");
    assert!(compared >= 400 * half_devices().len());
}

#[test]
fn rounding_to_bf16_moves_losses_by_little() {
    let mut worst = 0.0f64;
    for (_, device) in half_devices() {
        for name in MODELS {
            let folder = model_folder(name);
            let batch = golden_batch(&read_all(&folder.join("io.safetensors")), &device);
            let half = load_as(&folder, &device, WeightPrecision::Bf16);
            assert_eq!(half.head().dtype(), DType::BF16);
            let exact = values(load(name, &device).per_example_loss(&batch));
            let found = values(half.per_example_loss(&batch));
            worst = worst.max(max_difference(&found, &exact, |_| true));
        }
    }
    println!("losses move by at most {worst:.1e} nats");
    // Random weights of deviation 0.2 are harsher than trained ones (docs/memory.md).
    assert!(
        half_devices().is_empty() || (worst > 0.0 && worst < 0.1),
        "{worst}"
    );
}

#[test]
fn half_models_generate_and_save() {
    for (backend, device) in half_devices() {
        for name in MODELS {
            let folder = halved(name, Dtype::BF16);
            let wide = load_folder(folder.path(), &device);
            let half = load_as(folder.path(), &device, WeightPrecision::Stored);
            let text = |model: &CausalLm| {
                let options = GenerationOptions::greedy(20);
                let mut rng = ChaCha12Rng::seed_from_u64(1);
                generate(model, &[3, 1, 4], &options, &device, &mut rng, |_| {
                    std::ops::ControlFlow::Continue(())
                })
                .unwrap()
            };
            assert_eq!(text(&half), text(&wide), "{backend} {name}");
            let saved = tempfile::tempdir().unwrap();
            half.save(saved.path(), &Default::default()).unwrap();
            let again = load_folder(saved.path(), &device).host_weights().unwrap();
            assert_eq!(again, wide.host_weights().unwrap(), "{backend} {name}");
        }
    }
}

#[test]
fn bad_half_values_are_named() {
    let (_, device) = devices().remove(0);
    let tensor = "model.layers.1.mlp.up_proj.weight";
    let expect = |folder: &std::path::Path, precision, at: usize| match CausalLm::load_with(
        folder,
        &device,
        precision,
        |_| {},
    )
    .map(|_| ())
    {
        Err(ModelError::Lora(LoraError::NonFinite {
            tensor: name,
            index,
            ..
        })) => assert_eq!((name.as_str(), index), (tensor, at)),
        other => panic!("{other:?}"),
    };
    for (dtype, bad) in [
        (Dtype::BF16, 0x7f80u16),
        (Dtype::BF16, 0xffc1),
        (Dtype::F16, 0x7c00),
        (Dtype::F16, 0xfe00),
    ] {
        let folder = halved("mistral", dtype);
        let path = folder.path().join("model.safetensors");
        let file = std::fs::read(&path).unwrap();
        let header = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        let entries: serde_json::Value = serde_json::from_slice(&file[8..header]).unwrap();
        let start = header + entries[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
        let mut broken = file;
        broken[start + 2 * 77..start + 2 * 78].copy_from_slice(&bad.to_le_bytes());
        std::fs::write(&path, broken).unwrap();
        for precision in [
            WeightPrecision::F32,
            WeightPrecision::Stored,
            WeightPrecision::Bf16,
        ] {
            expect(folder.path(), precision, 77);
        }
    }
    // Finite in f32, beyond bf16's range.
    let folder = copy("mistral");
    let mut weights = tensors("mistral");
    let value = f32::MAX;
    assert!(bf16::from_f32(value).is_infinite());
    weights.get_mut(tensor).unwrap().2[20..24].copy_from_slice(&value.to_le_bytes());
    write(&folder.path().join("model.safetensors"), &weights);
    expect(folder.path(), WeightPrecision::Bf16, 5);
}

#[test]
fn backends_without_half_precision_say_so() {
    for (backend, device) in devices() {
        let folder = halved("llama32", Dtype::F16);
        let loaded = CausalLm::load_with(folder.path(), &device, WeightPrecision::Stored, |_| {});
        match (device.supports_dtype(DType::F16), loaded.map(|_| ())) {
            (true, Ok(())) => {}
            (false, Err(ModelError::UnsupportedPrecision { tensor, dtype, .. })) => {
                assert_eq!(
                    (tensor.as_str(), dtype.as_str()),
                    ("model.embed_tokens.weight", "F16")
                );
            }
            (_, other) => panic!("{backend}: {other:?}"),
        }
    }
}
