//! One private step: sample, per-example gradients, clip, ledger, noise, update.

use std::path::Path;

use burn::module::ParamGroup;
use burn::optim::ModuleOptimizer;
use burn::tensor::{Device, Tensor};
use rldp_accounting::Segment;
use rldp_accounting::ledger::LedgerWriter;
use rldp_lora::{AdapterRef, adapter_parameters, adapters, set_adapters};
use rldp_models::{Activations, LanguageModel, per_example_pass};
use rldp_optim::{
    Accumulator, Beta1, DpOptimizer, GroupGradients, KnownNoise, ParameterGroups, ParameterSlot,
    PerExampleGradients, Private, Random, RowMap, SteeredAdam, StepPlan, StepRelease, Telemetry,
};

use super::config::TrainerConfig;
use super::examples::{MicroBatch, TokenUnit, micro_batches};
use super::post::PostState;
use super::trained::{restore_optimizer, save_optimizer};
use crate::controller::{Decision, PostProcessing};
use crate::error::RldpError;

/// Added to the root of Adam's second moment: far below the noise of any released gradient.
const ADAM_EPSILON: f64 = 1e-12;

/// The training part with everything a step needs.
pub struct PrivateStep {
    units: Vec<TokenUnit>,
    population: usize,
    micro_batch: usize,
    activations: Activations,
    telemetry: Telemetry,
    optimizer: DpOptimizer,
    beta_1: Beta1,
    /// What each adapter's optimizer is told of the noise.
    noise: Vec<KnownNoise>,
    post: PostState,
    post_processing: PostProcessing,
    /// Steps of the whole run.
    steps: u64,
    references: Vec<AdapterRef>,
    device: Device,
}

/// The name of the one group of a flat plan.
const ALL: &str = "all";

impl PrivateStep {
    /// Prepares steps on `model`'s adapters. `population` is the public number of units that the training part is
    /// expected to hold.
    ///
    /// # Errors
    /// [`RldpError::NoAdapters`]; [`RldpError::OutOfRange`] for a batch larger than the population.
    pub fn new<M: LanguageModel>(
        model: &M,
        units: Vec<TokenUnit>,
        population: usize,
        config: &TrainerConfig,
        device: &Device,
    ) -> Result<Self, RldpError> {
        let references = adapter_parameters(model);
        if references.is_empty() {
            return Err(RldpError::NoAdapters);
        }
        let sampling_rate = config.batch_size / population as f64;
        if sampling_rate > 1.0 {
            return Err(RldpError::OutOfRange {
                what: "batch size",
                value: config.batch_size,
                range: "(0, units in training]",
            });
        }
        let mut groups = ParameterGroups::new();
        for adapter in &references {
            let [inputs, rank] = adapter.a_shape;
            let [_, outputs] = adapter.b_shape;
            let mut slots = Vec::with_capacity(2);
            if !adapter.freeze_a {
                slots.push(ParameterSlot {
                    id: adapter.a_id,
                    shape: vec![1, inputs, rank],
                });
            }
            slots.push(ParameterSlot {
                id: adapter.b_id,
                shape: vec![1, rank, outputs],
            });
            groups = groups.with(adapter.name.clone(), slots);
        }
        let beta_1 = Beta1::new(0.9);
        let adam = || SteeredAdam::new(beta_1.clone(), config.beta_2, ADAM_EPSILON);
        let mut inner: ModuleOptimizer = adam().into();
        let mut noise = Vec::with_capacity(references.len());
        for layer in adapters(model).layers {
            let known = KnownNoise::new();
            let group = ParamGroup::ids_from_module(layer);
            inner = inner.with_group(group, adam().with_known_noise(known.clone()), None);
            noise.push(known);
        }
        Ok(Self {
            units,
            population,
            micro_batch: config.micro_batch,
            activations: config.activations(),
            telemetry: Telemetry {
                clip_counts: config.clip_count_share,
                loss: config.training_loss_share,
                loss_bound: config.loss_bound,
            },
            optimizer: DpOptimizer::new(inner, groups),
            beta_1,
            noise,
            post: PostState::default(),
            post_processing: config.post_processing,
            steps: config.steps,
            references,
            device: device.clone(),
        })
    }

