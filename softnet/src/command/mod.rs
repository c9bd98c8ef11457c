//! The subcommands of the program.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(not(target_os = "linux"))]
mod other;

#[cfg(target_os = "linux")]
pub use linux::perform;
#[cfg(not(target_os = "linux"))]
pub use other::perform;
