//! What is done with releases and parameters after they are released: state that lives over steps.

use std::path::Path;

use burn::tensor::Device;
use rldp_lora::{Adapters, HostTensor, TensorFile, adapters, set_adapters, write_tensors};
use rldp_models::LanguageModel;
use rldp_optim::{GradientFilter, Snapshot, StepRelease, WeightAverage};
use serde::{Deserialize, Serialize};

use crate::controller::PostProcessing;
use crate::error::RldpError;

/// The tensors of this state in a checkpoint.
const TENSOR_FILE: &str = "post_processing.safetensors";
/// Its numbers in a checkpoint.
const NUMBER_FILE: &str = "post_processing.json";

/// The filter of gradients, the average of parameters, and where the parameters were a step ago.
#[derive(Clone, Debug, Default)]
pub(super) struct PostState {
    filter: GradientFilter,
    average: WeightAverage,
    /// Kept only while gradients are denoised.
    previous: Option<Snapshot>,
}

/// The numbers of a [`PostState`]; floats by their bits, so that none is rounded.
#[derive(Serialize, Deserialize)]
struct Numbers {
    steps: u64,
    counted: u64,
    /// Per filtered group: number of tensors, bits of the noise variance.
    filtered: Vec<(usize, u64)>,
}

impl PostState {
    /// The model to take gradients at: ahead of its parameters while gradients are denoised (DiSK), else `None` for the
    /// model as it is.
    pub fn ahead<M: LanguageModel>(
        &self,
        model: &M,
        post: &PostProcessing,
    ) -> Result<Option<M>, RldpError> {
        let gain = GradientFilter::look_ahead(post.denoising_gain);
        let Some(previous) = self.previous.as_ref().filter(|_| gain > 0.0) else {
            return Ok(None);
        };
        let now = adapters(model);
        let moved = Snapshot::of(&now).extrapolated(previous, gain);
        let mut ahead = model.clone();
        set_adapters(&mut ahead, moved.install(now))?;
        Ok(Some(ahead))
    }

    /// The release as the optimizer gets it.
    pub fn filtered(
        &mut self,
        release: &StepRelease,
        post: &PostProcessing,
    ) -> Result<StepRelease, RldpError> {
        let mut release = release.clone();
        if GradientFilter::look_ahead(post.denoising_gain) > 0.0 {
            self.filter.apply(&mut release, post.denoising_gain)?;
        } else {
            self.filter = GradientFilter::new();
        }
        Ok(release)
    }

    /// Takes in a step's parameters, before and after it.
    pub fn moved(
        &mut self,
        before: &Adapters,
        after: &Adapters,
        post: &PostProcessing,
        steps: u64,
    ) {
        let denoised = GradientFilter::look_ahead(post.denoising_gain) > 0.0;
        self.previous = denoised.then(|| Snapshot::of(before));
        self.average.add(after, post.averaging(steps));
    }

    /// The model with averaged parameters; `None` if nothing is averaged.
    pub fn averaged<M: LanguageModel>(&self, model: &M) -> Result<Option<M>, RldpError> {
        if !self.average.is_active() {
            return Ok(None);
        }
        let mut averaged = model.clone();
        set_adapters(&mut averaged, self.average.install(adapters(model)))?;
        Ok(Some(averaged))
    }

    /// Writes everything into a checkpoint's folder.
    pub fn save(&self, folder: &Path) -> Result<(), RldpError> {
        let (average, steps, counted) = self.average.parts();
        let mut tensors = Vec::new();
        for (name, snapshot) in [("average", average), ("previous", self.previous.as_ref())] {
            for (id, data) in snapshot.map(Snapshot::to_data).unwrap_or_default() {
                tensors.push(HostTensor {
                    name: format!("{name}.{id}"),
                    shape: vec![data.num_elements()],
                    data: data.iter::<f32>().collect(),
                });
            }
        }
        let mut filtered = Vec::new();
        for (group, (gradients, variance)) in self.filter.parts().iter().enumerate() {
            for (index, gradient) in gradients.iter().enumerate() {
                let name = format!("filter.{group}.{index}");
                tensors.push(HostTensor::from_tensor(&name, gradient.clone())?);
            }
            filtered.push((gradients.len(), variance.to_bits()));
        }
        write_tensors(&folder.join(TENSOR_FILE), &tensors)?;
        let numbers = Numbers {
            steps,
            counted,
            filtered,
        };
        let path = folder.join(NUMBER_FILE);
        let text = serde_json::to_vec(&numbers).map_err(|source| RldpError::Json {
            what: "the post-processing's state",
            source,
        })?;
        std::fs::write(&path, text).map_err(RldpError::file(path))
    }

    /// Reads what [`PostState::save`] wrote.
    pub fn restore(folder: &Path, device: &Device) -> Result<Self, RldpError> {
        let path = folder.join(NUMBER_FILE);
        let text = std::fs::read(&path).map_err(RldpError::file(&path))?;
        let damaged = |reason: String| RldpError::Damaged {
            path: path.clone(),
            reason,
        };
        let numbers: Numbers =
            serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        let file = TensorFile::open(&folder.join(TENSOR_FILE))?;
        let snapshot = |kind: &str| -> Result<Option<Snapshot>, RldpError> {
            let mut data = Vec::new();
            for name in file.names() {
                if let Some(id) = name
                    .strip_prefix(kind)
                    .and_then(|rest| rest.strip_prefix('.'))
                {
                    let id = id
                        .parse()
                        .map_err(|_| damaged(format!("{name} names no parameter")))?;
                    data.push((id, file.read(&name)?.into_tensor::<1>(device).to_data()));
                }
            }
            Ok((!data.is_empty()).then(|| Snapshot::from_data(data, device)))
        };
        let mut filtered = Vec::new();
        for (group, (count, variance)) in numbers.filtered.iter().enumerate() {
            let gradients = (0..*count)
                .map(|index| {
                    let tensor = file.read(&format!("filter.{group}.{index}"))?;
                    Ok(tensor.into_tensor::<1>(device))
                })
                .collect::<Result<Vec<_>, RldpError>>()?;
            filtered.push((gradients, f64::from_bits(*variance)));
        }
        Ok(Self {
            filter: GradientFilter::from_parts(filtered),
            average: WeightAverage::from_parts(
                snapshot("average")?,
                numbers.steps,
                numbers.counted,
            ),
            previous: snapshot("previous")?,
        })
    }
}
