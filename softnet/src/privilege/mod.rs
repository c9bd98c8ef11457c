//! Who started Softnet, which user it becomes, and what a set-user-ID caller may request.
//!
//! Three ways lead to root: root itself (a service, a container), `sudo`, and the set-user-ID bit. In the
//! first two the caller *is* root, so its arguments and environment are trusted. In the third an ordinary
//! user chooses both, so the environment is ignored and the arguments are limited by the administrator's
//! `bridges.conf`.

mod accounts;
#[cfg(target_os = "linux")]
mod bridges;
mod elevated;
mod identity;

pub use accounts::{Account, Accounts, System};
pub use elevated::prepare_elevated;
pub use identity::{Identity, Origin, Start};
