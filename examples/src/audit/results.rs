//! What an audit writes, and the table of many audits.

use std::io::Write as _;
use std::path::Path;

use rldp::audit::{CanaryReport, MechanismReport, NamedAttack, PeopleReport, audit_section};
use rldp::report::Section;
use rldp::trainer::{MANIFEST_FILE, Manifest, RunFolder};
use serde::{Deserialize, Serialize};

use crate::error::ExampleError;
use crate::finetune::run::REPORT_FILE;

/// Results that the run's guarantee covers.
pub const COVERED_FILE: &str = "audit.json";
/// Results that no guarantee covers.
pub const PRIVATE_FILE: &str = "audit-private.json";
/// The page with all results.
pub const PRIVATE_PAGE: &str = "audit-private.html";

/// What may be published with the run: post-processing of its release.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Covered {
    /// Who steered the run.
    pub controller: String,
    /// Whether the run was private at all.
    pub private: bool,
    /// The epsilon that it claims for its training part; none without privacy.
    pub claimed_epsilon: Option<f64>,
    /// Its delta.
    pub delta: f64,
    /// The steps on canary gradients.
    pub mechanism: Option<MechanismReport>,
    /// The canary texts.
    pub canaries: Option<CanaryReport>,
}

impl Covered {
    /// The largest lower bound found.
    #[must_use]
    pub fn largest_bound(&self) -> Option<f64> {
        let bounds = [
            self.mechanism.map(|report| report.bound),
            self.canaries.as_ref().and_then(|report| report.bound),
        ];
        bounds
            .into_iter()
            .flatten()
            .map(|bound| bound.epsilon_lower)
            .reduce(f64::max)
    }

    /// Writes `audit.json`, puts the section into the run's report, and writes what was found about people apart.
    ///
    /// # Errors
    /// Files that cannot be written; a report of another program.
    pub fn write(
        &self,
        people: Option<&PeopleReport>,
        folder: &RunFolder,
    ) -> Result<(), ExampleError> {
        let section = audit_section(
            self.claimed_epsilon,
            self.mechanism.as_ref(),
            self.canaries.as_ref(),
        );
        folder.write(COVERED_FILE, json(self)?.as_bytes())?;
        // A run over all parameters writes no report.
        let report = folder.join(REPORT_FILE);
        if report.exists() {
            let page = std::fs::read_to_string(&report).map_err(ExampleError::file(&report))?;
            let page =
                Section::put_into(std::slice::from_ref(&section), &page).ok_or_else(|| {
                    ExampleError::Other(format!(
                        "{}: there is no place for an audit in it",
                        report.display()
                    ))
                })?;
            folder.write(REPORT_FILE, page.as_bytes())?;
        }
        if let Some(people) = people {
            let page = Section::page("Audit of a run, private", &[people.section(), section]);
            keep_private(&folder.join(PRIVATE_FILE), json(people)?.as_bytes())?;
            keep_private(&folder.join(PRIVATE_PAGE), page.as_bytes())?;
        }
        // The list of files holds their hashes, and says for new ones whether they may be shown.
        if folder.join(MANIFEST_FILE).exists() {
            let before: Manifest = read(&folder.join(MANIFEST_FILE))?;
            Manifest::of(folder, before.private, before.guarantee)?.write(folder)?;
        }
        Ok(())
    }
}

fn json<T: Serialize>(value: &T) -> Result<String, ExampleError> {
    serde_json::to_string(value).map_err(|error| ExampleError::Other(error.to_string()))
}

/// Writes a file beside its place and moves it there; on Unix it is its owner's alone, as temporary files are.
fn keep_private(path: &Path, bytes: &[u8]) -> Result<(), ExampleError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(ExampleError::file(path))?;
    file.write_all(bytes)
        .and_then(|()| file.as_file().sync_all())
        .map_err(ExampleError::file(path))?;
    file.persist(path)
        .map_err(|error| ExampleError::file(path)(error.error))?;
    Ok(())
}

fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T, ExampleError> {
    let text = std::fs::read_to_string(path).map_err(ExampleError::file(path))?;
    serde_json::from_str(&text)
        .map_err(|error| ExampleError::Other(format!("{}: {error}", path.display())))
}