    /// The adapters, in the order of the clipping groups.
    #[must_use]
    pub fn references(&self) -> &[AdapterRef] {
        &self.references
    }

    /// Where steps are computed.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Sets the post-processing of the steps to come.
    pub fn set_post_processing(&mut self, post_processing: PostProcessing) {
        self.post_processing = post_processing;
    }

    /// The model with the parameters that are its result so far, where these are an average over steps; `None` where they
    /// are the model's own.
    ///
    /// # Errors
    /// None in practice.
    pub fn averaged<M: LanguageModel>(&self, model: &M) -> Result<Option<M>, RldpError> {
        self.post.averaged(model)
    }

    /// The plan of a step that plays `segment` under `decision`. What the decision spends on telemetry is part of the
    /// plan's effective noise multiplier, which stays the segment's.
    ///
    /// # Errors
    /// [`RldpError::AdapterCount`] for a decision about another number of clipping groups; [`RldpError::Optim`] for numbers
    /// out of range.
    pub fn plan(&self, segment: &Segment, decision: &Decision) -> Result<StepPlan, RldpError> {
        for (what, values) in [
            ("the clipping norms", &decision.clipping_norms),
            ("the noise weights", &decision.noise_weights),
        ] {
            let expected = if decision.clipping.flat {
                1
            } else {
                self.references.len()
            };
            if values.len() != expected {
                return Err(RldpError::AdapterCount {
                    what,
                    found: values.len(),
                    expected,
                });
            }
        }
        let plan = StepPlan::new(
            segment.sampling_rate(),
            self.population,
            segment.noise_multiplier(),
            &decision.clipping_norms,
        )?;
        let telemetry = Telemetry {
            clip_counts: decision.clip_counts.share(
                self.telemetry.clip_counts,
                segment.noise_multiplier(),
                decision.clipping_norms.len(),
            ),
            ..self.telemetry
        };
        Ok(plan
            .with_rule(decision.clipping.rule())?
            .with_noise_weights(&decision.noise_weights)?
            .with_telemetry(telemetry)?)
    }

    /// Takes one step under `plan` and gives what was released. The ledger's line is on disk before anything noisy
    /// exists.
    ///
    /// # Guarantee
    /// The release, and the model it moves, are dominated by one step of [`StepPlan::segment`].
    ///
    /// # Errors
    /// Errors of the ledger, of the gradients and of the mechanism; the model is unchanged then, and the step counts
    /// as spent if its line was written.
    #[allow(clippy::too_many_arguments)]
    pub fn take<M: LanguageModel>(
        &mut self,
        number: u64,
        model: &mut M,
        plan: &StepPlan,
        learning_rate: f64,
        beta_1: f64,
        ledger: &mut LedgerWriter,
        random: &mut dyn Random,
    ) -> Result<StepRelease, RldpError> {
        let release = self.release(number, model, plan, ledger, random)?;
        self.apply(model, &release, learning_rate, beta_1)?;
        Ok(release)
    }

    /// The first half of [`PrivateStep::take`]: samples, clips, writes the ledger's line and releases the noisy gradient,
    /// in one group per adapter also where clipping is flat.
    ///
    /// # Errors
    /// As [`PrivateStep::take`].
    pub fn release<M: LanguageModel>(
        &mut self,
        number: u64,
        model: &M,
        plan: &StepPlan,
        ledger: &mut LedgerWriter,
        random: &mut dyn Random,
    ) -> Result<StepRelease, RldpError> {
        // With the plan's own rate: what is sampled is what is accounted.
        let sampled: Vec<&TokenUnit> = plan
            .sampler_over(self.units.len())?
            .sample(random)
            .into_iter()
            .map(|index| &self.units[index])
            .collect();
        let layout = self.optimizer.layout();
        let flat = plan.clipping_norms().len() < self.references.len();
        let mut accumulator = if flat {
            Accumulator::begin(plan, &layout.flattened(ALL))?
        } else {
            Accumulator::begin(plan, &layout)?
        };
        let ahead = self.post.ahead(model, &self.post_processing)?;
        let model = ahead.as_ref().unwrap_or(model);
        for batch in micro_batches(&sampled, self.micro_batch, &self.device)? {
            let losses_wanted = plan.loss_noise_multiplier().is_some();
            let (gradients, losses) = per_unit_gradients(model, &batch, self.activations)?;
            let gradients = if flat {
                gradients.flattened(ALL)
            } else {
                gradients
            };
            accumulator.add(&gradients, losses_wanted.then(|| Private::new(losses)))?;
        }
        ledger.append(&plan.event(number))?;
        let release = accumulator.release(random, &self.device)?;
        Ok(if flat { release.cut(&layout)? } else { release })
    }

