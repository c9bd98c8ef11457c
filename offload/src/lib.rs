//! Fewer, larger frames for the host and MTU-sized ones for the VM.
//!
//! A frame costs the host's kernel about the same whether it carries 1 kB or 64 kB, so a cheap data
//! path passes large ones. A VM, however, uses plain Ethernet: every frame has at most one MTU, every
//! checksum is complete. This crate translates between the two:
//!
//! * [`Coalescer`] merges consecutive TCP segments (and UDP datagrams) of a batch into super-frames with a
//!   virtio-net header, which a TAP accepts with one write (what the kernel calls GRO);
//! * [`Segments`] cuts such super-frames into frames that any guest understands (GSO), and
//!   [`finish_checksum`] completes a checksum that the kernel left to the device, [`finish_open_checksum`] one that a
//!   guest left to a card without saying so;
//! * [`vnet`] is the virtio-net header.
//!
//! The code is pure: it takes bytes and returns bytes or ranges, holds no file descriptor, reads no clock,
//! knows nothing of policy, and allocates nothing after construction. Only IPv4 is merged and cut; everything
//! else passes as it is. Nothing in here panics on any input.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod coalesce;
mod segment;
pub mod vnet;
mod wire;

pub use coalesce::{Coalescer, Features, Frames, MAX_FRAMES, MAX_PARTS, Packet, Packets};
pub use segment::{MAX_HEADER_LEN, Malformed, Segments, finish_checksum, finish_open_checksum};
pub use vnet::VnetHeader;
