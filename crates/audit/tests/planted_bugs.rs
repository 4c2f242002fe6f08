//! The audit passes the real step and catches each of the classic errors when it is planted.
#![allow(clippy::unwrap_used, missing_docs)]

use burn::tensor::Device;
use rldp_audit::training::{Batches, PoissonBatches};
use rldp_audit::{AuditError, Mechanism, SelfAudit, SelfAuditReport, StepMechanism, TrainingAudit};
use rldp_optim::random::standard_normals;
use rldp_optim::{Random, SecureRandom, StepPlan, Telemetry};

fn device() -> Device {
    Device::default()
}

fn plan(noise_multiplier: f64, groups: usize) -> StepPlan {
    StepPlan::new(0.5, 8, noise_multiplier, &vec![0.3; groups]).unwrap()
}

/// Audits the real step under `actual` against a claim.
fn audit(actual: &StepPlan, claimed: f64, trials: usize) -> SelfAuditReport {
    let mut random = SecureRandom::new().unwrap();
    let mut mechanism = StepMechanism::new(actual, &device(), &mut random).unwrap();
    SelfAudit::new(trials)
        .unwrap()
        .run_on(&mut mechanism, 1.0 / claimed)
        .unwrap()
}

#[test]
fn the_plain_gaussian_step_passes_and_the_attack_finds_most_of_its_epsilon() {
    for noise_multiplier in [0.5, 1.0, 2.0] {
        let mut random = SecureRandom::new().unwrap();
        let audit = SelfAudit::new(80_000).unwrap();
        let report = audit
            .run(&plan(noise_multiplier, 1), &device(), &mut random)
            .unwrap();
        assert!(
            report.passed && report.lower_bound_epsilon <= report.claimed_epsilon,
            "{report:?}"
        );
        assert!(
            report.lower_bound_epsilon >= 0.7 * report.claimed_epsilon,
            "no power: {report:?}"
        );
        assert!(
            report.lower_bound_epsilon_any_mechanism <= report.claimed_epsilon,
            "{report:?}"
        );
    }
}

/// Groups of different weight and telemetry together still make one Gaussian of the planned noise.
#[test]
fn a_step_with_groups_and_telemetry_passes_and_is_fully_used_by_the_attack() {
    let telemetry = Telemetry {
        clip_counts: 0.2,
        loss: 0.2,
        loss_bound: 5.0,
    };
    let plan = plan(0.7, 4)
        .with_noise_weights(&[1.0, 2.0, 3.0, 4.0])
        .unwrap()
        .with_telemetry(telemetry)
        .unwrap();
    let mut random = SecureRandom::new().unwrap();
    let report = SelfAudit::new(40_000)
        .unwrap()
        .run(&plan, &device(), &mut random)
        .unwrap();
    assert!(report.passed, "{report:?}");
    assert!(
        report.lower_bound_epsilon >= 0.7 * report.claimed_epsilon,
        "no power: {report:?}"
    );
}

#[test]
fn no_lower_bound_exceeds_its_claim_over_many_audits() {
    for run in 0..20 {
        let plan = plan(0.4 + 0.1 * f64::from(run), 1 + run as usize % 3);
        let report = audit(&plan, plan.noise_multiplier(), 1000);
        assert!(report.passed, "{report:?}");
    }
}

#[test]
fn noise_ten_percent_too_small_is_caught() {
    let report = audit(&plan(0.45, 1), 0.5, 80_000);
    assert!(
        !report.passed && report.lower_bound_epsilon > report.claimed_epsilon,
        "{report:?}"
    );
}

/// Real releases, with the numbers at these positions taken from a step without noise.
struct OneGroupWithoutNoise<'a> {
    real: StepMechanism<'a>,
    bare: StepMechanism<'a>,
    group: usize,
}

impl Mechanism for OneGroupWithoutNoise<'_> {
    fn release(&mut self, canary: bool) -> Result<Vec<f64>, AuditError> {
        let mut observed = self.real.release(canary)?;
        let bare = self.bare.release(canary)?;
        let positions = 2 * self.group..2 * self.group + 2;
        // The bare step's numbers are in units of its own tiny noise.
        observed[positions.clone()]
            .copy_from_slice(&bare[positions].iter().map(|x| x * 1e-4).collect::<Vec<_>>());
        Ok(observed)
    }

    fn claimed_weights(&self) -> Vec<f64> {
        self.real.claimed_weights()
    }
}

