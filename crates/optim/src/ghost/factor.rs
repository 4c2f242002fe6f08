//! How each kind of layer makes its parameters' per-example gradients from what flows through it.

use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};

use super::normalisation::Normalisation;

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
    /// `sum_t normalise(input[t]) * error[t]`, `[width]`: the same from the input as it came.
    Norm {
        /// The layer's input, `[examples, time, width]`.
        input: Tensor<3>,
        /// The output's gradient, of the same shape.
        error: Tensor<3>,
        /// What the layer does before it scales.
        normalisation: Normalisation,
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
        self.error().dims()[0]
    }

    /// Coordinates of the parameter.
    pub(super) fn width(&self) -> usize {
        match self {
            Self::Outer { left, right } => left.dims()[2] * right.dims()[2],
            Self::Sum { error } | Self::Product { error, .. } | Self::Norm { error, .. } => {
                error.dims()[2]
            }
            Self::Rows { error, rows, .. } | Self::Positions { error, rows } => {
                rows * error.dims()[2]
            }
        }
    }

    /// The first examples only.
    pub(super) fn first(&self, count: usize) -> Self {
        if count == self.examples() {
            return self.clone();
        }
        self.map(&|tensor| tensor.narrow(0, 0, count), &|ids| {
            ids.narrow(0, 0, count)
        })
    }

    /// These examples, in this order.
    pub(super) fn select(&self, rows: &[usize]) -> Self {
        let count = rows.len();
        let indices: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
        let indices: Tensor<1, Int> =
            Tensor::from_data(TensorData::new(indices, [count]), &self.error().device());
        self.map(&|tensor| tensor.select(0, indices.clone()), &|ids| {
            ids.select(0, indices.clone())
        })
    }

    /// One unit as one long example: its rows one after the other, their errors multiplied by the rows' weights.
    ///
    /// For the kinds that do not look at positions.
    pub(super) fn unit(&self, members: &[(usize, f32)]) -> Self {
        let rows: Vec<usize> = members.iter().map(|&(row, _)| row).collect();
        let weights: Vec<f32> = members.iter().map(|&(_, weight)| weight).collect();
        let count = weights.len();
        let own = self.select(&rows);
        let weights: Tensor<3> = Tensor::from_data(
            TensorData::new(weights, [count, 1, 1]),
            &self.error().device(),
        );
        let weighted = match own {
            Self::Outer { left, right } => Self::Outer {
                left,
                right: right * weights,
            },
            Self::Rows { ids, error, rows } => Self::Rows {
                ids,
                error: error * weights,
                rows,
            },
            other => other,
        };
        weighted.map(
            &|tensor| {
                let [count, time, width] = tensor.dims();
                tensor.reshape([1, count * time, width])
            },
            &|ids| {
                let [count, time] = ids.dims();
                ids.reshape([1, count * time])
            },
        )
    }

    /// The same use with other tensors.
    fn map(
        &self,
        change: &dyn Fn(Tensor<3>) -> Tensor<3>,
        change_ids: &dyn Fn(Tensor<2, Int>) -> Tensor<2, Int>,
    ) -> Self {
        match self.clone() {
            Self::Outer { left, right } => Self::Outer {
                left: change(left),
                right: change(right),
            },
            Self::Sum { error } => Self::Sum {
                error: change(error),
            },
            Self::Product { input, error } => Self::Product {
                input: change(input),
                error: change(error),
            },
            Self::Norm {
                input,
                error,
                normalisation,
            } => Self::Norm {
                input: change(input),
                error: change(error),
                normalisation,
            },
            Self::Rows { ids, error, rows } => Self::Rows {
                ids: change_ids(ids),
                error: change(error),
                rows,
            },
            Self::Positions { error, rows } => Self::Positions {
                error: change(error),
                rows,
            },
        }
    }

    /// The tensor that carries the gradient.
    fn error(&self) -> &Tensor<3> {
        match self {
            Self::Outer { right: error, .. }
            | Self::Sum { error }
            | Self::Product { error, .. }
            | Self::Norm { error, .. }
            | Self::Rows { error, .. }
            | Self::Positions { error, .. } => error,
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
            Self::Sum { error } => time_sums(error),
            Self::Product { input, error } => time_sums(input * error),
            Self::Norm {
                input,
                error,
                normalisation,
            } => normalisation.products(input, error),
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

/// Sums over positions, `[examples, width]`, as a matrix product, which is quicker than a reduction.
pub(super) fn time_sums(error: Tensor<3>) -> Tensor<2> {
    let [examples, time, width] = error.dims();
    let ones = Tensor::ones([examples, 1, time], &error.device());
    ones.matmul(error).reshape([examples, width])
}

/// A parameter's per-example gradients from all its uses, `[examples, coordinates]`; of no uses, there is nothing.
pub(super) fn multiplied_out(factors: Vec<Factor>) -> Option<Tensor<2>> {
    // Rows are scattered into what is there already.
    let (scattered, dense): (Vec<_>, Vec<_>) = factors
        .into_iter()
        .partition(|factor| matches!(factor, Factor::Rows { .. }));
    let all = dense.into_iter().chain(scattered);
    all.fold(None, |sum, factor| Some(factor.add_to(sum)))
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
