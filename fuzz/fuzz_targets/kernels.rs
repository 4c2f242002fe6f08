//! The native loops of training, forward and backward, over any shapes and values: no access outside a buffer (AddressSanitizer),
//! every element of every result written, results those of plain loops in double precision, and an example that holds NaN or
//! infinities changes none of the others'.
//!
//! The sources are compiled three times, so that all kernels run on a processor that has AVX-512: a local
//! `is_x86_feature_detected` hides instructions from the second and third copy. None of them needs the tensor framework.
#![no_main]

mod kernels {
    pub mod input;
    pub mod sums;
}

/// Every instruction that the processor has.
#[allow(dead_code)]
#[path = "../../crates/models/src/fused"]
mod widest {
    pub mod attention;
    #[path = "../../../../fuzz/fuzz_targets/kernels/cases.rs"]
    pub mod cases;
    pub mod head;
    pub mod linear;
    pub mod math;
    pub mod norm;
    pub mod product;
    pub mod tile;
    pub mod transpose;
}

/// The same without AVX-512.
#[allow(dead_code)]
#[path = "../../crates/models/src/fused"]
mod narrow {
    macro_rules! is_x86_feature_detected {
        ("avx2") => {
            std::arch::is_x86_feature_detected!("avx2")
        };
        ("fma") => {
            std::arch::is_x86_feature_detected!("fma")
        };
        ($other:tt) => {
            false
        };
    }

    pub mod attention;
    #[path = "../../../../fuzz/fuzz_targets/kernels/cases.rs"]
    pub mod cases;
    pub mod head;
    pub mod linear;
    pub mod math;
    pub mod norm;
    pub mod product;
    pub mod tile;
    pub mod transpose;
}

/// The same without vector instructions of our own.
#[allow(dead_code)]
#[path = "../../crates/models/src/fused"]
mod portable {
    macro_rules! is_x86_feature_detected {
        ($any:tt) => {
            false
        };
    }

    pub mod attention;
    #[path = "../../../../fuzz/fuzz_targets/kernels/cases.rs"]
    pub mod cases;
    pub mod head;
    pub mod linear;
    pub mod math;
    pub mod norm;
    pub mod product;
    pub mod tile;
    pub mod transpose;
}

// The host kernels of rldp-optim, by the paths that they know each other by.
#[allow(dead_code)]
#[path = "../../crates/optim/src/error.rs"]
mod error;
#[allow(dead_code)]
#[path = "../../crates/optim/src/kernels/host.rs"]
mod host;
#[allow(dead_code, unused_imports)]
#[path = "../../crates/optim/src/random/mod.rs"]
mod random;
#[allow(dead_code)]
#[path = "../../crates/optim/src/row_map.rs"]
mod row_map;
#[path = "../../crates/optim/src/wide.rs"]
mod wide;

use std::sync::Once;

use kernels::input::Input;
use libfuzzer_sys::fuzz_target;

static SAID: Once = Once::new();

fuzz_target!(|bytes: &[u8]| {
    SAID.call_once(|| {
        let [widest, narrow, portable] = [
            widest::cases::kernel(),
            narrow::cases::kernel(),
            portable::cases::kernel(),
        ];
        eprintln!("kernels: {widest}, {narrow}, {portable}");
        // This thread does the work of the pool: waking another would take most of an execution.
        let pool = rayon::ThreadPoolBuilder::new();
        let pool = pool.num_threads(1).use_current_thread().build_global();
        pool.expect("there is no pool yet");
    });
    let mut input = Input::new(bytes);
    match input.byte() % 4 {
        0 => widest::cases::run(&mut input),
        1 => narrow::cases::run(&mut input),
        2 => portable::cases::run(&mut input),
        _ => kernels::sums::run(&mut input),
    }
});
