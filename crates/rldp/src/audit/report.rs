//! What attacks found, as parts of a page.

use rldp_accounting::print::{AtLeast, AtMost};
use rldp_audit::attack::MembershipReport;

use super::NamedAttack;
use super::canaries::CanaryReport;
use super::mechanism::MechanismReport;
use super::people::PeopleReport;
use crate::report::{Chart, Scale, Section, Series, TableData};

/// The operating curves of attacks on logarithmic axes, where low false-positive rates can be seen.
#[must_use]
pub fn operating_curves(title: &str, attacks: &[NamedAttack]) -> Chart {
    let others = attacks.iter().map(|attack| attack.report.non_members).max();
    let lowest = 1.0 / others.unwrap_or(1).max(2) as f64;
    let mut series: Vec<Series> = attacks
        .iter()
        .map(|attack| Series::new(attack.name.clone(), visible(&attack.report)))
        .collect();
    series.push(Series::new("guessing", vec![(lowest, lowest), (1.0, 1.0)]));
    Chart {
        note: "True against false positives; a model that remembers no one lies on the line of guessing".to_owned(),
        scale: Scale::Log,
        log_x: true,
        ..Chart::new(title, "false-positive rate", "true-positive rate", series)
    }
}

/// The curve from the first false positive on, with what is reached before it drawn at half a false positive.
fn visible(report: &MembershipReport) -> Vec<(f64, f64)> {
    let half = 0.5 / report.non_members as f64;
    let before = report.curve.iter().rfind(|point| point.0 == 0.0).copied();
    before
        .filter(|point| point.1 > 0.0)
        .map(|point| (half, point.1))
        .into_iter()
        .chain(
            report
                .curve
                .iter()
                .copied()
                .filter(|point| point.0 > 0.0 && point.1 > 0.0),
        )
        .collect()
}

fn attack_table(attacks: &[NamedAttack]) -> TableData {
    let rates = attacks
        .first()
        .map_or(&[][..], |attack| &attack.report.true_rates);
    let mut header = vec![
        "attack".to_owned(),
        "members".to_owned(),
        "others".to_owned(),
        "AUC".to_owned(),
    ];
    header.extend(
        rates
            .iter()
            .map(|rate| format!("TPR at FPR {} %", 100.0 * rate.false_positive_rate)),
    );
    TableData {
        header,
        rows: attacks
            .iter()
            .map(|attack| {
                let report = &attack.report;
                let mut row = vec![
                    attack.name.clone(),
                    report.members.to_string(),
                    report.non_members.to_string(),
                    format!(
                        "{:.3} [{:.3}, {:.3}]",
                        report.auc.estimate, report.auc.lower, report.auc.upper
                    ),
                ];
                row.extend(report.true_rates.iter().map(|rate| {
                    let interval = rate.true_positive_rate;
                    format!(
                        "{:.4} [{:.4}, {:.4}]",
                        interval.estimate, interval.lower, interval.upper
                    )
                }));
                row
            })
            .collect(),
    }
}

fn canary_table(report: &CanaryReport) -> TableData {
    TableData {
        header: [
            "secret",
            "bits",
            "inserted",
            "canaries",
            "exposure, sampled",
            "extrapolated",
            "largest",
            "fit p",
            "completed",
            "sampled",
        ]
        .map(str::to_owned)
        .to_vec(),
        rows: report
            .groups
            .iter()
            .map(|group| {
                vec![
                    group.format.clone(),
                    format!("{:.1}", group.bits),
                    (if group.included { group.repeats } else { 0 }).to_string(),
                    group.canaries.to_string(),
                    format!("{:.2}", group.exposure_sampled),
                    format!("{:.2}", group.exposure_extrapolated),
                    format!("{:.2}", group.exposure_largest),
                    format!("{:.3}", group.fit_p_value),
                    group.completed.to_string(),
                    group.sampled.to_string(),
                ]
            })
            .collect(),
    }
}

