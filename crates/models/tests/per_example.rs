//! Per-example gradients against running the examples one at a time, and full-parameter training.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::Tensor;
use common::{
    MODELS, devices, golden_batch, goldens, load, max_difference, model_folder, norm, read_all,
    single, values,
};
use rldp_lora::{
    AdapterGradients, LoraConfig, adapter_gradients_params, adapter_parameters, adapters, add_lora,
    expand_adapters, peft::load_adapter, per_example_gradients, set_adapters,
};
use rldp_models::{Batch, CausalLm, Gpt2, Gpt2Config, LanguageModel, Row};

fn run(model: &CausalLm, batch: &Batch) -> Vec<AdapterGradients> {
    let expanded = expand_adapters(model, batch.examples()).unwrap();
    let mut gradients = expanded.per_example_loss(batch).sum().backward();
    per_example_gradients(&expanded, &mut gradients).unwrap()
}

fn assert_close(found: Tensor<3>, expected: Tensor<3>, limit: f64, what: &str) {
    let (found, expected) = (values(found), values(expected));
    let worst = max_difference(&found, &expected, |_| true);
    let scale = norm(&expected);
    assert!(worst <= limit * scale, "{what}: {worst:e} of {scale:e}");
}

#[test]
fn slices_equal_running_examples_alone() {
    let mut compared = 0;
    for (backend, device) in devices() {
        for name in MODELS {
            let folder = model_folder(name);
            let batch = golden_batch(&read_all(&folder.join("io.safetensors")), &device);
            let mut model = load(name, &device);
            load_adapter(&mut model, &folder.join("adapter")).unwrap();
            let together = run(&model, &batch);
            for row in 0..batch.examples() {
                for (all, alone) in together.iter().zip(run(&model, &single(&batch, row))) {
                    let what = format!("{backend} {name} {} [{row}]", alone.name);
                    let slice = |tensor: &Tensor<3>| tensor.clone().narrow(0, row, 1);
                    let a = all.a.as_ref().unwrap();
                    assert_close(slice(a), alone.a.unwrap(), 2e-6, &what);
                    assert_close(slice(&all.b), alone.b, 2e-6, &what);
                    compared += 1;
                }
            }
        }
    }
    println!("{compared} adapter gradients compared");
    assert!(compared >= 3 * 45 * devices().len());
}

#[test]
fn padding_and_neighbours_change_nothing() {
    for (backend, device) in devices() {
        for name in MODELS {
            let mut model = load(name, &device);
            load_adapter(&mut model, &model_folder(name).join("adapter")).unwrap();
            let short = Row::new(vec![5, 6, 7, 8, 9, 10]);
            let long = Row {
                tokens: (0..40).map(|token| 3 + token % 90).collect(),
                prompt: 12,
            };
            let alone = Batch::from_rows(std::slice::from_ref(&short), &device).unwrap();
            let padded = Batch::from_rows(&[long, short], &device).unwrap();
            assert_eq!(padded.input_ids.dims(), [2, 39]);
            assert_eq!(values(padded.counts()), [28.0, 5.0]);
            let losses = values(model.per_example_loss(&padded));
            let loss = values(model.per_example_loss(&alone))[0];
            assert!(
                (losses[1] - loss).abs() < 2e-6,
                "{backend} {name}: {losses:?} {loss}"
            );
            for (all, alone) in run(&model, &padded).iter().zip(run(&model, &alone)) {
                let slice = all.b.clone().narrow(0, 1, 1);
                assert_close(
                    slice,
                    alone.b,
                    5e-6,
                    &format!("{backend} {name} {}", alone.name),
                );
            }
        }
    }
}

#[test]
fn rows_without_targets_have_zero_loss_and_gradient() {
    for (backend, device) in devices() {
        let mut model = load("llama32", &device);
        load_adapter(&mut model, &model_folder("llama32").join("adapter")).unwrap();
        let rows = [
            Row::new(vec![4]),
            Row {
                tokens: vec![4, 5],
                prompt: 2,
            },
        ];
        let batch = Batch::from_rows(&rows, &device).unwrap();
        assert_eq!(
            values(model.per_example_loss(&batch)),
            [0.0, 0.0],
            "{backend}"
        );
        for gradient in run(&model, &batch) {
            assert_eq!(
                norm(&values(gradient.b)),
                0.0,
                "{backend} {}",
                gradient.name
            );
        }
    }
}

