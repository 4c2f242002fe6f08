//! What the binaries of this package share. Each binary is one task that a user of `rldp` has.

pub mod allocator;
pub mod audit;
pub mod chaos;
pub mod compare;
pub mod device;
pub mod embedded;
pub mod error;
pub mod finetune;
pub mod pretrain;
pub mod support2;
