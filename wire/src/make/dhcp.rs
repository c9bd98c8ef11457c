//! DHCP (RFC 2131, options of RFC 2132) as bytes, from either end.

use core::net::Ipv4Addr;

use super::{Ipv4, udp};
use crate::dhcpv4::{BOOT_REPLY, BOOT_REQUEST, COOKIE, ETHERNET, FIXED_LEN, code};
use crate::ethernet::MacAddr;

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
    /// The transaction number, the same in a request and its answer.
    pub xid: u32,
    /// 0x8000 requests a broadcast answer.
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
    fn new(op: u8, kind: u8, xid: u32, client: MacAddr) -> Self {
        let mut chaddr = [0; 16];
        chaddr[..6].copy_from_slice(&client.0);
        let zero = Ipv4Addr::UNSPECIFIED;
        Self {
            op,
            hardware: ETHERNET,
            hardware_len: 6,
            hops: 0,
            xid,
            flags: 0,
            ciaddr: zero,
            yiaddr: zero,
            siaddr: zero,
            giaddr: zero,
            chaddr,
            cookie: COOKIE,
            options: vec![(code::MESSAGE_TYPE, vec![kind])],
            tail: vec![255],
        }
    }

    /// A message of a client.
    #[must_use]
    pub fn client(kind: u8, xid: u32, client: MacAddr) -> Self {
        Self::new(BOOT_REQUEST, kind, xid, client)
    }

    /// A message of the server at `server`, with its option 54.
    #[must_use]
    pub fn server(kind: u8, xid: u32, client: MacAddr, server: Ipv4Addr) -> Self {
        Self::new(BOOT_REPLY, kind, xid, client).with(code::SERVER, &server.octets())
    }

    /// With one more option.
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
        bytes.resize(FIXED_LEN - COOKIE.len(), 0);
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
        let [a, b, c, d, e, f, ..] = self.chaddr;
        let client = MacAddr([a, b, c, d, e, f]);
        self.packet(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST).frame(MacAddr::BROADCAST, client)
    }

    /// In a packet between these addresses: ports 68 → 67 for a client, 67 → 68 for a server.
    #[must_use]
    pub fn packet(&self, from: Ipv4Addr, to: Ipv4Addr) -> Ipv4 {
        let (sport, dport) = if self.op == BOOT_REQUEST { (68, 67) } else { (67, 68) };
        Ipv4::new(from, to, udp((from, sport), (to, dport), &self.bytes()))
    }

    /// The value of the first option of this code.
    #[must_use]
    pub fn option(&self, code: u8) -> Option<&[u8]> {
        self.options.iter().find(|(present, _)| *present == code).map(|(_, value)| value.as_slice())
    }

    /// The message type, zero if there is none.
    #[must_use]
    pub fn message_type(&self) -> u8 {
        self.option(code::MESSAGE_TYPE).and_then(|value| value.first().copied()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dhcpv4::{Message, kind};

    #[test]
    fn a_message_has_the_bytes_of_the_rfcs() {
        let mac = MacAddr([2, 0, 0, 0, 0, 9]);
        let message = Dhcp::client(kind::REQUEST, 0xabcd_ef01, mac)
            .with(code::REQUESTED_ADDRESS, &[10, 0, 0, 7])
            .bytes();
        assert_eq!(message[..12], [1, 1, 6, 0, 0xab, 0xcd, 0xef, 1, 0, 0, 0, 0]);
        assert_eq!(message[28..34], mac.octets());
        assert_eq!(message[236..], [99, 130, 83, 99, 53, 1, 3, 50, 4, 10, 0, 0, 7, 255]);
        assert_eq!(Message::parse(&message).unwrap().options().unwrap().message_type, kind::REQUEST);
    }
}
