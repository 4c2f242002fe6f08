//! A study's CSVs and its page.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use rldp::report::{Article, Chart, Section, Series, TableData};

use super::plan::{Chosen, chosen};
use super::report_attacks::{attacks, attacks_csv};
use super::run::{CoursePoint, RunResult};
use super::statistics::{Paired, mean, paired};
use super::study::{Grade, Study, cell_label};
use crate::error::ExampleError;

/// One row a run.
pub const RUNS_CSV: &str = "runs.csv";
/// One row a point of a learning curve.
pub const CURVES_CSV: &str = "curves.csv";
/// One row an attacked run.
pub const ATTACKS_CSV: &str = "attacks.csv";
/// The page.
pub const REPORT_FILE: &str = "report.html";
/// Lines in a chart beside the reference.
const RIVALS_SHOWN: usize = 6;

/// The finished runs of a study that count for its comparison, by arm, epsilon and seed.
pub(super) struct Results<'a> {
    pub(super) study: &'a Study,
    runs: BTreeMap<(&'a str, u64), BTreeMap<u64, &'a RunResult>>,
}

/// A rival against the reference at one epsilon.
struct Against {
    /// Mean perplexity of the reference over the rival's, less one, over the seeds that both have.
    gain: f64,
    test: Option<Paired>,
    /// Share of the run after which the reference's mean curve is below the rival's final mean loss; `None` if never.
    passed: Option<f64>,
}

impl<'a> Results<'a> {
    fn new(study: &'a Study, done: &'a BTreeMap<String, RunResult>, keys: &[String]) -> Self {
        let mut runs: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for run in keys.iter().filter_map(|key| done.get(key)) {
            if !run.tuning {
                runs.entry((run.arm.as_str(), run.epsilon.to_bits()))
                    .or_default()
                    .insert(run.seed, run);
            }
        }
        Self { study, runs }
    }

    pub(super) fn of(&self, arm: &str, epsilon: f64) -> Vec<&'a RunResult> {
        self.runs
            .iter()
            .filter(|((name, bits), _)| *name == arm && *bits == epsilon.to_bits())
            .flat_map(|(_, runs)| runs.values().copied())
            .collect()
    }

    /// Differences of final losses (reference less rival), by seed.
    fn differences(&self, arm: &str, epsilon: f64) -> BTreeMap<u64, f64> {
        let rival: BTreeMap<u64, f64> = self
            .of(arm, epsilon)
            .iter()
            .map(|run| (run.seed, run.loss))
            .collect();
        self.of(&self.study.reference, epsilon)
            .iter()
            .filter_map(|run| Some((run.seed, run.loss - rival.get(&run.seed)?)))
            .collect()
    }

    fn against(&self, arm: &str, epsilon: f64) -> Option<Against> {
        let differences: Vec<f64> = self.differences(arm, epsilon).into_values().collect();
        if differences.is_empty() {
            return None;
        }
        let log_gain = differences.iter().sum::<f64>() / differences.len() as f64;
        let rival = curve(&self.of(arm, epsilon));
        let own = curve(&self.of(&self.study.reference, epsilon));
        let passed = rival.last().and_then(|(_, target)| {
            let end = own.last()?.0;
            Some(first_below(&own, *target)? / end.max(1.0))
        });
        Some(Against {
            gain: log_gain.exp_m1(),
            test: paired(&differences),
            passed,
        })
    }

    /// The comparison over all epsilons: per seed the mean difference over the epsilons, if all of them are done.
    fn pooled(&self, arm: &str) -> Option<Paired> {
        let each: Vec<BTreeMap<u64, f64>> = self
            .study
            .epsilons
            .iter()
            .map(|epsilon| self.differences(arm, *epsilon))
            .collect();
        let means: Vec<f64> = self
            .study
            .seeds
            .iter()
            .filter_map(|seed| {
                let values: Option<Vec<f64>> =
                    each.iter().map(|map| map.get(seed).copied()).collect();
                values.map(|values| values.iter().sum::<f64>() / values.len() as f64)
            })
            .collect();
        paired(&means)
    }

    /// Names of the arms, the reference first, in the study's order otherwise.
    pub(super) fn arms(&self) -> Vec<&'a str> {
        let names = self.study.arms.iter().map(|arm| arm.name.as_str());
        let (first, rest): (Vec<_>, Vec<_>) = names.partition(|name| *name == self.study.reference);
        first.into_iter().chain(rest).collect()
    }
}

