//! Tests of the report.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::markup::escape;
use super::number::{linear_ticks, log_ticks, short, short_upper};
use super::series::median;
use super::{
    Chart, Figure, Guarantee, RunReport, Sample, Scale, Section, SelfAudit, Series, TableData,
};

fn promise() -> Guarantee {
    Guarantee {
        unit: "all rows with the same patient_nbr".into(),
        adjacency: "add or remove one unit".into(),
        epsilon: 7.993_14,
        target_epsilon: 8.0,
        delta: 1.234_56e-5,
        accountant: "privacy loss distribution".into(),
        covered: vec!["the adapter".into()],
        not_covered: vec!["the base model".into()],
    }
}

const NASTY: &str = "</script><script>alert('x')</script>\"&\u{0}";

/// A report with `text` in every place that takes text.
fn full(text: &str) -> RunReport {
    let line = |name: &str| {
        Series::new(
            name,
            (0..30)
                .map(|step| (f64::from(step), 1.0 + f64::from(step % 7)))
                .collect(),
        )
    };
    let table = TableData {
        header: vec![text.into(), "n".into()],
        rows: vec![vec![text.into(), "1.5".into()], vec![text.into()]],
    };
    let mut report = RunReport::new(text, promise());
    report.guarantee.unit = text.into();
    report.guarantee.covered.push(text.into());
    report.subtitle = text.into();
    report.created = text.into();
    report.warnings = vec![text.into()];
    report.figures = vec![Figure::new(text, text, text)];
    report.perplexity = vec![line(text), line("b")];
    report.epsilon = line(text);
    report.radii = (0..12)
        .map(|index| line(&format!("{text}{index}")))
        .collect();
    report.noise_std = vec![line(text)];
    report.more_charts = vec![Chart {
        note: text.into(),
        references: vec![(text.into(), 3.0)],
        ..Chart::new(text, text, text, vec![line(text)])
    }];
    report.self_audit = Some(SelfAudit {
        claimed_epsilon: 8.0,
        lower_bound: 3.1,
        confidence: 0.95,
        trials: 1000,
        method: text.into(),
    });
    report.samples = vec![Sample {
        prompt: text.into(),
        before: text.into(),
        after: text.into(),
    }];
    report.adapters = table.clone();
    report.held_out_queries = table;
    report.configuration = vec![(text.into(), text.into())];
    report.environment = vec![(text.into(), text.into())];
    report
}

/// Walks the page's tags: every one that opens is closed, in order, and attributes are quoted. Returns the tags' names.
fn check_balanced(page: &str) -> Vec<String> {
    let body = page.strip_prefix("<!DOCTYPE html>\n").unwrap();
    let mut open: Vec<String> = Vec::new();
    let mut names = Vec::new();
    let mut rest = body;
    while let Some(start) = rest.find('<') {
        assert!(
            !rest[..start].contains('>') || open.last().is_some_and(|name| name == "style"),
            "a bare > in text"
        );
        let end = start + rest[start..].find('>').expect("an unfinished tag");
        let tag = &rest[start + 1..end];
        if tag.starts_with("!--") && tag.ends_with("--") {
            rest = &rest[end + 1..];
            continue;
        }
        assert!(!tag.contains('<'), "< inside a tag: {tag}");
        assert_eq!(tag.matches('"').count() % 2, 0, "odd quotes: {tag}");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name));
        } else {
            let name: String = tag
                .chars()
                .take_while(char::is_ascii_alphanumeric)
                .collect();
            if !tag.ends_with('/') && name != "meta" {
                open.push(name.clone());
            }
            names.push(name);
        }
        rest = &rest[end + 1..];
    }
    assert!(open.is_empty(), "left open: {open:?}");
    names
}

#[test]
fn escaping() {
    assert_eq!(escape("a<b>&\"'c"), "a&lt;b&gt;&amp;&quot;&#39;c");
    assert_eq!(escape("\u{0}\u{7}\n\tx"), "\u{fffd}\u{fffd}\n\tx");
}

#[test]
fn a_full_page_is_balanced_and_holds_no_foreign_markup() {
    let tame = check_balanced(&full("plain").to_html());
    let wild = check_balanced(&full(NASTY).to_html());
    assert_eq!(tame, wild, "text changed the page's structure");
    assert!(!wild.iter().any(|name| matches!(
        name.as_str(),
        "script" | "img" | "link" | "iframe" | "object"
    )));
    for outside in ["http://", "https://", "url(", "@import", "src="] {
        assert!(!full("plain").to_html().contains(outside), "{outside}");
    }
}

#[test]
fn an_empty_report_is_a_page() {
    let page = RunReport::new("t", promise()).to_html();
    let names = check_balanced(&page);
    assert!(!names.iter().any(|name| name == "svg" || name == "table"));
    assert!(page.contains("7.994"), "epsilon is rounded up");
    assert!(page.contains("1.24e-5"), "delta is rounded up");
}

