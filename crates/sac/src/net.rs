//! Layers shared by actor and critics. Every parameter has a leading dimension for the members of an ensemble (1 for the
//! actor), so that all critics run in one batched product.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Gradients, Tensor, TensorData};

use crate::error::SacError;
use crate::rng::AgentRng;
use crate::tensors::TensorMap;

const NORM_EPSILON: f64 = 1e-5;

/// `x W + b` for each member.
#[derive(Module, Debug)]
pub(crate) struct Dense {
    /// `[members, inputs, outputs]`
    weight: Param<Tensor<3>>,
    /// `[members, 1, outputs]`
    bias: Param<Tensor<3>>,
}

impl Dense {
    fn from_values(sizes: [usize; 3], weight: Vec<f32>, bias: Vec<f32>, device: &Device) -> Self {
        let [members, _, outputs] = sizes;
        Self {
            weight: parameter(weight, sizes, device),
            bias: parameter(bias, [members, 1, outputs], device),
        }
    }

    /// Uniform in plus or minus `scale / sqrt(inputs)`, weights and biases alike (PyTorch's default at scale 1).
    pub(crate) fn random(
        sizes: [usize; 3],
        scale: f64,
        rng: &mut AgentRng,
        device: &Device,
    ) -> Self {
        let [members, inputs, outputs] = sizes;
        let bound = scale / (inputs as f64).sqrt();
        let mut draw = |count: usize| {
            (0..count)
                .map(|_| ((2.0 * rng.uniform() - 1.0) * bound) as f32)
                .collect()
        };
        let weight = draw(members * inputs * outputs);
        let bias = draw(members * outputs);
        Self::from_values(sizes, weight, bias, device)
    }

    /// Adds a constant to every bias.
    pub(crate) fn shift_bias(mut self, shift: f64) -> Self {
        self.bias = self
            .bias
            .map(|bias| bias.detach().add_scalar(shift).detach().require_grad());
        self
    }

    pub(crate) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        x.matmul(self.weight.val()) + self.bias.val()
    }

    pub(crate) fn export(
        &self,
        prefixes: &[String],
        layer: &str,
        map: &mut TensorMap,
    ) -> Result<(), SacError> {
        let [_, inputs, outputs] = self.weight.val().dims();
        let weight = host(self.weight.val())?;
        let bias = host(self.bias.val())?;
        for (member, prefix) in prefixes.iter().enumerate() {
            let base = member * inputs * outputs;
            let transposed =
                (0..outputs * inputs).map(|k| weight[base + (k % inputs) * outputs + k / inputs]);
            map.insert(
                format!("{prefix}.{layer}.weight"),
                vec![outputs, inputs],
                transposed.collect(),
            );
            let values = bias[member * outputs..(member + 1) * outputs].to_vec();
            map.insert(format!("{prefix}.{layer}.bias"), vec![outputs], values);
        }
        Ok(())
    }

    pub(crate) fn import(
        prefixes: &[String],
        layer: &str,
        [inputs, outputs]: [usize; 2],
        map: &TensorMap,
        device: &Device,
    ) -> Result<Self, SacError> {
        let mut weight = Vec::with_capacity(prefixes.len() * inputs * outputs);
        let mut bias = Vec::with_capacity(prefixes.len() * outputs);
        for prefix in prefixes {
            let values = map.get(&format!("{prefix}.{layer}.weight"), &[outputs, inputs])?;
            weight.extend(
                (0..inputs * outputs).map(|k| values[(k % outputs) * inputs + k / outputs]),
            );
            bias.extend_from_slice(map.get(&format!("{prefix}.{layer}.bias"), &[outputs])?);
        }
        Ok(Self::from_values(
            [prefixes.len(), inputs, outputs],
            weight,
            bias,
            device,
        ))
    }
}

/// Layer normalisation with a gain and an offset for each member.
#[derive(Module, Debug)]
pub(crate) struct Norm {
    gain: Param<Tensor<3>>,
    offset: Param<Tensor<3>>,
}

impl Norm {
    fn new(members: usize, width: usize, device: &Device) -> Self {
        let sizes = [members, 1, width];
        Self {
            gain: parameter(vec![1.0; members * width], sizes, device),
            offset: parameter(vec![0.0; members * width], sizes, device),
        }
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let centred = x.clone() - x.mean_dim(2);
        let variance = centred.clone().square().mean_dim(2);
        centred / variance.add_scalar(NORM_EPSILON).sqrt() * self.gain.val() + self.offset.val()
    }
}

/// The hidden layers: dense, dropout, layer normalisation, rectifier.
#[derive(Module, Debug)]
pub(crate) struct Trunk {
    layers: Vec<Dense>,
    norms: Vec<Norm>,
}

impl Trunk {
    pub(crate) fn random(
        members: usize,
        inputs: usize,
        hidden: &[usize],
        layer_norm: bool,
        rng: &mut AgentRng,
        device: &Device,
    ) -> Self {
        let sizes = layer_sizes(inputs, hidden);
        Self {
            layers: sizes
                .iter()
                .map(|&[i, o]| Dense::random([members, i, o], 1.0, rng, device))
                .collect(),
            norms: hidden
                .iter()
                .filter(|_| layer_norm)
                .map(|&width| Norm::new(members, width, device))
                .collect(),
        }
    }

