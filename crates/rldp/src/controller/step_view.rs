//! What a controller may see of a single step.

use rldp_optim::{StepPlan, StepRelease};

use super::Visible;

/// One step as a controller sees it, right after it was taken: what the step released, and public numbers.
#[derive(Clone, Copy, Debug)]
pub struct StepView<'a> {
    /// Steps taken, this one included.
    pub step: u64,
    /// Steps of the run.
    pub steps: u64,
    /// Released share of clipped units in every clipping group, if it was paid for.
    pub clipped_fractions: Option<&'a [Visible]>,
    /// The numbers that the step was taken with.
    pub plan: &'a StepPlan,
    /// Everything that the step released, per adapter, before any filter.
    pub release: &'a StepRelease,
}