#[test]
fn a_seeded_run_is_told_loudly() {
    let mut report = full("plain");
    assert!(!report.to_html().contains("NOT PRIVATE"));
    assert!(
        report
            .to_html()
            .contains("Everything this run released is (")
    );
    report.seed = Some(7);
    let page = report.to_html();
    assert!(page.contains("NOT PRIVATE") && page.contains("seed 7"));
    assert!(
        !page.contains("Everything this run released is ("),
        "a seeded run promises nothing"
    );
    assert!(!page.contains(">Covered<"));
}

#[test]
fn a_failed_audit_is_told_loudly() {
    let mut report = full("plain");
    assert!(report.to_html().contains("Passed"));
    report.self_audit.as_mut().unwrap().lower_bound = 8.5;
    let page = report.to_html();
    assert!(page.contains("Self-audit failed") && page.contains("CONTRADICTS"));
}

#[test]
fn writing_replaces_the_page_and_leaves_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.html");
    std::fs::write(&path, "old").unwrap();
    full("plain").write(&path).unwrap();
    assert_eq!(
        std::fs::read_to_string(&path).unwrap(),
        full("plain").to_html()
    );
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    assert!(
        full("plain")
            .write(&folder.path().join("no/such/folder.html"))
            .is_err()
    );
}

#[test]
fn numbers_are_short_and_right() {
    for (value, digits, text) in [
        (0.0, 4, "0"),
        (1.0, 4, "1"),
        (-2.5, 4, "-2.5"),
        (1234.567, 4, "1235"),
        (999.96, 4, "1000"),
        (123_456.7, 4, "123457"),
        (1_234_567.0, 3, "1.23e6"),
        (0.001_234, 3, "0.00123"),
        (0.000_012_34, 2, "1.2e-5"),
        (0.000_5, 3, "0.0005"),
        (1e-5, 3, "1e-5"),
        (f64::NAN, 3, "not a number"),
        (f64::INFINITY, 3, "infinite"),
    ] {
        assert_eq!(short(value, digits), text);
    }
    assert_eq!(short_upper(7.993_14, 4), "7.994");
    assert_eq!(short_upper(8.0, 4), "8");
    assert_eq!(short_upper(9.999_9, 4), "10");
    assert_eq!(short_upper(1.000_1e-5, 3), "1.01e-5");
}

#[test]
fn ticks_are_nice() {
    assert_eq!(linear_ticks(0.0, 10.0, 5), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
    assert_eq!(linear_ticks(3.0, 17.0, 5), [0.0, 5.0, 10.0, 15.0, 20.0]);
    assert_eq!(linear_ticks(-1.0, 1.0, 4), [-1.0, -0.5, 0.0, 0.5, 1.0]);
    assert_eq!(
        linear_ticks(0.0, 0.3, 3),
        [0.0, 0.1, 0.2, 0.300_000_000_000_000_04]
    );
    assert_eq!(linear_ticks(2.0, 2.0, 5), [2.0]);
    assert_eq!(log_ticks(0.03, 4.0), [0.01, 0.1, 1.0, 10.0]);
    assert_eq!(log_ticks(1.0, 30.0), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0]);
    assert_eq!(log_ticks(2.0, 4.0), [2.0, 5.0]);
}

#[test]
fn thinning_keeps_peaks_and_ends() {
    let mut points: Vec<(f64, f64)> = (0..10_000).map(|x| (f64::from(x), 1.0)).collect();
    points[4321].1 = 9.0;
    points[8765].1 = -9.0;
    points[100].1 = f64::NAN;
    let thin = Series::new("s", points).thinned(500, false);
    assert!(thin.len() <= 502, "{}", thin.len());
    assert_eq!((thin[0].0, thin[thin.len() - 1].0), (0.0, 9999.0));
    assert!(thin.contains(&(4321.0, 9.0)) && thin.contains(&(8765.0, -9.0)));
    assert!(thin.windows(2).all(|pair| pair[0].0 < pair[1].0));
}

#[test]
fn medians() {
    let line = |values: &[f64]| {
        Series::new(
            "",
            values
                .iter()
                .enumerate()
                .map(|(x, y)| (x as f64, *y))
                .collect(),
        )
    };
    let middle = median(&[line(&[1.0, 5.0]), line(&[3.0, 7.0]), line(&[2.0])]);
    assert_eq!(middle.points, [(0.0, 2.0)]);
    assert_eq!(median(&[line(&[1.0]), line(&[4.0])]).points, [(0.0, 2.5)]);
    assert!(median(&[]).points.is_empty());
}