/// The mean loss over runs at every step that all of them have.
fn curve(runs: &[&RunResult]) -> Vec<(f64, f64)> {
    let Some(first) = runs.first() else {
        return Vec::new();
    };
    let at = |run: &RunResult, step: u64| {
        run.curve
            .iter()
            .find(|point| point.0 == step)
            .map(|point| point.1)
    };
    first
        .curve
        .iter()
        .filter_map(|(step, _)| {
            let losses: Option<Vec<f64>> = runs.iter().map(|run| at(run, *step)).collect();
            losses.map(|losses| {
                (
                    *step as f64,
                    losses.iter().sum::<f64>() / losses.len() as f64,
                )
            })
        })
        .collect()
}

/// Where a curve first comes down to a level, between its points along straight lines.
fn first_below(curve: &[(f64, f64)], level: f64) -> Option<f64> {
    let index = curve.iter().position(|(_, loss)| *loss <= level)?;
    let (step, loss) = curve[index];
    let Some((before, higher)) = index.checked_sub(1).map(|index| curve[index]) else {
        return Some(step);
    };
    Some(before + (step - before) * (higher - level) / (higher - loss))
}

/// Writes the CSVs and the page of what is done of a study. `keys` are those of the runs that the study as it is now
/// needs: others in the store, of earlier settings, are kept there and not shown.
///
/// # Errors
/// Files that cannot be written.
pub fn write(
    study: &Study,
    done: &BTreeMap<String, RunResult>,
    keys: &[String],
    created: &str,
    folder: &Path,
) -> Result<(), ExampleError> {
    let shown: Vec<&RunResult> = keys.iter().filter_map(|key| done.get(key)).collect();
    let (runs, curves) = csvs(&shown);
    let mut files = vec![(RUNS_CSV, runs), (CURVES_CSV, curves)];
    if study.attacks.is_some() {
        files.push((ATTACKS_CSV, attacks_csv(&shown)));
    }
    for (name, text) in files {
        let path = folder.join(name);
        let partial = folder.join(format!("{name}.tmp"));
        std::fs::write(&partial, text).map_err(ExampleError::file(&partial))?;
        std::fs::rename(&partial, &path).map_err(ExampleError::file(&path))?;
    }
    let path = folder.join(REPORT_FILE);
    article(study, done, keys, created)?
        .write(&path)
        .map_err(ExampleError::file(path))
}

fn csvs(runs: &[&RunResult]) -> (String, String) {
    let mut table = String::from(
        "arm,grade,purpose,cell,controller,epsilon,seed,steps,test_perplexity,test_loss,test_loss_before,\
         epsilon_spent,delta,adapters,seconds,controller_seconds,key\n",
    );
    let mut curves = String::from("arm,purpose,cell,epsilon,seed,step,test_loss,test_perplexity\n");
    for run in runs {
        let purpose = if run.tuning { "tuning" } else { "comparison" };
        let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
        let (arm, cell) = (quoted(&run.arm), quoted(&run.cell));
        // Writing to a string cannot fail.
        let _ = writeln!(
            table,
            "{arm},{},{purpose},{cell},{},{},{},{},{},{},{},{},{:e},{},{:.2},{:.3},{}",
            run.grade,
            run.controller,
            run.epsilon,
            run.seed,
            run.steps,
            run.perplexity(),
            run.loss,
            run.loss_before,
            run.epsilon_upper,
            run.delta,
            run.adapters,
            run.seconds,
            run.controller_seconds,
            quoted(&run.key),
        );
        for (step, loss) in &run.curve {
            let _ = writeln!(
                curves,
                "{arm},{purpose},{cell},{},{},{step},{loss},{}",
                run.epsilon,
                run.seed,
                loss.exp()
            );
        }
    }
    (table, curves)
}

