//! Frames for tests: valid by default, and wrong on demand.
//!
//! Every frame is a plain struct whose fields a test can set to anything, wrong values too; lengths and checksums are
//! computed unless a test overrides them. The code that reads frames in tests is elsewhere, so that both do not share
//! a mistake in a format.
#![allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test that makes a frame wrongly may panic"
)]

mod arp;
mod dhcp;
mod ipv4;

pub use arp::Arp;
pub use dhcp::Dhcp;
pub use ipv4::{Ipv4, Transport, checksum, datagram, fix, fix_header, icmp, igmp, segment, tcp, udp};

use crate::ethernet::{HEADER_LEN, MacAddr};

/// An Ethernet frame around a payload, without padding.
#[must_use]
pub fn ethernet(
    to: impl Into<MacAddr>,
    from: impl Into<MacAddr>,
    ether_type: u16,
    payload: &[u8],
) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEADER_LEN + payload.len());
    frame.extend(to.into().octets());
    frame.extend(from.into().octets());
    frame.extend(ether_type.to_be_bytes());
    frame.extend(payload);
    frame
}
