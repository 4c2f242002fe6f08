//! The crate's one error type.

use rldp_accounting::AccountingError;

/// Why a part of the private step was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OptimError {
    /// A number is outside its range.
    #[error("{what} is {value}; it must be {range}")]
    OutOfRange {
        /// Which number.
        what: &'static str,
        /// The offending value.
        value: f64,
        /// What is allowed.
        range: &'static str,
    },
    /// Two things that belong together have different lengths.
    #[error("{what}: expected {expected}, got {found}")]
    LengthMismatch {
        /// What was counted.
        what: &'static str,
        /// The length it must have.
        expected: usize,
        /// The length it has.
        found: usize,
    },
    /// A gradient tensor does not have the shape the layout promised.
    #[error("tensor {tensor} of group `{group}` is {found:?}; expected {expected:?}")]
    ShapeMismatch {
        /// The group's name.
        group: String,
        /// Position of the tensor in its group.
        tensor: usize,
        /// Expected rows and coordinates.
        expected: [usize; 2],
        /// Actual rows and coordinates.
        found: [usize; 2],
    },
    /// A gradient tensor has another number of coordinates than the layout promised.
    #[error("tensor {tensor} of group `{group}` has {found} coordinates; expected {expected}")]
    WidthMismatch {
        /// The group's name.
        group: String,
        /// Position of the tensor in its group.
        tensor: usize,
        /// Expected coordinates.
        expected: usize,
        /// Actual coordinates.
        found: usize,
    },
    /// More than an implementation can count exactly.
    #[error("too many {what}; at most {most}")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// The most there may be.
        most: usize,
    },
    /// A group's name does not match the layout: groups must come in one fixed order.
    #[error("group {index} is `{found}`; the layout has `{expected}` there")]
    GroupMismatch {
        /// Position of the group.
        index: usize,
        /// The layout's name.
        expected: String,
        /// The name that came.
        found: String,
    },
    /// There is no gradient at all.
    #[error("no gradient groups, or a group without tensors")]
    Empty,
    /// A micro-batch came with losses although the plan does not pay for them, or without although it does.
    #[error("the plan {} a training loss, but the micro-batch {} losses", if *.planned { "pays for" } else { "does not pay for" }, if *.planned { "has no" } else { "has" })]
    LossTelemetry {
        /// Whether the plan pays for a loss.
        planned: bool,
    },
    /// A sampled unit is not in the table.
    #[error("a sampled unit is not among the {units} of the table")]
    UnknownUnit {
        /// Units of the table.
        units: usize,
    },
    /// A privacy unit has more rows than a micro-batch; they must be clipped together.
    #[error("a privacy unit has more rows than the {rows} of a micro-batch")]
    UnitTooLarge {
        /// Rows of a micro-batch.
        rows: usize,
    },
    /// A micro-batch was sampled for another step, or for none.
    #[error("this micro-batch was not sampled for this step")]
    ForeignMicroBatch,
    /// A step was to be released before all its micro-batches were added.
    #[error("a micro-batch of this step has not been added")]
    MissingMicroBatch,
    /// A trainable parameter has no leading dimension of one to expand.
    #[error(
        "a trainable parameter of shape {shape:?} has no leading dimension of one that could be expanded to one copy per example"
    )]
    NotExpandable {
        /// Its shape.
        shape: Vec<usize>,
    },
    /// The loss does not depend on a parameter that is to be trained.
    #[error("the loss does not depend on a parameter of shape {shape:?} in group `{group}`")]
    NoGradient {
        /// The parameter's group.
        group: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// A plan with transforms needs per-example gradients in memory.
    #[error(
        "a plan with transforms clips per-example gradients in memory, not those of another source"
    )]
    TransformedSource,
    /// A plan without transforms has nothing for AdaClip to learn.
    #[error("the plan has no transforms")]
    NoTransforms,
    /// A parameter has more dimensions than this crate can hand to an optimizer.
    #[error("a parameter has {rank} dimensions; at most {most} are supported")]
    Rank {
        /// Its dimensions.
        rank: usize,
        /// The most supported.
        most: usize,
    },
    /// The operating system gave no entropy; without it nothing private can be released.
    #[error("the operating system's random source failed: {message}")]
    Entropy {
        /// What it said.
        message: String,
    },
    /// A tensor could not be read back from its device.
    #[error("reading {what} from the device: {message}")]
    Device {
        /// What was read.
        what: &'static str,
        /// What the backend said.
        message: String,
    },
    /// The loss does not depend on a layer that was recorded on a [`Tape`](crate::ghost::Tape).
    #[error("the loss does not depend on recorded layer {layer}")]
    MissingGradient {
        /// Position of the layer among those recorded.
        layer: usize,
    },
    /// No layer was recorded for a parameter that is to be trained.
    #[error("no layer was recorded for a parameter of shape {shape:?} in group `{group}`")]
    UnrecordedParameter {
        /// The parameter's clipping group.
        group: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// The accountant refused.
    #[error(transparent)]
    Accounting(#[from] AccountingError),
}

/// Refuses a number that is not positive and finite.
pub(crate) fn positive(what: &'static str, value: f64) -> Result<f64, OptimError> {
    if value > 0.0 && value.is_finite() {
        Ok(value)
    } else {
        Err(OptimError::OutOfRange {
            what,
            value,
            range: "positive and finite",
        })
    }
}

/// Refuses two lengths that differ.
pub(crate) fn same_length(
    what: &'static str,
    expected: usize,
    found: usize,
) -> Result<(), OptimError> {
    if expected == found {
        Ok(())
    } else {
        Err(OptimError::LengthMismatch {
            what,
            expected,
            found,
        })
    }
}
