use std::fmt;
use std::sync::Arc;

use burn::tensor::Tensor;

/// A function that sees a layer's input and output in every forward pass, and gives the output that is used.
///
/// Both are `[examples, time, ..]`. For recording activations, say; a layer without hook costs nothing.
#[derive(Clone)]
pub struct ForwardHook(Arc<Function>);

type Function = dyn Fn(Tensor<3>, Tensor<3>) -> Tensor<3> + Send + Sync;

impl ForwardHook {
    /// A hook from a function of input and output.
    pub fn new(
        function: impl Fn(Tensor<3>, Tensor<3>) -> Tensor<3> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(function))
    }

    /// Calls the function.
    pub fn call(&self, input: Tensor<3>, output: Tensor<3>) -> Tensor<3> {
        (self.0)(input, output)
    }
}

impl fmt::Debug for ForwardHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ForwardHook")
    }
}
