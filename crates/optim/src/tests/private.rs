//! What `Private` does not do. Beside the examples that must not compile, which fail for any reason whatever, this names the
//! traits: were one of them implemented, this file would not compile, since the compiler could not choose between two impls.

use std::fmt::{Debug, Display, LowerHex};
use std::hash::Hash;
use std::ops::{Add, Deref, Index, Mul, Neg, Sub};

use crate::{MicroBatch, PerExampleGradients, Private, Released, Step, UnitRows};

macro_rules! implements_none {
    ($type:ty: $($bound:path),+ $(,)?) => {
        $(const _: fn() = || {
            trait Either<Which> {
                fn choose() {}
            }
            impl<T> Either<()> for T {}
            #[allow(dead_code)]
            struct Implemented;
            impl<T: $bound> Either<Implemented> for T {}
            let _ = <$type as Either<_>>::choose;
        };)+
    };
}

implements_none!(Private<f64>: Debug, Display, LowerHex, Clone, Copy, PartialEq, PartialOrd, Hash, Default);
implements_none!(Private<f64>: Deref, AsRef<f64>, Into<f64>, std::borrow::Borrow<f64>, serde::Serialize);
implements_none!(Private<f64>: Add, Sub, Mul, Neg, Into<Released<f64>>);
implements_none!(Private<Vec<f64>>: Index<usize>, IntoIterator, AsRef<[f64]>, Into<Vec<f64>>);
// Who is in a batch, and with what gradient, is private too.
implements_none!(PerExampleGradients: Debug, Clone, serde::Serialize);
implements_none!(MicroBatch: Debug, Clone, serde::Serialize);
implements_none!(UnitRows: Debug, serde::Serialize);
implements_none!(Step: Debug, Clone, serde::Serialize);

/// The check itself can fail: a type that implements a trait makes `Either` ambiguous. This is its other side, a trait that is there.
#[test]
fn released_values_are_open() {
    fn open<T: Debug + Clone + PartialOrd>(value: T) -> T {
        value
    }
    assert_eq!(
        open(Released::new(2.5))
            .map(|value| 2.0 * value)
            .into_value(),
        5.0
    );
}
