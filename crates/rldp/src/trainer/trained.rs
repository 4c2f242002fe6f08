//! What a run trains: adapters, or everything a model has.

use std::path::Path;

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::OptimizerRecord;
use burn::tensor::{Device, Tensor};
use rldp_accounting::Segment;
use rldp_accounting::ledger::LedgerWriter;
use rldp_lora::{HostTensor, LoraAdapter, LoraConfig, LoraError, TensorFile, adapters};
use rldp_models::LanguageModel;
use rldp_optim::{DpOptimizer, Random, StepPlan, StepRelease};

use super::step::PrivateStep;
use crate::controller::{Decision, PostProcessing};
use crate::error::RldpError;

/// The steps of a run and the parameters they move, as the run's bookkeeping sees them: the same for adapters and for whole
/// models.
pub(crate) trait Trained<M> {
    /// Whether the controller learns from releases and validation losses. If not, neither the validation part is asked nor a
    /// copy of the last gradient kept.
    const STEERED: bool;

    /// What the run gives away, in words.
    const RESULT: &'static str;

    /// What is clipped, steered and reported apart: names and how many numbers each has.
    fn parts(&self) -> Vec<(String, usize)>;

    /// Where steps are computed.
    fn device(&self) -> &Device;

    /// The plan of a step that plays `segment` under `decision`, with the segment's noise multiplier as effective one.
    fn plan(&self, segment: &Segment, decision: &Decision) -> Result<StepPlan, RldpError>;

    /// Sets the post-processing of the steps to come.
    fn set_post_processing(&mut self, post_processing: PostProcessing);

    /// Samples, clips, writes the ledger's line and releases the noisy gradient.
    fn release(
        &mut self,
        number: u64,
        model: &M,
        plan: &StepPlan,
        ledger: &mut LedgerWriter,
        random: &mut dyn Random,
    ) -> Result<StepRelease, RldpError>;

    /// Moves the parameters by a released gradient. By value: whoever held a second copy would double the memory.
    fn apply(
        &mut self,
        model: M,
        release: &StepRelease,
        learning_rate: f64,
        beta_1: f64,
    ) -> Result<M, RldpError>;

    /// The model with the parameters that are its result so far, where these are not its own.
    fn averaged(&self, model: &M) -> Result<Option<M>, RldpError>;

    /// Squared Euclidean norm of every part's parameters.
    fn squared_norms(&self, model: &M) -> Vec<f64>;

    /// Every part's trained parameters as one flat tensor, in the order of a release's gradients; none where nothing is steered.
    fn flat_parameters(&self, _model: &M) -> Vec<Tensor<1>> {
        Vec::new()
    }

    /// The trained parameters, for a checkpoint.
    fn tensors(&self, model: &M) -> Result<Vec<HostTensor>, RldpError>;

    /// The model with the parameters that [`Trained::tensors`] gave, as if it had been trained in this process.
    fn with_tensors(&self, model: M, file: &TensorFile, lora: &LoraConfig) -> Result<M, RldpError>;

    /// Writes the inner optimizer and the post-processing into a checkpoint's folder.
    fn save_state(&self, folder: &Path) -> Result<(), RldpError>;

    /// Takes over what [`Trained::save_state`] wrote.
    fn restore_state(&mut self, folder: &Path) -> Result<(), RldpError>;
}

/// The inner optimizer in a checkpoint.
const OPTIMIZER_FILE: &str = "optimizer.bpk";

/// Writes an inner optimizer's state into a checkpoint's folder.
pub(crate) fn save_optimizer(optimizer: &DpOptimizer, folder: &Path) -> Result<(), RldpError> {
    let path = folder.join(OPTIMIZER_FILE);
    optimizer.inner().save(&path).map_err(damaged(&path))
}

/// Takes an inner optimizer's state from a checkpoint's folder: from here on it moves the parameters exactly as the one that
/// was saved.
pub(crate) fn restore_optimizer(
    optimizer: &mut DpOptimizer,
    folder: &Path,
) -> Result<(), RldpError> {
    let path = folder.join(OPTIMIZER_FILE);
    let record = OptimizerRecord::load(&path).map_err(damaged(&path))?;
    let tensors = record.len();
    let restored = optimizer.inner().clone().load_record(record);
    // Burn leaves out what does not fit.
    if restored.to_record().len() != tensors {
        return Err(RldpError::Damaged {
            path,
            reason: "the optimizer's state is not of these parameters".to_owned(),
        });
    }
    *optimizer.inner_mut() = restored;
    Ok(())
}

fn damaged<E: std::fmt::Display>(path: &Path) -> impl FnOnce(E) -> RldpError {
    let path = path.to_owned();
    move |error| RldpError::Damaged {
        path,
        reason: error.to_string(),
    }
}

