//! Who may use the server: keys, the tenants whose they are, and what each of those may do.

mod file;
mod glob;
mod hash;
mod held;
mod meter;
mod tenant;

pub use hash::KeyHash;
pub use held::Keys;
pub(super) use meter::{Limited, Place};
pub(super) use tenant::Tenant;
