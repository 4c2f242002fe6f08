//! Full-parameter per-example gradients: against the golden norms, and against autodiff one example at a time.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use burn::module::{Module, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Int, Tensor, TensorData};
use rldp::full::{Grouping, parameter_groups, per_example_gradients};
use rldp_models::{Batch, CausalLm, LanguageModel, Registry, Row};
use rldp_optim::ParameterSlot;
use safetensors::{Dtype, SafeTensors};

const MODELS: [&str; 4] = ["gpt2", "llama32", "llama_untied", "mistral"];

#[allow(deprecated)]
fn devices() -> Vec<(&'static str, Device)> {
    vec![
        #[cfg(feature = "flex")]
        ("flex", Device::flex()),
        #[cfg(feature = "ndarray")]
        ("ndarray", Device::ndarray()),
    ]
}

fn goldens() -> PathBuf {
    std::env::var_os("RLDP_GOLDENS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/fixtures"),
        PathBuf::from,
    )
}

fn load(name: &str, device: &Device) -> CausalLm {
    let folder = goldens().join("models").join(name);
    Registry::builtin()
        .load(&folder, device, |_| {})
        .unwrap()
        .model
}

/// A row with a prompt, a padded one, and the longest.
fn batch(device: &Device) -> Batch {
    let rows = [
        Row {
            tokens: (0..14).map(|t| (t * 7 + 3) % 90).collect(),
            prompt: 5,
        },
        Row::new(vec![5, 6, 7, 5, 6, 7, 5]),
        Row::new((0..24).map(|t| (t * t + 11) % 91).collect()),
    ];
    Batch::from_rows(&rows, device).unwrap()
}

fn single(batch: &Batch, row: usize) -> Batch {
    Batch {
        input_ids: batch.input_ids.clone().narrow(0, row, 1),
        targets: batch.targets.clone().narrow(0, row, 1),
        mask: batch.mask.clone().narrow(0, row, 1),
    }
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor
        .without_autodiff()
        .into_data()
        .iter::<f64>()
        .collect()
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// Every parameter's gradient, `[examples][coordinates]`.
fn ours(model: &CausalLm, batch: &Batch) -> HashMap<ParamId, Vec<Vec<f64>>> {
    let groups = parameter_groups(model, Grouping::PerTensor).unwrap();
    let (gradients, _) = per_example_gradients(model, batch, &groups).unwrap();
    groups
        .iter()
        .zip(gradients)
        .map(|((_, slots), group)| {
            let [tensor] = &group.tensors[..] else {
                panic!("one tensor a group")
            };
            let width = tensor.dims()[1];
            let rows = values(tensor.clone());
            (
                slots[0].id,
                rows.chunks(width).map(<[f64]>::to_vec).collect(),
            )
        })
        .collect()
}

/// A parameter's gradient as autodiff gives it.
fn autodiffs(gradients: &GradientsParams, slot: &ParameterSlot) -> Option<Vec<f64>> {
    match slot.shape.len() {
        1 => gradients.get::<1>(slot.id).map(values),
        2 => gradients.get::<2>(slot.id).map(values),
        _ => None,
    }
}

#[test]
fn gradients_equal_autodiff_one_example_at_a_time() {
    let mut compared = 0;
    for (backend, device) in devices() {
        for name in MODELS {
            let model = load(name, &device);
            let batch = batch(&device);
            let together = ours(&model, &batch);
            let groups = parameter_groups(&model, Grouping::Flat).unwrap();
            let trainable = model.clone().unfreeze().train();
            for row in 0..batch.examples() {
                let loss = trainable.per_example_loss(&single(&batch, row)).sum();
                let gradients = GradientsParams::from_grads(loss.backward(), &trainable);
                for (_, slots) in groups.iter() {
                    for slot in slots {
                        let expected = autodiffs(&gradients, slot).unwrap();
                        let found = &together[&slot.id][row];
                        let difference: Vec<f64> =
                            found.iter().zip(&expected).map(|(a, b)| a - b).collect();
                        let (error, scale) = (norm(&difference), norm(&expected));
                        assert_eq!(found.len(), expected.len());
                        assert!(
                            error <= 1e-5 * scale,
                            "{backend} {name} {:?} [{row}]: {error:e} of {scale:e}",
                            slot.shape
                        );
                        compared += 1;
                    }
                }
            }
        }
    }
    println!("{compared} parameter gradients compared");
    assert!(compared >= 3 * 80 * devices().len());
}

/// A tensor of a golden file as f64.
fn golden(file: &SafeTensors<'_>, name: &str) -> (Vec<usize>, Vec<f64>) {
    let view = file.tensor(name).unwrap();
    let words = view.data().chunks_exact(8);
    let values = match view.dtype() {
        Dtype::I64 => words
            .map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap()) as f64)
            .collect(),
        other => panic!("{other:?}"),
    };
    (view.shape().to_vec(), values)
}

