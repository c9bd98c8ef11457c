//! DHCP (RFC 2131, options of RFC 2132) as bytes, from either end.

use std::net::Ipv4Addr;

use super::{IPV4, Ipv4, Mac, address_at, ether_type, u16_at, udp};

/// Message types, the values of option 53.
pub mod kind {
    #![expect(missing_docs, reason = "the names are the protocol's")]
    pub const DISCOVER: u8 = 1;
    pub const OFFER: u8 = 2;
    pub const REQUEST: u8 = 3;
    pub const DECLINE: u8 = 4;
    pub const ACK: u8 = 5;
    pub const NAK: u8 = 6;
    pub const RELEASE: u8 = 7;
    pub const INFORM: u8 = 8;
}

/// Option codes.
pub mod option {
    #![expect(missing_docs, reason = "the names are the protocol's")]
    pub const SUBNET_MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const DNS: u8 = 6;
    pub const REQUESTED_ADDRESS: u8 = 50;
    pub const LEASE_TIME: u8 = 51;
    pub const OVERLOAD: u8 = 52;
    pub const MESSAGE_TYPE: u8 = 53;
    pub const SERVER: u8 = 54;
    pub const CLIENT_ID: u8 = 61;
    pub const RELAY_INFO: u8 = 82;
}

/// A DHCP message; [`Dhcp::client`] and [`Dhcp::server`] are right, each field can be made wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dhcp {
    /// 1 from a client, 2 from a server.
    pub op: u8,
    /// Hardware type.
    pub hardware: u8,
    /// Length of the hardware address.
    pub hardware_len: u8,
    /// Relays passed.
    pub hops: u8,
    /// Which answer belongs to which question.
    pub xid: u32,
    /// 0x8000 asks for a broadcast answer.
    pub flags: u16,
    /// The client's address, if it has one.
    pub ciaddr: Ipv4Addr,
    /// The address that the server gives.
    pub yiaddr: Ipv4Addr,
    /// The next server.
    pub siaddr: Ipv4Addr,
    /// The relay.
    pub giaddr: Ipv4Addr,
    /// The client's hardware address, padded.
    pub chaddr: [u8; 16],
    /// 99.130.83.99.
    pub cookie: [u8; 4],
    /// Options in order, message type included.
    pub options: Vec<(u8, Vec<u8>)>,
    /// Bytes behind the options instead of the end mark.
    pub tail: Vec<u8>,
}

impl Dhcp {
    fn new(op: u8, kind: u8, xid: u32, client: Mac) -> Self {
        let mut chaddr = [0; 16];
        chaddr[..6].copy_from_slice(&client.0);
        let zero = Ipv4Addr::UNSPECIFIED;
        Self {
            op,
            hardware: 1,
            hardware_len: 6,
            hops: 0,
            xid,
            flags: 0,
            ciaddr: zero,
            yiaddr: zero,
            siaddr: zero,
            giaddr: zero,
            chaddr,
            cookie: [99, 130, 83, 99],
            options: vec![(option::MESSAGE_TYPE, vec![kind])],
            tail: vec![255],
        }
    }

    /// A message of a client.
    #[must_use]
    pub fn client(kind: u8, xid: u32, client: Mac) -> Self {
        Self::new(1, kind, xid, client)
    }

    /// A message of the server at `server`, with its option 54.
    #[must_use]
    pub fn server(kind: u8, xid: u32, client: Mac, server: Ipv4Addr) -> Self {
        Self::new(2, kind, xid, client).with(option::SERVER, &server.octets())
    }

    /// With one option more.
    #[must_use]
    pub fn with(mut self, code: u8, value: &[u8]) -> Self {
        self.options.push((code, value.to_vec()));
        self
    }

    /// Without any option of this code.
    #[must_use]
    pub fn without(mut self, code: u8) -> Self {
        self.options.retain(|(present, _)| *present != code);
        self
    }

    /// The message: fixed part, cookie, options, tail.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![self.op, self.hardware, self.hardware_len, self.hops];
        bytes.extend(self.xid.to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(self.flags.to_be_bytes());
        for address in [self.ciaddr, self.yiaddr, self.siaddr, self.giaddr] {
            bytes.extend(address.octets());
        }
        bytes.extend(self.chaddr);
        bytes.resize(236, 0);
        bytes.extend(self.cookie);
        for (code, value) in &self.options {
            bytes.extend([*code, value.len() as u8]);
            bytes.extend(value);
        }
        bytes.extend(&self.tail);
        bytes
    }

    /// In a frame of a client without a lease: everything broadcast.
    #[must_use]
    pub fn broadcast(&self) -> Vec<u8> {
        let client = Mac([
            self.chaddr[0],
            self.chaddr[1],
            self.chaddr[2],
            self.chaddr[3],
            self.chaddr[4],
            self.chaddr[5],
        ]);
        self.packet(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST).frame(Mac::BROADCAST, client)
    }

    /// In a packet between these addresses: ports 68 → 67 for a client, 67 → 68 for a server.
    #[must_use]
    pub fn packet(&self, from: Ipv4Addr, to: Ipv4Addr) -> Ipv4 {
        let (sport, dport) = if self.op == 1 { (68, 67) } else { (67, 68) };
        Ipv4::new(from, to, udp((from, sport), (to, dport), &self.bytes()))
    }

    /// Reads the message in a frame; `None` if the frame is not IPv4 and UDP between the DHCP ports, or cut off.
    #[must_use]
    pub fn parse(frame: &[u8]) -> Option<Self> {
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
        Some(Self {
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

    /// The value of the first option of this code.
    #[must_use]
    pub fn option(&self, code: u8) -> Option<&[u8]> {
        self.options.iter().find(|(present, _)| *present == code).map(|(_, value)| value.as_slice())
    }

    /// The message type, zero if there is none.
    #[must_use]
    pub fn message_type(&self) -> u8 {
        self.option(option::MESSAGE_TYPE).and_then(|value| value.first().copied()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mac = Mac([2, 0, 0, 0, 0, 9]);
        let said =
            Dhcp::client(kind::REQUEST, 0xabcd_ef01, mac).with(option::REQUESTED_ADDRESS, &[10, 0, 0, 7]);
        assert_eq!(Dhcp::parse(&said.broadcast()), Some(said));
    }

    #[test]
    fn a_cut_message_is_none() {
        let frame = Dhcp::client(kind::DISCOVER, 1, Mac([2, 0, 0, 0, 0, 9])).broadcast();
        for len in 0..14 + 20 + 8 + 240 {
            assert_eq!(Dhcp::parse(&frame[..len]), None);
        }
    }
}
