//! Attacks on what a run released: what could someone learn who has the adapter?
//!
//! - [`attack_people`]: membership inference on the run's own people, who were put into training or held out by coin flip (a keyed
//!   hash), and the overlap of what the model writes with what it was trained on. Whatever comes out depends on the private data
//!   beyond the run's release: **no guarantee covers it**. It is for the data's owner.
//! - [`attack_canaries`]: membership, exposure and extraction of canaries, and the lower bound on epsilon that one run gives. Canaries
//!   are independent of the private data, so this is post-processing of the released adapter: the run's guarantee covers it.
//! - [`attack_mechanism`]: the run's own steps, as its ledger has them, taken again on gradients that are all canaries. No data take part.
//!
//! [`rldp_audit`] holds the methods; this module computes what they need of a language model.

mod canaries;
mod losses;
mod mechanism;
mod people;
mod report;
mod shadows;

use serde::{Deserialize, Serialize};

pub use canaries::{CanaryReport, ExtractionGroup, attack_canaries, canary_units};
pub use losses::token_losses;
pub use mechanism::{MechanismReport, attack_mechanism, plan_of_record};
pub use people::{PeopleReport, Person, attack_people, members_and_others};
pub use report::{audit_section, operating_curves};
pub use shadows::{ShadowSteps, ShadowTraining, train_shadows};

use rldp_audit::attack::MembershipReport;

/// Settings of the attacks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttackOptions {
    /// Confidence of every interval and lower bound.
    pub confidence: f64,
    /// False-positive rates at which true-positive rates are given.
    pub false_positive_rates: Vec<f64>,
    /// Rows computed at once.
    pub micro_batch: usize,
    /// Members attacked at most, and others at most.
    pub most_people: usize,
    /// Other secrets of a canary's space that its loss is compared with.
    pub exposure_samples: usize,
    /// Texts sampled for each canary format, and for the overlap with the training text.
    pub generations: usize,
}

impl Default for AttackOptions {
    fn default() -> Self {
        Self {
            confidence: 0.95,
            false_positive_rates: vec![0.001, 0.01],
            micro_batch: 32,
            most_people: 2000,
            exposure_samples: 1000,
            generations: 32,
        }
    }
}

/// A named attack and what it achieves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NamedAttack {
    /// Its name.
    pub name: String,
    /// What it achieves.
    pub report: MembershipReport,
}
