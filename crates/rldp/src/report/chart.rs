//! Line charts as inline SVG.

use std::fmt::Write;

use super::markup::Markup;
use super::number::{linear_ticks, log_ticks, short};
use super::series::{HUGE, Series, median};

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 276.0;
const LEFT: f64 = 74.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 44.0;
/// Points drawn per series at most; more would not be seen.
const POINTS: usize = 500;
/// Up to here every point has a dot one can point at.
const DOTS: usize = 40;
/// Series with a colour and a legend entry of their own; more are drawn as a bundle with its median.
const NAMED: usize = 8;

/// How the vertical axis runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scale {
    /// Logarithmic if all values are positive and the largest is more than thirty times the smallest.
    #[default]
    Auto,
    /// Linear; from zero if the values come near it.
    Linear,
    /// Logarithmic; values that are not positive are left out.
    Log,
}

/// A line chart with one or many series.
///
/// Up to eight series have a colour and a legend entry each. More are drawn as a bundle, coloured from the first to the
/// last, with their median on top.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chart {
    /// The title above.
    pub title: String,
    /// A line of explanation under the title, possibly empty.
    pub note: String,
    /// Name of the horizontal axis, with its unit.
    pub x_label: String,
    /// Name of the vertical axis, with its unit.
    pub y_label: String,
    /// The lines.
    pub series: Vec<Series>,
    /// The vertical axis.
    pub scale: Scale,
    /// Dashed horizontal lines: name and height.
    pub references: Vec<(String, f64)>,
    /// Whether the horizontal axis is logarithmic; points that are not positive are then left out.
    pub log_x: bool,
}

/// One axis: range of the data, and of the drawing.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    log: bool,
    ticks: Vec<f64>,
}

impl Axis {
    fn place(&self, value: f64) -> f64 {
        let share = if self.log {
            (value.ln() - self.low.ln()) / (self.high.ln() - self.low.ln())
        } else {
            (value - self.low) / (self.high - self.low)
        };
        self.from + share * (self.to - self.from)
    }
}

impl Chart {
    /// A chart with an automatic scale.
    #[must_use]
    pub fn new(
        title: impl Into<String>,
        x_label: impl Into<String>,
        y_label: impl Into<String>,
        series: Vec<Series>,
    ) -> Self {
        Self {
            title: title.into(),
            x_label: x_label.into(),
            y_label: y_label.into(),
            series,
            ..Self::default()
        }
    }

