//! One private step from the sample to the release, in which nothing can be left out or done twice.

use std::sync::atomic::{AtomicU64, Ordering};

use burn::tensor::{Device, Tensor};
use rldp_accounting::ledger::{Event, Ledger, LedgerWriter};
use rldp_accounting::pld::PldAccountant;
use rldp_accounting::{AccountingError, Segment};

use crate::accumulate::{Accumulator, StepRelease};
use crate::error::OptimError;
use crate::gradients::{GroupGradients, Layout, PerExampleGradients};
use crate::kernels::Kernel;
use crate::micro_batch::{MicroBatch, UnitRows};
use crate::plan::StepPlan;
use crate::private::Private;
use crate::random::Random;
use crate::source::UnitGradients;

/// What is told of every step before it is released.
pub trait Accountant {
    /// Records a step. If this fails, nothing is released.
    ///
    /// # Errors
    /// Whatever keeps the event from being recorded.
    fn record(&mut self, event: &Event) -> Result<(), AccountingError>;
}

/// On disk, flushed before the noise is drawn: a crash can only over-count.
impl Accountant for LedgerWriter {
    fn record(&mut self, event: &Event) -> Result<(), AccountingError> {
        self.append(event)
    }
}

/// In memory.
impl Accountant for Ledger {
    fn record(&mut self, event: &Event) -> Result<(), AccountingError> {
        event.check()?;
        self.events.push(event.clone());
        Ok(())
    }
}

/// Epsilon at once, for a run whose plan does not depend on what was released; nothing is kept.
impl Accountant for PldAccountant {
    fn record(&mut self, event: &Event) -> Result<(), AccountingError> {
        event.check()?;
        if let Event::Step {
            sampling_rate,
            noise_multiplier,
            ..
        } = event
        {
            self.compose(&Segment::new(*sampling_rate, *noise_multiplier, 1)?)?;
        }
        Ok(())
    }
}

/// A step that has sampled its batch and waits for the gradients.
///
/// The sample is drawn with the plan's own rate; every micro-batch of it can and must be added once; the accountant is told the
/// plan's own event; then noise is added once and the sum divided by the plan's expected batch. [`Accumulator`] is the part
/// below, for those who sample and account by themselves.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use rldp_accounting::pld::{PldAccountant, PldOptions};
/// use rldp_optim::{GroupGradients, Layout, SecureRandom, StepPlan, UnitRows};
///
/// let device = Device::default();
/// let (mut random, mut accountant) = (SecureRandom::new()?, PldAccountant::new(PldOptions::default())?);
/// let people = UnitRows::one_each(1000);
/// let plan = StepPlan::new(0.01, people.units(), 1.0, &[0.5])?;
/// let layout = Layout::new([("all", vec![3])]);
/// let (mut step, batches) = plan.begin(1, &layout, &people, 8, &mut random)?;
/// for batch in batches {
///     // One row of gradients for each of batch.rows(), padding included.
///     let gradients = GroupGradients::new("all").with(Tensor::<2>::ones([8, 3], &device));
///     step.add(batch, vec![gradients], None)?;
/// }
/// let release = step.release(&mut accountant, &mut random, &device)?;
/// assert!(release.private && accountant.epsilon_upper(1e-5)? > 0.0);
/// # Ok::<(), rldp_optim::OptimError>(())
/// ```
///
/// A micro-batch cannot come twice, and a step cannot be released twice:
/// ```compile_fail,E0382
/// fn twice(mut step: rldp_optim::Step, batch: rldp_optim::MicroBatch) -> Result<(), rldp_optim::OptimError> {
///     step.add(batch, vec![], None)?;
///     step.add(batch, vec![], None)
/// }
/// ```
/// ```compile_fail,E0382
/// use rldp_optim::{Accountant, OptimError, Random, Step};
/// fn twice(step: Step, ledger: &mut dyn Accountant, random: &mut dyn Random) -> Result<(), OptimError> {
///     let device = burn::tensor::Device::default();
///     step.release(ledger, random, &device)?;
///     step.release(ledger, random, &device)?;
///     Ok(())
/// }
/// ```
#[must_use = "a step that was begun must be released, even if its batch is empty"]
pub struct Step {
    accumulator: Accumulator,
    event: Event,
    id: u64,
    missing: usize,
}

