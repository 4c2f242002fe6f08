//! What the tests of this folder share.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Int, Tensor, TensorData};
use half::{bf16, f16};
use rldp_models::{Batch, CausalLm, Registry};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use tempfile::TempDir;

pub const MODELS: [&str; 4] = ["gpt2", "llama32", "llama_untied", "mistral"];

/// Every CPU backend compiled in.
// The ndarray backend is deprecated upstream; while it exists it is the second opinion.
#[allow(deprecated)]
pub fn devices() -> Vec<(&'static str, Device)> {
    vec![
        #[cfg(feature = "flex")]
        ("flex", Device::flex()),
        #[cfg(feature = "ndarray")]
        ("ndarray", Device::ndarray()),
    ]
}

/// Root of the golden values: `RLDP_GOLDENS`, or the copies in this repository.
pub fn goldens() -> PathBuf {
    std::env::var_os("RLDP_GOLDENS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures"),
        PathBuf::from,
    )
}

pub fn model_folder(name: &str) -> PathBuf {
    goldens().join("models").join(name)
}

pub fn load(name: &str, device: &Device) -> CausalLm {
    load_folder(&model_folder(name), device)
}

pub fn load_folder(folder: &Path, device: &Device) -> CausalLm {
    Registry::builtin()
        .load(folder, device, |_| {})
        .unwrap()
        .model
}

/// A tensor of a golden file, in whatever type it is stored, as f64.
#[derive(Debug, Clone)]
pub struct Golden {
    pub shape: Vec<usize>,
    pub values: Vec<f64>,
}

pub fn read_all(path: &Path) -> BTreeMap<String, Golden> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.iter()
        .map(|(name, view)| {
            let data = view.data();
            let values = match view.dtype() {
                Dtype::F32 => words::<4>(data)
                    .map(|b| f64::from(f32::from_le_bytes(b)))
                    .collect(),
                Dtype::F64 => words::<8>(data).map(f64::from_le_bytes).collect(),
                Dtype::I64 => words::<8>(data)
                    .map(|b| i64::from_le_bytes(b) as f64)
                    .collect(),
                other => panic!("{other:?}"),
            };
            let shape = view.shape().to_vec();
            (name.to_owned(), Golden { shape, values })
        })
        .collect()
}

fn words<const N: usize>(data: &[u8]) -> impl Iterator<Item = [u8; N]> {
    data.chunks_exact(N).map(|chunk| chunk.try_into().unwrap())
}

/// A copy of a fixture whose configuration and weights can be broken.
pub fn copy(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(model_folder(name).join(file), folder.path().join(file)).unwrap();
    }
    folder
}

pub type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

pub fn tensors(name: &str) -> Tensors {
    read_all(&model_folder(name).join("model.safetensors"))
        .into_iter()
        .map(|(key, golden)| {
            let bytes = golden
                .values
                .iter()
                .flat_map(|v| (*v as f32).to_le_bytes())
                .collect();
            (key, (Dtype::F32, golden.shape, bytes))
        })
        .collect()
}

pub fn write(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (
            name.as_str(),
            TensorView::new(*dtype, shape.clone(), bytes).unwrap(),
        )
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// A copy of a fixture with all its tensors rounded to a half type.
pub fn halved(name: &str, dtype: Dtype) -> TempDir {
    let folder = copy(name);
    let mut weights = tensors(name);
    for (own, _, bytes) in weights.values_mut() {
        let floats = words::<4>(bytes).map(f32::from_le_bytes);
        let halves: Vec<u8> = match dtype {
            Dtype::F16 => floats
                .flat_map(|v| f16::from_f32(v).to_le_bytes())
                .collect(),
            _ => floats
                .flat_map(|v| bf16::from_f32(v).to_le_bytes())
                .collect(),
        };
        (*own, *bytes) = (dtype, halves);
    }
    write(&folder.path().join("model.safetensors"), &weights);
    folder
}

/// The golden inputs as a batch of full length: the last position has no target.
pub fn golden_batch(io: &BTreeMap<String, Golden>, device: &Device) -> Batch {
    let [rows, time] = io["input_ids"].shape[..] else {
        panic!("rank")
    };
    let label = |row: usize, t: usize| {
        let next = (t + 1 < time).then(|| io["labels"].values[row * time + t + 1]);
        next.filter(|label| *label != -100.0)
    };
    let cells = || (0..rows).flat_map(|row| (0..time).map(move |t| (row, t)));
    let ids: Vec<i64> = io["input_ids"].values.iter().map(|v| *v as i64).collect();
    let targets: Vec<i64> = cells()
        .map(|(r, t)| label(r, t).unwrap_or(0.0) as i64)
        .collect();
    let mask: Vec<f32> = cells()
        .map(|(r, t)| f32::from(u8::from(label(r, t).is_some())))
        .collect();
    let ints = |values| -> Tensor<2, Int> {
        Tensor::from_data(TensorData::new(values, [rows, time]), device)
    };
    Batch {
        input_ids: ints(ids),
        targets: ints(targets),
        mask: Tensor::from_data(TensorData::new(mask, [rows, time]), device),
    }
}

/// The examples of a batch one by one.
pub fn single(batch: &Batch, row: usize) -> Batch {
    Batch {
        input_ids: batch.input_ids.clone().narrow(0, row, 1),
        targets: batch.targets.clone().narrow(0, row, 1),
        mask: batch.mask.clone().narrow(0, row, 1),
    }
}

pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor
        .without_autodiff()
        .into_data()
        .iter::<f64>()
        .collect()
}

/// Largest absolute difference, over the positions where `keep` says so.
pub fn max_difference(found: &[f64], expected: &[f64], keep: impl Fn(usize) -> bool) -> f64 {
    assert_eq!(found.len(), expected.len());
    let mut worst = 0.0f64;
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        if keep(index) {
            assert!(found.is_finite(), "element {index} is {found}");
            worst = worst.max((found - expected).abs());
        }
    }
    worst
}

pub fn norm(values: &[f64]) -> f64 {
    values.iter().map(|v| v * v).sum::<f64>().sqrt()
}
