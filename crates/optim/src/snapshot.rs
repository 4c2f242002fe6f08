//! The trainable parameters of a module at one moment, by their ids.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Device, Tensor, TensorData};

/// The trainable float parameters of a module, flat, outside autodiff.
///
/// Parameters that an optimizer moved by releases are post-processing of these, and so is every function of snapshots.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    values: BTreeMap<u64, Tensor<1>>,
}

impl Snapshot {
    /// The parameters of `module` that require gradients.
    #[must_use]
    pub fn of<M: Module>(module: &M) -> Self {
        let mut snapshot = Self::default();
        module.visit(&mut Collect(&mut snapshot));
        snapshot
    }

    /// Whether there is no parameter.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Moves every parameter to `(1 - weight)` of itself plus `weight` of that of `other`; parameters that only one of them
    /// has are left alone.
    pub fn blend(&mut self, other: &Self, weight: f64) {
        for (id, value) in &mut self.values {
            if let Some(other) = other.values.get(id) {
                *value = value.clone().mul_scalar(1.0 - weight) + other.clone().mul_scalar(weight);
            }
        }
    }

    /// `self + gain (self - previous)`: where the parameters get to if they move on as they moved since `previous`.
    #[must_use]
    pub fn extrapolated(&self, previous: &Self, gain: f64) -> Self {
        let mut ahead = self.clone();
        ahead.blend(previous, -gain);
        ahead
    }

    /// The module with these values in the place of its own; parameters that the snapshot lacks, or has in another size, stay.
    #[must_use]
    pub fn install<M: Module>(&self, module: M) -> M {
        module.map(&mut Install(self))
    }

    /// The values as plain numbers by parameter id, for a checkpoint.
    #[must_use]
    pub fn to_data(&self) -> Vec<(u64, TensorData)> {
        self.values
            .iter()
            .map(|(id, value)| (*id, value.to_data()))
            .collect()
    }

    /// A snapshot from [`Snapshot::to_data`].
    #[must_use]
    pub fn from_data(data: impl IntoIterator<Item = (u64, TensorData)>, device: &Device) -> Self {
        let device = device.clone().without_autodiff();
        let values = data
            .into_iter()
            .map(|(id, data)| (id, Tensor::from_data(data, &device)))
            .collect();
        Self { values }
    }
}

struct Collect<'a>(&'a mut Snapshot);

impl ModuleVisitor for Collect<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if param.is_require_grad() {
            let value = param.val().without_autodiff();
            let count: usize = value.dims().iter().product();
            self.0.values.insert(key(param.id), value.reshape([count]));
        }
    }
}

struct Install<'a>(&'a Snapshot);

impl ModuleMapper for Install<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(value) = self.0.values.get(&key(param.id)).cloned() else {
            return param;
        };
        param.map(|own| {
            let dims = own.dims();
            if value.dims()[0] != dims.iter().product::<usize>() {
                return own;
            }
            let value = value.reshape(dims);
            if own.is_autodiff() {
                value.autodiff().set_require_grad(own.is_require_grad())
            } else {
                value
            }
        })
    }
}

fn key(id: ParamId) -> u64 {
    id.val()
}