/// Squared Euclidean norm of a module's float parameters.
pub(crate) fn squared_norm<M: Module>(module: &M) -> f64 {
    struct Sum(f64);
    impl ModuleVisitor for Sum {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let value = param.val().without_autodiff();
            self.0 += f64::from((value.clone() * value).sum().into_scalar::<f32>());
        }
    }
    let mut sum = Sum(0.0);
    module.visit(&mut sum);
    sum.0
}

impl<M: LanguageModel> Trained<M> for PrivateStep {
    const STEERED: bool = true;
    const RESULT: &'static str = "the adapter";

    fn parts(&self) -> Vec<(String, usize)> {
        let references = self.references().iter();
        references
            .map(|adapter| (adapter.name.clone(), adapter.trainable_parameters()))
            .collect()
    }

    fn device(&self) -> &Device {
        self.device()
    }

    fn plan(&self, segment: &Segment, decision: &Decision) -> Result<StepPlan, RldpError> {
        self.plan(segment, decision)
    }

    fn set_post_processing(&mut self, post_processing: PostProcessing) {
        self.set_post_processing(post_processing);
    }

    fn release(
        &mut self,
        number: u64,
        model: &M,
        plan: &StepPlan,
        ledger: &mut LedgerWriter,
        random: &mut dyn Random,
    ) -> Result<StepRelease, RldpError> {
        self.release(number, model, plan, ledger, random)
    }

    fn apply(
        &mut self,
        mut model: M,
        release: &StepRelease,
        learning_rate: f64,
        beta_1: f64,
    ) -> Result<M, RldpError> {
        self.apply(&mut model, release, learning_rate, beta_1)?;
        Ok(model)
    }

    fn averaged(&self, model: &M) -> Result<Option<M>, RldpError> {
        self.averaged(model)
    }

    fn squared_norms(&self, model: &M) -> Vec<f64> {
        adapters(model).layers.iter().map(squared_norm).collect()
    }

    fn flat_parameters(&self, model: &M) -> Vec<Tensor<1>> {
        struct Flat(Vec<Tensor<1>>);
        impl ModuleVisitor for Flat {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                if param.is_require_grad() {
                    let value = param.val().without_autodiff();
                    self.0.push(value.flatten(0, D - 1));
                }
            }
        }
        let flat = |layer| {
            let mut flat = Flat(Vec::new());
            Module::visit(layer, &mut flat);
            Tensor::cat(flat.0, 0)
        };
        adapters(model).layers.iter().map(flat).collect()
    }

    fn tensors(&self, model: &M) -> Result<Vec<HostTensor>, RldpError> {
        let mut tensors = Vec::new();
        let mut failed = None;
        model.visit_linears(&mut |name, layer| {
            if let Some(adapter) = &layer.adapter {
                let [a, b] = factor_names(name);
                for (name, value) in [(a, adapter.a.val()), (b, adapter.b.val())] {
                    match HostTensor::from_tensor(&name, value) {
                        Ok(tensor) => tensors.push(tensor),
                        Err(error) => failed = Some(error),
                    }
                }
            }
        });
        failed.map_or(Ok(tensors), |error| Err(error.into()))
    }

    fn with_tensors(
        &self,
        mut model: M,
        file: &TensorFile,
        lora: &LoraConfig,
    ) -> Result<M, RldpError> {
        let device = self.device();
        let mut failed: Option<LoraError> = None;
        model.visit_linears_mut(&mut |name, layer| {
            if let Some(adapter) = &mut layer.adapter {
                let reference = adapter.reference();
                let [a, b] = factor_names(name);
                let read = |name: &str, [rows, columns]: [usize; 2]| {
                    let tensor = file.read_shaped(name, &[1, rows, columns])?;
                    Ok(tensor.into_tensor::<3>(device))
                };
                let factors =
                    read(&a, reference.a_shape).and_then(|a| Ok((a, read(&b, reference.b_shape)?)));
                match factors {
                    Ok((a, b)) => *adapter = LoraAdapter::from_factors(&reference.name, a, b, lora),
                    Err(error) => failed = Some(error),
                }
            }
        });
        failed.map_or(Ok(model), |error| Err(error.into()))
    }

    fn save_state(&self, folder: &Path) -> Result<(), RldpError> {
        self.save_optimizer(folder)?;
        self.save_post_processing(folder)
    }

    fn restore_state(&mut self, folder: &Path) -> Result<(), RldpError> {
        self.restore_optimizer(folder)?;
        self.restore_post_processing(folder)
    }
}

fn factor_names(layer: &str) -> [String; 2] {
    ["a", "b"].map(|factor| format!("adapter.{layer}.{factor}"))
}
