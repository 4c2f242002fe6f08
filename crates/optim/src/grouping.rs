//! Which tensors share a clipping norm.

use crate::error::{OptimError, same_length};
use crate::gradients::{GroupGradients, GroupLayout, Layout, PerExampleGradients};
use crate::optimizer::ParameterGroups;

/// How the groups of a gradient source become clipping groups, each with one norm.
///
/// One `Grouping` is applied to the parameters ([`Grouping::parameters`]) and to every micro-batch of gradients
/// ([`Grouping::gradients`]), so that both have the same groups in the same order.
///
/// The sum over all groups moves by at most `sqrt(sum_l C_l^2)`; each group by its own C_l (see [`crate::Clip::sensitivity`]).
///
/// ```
/// use rldp_optim::{Grouping, Layout};
/// let adapters = Layout::new([("h.0.q", vec![8, 8]), ("h.0.v", vec![8, 8]), ("h.1.q", vec![8, 8])]);
/// let names = |grouping: &Grouping| -> Result<Vec<String>, rldp_optim::OptimError> {
///     Ok(grouping.layout(&adapters)?.groups.into_iter().map(|group| group.name).collect())
/// };
/// assert_eq!(names(&Grouping::Flat)?, ["all"]);
/// assert_eq!(names(&Grouping::PerGroup)?, ["h.0.q", "h.0.v", "h.1.q"]);
/// assert_eq!(names(&Grouping::PerTensor)?.len(), 6);
/// let per_layer = Grouping::by(&adapters, |name| name[..3].to_owned());
/// assert_eq!(names(&per_layer)?, ["h.0", "h.1"]);
/// # Ok::<(), rldp_optim::OptimError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Grouping {
    /// One norm over everything (Abadi et al. 2016).
    Flat,
    /// The source's own groups: for LoRA one per adapter, A and B together.
    #[default]
    PerGroup,
    /// One norm for each tensor.
    PerTensor,
    /// Groups merged under new names, in the order in which the names first appear: per layer, say. See [`Grouping::by`].
    Merged {
        /// The new name of each of the source's groups.
        names: Vec<String>,
    },
}

impl Grouping {
    /// Merges the groups to which `name` gives the same name.
    #[must_use]
    pub fn by(layout: &Layout, name: impl Fn(&str) -> String) -> Self {
        let groups = layout.groups.iter();
        Self::Merged {
            names: groups.map(|group| name(&group.name)).collect(),
        }
    }

    /// The clipping groups' layout.
    ///
    /// # Errors
    /// [`OptimError::LengthMismatch`] if merged names are not one per group.
    pub fn layout(&self, layout: &Layout) -> Result<Layout, OptimError> {
        let groups = layout.groups.iter();
        let parts = groups.map(|group| (group.name.clone(), group.widths.clone()));
        let groups = self.regrouped(parts.collect())?.into_iter();
        Ok(Layout {
            groups: groups
                .map(|(name, widths)| GroupLayout { name, widths })
                .collect(),
        })
    }

    /// The parameters in clipping groups.
    ///
    /// # Errors
    /// As for [`Grouping::layout`].
    pub fn parameters(&self, groups: &ParameterGroups) -> Result<ParameterGroups, OptimError> {
        let parts = groups
            .iter()
            .map(|(name, slots)| (name.to_owned(), slots.to_vec()));
        let groups = self.regrouped(parts.collect())?.into_iter();
        Ok(groups.fold(ParameterGroups::new(), |all, (name, slots)| {
            all.with(name, slots)
        }))
    }

    /// A micro-batch's gradients in clipping groups.
    ///
    /// # Errors
    /// As for [`Grouping::layout`].
    pub fn gradients(
        &self,
        gradients: PerExampleGradients,
    ) -> Result<PerExampleGradients, OptimError> {
        let parts = gradients.groups.into_iter();
        let parts = parts.map(|group| (group.name, group.tensors)).collect();
        let groups = self.regrouped(parts)?.into_iter();
        let groups = groups
            .map(|(name, tensors)| GroupGradients { name, tensors })
            .collect();
        PerExampleGradients::new(groups, gradients.rows)
    }

    /// The same for any kind of part.
    fn regrouped<T>(
        &self,
        groups: Vec<(String, Vec<T>)>,
    ) -> Result<Vec<(String, Vec<T>)>, OptimError> {
        let mut merged: Vec<(String, Vec<T>)> = Vec::new();
        match self {
            Self::PerGroup => return Ok(groups),
            Self::Flat => {
                let parts = groups.into_iter().flat_map(|(_, parts)| parts).collect();
                merged.push(("all".to_owned(), parts));
            }
            Self::PerTensor => {
                for (name, parts) in groups {
                    for (index, part) in parts.into_iter().enumerate() {
                        merged.push((format!("{name}.{index}"), vec![part]));
                    }
                }
            }
            Self::Merged { names } => {
                same_length("names of merged groups", groups.len(), names.len())?;
                for ((_, parts), name) in groups.into_iter().zip(names) {
                    match merged.iter_mut().find(|(known, _)| known == name) {
                        Some((_, known)) => known.extend(parts),
                        None => merged.push((name.clone(), parts)),
                    }
                }
            }
        }
        Ok(merged)
    }
}
