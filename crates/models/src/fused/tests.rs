//! The native operations against Burn's, one by one.
#![allow(clippy::unwrap_used)]

use std::cell::RefCell;

use burn::module::{Param, ParamId};
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::{RngExt, SeedableRng, rngs::ChaCha12Rng};
use rldp_lora::{
    LinearLayers, LoraAdapter, LoraConfig, LoraLinear, add_lora, expand_adapters,
    per_example_gradients,
};

use super::tile::{COLUMNS, Kernel, LANE, ROWS, Segment, Target};
use super::{causal_attention, head_losses, layer_norm, linear, packed_causal_attention, rms_norm};
use crate::attention::Attention;
use crate::device_cache::DeviceCache;
use crate::{Batch, CausalLm, Gpt2, Gpt2Config, LanguageModel, Llama, LlamaConfig, Row};

thread_local! {
    /// Every test has a thread of its own, and so the same numbers in every run.
    static NUMBERS: RefCell<ChaCha12Rng> = RefCell::new(ChaCha12Rng::seed_from_u64(2));
}

/// Standard normal values (Box and Muller 1958).
fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    let count = shape.iter().product();
    let values: Vec<f32> = NUMBERS.with_borrow_mut(|rng| {
        let mut draw = |_| {
            let (u, v): (f64, f64) = (rng.random(), rng.random());
            ((-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
        };
        (0..count).map(&mut draw).collect()
    });
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}

/// A leaf of the autodiff graph with the same values.
fn leaf<const D: usize>(tensor: &Tensor<D>) -> Tensor<D> {
    tensor.clone().autodiff().require_grad()
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor
        .without_autodiff()
        .into_data()
        .iter::<f32>()
        .collect()
}

fn assert_close<const D: usize>(found: Tensor<D>, expected: Tensor<D>, what: &str) {
    assert_close_to(found, expected, 1e-3, what);
}

/// The same where numbers as large as `scale` were added and taken away.
fn assert_close_to<const D: usize>(found: Tensor<D>, expected: Tensor<D>, scale: f32, what: &str) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let (found, expected) = (values(found), values(expected));
    let scale = expected
        .iter()
        .fold(scale, |scale, value| scale.max(value.abs()));
    for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let difference = (found - expected).abs();
        assert!(
            difference <= 2e-5 * scale,
            "{what}: {found} is not {expected} at {index} (scale {scale})"
        );
    }
}

fn kernels() -> Vec<Kernel> {
    let mut kernels = vec![Kernel::Portable];
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            kernels.push(Kernel::Avx2);
        }
        if is_x86_feature_detected!("avx512f") {
            kernels.push(Kernel::Avx512);
        }
    }
    kernels
}

#[test]
fn every_kernel_sums_every_tile() {
    let mut rng = ChaCha12Rng::seed_from_u64(1);
    let mut draw =
        |size: usize| -> Vec<f32> { (0..size).map(|_| rng.random::<f32>() * 2.0 - 1.0).collect() };
    let mut tiles = 0;
    for rows in 1..=ROWS {
        for (panel, width) in [
            (16, 16),
            (16, 3),
            (COLUMNS, 32),
            (COLUMNS, 31),
            (COLUMNS, 16),
            (COLUMNS, 1),
        ] {
            for inner in [[1usize, 0], [16, 8], [37, 5]] {
                let lefts = inner.map(|inner| draw(inner.next_multiple_of(LANE) * rows));
                let rights = inner.map(|inner| draw(inner * panel));
                let start = draw(rows * 40);
                let segments: Vec<Segment> = (0..2)
                    .filter(|part| inner[*part] > 0)
                    .map(|part| Segment {
                        left: lefts[part].as_ptr(),
                        right: rights[part].as_ptr(),
                        stride: panel,
                        inner: inner[part],
                    })
                    .collect();
                for add in [false, true] {
                    for kernel in kernels() {
                        let mut out = start.clone();
                        let target = Target {
                            start: out.as_mut_ptr(),
                            stride: 40,
                            width,
                            add,
                        };
                        // SAFETY: the operands and the result are as large as described.
                        unsafe { kernel.run(rows, panel, &segments, target) };
                        for row in 0..rows {
                            for column in 0..40 {
                                let place = row * 40 + column;
                                let mut expected = f64::from(start[place]);
                                if column < width {
                                    if !add {
                                        expected = 0.0;
                                    }
                                    for part in 0..2 {
                                        for k in 0..inner[part] {
                                            let left = (k / LANE * rows + row) * LANE + k % LANE;
                                            expected += f64::from(lefts[part][left])
                                                * f64::from(rights[part][k * panel + column]);
                                        }
                                    }
                                }
                                let found = f64::from(out[place]);
                                assert!(
                                    (found - expected).abs() < 2e-6 * (1.0 + inner[0] as f64),
                                    "{kernel:?} {rows} x {width} of {panel}, {inner:?}, {add}: {found} is not {expected}"
                                );
                            }
                        }
                        tiles += 1;
                    }
                }
            }
        }
    }
    assert!(tiles >= ROWS * 6 * 3 * 2);
}

