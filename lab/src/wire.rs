//! Builds the frames of tests, and parses just enough to check the frames that arrive.
//!
//! The parsing shares no code with the filter, so that it does not repeat the filter's mistakes.

use std::net::Ipv4Addr;

pub use softnet_wire::MacAddr as Mac;
pub use softnet_wire::dhcpv4::{code as dhcp_option, kind as dhcp_kind};
pub use softnet_wire::ethernet::{ARP, IPV4};
pub use softnet_wire::make::{Arp, Dhcp, Ipv4, Transport, checksum, ethernet, icmp, igmp, tcp, udp};

/// The two bytes at `at` as a number; zero beyond the end.
#[must_use]
pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |two| u16::from_be_bytes([two[0], two[1]]))
}

/// The four bytes at `at` as an address; 0.0.0.0 beyond the end.
#[must_use]
pub fn address_at(bytes: &[u8], at: usize) -> Ipv4Addr {
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

/// True if the frame ends with `payload` or with `payload` and zero padding. Tests recognise their own frames
/// by it.
#[must_use]
pub fn carries(frame: &[u8], payload: &[u8]) -> bool {
    frame.windows(payload.len().max(1)).any(|window| window == payload)
}

/// The DHCP message in a frame; `None` if the frame is not IPv4 and UDP between the DHCP ports, or is
/// truncated.
#[must_use]
pub fn parse_dhcp(frame: &[u8]) -> Option<Dhcp> {
    let ip = frame.get(14..)?;
    let header_len = usize::from(*ip.first()? & 0x0f) * 4;
    let datagram = ip.get(header_len..)?;
    let ports = (u16_at(datagram, 0), u16_at(datagram, 2));
    if ether_type(frame) != IPV4 || ip.get(9) != Some(&17) || !matches!(ports, (68, 67) | (67, 68)) {
        return None;
    }
    let bytes = datagram.get(8..)?;
    let mut rest = bytes.get(240..)?;
    let mut options = Vec::new();
    while let Some((&code, behind)) = rest.split_first() {
        match code {
            0 => rest = behind,
            255 => break,
            code => {
                let (&len, behind) = behind.split_first()?;
                options.push((code, behind.get(..usize::from(len))?.to_vec()));
                rest = &behind[usize::from(len)..];
            }
        }
    }
    Some(Dhcp {
        op: bytes[0],
        hardware: bytes[1],
        hardware_len: bytes[2],
        hops: bytes[3],
        xid: u32::from_be_bytes(*bytes[4..].first_chunk()?),
        flags: u16_at(bytes, 10),
        ciaddr: address_at(bytes, 12),
        yiaddr: address_at(bytes, 16),
        siaddr: address_at(bytes, 20),
        giaddr: address_at(bytes, 24),
        chaddr: *bytes[28..].first_chunk()?,
        cookie: *bytes[236..].first_chunk()?,
        options,
        tail: vec![255],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mac = Mac([2, 0, 0, 0, 0, 9]);
        let said = Dhcp::client(dhcp_kind::REQUEST, 0xabcd_ef01, mac)
            .with(dhcp_option::REQUESTED_ADDRESS, &[10, 0, 0, 7]);
        assert_eq!(parse_dhcp(&said.broadcast()), Some(said));
    }

    #[test]
    fn a_truncated_message_is_none() {
        let frame = Dhcp::client(dhcp_kind::DISCOVER, 1, Mac([2, 0, 0, 0, 0, 9])).broadcast();
        for len in 0..14 + 20 + 8 + 240 {
            assert_eq!(parse_dhcp(&frame[..len]), None);
        }
    }
}
