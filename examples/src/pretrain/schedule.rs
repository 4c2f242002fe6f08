//! Learning rate over the run: linear warm-up, then half a cosine down to a tenth.

/// Learning rate of step `step` (from 0) of `steps`, with this peak. Warm-up takes a twentieth of the run.
#[must_use]
pub fn learning_rate(step: usize, steps: usize, peak: f64) -> f64 {
    let warm_up = (steps / 20).max(1);
    if step < warm_up {
        return peak * (step + 1) as f64 / warm_up as f64;
    }
    let progress = (step - warm_up) as f64 / (steps - warm_up).max(1) as f64;
    peak * (0.1 + 0.45 * (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_to_the_peak_and_falls_to_a_tenth() {
        let rates: Vec<f64> = (0..1000)
            .map(|step| learning_rate(step, 1000, 2.0))
            .collect();
        assert!((rates[0] - 2.0 / 50.0).abs() < 1e-12);
        assert!((rates[49] - 2.0).abs() < 1e-12);
        assert!(rates[..50].windows(2).all(|pair| pair[0] < pair[1]));
        assert!(rates[50..].windows(2).all(|pair| pair[0] > pair[1]));
        assert!((rates[999] - 0.2).abs() < 1e-4);
    }

    #[test]
    fn one_step_run_is_finite() {
        assert!((learning_rate(0, 1, 1.0) - 1.0).abs() < 1e-12);
    }
}
