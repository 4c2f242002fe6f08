//! The operations that run as native loops on Flex, and how autodiff sees them.
//!
//! Frozen weights get no gradient here: whoever trains them takes the composed operations.
#![cfg(feature = "flex")]

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::ops::FloatTensorOps;
use burn::backend::{
    Autodiff, Backend, Flex, TensorMetadata, backend_extension, tensor::FloatTensor,
};
use burn::tensor::{DType, FloatDType, Shape, TensorData};

use super::attention::{Causal, Heads, HeadsMut};
use super::linear::{self, FactorGradients, Factors, Sizes};
use super::norm::Kind;
use super::product::{Shared, View};
use super::{flex, head};

/// The operations as Burn dispatches them; everything is in f32.
#[backend_extension(Flex: cfg(feature = "flex"), Autodiff)]
pub(crate) trait NativeOps: Backend {
    /// `x W + bias + residual + s (x A) B`, of which `terms` says what there is: any tensor stands
    /// for what there is not.
    fn linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        terms: Terms,
    ) -> FloatTensor<Self>;

    /// Normalised rows times the weight, plus the bias for layer norms.
    fn norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        kind: Kind,
    ) -> FloatTensor<Self>;

    /// Attention over queries, keys and values of `[examples, time, heads * head]`.
    fn attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        shape: Causal,
    ) -> FloatTensor<Self>;

    /// The same with queries, keys and values side by side in one tensor.
    fn packed_attention(all: FloatTensor<Self>, shape: Causal) -> FloatTensor<Self>;

    /// Weighted losses of rows, `[rows]`, and their gradients (without elements unless wanted).
    fn head_losses(
        rows: FloatTensor<Self>,
        projection: FloatTensor<Self>,
        targets: Vec<u32>,
        weights: Vec<f32>,
        wanted: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// The constant `losses`, `[examples]`, as a function of `hidden` with the gradient `slope`.
    fn with_slope(
        hidden: FloatTensor<Self>,
        slope: FloatTensor<Self>,
        losses: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
}

/// What a linear layer adds up besides the product with its weight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) bias: bool,
    pub(crate) residual: bool,
    /// The adapter's factor `s`.
    pub(crate) adapter: Option<f64>,
}

/// What [`NativePasses::linear_backward_pass`] needs of the forward pass.
#[derive(Clone, Debug)]
pub(crate) struct LinearState<F> {
    weight: F,
    adapter: Option<AdapterState<F>>,
}

#[derive(Clone, Debug)]
struct AdapterState<F> {
    x: F,
    a: F,
    b: F,
    low: F,
    scaling: f64,
}

