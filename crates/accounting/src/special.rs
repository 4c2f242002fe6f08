//! Special functions with relative accuracy in the tails.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

/// 1/sqrt(pi).
const FRAC_1_SQRT_PI: f64 = 0.564_189_583_547_756_3;

/// Upper tail of the standard normal, relatively accurate.
pub(crate) fn normal_upper(x: f64) -> f64 {
    0.5 * libm::erfc(x * FRAC_1_SQRT_2)
}

/// The scaled complementary error function exp(x^2) erfc(x); infinite below about -26.
pub(crate) fn erfcx(x: f64) -> f64 {
    if x < 25.0 {
        // The square's rounding error is put back: exp would turn it into a relative error of x^2 ulps.
        let square = x * x;
        let rest = x.mul_add(x, -square);
        square.exp() * (1.0 + rest) * libm::erfc(x)
    } else {
        FRAC_1_SQRT_PI / (x + erfcx_fraction(x))
    }
}

/// C(x) with erfcx(x) = 1 / (sqrt(pi) (x + C(x))), by its continued fraction; for x >= 3.
fn erfcx_fraction(x: f64) -> f64 {
    let levels = (400.0 / x) as usize + 10;
    let mut c = 0.0;
    for k in (1..=levels).rev() {
        c = 0.5 * k as f64 / (x + c);
    }
    c
}

/// -d/dx erfcx(x) = 2/sqrt(pi) - 2 x erfcx(x), without cancellation.
pub(crate) fn erfcx_decay(x: f64) -> f64 {
    if x < 3.0 {
        2.0 * FRAC_1_SQRT_PI - 2.0 * x * erfcx(x)
    } else {
        let c = erfcx_fraction(x);
        2.0 * FRAC_1_SQRT_PI * c / (x + c)
    }
}

/// Half of the points (the rule is symmetric) and weights of the ten-point Gauss-Legendre rule on [-1, 1].
pub(crate) const TEN_POINTS: [(f64, f64); 5] = [
    (0.148_874_338_981_631_22, 0.295_524_224_714_752_87),
    (0.433_395_394_129_247_2, 0.269_266_719_309_996_35),
    (0.679_409_568_299_024_4, 0.219_086_362_515_982_04),
    (0.865_063_366_688_984_5, 0.149_451_349_150_580_6),
    (0.973_906_528_517_171_7, 0.066_671_344_308_688_14),
];

/// Ten-point Gauss-Legendre rule around `middle`.
pub(crate) fn gauss_legendre(middle: f64, half: f64, f: impl Fn(f64) -> f64) -> f64 {
    TEN_POINTS
        .iter()
        .map(|&(x, w)| w * (f(middle - half * x) + f(middle + half * x)))
        .sum::<f64>()
        * half
}

/// A sum that carries its rounding along: right to two roundoffs of itself and n^2 roundoffs squared of its terms' sizes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Sum {
    high: f64,
    low: f64,
}

impl Sum {
    /// Adds a term.
    pub fn add(&mut self, term: f64) {
        let next = self.high + term;
        let part = next - self.high;
        self.low += (self.high - (next - part)) + (term - part);
        self.high = next;
    }

    /// The sum.
    pub fn value(self) -> f64 {
        self.high + self.low
    }
}

/// ln sqrt(2 pi).
pub(crate) fn ln_sqrt_two_pi() -> f64 {
    0.5 * (2.0 * PI).ln()
}

/// Narrows the bracket of the root of a decreasing function with f(low) > 0 >= f(high).
///
/// Returns the final (low, high): f(high) <= 0 was evaluated, so `high` carries whatever f certifies.
pub(crate) fn decreasing_root(
    mut f: impl FnMut(f64) -> f64,
    low: (f64, f64),
    high: (f64, f64),
    relative: f64,
) -> (f64, f64) {
    let ((mut a, mut fa), (mut b, mut fb)) = (low, high);
    let mut side = 0i32;
    let mut slow = 0;
    for _ in 0..200 {
        let width = b - a;
        if width <= relative * b.abs().max(a.abs()) || width <= f64::MIN_POSITIVE {
            break;
        }
        let mut x = if slow >= 3 || !fa.is_finite() || !fb.is_finite() {
            slow = 0;
            0.5 * (a + b)
        } else {
            // Illinois: superlinear, keeps the bracket. Aim a hair past the root, so that both ends close in.
            a + width * (fa / (fa - fb))
        };
        let margin = 0.25 * relative * b.abs().max(a.abs());
        x = x.clamp(a + margin.min(0.25 * width), b - margin.min(0.25 * width));
        let fx = f(x);
        if fx > 0.0 {
            a = x;
            fa = fx;
            if side == -1 {
                fb *= 0.5;
            }
            side = -1;
        } else {
            // NaN lands here only if f is broken; treat it as not certified.
            if fx.is_nan() {
                a = x;
                fa = f64::INFINITY;
                continue;
            }
            b = x;
            fb = fx;
            if side == 1 {
                fa *= 0.5;
            }
            side = 1;
        }
        if b - a > 0.5 * width {
            slow += 1;
        } else {
            slow = 0;
        }
    }
    (a, b)
}

/// Neumaier's sum of non-negative numbers: right to two roundoffs.
pub(crate) fn compensated_sum(terms: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut lost): (f64, f64) = (0.0, 0.0);
    for term in terms {
        let next = sum + term;
        lost += if sum >= term {
            (sum - next) + term
        } else {
            (term - next) + sum
        };
        sum = next;
    }
    sum + lost
}
