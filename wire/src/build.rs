//! The frames that Softnet sends itself, written header by header into a buffer of a fixed size.

use core::fmt;
use core::net::Ipv4Addr;

use crate::arp;
use crate::checksum::{self, Sum};
use crate::dhcpv4::{BOOT_REQUEST, CLIENT_PORT, COOKIE, ETHERNET, FIXED_LEN, SERVER_PORT, code, kind};
use crate::ethernet::{self, MacAddr};
use crate::icmpv4;
use crate::ipv4;
use crate::transport::{ICMP, TCP, TCP_HEADER_LEN, UDP, UDP_HEADER_LEN, flag};

/// BOOTP messages have at least 300 bytes, and some servers reject shorter ones.
pub const MIN_MESSAGE_LEN: usize = 300;

/// Bytes of the longest frame with a DHCPRELEASE: headers, fixed part, type, server, identifier and end.
pub const MAX_RELEASE_LEN: usize =
    ethernet::HEADER_LEN + ipv4::HEADER_LEN + UDP_HEADER_LEN + FIXED_LEN + 3 + 6 + 257 + 1;

/// Bytes of the longest packet with an ICMP error (RFC 1812, section 4.3.2.3): what every IPv4 host accepts.
pub const MAX_ERROR_LEN: usize = 576;

/// The most bytes of the packet that an ICMP error quotes.
const MAX_QUOTE_LEN: usize = MAX_ERROR_LEN - ipv4::HEADER_LEN - icmpv4::HEADER_LEN;

/// A frame, or a part of one, of at most `N` bytes.
///
/// Each method appends something. It returns `None` if the buffer is too small; the content is then not a frame.
#[derive(Clone, PartialEq, Eq)]
pub struct Builder<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Builder<N> {
    /// An empty frame.
    pub const fn new() -> Self {
        Self { bytes: [0; N], len: 0 }
    }

    /// What has been written.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }

