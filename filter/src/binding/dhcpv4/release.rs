//! The one message that the filter makes itself: a DHCPRELEASE that gives the VM's address back (RFC 2131, section
//! 4.4.6), alone or as a frame of the VM's.

use core::net::Ipv4Addr;

use crate::binding::dhcpv4::client_ids::ClientId;
use crate::binding::dhcpv4::terms::Former;
use crate::checksum;
use crate::dhcp::message::{BOOT_REQUEST, COOKIE, ETHERNET, FIXED_LEN, code, kind};
use crate::dhcp::{CLIENT_PORT, SERVER_PORT};
use crate::frame;
use crate::ipv4;
use crate::mac::MacAddr;
use crate::segment::Segment;
use crate::transmit::OwnFrame;

/// BOOTP's messages are of 300 bytes at least, and some servers insist.
const MIN_MESSAGE_LEN: usize = 300;
/// The fixed part, the message's type and the server's identifier.
const BARE_LEN: usize = FIXED_LEN + 3 + 6;

/// The DHCPRELEASE by which the VM `vm_mac` gives `address` back to `server`, without a client identifier (RFC 2131,
/// section 4.4.6): the content of a UDP datagram for the server's port 67. Nothing answers it, so `transaction` is any
/// number.
pub fn release_message(
    vm_mac: MacAddr,
    address: Ipv4Addr,
    server: Ipv4Addr,
    transaction: u32,
) -> [u8; MIN_MESSAGE_LEN] {
    let mut message = [0; MIN_MESSAGE_LEN];
    // `op`, `htype`, `hlen`, `xid`, `ciaddr`, `chaddr`; a client leaves the rest 0.
    message[..3].copy_from_slice(&[BOOT_REQUEST, ETHERNET, 6]);
    message[4..8].copy_from_slice(&transaction.to_be_bytes());
    message[12..16].copy_from_slice(&address.octets());
    message[28..34].copy_from_slice(&vm_mac.octets());
    message[236..240].copy_from_slice(&COOKIE);
    message[240..245].copy_from_slice(&[code::MESSAGE_TYPE, 1, kind::RELEASE, code::SERVER, 4]);
    message[245..249].copy_from_slice(&server.octets());
    message[BARE_LEN] = code::END;
    message
}

/// Headers, the message, the longest client identifier and the end option.
const LONGEST_LEN: usize = frame::HEADER_LEN + ipv4::HEADER_LEN + ipv4::UDP_HEADER_LEN + BARE_LEN + 257 + 1;
const _: () = assert!(LONGEST_LEN <= OwnFrame::CAPACITY, "the longest release must fit into a frame");

/// The frame that gives `lease` back. Broadcast is not needed: the VM's neighbour is the server.
pub(crate) fn release_frame(lease: &Former, segment: &Segment, transaction: u32) -> Option<OwnFrame> {
    let mac = segment.vm_mac.octets();
    let own = lease.address.octets();
    let server = lease.server.octets();
    let client_id = lease.client_id.as_ref().map_or(&[][..], ClientId::as_bytes);

    let mut message_len = BARE_LEN.saturating_add(1);
    if !client_id.is_empty() {
        message_len = message_len.saturating_add(client_id.len()).saturating_add(2);
    }
    let message_len = message_len.max(MIN_MESSAGE_LEN);
    let udp_len = message_len.saturating_add(ipv4::UDP_HEADER_LEN);
    let ip_len = udp_len.saturating_add(ipv4::HEADER_LEN);

    let mut writer = Writer { bytes: [0; OwnFrame::CAPACITY], at: 0 };
    writer.put(&segment.dhcp_server.mac.octets())?.put(&mac)?.put(&[0x08, 0x00])?;

    // Don't fragment, TTL 64.
    let ip_start = writer.at;
    writer.put(&[0x45, 0])?.put_u16(ip_len)?.put(&[0, 0, 0x40, 0, 64, ipv4::UDP, 0, 0])?;
    writer.put(&own)?.put(&server)?;
    let sum = checksum::Sum::default().add(writer.bytes.get(ip_start..writer.at)?);
    writer.set_u16(ip_start.saturating_add(10), sum.checksum())?;

    let udp_start = writer.at;
    writer.put_u16(usize::from(CLIENT_PORT))?.put_u16(usize::from(SERVER_PORT))?;
    writer.put_u16(udp_len)?.put(&[0, 0])?;
    let bare = release_message(segment.vm_mac, lease.address, lease.server, transaction);
    writer.put(&bare[..BARE_LEN])?;
    if let Ok(len @ 1..) = u8::try_from(client_id.len()) {
        writer.put(&[code::CLIENT_ID, len])?.put(client_id)?;
    }
    writer.put(&[code::END])?;

    let end = udp_start.saturating_add(udp_len);
    let sum = checksum::udp(own, server, writer.bytes.get(udp_start..end)?);
    // A checksum that comes out as 0 is sent as its other zero, since 0 means none (RFC 768).
    let checksum = match sum.checksum() {
        0 => 0xffff,
        checksum => checksum,
    };
    writer.set_u16(udp_start.saturating_add(6), checksum)?;
    Some(OwnFrame::new(writer.bytes, end))
}

/// Writes into a fixed buffer; `None` where it ends.
struct Writer {
    bytes: [u8; OwnFrame::CAPACITY],
    at: usize,
}

