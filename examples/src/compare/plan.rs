//! Which runs a study needs, and in which order.

use std::collections::BTreeMap;

use rldp::controller::{AgentOptions, Bounds, RivalOptions, shipped_policy};
use rldp::trainer::TrainerConfig;

use super::attacks::Attacks;
use super::run::RunResult;
use super::study::{Arm, Grade, Study, cell_label, cells};

/// A run to be made.
#[derive(Clone, Debug)]
pub struct Job {
    /// The arm.
    pub arm: String,
    /// Its grade.
    pub grade: Grade,
    /// Whether it is for tuning.
    pub tuning: bool,
    /// Whether it is on the public task.
    pub public: bool,
    /// The cell of the arm's grid, in words.
    pub cell: String,
    /// The settings.
    pub config: TrainerConfig,
    /// The seed.
    pub seed: u64,
    /// The task in words.
    task: String,
    every: u64,
    attacks: Option<Attacks>,
}

impl Job {
    /// What a finished run is found by: its arm, the task, the seed and all settings that matter to its controller; a changed
    /// setting makes another run, and so does another shipped policy for an arm that acts by one.
    #[must_use]
    pub fn key(&self) -> String {
        let kind = self.config.controller;
        let mut settings = self.config.clone();
        if kind.is_agent() {
            settings.rivals = RivalOptions::default();
        } else {
            settings.agent = AgentOptions::default();
            settings.agent.bounds = Bounds::NONE;
        }
        let mut settings = serde_json::to_string(&settings).unwrap_or_default();
        if kind.has_policy() {
            settings += &format!("\n{:016x}", fnv1a(shipped_policy()));
        }
        if let Some(attacks) = &self.attacks {
            settings += &serde_json::to_string(attacks).unwrap_or_default();
        }
        let text = format!("{}\n{}\n{settings}", self.task, self.every);
        let kind = if self.tuning { "tuning" } else { "final" };
        format!(
            "{}|{kind}|{}|{}|{:016x}",
            self.arm,
            self.config.epsilon,
            self.seed,
            fnv1a(text.as_bytes())
        )
    }
}

impl Job {
    /// Which of `shards` processes makes this run: the same whatever else is known.
    #[must_use]
    pub fn shard(&self, shards: usize) -> usize {
        (fnv1a(self.key().as_bytes()) % shards.max(1) as u64) as usize
    }
}

/// The 64-bit FNV-1a hash: the same in every release.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The best cell of an arm's grid at an epsilon.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    /// The cell.
    pub cell: toml::Table,
    /// Mean exact test loss of its tuning runs.
    pub loss: f64,
    /// Cells tried.
    pub tried: usize,
}

/// The runs known to be needed, the comparison's first and by seeds, so that a study that is cut short has whole seeds:
/// arms without a grid, then tuning, then tuned arms. The runs of tuned arms are known only when their tuning is `done`.
///
/// # Errors
/// Settings that do not fit, as [`Study::read`] has checked already.
pub fn jobs(study: &Study, done: &BTreeMap<String, RunResult>) -> Result<Vec<Job>, String> {
    let mut jobs = Vec::new();
    for &seed in &study.seeds {
        for &epsilon in &study.epsilons {
            for arm in study.arms.iter().filter(|arm| arm.grid.is_empty()) {
                jobs.push(job(
                    study,
                    arm,
                    &toml::Table::new(),
                    epsilon,
                    seed,
                    Use::Compare,
                )?);
            }
        }
    }
    for grade in [Grade::Public, Grade::Oracle] {
        for arm in study.arms.iter().filter(|arm| arm.grade == grade) {
            jobs.extend(tuning(study, arm)?);
        }
        for &seed in &study.seeds {
            for &epsilon in &study.epsilons {
                for arm in study.arms.iter().filter(|arm| arm.grade == grade) {
                    if let Some(chosen) = chosen(study, arm, epsilon, done)? {
                        jobs.push(job(study, arm, &chosen.cell, epsilon, seed, Use::Compare)?);
                    }
                }
            }
        }
    }
    Ok(jobs)
}

#[derive(Clone, Copy, PartialEq)]
enum Use {
    Compare,
    Tune,
}

fn job(
    study: &Study,
    arm: &Arm,
    cell: &toml::Table,
    epsilon: f64,
    seed: u64,
    purpose: Use,
) -> Result<Job, String> {
    let public = purpose == Use::Tune && arm.grade == Grade::Public;
    let task = match (&study.public, public) {
        (Some(other), true) => &other.task,
        _ => &study.task,
    };
    Ok(Job {
        arm: arm.name.clone(),
        grade: arm.grade,
        tuning: purpose == Use::Tune,
        public,
        cell: cell_label(cell),
        config: study.config(arm, cell, epsilon)?,
        seed,
        task: task.label(),
        every: study.curve_every,
        attacks: study.attacks.clone().filter(|_| purpose == Use::Compare),
    })
}

