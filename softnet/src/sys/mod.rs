//! The fenced corner: the few system calls that no safe library offers. Each file says why it needs `unsafe`.

pub mod fd;
#[cfg(not(target_os = "linux"))]
pub mod groups;
#[cfg(target_os = "linux")]
pub mod incarnation;
#[cfg(target_os = "linux")]
pub mod mmsg;
#[cfg(any(target_os = "macos", test))]
pub mod msgx;
#[cfg(target_os = "linux")]
pub mod process;
pub mod secure;
#[cfg(target_os = "linux")]
pub mod signalfd;
#[cfg(target_os = "linux")]
pub mod tun;

/// Batches of datagrams, as this system sends and receives them.
#[cfg(target_os = "linux")]
pub use mmsg as messages;
/// Batches of datagrams, as this system sends and receives them.
#[cfg(target_os = "macos")]
pub use msgx as messages;

/// How datagrams and bytes are sent: a peer that is gone is an error, not a signal.
#[cfg(target_os = "linux")]
pub const SEND: rustix::net::SendFlags = rustix::net::SendFlags::NOSIGNAL;
/// How datagrams and bytes are sent: a peer that is gone is an error, as the runtime ignores the signal.
#[cfg(not(target_os = "linux"))]
pub const SEND: rustix::net::SendFlags = rustix::net::SendFlags::empty();

/// One received datagram.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Datagram {
    /// Bytes stored.
    pub len: usize,
    /// The datagram was longer than its buffer (`MSG_TRUNC`).
    pub truncated: bool,
}