impl Writer {
    fn put(&mut self, bytes: &[u8]) -> Option<&mut Self> {
        let end = self.at.checked_add(bytes.len())?;
        self.bytes.get_mut(self.at..end)?.copy_from_slice(bytes);
        self.at = end;
        Some(self)
    }

    fn put_u16(&mut self, number: usize) -> Option<&mut Self> {
        self.put(&u16::try_from(number).ok()?.to_be_bytes())
    }

    fn set_u16(&mut self, at: usize, number: u16) -> Option<()> {
        self.bytes.get_mut(at..at.checked_add(2)?)?.copy_from_slice(&number.to_be_bytes());
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;
    use crate::{Direction, Port, PortEvent, UnboundCause, Verdict};

    /// The frame by which the port gives the VM's lease back.
    fn release(port: &mut Port) -> OwnFrame {
        assert!(port.release(NOW));
        let (direction, frame) = port.poll_transmit().unwrap();
        assert_eq!((direction, port.poll_transmit()), (Direction::FromVm, None));
        frame
    }

    /// Without a frame, byte by byte.
    #[test]
    fn release_message_is_a_dhcprelease() {
        let expected = DhcpFrame { tail: [&[255][..], &[0; 50]].concat(), ..DhcpFrame::release() };
        let expected = &expected.frame()[14 + 20 + 8..];
        let message = release_message(VM, OWN_IP, GATEWAY_IP, XID);
        assert_eq!(message[..], *expected);
        assert_eq!(message[..12], [1, 1, 6, 0, 0x12, 0x34, 0x56, 0x78, 0, 0, 0, 0]);
    }

    /// The frame of a lease without a client identifier, byte by byte.
    #[test]
    fn release_is_a_dhcprelease() {
        let mut port = bound();
        let lease = port.lease().unwrap();
        let frame = release(&mut port);
        let expected = DhcpFrame::release().xid(XID + 1);
        let expected = DhcpFrame { tail: [&[255][..], &[0; 50]].concat(), ..expected };
        let mut packet = expected.packet();
        packet.fragment = 0x4000;
        let mut expected = packet.packet();
        expected[4..6].fill(0);
        fix_header(&mut expected);
        assert_eq!(frame[..], ethernet(GATEWAY, VM, 0x0800, &expected)[..]);
        assert_eq!(frame.len(), 14 + 20 + 8 + 300);

        assert_eq!(port.lease(), None);
        assert_eq!(port.poll_event(), Some(PortEvent::Unbound { lease, cause: UnboundCause::Released }));
        assert!(!port.release(NOW));
        assert_eq!(port.poll_transmit(), None);
        assert_eq!(port.poll_event(), None);
    }

    /// The server files the lease by the identifier in the request that it acknowledged.
    #[test]
    fn release_carries_the_client_id_of_the_lease() {
        let mut longest = [b'x'; 255];
        longest[0] = 0;
        for id in [&b"\0system"[..], &longest[..46], &longest[..47], &longest] {
            let mut port = fresh();
            let _ = port.from_vm(&DhcpFrame::discover().option(61, b"\0firmware").xid(98).frame(), NOW);
            let _ = port.from_vm(&DhcpFrame::request().option(61, id).frame(), NOW);
            assert_eq!(port.from_host(&DhcpFrame::ack().frame(), NOW), Verdict::Forward);
            let _ = port.from_vm(&DhcpFrame::discover().option(61, b"\0firmware").xid(99).frame(), NOW);
            let frame = release(&mut port);
            let options = &frame[14 + 20 + 8 + 240..];
            let expected =
                [&[53, 1, 7, 54, 4][..], &GATEWAY_IP.octets(), &[61, id.len() as u8], id, &[255]].concat();
            assert_eq!(options[..expected.len()], expected);
            assert!(options[expected.len()..].iter().all(|byte| *byte == 0));
            assert_eq!(options.len(), expected.len().max(60));
            // A server checks what a port checks of its VM.
            assert_eq!(frame[14 + 20 + 8 + 4..][..4], 100_u32.to_be_bytes());
            let mut other = fresh();
            let _ = other.from_vm(&DhcpFrame::request().frame(), NOW);
            let _ = other.from_host(&DhcpFrame::ack().frame(), NOW);
            assert_eq!(other.from_vm(&frame, NOW), Verdict::Forward);
            assert_eq!(other.lease(), None);
            let (source, destination) = (OWN_IP.octets(), GATEWAY_IP.octets());
            assert!(checksum::udp(source, destination, &frame[34..]).is_valid());
        }
    }

    /// A checksum that comes out as 0 is written as its other zero.
    #[test]
    fn release_has_a_checksum() {
        let of_transaction = |xid: u32| {
            let mut port = fresh();
            let _ = port.from_vm(&DhcpFrame::request().xid(xid).frame(), NOW);
            assert_eq!(port.from_host(&DhcpFrame::ack().xid(xid).frame(), NOW), Verdict::Forward);
            release(&mut port)
        };
        // The lower half of the transaction number is one word of the sum. Adding the checksum to it leaves 0.
        let frame = of_transaction(0);
        let checksum = u16::from_be_bytes([frame[40], frame[41]]);
        let frame = of_transaction(u32::from(checksum));
        assert_eq!(frame[48..50], (checksum + 1).to_be_bytes());
        let frame = of_transaction(u32::from(checksum));
        assert_ne!(frame[40..42], [0, 0]);
        assert_eq!(frame[40..42], [0xff, 0xff]);
    }
}