/// Forward and backward passes.
pub(crate) trait NativePasses: NativeOps {
    /// The outputs, and `s x A`.
    fn linear_pass(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        residual: Option<FloatTensor<Self>>,
        adapter: Option<(FloatTensor<Self>, FloatTensor<Self>, f64)>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Gradients by the input, `A` and `B`, as far as wanted.
    fn linear_backward_pass(
        grad: FloatTensor<Self>,
        state: LinearState<FloatTensor<Self>>,
        wanted: [bool; 3],
    ) -> [Option<FloatTensor<Self>>; 3];

    fn norm_backward_pass(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        kind: Kind,
    ) -> FloatTensor<Self>;

    /// The context, and the logarithms of the softmax' denominators.
    fn attention_pass(
        inputs: [FloatTensor<Self>; 3],
        packed: bool,
        shape: Causal,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// One gradient per input; if packed, the first only.
    fn attention_backward_pass(
        inputs: [FloatTensor<Self>; 3],
        logs: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        packed: bool,
        shape: Causal,
    ) -> Vec<FloatTensor<Self>>;

    /// `slope` times each example's gradient.
    fn slope_pass(slope: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self>;
}

type Primitive = FloatTensor<Flex>;

/// A tensor whose elements `write` writes, every one.
fn written(shape: impl Into<Shape>, write: impl FnOnce(Shared)) -> Primitive {
    let shape = shape.into();
    let size = shape.num_elements();
    let mut values: Vec<f32> = Vec::with_capacity(size);
    write(Shared(values.as_mut_ptr()));
    // SAFETY: the capacity is there, and `write` has written every element.
    unsafe { values.set_len(size) };
    Flex::float_from_data(TensorData::new(values, shape), &Default::default())
}

fn elements(tensor: &Primitive) -> &[f32] {
    flex::elements(tensor)
}

fn dims<const D: usize>(tensor: &Primitive) -> [usize; D] {
    let shape = tensor.shape();
    std::array::from_fn(|index| shape[index])
}

/// The weight as it lies, transposed or not; of one in half precision, a copy for the moment.
fn with_view<R>(weight: &Primitive, run: impl FnOnce(View<'_>) -> R) -> R {
    if weight.dtype() != DType::F32 {
        let single = Flex::float_cast(weight.clone(), FloatDType::F32);
        return with_view(&single, run);
    }
    let [rows, columns] = dims(weight);
    let strides = weight.layout().strides();
    let (first, second) = (strides[0], strides[1]);
    if first >= 0 && second >= 0 {
        let values = &weight.storage::<f32>()[weight.layout().start_offset()..];
        let (first, second) = (first as usize, second as usize);
        if second == 1 && first >= columns {
            return run(View::rows(values, rows, columns, first));
        }
        if first == 1 && second >= rows {
            return run(View::rows(values, columns, rows, second).transposed());
        }
    }
    let weight = weight.to_contiguous();
    run(View::rows(elements(&weight), rows, columns, columns))
}

fn factors<'a>(a: &'a Primitive, b: &'a Primitive, scaling: f64) -> Factors<'a> {
    let [copies, _, rank] = dims(a);
    Factors {
        a: elements(a),
        b: elements(b),
        copies,
        rank,
        scaling: scaling as f32,
    }
}

/// One copy per example, whichever of the factors have them.
fn same_copies(a: Primitive, b: Primitive) -> (Primitive, Primitive) {
    let ([a_copies, inputs, rank], [b_copies, _, outputs]) = (dims(&a), dims(&b));
    let copies = a_copies.max(b_copies);
    let spread = |tensor: Primitive, from: usize, shape: [usize; 3]| {
        if from == copies {
            tensor.to_contiguous()
        } else {
            Flex::float_expand(tensor, Shape::new(shape)).to_contiguous()
        }
    };
    (
        spread(a, a_copies, [copies, inputs, rank]),
        spread(b, b_copies, [copies, rank, outputs]),
    )
}

impl NativeOps for Flex {
    fn linear(
        x: Primitive,
        weight: Primitive,
        bias: Primitive,
        residual: Primitive,
        a: Primitive,
        b: Primitive,
        terms: Terms,
    ) -> Primitive {
        let adapter = terms.adapter.map(|scaling| (a, b, scaling));
        let (bias, residual) = (
            terms.bias.then_some(bias),
            terms.residual.then_some(residual),
        );
        Self::linear_pass(x, weight, bias, residual, adapter).0
    }

    fn norm(x: Primitive, weight: Primitive, bias: Primitive, kind: Kind) -> Primitive {
        let [x, weight, bias] = [x, weight, bias].map(|tensor| tensor.to_contiguous());
        let values = elements(&x);
        written(x.shape(), |y| {
            kind.forward(values, elements(&weight), elements(&bias), y);
        })
    }

    fn attention(query: Primitive, key: Primitive, value: Primitive, shape: Causal) -> Primitive {
        Self::attention_pass([query, key, value], false, shape).0
    }

    fn packed_attention(all: Primitive, shape: Causal) -> Primitive {
        Self::attention_pass([all.clone(), all.clone(), all], true, shape).0
    }

    fn head_losses(
        rows: Primitive,
        projection: Primitive,
        targets: Vec<u32>,
        weights: Vec<f32>,
        wanted: bool,
    ) -> (Primitive, Primitive) {
        let (rows, projection) = (rows.to_contiguous(), projection.to_contiguous());
        let [count, width] = dims(&rows);
        let mut losses = vec![0.0; count];
        let size = if wanted { count } else { 0 };
        let grads = written([size, width], |grads| {
            let rows = elements(&rows);
            let projection = elements(&projection);
            let grads = wanted.then_some(grads);
            head::losses(
                rows,
                projection,
                width,
                &targets,
                &weights,
                &mut losses,
                grads,
            );
        });
        let losses = TensorData::new(losses, [count]);
        (Self::float_from_data(losses, &Default::default()), grads)
    }

    fn with_slope(_hidden: Primitive, _slope: Primitive, losses: Primitive) -> Primitive {
        losses
    }
}

impl NativePasses for Flex {
    fn linear_pass(
        x: Primitive,
        weight: Primitive,
        bias: Option<Primitive>,
        residual: Option<Primitive>,
        adapter: Option<(Primitive, Primitive, f64)>,
    ) -> (Primitive, Primitive) {
        let x = x.to_contiguous();
        let bias = bias.map(|bias| bias.to_contiguous());
        let residual = residual.map(|residual| residual.to_contiguous());
        let adapter = adapter.map(|(a, b, scaling)| (same_copies(a, b), scaling));
        let factors = adapter
            .as_ref()
            .map(|((a, b), scaling)| factors(a, b, *scaling));
        let [examples, time, inputs] = dims(&x);
        let [_, outputs] = dims(&weight);
        let sizes = Sizes {
            examples,
            time,
            inputs,
            outputs,
        };
        let rank = factors.map_or(0, |factors| factors.rank);
        let mut low = vec![0.0; examples * time * rank];
        let y = written([examples, time, outputs], |y| {
            with_view(&weight, |weight| {
                let bias = bias.as_ref().map(elements);
                let residual = residual.as_ref().map(elements);
                linear::forward(
                    sizes,
                    elements(&x),
                    weight,
                    bias,
                    residual,
                    factors,
                    (y, &mut low),
                );
            });
        });
        let low = TensorData::new(low, [examples, time, rank]);
        (y, Self::float_from_data(low, &Default::default()))
    }

    fn linear_backward_pass(
        grad: Primitive,
        state: LinearState<Primitive>,
        [x_wanted, a_wanted, b_wanted]: [bool; 3],
    ) -> [Option<Primitive>; 3] {
        let grad = grad.to_contiguous();
        let [examples, time, outputs] = dims(&grad);
        let [inputs, _] = dims(&state.weight);
        let sizes = Sizes {
            examples,
            time,
            inputs,
            outputs,
        };
        let adapter = state.adapter.map(|adapter| {
            let copies = [dims::<3>(&adapter.a)[0], dims::<3>(&adapter.b)[0]];
            let (a, b) = same_copies(adapter.a, adapter.b);
            (
                adapter.x.to_contiguous(),
                a,
                b,
                adapter.low,
                adapter.scaling,
                copies,
            )
        });
        let parts = adapter.as_ref().map(|(x, a, b, low, scaling, _)| {
            (factors(a, b, *scaling), elements(x), elements(low))
        });
        let shapes = parts.map(|(factors, ..)| {
            let (copies, rank) = (factors.copies, factors.rank);
            ([copies, inputs, rank], [copies, rank, outputs])
        });
        let size = |wanted: bool, shape: Option<[usize; 3]>| {
            let shape = shape.filter(|_| wanted)?;
            Some(vec![0.0f32; shape.iter().product()])
        };
        let mut a_grad = size(a_wanted, shapes.map(|shapes| shapes.0));
        let mut b_grad = size(b_wanted, shapes.map(|shapes| shapes.1));
        let targets = FactorGradients {
            a: a_grad.as_deref_mut(),
            b: b_grad.as_deref_mut(),
        };
        let run = |x_grad: Option<Shared>| {
            with_view(&state.weight, |weight| {
                linear::backward(sizes, elements(&grad), weight, parts, x_grad, targets);
            });
        };
        let x_grad = if x_wanted {
            Some(written([examples, time, inputs], |x_grad| {
                run(Some(x_grad))
            }))
        } else {
            run(None);
            None
        };
        // A factor that all examples share, while the other has copies, gets the sum.
        let tensor = |values: Option<Vec<f32>>, shape: Option<[usize; 3]>, which: usize| {
            let (values, shape) = values.zip(shape)?;
            let grad = Self::float_from_data(TensorData::new(values, shape), &Default::default());
            let copies = adapter.as_ref().map_or(1, |(.., copies)| copies[which]);
            Some(if copies == shape[0] {
                grad
            } else {
                Self::float_sum_dim(grad, 0)
            })
        };
        [
            x_grad,
            tensor(a_grad, shapes.map(|shapes| shapes.0), 0),
            tensor(b_grad, shapes.map(|shapes| shapes.1), 1),
        ]
    }

    fn norm_backward_pass(
        x: Primitive,
        weight: Primitive,
        grad: Primitive,
        kind: Kind,
    ) -> Primitive {
        let (x, weight) = (x.to_contiguous(), weight.to_contiguous());
        flex::rewrite_all(grad, |grad| {
            kind.backward(elements(&x), elements(&weight), grad);
        })
    }

    fn attention_pass(
        inputs: [Primitive; 3],
        packed: bool,
        shape: Causal,
    ) -> (Primitive, Primitive) {
        let inputs = inputs.map(|input| input.to_contiguous());
        let [query, key, value] = heads(&inputs, packed, shape);
        let width = shape.heads * shape.head_dim;
        let mut logs = vec![0.0; shape.examples * shape.heads * shape.time];
        let out = written([shape.examples, shape.time, width], |out| {
            shape.forward(query, key, value, out, Shared::new(&mut logs));
        });
        let logs = TensorData::new(logs, [shape.examples, shape.heads, shape.time]);
        (out, Self::float_from_data(logs, &Default::default()))
    }

    fn attention_backward_pass(
        inputs: [Primitive; 3],
        logs: Primitive,
        grad: Primitive,
        packed: bool,
        shape: Causal,
    ) -> Vec<Primitive> {
        let inputs = inputs.map(|input| input.to_contiguous());
        let grad = grad.to_contiguous();
        let sources = heads(&inputs, packed, shape);
        let run = |targets: [Shared; 3]| {
            let targets = std::array::from_fn(|index| HeadsMut {
                values: targets[index],
                offset: sources[index].offset,
                stride: sources[index].stride,
            });
            shape.backward(sources, elements(&logs), elements(&grad), targets);
        };
        if packed {
            return vec![written(inputs[0].shape(), |out| run([out; 3]))];
        }
        let mut key = None;
        let mut value = None;
        let query = written(inputs[0].shape(), |query| {
            key = Some(written(inputs[1].shape(), |key| {
                value = Some(written(inputs[2].shape(), |value| run([query, key, value])));
            }));
        });
        std::iter::once(query).chain(key).chain(value).collect()
    }

    fn slope_pass(slope: Primitive, grad: Primitive) -> Primitive {
        let grad = grad.to_contiguous();
        let size = slope.shape().num_elements() / grad.shape().num_elements().max(1);
        let grad = elements(&grad);
        flex::rewrite(slope, size.max(1), |start, values| {
            let factor = grad[start / size.max(1)];
            values.iter_mut().for_each(|value| *value *= factor);
        })
    }
}

fn heads<'a>(inputs: &'a [Primitive; 3], packed: bool, shape: Causal) -> [Heads<'a>; 3] {
    std::array::from_fn(|index| {
        let [_, _, stride] = dims(&inputs[index]);
        let offset = match (packed, index) {
            (true, 1) => shape.heads * shape.head_dim,
            (true, 2) => (shape.heads + shape.kv_heads) * shape.head_dim,
            _ => 0,
        };
        Heads {
            values: elements(&inputs[index]),
            offset,
            stride,
        }
    })
}

impl<B: NativePasses, C: CheckpointStrategy> NativeOps for Autodiff<B, C> {
    fn linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        terms: Terms,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Linear;

        impl<B: NativePasses> Backward<B, 4> for Linear {
            type State = LinearState<FloatTensor<B>>;

            fn backward(
                self,
                ops: Ops<Self::State, 4>,
                grads: &mut Gradients,
                _checkpointer: &mut Checkpointer,
            ) {
                let [x, residual, a, b] = ops.parents;
                let grad = grads.consume::<B>(&ops.node);
                if let Some(node) = residual {
                    grads.register::<B>(node.id, grad.clone());
                }
                let wanted = [x.is_some(), a.is_some(), b.is_some()];
                if wanted == [false; 3] {
                    return;
                }
                let found = B::linear_backward_pass(grad, ops.state, wanted);
                for (node, grad) in [x, a, b].into_iter().zip(found) {
                    if let (Some(node), Some(grad)) = (node, grad) {
                        grads.register::<B>(node.id, grad);
                    }
                }
            }
        }

        let (x, x_node) = x.into_parts();
        let (weight, bias) = (weight.into_primitive(), bias.into_primitive());
        let (residual, residual_node) = residual.into_parts();
        let ((a, a_node), (b, b_node)) = (a.into_parts(), b.into_parts());
        let (bias, residual) = (
            terms.bias.then_some(bias),
            terms.residual.then_some(residual),
        );
        let adapter = terms.adapter.map(|scaling| (a, b, scaling));
        let operation = Linear.prepare::<C>([x_node, residual_node, a_node, b_node]);
        let pass = B::linear_pass;
        match operation.compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let kept = adapter.clone();
                let (y, low) = pass(x.clone(), weight.clone(), bias, residual, adapter);
                let adapter = kept.map(|(a, b, scaling)| AdapterState {
                    x,
                    a,
                    b,
                    low,
                    scaling,
                });
                prep.finish(LinearState { weight, adapter }, y)
            }
            OpsKind::UnTracked(prep) => prep.finish(pass(x, weight, bias, residual, adapter).0),
        }
    }

