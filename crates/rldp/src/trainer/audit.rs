//! The mechanism's audit of itself, before anything private is touched.

use burn::tensor::Device;
use rldp_optim::{Random, StepPlan};

use crate::error::RldpError;
use crate::report::SelfAudit;

/// Runs of the mechanism that are attacked: about a second on two cores.
pub(super) const TRIALS: usize = 2000;

/// Attacks the run's own first step with a worst-case canary, on made-up gradients.
///
/// # Errors
/// [`RldpError::SelfAuditFailed`] if the attack proves more than is claimed; errors of the mechanism.
pub(super) fn self_audit(
    plan: &StepPlan,
    trials: usize,
    delta: f64,
    device: &Device,
    random: &mut dyn Random,
) -> Result<SelfAudit, RldpError> {
    let audit = rldp_audit::SelfAudit::new(trials)?.with_delta(delta)?;
    let found = audit.run(plan, device, random)?;
    if !found.passed {
        return Err(RldpError::SelfAuditFailed {
            lower_bound: found.lower_bound_epsilon,
            claimed: found.claimed_epsilon,
        });
    }
    Ok(SelfAudit {
        claimed_epsilon: found.claimed_epsilon,
        lower_bound: found.lower_bound_epsilon,
        confidence: found.confidence,
        trials: found.trials as u64,
        method: "One step of this run's own mechanism, with the batch known but for a worst-case canary whose gradient \
                 fills every clipping norm; the claim is for that one step, without the help of sampling."
            .to_owned(),
    })
}