    /// `masks` holds one dropout mask per layer, already divided by the keeping probability, or nothing.
    pub(crate) fn forward(&self, mut x: Tensor<3>, masks: &[Tensor<3>]) -> Tensor<3> {
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(x);
            if let Some(mask) = masks.get(index) {
                x = x * mask.clone();
            }
            if let Some(norm) = self.norms.get(index) {
                x = norm.forward(x);
            }
            x = relu(x);
        }
        x
    }

    pub(crate) fn export(&self, prefixes: &[String], map: &mut TensorMap) -> Result<(), SacError> {
        for (index, layer) in self.layers.iter().enumerate() {
            layer.export(prefixes, &format!("fc{}", index + 1), map)?;
        }
        for (index, norm) in self.norms.iter().enumerate() {
            for (name, parameter) in [("weight", &norm.gain), ("bias", &norm.offset)] {
                let width = parameter.val().dims()[2];
                let values = host(parameter.val())?;
                for (prefix, member) in prefixes.iter().zip(values.chunks(width)) {
                    map.insert(
                        format!("{prefix}.ln{}.{name}", index + 1),
                        vec![width],
                        member.to_vec(),
                    );
                }
            }
        }
        Ok(())
    }

    pub(crate) fn import(
        prefixes: &[String],
        inputs: usize,
        hidden: &[usize],
        layer_norm: bool,
        map: &TensorMap,
        device: &Device,
    ) -> Result<Self, SacError> {
        let mut layers = Vec::new();
        let mut norms = Vec::new();
        for (index, sizes) in layer_sizes(inputs, hidden).into_iter().enumerate() {
            layers.push(Dense::import(
                prefixes,
                &format!("fc{}", index + 1),
                sizes,
                map,
                device,
            )?);
            if layer_norm {
                let width = sizes[1];
                let load = |name: &str| -> Result<Param<Tensor<3>>, SacError> {
                    let mut values = Vec::with_capacity(prefixes.len() * width);
                    for prefix in prefixes {
                        values.extend_from_slice(
                            map.get(&format!("{prefix}.ln{}.{name}", index + 1), &[width])?,
                        );
                    }
                    Ok(parameter(values, [prefixes.len(), 1, width], device))
                };
                norms.push(Norm {
                    gain: load("weight")?,
                    offset: load("bias")?,
                });
            }
        }
        Ok(Self { layers, norms })
    }
}

fn layer_sizes(inputs: usize, hidden: &[usize]) -> Vec<[usize; 2]> {
    std::iter::once(&inputs)
        .chain(hidden)
        .zip(hidden)
        .map(|(&i, &o)| [i, o])
        .collect()
}

fn parameter(values: Vec<f32>, sizes: [usize; 3], device: &Device) -> Param<Tensor<3>> {
    let device = device.clone().without_autodiff();
    let tensor = Tensor::from_data(TensorData::new(values, sizes), &device);
    Param::from_tensor(tensor.autodiff().require_grad())
}

/// Values of a tensor on the host.
pub(crate) fn host<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, SacError> {
    let backend = |reason: String| SacError::Backend {
        what: "tensor values",
        reason,
    };
    let data = tensor
        .inner()
        .try_into_data()
        .map_err(|error| backend(format!("{error:?}")))?;
    data.convert::<f32>()
        .try_to_vec::<f32>()
        .map_err(|error| backend(format!("{error:?}")))
}

/// The single value of a tensor.
pub(crate) fn scalar(tensor: Tensor<1>) -> Result<f64, SacError> {
    Ok(host(tensor)?.first().copied().map_or(f64::NAN, f64::from))
}

/// All parameters of a module as one vector, in the module's own order.
pub(crate) fn flatten<M: Module>(module: &M) -> Tensor<1> {
    struct Collect(Vec<Tensor<1>>);
    impl ModuleVisitor for Collect {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let value = param.val().inner();
            let count = value.shape().num_elements();
            self.0.push(value.reshape([count]));
        }
    }
    let mut collect = Collect(Vec::new());
    module.visit(&mut collect);
    Tensor::cat(collect.0, 0)
}

/// The gradients of all parameters as one vector, in the order of [`flatten`]; zero where a parameter had no part.
pub(crate) fn gradients<M: Module>(module: &M, gradients: &mut Gradients) -> Tensor<1> {
    struct Collect<'a>(Vec<Tensor<1>>, &'a mut Gradients);
    impl ModuleVisitor for Collect<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let value = param.val();
            let count = value.shape().num_elements();
            let gradient = value
                .grad_remove(self.1)
                .unwrap_or_else(|| value.inner().zeros_like());
            self.0.push(gradient.reshape([count]));
        }
    }
    let mut collect = Collect(Vec::new(), gradients);
    module.visit(&mut collect);
    Tensor::cat(collect.0, 0)
}

/// The module with its parameters replaced by `flat` (in the order of [`flatten`]): leaves that gather gradients, or
/// constants outside autodiff.
pub(crate) fn assign<M: Module>(module: M, flat: &Tensor<1>, trainable: bool) -> M {
    struct Assign<'a> {
        flat: &'a Tensor<1>,
        offset: usize,
        trainable: bool,
    }
    impl ModuleMapper for Assign<'_> {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let (id, old, mapper) = param.consume();
            let shape = old.shape();
            let count = shape.num_elements();
            let value: Tensor<D> = self
                .flat
                .clone()
                .narrow(0, self.offset, count)
                .reshape(shape);
            self.offset += count;
            let value = if self.trainable {
                value.autodiff().require_grad()
            } else {
                value
            };
            Param::from_mapped_value(id, value, mapper)
        }
    }
    module.map(&mut Assign {
        flat,
        offset: 0,
        trainable,
    })
}
