//! Address resolution (RFC 826), for IPv4 over Ethernet.

use core::net::Ipv4Addr;

use crate::ethernet::MacAddr;

/// The operation of a request: which station has the target address?.
pub const REQUEST: u16 = 1;
/// The operation of a reply: the sender has this address.
pub const REPLY: u16 = 2;

/// Bytes of ARP for IPv4 over Ethernet.
pub const LEN: usize = 28;

/// ARP for IPv4 over Ethernet, of full length.
#[derive(Debug, Clone, Copy)]
pub struct Arp<'a> {
    packet: &'a [u8; LEN],
}

impl<'a> Arp<'a> {
    /// `None` if the packet is truncated, or for other hardware, another protocol or other address lengths.
    #[inline(always)]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        // Hardware type 1, protocol type 0x0800, address lengths 6 and 4.
        const FIXED: u64 = u64::from_be_bytes([0, 1, 8, 0, 6, 4, 0, 0]);
        let packet = bytes.first_chunk::<LEN>()?;
        let [a, b, c, d, e, f, ..] = *packet;
        (u64::from_be_bytes([a, b, c, d, e, f, 0, 0]) == FIXED).then_some(Self { packet })
    }

    /// [`REQUEST`], [`REPLY`], or another.
    #[inline(always)]
    pub fn operation(&self) -> u16 {
        u16::from_be_bytes([self.packet[6], self.packet[7]])
    }

    /// The hardware address of the sender.
    #[inline(always)]
    pub fn sender_mac(&self) -> MacAddr {
        let [_, _, _, _, _, _, _, _, a, b, c, d, e, f, ..] = *self.packet;
        MacAddr([a, b, c, d, e, f])
    }

    /// The protocol address of the sender.
    #[inline(always)]
    pub fn sender(&self) -> Ipv4Addr {
        Ipv4Addr::new(self.packet[14], self.packet[15], self.packet[16], self.packet[17])
    }

    /// The protocol address of the target.
    #[inline(always)]
    pub fn target(&self) -> Ipv4Addr {
        let [.., a, b, c, d] = *self.packet;
        Ipv4Addr::new(a, b, c, d)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rustfmt::skip]
    const PACKET: [u8; LEN] = [
        0, 1, 8, 0, 6, 4, 0, 2,
        2, 0, 0, 0, 0, 1, 192, 168, 64, 2,
        2, 0, 0, 0, 0, 0xfe, 192, 168, 64, 1,
    ];

    #[test]
    fn reads_the_fields() {
        let arp = Arp::parse(&PACKET).unwrap();
        assert_eq!(arp.operation(), REPLY);
        assert_eq!(arp.sender_mac(), MacAddr([2, 0, 0, 0, 0, 1]));
        assert_eq!(arp.sender(), Ipv4Addr::new(192, 168, 64, 2));
        assert_eq!(arp.target(), Ipv4Addr::new(192, 168, 64, 1));
        // Padding behind it is not part of it.
        assert!(Arp::parse(&[&PACKET[..], &[0; 18]].concat()).is_some());
    }

    #[test]
    fn refuses_other_hardware_and_protocols_and_truncation() {
        for at in 0..6 {
            let mut packet = PACKET;
            packet[at] ^= 1;
            assert!(Arp::parse(&packet).is_none(), "byte {at}");
        }
        for len in 0..LEN {
            assert!(Arp::parse(&PACKET[..len]).is_none(), "{len} bytes");
        }
    }
}