/// One CSV line an audited run, with a header: claims, bounds, canaries, and people if asked for.
///
/// # Errors
/// A folder that was not audited.
pub fn table(folders: &[std::path::PathBuf], people_too: bool) -> Result<String, ExampleError> {
    let mut text = String::from(
        "run,controller,private,claimed_epsilon,delta,mechanism_lower_bound,canary_lower_bound,canary_guesses,canary_right",
    );
    let attack_columns = |whose: &str, names: &[&str]| {
        names
            .iter()
            .flat_map(|name| {
                ["auc", "auc_lower", "auc_upper", "tpr_at_0.1%", "tpr_at_1%"]
                    .map(|what| format!(",{whose}_{name}_{what}"))
            })
            .collect::<String>()
    };
    let canary_attacks = ["loss", "reference", "zlib", "min-20%"];
    let people_attacks = [
        "loss",
        "reference",
        "zlib",
        "min-20%",
        "LiRA, online",
        "LiRA, offline",
    ];
    text.push_str(&attack_columns("canary", &canary_attacks));
    text.push_str(
        ",exposure_in,exposure_out,completed_in,completed_out,sampled_in,canaries_in,canaries_out",
    );
    if people_too {
        text.push_str(&attack_columns("people", &people_attacks).replace(", ", "_"));
        text.push_str(",overlap8_training,overlap8_held_out,longest_training,longest_held_out");
    }
    text.push('\n');
    for folder in folders {
        let covered: Covered = read(&folder.join(COVERED_FILE))?;
        let number =
            |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.6}"));
        let name = folder
            .file_name()
            .unwrap_or(folder.as_os_str())
            .to_string_lossy()
            .replace(',', "_");
        let canaries = covered.canaries.as_ref();
        let bound = canaries.and_then(|report| report.bound);
        let mut cells = vec![
            name,
            covered.controller.clone(),
            covered.private.to_string(),
            number(covered.claimed_epsilon),
            format!("{:e}", covered.delta),
            number(covered.mechanism.map(|report| report.bound.epsilon_lower)),
            number(bound.map(|bound| bound.epsilon_lower)),
            bound.map_or_else(String::new, |bound| bound.guesses.guesses.to_string()),
            bound.map_or_else(String::new, |bound| bound.guesses.correct.to_string()),
        ];
        push_attacks(
            &mut cells,
            &canary_attacks,
            canaries.map_or(&[], |report| &report.attacks),
        );
        let groups = canaries.map_or(&[][..], |report| &report.groups);
        let of = |included: bool| {
            groups
                .iter()
                .filter(move |group| group.included == included)
        };
        let exposure = |included: bool| {
            let count: usize = of(included).map(|group| group.canaries).sum();
            let sum: f64 = of(included)
                .map(|group| group.exposure_extrapolated * group.canaries as f64)
                .sum();
            (count > 0).then(|| sum / count as f64)
        };
        cells.push(number(exposure(true)));
        cells.push(number(exposure(false)));
        for count in [
            of(true).map(|group| group.completed).sum::<usize>(),
            of(false).map(|group| group.completed).sum(),
            of(true).map(|group| group.sampled).sum(),
            of(true).map(|group| group.canaries).sum(),
            of(false).map(|group| group.canaries).sum(),
        ] {
            cells.push(count.to_string());
        }
        if people_too {
            let people: PeopleReport = read(&folder.join(PRIVATE_FILE))?;
            push_attacks(&mut cells, &people_attacks, &people.attacks);
            for overlap in [&people.overlap_training, &people.overlap_held_out] {
                let share = overlap
                    .shares
                    .iter()
                    .find(|(n, _)| *n == 8)
                    .and_then(|(_, share)| *share);
                cells.push(number(share));
            }
            cells.push(people.overlap_training.longest.to_string());
            cells.push(people.overlap_held_out.longest.to_string());
        }
        text.push_str(&cells.join(","));
        text.push('\n');
    }
    Ok(text)
}

fn push_attacks(cells: &mut Vec<String>, names: &[&str], attacks: &[NamedAttack]) {
    for name in names {
        match attacks.iter().find(|attack| attack.name == *name) {
            None => cells.extend(std::iter::repeat_n(String::new(), 5)),
            Some(attack) => {
                let auc = attack.report.auc;
                cells.extend(
                    [auc.estimate, auc.lower, auc.upper].map(|value| format!("{value:.4}")),
                );
                let rates = &attack.report.true_rates;
                cells.extend((0..2).map(|index| {
                    rates.get(index).map_or_else(String::new, |rate| {
                        format!("{:.4}", rate.true_positive_rate.estimate)
                    })
                }));
            }
        }
    }
}
