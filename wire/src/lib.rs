//! What the bytes of a frame mean: one protocol per file, each with its numbers, its header and what reads or writes
//! it.
//!
//! The crate has no policy, no time and no I/O. It says what a frame is, not whether it may pass; the filter
//! decides that. It allocates nothing, and nothing in it panics on any input.
//!
//! | what | file |
//! | --- | --- |
//! | Ethernet frames and MAC addresses | [`ethernet`] |
//! | address resolution | [`arp`] |
//! | IPv4 headers and fragments | [`ipv4`] |
//! | TCP, UDP and ICMP behind an IP header of either version | [`transport`] |
//! | ICMP messages | [`icmpv4`] |
//! | group membership | [`igmp`] |
//! | DHCP messages, their options and the names in them | [`dhcpv4`] |
//! | the Internet checksum | [`checksum`] |
//! | IANA's registry of special-purpose addresses | [`special`] |
//! | the frames that Softnet sends itself | [`build`] |
//!
//! The feature `make` adds `make`, frames for tests, which are valid by default and can be made wrong field by field.
#![forbid(unsafe_code)]
#![deny(missing_docs)]
// A frame must never be able to end the process, so code that can panic does not compile.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::arithmetic_side_effects
    )
)]

pub mod arp;
pub mod build;
pub mod checksum;
pub mod dhcpv4;
pub mod ethernet;
pub mod icmpv4;
pub mod igmp;
pub mod ipv4;
#[cfg(any(test, feature = "make"))]
pub mod make;
pub mod special;
pub mod transport;

pub use ethernet::{MacAddr, ParseMacError};
