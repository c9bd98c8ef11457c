//! The host side of the link: where the VM's frames go.
#[cfg(target_os = "linux")]
pub mod bridge;
pub mod expose;
