//! placeholder until the first commit
