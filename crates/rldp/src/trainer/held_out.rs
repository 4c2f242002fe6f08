//! Losses of the held-out people, released under their own budget (design.md, section 3, "Held-out people").

use burn::tensor::Device;
use rldp_accounting::ledger::{Event, LedgerWriter};
use rldp_accounting::{PrivacyTarget, calibrate};
use rldp_models::LanguageModel;
use rldp_optim::query::{noise_of_mean, noisy_count, noisy_mean};
use rldp_optim::{Private, Random, Released};

use super::examples::{TokenUnit, micro_batches};
use crate::error::RldpError;

/// One held-out part with the queries it may still answer.
pub struct HeldOut {
    part: &'static str,
    units: Vec<TokenUnit>,
    loss_bound: f64,
    noise_multiplier: f64,
    left: u64,
    /// Released number of units, at least one.
    count: Option<f64>,
}

/// A released mean loss and the standard deviation of its noise, in nats.
#[derive(Clone, Copy, Debug)]
pub struct ReleasedLoss {
    /// The mean of the units' clipped losses, noised.
    pub loss: Released<f64>,
    /// Standard deviation of the noise in it.
    pub noise: f64,
}

impl HeldOut {
    /// Prepares a part for `queries` losses, each unit's clipped to `loss_bound` nats. One query more is spent at
    /// once, on the number of units: dividing by the released number keeps the mean right without telling how many
    /// people the part holds.
    ///
    /// # Guarantee
    /// All figures ever released from this part are `queries + 1` plain Gaussian mechanisms on its units, together
    /// `target`-DP for adding or removing one unit of the part, whatever the model they were computed with was
    /// trained on (parallel composition with the other parts). Each is in the ledger before it is released.
    ///
    /// # Errors
    /// [`RldpError::Accounting`] if the target cannot be met or the ledger not written, [`RldpError::Optim`] from the
    /// mechanism.
    pub fn new(
        part: &'static str,
        units: Vec<TokenUnit>,
        target: &PrivacyTarget,
        queries: u64,
        loss_bound: f64,
        ledger: &mut LedgerWriter,
        random: &mut dyn Random,
    ) -> Result<Self, RldpError> {
        let mut part = Self::prepare(part, units, target, queries, loss_bound)?;
        part.release_count(ledger, random)?;
        Ok(part)
    }

    /// The same without the query of the number of units, which must follow before any loss.
    ///
    /// # Errors
    /// [`RldpError::Accounting`] if the target cannot be met.
    pub fn prepare(
        part: &'static str,
        units: Vec<TokenUnit>,
        target: &PrivacyTarget,
        queries: u64,
        loss_bound: f64,
    ) -> Result<Self, RldpError> {
        Ok(Self {
            part,
            units,
            loss_bound,
            noise_multiplier: calibrate::gaussian_queries(target, queries + 1)?,
            left: queries + 1,
            count: None,
        })
    }

    /// Goes on where an interrupted run stopped: `spent` queries are in the ledger, and `count` is the released number of
    /// units if it was kept.
    pub fn restore(&mut self, spent: u64, count: Option<f64>) {
        self.left = self.left.saturating_sub(spent);
        self.count = count;
    }

    /// The released number of units.
    #[must_use]
    pub fn count(&self) -> Option<f64> {
        self.count
    }

    /// The exact mean loss: for seeded studies only.
    ///
    /// # Errors
    /// As [`public_loss`].
    pub(super) fn exact_loss<M: LanguageModel>(
        &self,
        model: &M,
        micro_batch: usize,
        device: &Device,
    ) -> Result<f64, RldpError> {
        public_loss(model, &self.units, micro_batch, device)
    }

    /// Queries that may still be asked.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Releases the number of units.
    ///
    /// # Errors
    /// As [`HeldOut::release_loss`].
    pub fn release_count(
        &mut self,
        ledger: &mut LedgerWriter,
        random: &mut dyn Random,
    ) -> Result<(), RldpError> {
        self.spend()?;
        ledger.append(&self.event("number of units"))?;
        let count = Private::new(self.units.len() as u64);
        let released = noisy_count(count, self.noise_multiplier, random)?;
        self.count = Some(released.value().max(1.0));
        Ok(())
    }

    /// What the ledger says of a query of this name.
    #[must_use]
    pub fn event(&self, name: &str) -> Event {
        Event::Query {
            part: self.part.to_owned(),
            name: name.to_owned(),
            noise_multiplier: self.noise_multiplier,
        }
    }

    fn spend(&mut self) -> Result<(), RldpError> {
        self.left = self
            .left
            .checked_sub(1)
            .ok_or(RldpError::QueriesSpent { part: self.part })?;
        Ok(())
    }

    /// The part's name.
    #[must_use]
    pub fn part(&self) -> &'static str {
        self.part
    }

    /// Standard deviation of the noise in a released mean loss, in nats; `None` before the number of units was released.
    #[must_use]
    pub fn loss_noise(&self) -> Option<f64> {
        self.count
            .map(|count| noise_of_mean(self.loss_bound, count, self.noise_multiplier))
    }

    /// Releases the mean of the units' losses under `model`.
    ///
    /// # Errors
    /// [`RldpError::QueriesSpent`] when all queries were answered, or before the number of units was; nothing is released
    /// then. Errors of the ledger and of the mechanism.
    pub fn release_loss<M: LanguageModel>(
        &mut self,
        model: &M,
        micro_batch: usize,
        device: &Device,
        ledger: &mut LedgerWriter,
        random: &mut dyn Random,
    ) -> Result<ReleasedLoss, RldpError> {
        let count = self
            .count
            .ok_or(RldpError::QueriesSpent { part: self.part })?;
        self.spend()?;
        let losses = unit_losses(model, &self.units, micro_batch, device)?;
        ledger.append(&self.event("mean loss"))?;
        let loss = noisy_mean(
            Private::new(losses),
            self.loss_bound,
            count,
            self.noise_multiplier,
            random,
        )?;
        Ok(ReleasedLoss {
            loss,
            noise: noise_of_mean(self.loss_bound, count, self.noise_multiplier),
        })
    }
}

/// The exact mean of the units' losses on public text.
///
/// # Errors
/// [`RldpError::Model`] for a row without tokens.
pub fn public_loss<M: LanguageModel>(
    model: &M,
    units: &[TokenUnit],
    micro_batch: usize,
    device: &Device,
) -> Result<f64, RldpError> {
    let losses = unit_losses(model, units, micro_batch, device)?;
    Ok(losses.iter().sum::<f64>() / losses.len().max(1) as f64)
}

/// Every unit's loss, the mean over its rows, in no particular order; units without rows have none. Raw values: for
/// mechanisms only.
fn unit_losses<M: LanguageModel>(
    model: &M,
    units: &[TokenUnit],
    micro_batch: usize,
    device: &Device,
) -> Result<Vec<f64>, RldpError> {
    let references: Vec<&TokenUnit> = units.iter().collect();
    let mut losses = Vec::with_capacity(units.len());
    for batch in micro_batches(&references, micro_batch, device)? {
        let rows = model.per_example_loss(&batch.batch).into_data();
        let mut own = vec![0.0; batch.units];
        for (index, loss) in rows.iter::<f32>().enumerate() {
            own[batch.unit_of_row[index]] +=
                f64::from(batch.weight_of_row[index]) * f64::from(loss);
        }
        losses.extend(own);
    }
    Ok(losses)
}