    /// Appends bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> Option<&mut Self> {
        let end = self.len.checked_add(bytes.len())?;
        self.bytes.get_mut(self.len..end)?.copy_from_slice(bytes);
        self.len = end;
        Some(self)
    }

    /// Appends a number in network byte order.
    pub fn u16(&mut self, number: u16) -> Option<&mut Self> {
        self.bytes(&number.to_be_bytes())
    }

    /// Appends zeros until `len` bytes have been written since `start`.
    fn pad(&mut self, start: usize, len: usize) -> Option<&mut Self> {
        // Nothing has been written behind `self.len`, so it is all zero there.
        let end = self.len.max(start.checked_add(len)?);
        self.bytes.get(..end)?;
        self.len = end;
        Some(self)
    }

    /// Appends an Ethernet header.
    pub fn ethernet(&mut self, destination: MacAddr, source: MacAddr, ether_type: u16) -> Option<&mut Self> {
        self.bytes(&destination.octets())?.bytes(&source.octets())?.u16(ether_type)
    }

    /// Appends an IPv4 packet that routers may not fragment, with the payload that `payload` appends.
    pub fn ipv4(
        &mut self,
        source: Ipv4Addr,
        destination: Ipv4Addr,
        protocol: u8,
        payload: impl FnOnce(&mut Self) -> Option<()>,
    ) -> Option<&mut Self> {
        let start = self.len;
        // Version and header length, service; total length; identification; time to live; checksum.
        self.bytes(&[0x45, 0, 0, 0, 0, 0])?.u16(ipv4::DONT_FRAGMENT)?.bytes(&[64, protocol, 0, 0])?;
        self.bytes(&source.octets())?.bytes(&destination.octets())?;
        let end = self.len;
        payload(self)?;
        self.set_u16(start, 2, self.len_since(start)?)?;
        let checksum = Sum::of(self.bytes.get(start..end)?).finish();
        self.set_u16(start, 10, checksum)
    }

    /// Appends a UDP datagram, with the data that `data` appends and the checksum of a packet between these addresses.
    pub fn udp(
        &mut self,
        (source, source_port): (Ipv4Addr, u16),
        (destination, destination_port): (Ipv4Addr, u16),
        data: impl FnOnce(&mut Self) -> Option<()>,
    ) -> Option<&mut Self> {
        let start = self.len;
        self.u16(source_port)?.u16(destination_port)?.bytes(&[0, 0, 0, 0])?;
        data(self)?;
        self.set_u16(start, 4, self.len_since(start)?)?;
        let datagram = self.bytes.get(start..self.len)?;
        let checksum = checksum::udp(source.octets(), destination.octets(), datagram).finish_udp();
        self.set_u16(start, 6, checksum)
    }

    /// Appends a TCP header without options and without data, with the checksum of a packet between these addresses. With
    /// an acknowledgement number it acknowledges that.
    fn tcp(
        &mut self,
        (source, source_port): (Ipv4Addr, u16),
        (destination, destination_port): (Ipv4Addr, u16),
        sequence: u32,
        acknowledgement: Option<u32>,
        flags: u8,
    ) -> Option<&mut Self> {
        let start = self.len;
        let flags = if acknowledgement.is_some() { flags | flag::ACK } else { flags };
        self.u16(source_port)?.u16(destination_port)?.bytes(&sequence.to_be_bytes())?;
        self.bytes(&acknowledgement.unwrap_or(0).to_be_bytes())?;
        // The header's length in words; the window, the checksum and the urgent pointer.
        self.bytes(&[(TCP_HEADER_LEN as u8) << 2, flags, 0, 0, 0, 0, 0, 0])?;
        let [a, b, c, d] = source.octets();
        let [e, f, g, h] = destination.octets();
        let segment = self.bytes.get(start..self.len)?;
        let pseudo_header = Sum::pseudo_header([a, b, c, d, e, f, g, h], TCP, TCP_HEADER_LEN as u16);
        let checksum = pseudo_header.followed_by(0, Sum::of(segment)).finish();
        self.set_u16(start, 16, checksum)
    }

    /// Appends an ICMP message with this header after its checksum, and the data that follows it.
    pub fn icmp(&mut self, (kind, code): (u8, u8), rest: [u8; 4], data: &[u8]) -> Option<&mut Self> {
        let start = self.len;
        self.bytes(&[kind, code, 0, 0])?.bytes(&rest)?.bytes(data)?;
        let checksum = Sum::of(self.bytes.get(start..self.len)?).finish();
        self.set_u16(start, 2, checksum)
    }

    fn len_since(&self, start: usize) -> Option<u16> {
        u16::try_from(self.len.checked_sub(start)?).ok()
    }

    /// Overwrites the number at `start + offset`.
    fn set_u16(&mut self, start: usize, offset: usize, number: u16) -> Option<&mut Self> {
        let at = start.checked_add(offset)?;
        *self.bytes.get_mut(at..)?.first_chunk_mut()? = number.to_be_bytes();
        Some(self)
    }
}

impl<const N: usize> Default for Builder<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> fmt::Debug for Builder<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("len", &self.len).finish_non_exhaustive()
    }
}

/// Bytes of an [`arp_probe`].
pub const PROBE_LEN: usize = ethernet::HEADER_LEN + arp::LEN;

/// The request with which a station that has no address yet asks who has `target` (RFC 5227, section 2.1.1).
pub fn arp_probe(station: MacAddr, target: Ipv4Addr) -> [u8; PROBE_LEN] {
    let mut probe = Builder::<PROBE_LEN>::new();
    // It is as long as its buffer.
    let _ = write_probe(&mut probe, station, target);
    probe.bytes
}

fn write_probe<const N: usize>(probe: &mut Builder<N>, station: MacAddr, target: Ipv4Addr) -> Option<()> {
    probe.ethernet(MacAddr::BROADCAST, station, ethernet::ARP)?;
    // Ethernet and IPv4, and the lengths of their addresses.
    probe.u16(1)?.u16(ethernet::IPV4)?.bytes(&[6, 4])?.u16(arp::REQUEST)?;
    probe.bytes(&station.octets())?.bytes(&[0; 4])?.bytes(&[0; 6])?.bytes(&target.octets()).map(|_| ())
}

/// A DHCPRELEASE, with which a client releases its address (RFC 2131, section 4.4.6). It has no answer, so
/// `transaction` is any number.
#[derive(Debug, Clone, Copy)]
pub struct Release<'a> {
    /// The MAC address of the client.
    pub client: MacAddr,
    /// The address that it releases.
    pub address: Ipv4Addr,
    /// The server that gave the address.
    pub server: Ipv4Addr,
    /// The identifier under which the server stores the lease, if it has one: its type and its value.
    pub client_id: Option<&'a [u8]>,
    /// Distinguishes one message from another.
    pub transaction: u32,
}

