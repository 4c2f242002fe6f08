//! Checks models against transformers and PEFT on cases made by `tests/python/random_models.py`.
//!
//! `cargo run --release -p rldp-models --example agreement -- FOLDER`
//!
//! Prints the largest differences per architecture and fails if one is above the tolerances of the
//! conformance tests: logits 5e-5, merged logits 1e-4, losses 5e-6, gradients 5e-5 of their norm. A model whose logits
//! transformers' own float32 arithmetic misses by more than a tolerance is held to that instead, and is named.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Int, Tensor, TensorData};
use rldp_lora::{merge_and_unload, peft::load_adapter};
use rldp_models::{Activations, Batch, CausalLm, LanguageModel, per_example_pass};
use safetensors::{Dtype, SafeTensors};

/// What is compared, and how far it may be off.
const TOLERANCES: [(&str, f64); 6] = [
    ("logits", 5e-5),
    ("losses", 5e-6),
    ("lora logits", 5e-5),
    ("lora losses", 5e-6),
    ("merged logits", 1e-4),
    ("gradients", 5e-5),
];

type Reference = BTreeMap<String, (Vec<usize>, Vec<f64>)>;

fn main() {
    let folder = std::env::args().nth(1).unwrap_or_else(|| {
        eprintln!("usage: agreement FOLDER");
        std::process::exit(2);
    });
    let mut cases: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("reference.safetensors").is_file())
        .collect();
    cases.sort();
    let mut worst: BTreeMap<String, (usize, [f64; 6])> = BTreeMap::new();
    let mut failures = 0;
    for case in &cases {
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        let (differences, own) = check(case);
        for (((what, limit), found), own) in TOLERANCES.iter().zip(differences).zip(own) {
            if found.is_nan() || found > *limit {
                println!("{name}: {what} differ by {found:.1e}, transformers' own by {own:.1e}");
                failures += usize::from(found.is_nan() || found > own);
            }
        }
        let architecture = name.split('-').next().unwrap_or_default().to_owned();
        let entry = worst.entry(architecture).or_default();
        entry.0 += 1;
        for (worst, found) in entry.1.iter_mut().zip(differences) {
            *worst = worst.max(found);
        }
    }
    for (architecture, (count, differences)) in &worst {
        let list: Vec<String> = TOLERANCES
            .iter()
            .zip(differences)
            .map(|((what, _), found)| format!("{what} {found:.1e}"))
            .collect();
        println!("{architecture}, {count} models: {}", list.join(", "));
    }
    println!(
        "{} models, {failures} differences above the tolerances",
        cases.len()
    );
    if failures > 0 || cases.is_empty() {
        std::process::exit(1);
    }
}

