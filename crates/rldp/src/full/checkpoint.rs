//! A whole model's parameters in a checkpoint, and under ids that are the same in every process.

use std::collections::HashMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Device, Tensor};
use rldp_lora::{HostTensor, LoraError, TensorFile};

use crate::error::RldpError;

/// The model with every parameter's place in it as its id, so that an optimizer's state, which names parameters by their ids,
/// fits the same model in another process.
pub(super) fn numbered<M: Module>(model: M) -> M {
    model.map(&mut Numbered::default())
}

/// The parameters of a [`numbered`] model.
///
/// # Errors
/// A device that fails to hand values over.
pub(super) fn tensors<M: Module>(model: &M) -> Result<Vec<HostTensor>, RldpError> {
    struct Collect(Vec<HostTensor>, Option<LoraError>);
    impl ModuleVisitor for Collect {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            match HostTensor::from_tensor(&name(param.id), param.val()) {
                Ok(tensor) => self.0.push(tensor),
                Err(error) => self.1 = Some(error),
            }
        }
    }
    let mut collect = Collect(Vec::new(), None);
    model.visit(&mut collect);
    match collect.1 {
        None => Ok(collect.0),
        Some(error) => Err(error.into()),
    }
}

/// A [`numbered`] model with the parameters that [`tensors`] gave.
///
/// # Errors
/// A parameter that is missing, has another shape or cannot be read.
pub(super) fn with_tensors<M: Module>(
    model: M,
    file: &TensorFile,
    device: &Device,
) -> Result<M, RldpError> {
    struct Read<'a>(&'a TensorFile, &'a Device, Option<LoraError>);
    impl ModuleMapper for Read<'_> {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let (id, value, mapper) = param.consume();
            let value = match self.0.read_shaped(&name(id), &value.dims()) {
                Ok(read) => read.into_tensor(self.1),
                Err(error) => {
                    self.2 = Some(error);
                    value
                }
            };
            Param::from_mapped_value(id, value, mapper)
        }
    }
    let mut read = Read(file, device, None);
    let model = model.map(&mut read);
    match read.2 {
        None => Ok(model),
        Some(error) => Err(error.into()),
    }
}

fn name(id: ParamId) -> String {
    format!("parameter.{}", id.val())
}

/// Gives ids by place; parameters that shared one go on sharing.
#[derive(Default)]
struct Numbered(HashMap<ParamId, ParamId>);

impl ModuleMapper for Numbered {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, value, mapper) = param.consume();
        let next = ParamId::from(self.0.len() as u64);
        let id = *self.0.entry(id).or_insert(next);
        Param::from_mapped_value(id, value, mapper)
    }
}