#[test]
fn one_group_without_noise_is_caught() {
    let (mut first, mut second) = (SecureRandom::new().unwrap(), SecureRandom::new().unwrap());
    let mut broken = OneGroupWithoutNoise {
        real: StepMechanism::new(&plan(1.0, 12), &device(), &mut first).unwrap(),
        bare: StepMechanism::new(&plan(1e-4, 12), &device(), &mut second).unwrap(),
        group: 7,
    };
    let report = SelfAudit::new(2000)
        .unwrap()
        .run_on(&mut broken, 1.0)
        .unwrap();
    assert!(!report.passed, "{report:?}");
}

/// The classic of per-group clipping: every group gets the noise that would be right if it were alone.
#[test]
fn groups_accounted_as_if_each_were_alone_are_caught() {
    // Each of 4 groups at noise multiplier 1 is a step of 1/2.
    let report = audit(&plan(0.5, 4), 1.0, 4000);
    assert!(!report.passed, "{report:?}");
}

/// Divides by the number of units in the batch, the canary included, instead of the expected one.
struct DividedByRealised<'a> {
    real: StepMechanism<'a>,
    expected: f64,
}

impl Mechanism for DividedByRealised<'_> {
    fn release(&mut self, canary: bool) -> Result<Vec<f64>, AuditError> {
        let realised = if canary { 4.0 } else { 3.0 };
        Ok(self
            .real
            .release(canary)?
            .into_iter()
            .map(|value| value * self.expected / realised)
            .collect())
    }

    fn claimed_weights(&self) -> Vec<f64> {
        self.real.claimed_weights()
    }
}

#[test]
fn division_by_the_realised_batch_size_is_caught() {
    let plan = plan(0.5, 1);
    let mut random = SecureRandom::new().unwrap();
    let real = StepMechanism::new(&plan, &device(), &mut random).unwrap();
    let mut broken = DividedByRealised {
        real,
        expected: plan.expected_batch(),
    };
    let report = SelfAudit::new(40_000)
        .unwrap()
        .run_on(&mut broken, 2.0)
        .unwrap();
    assert!(!report.passed, "{report:?}");
}

#[test]
fn telemetry_that_is_not_paid_for_is_caught() {
    let telemetry = Telemetry {
        clip_counts: 0.2,
        loss: 0.2,
        loss_bound: 5.0,
    };
    let actual = plan(0.5, 2).with_telemetry(telemetry).unwrap();
    // The claim counts the gradients alone.
    let claimed = 0.5 / 0.6_f64.sqrt();
    let report = audit(&actual, claimed, 40_000);
    assert!(!report.passed, "{report:?}");
}

/// Clips the mean gradient instead of every unit's.
struct ClippedAfterAveraging {
    random: SecureRandom,
    sigma: f64,
}

impl Mechanism for ClippedAfterAveraging {
    fn release(&mut self, canary: bool) -> Result<Vec<f64>, AuditError> {
        let (norm, batch) = (0.3, 4.0);
        // Three units of size 3 along one coordinate, the canary of size 300 along the other.
        let mean = if canary {
            [300.0 / 4.0, 9.0 / 4.0]
        } else {
            [0.0, 3.0]
        };
        let length = f64::hypot(mean[0], mean[1]);
        let noise = standard_normals(&mut self.random, 2);
        Ok(mean
            .iter()
            .zip(noise)
            .map(|(m, z)| m * norm / length * batch / (self.sigma * norm) + z)
            .collect())
    }

    fn claimed_weights(&self) -> Vec<f64> {
        vec![1.0, 0.0]
    }
}

#[test]
fn clipping_after_averaging_is_caught() {
    let mut broken = ClippedAfterAveraging {
        random: SecureRandom::new().unwrap(),
        sigma: 1.0,
    };
    let report = SelfAudit::new(2000)
        .unwrap()
        .run_on(&mut broken, 1.0)
        .unwrap();
    assert!(!report.passed, "{report:?}");
}

#[test]
fn audits_that_cannot_say_anything_are_refused() {
    assert!(SelfAudit::new(10).is_err());
    assert!(SelfAudit::default().with_confidence(1.0).is_err());
    assert!(SelfAudit::default().with_delta(0.0).is_err());
}

