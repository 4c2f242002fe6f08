//! Norms and clipped sums against independent float64 references.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use safetensors::SafeTensors;
use serde::Deserialize;

use super::{cases, norm, squared_norms};
use crate::clip::{Clip, ClipRule, ClippedSum};
use crate::{GroupGradients, Kernel, PerExampleGradients, RowMap};

#[derive(Deserialize)]
struct Norms {
    pair_names: Vec<String>,
    pair_norm: BTreeMap<String, Vec<f64>>,
    global_norm: Vec<f64>,
    tensor_norm: BTreeMap<String, Vec<f64>>,
    pair_clips: BTreeMap<String, f64>,
    global_clip: f64,
}

struct Model {
    name: String,
    norms: Norms,
    gradients: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    sums: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

fn tensors(path: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let read = |data: &[u8]| {
        data.chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect()
    };
    file.tensors()
        .into_iter()
        .map(|(name, view)| (name, (view.shape().to_vec(), read(view.data()))))
        .collect()
}

fn models() -> Vec<Model> {
    let root = match std::env::var_os("RLDP_GOLDENS") {
        Some(root) => PathBuf::from(root).join("gradsample"),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures"),
    };
    let mut models: Vec<Model> = std::fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .map(|path| Model {
            name: path.file_name().unwrap().to_string_lossy().into_owned(),
            norms: serde_json::from_slice(&std::fs::read(path.join("lora_norms.json")).unwrap())
                .unwrap(),
            gradients: tensors(&path.join("lora_per_example_grads.safetensors")),
            sums: tensors(&path.join("lora_clipped_sums.safetensors")),
        })
        .collect();
    models.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(!models.is_empty());
    models
}

/// The model's gradients, one group per adapter; also the tensors' keys in order.
fn pairs(model: &Model, device: &Device) -> (PerExampleGradients, Vec<String>) {
    let mut keys = Vec::new();
    let mut batch = 0;
    let groups = model
        .norms
        .pair_names
        .iter()
        .map(|pair| {
            let mut group = GroupGradients::new(pair.as_str());
            for part in ["lora_A", "lora_B"] {
                let key = format!("{pair}.{part}.weight");
                let (shape, values) = &model.gradients[&key];
                batch = shape[0];
                let data = TensorData::new(values.clone(), [shape[0], shape[1], shape[2]]);
                group = group.with(Tensor::<3>::from_data(data, device));
                keys.push(key);
            }
            group
        })
        .collect();
    (
        PerExampleGradients::new(groups, RowMap::one_each(batch)).unwrap(),
        keys,
    )
}

fn assert_close(what: &str, found: &[f64], expected: &[f32], tolerance: f64) {
    let difference: Vec<f64> = found
        .iter()
        .zip(expected)
        .map(|(f, e)| f - f64::from(*e))
        .collect();
    let size = norm(&expected.iter().map(|&e| e.into()).collect::<Vec<_>>());
    assert_eq!(found.len(), expected.len(), "{what}");
    assert!(
        norm(&difference) <= tolerance * size,
        "{what}: off by {} of {size}",
        norm(&difference)
    );
}

#[test]
fn norms_and_clipped_sums_equal_the_references() {
    let mut checked = 0;
    for model in models() {
        for (name, device, kernel) in cases() {
            checked += check_norms(&model, name, &device, kernel);
            checked += check_sums(&model, name, &device, kernel);
        }
    }
    println!("{checked} norms and clipped sums checked");
    assert!(checked > 100);
}

fn check_norms(model: &Model, name: &str, device: &Device, kernel: Kernel) -> usize {
    let mut checked = 0;
    let (gradients, keys) = pairs(model, device);
    let mut global = vec![0.0; model.norms.global_norm.len()];
    let mut keys = keys.iter();
    let mut check = |what: &str, found: f64, expected: f64| {
        assert!(
            (found / expected - 1.0).abs() < 1e-5,
            "{} {name} {kernel:?} {what}: {found} for {expected}",
            model.name
        );
        checked += 1;
    };
    for group in &gradients.groups {
        let mut pair = vec![0.0; global.len()];
        for tensor in &group.tensors {
            let key = keys.next().unwrap();
            let squares = squared_norms(kernel, tensor, &gradients.rows);
            for (unit, square) in squares.into_iter().enumerate() {
                check(key, square.sqrt(), model.norms.tensor_norm[key][unit]);
                pair[unit] += square;
                global[unit] += square;
            }
        }
        for (unit, square) in pair.into_iter().enumerate() {
            check(
                &group.name,
                square.sqrt(),
                model.norms.pair_norm[&group.name][unit],
            );
        }
    }
    for (square, &expected) in global.into_iter().zip(&model.norms.global_norm) {
        check("global", square.sqrt(), expected);
    }
    checked
}

fn check_sums(model: &Model, name: &str, device: &Device, kernel: Kernel) -> usize {
    let clip = |norm| Clip::new(norm, ClipRule::Threshold).unwrap();
    let (gradients, keys) = pairs(model, device);
    let layout = gradients.layout();
    let clips: Vec<Clip> = layout
        .groups
        .iter()
        .map(|group| clip(model.norms.pair_clips[&group.name]))
        .collect();
    let mut sum = ClippedSum::new(&layout, &clips)
        .unwrap()
        .with_kernel(kernel);
    sum.add(&gradients).unwrap();
    let per_pair: Vec<f64> = (0..clips.len()).flat_map(|group| sum.raw(group)).collect();

    let flat = gradients.flattened("all");
    let mut sum = ClippedSum::new(&flat.layout(), &[clip(model.norms.global_clip)])
        .unwrap()
        .with_kernel(kernel);
    sum.add(&flat).unwrap();
    let global = sum.raw(0);

    let mut start = 0;
    for (key, width) in keys
        .iter()
        .zip(layout.groups.iter().flat_map(|group| group.widths.clone()))
    {
        for (kind, found) in [("per_pair", &per_pair), ("global", &global)] {
            let what = format!("{} {name} {kernel:?} {kind}/{key}", model.name);
            assert_close(
                &what,
                &found[start..start + width],
                &model.sums[&format!("{kind}/{key}")].1,
                5e-5,
            );
        }
        start += width;
    }
    2 * keys.len()
}