    /// Whether there is no point to draw.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.series
            .iter()
            .all(|line| line.thinned(4, self.scale == Scale::Log).is_empty())
    }

    /// The points of a line that the axes can show.
    fn drawable(&self, line: &Series, log: bool) -> Vec<(f64, f64)> {
        if !self.log_x {
            return line.thinned(POINTS, log);
        }
        let right = line
            .points
            .iter()
            .copied()
            .filter(|point| point.0 > 1.0 / HUGE);
        Series::new("", right.collect()).thinned(POINTS, log)
    }

    fn is_log(&self) -> bool {
        match self.scale {
            Scale::Linear => false,
            Scale::Log => true,
            Scale::Auto => {
                let values = || {
                    let lines = self
                        .series
                        .iter()
                        .flat_map(|line| line.points.iter().map(|point| point.1));
                    lines
                        .chain(self.references.iter().map(|line| line.1))
                        .filter(|value| value.abs() < HUGE)
                };
                let low = values().fold(f64::INFINITY, f64::min);
                let high = values().fold(0.0, f64::max);
                low > 0.0 && high > 30.0 * low
            }
        }
    }

    /// The chart as a `figure` element: title, drawing, legend.
    pub(crate) fn draw(&self, page: &mut Markup) {
        let log = self.is_log();
        let bundle = self.series.len() > NAMED;
        let mut lines: Vec<(&Series, Vec<(f64, f64)>)> = self
            .series
            .iter()
            .map(|line| (line, self.drawable(line, log)))
            .collect();
        let middle = if bundle {
            median(&self.series)
        } else {
            Series::default()
        };
        if bundle {
            lines.push((&middle, self.drawable(&middle, log)));
        }
        lines.retain(|(_, points)| !points.is_empty());
        if lines.is_empty() {
            return;
        }
        let bundled = if bundle {
            lines
                .len()
                .saturating_sub(usize::from(!middle.points.is_empty()))
        } else {
            0
        };
        let references: Vec<&(String, f64)> = self
            .references
            .iter()
            .filter(|(_, height)| height.abs() < HUGE && (!log || *height > 1.0 / HUGE))
            .collect();
        let (x, y) = axes(&lines, &references, log, self.log_x);
        page.element("figure", &[("class", "chart")], |figure| {
            figure.element("figcaption", &[], |caption| {
                caption.leaf("strong", &[], &self.title);
                if !self.note.is_empty() {
                    caption.leaf("span", &[], &self.note);
                }
            });
            let frame = format!("0 0 {WIDTH} {HEIGHT}");
            figure.element(
                "svg",
                &[
                    ("viewBox", &frame),
                    ("role", "img"),
                    ("aria-label", &self.title),
                ],
                |svg| {
                    self.draw_axes(svg, &x, &y);
                    for (_, height) in &references {
                        let height = pixel(y.place(*height));
                        svg.empty(
                            "line",
                            &[
                                ("class", "reference"),
                                ("x1", &pixel(x.from)),
                                ("x2", &pixel(x.to)),
                                ("y1", &height),
                                ("y2", &height),
                            ],
                        );
                    }
                    for (index, (line, points)) in lines.iter().enumerate() {
                        let style = if bundle {
                            bundle_style(index, bundled)
                        } else {
                            named_style(index)
                        };
                        draw_line(svg, line, points, &style, &x, &y, bundle && index < bundled);
                    }
                },
            );
            figure.element("div", &[("class", "legend")], |legend| {
                if bundle {
                    let first = &lines[0].0.name;
                    let last = &lines[bundled.saturating_sub(1)].0.name;
                    legend.element("span", &[], |entry| {
                        entry.leaf("i", &[("class", "ramp")], "");
                        entry.text(&format!("{bundled} lines, from {first} to {last}"));
                    });
                    if bundled < lines.len() {
                        legend_entry(legend, "solid", &bundle_style(bundled, bundled), "median");
                    }
                } else if lines.len() > 1 || !references.is_empty() {
                    for (index, (line, _)) in lines.iter().enumerate() {
                        legend_entry(legend, "solid", &named_style(index), &line.name);
                    }
                }
                for (name, height) in &references {
                    legend_entry(
                        legend,
                        "dashed",
                        "stroke:currentColor",
                        &format!("{name}: {}", short(*height, 4)),
                    );
                }
            });
        });
    }

    fn draw_axes(&self, svg: &mut Markup, x: &Axis, y: &Axis) {
        for tick in &y.ticks {
            let height = pixel(y.place(*tick));
            svg.empty(
                "line",
                &[
                    ("class", "grid"),
                    ("x1", &pixel(x.from)),
                    ("x2", &pixel(x.to)),
                    ("y1", &height),
                    ("y2", &height),
                ],
            );
            let at = pixel(y.place(*tick) + 4.0);
            svg.leaf(
                "text",
                &[
                    ("x", &pixel(x.from - 8.0)),
                    ("y", &at),
                    ("text-anchor", "end"),
                ],
                &short(*tick, 6),
            );
        }
        let bottom = pixel(y.from);
        svg.empty(
            "line",
            &[
                ("class", "axis"),
                ("x1", &pixel(x.from)),
                ("x2", &pixel(x.to)),
                ("y1", &bottom),
                ("y2", &bottom),
            ],
        );
        for tick in &x.ticks {
            let at = pixel(x.place(*tick));
            svg.empty(
                "line",
                &[
                    ("class", "axis"),
                    ("x1", &at),
                    ("x2", &at),
                    ("y1", &bottom),
                    ("y2", &pixel(y.from + 4.0)),
                ],
            );
            svg.leaf(
                "text",
                &[
                    ("x", &at),
                    ("y", &pixel(y.from + 18.0)),
                    ("text-anchor", "middle"),
                ],
                &short(*tick, 6),
            );
        }
        let middle = pixel(f64::midpoint(x.from, x.to));
        svg.leaf(
            "text",
            &[
                ("class", "label"),
                ("x", &middle),
                ("y", &pixel(HEIGHT - 6.0)),
                ("text-anchor", "middle"),
            ],
            &format!("{}{}", self.x_label, if x.log { " (log)" } else { "" }),
        );
        let turned = format!(
            "translate(14 {}) rotate(-90)",
            pixel(f64::midpoint(y.from, y.to))
        );
        let suffix = if y.log { " (log)" } else { "" };
        svg.leaf(
            "text",
            &[
                ("class", "label"),
                ("transform", &turned),
                ("text-anchor", "middle"),
            ],
            &format!("{}{suffix}", self.y_label),
        );
    }
}

