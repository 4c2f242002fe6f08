//! What the rivals can be set to.

use serde::{Deserialize, Serialize};

/// Settings of the rivals. The defaults are those of the papers where a paper gives one for its method as such; what papers
/// tune per task (clipping norms, decays) is named as ours.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct RivalOptions {
    /// First clipping norm of flat rivals; `None` for the trainer's norm per adapter times the root of their number, at
    /// which the same units are clipped if all adapters' gradients are alike.
    pub flat_clipping_norm: Option<f64>,
    /// Automatic clipping.
    pub automatic: AutomaticOptions,
    /// Quantile clipping, flat.
    pub quantile: QuantileOptions,
    /// Quantile clipping per adapter.
    pub quantile_per_adapter: PerAdapterQuantileOptions,
    /// Decaying clipping norm and noise.
    pub decay: DecayOptions,
    /// DPSGD-Global-Adapt.
    pub global_adapt: GlobalAdaptOptions,
    /// AdaCliP.
    pub adaclip: AdaClipRivalOptions,
}

/// AdaCliP (Pichapati et al. 2019).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct AdaClipRivalOptions {
    /// Clipping norm in the transformed coordinates; 1 in the paper.
    pub clipping_norm: f64,
    /// Decay of the running mean; 0.99 in the paper.
    pub mean_decay: f64,
    /// Decay of the running variance; 0.9 in the paper.
    pub variance_decay: f64,
    /// Lower bound of a variance estimate, h1; 1e-12 in the paper.
    pub smallest_variance: f64,
    /// Upper bound of a variance estimate, h2; 10 in the paper's experiments.
    pub largest_variance: f64,
    /// Deviation of every coordinate before anything is known; `None` for that of the variance `sqrt(h1 h2)`.
    pub initial_deviation: Option<f64>,
}

impl Default for AdaClipRivalOptions {
    fn default() -> Self {
        Self {
            clipping_norm: 1.0,
            mean_decay: 0.99,
            variance_decay: 0.9,
            smallest_variance: 1e-12,
            largest_variance: 10.0,
            initial_deviation: None,
        }
    }
}

/// Automatic clipping (Bu et al. 2023, AUTO-S).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct AutomaticOptions {
    /// Added to every norm; 0.01 throughout the paper.
    pub stability: f64,
    /// Clipping norm R, which only scales the learning rate of plain SGD and nothing under Adam; 1 in the paper.
    pub clipping_norm: f64,
    /// One norm for every adapter instead of one over all.
    pub per_adapter: bool,
}

impl Default for AutomaticOptions {
    fn default() -> Self {
        Self {
            stability: 0.01,
            clipping_norm: 1.0,
            per_adapter: false,
        }
    }
}

/// Quantile clipping over all parameters (Andrew et al. 2021).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct QuantileOptions {
    /// Share of units that should stay unclipped; the paper recommends 0.5.
    pub target: f64,
    /// Rate of the geometric update; the paper recommends 0.2.
    pub rate: f64,
    /// Standard deviation of the noisy count, as a share of the expected batch; the paper recommends 1/20.
    pub count_deviation: f64,
}

impl Default for QuantileOptions {
    fn default() -> Self {
        Self {
            target: 0.5,
            rate: 0.2,
            count_deviation: 0.05,
        }
    }
}

/// Quantile clipping per adapter (He et al. 2023).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct PerAdapterQuantileOptions {
    /// Share of units that should stay unclipped in every adapter; ours, as for flat clipping, since the paper sets it by
    /// task.
    pub target: f64,
    /// Rate of the geometric update; ours, between the flat method's 0.2 and faster ones, since a run is short.
    pub rate: f64,
    /// Share of the step's precision spent on the counts; one percent, as the paper's r.
    pub count_share: f64,
    /// How the noise is split over adapters.
    pub allocation: Allocation,
}

impl Default for PerAdapterQuantileOptions {
    fn default() -> Self {
        Self {
            target: 0.5,
            rate: 0.3,
            count_share: 0.01,
            allocation: Allocation::default(),
        }
    }
}

/// The noise allocations of He et al. 2023, section 3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Allocation {
    /// Every adapter gets an equal share of the precision: noise in proportion to its clipping norm.
    #[default]
    EqualBudget,
    /// Every coordinate of every adapter gets the same noise.
    Global,
}

/// Decaying clipping norm and noise multiplier (Du et al. 2021): `C_t = C_0 rho_c^(-t/T)`, `sigma_t = sigma_0 rho_mu^(-t/T)`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct DecayOptions {
    /// rho_c, at least one; ours, since the paper tunes it.
    pub clipping: f64,
    /// rho_mu, at least one; ours, since the paper tunes it.
    pub noise: f64,
    /// Levels that the noise goes through on its way down: a deck holds finitely many.
    pub levels: usize,
}

impl Default for DecayOptions {
    fn default() -> Self {
        Self {
            clipping: 2.0,
            noise: 1.5,
            levels: 10,
        }
    }
}

/// DPSGD-Global-Adapt (Esipova et al. 2023).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct GlobalAdaptOptions {
    /// First ceiling Z, in clipping norms C_0: gradients below it are scaled by C_0 / Z. The authors' code starts at 50 to
    /// 100 for a C_0 of 1.
    pub ceiling: f64,
    /// Rate eta_Z at which the ceiling falls when no gradient exceeds it; the authors' code takes 0.1.
    pub rate: f64,
    /// Standard deviation of the noisy count of gradients above the ceiling, in units; the authors' code takes 10.
    pub count_deviation: f64,
}

impl Default for GlobalAdaptOptions {
    fn default() -> Self {
        Self {
            ceiling: 50.0,
            rate: 0.1,
            count_deviation: 10.0,
        }
    }
}