/// The golden inputs: the last position has no target.
fn golden_batch(device: &Device) -> Batch {
    let bytes = std::fs::read(goldens().join("models/gpt2/io.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (shape, ids) = golden(&file, "input_ids");
    let (_, labels) = golden(&file, "labels");
    let [rows, time] = shape[..] else {
        panic!("{shape:?}")
    };
    let next = |index: usize| match (index + 1) % time {
        0 => -100.0,
        _ => labels[index + 1],
    };
    let mask: Vec<f32> = (0..rows * time)
        .map(|index| f32::from(u8::from(next(index) != -100.0)))
        .collect();
    let targets: Vec<i64> = (0..rows * time)
        .map(|index| next(index).max(0.0) as i64)
        .collect();
    let ints = |values: Vec<i64>| -> Tensor<2, Int> {
        Tensor::from_data(TensorData::new(values, [rows, time]), device)
    };
    Batch {
        input_ids: ints(ids.iter().map(|id| *id as i64).collect()),
        targets: ints(targets),
        mask: Tensor::from_data(TensorData::new(mask, [rows, time]), device),
    }
}

#[test]
fn norms_equal_the_golden_ones() {
    let text = std::fs::read_to_string(goldens().join("gradsample/gpt2/full_norms.json")).unwrap();
    let reference: serde_json::Value = serde_json::from_str(&text).unwrap();
    let expect = |value: &serde_json::Value, found: f64, what: &str| {
        let expected = value.as_f64().unwrap();
        let relative = (found - expected).abs() / expected;
        assert!(relative < 1e-5, "{what}: {found} for {expected}");
    };
    let mut compared = 0;
    for (backend, device) in devices() {
        let model = load("gpt2", &device);
        let batch = golden_batch(&device);
        let groups = parameter_groups(&model, Grouping::PerTensor).unwrap();
        let (gradients, losses) = per_example_gradients(&model, &batch, &groups).unwrap();
        for (row, loss) in values(losses).into_iter().enumerate() {
            expect(&reference["per_example_loss"][row], loss, backend);
        }
        let mut squares = vec![0.0; batch.examples()];
        for group in gradients {
            // `LAYER.0` is the layer's weight, `LAYER.1` its bias; positions come with the tokens' table.
            let (layer, index) = group.name.rsplit_once('.').unwrap();
            let name = match (layer, index) {
                ("transformer.wte", "1") => "transformer.wpe.weight".to_owned(),
                (layer, "0") => format!("{layer}.weight"),
                (layer, _) => format!("{layer}.bias"),
            };
            let width = group.tensors[0].dims()[1];
            let rows = values(group.tensors[0].clone());
            for (row, gradient) in rows.chunks(width).enumerate() {
                let found = norm(gradient);
                squares[row] += found * found;
                let expected = &reference["parameters"][&name]["norm"][row];
                expect(expected, found, &format!("{backend} {name} [{row}]"));
                compared += 1;
            }
        }
        for (row, square) in squares.into_iter().enumerate() {
            expect(&reference["global_norm"][row], square.sqrt(), backend);
        }
    }
    println!("{compared} norms compared");
    assert_eq!(compared, 3 * 28 * devices().len());
}