/// Every unit in exactly one batch, as an epoch of a shuffled data loader has it, accounted as if it were Poisson sampling.
#[derive(Default)]
struct Shuffled {
    batches: Vec<Vec<usize>>,
}

impl Batches for Shuffled {
    fn begin(&mut self, units: usize, random: &mut dyn Random) {
        self.batches = vec![Vec::new(); 10];
        for unit in 0..units {
            self.batches[(random.next_u64() % 10) as usize].push(unit);
        }
    }

    fn next(
        &mut self,
        _plan: &StepPlan,
        _random: &mut dyn Random,
    ) -> Result<Vec<usize>, AuditError> {
        Ok(self.batches.pop().unwrap_or_default())
    }
}

/// Ten steps that each take a tenth of the units.
fn epoch() -> Vec<StepPlan> {
    vec![StepPlan::new(0.1, 10, 0.25, &[0.3]).unwrap(); 10]
}

#[test]
fn shuffling_instead_of_poisson_sampling_is_caught() {
    let mut random = SecureRandom::new().unwrap();
    let audit = TrainingAudit::new(4000, 1e-5).unwrap();
    let report = audit
        .run(&epoch(), &mut Shuffled::default(), &device(), &mut random)
        .unwrap();
    assert!(!report.passed, "{report:?}");
}

#[test]
fn poisson_sampling_passes_where_shuffling_fails_and_the_audit_has_power() {
    let mut random = SecureRandom::new().unwrap();
    let audit = TrainingAudit::new(4000, 1e-5).unwrap();
    let report = audit
        .run(
            &epoch(),
            &mut PoissonBatches::default(),
            &device(),
            &mut random,
        )
        .unwrap();
    assert!(report.passed, "{report:?}");
    // Without noise the canary is seen whenever it is sampled, 1 - 0.9^10 = 0.65 of the runs. The bound's law, from 20,000
    // simulated choices of the threshold and binomial counts at each: median 3.0, below 2.1 with probability under 4e-7.
    assert!(report.claims[0].lower_bound > 2.1, "no power: {report:?}");
}

/// Takes the last unit, the canary if it is there, into every batch.
#[derive(Default)]
struct AlwaysTheLast(usize);

impl Batches for AlwaysTheLast {
    fn begin(&mut self, units: usize, _random: &mut dyn Random) {
        self.0 = units;
    }

    fn next(&mut self, plan: &StepPlan, random: &mut dyn Random) -> Result<Vec<usize>, AuditError> {
        let last = self.0 - 1;
        Ok((0..self.0)
            .filter(|unit| *unit == last || random.bernoulli(plan.sampling_rate()))
            .collect())
    }
}

#[test]
fn a_unit_that_is_sampled_too_often_is_caught() {
    let mut random = SecureRandom::new().unwrap();
    let plans = vec![StepPlan::new(0.1, 10, 1.0, &[0.3]).unwrap(); 10];
    let report = TrainingAudit::new(4000, 1e-5)
        .unwrap()
        .run(
            &plans,
            &mut AlwaysTheLast::default(),
            &device(),
            &mut random,
        )
        .unwrap();
    assert!(!report.passed, "{report:?}");
}

/// A run with groups, telemetry and noise that changes from step to step passes.
#[test]
fn a_run_of_different_steps_passes() {
    let telemetry = Telemetry {
        clip_counts: 0.1,
        loss: 0.1,
        loss_bound: 5.0,
    };
    let plans: Vec<StepPlan> = [0.8, 1.0, 1.3]
        .iter()
        .map(|sigma| {
            StepPlan::new(0.4, 10, *sigma, &[0.3, 0.1])
                .unwrap()
                .with_noise_weights(&[1.0, 2.0])
                .unwrap()
                .with_telemetry(telemetry)
                .unwrap()
        })
        .collect();
    let mut random = SecureRandom::new().unwrap();
    let report = TrainingAudit::new(4000, 1e-5)
        .unwrap()
        .run(
            &plans,
            &mut PoissonBatches::default(),
            &device(),
            &mut random,
        )
        .unwrap();
    assert!(report.passed, "{report:?}");
    assert!(TrainingAudit::new(10, 1e-5).is_err());
    assert!(
        TrainingAudit::new(400, 1e-5)
            .unwrap()
            .run(&[], &mut PoissonBatches::default(), &device(), &mut random)
            .is_err()
    );
}