impl Release<'_> {
    /// The message without headers: the content of a UDP datagram for the server's port 67. It has no client
    /// identifier.
    pub fn message(&self) -> [u8; MIN_MESSAGE_LEN] {
        let mut message = Builder::<MIN_MESSAGE_LEN>::new();
        // Without the client identifier the message is shorter than its buffer.
        let _ = Self { client_id: None, ..*self }.write(&mut message);
        message.bytes
    }

    /// The message in a frame from the client to the station `server_mac`. `None` if the frame is too long, which
    /// none is for [`MAX_RELEASE_LEN`] bytes, or no option can hold the identifier.
    pub fn frame<const N: usize>(&self, server_mac: MacAddr) -> Option<Builder<N>> {
        let mut frame = Builder::new();
        frame.ethernet(server_mac, self.client, ethernet::IPV4)?.ipv4(
            self.address,
            self.server,
            UDP,
            |packet| {
                let (from, to) = ((self.address, CLIENT_PORT), (self.server, SERVER_PORT));
                packet.udp(from, to, |datagram| self.write(datagram)).map(|_| ())
            },
        )?;
        Some(frame)
    }

    fn write<const N: usize>(&self, message: &mut Builder<N>) -> Option<()> {
        let start = message.len;
        // `op`, `htype`, `hlen`, `xid`, `ciaddr`, `chaddr`; a client leaves the rest 0.
        message.bytes(&[BOOT_REQUEST, ETHERNET, 6, 0])?.bytes(&self.transaction.to_be_bytes())?;
        message.pad(start, 12)?.bytes(&self.address.octets())?;
        message.pad(start, 28)?.bytes(&self.client.octets())?;
        message.pad(start, 236)?.bytes(&COOKIE)?;
        message.bytes(&[code::MESSAGE_TYPE, 1, kind::RELEASE])?;
        message.bytes(&[code::SERVER, 4])?.bytes(&self.server.octets())?;
        if let Some(id) = self.client_id {
            message.bytes(&[code::CLIENT_ID, u8::try_from(id.len()).ok()?])?.bytes(id)?;
        }
        message.bytes(&[code::END])?.pad(start, MIN_MESSAGE_LEN).map(|_| ())
    }
}

/// The ICMP error for a packet that did not reach its destination (RFC 792).
#[derive(Debug, Clone, Copy)]
pub struct Unreachable<'a> {
    /// Why it did not, such as [`icmpv4::FRAGMENTATION_NEEDED`].
    pub code: u8,
    /// The longest packet in bytes that the next link carries (RFC 1191, section 4); 0 with every other code.
    pub next_hop_mtu: u16,
    /// The packet. As much of its beginning is quoted as an error may hold.
    pub packet: &'a [u8],
}

impl Unreachable<'_> {
    /// The message in a frame. `None` if the frame is too long, which none is for [`MAX_ERROR_LEN`] bytes and an
    /// Ethernet header.
    pub fn frame<const N: usize>(
        &self,
        (source_mac, source): (MacAddr, Ipv4Addr),
        (destination_mac, destination): (MacAddr, Ipv4Addr),
    ) -> Option<Builder<N>> {
        let [m0, m1] = self.next_hop_mtu.to_be_bytes();
        let quote = self.packet.get(..MAX_QUOTE_LEN).unwrap_or(self.packet);
        let mut frame = Builder::new();
        frame.ethernet(destination_mac, source_mac, ethernet::IPV4)?.ipv4(
            source,
            destination,
            ICMP,
            |packet| {
                let kind = (icmpv4::DESTINATION_UNREACHABLE, self.code);
                packet.icmp(kind, [0, 0, m0, m1], quote).map(|_| ())
            },
        )?;
        Some(frame)
    }
}

/// A TCP RST: the connection does not exist, or no longer (RFC 9293, section 3.5.2).
#[derive(Debug, Clone, Copy)]
pub struct Reset {
    /// In whose name it is sent: the peer of the connection.
    pub source: (Ipv4Addr, u16),
    /// Whom it is for.
    pub destination: (Ipv4Addr, u16),
    /// Its sequence number.
    pub sequence: u32,
    /// What it acknowledges, if it answers a SYN.
    pub acknowledgement: Option<u32>,
}