/// Numbers steps within the process, so that a micro-batch finds the step it was sampled for.
static STEPS: AtomicU64 = AtomicU64::new(1);

impl Step {
    pub(crate) fn begin(
        plan: &StepPlan,
        number: u64,
        layout: &Layout,
        table: &UnitRows,
        rows: usize,
        random: &mut dyn Random,
    ) -> Result<(Self, Vec<MicroBatch>), OptimError> {
        let accumulator = Accumulator::begin(plan, layout)?;
        // Refused before anything is drawn, so that whether it is does not depend on the sample.
        if table.largest() > rows {
            return Err(OptimError::UnitTooLarge { rows });
        }
        let sampled = plan.sampler_over(table.units())?.sample(random);
        let mut batches = table.micro_batches(&sampled, rows)?;
        let id = STEPS.fetch_add(1, Ordering::Relaxed);
        for batch in &mut batches {
            batch.step = Some(id);
        }
        let step = Self {
            accumulator,
            event: plan.event(number),
            id,
            missing: batches.len(),
        };
        Ok((step, batches))
    }

    /// Uses this implementation of the kernels rather than the fastest for the device.
    pub fn with_kernel(mut self, kernel: Kernel) -> Self {
        self.accumulator = self.accumulator.with_kernel(kernel);
        self
    }

    /// Clips and adds a micro-batch: per-example gradients with one row for each of [`MicroBatch::rows`], padding included;
    /// `losses`, one per row, exactly if the plan pays for a loss.
    ///
    /// # Errors
    /// [`OptimError::ForeignMicroBatch`]; those of [`Accumulator::add`].
    pub fn add(
        &mut self,
        batch: MicroBatch,
        gradients: Vec<GroupGradients>,
        losses: Option<Private<Tensor<1>>>,
    ) -> Result<(), OptimError> {
        self.check_origin(&batch)?;
        let gradients = PerExampleGradients::new(gradients, batch.row_map().clone())?;
        self.accumulator.add(&gradients, losses)?;
        self.missing -= 1;
        Ok(())
    }

    /// As [`Step::add`], for gradients in any form; `losses` has one number per unit.
    ///
    /// # Errors
    /// [`OptimError::ForeignMicroBatch`], also for another number of units; those of [`Accumulator::add_units`].
    pub fn add_units<G: UnitGradients + ?Sized>(
        &mut self,
        batch: MicroBatch,
        gradients: &G,
        losses: Option<Private<Vec<f64>>>,
    ) -> Result<(), OptimError> {
        self.check_origin(&batch)?;
        if gradients.units() != batch.row_map().units() {
            return Err(OptimError::ForeignMicroBatch);
        }
        self.accumulator.add_units(gradients, losses)?;
        self.missing -= 1;
        Ok(())
    }

    fn check_origin(&self, batch: &MicroBatch) -> Result<(), OptimError> {
        if batch.step == Some(self.id) {
            Ok(())
        } else {
            Err(OptimError::ForeignMicroBatch)
        }
    }

    /// Tells the accountant, adds the noise and divides by the expected batch size.
    ///
    /// # Guarantee
    /// The release is dominated by the recorded event, if `random` (here and in [`StepPlan::begin`]) is a
    /// [`crate::SecureRandom`].
    ///
    /// # Errors
    /// [`OptimError::MissingMicroBatch`] if one was not added; the accountant's refusal. Nothing is released then.
    pub fn release<A: Accountant + ?Sized>(
        self,
        accountant: &mut A,
        random: &mut dyn Random,
        device: &Device,
    ) -> Result<StepRelease, OptimError> {
        if self.missing > 0 {
            return Err(OptimError::MissingMicroBatch);
        }
        accountant.record(&self.event)?;
        self.accumulator.release(random, device)
    }
}