/// A layer, with an adapter of that many copies if there is a rank.
fn layer(
    inputs: usize,
    outputs: usize,
    bias: bool,
    turned: bool,
    adapter: Option<(usize, usize, usize)>,
) -> LoraLinear {
    let weight = match turned {
        true => random([outputs, inputs]).swap_dims(0, 1),
        false => random([inputs, outputs]),
    };
    let mut layer = LoraLinear::new(weight, bias.then(|| random([outputs])));
    if let Some((rank, a_copies, b_copies)) = adapter {
        let config = LoraConfig::new(rank, ["linear"]);
        let (a, b) = (random([1, inputs, rank]), random([1, rank, outputs]));
        let mut adapter = LoraAdapter::from_factors("linear", a, b, &config);
        let leaf = |copies: usize, rows: usize, columns: usize| {
            let value = random([copies, rows, columns]).autodiff().require_grad();
            Param::initialized(ParamId::new(), value)
        };
        adapter.a = leaf(a_copies, inputs, rank);
        adapter.b = leaf(b_copies, rank, outputs);
        adapter.scaling = 0.7;
        layer.adapter = Some(adapter);
    }
    layer
}

#[test]
fn linear_agrees_with_burn() {
    let mut cases = 0;
    for (examples, time, inputs, outputs) in [
        (3, 5, 7, 33),
        (1, 1, 1, 1),
        (2, 130, 40, 96),
        (4, 30, 1100, 20),
        (5, 17, 64, 15),
    ] {
        for (bias, residual, turned) in [
            (true, true, false),
            (false, false, true),
            (true, false, false),
            (false, true, true),
        ] {
            for adapter in [
                None,
                Some((3, 1, 1)),
                Some((4, examples, examples)),
                Some((2, 1, examples)),
            ] {
                let layer = layer(inputs, outputs, bias, turned, adapter);
                let (x, rest) = (
                    random([examples, time, inputs]),
                    random([examples, time, outputs]),
                );
                let factor = random([examples, time, outputs]).autodiff();
                let run = |fused: bool| {
                    let (x, rest) = (leaf(&x), leaf(&rest));
                    let y = match fused {
                        true => linear(&layer, x.clone(), residual.then(|| rest.clone())),
                        false if residual => rest.clone() + layer.forward(x.clone()),
                        false => layer.forward(x.clone()),
                    };
                    let grads = (y.clone() * factor.clone()).sum().backward();
                    let mut found = vec![y.clone(), x.grad(&grads).unwrap().autodiff()];
                    if residual {
                        found.push(rest.grad(&grads).unwrap().autodiff());
                    }
                    if let Some(adapter) = &layer.adapter {
                        for factor in [&adapter.a, &adapter.b] {
                            found.push(factor.val().grad(&grads).unwrap().autodiff());
                        }
                    }
                    found
                };
                for (part, (found, expected)) in run(true).into_iter().zip(run(false)).enumerate() {
                    let what = format!(
                        "{examples} {time} {inputs} {outputs} {bias} {residual} {turned} {adapter:?} part {part}"
                    );
                    assert_close(found, expected, &what);
                    cases += 1;
                }
            }
        }
    }
    assert!(cases > 200);
}

#[test]
fn a_constant_input_gets_no_gradient_and_the_adapter_its_own() {
    let layer = layer(20, 40, true, false, Some((2, 3, 3)));
    let x = random([3, 9, 20]);
    let adapter = layer.adapter.as_ref().unwrap();
    let run = |y: Tensor<3>| {
        let grads = (y.clone() * y).sum().backward();
        [&adapter.a, &adapter.b].map(|factor| factor.val().grad(&grads).unwrap())
    };
    let found = run(linear(&layer, x.clone(), None));
    for (found, expected) in found.into_iter().zip(run(layer.forward(x))) {
        assert_close(found, expected, "factor");
    }
}

