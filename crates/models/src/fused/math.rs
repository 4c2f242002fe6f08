//! Elementary functions written so that compilers turn loops over them into vector code.

/// `2 sqrt(2/pi)`.
pub(crate) const GELU_LINEAR: f64 = 2.0 * 0.797_884_560_802_865_4;
/// `0.044715` times that.
pub(crate) const GELU_CUBIC: f64 = GELU_LINEAR * 0.044_715;

/// A function whose loops run with the widest vectors that the processor has.
///
/// The order of operations, and so every bit of the results, stays the same. Only what is inlined into it gains:
/// mark callees with loops `#[inline(always)]`.
macro_rules! widest {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $type),*) $(-> $result)? {
            #[inline(always)]
            fn portable($($arg: $type),*) $(-> $result)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
                fn avx512($($arg: $type),*) $(-> $result)? {
                    portable($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $type),*) $(-> $result)? {
                    portable($($arg),*)
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    let has_512 = is_x86_feature_detected!("avx512f")
                        && is_x86_feature_detected!("avx512vl")
                        && is_x86_feature_detected!("avx512dq")
                        && is_x86_feature_detected!("avx512bw");
                    // SAFETY: the processor has these instructions.
                    return unsafe {
                        if has_512 {
                            avx512($($arg),*)
                        } else {
                            avx2($($arg),*)
                        }
                    };
                }
            }
            portable($($arg),*)
        }
    };
}
pub(crate) use widest;

/// `e^x`, zero below -87.
///
/// # Precision
///
/// Relative error below 3e-7 for `x` in [-87, 88]; above 88 the result of 88.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding and taking away 1.5 * 2^23 rounds to a whole number without a branch.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts: the first has so few digits that its multiples are exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.0, 88.0);
    let power = clamped * std::f32::consts::LOG2_E + ROUND - ROUND;
    let rest = clamped - power * LN_2_HIGH - power * LN_2_LOW;
    // Taylor's polynomial on [-ln 2 / 2, ln 2 / 2].
    let series = 1.0 / 5040.0;
    let series = series * rest + 1.0 / 720.0;
    let series = series * rest + 1.0 / 120.0;
    let series = series * rest + 1.0 / 24.0;
    let series = series * rest + 1.0 / 6.0;
    let series = series * rest + 0.5;
    let series = series * rest + 1.0;
    let series = series * rest + 1.0;
    let scale = f32::from_bits(((power as i32 + 127) as u32) << 23);
    // NaN fails the comparison and stays NaN.
    // Zero for every number; what is none stays none.
    #[allow(clippy::eq_op)]
    let keep_nan = x - x;
    if x < -87.0 {
        0.0
    } else {
        series * scale + keep_nan
    }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[inline(always)]
pub(crate) fn gelu(x: f32) -> f32 {
    x * sigmoid(x * (x * x * GELU_CUBIC as f32 + GELU_LINEAR as f32))
}

/// The derivative of [`gelu`].
#[inline(always)]
pub(crate) fn gelu_slope(x: f32) -> f32 {
    let square = x * x;
    let gate = sigmoid(x * (square * GELU_CUBIC as f32 + GELU_LINEAR as f32));
    let inner = square * (3.0 * GELU_CUBIC as f32) + GELU_LINEAR as f32;
    gate * (1.0 + x * (1.0 - gate) * inner)
}

#[inline(always)]
pub(crate) fn silu(x: f32) -> f32 {
    x * sigmoid(x)
}

/// The derivative of [`silu`].
#[inline(always)]
pub(crate) fn silu_slope(x: f32) -> f32 {
    let gate = sigmoid(x);
    gate * (1.0 + x * (1.0 - gate))
}

/// Reduces eight interleaved parts side by side: one chain of additions cannot be vectorised.
#[inline(always)]
pub(crate) fn by_lanes(values: &[f32], start: f32, combine: impl Fn(f32, f32) -> f32) -> f32 {
    const LANES: usize = 8;
    let mut lanes = [start; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = combine(*lane, *value);
        }
    }
    lanes
        .iter()
        .chain(rest)
        .fold(start, |total, value| combine(total, *value))
}

#[cfg(test)]
mod tests {
    use super::{exp, gelu, gelu_slope, sigmoid, silu_slope};

    #[test]
    fn exp_is_precise_and_ends_in_zero() {
        let mut worst = 0.0f64;
        for step in 0..=1_750_000 {
            let x = -87.0 + 1e-4 * step as f32;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - exact).abs() / exact);
        }
        assert!(worst < 3e-7, "{worst:e}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-87.1), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(
            (sigmoid(200.0), sigmoid(-200.0)),
            (1.0, 1.0 / (1.0 + exp(88.0)))
        );
    }

    #[test]
    fn slopes_are_derivatives() {
        for step in -600..=600 {
            let x = f64::from(step) * 0.01;
            let h = 1e-5;
            let by_difference = |f: &dyn Fn(f64) -> f64| (f(x + h) - f(x - h)) / (2.0 * h);
            let exact_gelu = |x: f64| {
                let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
                0.5 * x * (1.0 + u.tanh())
            };
            let exact_silu = |x: f64| x / (1.0 + (-x).exp());
            assert!((f64::from(gelu(x as f32)) - exact_gelu(x)).abs() < 1e-6);
            assert!((f64::from(gelu_slope(x as f32)) - by_difference(&exact_gelu)).abs() < 2e-6);
            assert!((f64::from(silu_slope(x as f32)) - by_difference(&exact_silu)).abs() < 2e-6);
        }
    }
}
