//! The one message that the filter sends itself: a DHCPRELEASE that releases the VM's address, alone or as a frame of
//! the VM's.

use core::net::Ipv4Addr;

use softnet_wire::MacAddr;
use softnet_wire::build::{MIN_MESSAGE_LEN, Release};

use crate::binding::dhcpv4::client_ids::ClientId;
use crate::binding::dhcpv4::terms::Former;
use crate::segment::Segment;
use crate::transmit::OwnFrame;

/// The DHCPRELEASE with which the VM `vm_mac` releases `address` to `server`, without a client identifier (RFC 2131,
/// section 4.4.6): the content of a UDP datagram for the server's port 67. It has no answer, so `transaction` is any
/// number.
pub fn release_message(
    vm_mac: MacAddr,
    address: Ipv4Addr,
    server: Ipv4Addr,
    transaction: u32,
) -> [u8; MIN_MESSAGE_LEN] {
    Release { client: vm_mac, address, server, client_id: None, transaction }.message()
}

/// The frame that releases `lease`. It is not broadcast, because the server is the VM's neighbour.
pub(crate) fn release_frame(lease: &Former, segment: &Segment, transaction: u32) -> Option<OwnFrame> {
    let release = Release {
        client: segment.vm_mac,
        address: lease.address,
        server: lease.server,
        client_id: lease.client_id.as_ref().map(ClientId::as_bytes),
        transaction,
    };
    release.frame(segment.dhcp_server.mac).map(OwnFrame::new)
}

#[cfg(test)]
mod tests {
    use softnet_wire::checksum;

    use super::*;
    use crate::testing::*;
    use crate::{Direction, Port, PortEvent, UnboundCause, Verdict};

    /// The frame with which the port releases the VM's lease.
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

    /// The server stores the lease under the identifier in the request that it acknowledged.
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
            // A server makes the checks that a port makes.
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

    /// A checksum that comes out as 0 is written as 0xffff.
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