#[test]
fn freezing_a_leaves_its_gradient_out_and_the_other_as_it_was() {
    for (backend, device) in devices() {
        let base = load("gpt2", &device);
        let config = LoraConfig::new(3, ["c_attn", "mlp.c_proj"]);
        let frozen = LoraConfig {
            freeze_a: true,
            ..config.clone()
        };
        let batch = Batch::from_rows(&[Row::new(vec![1, 2, 3]), Row::new(vec![4, 5])], &device);
        let batch = batch.unwrap();
        let run = |config: &LoraConfig| {
            let mut model = base.clone();
            add_lora(&mut model, config, 11).unwrap();
            run(&model, &batch)
        };
        for (both, only_b) in run(&config).into_iter().zip(run(&frozen)) {
            assert!(only_b.a.is_none());
            assert_close(only_b.b, both.b, 1e-6, backend);
        }
    }
}

#[test]
fn an_optimizer_steps_the_adapters_and_nothing_else() {
    for (backend, device) in devices() {
        let base = load("mistral", &device);
        let mut model = base.clone();
        let config = LoraConfig::new(2, model.default_targets());
        add_lora(&mut model, &config, 5).unwrap();
        let batch = Batch::from_rows(&[Row::new((1..20).collect())], &device).unwrap();
        let before = values(model.per_example_loss(&batch))[0];
        let mut optimizer = AdamWConfig::new().init();
        let references = adapter_parameters(&model);
        assert_eq!(references.len(), 14);
        for _ in 0..10 {
            let params = adapter_gradients_params(&references, run(&model, &batch)).unwrap();
            let stepped = optimizer.step(1e-2, adapters(&model), params);
            set_adapters(&mut model, stepped).unwrap();
        }
        let after = values(model.per_example_loss(&batch))[0];
        assert!(after < before - 0.1, "{backend}: {before} to {after}");
        rldp_lora::remove_lora(&mut model).unwrap();
        let (old, new) = (base.host_weights().unwrap(), model.host_weights().unwrap());
        assert_eq!(old, new, "{backend}: base weights moved");
    }
}

/// Squared norms of the gradients of all parameters.
struct SquaredNorms<'a> {
    gradients: &'a GradientsParams,
    total: f64,
    missing: usize,
}

impl ModuleVisitor for SquaredNorms<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        match self.gradients.get::<D>(param.id) {
            Some(gradient) => self.total += norm(&values(gradient)).powi(2),
            None => self.missing += 1,
        }
    }
}

#[test]
fn full_parameter_gradients_agree_with_the_reference() {
    let path = goldens().join("gradsample/gpt2/full_norms.json");
    let text = std::fs::read_to_string(path).unwrap();
    let reference: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (backend, device) in devices() {
        let model = load("gpt2", &device).unfreeze().train();
        let batch = golden_batch(
            &read_all(&model_folder("gpt2").join("io.safetensors")),
            &device,
        );
        for row in 0..batch.examples() {
            let loss = model.per_example_loss(&single(&batch, row)).mean();
            let found = values(loss.clone().detach())[0];
            let expected = reference["per_example_loss"][row].as_f64().unwrap();
            assert!(
                (found - expected).abs() < 5e-6,
                "{backend} [{row}]: {found}"
            );
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            let mut norms = SquaredNorms {
                gradients: &gradients,
                total: 0.0,
                missing: 0,
            };
            model.visit(&mut norms);
            assert_eq!(norms.missing, 0, "{backend}: parameters without gradient");
            let expected = reference["global_norm"][row].as_f64().unwrap();
            let relative = (norms.total.sqrt() - expected).abs() / expected;
            assert!(relative < 1e-5, "{backend} [{row}]: {relative:e}");
        }
    }
}

#[test]
fn a_model_trained_from_nothing_learns_and_survives_saving() {
    for (backend, device) in devices() {
        let config = Gpt2Config::new(30, 16, 2, 16, 2);
        let model = CausalLm::from(Gpt2::random(&config, 3, &device).unwrap());
        let rows = [Row::new((0..16).collect()), Row::new((10..26).collect())];
        let batch = Batch::from_rows(&rows, &device).unwrap();
        let mut optimizer = AdamWConfig::new().init();
        let mut model = model.unfreeze().train();
        let mut losses = Vec::new();
        for _ in 0..60 {
            let loss = model.per_example_loss(&batch).mean();
            losses.push(values(loss.clone().detach())[0]);
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            model = optimizer.step(1e-2, model, gradients);
        }
        assert!(
            (losses[0] - 30f64.ln()).abs() < 0.3,
            "{backend}: starts at {}",
            losses[0]
        );
        assert!(losses[59] < 0.5, "{backend}: ends at {}", losses[59]);
        let model = model.valid();
        let folder = tempfile::tempdir().unwrap();
        model.save(folder.path(), &Default::default()).unwrap();
        let again = common::load_folder(folder.path(), &device);
        let (expected, found) = (
            values(model.forward(batch.input_ids.clone())),
            values(again.forward(batch.input_ids.clone())),
        );
        assert_eq!(expected, found, "{backend}");
    }
}
