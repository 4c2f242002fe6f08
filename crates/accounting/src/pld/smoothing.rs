//! Undoing a smoothing of the loss for lower bounds (`docs/proofs/pld-certification.md`, section 3).

use crate::special::normal_upper;

/// What is known of the privacy curve around the point asked for.
pub(crate) struct Smoothed<'a> {
    /// Certified lower bound of the smoothed delta there.
    pub lower: f64,
    /// Standard deviation w of the Gaussian whose composition is at least as smooth.
    pub width: f64,
    /// Certified upper bound of the true delta, at this far from the point.
    pub upper_at: &'a dyn Fn(f64) -> f64,
}

/// Reaches, in standard deviations, of the chords that meet at the point.
const REACHES: [f64; 5] = [0.7, 1.2, 2.0, 3.0, 4.2];
/// Beyond this many standard deviations delta is only known to be at most one.
const FARTHEST: f64 = 12.0;

impl Smoothed<'_> {
    /// Certified lower bound of the true delta.
    ///
    /// The smoothed delta averages delta over a mean-one multiplier v of e^epsilon, in which delta is convex. If delta at
    /// epsilon were too small, chords to upper bounds on both sides, and between upper bounds further out, would cap the
    /// average below what it is.
    pub fn undone(&self) -> f64 {
        if self.width == 0.0 || self.lower <= 0.0 {
            return self.lower.max(0.0);
        }
        REACHES
            .into_iter()
            .map(|reach| self.undone_by(reach))
            .fold(0.0, f64::max)
    }

    fn undone_by(&self, reach: f64) -> f64 {
        let w = self.width;
        let known = |x: f64| (x, (self.upper_at)(x * w).min(1.0));
        // Weights of the values at both ends, in the mean over the chord from a to b (in standard deviations).
        let chord = |a: f64, b: f64| {
            // Probability and mean of v = e^-G where a w < -G <= b w, G ~ N(w^2/2, w^2).
            let (p, m) = if a >= 0.0 {
                (
                    normal_upper(a + 0.5 * w) - normal_upper(b + 0.5 * w),
                    normal_upper(a - 0.5 * w) - normal_upper(b - 0.5 * w),
                )
            } else {
                (
                    normal_upper(-b - 0.5 * w) - normal_upper(-a - 0.5 * w),
                    normal_upper(-b + 0.5 * w) - normal_upper(-a + 0.5 * w),
                )
            };
            let (v_a, v_b) = ((a * w).exp(), (b * w).exp());
            let at_b = ((m - v_a * p) / (v_b - v_a)).clamp(0.0, p);
            (p - at_b, at_b)
        };
        let mut share = 0.0;
        let mut capped = 0.0;
        let mut largest: f64 = 0.0;
        for side in [-1.0, 1.0] {
            let mut near = known(side * reach);
            let (a, b) = if side < 0.0 {
                chord(near.0, 0.0)
            } else {
                chord(0.0, near.0)
            };
            let (own, other) = if side < 0.0 { (b, a) } else { (a, b) };
            share += own;
            capped += other * near.1;
            largest = largest.max(near.1);
            while near.0.abs() < FARTHEST {
                let far = known((near.0 + side * 0.8).clamp(-FARTHEST, FARTHEST));
                let (left, right) = if side < 0.0 { (far, near) } else { (near, far) };
                let (a, b) = chord(left.0, right.0);
                capped += a * left.1 + b * right.1;
                near = far;
            }
        }
        let beyond = normal_upper(FARTHEST - 0.5 * w);
        // Differences of probabilities over differences of v of size w: their rounding, generously.
        let rounding = 1e-13 / w * largest;
        ((self.lower - capped - beyond - rounding) / share).max(0.0)
    }
}