    fn norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        kind: Kind,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Norm;

        impl<B: NativePasses> Backward<B, 1> for Norm {
            type State = (FloatTensor<B>, FloatTensor<B>, Kind);

            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                grads: &mut Gradients,
                _checkpointer: &mut Checkpointer,
            ) {
                let (x, weight, kind) = ops.state;
                unary::<B, _>(ops.parents, ops.node, grads, |grad| {
                    B::norm_backward_pass(x, weight, grad, kind)
                });
            }
        }

        let (x, node) = x.into_parts();
        let (weight, bias) = (weight.into_primitive(), bias.into_primitive());
        match Norm.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let state = (x.clone(), weight.clone(), kind);
                prep.finish(state, B::norm(x, weight, bias, kind))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::norm(x, weight, bias, kind)),
        }
    }

    fn attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        shape: Causal,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Attention;

        impl<B: NativePasses> Backward<B, 3> for Attention {
            type State = ([FloatTensor<B>; 3], FloatTensor<B>, Causal);

            fn backward(
                self,
                ops: Ops<Self::State, 3>,
                grads: &mut Gradients,
                _checkpointer: &mut Checkpointer,
            ) {
                let (inputs, logs, shape) = ops.state;
                let grad = grads.consume::<B>(&ops.node);
                let found = B::attention_backward_pass(inputs, logs, grad, false, shape);
                for (node, grad) in ops.parents.into_iter().zip(found) {
                    if let Some(node) = node {
                        grads.register::<B>(node.id, grad);
                    }
                }
            }
        }

        let (query, query_node) = query.into_parts();
        let (key, key_node) = key.into_parts();
        let (value, value_node) = value.into_parts();
        let inputs = [query, key, value];
        let operation = Attention.prepare::<C>([query_node, key_node, value_node]);
        match operation.compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let (out, logs) = B::attention_pass(inputs.clone(), false, shape);
                prep.finish((inputs, logs, shape), out)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::attention_pass(inputs, false, shape).0),
        }
    }

    fn packed_attention(all: FloatTensor<Self>, shape: Causal) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct PackedAttention;

        impl<B: NativePasses> Backward<B, 1> for PackedAttention {
            type State = (FloatTensor<B>, FloatTensor<B>, Causal);

            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                grads: &mut Gradients,
                _checkpointer: &mut Checkpointer,
            ) {
                let (all, logs, shape) = ops.state;
                unary::<B, _>(ops.parents, ops.node, grads, |grad| {
                    let inputs = [all.clone(), all.clone(), all];
                    B::attention_backward_pass(inputs, logs, grad, true, shape).swap_remove(0)
                });
            }
        }

        let (all, node) = all.into_parts();
        let inputs = [all.clone(), all.clone(), all.clone()];
        let (out, logs) = B::attention_pass(inputs, true, shape);
        match PackedAttention
            .prepare::<C>([node])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => prep.finish((all, logs, shape), out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }

    /// Constants: no gradient flows through them.
    fn head_losses(
        rows: FloatTensor<Self>,
        projection: FloatTensor<Self>,
        targets: Vec<u32>,
        weights: Vec<f32>,
        wanted: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (rows, projection) = (rows.into_primitive(), projection.into_primitive());
        let (losses, grads) = B::head_losses(rows, projection, targets, weights, wanted);
        (
            FloatTensor::<Self>::new(losses),
            FloatTensor::<Self>::new(grads),
        )
    }

    fn with_slope(
        hidden: FloatTensor<Self>,
        slope: FloatTensor<Self>,
        losses: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct WithSlope;

        impl<B: NativePasses> Backward<B, 1> for WithSlope {
            type State = FloatTensor<B>;

            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                grads: &mut Gradients,
                _checkpointer: &mut Checkpointer,
            ) {
                let slope = ops.state;
                unary::<B, _>(ops.parents, ops.node, grads, |grad| {
                    B::slope_pass(slope, grad)
                });
            }
        }

        let (_, node) = hidden.into_parts();
        let (slope, losses) = (slope.into_primitive(), losses.into_primitive());
        match WithSlope.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(slope, losses),
            OpsKind::UnTracked(prep) => prep.finish(losses),
        }
    }
}
