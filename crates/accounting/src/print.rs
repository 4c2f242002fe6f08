//! Printing bounds so that what is printed holds too.
//!
//! ```
//! use rldp_accounting::print::{AtLeast, AtMost};
//!
//! assert_eq!(format!("{:.2}", AtLeast(1.001)), "1.01");
//! assert_eq!(format!("{:.2}", AtMost(1.009)), "1.00");
//! ```

use std::fmt;

/// A value printed rounded up, for upper bounds: of epsilon, of delta, of the noise that a target needs.
///
/// # Guarantee
/// What is printed, read back as an `f64`, is at least the value, whatever the number of decimals; and it is the least such
/// number of so many decimals. Takes a width and a precision; `{:e}` works too.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AtLeast(pub f64);

/// A value printed rounded down, for lower bounds.
///
/// # Guarantee
/// What is printed, read back as an `f64`, is at most the value, whatever the number of decimals; and it is the largest such
/// number of so many decimals. Takes a width and a precision; `{:e}` works too.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AtMost(pub f64);

impl fmt::Display for AtLeast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(f, self.0, true, false)
    }
}

impl fmt::LowerExp for AtLeast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(f, self.0, true, true)
    }
}

impl fmt::Display for AtMost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(f, self.0, false, false)
    }
}

impl fmt::LowerExp for AtMost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(f, self.0, false, true)
    }
}

fn show(f: &mut fmt::Formatter<'_>, value: f64, up: bool, scientific: bool) -> fmt::Result {
    let size = value.abs();
    // Without a precision all digits are printed that tell the value from its neighbours.
    let nearest = match (f.precision(), scientific) {
        (Some(decimals), false) => format!("{size:.decimals$}"),
        (Some(decimals), true) => format!("{size:.decimals$e}"),
        (None, false) => format!("{size}"),
        (None, true) => format!("{size:e}"),
    };
    let read: f64 = nearest.parse().unwrap_or(size);
    let outward = up == (value >= 0.0);
    let wrong = if outward { read < size } else { read > size };
    let digits = if wrong {
        beside(&nearest, outward)
    } else {
        nearest
    };
    f.pad_integral(!value.is_sign_negative() || value.is_nan(), "", &digits)
}

/// The next number of as many decimals above or, if there is one, below.
fn beside(digits: &str, above: bool) -> String {
    let (mantissa, exponent) = match digits.split_once('e') {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (digits, None),
    };
    let mut next: Vec<u8> = mantissa.bytes().collect();
    let (from, to) = if above { (b'9', b'0') } else { (b'0', b'9') };
    let mut carried = true;
    for digit in next.iter_mut().rev().filter(|d| d.is_ascii_digit()) {
        if *digit != from {
            *digit = if above { *digit + 1 } else { *digit - 1 };
            carried = false;
            break;
        }
        *digit = to;
    }
    if carried {
        next.insert(0, b'1');
    }
    let next = String::from_utf8_lossy(&next);
    match exponent {
        Some(exponent) => format!("{next}e{exponent}"),
        None => next.into_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn examples() {
        let up = |x: f64| format!("{:.3}", AtLeast(x));
        let down = |x: f64| format!("{:.3}", AtMost(x));
        assert_eq!(
            [up(0.9991), up(1.0), up(9.9999), up(1e-9), up(0.0)],
            ["1.000", "1.000", "10.000", "0.001", "0.000"]
        );
        assert_eq!(
            [down(0.9999), down(1.0), down(10.00049), down(1e-9)],
            ["0.999", "1.000", "10.000", "0.000"]
        );
        assert_eq!([up(-0.9999), down(-0.9991)], ["-0.999", "-1.000"]);
        assert_eq!(
            format!("{:.2e} {:.2e}", AtLeast(1.2345e-6), AtLeast(9.991e-6)),
            "1.24e-6 10.00e-6"
        );
        assert_eq!(format!("{:.0e}", AtMost(1.7e-6)), "1e-6");
        assert_eq!(
            format!(
                "[{:>9.2}|{:<6.0}|{}]",
                AtLeast(1.001),
                AtMost(2.9),
                AtLeast(0.1)
            ),
            "[     1.01|2     |0.1]"
        );
        assert_eq!(
            format!("{:.2} {:.2}", AtLeast(f64::INFINITY), AtMost(f64::NAN)),
            "inf NaN"
        );
    }

    proptest! {
        /// On the right side, and no more than one in the last place away.
        #[test]
        fn what_is_printed_holds(x in -1e6..1e6f64, small in -30.0..3.0f64, decimals in 0usize..12) {
            for value in [x, 10f64.powf(small), -(10f64.powf(small))] {
                let read = |text: String| text.parse::<f64>().unwrap();
                let (up, down) = (read(format!("{:.decimals$}", AtLeast(value))), read(format!("{:.decimals$}", AtMost(value))));
                let unit = 10f64.powi(-(decimals as i32)) * (1.0 + 1e-9) + 4.0 * f64::EPSILON * value.abs();
                prop_assert!(down <= value && value <= up && up - down <= unit, "{value} {decimals}: {down} {up}");
                let (up, down) = (read(format!("{:.decimals$e}", AtLeast(value))), read(format!("{:.decimals$e}", AtMost(value))));
                prop_assert!(down <= value && value <= up && up - down <= unit.max(1e-300) * value.abs().max(1.0) * 10.0, "{value} {decimals}: {down} {up}");
            }
        }
    }
}