    /// The second half of [`PrivateStep::take`]: moves the adapters by the released gradient.
    ///
    /// # Errors
    /// A release of other groups.
    pub fn apply<M: LanguageModel>(
        &mut self,
        model: &mut M,
        release: &StepRelease,
        learning_rate: f64,
        beta_1: f64,
    ) -> Result<(), RldpError> {
        self.beta_1.set(beta_1);
        let post = self.post_processing;
        let release = self.post.filtered(release, &post)?;
        for (known, group) in self.noise.iter().zip(&release.groups) {
            known.set(group.noise_std * group.noise_std, post.noise_correction);
        }
        let before = adapters(model);
        let moved = self
            .optimizer
            .step(learning_rate, before.clone(), &release)?;
        set_adapters(model, moved)?;
        self.post
            .moved(&before, &adapters(model), &post, self.steps);
        Ok(())
    }

    /// Writes the state of the post-processing into a checkpoint's folder.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn save_post_processing(&self, folder: &Path) -> Result<(), RldpError> {
        self.post.save(folder)
    }

    /// Takes over what [`PrivateStep::save_post_processing`] wrote.
    ///
    /// # Errors
    /// A file that cannot be read, or is damaged.
    pub fn restore_post_processing(&mut self, folder: &Path) -> Result<(), RldpError> {
        self.post = PostState::restore(folder, &self.device)?;
        Ok(())
    }

    /// Writes the inner optimizer's state into a checkpoint's folder, for [`PrivateStep::restore_optimizer`].
    ///
    /// # Errors
    /// [`RldpError::Damaged`] with the cause if it cannot be written.
    pub fn save_optimizer(&self, folder: &Path) -> Result<(), RldpError> {
        save_optimizer(&self.optimizer, folder)
    }

    /// Takes the inner optimizer's state from a checkpoint's folder: from here on it moves the adapters exactly as the one
    /// that was saved.
    ///
    /// # Errors
    /// [`RldpError::Damaged`] for a file that is no optimizer state of these adapters.
    pub fn restore_optimizer(&mut self, folder: &Path) -> Result<(), RldpError> {
        restore_optimizer(&mut self.optimizer, folder)
    }
}

/// The per-example gradients of a micro-batch, one group per adapter, with the map from its rows to its units, and the rows' losses:
/// what [`rldp_optim::Accumulator::add`] takes.
///
/// # Errors
/// Those of [`per_example_pass`]; [`RldpError::Optim`] for gradients that do not fit the micro-batch.
pub fn per_unit_gradients<M: LanguageModel>(
    model: &M,
    batch: &MicroBatch,
    activations: Activations,
) -> Result<(PerExampleGradients, Tensor<1>), RldpError> {
    let pass = per_example_pass(model, &batch.batch, activations)?;
    let groups = pass
        .gradients
        .into_iter()
        .map(|adapter| {
            let group = GroupGradients::new(adapter.name);
            let group = match adapter.a {
                Some(a) => group.with(a),
                None => group,
            };
            group.with(adapter.b)
        })
        .collect();
    let units: Vec<Option<usize>> = batch.unit_of_row.iter().copied().map(Some).collect();
    let map = RowMap::summed(&units, &batch.weight_of_row)?;
    Ok((PerExampleGradients::new(groups, map)?, pass.losses))
}
