//! The page around the charts.

use super::chart::{Chart, Scale};
use super::guarantee::SelfAudit;
use super::markup::Markup;
use super::number::short;
use super::section::{BEGIN, END};
use super::{RunReport, Series, TableData};

const STYLE: &str = include_str!("style.css");

pub(crate) fn render(report: &RunReport) -> String {
    document(&report.title, |main| content(main, report))
}

/// A self-contained page around some content.
pub(crate) fn document(title: &str, content: impl FnOnce(&mut Markup)) -> String {
    let mut page = Markup::default();
    page.raw("<!DOCTYPE html>\n");
    page.element("html", &[("lang", "en")], |html| {
        html.element("head", &[], |head| {
            // Void elements, written as HTML has them.
            head.raw("<meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">");
            // Even if something slipped through the escaping, the page could neither run nor fetch it.
            head.raw("<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">");
            head.leaf("title", &[], title);
            head.element("style", &[], |style| {
                style.raw(STYLE);
            });
        });
        html.element("body", &[], |body| {
            body.element("main", &[], content);
        });
    });
    page.finish()
}

fn content(main: &mut Markup, report: &RunReport) {
    main.element("header", &[], |header| {
        header.leaf("h1", &[], &report.title);
        if !report.subtitle.is_empty() {
            header.leaf("p", &[], &report.subtitle);
        }
        if !report.created.is_empty() {
            header.leaf("p", &[], &report.created);
        }
    });
    if let Some(seed) = report.seed {
        banner(
            main,
            "NOT PRIVATE",
            &format!(
                "This run was seeded (seed {seed}) to be repeatable. Whoever knows the seed can remove the noise: nothing here protects anyone."
            ),
        );
    }
    if report.unprotected {
        banner(
            main,
            "NOT PRIVATE",
            "This run was asked for without privacy: no gradient was clipped and no noise was added. The adapter may hold anyone's record word for word.",
        );
    }
    for warning in &report.warnings {
        banner(main, "Warning", warning);
    }
    if report
        .self_audit
        .as_ref()
        .is_some_and(|audit| !audit.passed())
    {
        banner(
            main,
            "Self-audit failed",
            "The attack proved more leakage than is claimed: the guarantee below does not hold.",
        );
    }
    guarantee(main, report);
    if !report.figures.is_empty() {
        main.element("section", &[("class", "figures")], |figures| {
            for figure in &report.figures {
                figures.element("div", &[("class", "card")], |card| {
                    card.leaf("span", &[], &figure.label);
                    card.leaf("b", &[], &figure.value);
                    if !figure.note.is_empty() {
                        card.leaf("span", &[], &figure.note);
                    }
                });
            }
        });
    }
    let charts: Vec<Chart> = charts(report)
        .into_iter()
        .filter(|chart| !chart.is_empty())
        .collect();
    if !charts.is_empty() {
        main.leaf("h2", &[], "The run, step by step");
        main.element("section", &[("class", "charts")], |section| {
            for chart in &charts {
                chart.draw(section);
            }
        });
    }
    if !report.samples.is_empty() {
        main.leaf("h2", &[], "What the model writes");
        for sample in &report.samples {
            main.element("div", &[("class", "card sample")], |card| {
                for (name, text) in [
                    ("Prompt", &sample.prompt),
                    ("Before", &sample.before),
                    ("After", &sample.after),
                ] {
                    card.leaf("h3", &[], name);
                    card.leaf("p", &[], text);
                }
            });
        }
    }
    if let Some(audit) = &report.self_audit {
        self_audit(main, audit);
    }
    main.raw(BEGIN).raw(END);
    table(main, "Queries to held-out people", &report.held_out_queries);
    table(main, "Adapters", &report.adapters);
    pairs(main, "Configuration", &report.configuration);
    pairs(main, "Environment", &report.environment);
    main.leaf(
        "footer",
        &[],
        "Written by rldp. The page is self-contained: it loads nothing and runs no script. The ledger beside it holds every event from which the guarantee can be recomputed: account ledger ledger.jsonl",
    );
}

pub(crate) fn banner(main: &mut Markup, head: &str, text: &str) {
    main.element("div", &[("class", "banner"), ("role", "alert")], |banner| {
        banner.leaf("strong", &[], head);
        banner.text(text);
    });
}

fn guarantee(main: &mut Markup, report: &RunReport) {
    let promise = &report.guarantee;
    if report.unprotected {
        main.element(
            "section",
            &[
                ("class", "card guarantee void"),
                ("aria-label", "Guarantee"),
            ],
            |card| {
                card.leaf(
                    "p",
                    &[("class", "promise")],
                    "No privacy: this run has no guarantee of any kind.",
                );
            },
        );
        return;
    }
    let class = if report.seed.is_some() {
        "card guarantee void"
    } else {
        "card guarantee"
    };
    main.element(
        "section",
        &[("class", class), ("aria-label", "Guarantee")],
        |card| {
            let sentence = if report.seed.is_some() {
                promise.seeded_sentence()
            } else {
                promise.sentence()
            };
            card.leaf("p", &[("class", "promise")], &sentence);
            if report.seed.is_none() {
                card.leaf("p", &[], &promise.meaning());
            }
            card.element("div", &[("class", "columns")], |columns| {
                for (name, items) in [
                    ("Covered", &promise.covered),
                    ("Not covered", &promise.not_covered),
                ] {
                    if items.is_empty() || (report.seed.is_some() && name == "Covered") {
                        continue;
                    }
                    columns.element("div", &[], |column| {
                        column.leaf("h3", &[], name);
                        column.element("ul", &[], |list| {
                            for item in items {
                                list.leaf("li", &[], item);
                            }
                        });
                    });
                }
            });
        },
    );
}

fn charts(report: &RunReport) -> Vec<Chart> {
    let chart = |title: &str, note: &str, label: &str, series: &[Series]| Chart {
        note: note.to_owned(),
        ..Chart::new(title, "step", label, series.to_vec())
    };
    let perplexity_note = if report.seed.is_some() {
        "Held-out people; a seeded run may show exact figures"
    } else {
        "Held-out people, released as noisy means under a budget of their own"
    };
    let mut charts = vec![
        chart(
            "Perplexity",
            perplexity_note,
            "perplexity",
            &report.perplexity,
        ),
        Chart {
            references: vec![("target".to_owned(), report.guarantee.target_epsilon)],
            scale: Scale::Linear,
            ..chart(
                "Privacy spent",
                "Of the steps so far; the guarantee is the one stated above",
                "\u{3b5}",
                std::slice::from_ref(&report.epsilon),
            )
        },
        chart(
            "Training loss",
            "Noisy, paid for within each step",
            "nats per token",
            &report.loss,
        ),
        chart(
            "Clipping radii",
            "One line per adapter",
            "radius C",
            &report.radii,
        ),
        chart(
            "Clipped units",
            "Noisy share per adapter, paid for within each step",
            "share",
            &report.clipped,
        ),
        chart(
            "Noise multiplier",
            "Effective over all adapters and telemetry: what the accountant sees",
            "\u{3c3}",
            &report.noise_multiplier,
        ),
        chart(
            "Noise multiplier per adapter",
            "The split of the effective one",
            "\u{3c3} of the adapter",
            &report.adapter_noise_multipliers,
        ),
        chart(
            "Noise in the averaged gradient",
            "Standard deviation per coordinate",
            "standard deviation",
            &report.noise_std,
        ),
        chart("Learning rate", "", "learning rate", &report.learning_rate),
    ];
    charts.extend(report.more_charts.iter().cloned());
    charts
}

fn self_audit(main: &mut Markup, audit: &SelfAudit) {
    main.leaf("h2", &[], "Self-audit");
    main.element("div", &[("class", "card")], |card| {
        let class = if audit.passed() { "good" } else { "bad" };
        card.leaf(
            "strong",
            &[("class", class)],
            if audit.passed() { "Passed" } else { "FAILED" },
        );
        card.leaf("p", &[], &audit.verdict());
        if !audit.method.is_empty() {
            card.leaf("p", &[], &audit.method);
        }
        let largest = audit.claimed_epsilon.max(audit.lower_bound);
        if largest > 0.0 && largest.is_finite() {
            card.element(
                "svg",
                &[
                    ("class", "bars"),
                    ("viewBox", "0 0 560 56"),
                    ("role", "img"),
                    ("aria-label", "Claimed epsilon and lower bound"),
                ],
                |svg| {
                    for (index, (name, value, colour)) in [
                        ("claimed", audit.claimed_epsilon, "fill:var(--c0)"),
                        ("lower bound", audit.lower_bound, "fill:var(--c1)"),
                    ]
                    .into_iter()
                    .enumerate()
                    {
                        let top = 4 + 28 * index;
                        let width = (360.0 * value.max(0.0) / largest).max(1.0);
                        svg.leaf(
                            "text",
                            &[
                                ("x", "84"),
                                ("y", &(top + 14).to_string()),
                                ("text-anchor", "end"),
                            ],
                            name,
                        );
                        svg.empty(
                            "rect",
                            &[
                                ("x", "92"),
                                ("y", &top.to_string()),
                                ("width", &format!("{width:.1}")),
                                ("height", "20"),
                                ("rx", "3"),
                                ("style", colour),
                            ],
                        );
                        svg.leaf(
                            "text",
                            &[
                                ("x", &format!("{:.1}", 100.0 + width)),
                                ("y", &(top + 14).to_string()),
                            ],
                            &short(value, 4),
                        );
                    }
                },
            );
        }
    });
}

/// Whether a column holds numbers in all its cells, and so is set flush right.
fn is_numeric(table: &TableData, column: usize) -> bool {
    let mut cells = table
        .rows
        .iter()
        .filter_map(|row| row.get(column))
        .filter(|cell| !cell.is_empty())
        .peekable();
    cells.peek().is_some() && cells.all(|cell| cell.parse::<f64>().is_ok())
}

pub(crate) fn table(main: &mut Markup, title: &str, data: &TableData) {
    if data.rows.is_empty() {
        return;
    }
    let width = data
        .rows
        .iter()
        .map(Vec::len)
        .max()
        .unwrap_or(0)
        .max(data.header.len());
    let classes: Vec<&str> = (0..width)
        .map(|column| {
            if is_numeric(data, column) {
                "number"
            } else {
                ""
            }
        })
        .collect();
    main.leaf("h2", &[], title);
    main.element("div", &[("class", "card table")], |card| {
        card.element("table", &[], |table| {
            table.element("thead", &[], |head| {
                head.element("tr", &[], |row| {
                    for (column, class) in classes.iter().enumerate() {
                        row.leaf(
                            "th",
                            &[("class", *class)],
                            data.header.get(column).map_or("", String::as_str),
                        );
                    }
                });
            });
            table.element("tbody", &[], |body| {
                for cells in &data.rows {
                    body.element("tr", &[], |row| {
                        for (column, class) in classes.iter().enumerate() {
                            row.leaf(
                                "td",
                                &[("class", *class)],
                                cells.get(column).map_or("", String::as_str),
                            );
                        }
                    });
                }
            });
        });
    });
}

fn pairs(main: &mut Markup, title: &str, data: &[(String, String)]) {
    if data.is_empty() {
        return;
    }
    main.leaf("h2", &[], title);
    main.element("div", &[("class", "card table")], |card| {
        card.element("table", &[("class", "pairs")], |table| {
            table.element("tbody", &[], |body| {
                for (name, value) in data {
                    body.element("tr", &[], |row| {
                        row.leaf("th", &[("scope", "row")], name);
                        row.leaf("td", &[], value);
                    });
                }
            });
        });
    });
}
