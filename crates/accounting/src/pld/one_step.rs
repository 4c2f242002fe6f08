//! One subsampled step in closed form.
//!
//! The likelihood ratio is increasing in x, so the best event is a half line, and both directions reduce to the plain
//! Gaussian's delta at a shifted epsilon.

use crate::gaussian::ln_delta as gaussian_ln_delta;

/// Natural log of delta(epsilon) in the remove direction: `q delta_G(ln(1 + (e^epsilon - 1) / q))`.
pub(crate) fn ln_delta_remove(q: f64, sigma: f64, epsilon: f64) -> f64 {
    if q == 0.0 {
        return f64::NEG_INFINITY;
    }
    let shifted = if epsilon > 500.0 {
        epsilon - q.ln()
    } else {
        (epsilon.exp_m1() / q).ln_1p()
    };
    q.ln() + gaussian_ln_delta(shifted, 1.0 / sigma)
}

/// Natural log of delta(epsilon) in the add direction; minus infinity from `-ln(1 - q)` on.
pub(crate) fn ln_delta_add(q: f64, sigma: f64, epsilon: f64) -> f64 {
    // e^-epsilon - (1 - q): q and epsilon may nearly cancel, so their difference is taken first, exactly.
    let inner = if epsilon < 0.5 {
        (q - epsilon) + exp_less_line(epsilon)
    } else {
        q + (-epsilon).exp_m1()
    };
    if inner <= 0.0 {
        return f64::NEG_INFINITY;
    }
    inner.ln() + epsilon + gaussian_ln_delta(-(inner / q).ln(), 1.0 / sigma)
}

/// e^-x - 1 + x by its series, for 0 <= x < 1/2.
fn exp_less_line(x: f64) -> f64 {
    let mut term = 0.5 * x * x;
    let mut sum = term;
    for k in 3..24 {
        term *= -x / f64::from(k);
        sum += term;
    }
    sum
}
