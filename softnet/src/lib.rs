//! All of Softnet that touches the operating system.
pub mod host;
#[cfg(target_os = "linux")]
pub mod netlink;
