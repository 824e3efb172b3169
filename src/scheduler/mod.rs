//! temp
pub mod plan;