#[test]
fn a_section_is_put_in_and_replaced_and_stands_alone() {
    let section = |title: &str| Section {
        title: title.to_owned(),
        banners: vec![("Loud".to_owned(), "<b>".to_owned())],
        paragraphs: vec!["words".to_owned()],
        charts: vec![Chart {
            log_x: true,
            scale: Scale::Log,
            ..Chart::new(
                "roc",
                "fpr",
                "tpr",
                vec![Series::new("a", vec![(0.0, 0.1), (1e-3, 0.2), (1.0, 1.0)])],
            )
        }],
        tables: vec![(
            "Table".to_owned(),
            TableData {
                header: vec!["h".to_owned()],
                rows: vec![vec!["c".to_owned()]],
            },
        )],
    };
    let page = full("plain").to_html();
    let first = Section::put_into(&[section("first one")], &page).unwrap();
    check_balanced(&first);
    assert!(first.contains("first one") && first.contains("fpr (log)") && first.contains("0.001"));
    let second = Section::put_into(&[section("second one")], &first).unwrap();
    assert!(second.contains("second one") && !second.contains("first one"));
    assert_eq!(Section::put_into(&[], &second).unwrap(), page);
    assert_eq!(Section::put_into(&[section("x")], "<html></html>"), None);
    check_balanced(&Section::page("alone", &[section("only one")]));
}

#[test]
fn a_run_without_privacy_is_told_loudly_and_promises_nothing() {
    let mut report = full("plain");
    report.unprotected = true;
    report.seed = None;
    let page = report.to_html();
    check_balanced(&page);
    assert!(page.contains("NOT PRIVATE") && page.contains("No privacy"));
    assert!(!page.contains("-differentially private"));
}

#[test]
fn many_lines_become_a_bundle_with_a_median() {
    let mut report = RunReport::new("t", promise());
    report.radii = (0..35)
        .map(|index| {
            Series::new(
                format!("a{index}"),
                vec![(0.0, 1.0), (1.0, 2.0 + f64::from(index))],
            )
        })
        .collect();
    let page = report.to_html();
    assert!(page.contains("35 lines, from a0 to a34"));
    assert_eq!(page.matches("<path ").count(), 36);
}

#[test]
fn wide_ranges_are_logarithmic() {
    let chart = |scale, low| Chart {
        scale,
        ..Chart::new(
            "t",
            "x",
            "radius",
            vec![Series::new("s", vec![(0.0, low), (1.0, 100.0)])],
        )
    };
    let log = |chart: Chart| {
        let mut report = RunReport::new("t", promise());
        report.more_charts = vec![chart];
        report.to_html().contains("radius (log)")
    };
    assert!(log(chart(Scale::Auto, 0.1)));
    assert!(log(chart(Scale::Log, 90.0)));
    assert!(!log(chart(Scale::Auto, 50.0)));
    assert!(!log(chart(Scale::Auto, 0.0)));
    assert!(!log(chart(Scale::Linear, 0.1)));
}

proptest! {
    /// Whatever is drawn lies inside the picture and the page stays balanced.
    #[test]
    fn any_points_can_be_drawn(
        points in prop::collection::vec((any::<f64>(), any::<f64>()), 0..40),
        small in prop::collection::vec((0.0f64..100.0, -5.0f64..5.0), 0..40),
        log in any::<bool>(),
        log_x in any::<bool>(),
    ) {
        let mut report = RunReport::new("t", promise());
        let scale = if log { Scale::Log } else { Scale::Auto };
        report.more_charts = vec![Chart { scale, log_x, ..Chart::new("t", "x", "y", vec![Series::new("a", points), Series::new("b", small)]) }];
        let page = report.to_html();
        check_balanced(&page);
        for piece in page.split("cx=\"").skip(1).chain(page.split("cy=\"").skip(1)) {
            let value: f64 = piece[..piece.find('"').unwrap()].parse().unwrap();
            prop_assert!((-1.0..=561.0).contains(&value), "{value}");
        }
    }

    #[test]
    fn linear_ticks_cover_and_are_few(low in -1e6f64..1e6, span in 1e-6f64..1e6) {
        let high = low + span;
        prop_assume!(high > low);
        let ticks = linear_ticks(low, high, 5);
        let slack = 1e-6 * span;
        prop_assert!(ticks[0] <= low + slack && ticks[ticks.len() - 1] >= high - slack);
        prop_assert!((2..=13).contains(&ticks.len()), "{}", ticks.len());
        prop_assert!(ticks.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn log_ticks_cover_and_are_few(low in -12.0f64..6.0, span in 0.01f64..12.0) {
        let (low, high) = (10f64.powf(low), 10f64.powf(low + span));
        let ticks = log_ticks(low, high);
        prop_assert!(ticks[0] <= low * 1.000_001 && ticks[ticks.len() - 1] >= high * 0.999_999);
        prop_assert!((1..=11).contains(&ticks.len()), "{}", ticks.len());
    }

    #[test]
    fn rounding_up_never_goes_down(value in 1e-12f64..1e9, digits in 1usize..8) {
        let upper: f64 = short_upper(value, digits).parse().unwrap();
        prop_assert!(upper >= value, "{upper} < {value}");
        prop_assert!(upper <= value * (1.0 + 20.0 * 10f64.powi(-(digits as i32))), "{upper} {value}");
    }
}