fn article(
    study: &Study,
    done: &BTreeMap<String, RunResult>,
    keys: &[String],
    created: &str,
) -> Result<Article, ExampleError> {
    let results = Results::new(study, done, keys);
    let finished = keys.iter().filter(|key| done.contains_key(*key)).count();
    let mut article = Article {
        title: format!("Study {}", study.name),
        subtitle: study.task.label(),
        created: created.to_owned(),
        banners: vec![(
            "NOT PRIVATE".to_owned(),
            "All runs of a study are seeded, and the test losses on this page are exact. The epsilons are what the same runs \
             would cost without a seed, but for what this page itself shows."
                .to_owned(),
        )],
        sections: Vec::new(),
    };
    if finished < keys.len() {
        article.banners.push((
            "Unfinished".to_owned(),
            format!("{finished} of {} known runs are done.", keys.len()),
        ));
    }
    article.sections.push(perplexities(&results));
    article.sections.push(comparisons(&results));
    article.sections.push(criteria(&results));
    article.sections.push(tuning(study, done)?);
    article.sections.push(learning_curves(&results));
    article.sections.push(course(&results));
    if study.attacks.is_some() {
        article.sections.push(attacks(&results));
    }
    article.sections.push(costs(&results));
    Ok(article)
}

pub(super) fn number(value: f64) -> String {
    if value.is_finite() {
        format!("{value:.4}")
    } else {
        "-".to_owned()
    }
}

fn percent(value: f64) -> String {
    if value.is_finite() {
        format!("{:+.2} %", 100.0 * value)
    } else {
        "-".to_owned()
    }
}

/// A p-value: small ones with their size.
pub(super) fn p_value(value: f64) -> String {
    if value.is_nan() {
        "-".to_owned()
    } else if value < 1e-3 {
        format!("{value:.1e}")
    } else {
        format!("{value:.3}")
    }
}

fn grade_of(study: &Study, arm: &str) -> Grade {
    study
        .arms
        .iter()
        .find(|other| other.name == arm)
        .map_or(Grade::Ours, |arm| arm.grade)
}

fn header(first: &[&str], study: &Study) -> Vec<String> {
    let epsilons = study
        .epsilons
        .iter()
        .map(|epsilon| format!("epsilon {epsilon}"));
    first
        .iter()
        .map(|name| (*name).to_owned())
        .chain(epsilons)
        .collect()
}

fn perplexities(results: &Results<'_>) -> Section {
    let study = results.study;
    let rows = results
        .arms()
        .into_iter()
        .map(|arm| {
            let cells = study.epsilons.iter().map(|epsilon| {
                let values: Vec<f64> = results
                    .of(arm, *epsilon)
                    .iter()
                    .map(|run| run.perplexity())
                    .collect();
                mean(&values).map_or_else(String::new, |mean| {
                    format!(
                        "{} \u{b1} {} (n = {})",
                        number(mean.mean),
                        number(mean.half_width),
                        mean.count
                    )
                })
            });
            [arm.to_owned(), grade_of(study, arm).to_string()]
                .into_iter()
                .chain(cells)
                .collect()
        })
        .collect();
    Section {
        title: "Test perplexity".to_owned(),
        banners: Vec::new(),
        paragraphs: vec![format!(
            "Exact perplexity of the test people after {} steps or what the budget allowed, mean over seeds with its 95 % \
             confidence interval by Student's t. All arms have the same batch, the same steps and the same budget.",
            results
                .runs
                .values()
                .flat_map(|runs| runs.values())
                .map(|run| run.steps)
                .max()
                .unwrap_or(0)
        )],
        tables: vec![(
            "Mean test perplexity".to_owned(),
            TableData {
                header: header(&["arm", "grade"], study),
                rows,
            },
        )],
        charts: Vec::new(),
    }
}

