//! Which perfd this is.

/// The version, as in Cargo.toml.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit that it was built from; `unknown` outside a checkout.
pub const COMMIT: &str = env!("PERFD_COMMIT");

/// Both, as `perfd --version` prints them.
pub const LONG: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("PERFD_COMMIT"), ")");
