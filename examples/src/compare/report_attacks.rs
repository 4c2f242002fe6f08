//! What attacks on a study's models found: the page's section and the CSV.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use rldp::report::{Section, TableData};

use super::attacks::Figure;
use super::report::{Results, number, p_value};
use super::run::RunResult;
use super::statistics::{mean, paired};

/// One row an attacked run.
pub(super) fn attacks_csv(runs: &[&RunResult]) -> String {
    let names = Figure::ALL.map(Figure::name);
    let mut table = format!(
        "arm,epsilon,seed,test_perplexity,{}\n",
        names.map(|name| format!("\"{name}\"")).join(",")
    );
    for run in runs {
        let Some(attacked) = &run.attacked else {
            continue;
        };
        let figures = attacked.figures().map(|value| value.to_string());
        // Writing to a string cannot fail.
        let _ = writeln!(
            table,
            "\"{}\",{},{},{},{}",
            run.arm.replace('"', "\"\""),
            run.epsilon,
            run.seed,
            run.perplexity(),
            figures.join(",")
        );
    }
    table
}

/// The arms' figures, and those of the reference less each arm's.
pub(super) fn attacks(results: &Results<'_>) -> Section {
    let study = results.study;
    let reference = &study.reference;
    let mut levels = Vec::new();
    let mut differences = Vec::new();
    for epsilon in &study.epsilons {
        let by_seed = |arm: &str| -> BTreeMap<u64, [f64; Figure::ALL.len()]> {
            let runs = results.of(arm, *epsilon).into_iter();
            runs.filter_map(|run| Some((run.seed, run.attacked.as_ref()?.figures())))
                .collect()
        };
        let own = by_seed(reference);
        for arm in results.arms() {
            let found = by_seed(arm);
            if found.is_empty() {
                continue;
            }
            let lead = [arm.to_owned(), epsilon.to_string()];
            let cells = (0..Figure::ALL.len()).map(|figure| {
                let values: Vec<f64> = found.values().map(|figures| figures[figure]).collect();
                mean(&values).map_or_else(String::new, |mean| {
                    format!("{} \u{b1} {}", number(mean.mean), number(mean.half_width))
                })
            });
            let count = found.len().to_string();
            levels.push(lead.iter().cloned().chain([count]).chain(cells).collect());
            if arm == reference {
                continue;
            }
            let cells = (0..Figure::ALL.len()).map(|figure| {
                let values: Vec<f64> = own
                    .iter()
                    .filter_map(|(seed, figures)| Some(figures[figure] - found.get(seed)?[figure]))
                    .collect();
                paired(&values).map_or_else(String::new, |test| {
                    format!("{} (p {})", number(test.mean), p_value(test.t_test))
                })
            });
            differences.push(lead.into_iter().chain(cells).collect());
        }
    }
    let header = |first: &[&str]| -> Vec<String> {
        let names = Figure::ALL.map(Figure::name);
        first
            .iter()
            .chain(&names)
            .map(|name| (*name).to_owned())
            .collect()
    };
    Section {
        title: "Attacks".to_owned(),
        banners: Vec::new(),
        paragraphs: vec![
            "The same attacks on every arm's models: membership by the loss over the base model's, of canaries and of people; exposure \
             and extraction of the canaries that were in the training part. A guess has an AUC of 0.5, a secret never seen 1.44 bits of \
             exposure on average. Means over seeds with 95 % intervals by Student's t; a lower bound above its epsilon would be a broken guarantee."
                .to_owned(),
            format!(
                "Below: figures of {reference} less those of the arm under the same seed, with the paired t-test's p-value. Negative means \
                 that an attacker learns less from {reference}."
            ),
        ],
        tables: vec![
            (
                "What attackers achieve".to_owned(),
                TableData {
                    header: header(&["arm", "epsilon", "seeds"]),
                    rows: levels,
                },
            ),
            (
                format!("{reference} less every other arm"),
                TableData {
                    header: header(&["arm", "epsilon"]),
                    rows: differences,
                },
            ),
        ],
        charts: Vec::new(),
    }
}