fn pixel(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

fn named_style(index: usize) -> String {
    format!("stroke:var(--c{})", index % NAMED)
}

fn bundle_style(index: usize, count: usize) -> String {
    if index >= count {
        return "stroke:currentColor;stroke-width:2.5".to_owned();
    }
    let share = if count > 1 {
        index as f64 / (count - 1) as f64
    } else {
        0.0
    };
    format!(
        "stroke:hsl({:.0} 70% var(--ramp));stroke-width:1;opacity:.75",
        210.0 + 130.0 * share
    )
}

fn legend_entry(legend: &mut Markup, class: &'static str, style: &str, name: &str) {
    legend.element("span", &[], |entry| {
        entry.element(
            "svg",
            &[
                ("class", class),
                ("viewBox", "0 0 18 6"),
                ("aria-hidden", "true"),
            ],
            |svg| {
                svg.empty(
                    "line",
                    &[
                        ("style", style),
                        ("x1", "0"),
                        ("x2", "18"),
                        ("y1", "3"),
                        ("y2", "3"),
                    ],
                );
            },
        );
        entry.text(name);
    });
}

fn draw_line(
    svg: &mut Markup,
    line: &Series,
    points: &[(f64, f64)],
    style: &str,
    x: &Axis,
    y: &Axis,
    thin: bool,
) {
    let mut path = String::new();
    for (index, point) in points.iter().enumerate() {
        let command = if index == 0 { 'M' } else { 'L' };
        // Writing to a string cannot fail.
        let _ = write!(
            path,
            "{command}{} {}",
            pixel(x.place(point.0)),
            pixel(y.place(point.1))
        );
    }
    svg.element("g", &[("style", style)], |group| {
        group.element("path", &[("class", "line"), ("d", &path)], |path| {
            path.leaf("title", &[], &line.name);
        });
        if points.len() == 1 || (points.len() <= DOTS && !thin) {
            for point in points {
                let (left, top) = (pixel(x.place(point.0)), pixel(y.place(point.1)));
                group.element(
                    "circle",
                    &[("class", "dot"), ("cx", &left), ("cy", &top), ("r", "2.6")],
                    |dot| {
                        dot.leaf(
                            "title",
                            &[],
                            &format!(
                                "{}, {}: {}",
                                line.name,
                                short(point.0, 6),
                                short(point.1, 5)
                            ),
                        );
                    },
                );
            }
        }
    });
}

fn axes(
    lines: &[(&Series, Vec<(f64, f64)>)],
    references: &[&(String, f64)],
    log: bool,
    log_x: bool,
) -> (Axis, Axis) {
    let points = || lines.iter().flat_map(|(_, points)| points.iter());
    let bounds = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        })
    };
    let across = bounds(&mut points().map(|point| point.0));
    let (left, right, x_ticks) = if log_x {
        let (left, right) = if across.1 > across.0 * 1.001 {
            across
        } else {
            (across.0 / 1.5, across.1 * 1.5)
        };
        (left, right, log_ticks(left, right))
    } else {
        let (left, right) = widened(across, 0.0);
        (left, right, linear_ticks(left, right, 6))
    };
    let x_ticks: Vec<f64> = x_ticks
        .into_iter()
        .filter(|tick| *tick >= left - 1e-9 * right.abs() && *tick <= right + 1e-9 * right.abs())
        .collect();
    let mut heights = points()
        .map(|point| point.1)
        .chain(references.iter().map(|line| line.1));
    let (low, high) = bounds(&mut heights);
    let (low, high, ticks) = if log {
        let (low, high) = if high > low * 1.001 {
            (low, high)
        } else {
            (low / 1.5, high * 1.5)
        };
        let ticks = log_ticks(low, high);
        (
            low.min(ticks.first().copied().unwrap_or(low)),
            high.max(ticks.last().copied().unwrap_or(high)),
            ticks,
        )
    } else {
        let (low, high) = widened((low, high), 0.1);
        let low = if low > 0.0 && low < 0.35 * high {
            0.0
        } else {
            low
        };
        let ticks = linear_ticks(low, high, 5);
        (
            low.min(ticks.first().copied().unwrap_or(low)),
            high.max(ticks.last().copied().unwrap_or(high)),
            ticks,
        )
    };
    (
        Axis {
            low: left,
            high: right,
            from: LEFT,
            to: WIDTH - RIGHT,
            log: log_x,
            ticks: x_ticks,
        },
        Axis {
            low,
            high,
            from: HEIGHT - BOTTOM,
            to: TOP,
            log,
            ticks,
        },
    )
}

/// A range that is not a single point: a constant is given room around it.
fn widened((low, high): (f64, f64), share: f64) -> (f64, f64) {
    if high - low > 1e-9 * low.abs().max(high.abs()) {
        return (low, high);
    }
    let room = if low == 0.0 {
        1.0
    } else {
        (share.max(0.05) * low).abs()
    };
    (low - room, high + room)
}
