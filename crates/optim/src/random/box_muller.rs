//! Box-Muller normals in blocks, so that the compiler vectorises logarithm, sine and cosine.
//!
//! Plain IEEE operations and no fused multiply-add: the same bits on every machine, with or without wide vectors.

/// Normals of one block: long enough to fill vectors, short enough for the first-level cache.
pub(super) const BLOCK: usize = 64;

/// One number for each place of a block.
pub(super) type Block = [f64; BLOCK];

crate::wide::widest! {
    /// `radius * cos` and `radius * sin` with `radius = sqrt(-2 ln uniform)` and the angle `turn` of a full turn.
    ///
    /// # Precision
    /// For uniforms in [2^-120, 1] and turns in [0, 1) the logarithm is right to 1e-15 relative, sine and cosine to 5e-16 absolute (tested
    /// against `libm`).
    pub(super) fn box_muller(uniform: &Block, turn: &Block) -> (Block, Block) {
        block(uniform, turn)
    }
}

#[inline(always)]
fn block(uniform: &Block, turn: &Block) -> (Block, Block) {
    let (mut first, mut second) = ([0.0; BLOCK], [0.0; BLOCK]);
    for place in 0..BLOCK {
        // A logarithm of one may come out a little above zero.
        let square = -2.0 * ln(uniform[place]);
        let radius = (if square > 0.0 { square } else { 0.0 }).sqrt();
        let (sine, cosine) = sine_cosine(turn[place]);
        first[place] = radius * cosine;
        second[place] = radius * sine;
    }
    (first, second)
}

/// Natural logarithm of a normal positive number, by the series in `s = (m - 1) / (m + 1)` with the coefficients of FreeBSD's msun
/// (`e_log.c`): below one unit in the last place before the parts are added.
#[inline(always)]
fn ln(x: f64) -> f64 {
    const LN_2_HIGH: f64 = 6.931_471_803_691_238e-1;
    const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    const L: [f64; 7] = [
        6.666_666_666_666_735e-1,
        3.999_999_999_940_942e-1,
        2.857_142_874_366_239e-1,
        2.222_219_843_214_978_4e-1,
        1.818_357_216_161_805e-1,
        1.531_383_769_920_937_3e-1,
        1.479_819_860_511_658_6e-1,
    ];
    // Mantissa in [sqrt(1/2), sqrt(2)): moving the bits by those of sqrt(1/2) makes the split one of bit fields.
    let offset = x.to_bits().wrapping_sub(SQRT_HALF_BITS);
    let exponent = whole((offset >> 52).wrapping_add(1 << 11) & 0xFFF) - 2048.0;
    let mantissa = f64::from_bits((offset & 0x000F_FFFF_FFFF_FFFF).wrapping_add(SQRT_HALF_BITS));
    let f = mantissa - 1.0;
    let s = f / (2.0 + f);
    let z = s * s;
    let w = z * z;
    let even = w * (L[1] + w * (L[3] + w * L[5]));
    let odd = z * (L[0] + w * (L[2] + w * (L[4] + w * L[6])));
    let half = 0.5 * f * f;
    exponent * LN_2_HIGH - ((half - (s * (half + even + odd) + exponent * LN_2_LOW)) - f)
}

/// Bits of `sqrt(1/2)`.
const SQRT_HALF_BITS: u64 = 0x3FE6_A09E_667F_3BCD;

/// A whole number below 2^52 as a float, by its bits: conversions of 64-bit integers have no vector instruction.
#[inline(always)]
fn whole(value: u64) -> f64 {
    f64::from_bits(value | 0x4330_0000_0000_0000) - 4_503_599_627_370_496.0
}

/// Sine and cosine of `turn` full turns, for a turn in [0, 1): reduced exactly to an eighth of a turn, then the polynomials of FreeBSD's
/// msun (`k_sin.c`, `k_cos.c`).
#[inline(always)]
fn sine_cosine(turn: f64) -> (f64, f64) {
    const S: [f64; 6] = [
        -1.666_666_666_666_663_2e-1,
        8.333_333_333_322_49e-3,
        -1.984_126_982_985_795e-4,
        2.755_731_370_707_006_8e-6,
        -2.505_076_025_340_686_3e-8,
        1.589_690_995_211_55e-10,
    ];
    const C: [f64; 6] = [
        4.166_666_666_666_66e-2,
        -1.388_888_888_887_411e-3,
        2.480_158_728_947_673e-5,
        -2.755_731_435_139_066_3e-7,
        2.087_572_321_298_175e-9,
        -1.135_964_755_778_819_5e-11,
    ];
    // The nearest quarter, as a float and in the last bits of a word.
    const MAGIC: f64 = 6_755_399_441_055_744.0;
    let shifted = 4.0 * turn + MAGIC;
    let quarter = shifted.to_bits();
    let x = std::f64::consts::TAU * (turn - 0.25 * (shifted - MAGIC));
    let z = x * x;
    let sine = x + x * z * (S[0] + z * (S[1] + z * (S[2] + z * (S[3] + z * (S[4] + z * S[5])))));
    let tail = z * z * (C[0] + z * (C[1] + z * (C[2] + z * (C[3] + z * (C[4] + z * C[5])))));
    let cosine = 1.0 - (0.5 * z - tail);
    // Quarter turns swap the two and change signs.
    let swap = (quarter & 1).wrapping_neg();
    let (sine, cosine) = (sine.to_bits(), cosine.to_bits());
    let first = (sine & !swap) | (cosine & swap);
    let second = (cosine & !swap) | (sine & swap);
    let sine_sign = (quarter >> 1) << 63;
    let cosine_sign = ((quarter >> 1) ^ quarter) << 63;
    (
        f64::from_bits(first ^ sine_sign),
        f64::from_bits(second ^ cosine_sign),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_sines_and_cosines_are_those_of_libm() {
        let mut state = 1_u64;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / 9_007_199_254_740_992.0
        };
        let edges = [
            1.0,
            0.5,
            0.25,
            std::f64::consts::FRAC_1_SQRT_2.next_down(),
            std::f64::consts::FRAC_1_SQRT_2,
            1.0 - 1e-16,
            2.0_f64.powi(-117),
            1e-30,
        ];
        for round in 0..200_000 {
            let uniform = edges.get(round).copied().unwrap_or_else(|| {
                (next() + 1e-17)
                    .powi(1 + (round % 30) as i32)
                    .max(2.0_f64.powi(-120))
            });
            let (found, exact) = (ln(uniform), libm::log(uniform));
            assert!(
                (found - exact).abs() <= 1e-15 * exact.abs(),
                "ln {uniform}: {found} for {exact}"
            );
            let turn = if round < 16 {
                round as f64 / 16.0
            } else {
                next()
            };
            let (sine, cosine) = sine_cosine(turn);
            // libm sees a rounded angle: 2^-53 of up to 2 pi.
            let (exact_sine, exact_cosine) = libm::sincos(std::f64::consts::TAU * turn);
            assert!(
                (sine - exact_sine).abs() <= 1.2e-15 && (cosine - exact_cosine).abs() <= 1.2e-15,
                "turn {turn}"
            );
            assert!(
                (sine * sine + cosine * cosine - 1.0).abs() <= 1e-15,
                "turn {turn}"
            );
        }
    }

    #[test]
    fn wide_vectors_change_no_bit() {
        let uniform: Block = std::array::from_fn(|i| (i as f64 + 0.5) / 64.0);
        let turn: Block = std::array::from_fn(|i| (i as f64 * 0.618).fract());
        assert_eq!(box_muller(&uniform, &turn), block(&uniform, &turn));
    }
}