/// The section that may stand in a run's report: canaries and mechanism, which no private data take part in. `claimed` is the run's
/// epsilon, none for a run without privacy.
#[must_use]
pub fn audit_section(
    claimed: Option<f64>,
    mechanism: Option<&MechanismReport>,
    canaries: Option<&CanaryReport>,
) -> Section {
    let mut section = Section {
        title: "Audit".to_owned(),
        ..Section::default()
    };
    let claim = claimed.map_or("the run claims no epsilon".to_owned(), |epsilon| {
        format!("the run claims \u{3b5} = {:.4}", AtLeast(epsilon))
    });
    let mut bounds = TableData {
        header: [
            "audit",
            "claimed \u{3b5}",
            "lower bound",
            "\u{3b4}",
            "confidence",
            "canaries",
            "guesses",
            "right",
        ]
        .map(str::to_owned)
        .to_vec(),
        rows: Vec::new(),
    };
    let found = [
        (
            "the run's steps on canary gradients (white box)",
            mechanism.map(|report| report.bound),
        ),
        (
            "canary texts in the training data (black box)",
            canaries.and_then(|report| report.bound),
        ),
    ];
    for (name, bound) in found {
        let Some(bound) = bound else { continue };
        bounds.rows.push(vec![
            name.to_owned(),
            claimed.map_or("none".to_owned(), |epsilon| {
                format!("{:.4}", AtLeast(epsilon))
            }),
            format!("{:.4}", AtMost(bound.epsilon_lower)),
            format!("{:.2e}", AtLeast(bound.delta)),
            format!("{}", bound.confidence),
            bound.guesses.canaries.to_string(),
            bound.guesses.guesses.to_string(),
            bound.guesses.correct.to_string(),
        ]);
        if claimed.is_some_and(|claimed| bound.epsilon_lower > claimed) {
            section.banners.push((
                "Audit failed".to_owned(),
                format!(
                    "The lower bound {:.4} of {name} exceeds what the run claims: do not publish.",
                    AtMost(bound.epsilon_lower)
                ),
            ));
        }
    }
    section.paragraphs.push(format!(
        "Attacks on what this run released; {claim}. Canaries are drawn apart from the private data, so everything in this section is \
         post-processing of the release and covered by the same guarantee. A lower bound is what an attack proves; it exceeds the \
         true epsilon with probability at most one minus the confidence (Steinke, Nasr and Jagielski 2023)."
    ));
    if !bounds.rows.is_empty() {
        section
            .tables
            .push(("Claim and lower bounds".to_owned(), bounds));
    }
    if let Some(report) = canaries {
        section.paragraphs.push(format!(
            "{} canaries: exposure is the number of bits of a secret that the model gives away (1.44 on average if it knows nothing). \
             Completed: given the text before and half of the secret, the model greedily writes the rest. Sampled: the whole secret is \
             among texts sampled from the text before it.",
            report.canaries
        ));
        section
            .charts
            .push(operating_curves("Membership of canaries", &report.attacks));
        section.tables.push((
            "Membership inference on canaries".to_owned(),
            attack_table(&report.attacks),
        ));
        section
            .tables
            .push(("Exposure and extraction".to_owned(), canary_table(report)));
    }
    section
}

impl PeopleReport {
    /// The section on people. **It must not stand in a published page**: no guarantee covers it, and it says so.
    #[must_use]
    pub fn section(&self) -> Section {
        let overlaps = [
            ("training", &self.overlap_training),
            ("held out", &self.overlap_held_out),
        ];
        let mut header = vec!["text".to_owned()];
        header.extend(
            self.overlap_training
                .shares
                .iter()
                .map(|(n, _)| format!("{n}-grams shared")),
        );
        header.push("longest run".to_owned());
        Section {
            title: "Membership of the run's people".to_owned(),
            banners: vec![(
                "PRIVATE".to_owned(),
                "This section was computed from the people's records themselves. The run's guarantee does not cover it: keep it, or \
                 publish it only where the records may be published."
                    .to_owned(),
            )],
            paragraphs: vec![format!(
                "Members were trained on, others were held out, by a keyed coin flip. The AUC's interval is DeLong's, the true-positive \
                 rates' Clopper-Pearson's for the threshold at that false-positive rate. Likelihood ratios use {} shadow adapters.",
                self.shadows
            )],
            charts: vec![operating_curves("Membership of people", &self.attacks)],
            tables: vec![
                ("Membership inference on people".to_owned(), attack_table(&self.attacks)),
                (
                    "Word-for-word overlap of what the model writes".to_owned(),
                    TableData {
                        header,
                        rows: overlaps
                            .into_iter()
                            .map(|(name, overlap)| {
                                let mut row = vec![name.to_owned()];
                                row.extend(overlap.shares.iter().map(|(_, share)| {
                                    share.map_or("none so long".to_owned(), |share| format!("{share:.4}"))
                                }));
                                row.push(overlap.longest.to_string());
                                row
                            })
                            .collect(),
                    },
                ),
            ],
        }
    }
}
