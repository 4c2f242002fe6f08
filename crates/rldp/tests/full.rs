//! Full-parameter per-example gradients: against the golden norms, and against autodiff one example at a time.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use burn::module::{Module, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Int, Tensor, TensorData};
use proptest::prelude::*;
use rldp::RldpError;
use rldp::full::{factored_gradients, fine_tune, parameter_groups, per_example_gradients};
use rldp::trainer::{
    LEDGER_FILE, RunFolder, RunSetup, Silent, TokenUnit, TrainerConfig, TrainingData,
};
use rldp_accounting::ledger::Ledger;
use rldp_lora::{LoraConfig, add_lora};
use rldp_models::{
    Batch, CausalLm, Gpt2, Gpt2Config, LanguageModel, Llama, LlamaConfig, Registry, Row,
    WeightPrecision,
};
use rldp_optim::{
    Accumulator, Grouping, ParameterGroups, ParameterSlot, PerExampleGradients, RowMap,
    SeededRandom, StepPlan,
};
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

/// Every parameter's gradient, by example.
fn ours(model: &CausalLm, batch: &Batch) -> Vec<HashMap<ParamId, Vec<f64>>> {
    let groups = parameter_groups(model, &Grouping::PerTensor).unwrap();
    let (gradients, _) = per_example_gradients(model, batch, &groups).unwrap();
    let mut examples = vec![HashMap::new(); batch.examples()];
    for ((_, slots), group) in groups.iter().zip(gradients) {
        let [tensor] = &group.tensors[..] else {
            panic!("one tensor a group")
        };
        let width = tensor.dims()[1];
        let rows = values(tensor.clone());
        for (example, row) in examples.iter_mut().zip(rows.chunks(width)) {
            example.insert(slots[0].id, row.to_vec());
        }
    }
    examples
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
            let groups = parameter_groups(&model, &Grouping::Flat).unwrap();
            let trainable = model.clone().unfreeze().train();
            for (row, together) in together.iter().enumerate() {
                let loss = trainable.per_example_loss(&single(&batch, row)).sum();
                let gradients = GradientsParams::from_grads(loss.backward(), &trainable);
                for (_, slots) in groups.iter() {
                    for slot in slots {
                        let expected = autodiffs(&gradients, slot).unwrap();
                        let found = &together[&slot.id];
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
    let (mut compared, mut ghosts) = (0, 0);
    for (backend, device) in devices() {
        let model = load("gpt2", &device);
        let batch = golden_batch(&device);
        let groups = parameter_groups(&model, &Grouping::PerTensor).unwrap();
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
        // The same from Gram matrices, the tied matrix's two parts and their inner product included.
        let (factored, _) = factored_gradients(&model, &batch).unwrap();
        let rows = RowMap::one_each(batch.examples());
        let flat = parameter_groups(&model, &Grouping::Flat).unwrap();
        let ghost = factored.norms(&flat, &rows).unwrap().remove(0);
        for (row, norm) in ghost.into_iter().enumerate() {
            expect(
                &reference["global_norm"][row],
                norm.square.sqrt(),
                "ghost norm",
            );
            let expected = reference["global_norm"][row].as_f64().unwrap();
            assert!(norm.bound >= expected && norm.bound < 1.001 * expected);
        }
        let ghost = factored.norms(&groups, &rows).unwrap();
        for ((name, _), norms) in groups
            .iter()
            .zip(ghost)
            .filter(|((name, _), _)| name.ends_with(".0"))
        {
            let name = format!("{}.weight", name.trim_end_matches(".0"));
            for (row, norm) in norms.into_iter().enumerate() {
                let expected = &reference["parameters"][&name]["norm"][row];
                expect(
                    expected,
                    norm.square.sqrt(),
                    &format!("ghost {name} [{row}]"),
                );
                ghosts += 1;
            }
        }
    }
    println!("{compared} norms and {ghosts} ghost norms compared");
    assert_eq!(
        (compared, ghosts),
        (3 * 28 * devices().len(), 3 * 14 * devices().len())
    );
}

/// The sum of the clipped gradients of a batch, every group flat, with noise too small to see.
fn clipped_sum(
    model: &CausalLm,
    batch: &Batch,
    groups: &ParameterGroups,
    rows: RowMap,
    norm: f64,
) -> Vec<Vec<f64>> {
    let norms = vec![norm; groups.iter().count()];
    let plan = StepPlan::new(1.0, 1, 1e-8, &norms).unwrap();
    let (gradients, _) = per_example_gradients(model, batch, groups).unwrap();
    let mut accumulator = Accumulator::begin(&plan, &groups.layout()).unwrap();
    let gradients = PerExampleGradients::new(gradients, rows).unwrap();
    accumulator.add(&gradients, None).unwrap();
    let device = Device::default();
    let release = accumulator
        .release(&mut SeededRandom::new(1), &device)
        .unwrap();
    let groups = release.groups.into_iter();
    groups
        .map(|group| group.gradients.into_iter().flat_map(values).collect())
        .collect()
}

#[test]
fn a_unit_is_clipped_as_the_mean_of_its_rows() {
    let device = Device::default();
    for name in MODELS {
        let model = load(name, &device);
        let batch = batch(&device);
        let groups = parameter_groups(&model, &Grouping::Flat).unwrap();
        let trainable = model.clone().unfreeze().train();
        let gradients: Vec<Vec<f64>> = (0..3)
            .map(|row| {
                let loss = trainable.per_example_loss(&single(&batch, row)).sum();
                let gradients = GradientsParams::from_grads(loss.backward(), &trainable);
                let slots = groups.iter().flat_map(|(_, slots)| slots);
                slots
                    .flat_map(|slot| autodiffs(&gradients, slot).unwrap())
                    .collect()
            })
            .collect();
        // Rows 0 and 2 are one person, row 1 another; the norm lies between theirs.
        let mean: Vec<f64> = gradients[0]
            .iter()
            .zip(&gradients[2])
            .map(|(a, b)| 0.5 * (a + b))
            .collect();
        let limit = 0.5 * (norm(&mean) + norm(&gradients[1]));
        let scale = |gradient: &[f64]| (limit / norm(gradient)).min(1.0);
        let expected: Vec<f64> = mean
            .iter()
            .zip(&gradients[1])
            .map(|(a, b)| a * scale(&mean) + b * scale(&gradients[1]))
            .collect();
        let rows = RowMap::averaged(&[Some(7), Some(3), Some(7)]);
        let found = clipped_sum(&model, &batch, &groups, rows, limit).remove(0);
        let difference: Vec<f64> = found.iter().zip(&expected).map(|(a, b)| a - b).collect();
        let error = norm(&difference) / norm(&expected);
        // Clipping aims 1.5e-5 below the norm.
        assert!(error < 4e-5, "{name}: {error:e}");
    }
}

fn tiny(kind: usize, device: &Device) -> CausalLm {
    let mut llama = LlamaConfig::new(40, 16, 2, 8, 2);
    llama.tied_head = kind == 2;
    match kind {
        0 => Gpt2::random(&Gpt2Config::new(40, 16, 2, 8, 2), 3, device)
            .unwrap()
            .into(),
        _ => Llama::random(&llama, 4, device).unwrap().into(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Adding one person moves every group's sum by at most its clipping norm, whatever the texts and the norm.
    #[test]
    fn one_person_moves_every_groups_sum_by_at_most_its_norm(
        texts in prop::collection::vec(prop::collection::vec(0_u32..40, 2..12), 2..5),
        kind in 0_usize..3,
        per_layer in any::<bool>(),
        exponent in -3.0_f64..1.5,
    ) {
        let device = Device::default();
        let model = tiny(kind, &device);
        let grouping = if per_layer { Grouping::PerGroup } else { Grouping::Flat };
        let groups = parameter_groups(&model, &grouping).unwrap();
        let limit = 10_f64.powf(exponent);
        let rows: Vec<Row> = texts.into_iter().map(Row::new).collect();
        let sum = |rows: &[Row]| {
            let batch = Batch::from_rows(rows, &device).unwrap();
            clipped_sum(&model, &batch, &groups, RowMap::one_each(rows.len()), limit)
        };
        let (with, without) = (sum(&rows), sum(&rows[1..]));
        for (with, without) in with.iter().zip(&without) {
            let moved: Vec<f64> = with.iter().zip(without).map(|(a, b)| a - b).collect();
            prop_assert!(norm(&moved) <= limit * (1.0 + 1e-5), "{} of {limit}", norm(&moved));
        }
    }
}

fn units(count: usize) -> Vec<TokenUnit> {
    (0..count as u32)
        .map(|unit| TokenUnit {
            rows: (0..=unit % 2)
                .map(|row| (0..6).map(|t| (unit % 3 + row + 2 * t) % 40).collect())
                .collect(),
        })
        .collect()
}

#[test]
fn a_run_learns_and_its_ledger_adds_up() {
    for (backend, device) in devices() {
        for kind in 0..3 {
            let folder = tempfile::tempdir().unwrap();
            let setup = RunSetup {
                config: TrainerConfig {
                    epsilon: 8.0,
                    delta: Some(1e-5),
                    steps: 30,
                    batch_size: 60.0,
                    micro_batch: 16,
                    learning_rate: 1e-2,
                    clipping_norm: 1.0,
                    ..TrainerConfig::default()
                },
                lora: LoraConfig::new(1, ["unused"]),
                base_model: "tiny".to_owned(),
                base_model_fingerprint: String::new(),
                device: device.clone(),
                seed: Some(5),
                folder: RunFolder::open(folder.path()).unwrap(),
                resume: false,
                checkpoint_every: 1,
                created: "now".to_owned(),
                study: None,
            };
            let data = TrainingData {
                training: units(240),
                validation: Vec::new(),
                test: units(60),
                public_validation: None,
                units: 300,
                training_population: 240,
                unit: "person".to_owned(),
                fingerprint: "test".to_owned(),
                token_fingerprint: "test".to_owned(),
            };
            let model = tiny(kind, &device);
            let before = model.host_weights().unwrap();
            let (model, summary) = fine_tune(model, data, &setup, &mut Silent).unwrap();
            let after = model.host_weights().unwrap();
            assert_eq!(before.len(), after.len());
            for (before, after) in before.iter().zip(&after) {
                assert_ne!(before, after, "{backend}: a tensor did not move");
            }
            assert_eq!(summary.adapters[0].parameters, model.num_params());
            assert_eq!(summary.seed, Some(5));
            assert!(summary.epsilon_upper <= 8.0 && summary.epsilon_upper > 7.0);
            let ledger = Ledger::read(folder.path().join(LEDGER_FILE)).unwrap();
            let again = ledger.epsilon_upper(1e-5).unwrap().overall;
            assert_eq!(again, summary.epsilon_upper);
            let test: Vec<_> = summary.held_out("test").collect();
            let [before, after] = test[..] else {
                panic!("{} test losses", test.len())
            };
            assert!(
                after.loss < before.loss - 3.0 * before.noise,
                "{backend}: {} to {}",
                before.loss,
                after.loss
            );
        }
    }
}

#[test]
fn models_with_adapters_or_in_half_precision_are_refused() {
    let device = Device::default();
    let mut model = tiny(0, &device);
    let config = LoraConfig::new(2, model.default_targets());
    add_lora(&mut model, &config, 1).unwrap();
    let refused = parameter_groups(&model, &Grouping::Flat);
    let Err(RldpError::UncoveredParameters { tensors }) = refused else {
        panic!("adapters were accepted")
    };
    assert_eq!(tensors, 2 * 8);
    let folder = goldens().join("models/mistral");
    let half = WeightPrecision::Bf16;
    let loaded = Registry::builtin().load_with(&folder, &device, half, |_| {});
    let refused = parameter_groups(&loaded.unwrap().model, &Grouping::Flat);
    assert!(matches!(refused, Err(RldpError::HalfPrecision { .. })));
}
