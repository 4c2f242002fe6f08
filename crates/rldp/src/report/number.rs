//! Numbers for people: tick positions and short text.

/// A value with at most `digits` significant digits, without trailing zeros: `0.000012` is `1.2e-5`.
pub(crate) fn short(value: f64, digits: usize) -> String {
    if !value.is_finite() {
        return if value.is_nan() {
            "not a number".to_owned()
        } else {
            "infinite".to_owned()
        };
    }
    if value == 0.0 {
        return "0".to_owned();
    }
    let digits = digits.clamp(1, 17);
    // The exponent after rounding, so that 999.9 with three digits is 1000 and not 1e3 cut short.
    let scientific = format!("{value:.precision$e}", precision = digits - 1);
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..6).contains(&exponent) {
        let decimals = (digits as i32 - 1 - exponent).max(0) as usize;
        trimmed(&format!("{value:.decimals$}")).to_owned()
    } else {
        format!("{}e{exponent}", trimmed(mantissa))
    }
}

fn trimmed(text: &str) -> &str {
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.')
    } else {
        text
    }
}

/// As [`short`], but never less than `value`: for what a guarantee claims.
pub(crate) fn short_upper(value: f64, digits: usize) -> String {
    let nearest = short(value, digits);
    match nearest.parse::<f64>() {
        Ok(parsed) if parsed < value => {
            let unit = 10f64.powi(value.abs().log10().floor() as i32 - (digits as i32 - 1));
            let raised = short(parsed + unit, digits);
            // Should rounding still have lost something, all digits are shown instead.
            if raised.parse::<f64>().is_ok_and(|raised| raised >= value) {
                raised
            } else {
                format!("{value}")
            }
        }
        _ => nearest,
    }
}

/// Ticks at multiples of 1, 2, 2.5 or 5 times a power of ten, about `count` of them, that cover `[low, high]`.
pub(crate) fn linear_ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let span = high - low;
    if !(span > 0.0 && span.is_finite() && low.is_finite()) {
        return vec![low];
    }
    let rough = span / count.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    if power <= 0.0 || !power.is_finite() {
        return vec![low, high];
    }
    let step = [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= rough * (1.0 - 1e-9))
        .unwrap_or(10.0 * power);
    let first = (low / step + 1e-9).floor();
    let last = (high / step - 1e-9).ceil();
    if !(last - first).is_finite() || last - first > 1000.0 {
        return vec![low, high];
    }
    (0..=(last - first) as usize)
        .map(|index| (first + index as f64) * step)
        .collect()
}

/// Ticks of a logarithmic axis that cover `[low, high]`: powers of ten, with 2 and 5 between them on short ranges, and
/// thinned out on long ones.
pub(crate) fn log_ticks(low: f64, high: f64) -> Vec<f64> {
    let first = low.log10().floor() as i32;
    let last = high.log10().ceil() as i32;
    let decades = last - first;
    if decades > 8 {
        let step = (decades as usize).div_ceil(8);
        let mut ticks: Vec<f64> = (first..=last)
            .step_by(step)
            .map(|power| 10f64.powi(power))
            .collect();
        if ticks.last().is_some_and(|tick| *tick < high) {
            ticks.push(10f64.powi(last));
        }
        return ticks;
    }
    let factors: &[f64] = if decades <= 2 {
        &[1.0, 2.0, 5.0]
    } else {
        &[1.0]
    };
    let all: Vec<f64> = (first..=last)
        .flat_map(|power| factors.iter().map(move |factor| factor * 10f64.powi(power)))
        .collect();
    // One tick at or below the lowest value, one at or above the highest.
    let start = all
        .iter()
        .rposition(|tick| *tick <= low * (1.0 + 1e-9))
        .unwrap_or(0);
    let end = all
        .iter()
        .position(|tick| *tick >= high * (1.0 - 1e-9))
        .unwrap_or(all.len() - 1);
    all[start..=end.max(start)].to_vec()
}