fn comparisons(results: &Results<'_>) -> Section {
    let study = results.study;
    let reference = &study.reference;
    let mut rows = Vec::new();
    for arm in results.arms().into_iter().skip(1) {
        for epsilon in &study.epsilons {
            let Some(against) = results.against(arm, *epsilon) else {
                continue;
            };
            let (t_test, sign_flip, pairs) = against.test.map_or((f64::NAN, f64::NAN, 1), |test| {
                (test.t_test, test.sign_flip, test.pairs)
            });
            rows.push(vec![
                arm.to_owned(),
                epsilon.to_string(),
                percent(against.gain),
                p_value(t_test),
                p_value(sign_flip),
                pairs.to_string(),
                against.passed.map_or("never".to_owned(), |share| {
                    format!("{:.0} %", 100.0 * share)
                }),
            ]);
        }
        if let Some(pooled) = results.pooled(arm) {
            rows.push(vec![
                arm.to_owned(),
                "all".to_owned(),
                percent(pooled.mean.exp_m1()),
                p_value(pooled.t_test),
                p_value(pooled.sign_flip),
                pooled.pairs.to_string(),
                String::new(),
            ]);
        }
    }
    Section {
        title: format!("{reference} against every other arm"),
        banners: Vec::new(),
        paragraphs: vec![
            format!(
                "Difference: perplexity of {reference} over that of the arm, less one, in the geometric mean over seeds; negative \
                 means that {reference} is better. Tests are two-sided and paired by seed, on differences of log perplexity: the \
                 paired t-test, and the sign-flip permutation test on the mean difference (exact up to 16 seeds; with n seeds its \
                 p-value is at least 2^(1-n)). The rows \"all\" test, per seed, the mean difference over all epsilons."
            ),
            format!(
                "Steps: the share of its run after which the mean learning curve of {reference} is at or below the arm's final \
                 mean loss, along straight lines between the points of the curve."
            ),
        ],
        tables: vec![(
            "Paired comparisons".to_owned(),
            TableData {
                header: [
                    "arm",
                    "epsilon",
                    "difference",
                    "p (t)",
                    "p (sign-flip)",
                    "seeds",
                    "steps",
                ]
                .map(str::to_owned)
                .to_vec(),
                rows,
            },
        )],
        charts: Vec::new(),
    }
}

/// What was to be shown, with what was found.
fn criteria(results: &Results<'_>) -> Section {
    let study = results.study;
    let mut rows = Vec::new();
    for grade in [Grade::Defaults, Grade::Public, Grade::Oracle, Grade::Ours] {
        let mut gains = Vec::new();
        let mut lost = Vec::new();
        let mut steps: Vec<f64> = Vec::new();
        for arm in results.arms().into_iter().skip(1) {
            if grade_of(study, arm) != grade {
                continue;
            }
            for epsilon in &study.epsilons {
                if let Some(against) = results.against(arm, *epsilon) {
                    gains.push(against.gain);
                    if against.gain >= 0.0 {
                        lost.push(format!("{arm} at {epsilon} ({})", percent(against.gain)));
                    }
                    steps.push(against.passed.unwrap_or(f64::INFINITY));
                }
            }
        }
        if gains.is_empty() {
            continue;
        }
        let worst = steps.iter().copied().fold(0.0, f64::max);
        rows.push(vec![
            grade.to_string(),
            gains.len().to_string(),
            percent(gains.iter().sum::<f64>() / gains.len() as f64),
            if worst.is_finite() {
                format!("{:.0} %", 100.0 * worst)
            } else {
                "never".to_owned()
            },
            if lost.is_empty() {
                "none".to_owned()
            } else {
                lost.join("; ")
            },
        ]);
    }
    Section {
        title: "Won and lost".to_owned(),
        banners: Vec::new(),
        paragraphs: vec![format!(
            "One cell is an arm at an epsilon. Where {} does not win, it stands here.",
            study.reference
        )],
        tables: vec![(
            "By grade".to_owned(),
            TableData {
                header: [
                    "against",
                    "cells",
                    "mean difference",
                    "most steps to a final utility",
                    "cells not won",
                ]
                .map(str::to_owned)
                .to_vec(),
                rows,
            },
        )],
        charts: Vec::new(),
    }
}

