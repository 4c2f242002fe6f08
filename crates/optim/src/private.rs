//! Values that have not been noised, and values that have.

/// A value computed from private data, before any noise.
///
/// It can be made by anyone and read by no one: only the mechanisms of this crate consume it.
///
/// # Guarantee
/// There is no `Debug`, `Display`, `Clone`, `Serialize` or `Deref`, no accessor and no arithmetic (the crate's tests check the absence of every
/// such trait). None of these compile:
///
/// ```compile_fail,E0277
/// println!("{:?}", rldp_optim::Private::new(1.0_f64));
/// ```
/// ```compile_fail,E0277
/// println!("{}", rldp_optim::Private::new(1.0_f64));
/// ```
/// ```compile_fail,E0614
/// let one = rldp_optim::Private::new(1.0_f64);
/// let _raw: f64 = *one;
/// ```
/// ```compile_fail,E0616
/// let one = rldp_optim::Private::new(1.0_f64);
/// let _raw: f64 = one.0;
/// ```
/// ```compile_fail,E0624
/// let one = rldp_optim::Private::new(1.0_f64);
/// let _raw: f64 = one.into_inner();
/// ```
/// ```compile_fail,E0599
/// let one = rldp_optim::Private::new(1.0_f64);
/// let _two = one.clone();
/// ```
/// ```compile_fail,E0277
/// fn write<T: serde::Serialize>(_: T) {}
/// write(rldp_optim::Private::new(1.0_f64));
/// ```
/// ```compile_fail,E0369
/// let _bigger = rldp_optim::Private::new(1.0_f64) > rldp_optim::Private::new(0.0_f64);
/// ```
/// A mechanism consumes it:
/// ```
/// use rldp_optim::{Private, SeededRandom, query::noisy_mean};
/// let losses = Private::new(vec![1.0, 2.0, 3.0]);
/// let mean = noisy_mean(losses, 5.0, 3.0, 1.0, &mut SeededRandom::new(1))?;
/// assert!(mean.value().is_finite());
/// # Ok::<(), rldp_optim::OptimError>(())
/// ```
#[must_use = "a private value is only of use to a mechanism"]
pub struct Private<T>(T);

impl<T> Private<T> {
    /// Marks a value as private.
    pub fn new(value: T) -> Self {
        Self(value)
    }

    /// The raw value, for this crate's mechanisms only.
    pub(crate) fn into_inner(self) -> T {
        self.0
    }
}

/// A value that a mechanism released: noise has been added, and it may be logged, stored and acted on.
///
/// Only this crate's mechanisms make one:
/// ```compile_fail,E0624
/// let _forged = rldp_optim::Released::new(1.0_f64);
/// ```
/// ```compile_fail,E0451
/// let _forged = rldp_optim::Released { value: 1.0_f64 };
/// ```
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Released<T> {
    value: T,
}

impl<T> Released<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { value }
    }

    /// The value.
    pub fn value(&self) -> &T {
        &self.value
    }

    /// The value itself.
    pub fn into_value(self) -> T {
        self.value
    }

    /// A function of released values alone: post-processing, free of privacy cost.
    pub fn map<U>(self, function: impl FnOnce(T) -> U) -> Released<U> {
        Released::new(function(self.value))
    }
}