impl Reset {
    /// The segment in a frame between these stations. `None` if it does not fit, which it does into 54 bytes.
    pub fn frame<const N: usize>(&self, source_mac: MacAddr, destination_mac: MacAddr) -> Option<Builder<N>> {
        let Self { source, destination, sequence, acknowledgement } = *self;
        let mut frame = Builder::new();
        frame.ethernet(destination_mac, source_mac, ethernet::IPV4)?.ipv4(
            source.0,
            destination.0,
            TCP,
            |packet| packet.tcp(source, destination, sequence, acknowledgement, flag::RST).map(|_| ()),
        )?;
        Some(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELEASE: Release<'_> = Release {
        client: MacAddr([2, 0, 0, 0, 0, 1]),
        address: Ipv4Addr::new(192, 168, 64, 2),
        server: Ipv4Addr::new(192, 168, 64, 1),
        client_id: None,
        transaction: 0x1234_5678,
    };

    #[test]
    fn a_release_has_the_bytes_of_the_rfcs() {
        #[rustfmt::skip]
        let headers = [
            2, 0, 0, 0, 0, 0xfe, 2, 0, 0, 0, 0, 1, 0x08, 0x00,
            0x45, 0, 0x01, 0x48, 0, 0, 0x40, 0, 64, 17, 0x38, 0x51, 192, 168, 64, 2, 192, 168, 64, 1,
            0, 68, 0, 67, 0x01, 0x34,
        ];
        #[rustfmt::skip]
        let fixed = [
            1, 1, 6, 0, 0x12, 0x34, 0x56, 0x78, 0, 0, 0, 0, 192, 168, 64, 2,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1,
        ];
        let options = [99, 130, 83, 99, 53, 1, 7, 54, 4, 192, 168, 64, 1, 255];
        let built = RELEASE.frame::<MAX_RELEASE_LEN>(MacAddr([2, 0, 0, 0, 0, 0xfe])).unwrap();
        let frame = built.as_bytes();
        assert_eq!(frame.len(), 14 + 20 + 8 + 300);
        assert_eq!(frame[..40], headers);
        assert!(Sum::of(&frame[14..34]).is_valid());
        assert!(checksum::udp([192, 168, 64, 2], [192, 168, 64, 1], &frame[34..]).is_valid());
        let message = RELEASE.message();
        assert_eq!(frame[42..], message);
        assert_eq!(message[..34], fixed);
        assert!(message[34..236].iter().all(|byte| *byte == 0));
        assert_eq!(message[236..250], options);
        assert!(message[250..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_release_carries_any_client_identifier() {
        for len in [2, 46, 47, 48, 255] {
            let id = vec![b'x'; len];
            let built = Release { client_id: Some(&id), ..RELEASE }
                .frame::<MAX_RELEASE_LEN>(MacAddr::BROADCAST)
                .unwrap();
            let options = &built.as_bytes()[14 + 20 + 8 + 240..];
            let expected = [&[53, 1, 7, 54, 4, 192, 168, 64, 1, 61, len as u8][..], &id, &[255]].concat();
            assert_eq!(options[..expected.len()], expected);
            assert_eq!(options.len(), expected.len().max(60));
        }
        assert!(
            Release { client_id: Some(&[0; 256]), ..RELEASE }
                .frame::<MAX_RELEASE_LEN>(MacAddr::BROADCAST)
                .is_none()
        );
    }

    #[test]
    fn a_probe_has_the_bytes_of_the_rfcs() {
        #[rustfmt::skip]
        let expected = [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x08, 0x06,
            0, 1, 0x08, 0x00, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 192, 168, 64, 1,
        ];
        assert_eq!(arp_probe(MacAddr([2, 0, 0, 0, 0, 1]), Ipv4Addr::new(192, 168, 64, 1)), expected);
    }

    #[test]
    fn an_icmp_error_has_the_bytes_of_the_rfcs() {
        #[rustfmt::skip]
        let quoted = [
            0x45, 0, 0x05, 0xdc, 0x12, 0x34, 0x40, 0, 64, 17, 0, 0, 192, 168, 64, 2, 9, 9, 9, 9,
            0x9c, 0x40, 0, 80, 0x05, 0xc8, 0, 0, b'd', b'a', b't', b'a',
        ];
        #[rustfmt::skip]
        let expected = [
            2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0xfe, 0x08, 0x00,
            0x45, 0, 0, 60, 0, 0, 0x40, 0, 64, 1, 0x39, 0x6d, 192, 168, 64, 1, 192, 168, 64, 2,
            3, 4, 0x8c, 0x89, 0, 0, 0x05, 0x78,
        ];
        let from = (MacAddr([2, 0, 0, 0, 0, 0xfe]), Ipv4Addr::new(192, 168, 64, 1));
        let to = (MacAddr([2, 0, 0, 0, 0, 1]), Ipv4Addr::new(192, 168, 64, 2));
        let error = Unreachable { code: 4, next_hop_mtu: 1400, packet: &quoted };
        let built = error.frame::<590>(from, to).unwrap();
        let frame = built.as_bytes();
        assert_eq!(frame[..42], expected);
        assert_eq!(frame[42..], quoted);
        assert!(Sum::of(&frame[14..34]).is_valid());
        assert!(Sum::of(&frame[34..]).is_valid());
    }

    #[test]
    fn an_icmp_error_is_no_longer_than_every_host_accepts() {
        let packet: Vec<u8> = (0..=255).cycle().take(1500).collect();
        let station = (MacAddr([2; 6]), Ipv4Addr::LOCALHOST);
        let error = Unreachable { code: 13, next_hop_mtu: 0, packet: &packet };
        let built = error.frame::<590>(station, station).unwrap();
        assert_eq!(built.as_bytes().len(), 14 + 576);
        assert_eq!(built.as_bytes()[42..], packet[..548]);
        assert!(error.frame::<589>(station, station).is_none());
    }

    #[test]
    fn a_reset_has_the_bytes_of_the_rfcs() {
        let (peer, own) = ((Ipv4Addr::new(9, 9, 9, 9), 443), (Ipv4Addr::new(192, 168, 64, 2), 40_000));
        let reset = Reset { source: peer, destination: own, sequence: 0, acknowledgement: Some(0x0102_0304) };
        let (from, to) = (MacAddr([2, 0, 0, 0, 0, 0xfe]), MacAddr([2, 0, 0, 0, 0, 1]));
        let built = reset.frame::<54>(from, to).unwrap();
        let frame = built.as_bytes();
        #[rustfmt::skip]
        assert_eq!(frame[..24], [
            2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0xfe, 0x08, 0x00,
            0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6,
        ]);
        #[rustfmt::skip]
        assert_eq!(frame[26..50], [
            9, 9, 9, 9, 192, 168, 64, 2,
            0x01, 0xbb, 0x9c, 0x40, 0, 0, 0, 0, 1, 2, 3, 4, 0x50, 0x14, 0, 0,
        ]);
        assert!(Sum::of(&frame[14..34]).is_valid());
        let pseudo_header = Sum::pseudo_header([9, 9, 9, 9, 192, 168, 64, 2], 6, 20);
        assert!(pseudo_header.followed_by(0, Sum::of(&frame[34..])).is_valid());
        let bare = Reset { sequence: 7, acknowledgement: None, ..reset }.frame::<54>(from, to).unwrap();
        assert_eq!(bare.as_bytes()[38..48], [0, 0, 0, 7, 0, 0, 0, 0, 0x50, 0x04]);
        assert!(reset.frame::<53>(from, to).is_none());
    }

    #[test]
    fn a_full_buffer_takes_nothing_more() {
        let mut full = Builder::<2>::new();
        assert!(full.bytes(&[1, 2]).is_some());
        assert!(full.bytes(&[3]).is_none());
        assert!(full.pad(0, 3).is_none());
        assert_eq!(full.as_bytes(), [1, 2]);
        assert_eq!(format!("{full:?}"), "Builder { len: 2, .. }");
        assert!(
            Builder::<41>::default()
                .udp((Ipv4Addr::LOCALHOST, 1), (Ipv4Addr::LOCALHOST, 2), |data| {
                    data.bytes(&[0; 34]).map(|_| ())
                })
                .is_none()
        );
    }
}
