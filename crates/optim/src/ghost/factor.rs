//! How each kind of layer makes its parameters' per-example gradients from what flows through it.

use burn::tensor::{IndexingUpdateOp, Int, Tensor};

/// One use of a parameter in a forward pass: what its per-example gradient is made of.
///
/// All tensors have shape `[examples, time, ..]` and carry no autodiff association. Raw values: no `Debug`.
#[derive(Clone)]
#[non_exhaustive]
pub enum Factor {
    /// `sum_t left[t] right[t]^T`, `[left, right]`: the weight of a linear layer from its input and its output's gradient.
    Outer {
        /// `[examples, time, left]`.
        left: Tensor<3>,
        /// `[examples, time, right]`.
        right: Tensor<3>,
    },
    /// `sum_t error[t]`, `[width]`: a bias.
    Sum {
        /// `[examples, time, width]`.
        error: Tensor<3>,
    },
    /// `sum_t input[t] * error[t]`, `[width]`: the scale of a normalisation layer.
    Product {
        /// The normalised input, `[examples, time, width]`.
        input: Tensor<3>,
        /// The output's gradient, of the same shape.
        error: Tensor<3>,
    },
    /// `sum_t` of `error[t]` into row `ids[t]`, `[rows, width]`: an embedding table.
    Rows {
        /// `[examples, time]`, below `rows`.
        ids: Tensor<2, Int>,
        /// `[examples, time, width]`.
        error: Tensor<3>,
        /// Rows of the table.
        rows: usize,
    },
    /// `error[t]` in row `t`, zero below, `[rows, width]`: a table of learned positions.
    Positions {
        /// `[examples, time, width]`.
        error: Tensor<3>,
        /// Rows of the table, at least `time`.
        rows: usize,
    },
}

impl Factor {
    /// How many examples there are.
    pub(super) fn examples(&self) -> usize {
        match self {
            Self::Outer { left, .. } => left.dims()[0],
            Self::Sum { error }
            | Self::Product { error, .. }
            | Self::Rows { error, .. }
            | Self::Positions { error, .. } => error.dims()[0],
        }
    }

    /// Coordinates of the parameter.
    pub(super) fn width(&self) -> usize {
        match self {
            Self::Outer { left, right } => left.dims()[2] * right.dims()[2],
            Self::Sum { error } | Self::Product { error, .. } => error.dims()[2],
            Self::Rows { error, rows, .. } | Self::Positions { error, rows } => {
                rows * error.dims()[2]
            }
        }
    }

    /// Adds this use to `sum`, or begins it: `[examples, coordinates]`.
    pub(super) fn add_to(self, sum: Option<Tensor<2>>) -> Tensor<2> {
        let (examples, width) = (self.examples(), self.width());
        let value = match self {
            Self::Outer { left, right } => left
                .swap_dims(1, 2)
                .matmul(right)
                .reshape([examples, width]),
            Self::Sum { error } => error.sum_dim(1).reshape([examples, width]),
            Self::Product { input, error } => (input * error).sum_dim(1).reshape([examples, width]),
            Self::Rows { ids, error, rows } => return scatter(sum, ids, error, rows),
            Self::Positions { error, rows } => {
                let [_, time, columns] = error.dims();
                let error = error.reshape([examples, time * columns]);
                if time == rows {
                    error
                } else {
                    let rest = [examples, (rows - time) * columns];
                    let rest = Tensor::zeros(rest, &error.device());
                    Tensor::cat(vec![error, rest], 1)
                }
            }
        };
        match sum {
            Some(sum) => sum + value,
            None => value,
        }
    }
}

/// Adds every position's error to its token's row, example by example.
fn scatter(
    sum: Option<Tensor<2>>,
    ids: Tensor<2, Int>,
    error: Tensor<3>,
    rows: usize,
) -> Tensor<2> {
    let [examples, time, columns] = error.dims();
    let device = error.device();
    let start = Tensor::<1, Int>::arange(0..examples as i64, &device) * rows as i64;
    let places = (ids + start.reshape([examples, 1])).reshape([examples * time]);
    let table = match sum {
        Some(sum) => sum.reshape([examples * rows, columns]),
        None => Tensor::zeros([examples * rows, columns], &device),
    };
    table
        .select_assign(
            0,
            places,
            error.reshape([examples * time, columns]),
            IndexingUpdateOp::Add,
        )
        .reshape([examples, rows * columns])
}
