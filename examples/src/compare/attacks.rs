//! Attacks on the models of a study's runs, the same for every arm.

use rldp::audit::{AttackOptions, CanaryReport, NamedAttack, PeopleReport};
use rldp_audit::attack::MembershipReport;
use rldp_audit::extraction::secret::CanarySet;
use rldp_models::Tokenizer;
use rldp_optim::SeededRandom;
use serde::{Deserialize, Serialize};

use crate::error::ExampleError;
use crate::finetune::canaries::{SEED_OFFSET, built_in};

/// What every run of a study is attacked with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Attacks {
    /// Canaries drawn for each seed, the same for all arms, half of which are put into the training part; 0 for none.
    pub canaries: usize,
    /// Insertions of a canary, in turn.
    pub canary_repeats: Vec<u32>,
    /// Members attacked at most, and others at most; 0 for no attack on people.
    pub people: usize,
    /// See [`AttackOptions::exposure_samples`].
    pub exposure_samples: usize,
    /// See [`AttackOptions::generations`].
    pub generations: usize,
}

impl Default for Attacks {
    fn default() -> Self {
        let options = AttackOptions::default();
        Self {
            canaries: 300,
            canary_repeats: vec![1, 4, 16],
            people: options.most_people,
            exposure_samples: options.exposure_samples,
            generations: options.generations,
        }
    }
}

impl Attacks {
    /// The same as options of the attacks themselves.
    #[must_use]
    pub fn options(&self) -> AttackOptions {
        AttackOptions {
            most_people: self.people,
            exposure_samples: self.exposure_samples,
            generations: self.generations,
            ..AttackOptions::default()
        }
    }

    /// The canaries of a seed; `None` if there shall be none.
    ///
    /// # Errors
    /// Fewer than two canaries, repeats of zero, a tokenizer with too few words.
    pub fn draw(
        &self,
        seed: u64,
        tokenizer: &Tokenizer,
    ) -> Result<Option<CanarySet>, ExampleError> {
        if self.canaries == 0 {
            return Ok(None);
        }
        let mut random = SeededRandom::new(seed ^ SEED_OFFSET);
        let formats = built_in(tokenizer)?;
        let set = CanarySet::draw(formats, &self.canary_repeats, self.canaries, &mut random);
        Ok(Some(set.map_err(rldp::RldpError::from)?))
    }
}

/// What the attacks on a run's model found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Attacked {
    /// On canaries.
    pub canaries: Option<CanaryReport>,
    /// On people: not covered by any guarantee.
    pub people: Option<PeopleReport>,
}

impl Attacked {
    /// The same without the operating curves, which would be most of a study's store.
    #[must_use]
    pub fn without_curves(mut self) -> Self {
        let canaries = self
            .canaries
            .iter_mut()
            .flat_map(|report| &mut report.attacks);
        let people = self
            .people
            .iter_mut()
            .flat_map(|report| &mut report.attacks);
        for attack in canaries.chain(people) {
            attack.report.curve = Vec::new();
        }
        self
    }

    /// The figures that arms are compared by; one that could not be taken is no number.
    #[must_use]
    pub fn figures(&self) -> [f64; Figure::ALL.len()] {
        Figure::ALL.map(|figure| figure.of(self).unwrap_or(f64::NAN))
    }
}

/// A figure that grows with what an attacker learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// Area under the operating curve of the loss over the base model's, canaries that were in against those that were not.
    CanaryAuc,
    /// Mean exposure in bits of the canaries that were in.
    Exposure,
    /// Share of the canaries that were in whose second half the model completes greedily.
    Completed,
    /// Lower bound on epsilon from the canary texts.
    CanaryBound,
    /// Area under the operating curve of the loss over the base model's, people.
    PeopleAuc,
    /// True-positive rate at a false-positive rate of 1 %, the same attack on people.
    PeopleRate,
}

impl Figure {
    /// All figures.
    pub const ALL: [Self; 6] = [
        Self::CanaryAuc,
        Self::Exposure,
        Self::Completed,
        Self::CanaryBound,
        Self::PeopleAuc,
        Self::PeopleRate,
    ];

    /// Its name in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::CanaryAuc => "canaries, AUC",
            Self::Exposure => "exposure in bits",
            Self::Completed => "canaries completed",
            Self::CanaryBound => "lower bound on epsilon",
            Self::PeopleAuc => "people, AUC",
            Self::PeopleRate => "people, TPR at FPR 1 %",
        }
    }

    fn of(self, attacked: &Attacked) -> Option<f64> {
        let canaries = attacked.canaries.as_ref();
        let inside = |value: fn(&rldp::audit::ExtractionGroup) -> f64| {
            let groups = canaries?.groups.iter().filter(|group| group.included);
            let (sum, count) = groups.fold((0.0, 0), |(sum, count), group| {
                (sum + value(group), count + group.canaries)
            });
            (count > 0).then(|| sum / count as f64)
        };
        let people = attacked.people.as_ref();
        match self {
            Self::CanaryAuc => Some(reference(&canaries?.attacks)?.auc.estimate),
            Self::Exposure => inside(|group| group.exposure_extrapolated * group.canaries as f64),
            Self::Completed => inside(|group| group.completed as f64),
            Self::CanaryBound => Some(canaries?.bound?.epsilon_lower),
            Self::PeopleAuc => Some(reference(&people?.attacks)?.auc.estimate),
            Self::PeopleRate => {
                let rates = &reference(&people?.attacks)?.true_rates;
                let rate = rates.iter().find(|rate| rate.false_positive_rate == 0.01)?;
                Some(rate.true_positive_rate.estimate)
            }
        }
    }
}

/// The attack by the loss over the base model's: the strongest that needs no shadow models.
fn reference(attacks: &[NamedAttack]) -> Option<&MembershipReport> {
    let name = rldp_audit::attack::signals::Signal::Reference.name();
    let attack = attacks.iter().find(|attack| attack.name == name)?;
    Some(&attack.report)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rldp::audit::ExtractionGroup;
    use rldp_audit::attack::membership;

    /// Means over canaries and not over groups, of those that were in; no number where nothing was attacked.
    #[test]
    fn figures_are_those_of_the_canaries_that_were_in() {
        let group =
            |included: bool, canaries: usize, exposure: f64, completed: usize| ExtractionGroup {
                format: String::new(),
                bits: 20.0,
                repeats: 1,
                included,
                canaries,
                exposure_sampled: 0.0,
                exposure_extrapolated: exposure,
                exposure_largest: exposure,
                fit_p_value: 0.5,
                completed,
                sampled: 0,
            };
        let attack = |name: &str, members: &[f64]| NamedAttack {
            name: name.to_owned(),
            report: membership(members, &[0.0, 1.0], &[0.01], 0.95).unwrap(),
        };
        let attacked = Attacked {
            canaries: Some(CanaryReport {
                canaries: 6,
                attacks: vec![
                    attack("loss", &[0.5, 0.5]),
                    attack("reference", &[2.0, 3.0]),
                ],
                bound: None,
                groups: vec![
                    group(true, 3, 2.0, 0),
                    group(true, 1, 10.0, 1),
                    group(false, 2, 99.0, 2),
                ],
            }),
            people: None,
        };
        let [auc, exposure, completed, bound, people, rate] = attacked.figures();
        assert_eq!((auc, exposure, completed), (1.0, 4.0, 0.25));
        assert!(bound.is_nan() && people.is_nan() && rate.is_nan());
        let stored = attacked.without_curves();
        assert!(stored.canaries.unwrap().attacks[0].report.curve.is_empty());
    }
}
