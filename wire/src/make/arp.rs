//! ARP (RFC 826) as bytes.

use core::net::Ipv4Addr;

use super::ethernet;
use crate::arp::{REPLY, REQUEST};
use crate::ethernet::{ARP, MacAddr};

/// An ARP packet; the defaults of [`Arp::request`] and [`Arp::reply`] are right, each field can be made wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arp {
    /// Hardware type, 1 for Ethernet.
    pub hardware: u16,
    /// Protocol type, 0x0800 for IPv4.
    pub protocol: u16,
    /// Length of a hardware address, 6.
    pub hardware_len: u8,
    /// Length of a protocol address, 4.
    pub protocol_len: u8,
    /// 1 is a request, 2 a reply.
    pub operation: u16,
    /// Sender's hardware address.
    pub sender_mac: MacAddr,
    /// Sender's address.
    pub sender: Ipv4Addr,
    /// Target's hardware address.
    pub target_mac: MacAddr,
    /// Target's address.
    pub target: Ipv4Addr,
}

impl Arp {
    /// Who has `target`? Tell `sender`.
    #[must_use]
    pub fn request(sender_mac: impl Into<MacAddr>, sender: Ipv4Addr, target: Ipv4Addr) -> Self {
        Self {
            hardware: 1,
            protocol: 0x0800,
            hardware_len: 6,
            protocol_len: 4,
            operation: REQUEST,
            sender_mac: sender_mac.into(),
            sender,
            target_mac: MacAddr::ZERO,
            target,
        }
    }

    /// `sender` is at `sender_mac`.
    #[must_use]
    pub fn reply(sender_mac: MacAddr, sender: Ipv4Addr, target_mac: MacAddr, target: Ipv4Addr) -> Self {
        Self { operation: REPLY, target_mac, ..Self::request(sender_mac, sender, target) }
    }

    /// The packet without a frame around it: 28 bytes whatever the length fields say.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(28);
        bytes.extend(self.hardware.to_be_bytes());
        bytes.extend(self.protocol.to_be_bytes());
        bytes.extend([self.hardware_len, self.protocol_len]);
        bytes.extend(self.operation.to_be_bytes());
        bytes.extend(self.sender_mac.0);
        bytes.extend(self.sender.octets());
        bytes.extend(self.target_mac.0);
        bytes.extend(self.target.octets());
        bytes
    }

    /// In a frame from the sender: a request is broadcast, a reply is sent to its target.
    #[must_use]
    pub fn frame(&self) -> Vec<u8> {
        let to = if self.operation == REQUEST { MacAddr::BROADCAST } else { self.target_mac };
        ethernet(to, self.sender_mac, ARP, &self.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_bytes_of_the_rfc() {
        let mac = MacAddr([2, 0, 0, 0, 0, 1]);
        let frame = Arp::request(mac, [10, 0, 0, 2].into(), [10, 0, 0, 1].into()).frame();
        #[rustfmt::skip]
        assert_eq!(frame, [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 8, 6,
            0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 10, 0, 0, 1,
        ]);
    }
}