/// The largest differences of one case in the order of [`TOLERANCES`], ours and (of logits) those of transformers in float32.
fn check(folder: &Path) -> ([f64; 6], [f64; 6]) {
    let device = Device::default();
    let reference = read(&folder.join("reference.safetensors"));
    let mut model = CausalLm::load(folder, &device, |_| {})
        .unwrap_or_else(|error| panic!("{error}"))
        .model;
    let batch = batch(&reference, &device);
    let seen = &reference["attention_mask"].1;
    let logits = |model: &CausalLm, key: &str| {
        let found = values(model.forward(batch.input_ids.clone()));
        let vocabulary = model.vocabulary();
        largest(&found, &reference[key].1, |index| {
            seen[index / vocabulary] == 1.0
        })
    };
    let losses = |model: &CausalLm, key: &str| {
        let found = values(model.per_example_loss(&batch));
        largest(&found, &reference[key].1, |_| true)
    };
    let plain = (logits(&model, "logits"), losses(&model, "losses"));
    load_adapter(&mut model, &folder.join("adapter")).unwrap_or_else(|error| panic!("{error}"));
    let lora = (logits(&model, "lora_logits"), losses(&model, "lora_losses"));

    let mut gradients = 0.0f64;
    let mut compared = 0;
    for activations in [Activations::Kept, Activations::Recomputed] {
        let pass = per_example_pass(&model, &batch, activations).unwrap();
        for gradient in pass.gradients {
            for (factor, tensor) in [("A", gradient.a.unwrap()), ("B", gradient.b)] {
                let key = format!("base_model.model.{}.lora_{factor}.weight", gradient.name);
                let (shape, expected) = &reference[&format!("gradient/{key}")];
                let tensor = tensor.swap_dims(1, 2);
                assert_eq!(tensor.dims().as_slice(), shape, "{key}");
                let found = values(tensor);
                let size = found.len() / shape[0];
                for (found, expected) in found.chunks(size).zip(expected.chunks(size)) {
                    let norm = expected.iter().map(|v| v * v).sum::<f64>().sqrt();
                    gradients = gradients.max(largest(found, expected, |_| true) / norm);
                }
                compared += 1;
            }
        }
    }
    let expected = reference.keys().filter(|key| key.starts_with("gradient/"));
    assert_eq!(compared, 2 * expected.count(), "{}", folder.display());
    merge_and_unload(&mut model).unwrap();
    let merged = logits(&model, "merged_logits");
    let vocabulary = model.vocabulary();
    let own = |key: &str| {
        let found = &reference[&format!("float32/{key}")].1;
        largest(found, &reference[key].1, |index| {
            seen[index / vocabulary] == 1.0
        })
    };
    (
        [plain.0, plain.1, lora.0, lora.1, merged, gradients],
        [own("logits"), 0.0, own("lora_logits"), 0.0, 0.0, 0.0],
    )
}

fn read(path: &Path) -> Reference {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let words = |data: &[u8]| -> Vec<[u8; 8]> {
        data.chunks_exact(8)
            .map(|b| b.try_into().unwrap())
            .collect()
    };
    file.iter()
        .map(|(name, view)| {
            let words = words(view.data()).into_iter();
            let values = match view.dtype() {
                Dtype::F64 => words.map(f64::from_le_bytes).collect(),
                Dtype::I64 => words.map(|b| i64::from_le_bytes(b) as f64).collect(),
                other => panic!("{name}: {other:?}"),
            };
            (name.to_owned(), (view.shape().to_vec(), values))
        })
        .collect()
}

/// The inputs at full length: the last position has no target.
fn batch(reference: &Reference, device: &Device) -> Batch {
    let (shape, ids) = &reference["input_ids"];
    let [rows, time] = [shape[0], shape[1]];
    let labels = &reference["labels"].1;
    let next: Vec<Option<f64>> = (0..rows * time)
        .map(|at| (at % time + 1 < time).then(|| labels[at + 1]))
        .map(|label| label.filter(|label| *label != -100.0))
        .collect();
    let ints = |values: Vec<i64>| -> Tensor<2, Int> {
        Tensor::from_data(TensorData::new(values, [rows, time]), device)
    };
    let mask: Vec<f32> = next
        .iter()
        .map(|l| f32::from(u8::from(l.is_some())))
        .collect();
    Batch {
        input_ids: ints(ids.iter().map(|v| *v as i64).collect()),
        targets: ints(next.iter().map(|l| l.unwrap_or(0.0) as i64).collect()),
        mask: Tensor::from_data(TensorData::new(mask, [rows, time]), device),
    }
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    let data = tensor.without_autodiff().into_data();
    data.iter::<f64>().collect()
}

fn largest(found: &[f64], expected: &[f64], keep: impl Fn(usize) -> bool) -> f64 {
    assert_eq!(found.len(), expected.len());
    let pairs = found.iter().zip(expected).enumerate();
    pairs
        .filter(|(index, _)| keep(*index))
        .map(|(_, (found, expected))| (found - expected).abs())
        // Not f64::max, which loses NaN.
        .fold(0.0, |worst, next| {
            if next > worst || next.is_nan() {
                next
            } else {
                worst
            }
        })
}