#[test]
fn norms_agree_with_burn() {
    for shape in [[2, 3, 5], [1, 2, 4], [3, 40, 130]] {
        let [_, _, width] = shape;
        let (x, weight, bias) = (random(shape), random([width]), random([width]));
        let factor = random(shape).autodiff();
        type Norm<'a> = &'a dyn Fn(Tensor<3>) -> Tensor<3>;
        let fused: [Norm<'_>; 2] = [
            &|x| layer_norm(x, weight.clone(), bias.clone(), 1e-5),
            &|x| rms_norm(x, weight.clone(), 1e-6),
        ];
        let composed: [Norm<'_>; 2] = [
            &|x| {
                let centred = x.clone() - x.mean_dim(2);
                let variance = (centred.clone() * centred.clone()).mean_dim(2);
                centred / (variance + 1e-5).sqrt() * weight.clone().reshape([1, 1, -1])
                    + bias.clone().reshape([1, 1, -1])
            },
            &|x| {
                let square = (x.clone() * x.clone()).mean_dim(2);
                x / (square + 1e-6).sqrt() * weight.clone().reshape([1, 1, -1])
            },
        ];
        for (index, (fused, composed)) in fused.iter().zip(composed).enumerate() {
            let run = |norm: Norm<'_>| {
                let x = leaf(&x);
                let y = norm(x.clone());
                let grads = (y.clone() * factor.clone()).sum().backward();
                [y, x.grad(&grads).unwrap().autodiff()]
            };
            for (found, expected) in run(fused).into_iter().zip(run(composed)) {
                assert_close(found, expected, &format!("{shape:?} norm {index}"));
            }
        }
    }
}

fn attention(heads: usize, kv_heads: usize, head_dim: usize, window: Option<usize>) -> Attention {
    Attention {
        heads,
        kv_heads,
        head_dim,
        scale: 1.0 / (head_dim as f64).sqrt(),
        window,
        masks: DeviceCache::default(),
    }
}

#[test]
fn attention_agrees_with_burn() {
    let mut cases = 0;
    for (examples, time) in [(2, 1), (1, 7), (3, 33), (1, 150)] {
        for (heads, kv_heads, dim) in [(2, 2, 8), (4, 2, 6), (6, 1, 20), (1, 1, 64)] {
            for window in [None, Some(1), Some(5), Some(40), Some(1000)] {
                let shape = attention(heads, kv_heads, dim, window);
                let query = random([examples, time, heads, dim]);
                let key = random([examples, time, kv_heads, dim]);
                let value = random([examples, time, kv_heads, dim]);
                let factor = random([examples, time, heads * dim]).autodiff();
                let run = |fused: bool| {
                    let inputs = [&query, &key, &value].map(leaf);
                    let [query, key, value] = &inputs;
                    let y = match fused {
                        true => causal_attention(&shape, query, key, value).unwrap(),
                        false => shape.composed(query.clone(), key.clone(), value.clone(), None),
                    };
                    let grads = (y.clone() * factor.clone()).sum().backward();
                    let grads = inputs.map(|input| input.grad(&grads).unwrap().autodiff());
                    (y, grads)
                };
                let ((found, found_grads), (expected, grads)) = (run(true), run(false));
                let what = format!("{examples} {time} {heads} {kv_heads} {dim} {window:?}");
                assert_close(found.clone(), expected, &what);
                for (index, (found, expected)) in found_grads.iter().zip(grads).enumerate() {
                    assert_close(found.clone(), expected, &format!("{what} input {index}"));
                }
                cases += 1;
                if heads != kv_heads {
                    continue;
                }
                // The packed form is the same computation.
                let rows =
                    |tensor: &Tensor<4>| tensor.clone().reshape([examples, time, heads * dim]);
                let all = leaf(&Tensor::cat([&query, &key, &value].map(rows).to_vec(), 2));
                let y = packed_causal_attention(&shape, &all).unwrap();
                assert_eq!(values(y.clone()), values(found));
                let grads = (y * factor.clone()).sum().backward();
                let grad = all.grad(&grads).unwrap();
                for (index, expected) in found_grads.into_iter().enumerate() {
                    let part = grad.clone().narrow(2, index * heads * dim, heads * dim);
                    assert_eq!(values(part), values(expected), "{what} packed {index}");
                }
            }
        }
    }
    assert_eq!(cases, 4 * 4 * 5);
}

#[test]
fn head_losses_agree_with_burn() {
    for (count, width, words) in [(1, 4, 3), (150, 20, 1300), (9, 64, 512)] {
        let rows = random([count, width]) * 3.0;
        let projection = random([words, width]);
        let targets: Vec<u32> = (0..count)
            .map(|row| ((row * 37 + 11) % words) as u32)
            .collect();
        let weights: Vec<f32> = (0..count).map(|row| 1.0 / (1 + row % 3) as f32).collect();
        let device = Device::flex();
        let target: Tensor<1, Int> =
            Tensor::from_data(TensorData::new(targets.clone(), [count]), &device);
        let weight = Tensor::from_data(TensorData::new(weights.clone(), [count, 1]), &device);
        let (expected, expected_grads) =
            crate::loss::in_chunks(rows.clone(), &projection, target, weight, true);
        let (found, grads) = head_losses(&rows, &projection, &targets, &weights, true).unwrap();
        // A loss is a difference of logits, its gradient one of the projection's rows: where the target is next to
        // certain they cancel, and what is left is as exact as these were.
        let largest = |tensor: Tensor<2>| tensor.abs().max().into_scalar::<f32>();
        let logits = largest(rows.clone().matmul(projection.clone().swap_dims(0, 1)));
        let losses = found.clone().reshape([count, 1]);
        assert_close_to(losses, expected, logits, "losses");
        let (grads, expected) = (grads.unwrap(), expected_grads.unwrap());
        assert_close_to(grads, expected, largest(projection.clone()), "gradients");
        let (alone, none) = head_losses(&rows, &projection, &targets, &weights, false).unwrap();
        assert!(none.is_none());
        assert_eq!(values(alone), values(found));
    }
}

