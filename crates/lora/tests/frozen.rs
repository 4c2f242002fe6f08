//! Products with matrices held in half precision.
#![cfg(feature = "flex")]
#![allow(clippy::unwrap_used, missing_docs)]

use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData, module};

use rldp_lora::frozen::linear;

fn wave(shape: [usize; 2], step: f32) -> Tensor<2> {
    let values: Vec<f32> = (0..shape[0] * shape[1])
        .map(|i| (step * i as f32).sin())
        .collect();
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}

/// Up to rounding: the products add up in another order.
fn assert_close<const D: usize>(found: Tensor<D>, expected: Tensor<D>) {
    let scale = expected.clone().abs().max().into_scalar::<f32>();
    let difference = (found - expected).abs().max().into_scalar::<f32>();
    assert!(
        scale > 0.5 && difference < 1e-6 * scale,
        "{difference} of {scale}"
    );
}

#[test]
fn half_products_equal_products_with_the_rounded_matrix() {
    let mut cases = 0;
    for dtype in [FloatDType::BF16, FloatDType::F16] {
        let contiguous = wave([7, 5], 0.7).cast(dtype);
        let view = wave([5, 7], 0.3).cast(dtype).swap_dims(0, 1);
        for weight in [contiguous, view] {
            assert_eq!(weight.dtype(), DType::from(dtype));
            let rounded = weight.clone().cast(FloatDType::F32);
            let bias = wave([1, 5], 1.1).reshape([5]);
            let run = |weight: Tensor<2>| {
                let x = wave([6, 7], 0.2).reshape([2, 3, 7]);
                let x: Tensor<3> = x.autodiff().require_grad();
                let y = linear(x.clone(), weight, Some(bias.clone()));
                let gradients = (y.clone() * y.clone()).sum().backward();
                (y.without_autodiff(), x.grad(&gradients).unwrap())
            };
            let (y, slope) = run(weight.clone());
            let (expected_y, expected_slope) = run(rounded.clone());
            assert_close(y, expected_y);
            assert_close(slope, expected_slope);
            let x = wave([6, 7], 0.2);
            let expected = module::linear(x.clone(), rounded, None);
            assert_close(linear(x, weight, None), expected);
            cases += 1;
        }
    }
    assert_eq!(cases, 4);
}

#[test]
fn a_tracked_half_matrix_gets_its_gradient() {
    let weight = wave([7, 5], 0.7).cast(FloatDType::BF16);
    let weight = weight.autodiff().require_grad();
    let gradients = linear(wave([6, 7], 0.2), weight.clone(), None)
        .sum()
        .backward();
    let found = weight.grad(&gradients).unwrap().cast(FloatDType::F32);
    let expected = wave([6, 7], 0.2).sum_dim(0).swap_dims(0, 1).expand([7, 5]);
    let difference = (found - expected).abs().max().into_scalar::<f32>();
    assert!(difference < 0.02, "{difference}");
}
