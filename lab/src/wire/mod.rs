//! Frames made by hand, right by default and wrong on demand, and just enough reading to check what came out.
//!
//! Every builder is a plain struct whose fields a test can set to anything, wrong values too; lengths and checksums are
//! computed unless a test overrides them. Nothing here is shared with the filter, so that a mistake there is not
//! repeated here.

mod arp;
mod dhcp;
mod ipv4;

use std::fmt;

pub use arp::Arp;
pub use dhcp::{Dhcp, kind as dhcp_kind, option as dhcp_option};
pub use ipv4::{Ipv4, Transport, checksum, icmp, tcp, udp};

/// A hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// All ones: everybody on the segment.
    pub const BROADCAST: Self = Self([0xff; 6]);
    /// Nobody.
    pub const ZERO: Self = Self([0; 6]);
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;

/// An Ethernet frame around a payload, without padding.
#[must_use]
pub fn ethernet(to: Mac, from: Mac, ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(14 + payload.len());
    frame.extend(to.0);
    frame.extend(from.0);
    frame.extend(ether_type.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The two bytes at `at` as a number; zero beyond the end.
#[must_use]
pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |two| u16::from_be_bytes([two[0], two[1]]))
}

/// The four bytes at `at` as an address; 0.0.0.0 beyond the end.
#[must_use]
pub fn address_at(bytes: &[u8], at: usize) -> std::net::Ipv4Addr {
    bytes.get(at..at + 4).map_or(0, |four| u32::from_be_bytes([four[0], four[1], four[2], four[3]])).into()
}

/// A frame's EtherType; zero for a runt.
#[must_use]
pub fn ether_type(frame: &[u8]) -> u16 {
    u16_at(frame, 12)
}

/// A frame's destination; zero for a runt.
#[must_use]
pub fn destination(frame: &[u8]) -> Mac {
    frame.first_chunk().map_or(Mac::ZERO, |mac| Mac(*mac))
}

/// A frame's source; zero for a runt.
#[must_use]
pub fn source(frame: &[u8]) -> Mac {
    frame.get(6..).and_then(|rest| rest.first_chunk()).map_or(Mac::ZERO, |mac| Mac(*mac))
}

/// True if the frame ends with `payload`, maybe with padding zeros behind it. How a test knows its own frames again.
#[must_use]
pub fn carries(frame: &[u8], payload: &[u8]) -> bool {
    frame.windows(payload.len().max(1)).any(|window| window == payload)
}