fn tuning(study: &Study, done: &BTreeMap<String, RunResult>) -> Result<Section, ExampleError> {
    let mut rows = Vec::new();
    for arm in study.arms.iter().filter(|arm| !arm.grid.is_empty()) {
        for epsilon in &study.epsilons {
            let found = chosen(study, arm, *epsilon, done).map_err(ExampleError::Other)?;
            if let Some(Chosen { cell, loss, tried }) = found {
                rows.push(vec![
                    arm.name.clone(),
                    arm.grade.to_string(),
                    epsilon.to_string(),
                    tried.to_string(),
                    cell_label(&cell),
                    number(loss.exp()),
                ]);
            }
        }
    }
    let paragraphs = match &study.public {
        Some(public) if !rows.is_empty() => vec![format!(
            "Public tuning: {}, {} seeds a cell. The oracle tunes on the private task itself, on the very losses that it is then \
             judged by: what no private run may do.",
            public.task.label(),
            public.seeds.len()
        )],
        _ => Vec::new(),
    };
    Ok(Section {
        title: "Grids".to_owned(),
        banners: Vec::new(),
        paragraphs,
        tables: vec![(
            "Chosen cells".to_owned(),
            TableData {
                header: [
                    "arm",
                    "grade",
                    "epsilon",
                    "cells tried",
                    "chosen",
                    "perplexity in tuning",
                ]
                .map(str::to_owned)
                .to_vec(),
                rows,
            },
        )],
        charts: Vec::new(),
    })
}

fn learning_curves(results: &Results<'_>) -> Section {
    let study = results.study;
    let charts = study
        .epsilons
        .iter()
        .map(|epsilon| {
            let mut lines: Vec<(f64, Series)> = results
                .arms()
                .into_iter()
                .filter_map(|arm| {
                    let points: Vec<(f64, f64)> = curve(&results.of(arm, *epsilon))
                        .into_iter()
                        .map(|(step, loss)| (step, loss.exp()))
                        .collect();
                    let last = points.last()?.1;
                    Some((last, Series::new(arm, points)))
                })
                .collect();
            if lines.len() > 1 {
                lines[1..].sort_by(|a, b| a.0.total_cmp(&b.0));
            }
            lines.truncate(RIVALS_SHOWN + 1);
            let series = lines.into_iter().map(|(_, series)| series).collect();
            Chart::new(
                format!("Test perplexity at epsilon {epsilon}"),
                "optimizer step",
                "perplexity",
                series,
            )
        })
        .collect();
    Section {
        title: "Learning curves".to_owned(),
        banners: Vec::new(),
        paragraphs: vec![format!(
            "Geometric means over seeds, of {} and the {RIVALS_SHOWN} best other arms; {CURVES_CSV} has all.",
            study.reference
        )],
        tables: Vec::new(),
        charts,
    }
}

/// What the reference arm did over its runs.
fn course(results: &Results<'_>) -> Section {
    type Reading = fn(&CoursePoint) -> f64;
    let readings: [(&str, &str, Reading); 6] = [
        ("Learning rate", "learning rate", |point| {
            point.learning_rate
        }),
        ("First-moment decay", "beta 1", |point| point.beta_1),
        ("Clipping norm", "geometric mean over adapters", |point| {
            point.radius
        }),
        (
            "Spread of clipping norms",
            "largest over smallest",
            |point| point.radius_spread,
        ),
        (
            "Split of the noise",
            "largest weight, in equal shares",
            |point| point.largest_weight,
        ),
        ("Noise multiplier", "effective", |point| {
            point.noise_multiplier
        }),
    ];
    let study = results.study;
    let charts = readings
        .into_iter()
        .map(|(title, axis, reading)| {
            let series = study
                .epsilons
                .iter()
                .map(|epsilon| {
                    let mut by_step: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
                    for run in results.of(&study.reference, *epsilon) {
                        for point in &run.course {
                            by_step.entry(point.step).or_default().push(reading(point));
                        }
                    }
                    let points = by_step
                        .into_iter()
                        .map(|(step, values)| {
                            (
                                step as f64,
                                values.iter().sum::<f64>() / values.len() as f64,
                            )
                        })
                        .collect();
                    Series::new(format!("epsilon {epsilon}"), points)
                })
                .collect();
            Chart::new(title, "optimizer step", axis, series)
        })
        .collect();
    Section {
        title: format!("What {} did", study.reference),
        banners: Vec::new(),
        paragraphs: vec!["Means over seeds, at the first step after every decision.".to_owned()],
        tables: Vec::new(),
        charts,
    }
}

