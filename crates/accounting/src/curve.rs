//! Privacy curves, and their picture.

use serde::Serialize;

use crate::error::AccountingError;
use crate::pld::PldAccountant;
use crate::print::AtLeast;

/// One certified point.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Point {
    /// Epsilon.
    pub epsilon: f64,
    /// Certified upper bound of delta there.
    pub delta: f64,
}

/// Certified points of delta(epsilon), evenly spaced in epsilon over `[0, to]`.
///
/// # Guarantee
/// The composition is (epsilon, delta)-DP at every point.
///
/// # Errors
/// Fewer than two points, a bad `to`, or as for [`PldAccountant::delta_upper`].
pub fn privacy_curve(
    accountant: &PldAccountant,
    to: f64,
    points: usize,
) -> Result<Vec<Point>, AccountingError> {
    if !(to > 0.0 && to.is_finite()) {
        return Err(AccountingError::Epsilon { value: to });
    }
    if points < 2 {
        return Err(AccountingError::NotPositive {
            name: "the number of points less one",
            value: points as f64 - 1.0,
        });
    }
    (0..points)
        .map(|i| {
            let epsilon = to * i as f64 / (points - 1) as f64;
            Ok(Point {
                epsilon,
                delta: accountant.delta_upper(epsilon)?,
            })
        })
        .collect()
}

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 56.0;

/// An SVG of curves with their names: epsilon across, log10 delta up; `mark` draws the target's epsilon and delta.
pub fn privacy_curve_svg(title: &str, curves: &[(&str, &[Point])], mark: Option<Point>) -> String {
    const COLOURS: [&str; 6] = [
        "#1f5fa8", "#c2502a", "#2d7d46", "#7a4aa0", "#8a6d00", "#555555",
    ];
    let shown = |p: &&Point| p.delta > 0.0 && p.delta.is_finite();
    let all = || {
        curves
            .iter()
            .flat_map(|(_, c)| c.iter())
            .chain(mark.as_ref())
    };
    let to = all().map(|p| p.epsilon).fold(0.0, f64::max).max(1e-12);
    let floor = all()
        .filter(shown)
        .map(|p| p.delta.log10())
        .fold(0.0, f64::min)
        .floor()
        .clamp(-20.0, -1.0);
    let x = |e: f64| LEFT + (WIDTH - LEFT - RIGHT) * e / to;
    let y = |d: f64| TOP + (HEIGHT - TOP - BOTTOM) * (d.log10().max(floor) / floor);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"15\">{}</text>\n",
        escape(title)
    );
    let decades = (-floor) as i32;
    let step = (decades / 8).max(1);
    for k in (0..=decades).step_by(step as usize) {
        let at = y(10f64.powi(-k));
        svg += &format!(
            "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{:.1}\" y2=\"{at:.1}\" stroke=\"#dddddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 4.0,
            if k == 0 {
                "1".to_string()
            } else {
                format!("1e-{k}")
            }
        );
    }
    let tick = nice(to / 6.0);
    let decimals = (-tick.log10().floor()).max(0.0) as usize;
    let mut e = 0.0;
    while e <= to * 1.0001 {
        svg += &format!(
            "<line x1=\"{0:.1}\" y1=\"{TOP}\" x2=\"{0:.1}\" y2=\"{1:.1}\" stroke=\"#eeeeee\"/>\
             <text x=\"{0:.1}\" y=\"{2:.1}\" text-anchor=\"middle\">{3:.4$}</text>\n",
            x(e),
            HEIGHT - BOTTOM,
            HEIGHT - BOTTOM + 18.0,
            e,
            decimals
        );
        e += tick;
    }
    svg += &format!(
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">epsilon (nats)</text>\
         <text x=\"18\" y=\"{:.1}\" text-anchor=\"middle\" transform=\"rotate(-90 18 {:.1})\">delta</text>\n",
        0.5 * (LEFT + WIDTH - RIGHT),
        HEIGHT - 14.0,
        0.5 * (TOP + HEIGHT - BOTTOM),
        0.5 * (TOP + HEIGHT - BOTTOM)
    );
    for (i, (name, points)) in curves.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let path: Vec<String> = points
            .iter()
            .filter(shown)
            .map(|p| format!("{:.2},{:.2}", x(p.epsilon), y(p.delta)))
            .collect();
        let at = TOP + 16.0 + 18.0 * i as f64;
        svg += &format!(
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{}\"/>\
             <text x=\"{:.1}\" y=\"{at:.1}\" text-anchor=\"end\" fill=\"{colour}\">{}</text>\n",
            path.join(" "),
            WIDTH - RIGHT - 8.0,
            escape(name)
        );
    }
    if let Some(p) = mark.filter(|p| p.delta > 0.0) {
        svg += &format!(
            "<circle cx=\"{:.2}\" cy=\"{:.2}\" r=\"4\" fill=\"#000000\"/>\
             <text x=\"{:.2}\" y=\"{:.2}\" text-anchor=\"end\">epsilon {:.3} at delta {:e}</text>\n",
            x(p.epsilon),
            y(p.delta),
            x(p.epsilon) - 10.0,
            y(p.delta) + 16.0,
            AtLeast(p.epsilon),
            p.delta
        );
    }
    svg + "</svg>\n"
}

fn nice(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    let lead = value / power;
    power
        * if lead <= 1.0 {
            1.0
        } else if lead <= 2.0 {
            2.0
        } else if lead <= 5.0 {
            5.0
        } else {
            10.0
        }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
