//! Named sequences of points.

/// What is larger, or closer to zero on a logarithmic axis, is not drawn: axes reach no further without overflow.
pub(crate) const HUGE: f64 = 1e100;

/// A line of a chart.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Points, by ascending x. Points that are not finite, or beyond 1e100, are left out of the drawing.
    pub points: Vec<(f64, f64)>,
}

impl Series {
    /// A line through points.
    #[must_use]
    pub fn new(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self {
            name: name.into(),
            points,
        }
    }

    /// At most about `limit` of the finite points: of every stretch the lowest and the highest, so that peaks stay.
    pub(crate) fn thinned(&self, limit: usize, positive: bool) -> Vec<(f64, f64)> {
        let finite: Vec<(f64, f64)> = self
            .points
            .iter()
            .copied()
            // A NaN compares as false.
            .filter(|(x, y)| x.abs() < HUGE && y.abs() < HUGE && (!positive || *y > 1.0 / HUGE))
            .collect();
        if finite.len() <= limit.max(4) {
            return finite;
        }
        let stretch = finite.len().div_ceil(limit.max(4) / 2);
        let mut kept = Vec::with_capacity(limit + 2);
        kept.extend(finite.first());
        for part in finite.chunks(stretch) {
            let mut low = 0;
            let mut high = 0;
            for (index, point) in part.iter().enumerate() {
                if point.1 < part[low].1 {
                    low = index;
                }
                if point.1 > part[high].1 {
                    high = index;
                }
            }
            for index in [low.min(high), low.max(high)] {
                if kept.last() != Some(&part[index]) {
                    kept.push(part[index]);
                }
            }
        }
        if kept.last() != finite.last() {
            kept.extend(finite.last());
        }
        kept
    }
}

/// The median over several series at every x that all of them have.
pub(crate) fn median(series: &[Series]) -> Series {
    let mut points = Vec::new();
    if let Some(first) = series.first() {
        for (index, (x, _)) in first.points.iter().enumerate() {
            let at: Option<Vec<f64>> = series
                .iter()
                .map(|line| {
                    line.points
                        .get(index)
                        .filter(|point| point.0 == *x)
                        .map(|point| point.1)
                })
                .collect();
            if let Some(mut values) = at {
                values.sort_by(f64::total_cmp);
                let middle = values.len() / 2;
                let value = if values.len() % 2 == 1 {
                    values[middle]
                } else {
                    f64::midpoint(values[middle - 1], values[middle])
                };
                points.push((*x, value));
            }
        }
    }
    Series::new("median", points)
}