/// One example's results do not depend, bit for bit, on the others in its batch.
#[test]
fn neighbours_change_no_bit() {
    let shape = attention(2, 2, 8, None);
    let layer = layer(32, 48, true, false, Some((2, 4, 4)));
    let x = random([4, 23, 32]);
    let run = |first: usize, count: usize| {
        let mut layer = layer.clone();
        let adapter = layer.adapter.as_mut().unwrap();
        for factor in [&mut adapter.a, &mut adapter.b] {
            let value = factor.val().without_autodiff().narrow(0, first, count);
            *factor = Param::initialized(factor.id, value.autodiff().require_grad());
        }
        let x = leaf(&x.clone().narrow(0, first, count));
        let normed = layer_norm(
            x.clone(),
            Tensor::ones([32], &Device::flex()),
            Tensor::zeros([32], &Device::flex()),
            1e-5,
        );
        let all = linear(&layer, normed, None);
        let y = packed_causal_attention(&shape, &all).unwrap();
        let grads = (y.clone() * y.clone()).sum().backward();
        let adapter = layer.adapter.as_ref().unwrap();
        [
            y,
            x.grad(&grads).unwrap(),
            adapter.a.val().grad(&grads).unwrap(),
            adapter.b.val().grad(&grads).unwrap(),
        ]
    };
    let together = run(0, 4);
    for example in 0..4 {
        for (all, alone) in together.iter().zip(run(example, 1)) {
            let slice = all.clone().narrow(0, example, 1);
            assert_eq!(values(slice), values(alone), "example {example}");
        }
    }
}

/// Padding and neighbours change no bit of an example's loss and gradients: trainers may sort texts
/// into micro-batches as they like.
#[test]
fn padding_changes_no_bit() {
    let device = Device::flex();
    let gpt2 = Gpt2::random(&Gpt2Config::new(50, 160, 2, 32, 2), 3, &device).unwrap();
    let llama = |window: Option<usize>, seed: u64| {
        let mut config = LlamaConfig::new(50, 160, 2, 40, 2);
        config.kv_heads = 1;
        config.window = window;
        CausalLm::from(Llama::random(&config, seed, &device).unwrap())
    };
    for (name, mut model) in [
        ("gpt2", CausalLm::from(gpt2)),
        ("llama", llama(None, 4)),
        ("mistral", llama(Some(7), 5)),
    ] {
        let config = LoraConfig::new(3, model.default_targets());
        add_lora(&mut model, &config, 5).unwrap();
        model.visit_linears_mut(&mut |_, layer| {
            if let Some(adapter) = &mut layer.adapter {
                let b = random(adapter.b.dims()) * 0.1;
                adapter.b = Param::initialized(adapter.b.id, b);
            }
        });
        let run = |rows: &[Row]| {
            let batch = Batch::from_rows(rows, &device).unwrap();
            let expanded = expand_adapters(&model, rows.len()).unwrap();
            let losses = expanded.per_example_loss(&batch);
            let mut gradients = losses.clone().sum().backward();
            let list = per_example_gradients(&expanded, &mut gradients).unwrap();
            (values(losses)[0], list)
        };
        let text = |tokens: u32| Row::new((0..tokens).map(|token| token * token % 47).collect());
        for short in [2, 9, 40, 129] {
            let (loss, alone) = run(&[text(short)]);
            for long in [short + 1, 57, 70, 150] {
                let rows = [text(short), text(long), text(3)];
                let (padded_loss, padded) = run(&rows);
                assert_eq!(loss, padded_loss, "{name} {short} {long}: loss");
                for (alone, padded) in alone.iter().zip(padded) {
                    let layer = &padded.name;
                    let pairs = [
                        (alone.a.clone().unwrap(), padded.a.unwrap()),
                        (alone.b.clone(), padded.b),
                    ];
                    for (alone, padded) in pairs {
                        let padded = values(padded.narrow(0, 0, 1));
                        assert_eq!(padded, values(alone), "{name} {short} {long}: {layer}");
                    }
                }
            }
        }
    }
}
