//! Whose privilege Softnet has, whom it becomes, and what somebody may ask for who got it from a set-user-ID bit.
//!
//! Three ways lead to root: root itself (a service, a container), `sudo`, and the set-user-ID bit. In the first two the
//! caller *is* root, so arguments and environment are to be trusted. In the third an ordinary user chooses both, so that
//! nothing of the environment counts and the arguments are limited by the administrator's `bridges.conf`.

mod accounts;
#[cfg(target_os = "linux")]
mod bridges;
mod elevated;
mod identity;

pub use accounts::{Account, Accounts, System};
pub use elevated::guard;
pub use identity::{Identity, Origin, Start};
