//! The few system calls that no safe library offers. Each file says why it needs `unsafe`.

pub mod fd;
#[cfg(not(target_os = "linux"))]
pub mod groups;
#[cfg(target_os = "linux")]
pub mod incarnation;
#[cfg(target_os = "linux")]
pub mod process;
pub mod secure;
pub mod sigchld;
#[cfg(target_os = "linux")]
pub mod tun;
#[cfg(target_os = "linux")]
pub mod wait;

/// The flags for sending: a closed peer is an error, not a signal.
#[cfg(target_os = "linux")]
pub const SEND: rustix::net::SendFlags = rustix::net::SendFlags::NOSIGNAL;
/// The flags for sending: a closed peer is an error, because the runtime ignores the signal.
#[cfg(not(target_os = "linux"))]
pub const SEND: rustix::net::SendFlags = rustix::net::SendFlags::empty();