/// The tuning runs of an arm, a seed at a time.
fn tuning(study: &Study, arm: &Arm) -> Result<Vec<Job>, String> {
    let seeds = match (&study.public, arm.grade) {
        (Some(public), Grade::Public) => &public.seeds,
        _ if study.oracle_seeds.is_empty() => &study.seeds,
        _ => &study.oracle_seeds,
    };
    let mut jobs = Vec::new();
    for &seed in seeds {
        for &epsilon in &study.epsilons {
            for cell in cells(&arm.grid) {
                jobs.push(job(study, arm, &cell, epsilon, seed, Use::Tune)?);
            }
        }
    }
    Ok(jobs)
}

/// The cell with the lowest mean exact loss at an epsilon, once all its arm's cells are `done`; runs that diverged to no
/// number count as worst.
///
/// # Errors
/// As [`jobs`].
pub fn chosen(
    study: &Study,
    arm: &Arm,
    epsilon: f64,
    done: &BTreeMap<String, RunResult>,
) -> Result<Option<Chosen>, String> {
    let all = cells(&arm.grid);
    let mut sums = vec![(0.0, 0_usize); all.len()];
    for job in tuning(study, arm)? {
        if job.config.epsilon != epsilon {
            continue;
        }
        let Some(run) = done.get(&job.key()) else {
            return Ok(None);
        };
        if let Some(index) = all.iter().position(|cell| cell_label(cell) == job.cell) {
            sums[index].0 += if run.loss.is_finite() {
                run.loss
            } else {
                f64::INFINITY
            };
            sums[index].1 += 1;
        }
    }
    let best = all
        .iter()
        .zip(&sums)
        .map(|(cell, (sum, count))| (cell, sum / *count as f64))
        .min_by(|a, b| a.1.total_cmp(&b.1));
    Ok(best.map(|(cell, loss)| Chosen {
        cell: cell.clone(),
        loss,
        tried: all.len(),
    }))
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
            epsilons = [1.0, 2.0]
            seeds = [1, 2]
            oracle-seeds = [1]
            reference = "ours"
            [task]
            [[arm]]
            name = "ours"
            [[arm]]
            name = "best"
            grade = "oracle"
            trainer = { controller = "constant" }
            [arm.grid]
            learning-rate = [0.01, 0.02, 0.03]
        "#,
        )
        .unwrap()
    }

    #[test]
    fn tuned_runs_come_when_their_tuning_is_done() {
        let study = study();
        let mut done = BTreeMap::new();
        let first = jobs(&study, &done).unwrap();
        // Two seeds x two epsilons, and three cells x two epsilons.
        assert_eq!(first.len(), 4 + 6);
        assert!(
            first[..4].iter().all(|job| !job.tuning) && first[4..].iter().all(|job| job.tuning)
        );
        for job in &first[4..] {
            let loss = (job.config.learning_rate - 0.02).abs() + 1.0;
            let mut run = result("best", job.config.epsilon, job.seed, loss);
            run.key = job.key();
            done.insert(run.key.clone(), run);
        }
        let second = jobs(&study, &done).unwrap();
        assert_eq!(second.len(), 14);
        assert!(
            second[10..]
                .iter()
                .all(|job| job.config.learning_rate == 0.02 && !job.tuning)
        );
        let chosen = chosen(&study, &study.arms[1], 1.0, &done).unwrap().unwrap();
        assert_eq!(
            (chosen.tried, cell_label(&chosen.cell).as_str()),
            (3, "learning-rate=0.02")
        );
        // One tuning run missing: no choice at its epsilon.
        done.remove(&first[9].key());
        assert_eq!(jobs(&study, &done).unwrap().len(), 12);
    }

    #[test]
    fn a_key_tells_runs_apart() {
        let study = study();
        let jobs = jobs(&study, &BTreeMap::new()).unwrap();
        let mut keys: Vec<String> = jobs.iter().map(Job::key).collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), jobs.len());
        let mut other = jobs[0].clone();
        other.config.beta_2 = 0.95;
        assert_ne!(other.key(), jobs[0].key());
        // An attacked run has canaries among its data.
        let mut attacked = jobs[0].clone();
        attacked.attacks = Some(Attacks::default());
        assert_ne!(attacked.key(), jobs[0].key());
        // The agent's settings make another run of the agent, and the same one of a rival; and the other way round.
        let changed = |job: &Job, agent: bool| {
            let mut other = job.clone();
            if agent {
                other.config.agent.bounds.weight_factor = 1.5;
            } else {
                other.config.rivals.flat_clipping_norm = Some(0.3);
            }
            other.key() != job.key()
        };
        let [ours, rival] = [&jobs[0], jobs.last().unwrap()];
        assert!(changed(ours, true) && !changed(ours, false));
        assert!(!changed(rival, true) && changed(rival, false));
    }
}
