//! The fenced corner: the few system calls that no safe library offers. Each file says why it needs `unsafe`.

pub mod fd;
#[cfg(not(target_os = "linux"))]
pub mod groups;
#[cfg(target_os = "linux")]
pub mod mmsg;
#[cfg(target_os = "linux")]
pub mod process;
pub mod secure;
#[cfg(target_os = "linux")]
pub mod signalfd;
#[cfg(target_os = "linux")]
pub mod tun;