fn costs(results: &Results<'_>) -> Section {
    let rows = results
        .arms()
        .into_iter()
        .filter_map(|arm| {
            let runs: Vec<&RunResult> = results
                .study
                .epsilons
                .iter()
                .flat_map(|epsilon| results.of(arm, *epsilon))
                .collect();
            let count = runs.len() as f64;
            let seconds = runs.iter().map(|run| run.seconds).sum::<f64>();
            let own = runs.iter().map(|run| run.controller_seconds).sum::<f64>();
            let used = runs
                .iter()
                .map(|run| run.epsilon_upper / run.epsilon)
                .fold(f64::NAN, f64::max);
            (count > 0.0).then(|| {
                vec![
                    arm.to_owned(),
                    format!("{count}"),
                    format!("{:.1}", seconds / count),
                    format!("{:.2} %", 100.0 * own / seconds),
                    format!("{:.2} %", 100.0 * used),
                ]
            })
        })
        .collect();
    Section {
        title: "Budget and time".to_owned(),
        banners: Vec::new(),
        paragraphs: vec![
            "Epsilon used: the largest over the runs of the ledger's upper bound over the target. Times are those of the machine \
             and the load that each run met; compare shares rather than seconds."
                .to_owned(),
        ],
        tables: vec![(
            "Costs".to_owned(),
            TableData {
                header: ["arm", "runs", "seconds a run", "of these the controller", "epsilon used"]
                    .map(str::to_owned)
                    .to_vec(),
                rows,
            },
        )],
        charts: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::compare::store::tests::result;

    fn study() -> Study {
        toml::from_str(
            r#"
            name = "tiny"
            epsilons = [1.0]
            seeds = [1, 2, 3]
            reference = "ours"
            [task]
            [[arm]]
            name = "rival"
            grade = "defaults"
            [[arm]]
            name = "ours"
        "#,
        )
        .unwrap()
    }

    #[test]
    fn a_level_is_passed_between_the_points() {
        let curve = [(0.0, 4.0), (10.0, 2.0), (20.0, 1.0)];
        assert_eq!(first_below(&curve, 3.0), Some(5.0));
        assert_eq!(first_below(&curve, 2.0), Some(10.0));
        assert_eq!(first_below(&curve, 5.0), Some(0.0));
        assert_eq!(first_below(&curve, 0.5), None);
    }

    #[test]
    fn gains_tests_and_steps_are_those_of_the_runs() {
        let study = study();
        let mut done = BTreeMap::new();
        for (seed, (ours, rival)) in [(1, (0.50, 0.60)), (2, (0.52, 0.61)), (3, (0.51, 0.62))] {
            for run in [
                result("ours", 1.0, seed, ours),
                result("rival", 1.0, seed, rival),
            ] {
                done.insert(run.key.clone(), run);
            }
        }
        let keys: Vec<String> = done.keys().cloned().collect();
        let results = Results::new(&study, &done, &keys);
        assert_eq!(results.arms(), ["ours", "rival"]);
        let against = results.against("rival", 1.0).unwrap();
        assert!((against.gain - (-0.1_f64).exp_m1()).abs() < 1e-9);
        assert_eq!(against.test.unwrap().pairs, 3);
        // Means: from 1.255 at step 5 to 0.51 at step 10; the rival ends at 0.61.
        let expected = (5.0 + 5.0 * (1.255 - 0.61) / (1.255 - 0.51)) / 10.0;
        assert!((against.passed.unwrap() - expected).abs() < 1e-9);
        let page = article(&study, &done, &keys, "now").unwrap().to_html();
        assert!(
            page.contains("NOT PRIVATE") && page.contains("rival") && !page.contains("Unfinished")
        );
        let folder = tempfile::tempdir().unwrap();
        write(&study, &done, &keys, "now", folder.path()).unwrap();
        let csv = std::fs::read_to_string(folder.path().join(RUNS_CSV)).unwrap();
        assert_eq!(csv.lines().count(), 7);
        let curves = std::fs::read_to_string(folder.path().join(CURVES_CSV)).unwrap();
        assert_eq!(curves.lines().count(), 1 + 18);
    }
}
