//! From released gradients to any Burn optimizer.

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::tensor::Tensor;

use crate::accumulate::StepRelease;
use crate::error::{OptimError, same_length};
use crate::gradients::Layout;

/// A parameter of a module as an optimizer finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParameterSlot {
    /// Its id.
    pub id: ParamId,
    /// Its shape, which a flat gradient is folded into.
    pub shape: Vec<usize>,
}

/// Clipping groups of a module's parameters, in the order of the plan.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ParameterGroups {
    groups: Vec<(String, Vec<ParameterSlot>)>,
}

impl ParameterGroups {
    /// No groups yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a group of parameters that share one norm.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, slots: Vec<ParameterSlot>) -> Self {
        self.groups.push((name.into(), slots));
        self
    }

    /// All trainable float parameters of a module in one group: flat clipping.
    #[must_use]
    pub fn flat<M: Module>(name: impl Into<String>, module: &M) -> Self {
        Self::each([(name, module)])
    }

    /// All trainable float parameters of each of these modules (the layers of a network, say) in a group of its own.
    #[must_use]
    pub fn each<'a, N: Into<String>, M: Module + 'a>(
        modules: impl IntoIterator<Item = (N, &'a M)>,
    ) -> Self {
        let modules = modules.into_iter();
        modules.fold(Self::new(), |groups, (name, module)| {
            let mut slots = Slots(Vec::new());
            module.visit(&mut slots);
            groups.with(name, slots.0)
        })
    }

    /// The groups' names and slots.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[ParameterSlot])> {
        self.groups
            .iter()
            .map(|(name, slots)| (name.as_str(), slots.as_slice()))
    }

    /// The layout that an [`crate::Accumulator`] needs.
    #[must_use]
    pub fn layout(&self) -> Layout {
        Layout::new(self.groups.iter().map(|(name, slots)| {
            (
                name.clone(),
                slots
                    .iter()
                    .map(|slot| slot.shape.iter().product())
                    .collect(),
            )
        }))
    }

    /// A release in the form in which Burn's optimizers take gradients.
    ///
    /// # Errors
    /// A release of other groups, or a parameter of more than six dimensions.
    pub fn gradients(&self, release: &StepRelease) -> Result<GradientsParams, OptimError> {
        same_length("released groups", self.groups.len(), release.groups.len())?;
        let mut gradients = GradientsParams::new();
        for (index, ((name, slots), group)) in self.groups.iter().zip(&release.groups).enumerate() {
            if *name != group.name {
                return Err(OptimError::GroupMismatch {
                    index,
                    expected: name.clone(),
                    found: group.name.clone(),
                });
            }
            same_length(
                "tensors of a released group",
                slots.len(),
                group.gradients.len(),
            )?;
            for (slot, gradient) in slots.iter().zip(&group.gradients) {
                register(&mut gradients, slot, gradient.clone())?;
            }
        }
        Ok(gradients)
    }
}

/// Registers a flat gradient under a parameter's id, in the parameter's shape.
///
/// # Errors
/// Another number of coordinates, or more than six dimensions.
pub fn register(
    gradients: &mut GradientsParams,
    slot: &ParameterSlot,
    gradient: Tensor<1>,
) -> Result<(), OptimError> {
    same_length(
        "coordinates of a parameter",
        slot.shape.iter().product(),
        gradient.dims()[0],
    )?;
    match *slot.shape.as_slice() {
        [a] => gradients.register(slot.id, gradient.reshape([a])),
        [a, b] => gradients.register(slot.id, gradient.reshape([a, b])),
        [a, b, c] => gradients.register(slot.id, gradient.reshape([a, b, c])),
        [a, b, c, d] => gradients.register(slot.id, gradient.reshape([a, b, c, d])),
        [a, b, c, d, e] => gradients.register(slot.id, gradient.reshape([a, b, c, d, e])),
        [a, b, c, d, e, f] => gradients.register(slot.id, gradient.reshape([a, b, c, d, e, f])),
        _ => {
            return Err(OptimError::Rank {
                rank: slot.shape.len(),
                most: 6,
            });
        }
    }
    Ok(())
}

/// Any Burn optimizer, fed with released gradients only.
///
/// The optimizer's moments and the parameters it moves are post-processing of the releases.
#[derive(Clone)]
pub struct DpOptimizer {
    inner: ModuleOptimizer,
    groups: ParameterGroups,
}

impl DpOptimizer {
    /// Wraps an optimizer (`AdamConfig::new().init()`, say) for these parameters. Parameters outside the groups never move.
    pub fn new(inner: impl Into<ModuleOptimizer>, groups: ParameterGroups) -> Self {
        Self {
            inner: inner.into(),
            groups,
        }
    }

    /// The layout of the parameters' groups.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.groups.layout()
    }

    /// Moves the parameters by one step of the inner optimizer.
    ///
    /// # Errors
    /// A release of other groups.
    pub fn step<M: Module>(
        &mut self,
        learning_rate: f64,
        module: M,
        release: &StepRelease,
    ) -> Result<M, OptimError> {
        let gradients = self.groups.gradients(release)?;
        Ok(self.inner.step(learning_rate, module, gradients))
    }

    /// The inner optimizer, for its record.
    #[must_use]
    pub fn inner(&self) -> &ModuleOptimizer {
        &self.inner
    }

    /// The inner optimizer, to load a record into.
    pub fn inner_mut(&mut self) -> &mut ModuleOptimizer {
        &mut self.inner
    }
}

/// Collects the trainable float parameters in visiting order.
struct Slots(Vec<ParameterSlot>);

impl ModuleVisitor for Slots {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if param.is_require_grad() {
            self.0.push(ParameterSlot {
                id: param.id,
                shape: param.val().dims().to_vec(),
            });
        }
    }
}
