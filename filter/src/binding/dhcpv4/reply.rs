//! What a DHCP server may send to the VM, and what the filter accepts of it: the rules B.

use core::net::Ipv4Addr;
use core::time::Duration;

use crate::binding::dhcpv4::state::Dhcp;
use crate::binding::dhcpv4::terms::lease_time;
use crate::binding::dhcpv4::transactions::{Kind, Transaction};
use crate::event::PortEvent;
use crate::frame::Frame;
use crate::ipv4::{Packet, Part, UDP_HEADER_LEN, Udp};
use crate::lease::{Lease, Resolvers};
use crate::segment::Segment;
use crate::time::Timestamp;
use crate::verdict::DropReason;
use softnet_wire::MacAddr;
use softnet_wire::checksum;
use softnet_wire::dhcpv4::{BOOT_PORT, SERVER_PORT};
use softnet_wire::dhcpv4::{BOOT_REPLY, Message, Options, kind};

/// A reply of the server about the VM, as far as B1 can check without the state.
#[derive(Debug, Clone, Copy)]
struct Reply<'a> {
    /// The destination of its packet.
    destination: Ipv4Addr,
    message: Message<'a>,
    options: Options<'a>,
}

impl Reply<'_> {
    /// Whether it is sent to `address`, or to all.
    fn is_to(&self, address: Ipv4Addr) -> bool {
        self.destination == address || self.destination.is_broadcast()
    }

    /// The address that it gives.
    fn gives(&self) -> Ipv4Addr {
        self.message.your_address
    }
}

/// Judges a datagram for the port of a DHCP client by the rules B in their order, whatever its content, and learns
/// from it if it passes. A client may read such a datagram as DHCP, whatever its source, so none passes that fails B1
/// (B6).
#[cold]
pub(crate) fn judge_from_host(
    dhcp: &mut Dhcp,
    segment: &Segment,
    frame: Frame<'_>,
    packet: Packet<'_>,
    udp: Udp,
    now: Timestamp,
) -> Result<(), DropReason> {
    if let Err(reason) = judge_source(segment, frame, packet, udp) {
        note_other_server(dhcp, segment, frame, packet, udp);
        return Err(reason);
    }
    let datagram = judge_wholeness(packet)?;
    judge_length(datagram)?;
    judge_checksums(packet, datagram)?;
    judge_station(segment, frame)?;
    let message = judge_header(datagram.get(UDP_HEADER_LEN..).ok_or(DropReason::ReplyHeader)?)?;
    judge_hardware_address(segment, &message)?;
    let options = judge_options(&message)?;
    judge_server(segment, &options)?;
    let reply = Reply { destination: packet.destination(), message, options };
    if udp.source_port == BOOT_PORT {
        return judge_boot_reply(dhcp, &reply, now);
    }
    let transaction = judge_transaction(dhcp, &reply, now)?;
    if transaction.asked.kind == Kind::Inform {
        return judge_information(dhcp, &reply, now);
    }
    judge_destination(&reply)?;
    match options.message_type {
        kind::OFFER => judge_offer(dhcp, segment, &reply, now),
        kind::ACK => judge_acknowledgement(dhcp, segment, &reply, transaction, now),
        kind::NAK => judge_refusal(dhcp, &reply, transaction),
        _ => Err(DropReason::ReplyType),
    }
}

/// B1: from the server's addresses and port, or its boot server's port (B6).
fn judge_source(segment: &Segment, frame: Frame<'_>, packet: Packet<'_>, udp: Udp) -> Result<(), DropReason> {
    let server = segment.dhcp_server;
    let is_server_port = matches!(udp.source_port, SERVER_PORT | BOOT_PORT);
    if frame.source() == server.mac && packet.source() == server.address && is_server_port {
        Ok(())
    } else {
        Err(DropReason::ReplyServer)
    }
}

/// B1: reports the first reply that would be the server's if it came from there. The administrator may have forgotten
/// to name the server.
fn note_other_server(dhcp: &mut Dhcp, segment: &Segment, frame: Frame<'_>, packet: Packet<'_>, udp: Udp) {
    if dhcp.has_other_server
        || packet.source() == segment.dhcp_server.address
        || udp.source_port != SERVER_PORT
        || !is_reply_of_source(dhcp, segment, packet)
    {
        return;
    }
    dhcp.has_other_server = true;
    dhcp.events.push(PortEvent::OtherDhcpServer { mac: frame.source(), address: packet.source() });
}

/// Whether a packet is a reply of its source, as a DHCP server, to an open request of the VM.
fn is_reply_of_source(dhcp: &Dhcp, segment: &Segment, packet: Packet<'_>) -> bool {
    let Ok(datagram) = judge_wholeness(packet) else { return false };
    let payload = datagram.get(UDP_HEADER_LEN..).unwrap_or_default();
    judge_length(datagram).is_ok()
        && judge_checksums(packet, datagram).is_ok()
        && judge_header(payload).is_ok_and(|message| {
            judge_hardware_address(segment, &message).is_ok()
                && dhcp.transactions.find(message.transaction).is_some()
                && judge_options(&message).is_ok_and(|options| options.server == Some(packet.source()))
        })
}

/// B1: no fragment. Gives the datagram.
fn judge_wholeness(packet: Packet<'_>) -> Result<&[u8], DropReason> {
    match packet.part() {
        Part::Whole(datagram) => Ok(datagram),
        Part::First(_) | Part::Later => Err(DropReason::ReplyFragment),
    }
}

/// B1: the datagram is as long as its header says.
fn judge_length(datagram: &[u8]) -> Result<(), DropReason> {
    match datagram {
        &[_, _, _, _, l0, l1, _, _, ..] if usize::from(u16::from_be_bytes([l0, l1])) == datagram.len() => {
            Ok(())
        }
        _ => Err(DropReason::ReplyHeader),
    }
}

/// B1: the checksums are right. A UDP checksum of 0, which means that there is none, is not: known servers
/// always send one.
fn judge_checksums(packet: Packet<'_>, datagram: &[u8]) -> Result<(), DropReason> {
    let has_checksum = !matches!(datagram, &[_, _, _, _, _, _, 0, 0, ..]);
    let sum = checksum::udp(packet.source().octets(), packet.destination().octets(), datagram);
    if has_checksum && sum.is_valid() && packet.is_checksum_valid() {
        Ok(())
    } else {
        Err(DropReason::ReplyChecksum)
    }
}

/// B1: for the VM's station, or for all.
fn judge_station(segment: &Segment, frame: Frame<'_>) -> Result<(), DropReason> {
    if frame.destination() == segment.vm_mac || frame.destination().is_broadcast() {
        Ok(())
    } else {
        Err(DropReason::ReplyDestination)
    }
}

/// B1: the fixed part of the message.
fn judge_header(payload: &[u8]) -> Result<Message<'_>, DropReason> {
    let message = Message::parse(payload).ok_or(DropReason::ReplyHeader)?;
    if message.operation != BOOT_REPLY || message.hardware_len != 6 || !message.has_cookie {
        return Err(DropReason::ReplyHeader);
    }
    Ok(message)
}

/// B1: the message is about the VM.
fn judge_hardware_address(segment: &Segment, message: &Message<'_>) -> Result<(), DropReason> {
    if MacAddr(message.hardware_address) == segment.vm_mac {
        Ok(())
    } else {
        Err(DropReason::ReplyHardwareAddress)
    }
}

/// B3: well-formed options, none of them twice.
fn judge_options<'a>(message: &Message<'a>) -> Result<Options<'a>, DropReason> {
    message.options().map_err(|_| DropReason::ReplyOptions)
}

/// B1: the server names itself.
fn judge_server(segment: &Segment, options: &Options<'_>) -> Result<(), DropReason> {
    if options.server == Some(segment.dhcp_server.address) { Ok(()) } else { Err(DropReason::ReplyServer) }
}

/// B1: the VM waits for the reply. Returns what it requested.
fn judge_transaction(dhcp: &mut Dhcp, reply: &Reply<'_>, now: Timestamp) -> Result<Transaction, DropReason> {
    if let Some(transaction) = dhcp.transactions.find(reply.message.transaction) {
        return Ok(*transaction);
    }
    if reply.is_to(reply.gives()) {
        limit_by_unrequested_ack(dhcp, reply, now);
    }
    Err(DropReason::ReplyTransaction)
}

/// B6: an answer of the boot server passes if the VM has asked it, and binds nothing. So it names no address but the
/// lease, and is none that withdraws an address.
fn judge_boot_reply(dhcp: &Dhcp, reply: &Reply<'_>, now: Timestamp) -> Result<(), DropReason> {
    let own = dhcp.lease().map(|lease| lease.address);
    if !dhcp.boot_requests.is_open(reply.message.transaction, now) {
        return Err(DropReason::ReplyTransaction);
    }
    if !matches!(reply.options.message_type, kind::OFFER | kind::ACK) {
        return Err(DropReason::ReplyType);
    }
    if !reply.gives().is_unspecified() && Some(reply.gives()) != own {
        return Err(DropReason::ReplyAddress);
    }
    if reply.is_to(own.unwrap_or(Ipv4Addr::BROADCAST)) { Ok(()) } else { Err(DropReason::ReplyDestination) }
}

/// B1: to the address that it gives, or to all.
fn judge_destination(reply: &Reply<'_>) -> Result<(), DropReason> {
    if reply.is_to(reply.gives()) { Ok(()) } else { Err(DropReason::ReplyDestination) }
}

/// B2, B9: an address that DHCP may give the VM.
fn judge_address(dhcp: &Dhcp, segment: &Segment, reply: &Reply<'_>) -> Result<(), DropReason> {
    if segment.may_be_leased(reply.gives()) && dhcp.may_get(reply.gives()) {
        Ok(())
    } else {
        Err(DropReason::ReplyAddress)
    }
}

/// B3, B4: a lease time, and not 0. Returns it; `None` never ends.
fn judge_lease_time(options: &Options<'_>) -> Result<Option<Duration>, DropReason> {
    match options.lease_time {
        None | Some(0) => Err(DropReason::ReplyLeaseTime),
        Some(seconds) => Ok(lease_time(seconds)),
    }
}

/// B3, B8: an ACK to an INFORM has options, and nothing about an address. Some servers repeat the remaining time of
/// the VM's lease in it.
fn judge_information(dhcp: &mut Dhcp, reply: &Reply<'_>, now: Timestamp) -> Result<(), DropReason> {
    let own = dhcp.lease().map(|lease| lease.address);
    let gives = reply.gives();
    if reply.options.message_type != kind::ACK || !(gives.is_unspecified() || Some(gives) == own) {
        if reply.is_to(gives) {
            limit_by_unrequested_ack(dhcp, reply, now);
        }
        return Err(DropReason::ReplyTransaction);
    }
    if !reply.is_to(own.unwrap_or(Ipv4Addr::BROADCAST)) {
        return Err(DropReason::ReplyDestination);
    }
    if own.is_none() && reply.options.lease_time.is_some() {
        return Err(DropReason::ReplyLeaseTime);
    }
    dhcp.transactions.close(reply.message.transaction);
    Ok(())
}

/// B2: an offer does not bind an address.
fn judge_offer(
    dhcp: &mut Dhcp,
    segment: &Segment,
    reply: &Reply<'_>,
    now: Timestamp,
) -> Result<(), DropReason> {
    judge_address(dhcp, segment, reply)?;
    dhcp.offer(reply.gives(), now);
    dhcp.transactions.note_offer(reply.message.transaction);
    Ok(())
}

/// B5, B7: an ACK replaces the lease if it can be the answer to its request. A server answers a DISCOVER by an offer;
/// and an ACK with another address than the requested one answers an earlier request.
fn judge_acknowledgement(
    dhcp: &mut Dhcp,
    segment: &Segment,
    reply: &Reply<'_>,
    transaction: Transaction,
    now: Timestamp,
) -> Result<(), DropReason> {
    if !transaction.asked.may_bind() || !transaction.may_give(reply.gives()) {
        limit_by_unrequested_ack(dhcp, reply, now);
        return Err(DropReason::ReplyTransaction);
    }
    judge_address(dhcp, segment, reply)?;
    let lasts = dhcp.lasts(judge_lease_time(&reply.options)?);
    let lease = Lease {
        address: reply.gives(),
        server: segment.dhcp_server.address,
        // A client counts from its request (RFC 2131, section 4.4.1), and the server began no earlier (B7).
        expires: lasts.map(|lasts| transaction.since.saturating_add(lasts)),
        resolvers: resolvers(segment, reply),
    };
    dhcp.transactions.close(reply.message.transaction);
    dhcp.acknowledge(lease, &transaction, lasts, now);
    Ok(())
}

/// B5: a NAK ends the lease, if the VM has requested an address that the server can deny.
fn judge_refusal(dhcp: &mut Dhcp, reply: &Reply<'_>, transaction: Transaction) -> Result<(), DropReason> {
    if !transaction.asked.may_bind() {
        return Err(DropReason::ReplyTransaction);
    }
    dhcp.refuse();
    dhcp.transactions.close(reply.message.transaction);
    Ok(())
}

/// The resolvers that the reply names and that may be opened (D5).
fn resolvers(segment: &Segment, reply: &Reply<'_>) -> Resolvers {
    let (resolvers, _) = reply.options.resolvers.as_chunks::<4>();
    resolvers
        .iter()
        .map(|octets| Ipv4Addr::from(*octets))
        .filter(|resolver| segment.is_sane_resolver(*resolver) && *resolver != reply.gives())
        .collect()
}

/// B7: a reply that answers no open request does not reach the VM. But an ACK shows what the server has for the VM, so
/// the lease never exceeds it.
fn limit_by_unrequested_ack(dhcp: &mut Dhcp, reply: &Reply<'_>, now: Timestamp) {
    if reply.options.message_type == kind::ACK && !reply.gives().is_unspecified() {
        dhcp.limit_by_ack(reply.gives(), reply.options.lease_time, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Station;
    use crate::event::UnboundCause;
    use crate::testing::*;
    use crate::{AdoptError, Direction, Port, PortConfig, PortEvent, Verdict};
    use core::time::Duration;

    /// A port that waits for replies to [`XID`].
    fn waiting() -> Port {
        let mut port = fresh();
        assert_eq!(port.from_vm(&DhcpFrame::request().frame(), NOW), Verdict::Forward);
        port
    }

    /// The verdict on a reply that a VM without a lease waits for, after which it still has none unless it passed.
    fn judge(frame: &DhcpFrame) -> Verdict {
        judge_bytes(&frame.frame())
    }

    fn judge_bytes(bytes: &[u8]) -> Verdict {
        let mut port = waiting();
        let verdict = port.from_host(bytes, NOW);
        assert_eq!(port.lease().is_some(), verdict.is_forward());
        // The true reply is still awaited.
        if !verdict.is_forward() {
            assert_eq!(port.from_host(&DhcpFrame::ack().frame(), NOW), Verdict::Forward);
        }
        verdict
    }

    fn at(secs: u64) -> Timestamp {
        NOW.saturating_add(Duration::from_secs(secs))
    }

    /// The station that answers DHCP where the gateway does not.
    const SERVER: Station = Station { mac: STRANGER, address: OTHER_IP };

    /// An answer of that station.
    fn by_server(frame: DhcpFrame) -> DhcpFrame {
        let frame = DhcpFrame { from_mac: SERVER.mac, from: SERVER.address, ..frame };
        frame.address_option(54, SERVER.address)
    }

    /// B1, C1, C8, A5, I3: where another station is the DHCP server, the rules about the server are about that one, and
    /// those about the router stay the gateway's.
    #[test]
    fn b1_another_station_than_the_gateway_is_the_server() {
        let other = || PortConfig { dhcp_server: Some(SERVER), ..config(&[], &[]) };
        let mut port = Port::new(other()).unwrap();
        let request = DhcpFrame::request().address_option(54, SERVER.address);
        assert_eq!(port.from_vm(&DhcpFrame::request().frame(), NOW), drop_for(DropReason::DhcpServer));
        assert_eq!(port.from_vm(&request.frame(), NOW), Verdict::Forward);
        for wrong in [
            DhcpFrame::ack(),
            DhcpFrame { from_mac: GATEWAY, ..by_server(DhcpFrame::ack()) },
            DhcpFrame { from: GATEWAY_IP, ..by_server(DhcpFrame::ack()) },
            by_server(DhcpFrame::ack()).address_option(54, GATEWAY_IP),
        ] {
            assert_eq!(port.from_host(&wrong.frame(), NOW), drop_for(DropReason::ReplyServer));
        }
        let own = by_server(DhcpFrame { to: SERVER.address, ..DhcpFrame::ack().yiaddr(SERVER.address) });
        assert_eq!(port.from_host(&own.frame(), NOW), drop_for(DropReason::ReplyAddress));
        assert_eq!(port.from_host(&by_server(DhcpFrame::ack()).frame(), NOW), Verdict::Forward);
        assert_eq!(port.lease().unwrap().server, SERVER.address);

        let renewal = DhcpFrame::renewal().xid(XID + 1);
        let to_server = DhcpFrame { to_mac: SERVER.mac, to: SERVER.address, ..renewal.clone() };
        assert_eq!(port.from_vm(&renewal.frame(), NOW), drop_for(DropReason::DhcpDestination));
        assert_eq!(port.from_vm(&to_server.frame(), NOW), Verdict::Forward);
        for target in [SERVER.address, GATEWAY_IP] {
            assert_eq!(port.from_vm(&ArpFrame::request(target).frame(), NOW), Verdict::Forward);
        }
        // The server is no router, and for everything but DHCP a neighbour.
        let to_world = IpFrame::udp(WORLD_IP, 80);
        assert_eq!(port.from_vm(&to_world.frame(), NOW), Verdict::Forward);
        let by_the_server = to_world.in_frame_to(SERVER.mac).frame();
        assert_eq!(port.from_vm(&by_the_server, NOW), drop_for(DropReason::DestinationMac));
        let to_neighbour = IpFrame::udp(SERVER.address, 80).in_frame_to(SERVER.mac).frame();
        assert_eq!(port.from_vm(&to_neighbour, NOW), drop_for(DropReason::Neighbour));
        // Nobody claims the address of either.
        for (sender, mac, verdict) in [
            (SERVER.address, SERVER.mac, Verdict::Forward),
            (SERVER.address, GATEWAY, drop_for(DropReason::ArpGateway)),
            (GATEWAY_IP, SERVER.mac, drop_for(DropReason::ArpGateway)),
        ] {
            let claim = ArpFrame { from_mac: mac, sender_mac: mac, sender, ..ArpFrame::request(OWN_IP) };
            assert_eq!(port.from_host(&claim.frame(), NOW), verdict, "{sender} at {mac}");
        }
        assert!(port.release(NOW));
        let (direction, release) = port.poll_transmit().unwrap();
        assert_eq!((direction, &release[..6]), (Direction::FromVm, &SERVER.mac.octets()[..]));
        assert_eq!(release[30..34], SERVER.address.octets());
    }

    /// B1: the first reply that would be genuine if its station were the server is reported.
    #[test]
    fn b1_another_server_is_reported_once() {
        let mut port = waiting();
        let other = by_server(DhcpFrame::offer());
        let mut forged = other.frame();
        forged[60] ^= 1;
        for wrong in [
            DhcpFrame { ports: (1067, 68), ..other.clone() }.frame(),
            other.clone().xid(99).frame(),
            other.clone().set(28, &[2, 0, 0, 0, 0, 9]).frame(),
            other.clone().address_option(54, WORLD_IP).frame(),
            other.clone().without(54).frame(),
            forged,
        ] {
            assert_eq!(port.from_host(&wrong, NOW), drop_for(DropReason::ReplyServer));
            assert_eq!(port.poll_event(), None);
        }
        let Station { mac, address } = SERVER;
        for event in [Some(PortEvent::OtherDhcpServer { mac, address }), None] {
            assert_eq!(port.from_host(&other.frame(), NOW), drop_for(DropReason::ReplyServer));
            assert_eq!(port.poll_event(), event);
        }
    }

    /// B1: what the filter learns from an ACK that fulfils every condition.
    #[test]
    fn b1_ack_binds() {
        let mut port = waiting();
        assert_eq!(port.lease(), None);
        assert_eq!(port.from_host(&DhcpFrame::ack().frame(), NOW), Verdict::Forward);
        let lease = Lease {
            address: OWN_IP,
            server: GATEWAY_IP,
            expires: Some(at(600)),
            resolvers: [RESOLVER_IP].into_iter().collect(),
        };
        assert_eq!(port.lease(), Some(lease));
        assert_eq!(port.poll_event(), Some(PortEvent::Bound(lease)));
        assert_eq!(port.poll_event(), None);
        assert_eq!(port.next_deadline(), Some(at(600)));
    }

    /// B1: the destination MAC is the VM's own or broadcast, the destination IP is the given address or broadcast.
    #[test]
    fn b1_destination() {
        let dropped = drop_for(DropReason::ReplyDestination);
        for (to_mac, to, expected) in [
            (VM, OWN_IP, Verdict::Forward),
            (VM, Ipv4Addr::BROADCAST, Verdict::Forward),
            (MacAddr::BROADCAST, OWN_IP, Verdict::Forward),
            (MacAddr::BROADCAST, Ipv4Addr::BROADCAST, Verdict::Forward),
            (VM, OTHER_IP, dropped),
            (VM, Ipv4Addr::new(192, 168, 64, 255), dropped),
            (VM, Ipv4Addr::UNSPECIFIED, dropped),
            (MacAddr([0x01, 0, 0x5e, 0, 0, 1]), Ipv4Addr::new(224, 0, 0, 1), dropped),
            (STRANGER, OWN_IP, drop_for(DropReason::OtherStation)),
        ] {
            assert_eq!(judge(&DhcpFrame { to_mac, to, ..DhcpFrame::ack() }), expected, "{to} in {to_mac}");
        }
    }

    /// B1: from the gateway, by MAC address, IP address, port and server identifier.
    #[test]
    fn b1_server() {
        let dropped = drop_for(DropReason::ReplyServer);
        for from_mac in [STRANGER, VM, MacAddr::BROADCAST] {
            assert_eq!(judge(&DhcpFrame { from_mac, ..DhcpFrame::ack() }), dropped);
        }
        for from in [NEIGHBOUR_IP, WORLD_IP, Ipv4Addr::UNSPECIFIED] {
            assert_eq!(judge(&DhcpFrame { from, ..DhcpFrame::ack() }), dropped);
        }
        for port in [53, 68, 66, 1067] {
            assert_eq!(judge(&DhcpFrame { ports: (port, 68), ..DhcpFrame::ack() }), dropped);
        }
        assert_eq!(judge(&DhcpFrame::ack().address_option(54, NEIGHBOUR_IP)), dropped);
        assert_eq!(judge(&DhcpFrame::ack().without(54)), dropped);
    }

    /// B1: a datagram for another port passes (I1), and the filter learns nothing from it.
    #[test]
    fn b1_other_ports_are_no_dhcp() {
        let mut port = waiting();
        for to in [67, 69, 1068] {
            let frame = DhcpFrame { ports: (67, to), ..DhcpFrame::ack() };
            assert_eq!(port.from_host(&frame.frame(), NOW), Verdict::Forward);
            assert_eq!(port.lease(), None);
        }
        let tcp = IpFrame { protocol: 6, ..DhcpFrame::ack().packet() };
        assert_eq!(port.from_host(&tcp.frame(), NOW), Verdict::Forward);
        assert_eq!(port.lease(), None);
    }

    /// B1: a UDP checksum that is present and right; a right header checksum.
    #[test]
    fn b1_checksums() {
        let frame = DhcpFrame::ack().frame();
        let payload = 14 + 20;
        for bit in 0..16 {
            let mut frame = frame.clone();
            frame[payload + 6 + bit / 8] ^= 1 << (bit % 8);
            assert_eq!(judge_bytes(&frame), drop_for(DropReason::ReplyChecksum), "bit {bit}");
        }
        let mut none = frame.clone();
        none[payload + 6..payload + 8].fill(0);
        assert_eq!(judge_bytes(&none), drop_for(DropReason::ReplyChecksum));
        let mut other = frame.clone();
        other[payload + 8 + 240] ^= 1;
        assert_eq!(judge_bytes(&other), drop_for(DropReason::ReplyChecksum));
        let mut header = frame;
        header[14 + 8] ^= 1;
        assert_eq!(judge_bytes(&header), drop_for(DropReason::ReplyChecksum));
    }

    /// B1: options in the IP header move the rest, and the checksum covers them.
    #[test]
    fn b1_ip_options_are_skipped() {
        let packet = DhcpFrame::ack().packet().packet();
        let mut packet = [&packet[..20], &[1, 1, 1, 0], &packet[20..]].concat();
        packet[0] = 0x46;
        let len = (packet.len() as u16).to_be_bytes();
        packet[2..4].copy_from_slice(&len);
        fix_header(&mut packet);
        assert_eq!(judge_bytes(&ethernet(VM, GATEWAY, 0x0800, &packet)), Verdict::Forward);
        packet[21] = 0;
        assert_eq!(judge_bytes(&ethernet(VM, GATEWAY, 0x0800, &packet)), drop_for(DropReason::ReplyChecksum));
    }

    /// B1: an unfragmented packet whose UDP length agrees with it.
    #[test]
    fn b1_fragments_and_lengths() {
        let packet = DhcpFrame::ack().packet();
        assert_eq!(judge_bytes(&packet.clone().fragment(0x4000).frame()), Verdict::Forward);
        let first = packet.clone().fragment(0x2000).frame();
        assert_eq!(judge_bytes(&first), drop_for(DropReason::ReplyFragment));
        let mut longer = packet.clone();
        longer.payload.push(0);
        assert_eq!(judge_bytes(&longer.frame()), drop_for(DropReason::ReplyHeader));
        let mut shorter = packet.clone();
        shorter.payload.pop();
        assert_eq!(judge_bytes(&shorter.frame()), drop_for(DropReason::ReplyHeader));
        // A complete datagram, but an incomplete message.
        let mut short = DhcpFrame::ack();
        short.fixed.truncate(239);
        (short.options, short.tail) = (vec![], vec![]);
        assert_eq!(judge(&short), drop_for(DropReason::ReplyHeader));
    }

    /// B1: op, hlen, cookie; the other fields are the server's.
    #[test]
    fn b1_fixed_part() {
        let dropped = drop_for(DropReason::ReplyHeader);
        for (at, value) in [(0, 1), (0, 0), (2, 0), (2, 16), (236, 0), (237, 0), (238, 0), (239, 0)] {
            assert_eq!(judge(&DhcpFrame::ack().set(at, &[value])), dropped, "{at}");
        }
        for at in 28..34 {
            let other = DhcpFrame::ack().set(at, &[0x55]);
            assert_eq!(judge(&other), drop_for(DropReason::ReplyHardwareAddress), "{at}");
        }
        for at in [3, 8, 10, 20, 24, 44, 108] {
            assert_eq!(judge(&DhcpFrame::ack().set(at, &[1])), Verdict::Forward, "{at}");
        }
    }

    /// B1: an open transaction of this VM, which the reply closes.
    #[test]
    fn b1_transaction() {
        let dropped = drop_for(DropReason::ReplyTransaction);
        assert_eq!(judge(&DhcpFrame::ack().xid(XID + 1)), dropped);
        assert_eq!(fresh().from_host(&DhcpFrame::ack().frame(), NOW), dropped);
        assert_eq!(fresh().from_host(&DhcpFrame::offer().frame(), NOW), dropped);
        assert_eq!(fresh().from_host(&DhcpFrame::ack().xid(0).frame(), NOW), dropped);
        let mut port = bound();
        assert_eq!(port.from_host(&DhcpFrame::ack().frame(), NOW), dropped);
        assert_eq!(port.from_host(&DhcpFrame::nak().frame(), NOW), dropped);
        assert!(port.lease().is_some());
        // With rapid commit the ACK comes at once (RFC 4039).
        let mut port = fresh();
        assert_eq!(port.from_vm(&DhcpFrame::discover().option(80, &[]).frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_host(&DhcpFrame::ack().frame(), NOW), Verdict::Forward);
        assert!(port.lease().is_some());
        // A message that was dropped opened nothing.
        let mut port = fresh();
        let _ = port.from_vm(&DhcpFrame::request().set(24, &[1]).frame(), NOW);
        assert_eq!(port.from_host(&DhcpFrame::ack().frame(), NOW), dropped);
    }

    /// B1: a DISCOVER requests offers; only with rapid commit does it request a lease too.
    #[test]
    fn b1_discover_is_no_request() {
        let dropped = drop_for(DropReason::ReplyTransaction);
        let mut port = fresh();
        assert_eq!(port.from_vm(&DhcpFrame::discover().frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_host(&DhcpFrame::ack().frame(), NOW), dropped);
        assert_eq!(port.lease(), None);
        assert_eq!(port.from_host(&DhcpFrame::offer().frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_vm(&DhcpFrame::request().frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_host(&DhcpFrame::ack().frame(), NOW), Verdict::Forward);
        // A lease is not lost to a NAK that answers nothing.
        assert_eq!(port.from_vm(&DhcpFrame::discover().frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_host(&DhcpFrame::nak().frame(), NOW), dropped);
        assert!(port.lease().is_some());
    }

    /// B1: sixteen transactions are open at once, in any order; beyond that the oldest is forgotten.
    #[test]
    fn b1_transactions_are_bounded() {
        let mut port = fresh();
        let request = |port: &mut Port, xid: u32, secs: u64| {
            assert_eq!(port.from_vm(&DhcpFrame::request().xid(xid).frame(), at(secs)), Verdict::Forward);
        };
        for n in 0..16 {
            request(&mut port, n, n.into());
        }
        // Used again, it is no longer the oldest.
        request(&mut port, 0, 16);
        request(&mut port, 16, 17);
        let ack = |port: &mut Port, xid| port.from_host(&DhcpFrame::ack().xid(xid).frame(), at(17));
        assert_eq!(ack(&mut port, 1), drop_for(DropReason::ReplyTransaction));
        for xid in [16, 15, 2, 0, 7] {
            assert_eq!(ack(&mut port, xid), Verdict::Forward, "{xid}");
            assert_eq!(ack(&mut port, xid), drop_for(DropReason::ReplyTransaction), "{xid}");
        }
        // Closed ones make room.
        request(&mut port, 100, 18);
        assert_eq!(ack(&mut port, 3), Verdict::Forward);
    }

    /// B1: one of a server's types; other types bind nothing.
    #[test]
    fn b1_types() {
        for kind in 0..=255 {
            let mut port = waiting();
            let frame = DhcpFrame::server(kind).yiaddr(OWN_IP).lease_time(600);
            let expected = match kind {
                2 | 5 | 6 => Verdict::Forward,
                _ => drop_for(DropReason::ReplyType),
            };
            assert_eq!(port.from_host(&frame.frame(), NOW), expected, "{kind}");
            assert_eq!(port.lease().is_some(), kind == 5, "{kind}");
        }
    }

    /// B2: an address of the network that can be a VM's, also in an OFFER.
    #[test]
    fn b2_address() {
        for address in
            ["192.168.64.0", "192.168.64.255", "192.168.64.1", "192.168.65.2", "9.9.9.9", "255.255.255.255"]
        {
            let address: Ipv4Addr = address.parse().unwrap();
            for frame in [DhcpFrame::ack(), DhcpFrame::offer()] {
                let to = if address.is_broadcast() { OWN_IP } else { address };
                let frame = DhcpFrame { to, ..frame.yiaddr(address) };
                let reason =
                    if to == address { DropReason::ReplyAddress } else { DropReason::ReplyDestination };
                assert_eq!(judge(&frame), drop_for(reason), "{address}");
                let frame = DhcpFrame { to: Ipv4Addr::BROADCAST, ..frame };
                assert_eq!(judge(&frame), drop_for(DropReason::ReplyAddress), "{address}");
            }
        }
        let unspecified =
            DhcpFrame { to: Ipv4Addr::BROADCAST, ..DhcpFrame::ack().yiaddr(Ipv4Addr::UNSPECIFIED) };
        assert_eq!(judge(&unspecified), drop_for(DropReason::ReplyAddress));
    }

    /// B2: no special address, even if the network were made of them.
    #[test]
    fn b2_special_addresses() {
        for (subnet, gateway, address) in [
            ("127.0.0.0/7", "126.0.0.1", "127.0.0.2"),
            ("0.0.0.0/7", "1.0.0.1", "0.1.2.3"),
            ("192.0.0.0/2", "192.168.64.1", "224.0.0.5"),
            ("192.0.0.0/2", "192.168.64.1", "240.0.0.5"),
        ] {
            let mut config = config(&[], &[]);
            config.gateway.subnet = subnet.parse().unwrap();
            config.gateway.address = gateway.parse().unwrap();
            let server = config.gateway.address;
            let address: Ipv4Addr = address.parse().unwrap();
            let mut port = Port::new(config).unwrap();
            let _ = port.from_vm(&DhcpFrame::request().without(54).frame(), NOW);
            let ack = DhcpFrame { from: server, to: address, ..DhcpFrame::ack() };
            let ack = ack.yiaddr(address).address_option(54, server);
            assert_eq!(port.from_host(&ack.frame(), NOW), drop_for(DropReason::ReplyAddress), "{address}");
            let lease = Lease { address, server, expires: None, resolvers: Resolvers::default() };
            assert_eq!(port.adopt(lease, None, NOW), Err(AdoptError::Address(address)));
        }
    }

    /// B3: an ACK to an INFORM passes, and binds nothing; one that gives an address does not pass.
    #[test]
    fn b3_ack_to_inform() {
        let mut port = bound();
        let lease = port.lease();
        let inform = |port: &mut Port| {
            assert_eq!(port.from_vm(&DhcpFrame::inform().xid(9).frame(), NOW), Verdict::Forward);
        };
        let ack = DhcpFrame::server(5).xid(9).option(6, &[9, 9, 9, 9]);
        let no_time = |frame: &DhcpFrame, port: &mut Port| port.from_host(&frame.frame(), NOW);
        inform(&mut port);
        for frame in [DhcpFrame::nak().xid(9), DhcpFrame::offer().xid(9)] {
            assert_eq!(no_time(&frame, &mut port), drop_for(DropReason::ReplyTransaction));
        }
        let elsewhere = DhcpFrame { to: OTHER_IP, ..ack.clone() };
        assert_eq!(no_time(&elsewhere, &mut port), drop_for(DropReason::ReplyDestination));
        assert_eq!(no_time(&ack, &mut port), Verdict::Forward);
        assert_eq!(no_time(&ack, &mut port), drop_for(DropReason::ReplyTransaction));
        inform(&mut port);
        let broadcast = DhcpFrame { to: Ipv4Addr::BROADCAST, to_mac: MacAddr::BROADCAST, ..ack.clone() };
        assert_eq!(no_time(&broadcast, &mut port), Verdict::Forward);
        // B8: some servers repeat the VM's address and the remaining time of its lease.
        for frame in
            [ack.clone().lease_time(600), ack.clone().yiaddr(OWN_IP).lease_time(9), ack.clone().lease_time(0)]
        {
            inform(&mut port);
            assert_eq!(no_time(&frame, &mut port), Verdict::Forward);
        }
        assert_eq!(port.lease(), lease);
        assert_eq!(port.poll_event(), None);
        // Without a lease it can only be broadcast.
        let mut port = fresh();
        let _ = port.from_vm(&DhcpFrame::client(8).xid(9).frame(), NOW);
        assert_eq!(no_time(&ack, &mut port), drop_for(DropReason::ReplyDestination));
        assert_eq!(
            no_time(&broadcast.clone().lease_time(9), &mut port),
            drop_for(DropReason::ReplyLeaseTime)
        );
        assert_eq!(no_time(&broadcast, &mut port), Verdict::Forward);
        assert_eq!(port.lease(), None);
    }

    /// B7: the lease ends no later than the server's, however late the answer comes: it counts from the
    /// request.
    #[test]
    fn b7_a_lease_counts_from_the_request() {
        let mut port = bound();
        assert_eq!(port.from_vm(&DhcpFrame::renewal().frame(), at(100)), Verdict::Forward);
        assert_eq!(port.from_vm(&DhcpFrame::renewal().frame(), at(104)), Verdict::Forward, "the same again");
        assert_eq!(port.from_host(&DhcpFrame::ack().frame(), at(110)), Verdict::Forward);
        assert_eq!(port.next_deadline(), Some(at(700)));
        // So late that the lease has already ended.
        let _ = port.from_vm(&DhcpFrame::renewal().xid(8).frame(), at(110));
        let late = DhcpFrame::ack().xid(8).lease_time(5);
        assert_eq!(port.from_host(&late.frame(), at(116)), Verdict::Forward);
        assert_eq!(port.lease(), None);
    }

    /// B7: a request for another address ends the lease at once, whether or not an answer comes.
    #[test]
    fn b7_a_request_for_another_address_ends_the_lease() {
        let rapid = DhcpFrame::discover().option(80, &[]);
        for request in [
            DhcpFrame::request().address_option(50, OTHER_IP),
            DhcpFrame::client(3).address_option(50, OTHER_IP),
            DhcpFrame::renewal().address_option(50, OTHER_IP),
            DhcpFrame::client(3),
            rapid.clone(),
            rapid.address_option(50, OWN_IP),
        ] {
            let mut port = bound();
            let lease = port.lease().unwrap();
            assert_eq!(port.from_vm(&request.xid(7).frame(), NOW), Verdict::Forward);
            assert_eq!(port.lease(), None);
            let event = PortEvent::Unbound { lease, cause: UnboundCause::Superseded };
            assert_eq!(port.poll_event(), Some(event));
            assert_eq!(port.from_vm(&IpFrame::udp(WORLD_IP, 80).frame(), NOW), drop_for(DropReason::NoLease));
            let arp = ArpFrame::request(GATEWAY_IP);
            assert_eq!(port.from_vm(&arp.frame(), NOW), drop_for(DropReason::ArpNoLease));
            // Only an answer to a new request restores it.
            assert_eq!(
                port.from_vm(&DhcpFrame::renewal().frame(), NOW),
                drop_for(DropReason::DhcpDestination)
            );
        }
        // One that the filter drops never reaches the server.
        let mut port = bound();
        let foreign = DhcpFrame::request().address_option(50, OTHER_IP).address_option(54, NEIGHBOUR_IP);
        assert!(!port.from_vm(&foreign.frame(), NOW).is_forward());
        let offer = DhcpFrame::discover().address_option(50, OTHER_IP).xid(8);
        assert_eq!(port.from_vm(&offer.frame(), NOW), Verdict::Forward);
        assert!(port.lease().is_some());
    }

    /// B7: two requests under one number, of which the first is answered: the second must not reach the server.
    #[test]
    fn b7_one_number_asks_for_one_thing() {
        let dropped = drop_for(DropReason::DhcpTransaction);
        let renewal = DhcpFrame::renewal();
        for other in [
            DhcpFrame::request().address_option(50, OTHER_IP),
            DhcpFrame::request(),
            renewal.clone().lease_time(120),
            renewal.clone().option(61, b"\0other"),
            DhcpFrame::inform(),
            DhcpFrame::discover(),
            DhcpFrame::discover().option(80, &[]),
        ] {
            let mut port = bound();
            let lease = port.lease();
            assert_eq!(port.from_vm(&renewal.frame(), NOW), Verdict::Forward);
            assert_eq!(port.from_vm(&other.frame(), NOW), dropped);
            assert_eq!(port.lease(), lease);
            // It passes under another number, and once this one is answered or old.
            assert_eq!(port.from_vm(&other.clone().xid(7).frame(), NOW), Verdict::Forward);
            let mut port = bound();
            let _ = port.from_vm(&renewal.frame(), NOW);
            assert_eq!(port.from_host(&DhcpFrame::ack().frame(), NOW), Verdict::Forward);
            assert_eq!(port.from_vm(&other.frame(), NOW), Verdict::Forward);
            let mut port = bound();
            let _ = port.from_vm(&renewal.frame(), NOW);
            assert_eq!(port.from_vm(&other.frame(), at(59)), dropped);
            assert_eq!(port.from_vm(&other.frame(), at(60)), Verdict::Forward);
        }
        // A DISCOVER changes nothing, and its REQUEST has the same number.
        let mut port = fresh();
        let discover = DhcpFrame::discover().address_option(50, OTHER_IP).lease_time(9);
        for frame in [&discover, &DhcpFrame::request(), &DhcpFrame::request()] {
            assert_eq!(port.from_vm(&frame.frame(), NOW), Verdict::Forward);
        }
        assert_eq!(port.from_vm(&discover.frame(), NOW), dropped);
        let mut port = fresh();
        assert_eq!(port.from_vm(&discover.clone().option(61, b"\0a").frame(), NOW), Verdict::Forward);
        for other in [
            discover.clone(),
            DhcpFrame::request(),
            DhcpFrame::request().option(61, b"\0b"),
            discover.option(61, b"\0a").lease_time(8),
        ] {
            assert_eq!(port.from_vm(&other.frame(), NOW), dropped);
        }
        let request = DhcpFrame::request().option(61, b"\0a");
        assert_eq!(port.from_vm(&request.frame(), NOW), Verdict::Forward);
    }

    /// B7: an ACK that gives another address than the lease revokes it, whatever the VM requested under its number.
    #[test]
    fn b7_an_ack_to_no_request_revokes() {
        for asked in [DhcpFrame::inform(), DhcpFrame::discover()] {
            let mut port = bound();
            assert_eq!(port.from_vm(&asked.xid(9).frame(), NOW), Verdict::Forward);
            let same = DhcpFrame::ack().xid(9).frame();
            let _ = port.from_host(&same, NOW);
            assert!(port.lease().is_some());
            let _ = port.from_vm(&DhcpFrame::inform().xid(9).frame(), NOW);
            let other = DhcpFrame { to: OTHER_IP, ..DhcpFrame::ack().xid(9).yiaddr(OTHER_IP) };
            assert_eq!(port.from_host(&other.frame(), NOW), drop_for(DropReason::ReplyTransaction));
            assert_eq!(port.lease(), None);
        }
    }

    /// B7: a request that was sent twice is answered twice. The second answer is not one to what the VM requests next
    /// under the same number.
    #[test]
    fn b7_a_second_answer_binds_nothing() {
        let ack = DhcpFrame { to: OTHER_IP, ..DhcpFrame::ack().yiaddr(OTHER_IP) };
        let request = DhcpFrame::request().address_option(50, OTHER_IP);
        let mut port = fresh();
        for _ in 0..2 {
            assert_eq!(port.from_vm(&request.frame(), NOW), Verdict::Forward);
        }
        assert_eq!(port.from_host(&ack.frame(), NOW), Verdict::Forward);
        // The server moves the VM, and gives the other address to the next one.
        assert_eq!(port.from_vm(&DhcpFrame::request().xid(7).frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_vm(&request.frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_host(&ack.frame(), NOW), drop_for(DropReason::ReplyTransaction));
        assert_eq!(port.lease(), None);
        // A minute after the last message the number counts as new.
        assert_eq!(port.from_vm(&request.frame(), at(60)), Verdict::Forward);
        assert_eq!(port.from_host(&ack.frame(), at(60)), Verdict::Forward);
        assert!(port.lease().is_some());
    }

    /// B7: an ACK may answer a DISCOVER with rapid commit, so that no REQUEST under its number passes before an offer.
    #[test]
    fn b7_a_rapid_discover_is_no_request() {
        let discover = DhcpFrame::discover().option(80, &[]).lease_time(7200).frame();
        let mut port = fresh();
        assert_eq!(port.from_vm(&discover, NOW), Verdict::Forward);
        assert_eq!(port.from_vm(&DhcpFrame::request().frame(), NOW), drop_for(DropReason::DhcpTransaction));
        assert_eq!(port.from_vm(&discover, NOW), Verdict::Forward);
        // Two are on their way, and one of them may still be an ACK.
        assert_eq!(port.from_host(&DhcpFrame::offer().frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_vm(&DhcpFrame::request().frame(), NOW), drop_for(DropReason::DhcpTransaction));
        assert_eq!(port.from_host(&DhcpFrame::offer().frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_vm(&DhcpFrame::request().frame(), NOW), Verdict::Forward);
    }

    /// B7: of two answers to one DISCOVER with rapid commit, the first may give an address that the server has
    /// withdrawn since.
    #[test]
    fn b7_a_repeated_rapid_discover_binds_what_it_asks_for() {
        let discover = DhcpFrame::discover().option(80, &[]).address_option(50, OWN_IP);
        let other = DhcpFrame { to: OTHER_IP, ..DhcpFrame::ack().yiaddr(OTHER_IP) };
        for second in [XID, 7] {
            let mut port = fresh();
            for xid in [XID, second] {
                assert_eq!(port.from_vm(&discover.clone().xid(xid).frame(), NOW), Verdict::Forward);
            }
            assert_eq!(port.from_host(&other.frame(), NOW), drop_for(DropReason::ReplyTransaction));
            assert_eq!(port.lease(), None);
            assert_eq!(port.from_host(&DhcpFrame::ack().xid(second).frame(), NOW), Verdict::Forward);
            assert_eq!(port.lease().map(|lease| lease.address), Some(OWN_IP));
        }
    }

    /// B1: a client that requests rapid commit from a server that makes offers continues under the same number.
    #[test]
    fn b1_an_offer_to_a_rapid_discover_is_taken() {
        let mut port = fresh();
        for _ in 0..2 {
            let discover = DhcpFrame::discover().option(80, &[]);
            for (frame, is_of_vm) in [
                (discover, true),
                (DhcpFrame::offer(), false),
                (DhcpFrame::request(), true),
                (DhcpFrame::ack(), false),
            ] {
                let frame = frame.frame();
                let verdict = if is_of_vm { port.from_vm(&frame, NOW) } else { port.from_host(&frame, NOW) };
                assert_eq!(verdict, Verdict::Forward);
            }
            assert!(port.lease().is_some());
        }
    }

    /// B7: an offer that comes late answers no REQUEST, so the second answer to one is still awaited.
    #[test]
    fn b7_a_late_offer_answers_no_request() {
        let mut port = fresh();
        let (discover, request) = (DhcpFrame::discover(), DhcpFrame::request());
        for frame in [&discover, &discover] {
            assert_eq!(port.from_vm(&frame.frame(), NOW), Verdict::Forward);
        }
        assert_eq!(port.from_host(&DhcpFrame::offer().frame(), NOW), Verdict::Forward);
        for frame in [&request, &request] {
            assert_eq!(port.from_vm(&frame.frame(), NOW), Verdict::Forward);
        }
        assert_eq!(port.from_host(&DhcpFrame::offer().frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_host(&DhcpFrame::ack().frame(), NOW), Verdict::Forward);
        let capped = request.clone().lease_time(120);
        assert_eq!(port.from_vm(&capped.frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_host(&DhcpFrame::ack().frame(), NOW), drop_for(DropReason::ReplyTransaction));
        assert_eq!(port.next_deadline(), Some(at(120)));
        let other = request.address_option(50, OTHER_IP);
        assert_eq!(port.from_vm(&other.frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_host(&DhcpFrame::ack().frame(), NOW), drop_for(DropReason::ReplyTransaction));
        assert_eq!(port.lease(), None);
    }

    /// B7: an ACK to a rapid DISCOVER can look like one to the REQUEST behind it, so that must request the same
    /// time, and the lease counts from the DISCOVER; unless every DISCOVER was answered by an offer.
    #[test]
    fn b7_a_rapid_discover_and_its_request_ask_for_one_thing() {
        let rapid = DhcpFrame::discover().option(80, &[]);
        let short = DhcpFrame::request().lease_time(120);
        let mut port = fresh();
        assert_eq!(port.from_vm(&rapid.frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_vm(&short.frame(), NOW), drop_for(DropReason::DhcpTransaction));
        assert_eq!(port.from_vm(&DhcpFrame::request().frame(), at(5)), Verdict::Forward);
        assert_eq!(port.from_host(&DhcpFrame::ack().frame(), at(5)), Verdict::Forward);
        assert_eq!(port.next_deadline(), Some(at(600)));
        let mut port = fresh();
        assert_eq!(port.from_vm(&rapid.frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_host(&DhcpFrame::offer().frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_vm(&short.frame(), at(5)), Verdict::Forward);
        assert_eq!(port.from_host(&DhcpFrame::ack().lease_time(120).frame(), at(5)), Verdict::Forward);
        assert_eq!(port.next_deadline(), Some(at(125)));
    }

    /// C5: an earlier lease that the VM declines when it is offered again is not released as well.
    #[test]
    fn c5_what_is_declined_is_not_given_back() {
        let mut port = bound();
        let other = DhcpFrame::request().address_option(50, OTHER_IP);
        assert_eq!(port.from_vm(&other.xid(7).frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_vm(&DhcpFrame::discover().xid(8).frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_host(&DhcpFrame::offer().xid(8).frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_vm(&DhcpFrame::decline(OWN_IP).frame(), NOW), Verdict::Forward);
        let other = DhcpFrame::request().address_option(50, OTHER_IP).xid(9);
        assert_eq!(port.from_vm(&other.frame(), NOW), Verdict::Forward);
        let ack = DhcpFrame { to: OTHER_IP, ..DhcpFrame::ack().xid(9).yiaddr(OTHER_IP) };
        assert_eq!(port.from_host(&ack.frame(), NOW), Verdict::Forward);
        assert_eq!(port.poll_transmit(), None);
    }

    /// B7: what a request ended or capped stays so, even if answers to earlier ones still come.
    #[test]
    fn b7_late_answers_bring_nothing_back() {
        let late = drop_for(DropReason::ReplyTransaction);
        let mut port = bound();
        let _ = port.from_vm(&DhcpFrame::renewal().xid(1).frame(), NOW);
        let other = DhcpFrame::request().address_option(50, OTHER_IP);
        let _ = port.from_vm(&other.xid(2).frame(), NOW);
        assert_eq!(port.from_host(&DhcpFrame::ack().xid(1).frame(), NOW), late);
        assert_eq!(port.lease(), None);
        let ack = DhcpFrame { to: OTHER_IP, ..DhcpFrame::ack().xid(2).yiaddr(OTHER_IP) };
        assert_eq!(port.from_host(&ack.frame(), NOW), Verdict::Forward);
        assert_eq!(port.lease().map(|lease| lease.address), Some(OTHER_IP));

        // A requested time caps the lease, and an answer to an earlier request does not lengthen it.
        let mut port = bound();
        let _ = port.from_vm(&DhcpFrame::renewal().xid(1).frame(), at(1));
        let _ = port.from_vm(&DhcpFrame::renewal().xid(2).lease_time(120).frame(), at(2));
        assert_eq!(port.next_deadline(), Some(at(122)));
        assert_eq!(port.from_host(&DhcpFrame::ack().xid(1).frame(), at(3)), late);
        assert_eq!(port.next_deadline(), Some(at(122)));
        assert_eq!(port.from_host(&DhcpFrame::ack().xid(2).lease_time(300).frame(), at(3)), Verdict::Forward);
        assert_eq!(port.next_deadline(), Some(at(302)), "the server's answer to this request");
        // The default, which only the first ACK has shown so far.
        let _ = port.from_vm(&DhcpFrame::renewal().xid(3).frame(), at(4));
        assert_eq!(port.next_deadline(), Some(at(302)));
        let _ = port.from_vm(&DhcpFrame::renewal().xid(4).lease_time(0xffff_ffff).frame(), at(5));
        assert_eq!(
            port.from_host(&DhcpFrame::ack().xid(4).lease_time(0xffff_ffff).frame(), at(5)),
            Verdict::Forward
        );
        assert_eq!(port.next_deadline(), None);
        let _ = port.from_vm(&DhcpFrame::renewal().xid(5).frame(), at(6));
        assert_eq!(port.next_deadline(), Some(at(606)));

        // No default is known if every request had a time.
        let mut port = fresh();
        let _ = port.from_vm(&DhcpFrame::request().lease_time(7200).frame(), NOW);
        assert_eq!(port.from_host(&DhcpFrame::ack().lease_time(7200).frame(), NOW), Verdict::Forward);
        let _ = port.from_vm(&DhcpFrame::renewal().xid(2).frame(), at(1));
        assert_eq!(port.next_deadline(), Some(at(61)));

        // The same again under another number is treated like the first.
        let mut port = bound();
        let _ = port.from_vm(&DhcpFrame::renewal().xid(1).frame(), at(1));
        let _ = port.from_vm(&DhcpFrame::renewal().xid(2).frame(), at(2));
        assert_eq!(port.from_host(&DhcpFrame::ack().xid(1).frame(), at(3)), Verdict::Forward);
        assert_eq!(port.next_deadline(), Some(at(601)));
    }

    /// B7: an ACK that answers no open request still limits the lease.
    #[test]
    fn b7_an_ack_out_of_the_blue_revokes() {
        let dropped = drop_for(DropReason::ReplyTransaction);
        let other = DhcpFrame { to: OTHER_IP, ..DhcpFrame::ack().xid(99).yiaddr(OTHER_IP) };
        let mut port = bound();
        let lease = port.lease().unwrap();
        // Not if another condition of B1 fails.
        for forged in [
            DhcpFrame { from_mac: STRANGER, ..other.clone() },
            DhcpFrame { from: NEIGHBOUR_IP, ..other.clone() },
            other.clone().address_option(54, NEIGHBOUR_IP),
            other.clone().set(30, &[9]),
            DhcpFrame { to: NEIGHBOUR_IP, ..other.clone() },
            DhcpFrame::nak().xid(99),
            DhcpFrame { options: DhcpFrame::offer().options, ..other.clone() },
            DhcpFrame::ack().xid(99),
            DhcpFrame::ack().xid(99).lease_time(0),
            DhcpFrame { to: Ipv4Addr::BROADCAST, ..DhcpFrame::ack().xid(99).yiaddr(Ipv4Addr::UNSPECIFIED) },
        ] {
            assert!(!port.from_host(&forged.frame(), NOW).is_forward());
            assert_eq!(port.lease(), Some(lease));
        }
        assert_eq!(port.from_host(&DhcpFrame::ack().xid(99).lease_time(30).frame(), NOW), dropped);
        assert_eq!(port.next_deadline(), Some(at(30)), "nor does it last longer than the server's");
        assert_eq!(port.from_host(&other.frame(), NOW), dropped);
        assert_eq!(port.lease(), None);
        assert!(matches!(
            port.poll_event(),
            Some(PortEvent::Unbound { cause: UnboundCause::Superseded, .. })
        ));
        // A number that stood for another request before: this answers that one.
        let mut port = bound();
        let _ = port.from_vm(&DhcpFrame::renewal().frame(), NOW);
        let _ = port.from_vm(&DhcpFrame::request().address_option(50, OTHER_IP).frame(), at(60));
        assert_eq!(port.from_host(&DhcpFrame::ack().frame(), at(60)), dropped);
        assert_eq!(port.lease(), None);
    }

    /// C10: what a VM may do to renew a lease which has merely expired.
    #[test]
    fn c10_the_last_lease_is_renewed_after_its_end() {
        let rebinding = DhcpFrame::client(3).ciaddr(OWN_IP);
        let from_own = DhcpFrame { from: OWN_IP, ..rebinding.clone() };
        let asks = ArpFrame::request(GATEWAY_IP);
        let answers = ArpFrame { operation: 2, to_mac: GATEWAY, ..asks };
        for request in [DhcpFrame::renewal(), rebinding.clone(), from_own.clone()] {
            let mut port = bound();
            for arp in [asks, answers] {
                assert_eq!(port.from_vm(&arp.frame(), at(700)), Verdict::Forward);
            }
            assert_eq!(port.lease(), None);
            assert_eq!(port.from_vm(&request.xid(7).frame(), at(700)), Verdict::Forward);
            assert_eq!(
                port.from_vm(&IpFrame::udp(WORLD_IP, 80).frame(), at(700)),
                drop_for(DropReason::NoLease)
            );
            assert_eq!(port.from_host(&DhcpFrame::ack().xid(7).frame(), at(700)), Verdict::Forward);
            assert_eq!(port.from_vm(&IpFrame::udp(WORLD_IP, 80).frame(), at(700)), Verdict::Forward);
        }
        // Nothing else from that address, and nothing from another.
        let mut port = bound();
        let no_lease = drop_for(DropReason::ArpNoLease);
        for arp in [
            ArpFrame { target: OTHER_IP, ..asks },
            ArpFrame { target: OWN_IP, ..asks },
            ArpFrame { sender: OTHER_IP, ..asks },
            ArpFrame { to_mac: MacAddr::BROADCAST, ..answers },
        ] {
            assert_eq!(port.from_vm(&arp.frame(), at(700)), no_lease, "{}", arp.target);
        }
        for (frame, reason) in [
            (rebinding.clone().ciaddr(OTHER_IP), DropReason::DhcpClientAddress),
            (DhcpFrame { from: OTHER_IP, ..rebinding.clone() }, DropReason::DhcpSource),
            (from_own.clone().ciaddr(Ipv4Addr::UNSPECIFIED), DropReason::DhcpSource),
            (DhcpFrame::renewal().ciaddr(OTHER_IP), DropReason::DhcpSource),
            (DhcpFrame::release(), DropReason::DhcpSource),
            (DhcpFrame::inform(), DropReason::DhcpSource),
            (DhcpFrame { from: Ipv4Addr::UNSPECIFIED, ..DhcpFrame::renewal() }, DropReason::DhcpDestination),
        ] {
            assert_eq!(port.from_vm(&frame.frame(), at(700)), drop_for(reason));
        }
        // Not after the VM gave it up or requested another, or the server refused.
        let nak = |port: &mut Port| {
            let _ = port.from_vm(&DhcpFrame::renewal().frame(), at(700));
            assert_eq!(port.from_host(&DhcpFrame::nak().frame(), at(700)), Verdict::Forward);
        };
        let sends = |frame: DhcpFrame| {
            move |port: &mut Port| assert!(port.from_vm(&frame.frame(), at(1)).is_forward())
        };
        type End = Box<dyn Fn(&mut Port)>;
        let late = |port: &mut Port| {
            let request = DhcpFrame::request().address_option(50, OTHER_IP);
            assert!(port.from_vm(&request.frame(), at(700)).is_forward());
        };
        let ends: [End; 5] = [
            Box::new(nak),
            Box::new(late),
            Box::new(sends(DhcpFrame::release())),
            Box::new(sends(DhcpFrame::decline(OWN_IP))),
            Box::new(sends(DhcpFrame::request().address_option(50, OTHER_IP))),
        ];
        for end in ends {
            let mut port = bound();
            end(&mut port);
            let verdict = port.from_vm(&rebinding.clone().xid(7).frame(), at(701));
            assert_eq!(verdict, drop_for(DropReason::DhcpClientAddress));
            assert_eq!(port.from_vm(&asks.frame(), at(701)), no_lease);
        }
        // To look for another server is not yet to want another address.
        let mut port = bound();
        for request in [DhcpFrame::discover(), DhcpFrame::request().address_option(50, OWN_IP).xid(8)] {
            assert_eq!(port.from_vm(&request.frame(), at(700)), Verdict::Forward);
            assert_eq!(port.from_vm(&asks.frame(), at(701)), Verdict::Forward);
        }
    }

    /// C10: a port that never knew a lease may have started after the VM got one.
    #[test]
    fn c10_a_new_port_lets_a_vm_renew_what_it_has() {
        let rebinding = DhcpFrame::client(3).ciaddr(OTHER_IP);
        let renewal = DhcpFrame { from: OTHER_IP, ..DhcpFrame::renewal().ciaddr(OTHER_IP) };
        let from_own = DhcpFrame { from: OTHER_IP, ..DhcpFrame::client(3).address_option(50, OTHER_IP) };
        for request in [rebinding.clone(), renewal.clone(), from_own] {
            let mut port = fresh();
            assert_eq!(port.from_vm(&request.frame(), NOW), Verdict::Forward);
            assert_eq!(port.lease(), None);
            let arp = ArpFrame { sender: OTHER_IP, ..ArpFrame::request(GATEWAY_IP) };
            assert_eq!(port.from_vm(&arp.frame(), NOW), drop_for(DropReason::ArpNoLease));
            let ack = DhcpFrame { to: OTHER_IP, ..DhcpFrame::ack().yiaddr(OTHER_IP) };
            assert_eq!(port.from_host(&ack.frame(), NOW), Verdict::Forward);
            assert_eq!(port.lease().map(|lease| lease.address), Some(OTHER_IP));
        }
        let mut port = fresh();
        for (frame, reason) in [
            (rebinding.clone().ciaddr(WORLD_IP), DropReason::DhcpClientAddress),
            (rebinding.clone().ciaddr(GATEWAY_IP), DropReason::DhcpClientAddress),
            (DhcpFrame { from: OWN_IP, ..rebinding.clone() }, DropReason::DhcpSource),
            (DhcpFrame { from: WORLD_IP, ..renewal.clone() }, DropReason::DhcpDestination),
            (DhcpFrame { from: OTHER_IP, ..DhcpFrame::discover() }, DropReason::DhcpSource),
            (DhcpFrame::inform(), DropReason::DhcpSource),
        ] {
            assert_eq!(port.from_vm(&frame.frame(), NOW), drop_for(reason));
        }
        // A server's refusal ends it.
        let _ = port.from_vm(&rebinding.frame(), NOW);
        assert_eq!(port.from_host(&DhcpFrame::nak().frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_vm(&renewal.frame(), NOW), drop_for(DropReason::DhcpDestination));
    }

    /// C10: where the server's records show the last lease, the VM renews that one and no other.
    #[test]
    fn c10_a_recorded_lease_is_the_only_one_to_renew() {
        let renewal = |address| DhcpFrame { from: address, ..DhcpFrame::renewal().ciaddr(address) }.frame();
        let asks = ArpFrame::request(GATEWAY_IP);
        let mut port = fresh();
        port.set_last_lease(Some(OWN_IP));
        assert_eq!(port.from_vm(&renewal(OTHER_IP), NOW), drop_for(DropReason::DhcpDestination));
        let rebinding = DhcpFrame::client(3).ciaddr(OTHER_IP).frame();
        assert_eq!(port.from_vm(&rebinding, NOW), drop_for(DropReason::DhcpClientAddress));
        assert_eq!(port.from_vm(&asks.frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_vm(&renewal(OWN_IP), NOW), Verdict::Forward);
        assert_eq!(port.lease(), None);
        assert_eq!(port.from_host(&DhcpFrame::ack().frame(), NOW), Verdict::Forward);
        assert_eq!(port.lease().map(|lease| lease.address), Some(OWN_IP));
        // A lease that the VM has is no last one.
        port.set_last_lease(Some(OTHER_IP));
        assert_eq!(port.from_vm(&renewal(OWN_IP), NOW), Verdict::Forward);
        assert_eq!(port.from_vm(&renewal(OTHER_IP), at(700)), drop_for(DropReason::DhcpDestination));
        // No record, or one that no VM can have.
        for last in [None, Some(GATEWAY_IP), Some(WORLD_IP)] {
            let mut port = fresh();
            port.set_last_lease(last);
            for address in [OWN_IP, OTHER_IP, GATEWAY_IP] {
                let verdict = port.from_vm(&renewal(address), NOW);
                assert_eq!(verdict, drop_for(DropReason::DhcpDestination), "{last:?}");
            }
            assert_eq!(port.from_vm(&asks.frame(), NOW), drop_for(DropReason::ArpNoLease));
        }
    }

    /// B3: no lease time, one of 0, one of another length: no lease.
    #[test]
    fn b3_lease_time() {
        assert_eq!(judge(&DhcpFrame::ack().lease_time(0)), drop_for(DropReason::ReplyLeaseTime));
        assert_eq!(judge(&DhcpFrame::ack().without(51)), drop_for(DropReason::ReplyLeaseTime));
        for value in [&[][..], &[0, 0, 1], &[0, 0, 0, 2, 88]] {
            let frame = DhcpFrame::ack().without(51).option(51, value);
            assert_eq!(judge(&frame), drop_for(DropReason::ReplyOptions), "{value:?}");
        }
    }

    /// B3: malformed options, or one that occurs twice.
    #[test]
    fn b3_malformed_ack() {
        let dropped = drop_for(DropReason::ReplyOptions);
        for frame in [
            DhcpFrame::ack().option(53, &[5]),
            DhcpFrame::ack().option(53, &[6]),
            DhcpFrame::ack().without(53),
            DhcpFrame::ack().option(51, &[0, 0, 2, 88]),
            DhcpFrame::ack().option(54, &GATEWAY_IP.octets()),
            DhcpFrame::ack().without(54).option(54, &[192, 168, 64]),
            DhcpFrame::ack().option(6, &[9, 9, 9, 9]),
            DhcpFrame::ack().without(6).option(6, &[]),
            DhcpFrame::ack().without(6).option(6, &[9, 9, 9, 9, 9]),
            DhcpFrame { tail: vec![], ..DhcpFrame::ack() },
            DhcpFrame { tail: vec![12], ..DhcpFrame::ack() },
            DhcpFrame { tail: vec![12, 9, 255], ..DhcpFrame::ack() },
        ] {
            assert_eq!(judge(&frame), dropped);
        }
        let padded = DhcpFrame { tail: vec![0, 0, 255, 0, 0], ..DhcpFrame::ack() };
        assert_eq!(judge(&padded), Verdict::Forward);
        // A server may overload `sname` and `file`; the filter reads nothing there.
        assert_eq!(judge(&DhcpFrame::ack().option(52, &[3])), Verdict::Forward);
    }

    /// B4: an infinite lease has no end, the longest finite lease does not overflow, and a lease ends when it ends.
    #[test]
    fn b4_lease_times() {
        let bind = |seconds, now| {
            let mut port = fresh();
            let _ = port.from_vm(&DhcpFrame::request().frame(), now);
            assert_eq!(port.from_host(&DhcpFrame::ack().lease_time(seconds).frame(), now), Verdict::Forward);
            port
        };
        let data = IpFrame::udp(WORLD_IP, 80).frame();
        let mut port = bind(0xffff_ffff, NOW);
        assert_eq!(port.next_deadline(), None);
        assert_eq!(port.from_vm(&data, Timestamp::MAX), Verdict::Forward);

        let mut port = bind(0xffff_fffe, NOW);
        assert_eq!(port.next_deadline(), Some(at(0xffff_fffe)));
        assert_eq!(port.from_vm(&data, at(0xffff_fffd)), Verdict::Forward);
        assert_eq!(port.from_vm(&data, at(0xffff_fffe)), drop_for(DropReason::NoLease));

        let mut port = bind(600, Timestamp::from_nanos(u64::MAX - 5));
        assert_eq!(port.next_deadline(), Some(Timestamp::MAX));
        assert_eq!(port.from_vm(&data, Timestamp::from_nanos(u64::MAX - 1)), Verdict::Forward);
        assert_eq!(port.from_vm(&data, Timestamp::MAX), drop_for(DropReason::NoLease));

        let mut port = bind(1, NOW);
        let lease = port.lease().unwrap();
        assert_eq!(port.from_vm(&data, Timestamp::from_nanos(at(1).as_nanos() - 1)), Verdict::Forward);
        assert_eq!(port.lease(), Some(lease));
        assert_eq!(port.from_vm(&data, at(1)), drop_for(DropReason::NoLease));
        assert_eq!(port.lease(), None);
        let _ = port.poll_event();
        assert_eq!(port.poll_event(), Some(PortEvent::Unbound { lease, cause: UnboundCause::Expired }));
        assert_eq!(port.poll_event(), None);
    }

    /// B4: a frame of the other direction, or the timer, ends the lease just as well.
    #[test]
    fn b4_expiry_is_noticed_anywhere() {
        let mut port = bound();
        let _ = port.from_host(&[], at(600));
        assert_eq!(port.lease(), None);
        let mut port = bound();
        port.advance(Timestamp::from_nanos(at(600).as_nanos() - 1));
        assert!(port.lease().is_some());
        port.advance(at(600));
        assert_eq!((port.lease(), port.next_deadline()), (None, None));
        assert!(matches!(port.poll_event(), Some(PortEvent::Unbound { cause: UnboundCause::Expired, .. })));
    }

    /// B5: a new ACK replaces the binding: the same address for longer, or another one.
    #[test]
    fn b5_ack_replaces() {
        let mut port = bound();
        let first = port.lease().unwrap();
        let _ = port.from_vm(&DhcpFrame::renewal().frame(), at(300));
        let ack = DhcpFrame::ack().address_option(6, WORLD_IP);
        assert_eq!(port.from_host(&ack.frame(), at(300)), Verdict::Forward);
        let second = port.lease().unwrap();
        let resolvers = [WORLD_IP].into_iter().collect();
        assert_eq!(second, Lease { expires: Some(at(900)), resolvers, ..first });
        assert_eq!(port.poll_event(), Some(PortEvent::Renewed(second)));
        assert_eq!(port.poll_event(), None);

        let _ = port.from_vm(&DhcpFrame::request().address_option(50, OTHER_IP).frame(), at(300));
        let ack = DhcpFrame { to: OTHER_IP, ..DhcpFrame::ack().yiaddr(OTHER_IP) };
        assert_eq!(port.from_host(&ack.frame(), at(300)), Verdict::Forward);
        let third = port.lease().unwrap();
        assert_eq!(third.address, OTHER_IP);
        assert_eq!(
            port.poll_event(),
            Some(PortEvent::Unbound { lease: second, cause: UnboundCause::Superseded })
        );
        assert_eq!(port.poll_event(), Some(PortEvent::Bound(third)));
        let data = IpFrame::udp(WORLD_IP, 80);
        assert_eq!(port.from_vm(&data.frame(), at(300)), drop_for(DropReason::SourceAddress));
        assert_eq!(port.from_vm(&IpFrame { from: OTHER_IP, ..data }.frame(), at(300)), Verdict::Forward);
    }

    /// B5: a NAK ends the binding, if it fulfils every condition of an ACK.
    #[test]
    fn b5_nak_revokes() {
        let mut port = bound();
        let lease = port.lease().unwrap();
        let _ = port.from_vm(&DhcpFrame::renewal().frame(), NOW);
        for frame in [
            DhcpFrame { from_mac: STRANGER, ..DhcpFrame::nak() },
            DhcpFrame { from: NEIGHBOUR_IP, ..DhcpFrame::nak() },
            DhcpFrame { ports: (53, 68), ..DhcpFrame::nak() },
            DhcpFrame { to: OWN_IP, ..DhcpFrame::nak() },
            DhcpFrame::nak().xid(XID + 1),
            DhcpFrame::nak().set(30, &[9]),
            DhcpFrame::nak().without(54),
            DhcpFrame::nak().option(53, &[6]),
        ] {
            assert!(!port.from_host(&frame.frame(), NOW).is_forward());
            assert_eq!(port.lease(), Some(lease));
        }
        assert_eq!(port.from_host(&DhcpFrame::nak().frame(), NOW), Verdict::Forward);
        assert_eq!(port.lease(), None);
        assert_eq!(port.poll_event(), Some(PortEvent::Unbound { lease, cause: UnboundCause::Refused }));
        assert_eq!(port.from_vm(&IpFrame::udp(WORLD_IP, 80).frame(), NOW), drop_for(DropReason::NoLease));
        assert_eq!(port.from_host(&DhcpFrame::ack().frame(), NOW), drop_for(DropReason::ReplyTransaction));
    }

    /// B5: a NAK ends an offer too.
    #[test]
    fn b5_nak_ends_the_offer() {
        let mut port = waiting();
        assert_eq!(port.from_host(&DhcpFrame::offer().frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_vm(&ArpFrame::probe(OWN_IP).frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_host(&DhcpFrame::nak().frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_vm(&ArpFrame::probe(OWN_IP).frame(), NOW), drop_for(DropReason::ArpNoLease));
    }

    /// A VM with a lease that waits for the boot server's answer to [`XID`].
    fn booting() -> Port {
        let mut port = bound();
        let request = DhcpFrame { ports: (68, 4011), ..DhcpFrame::renewal() };
        assert_eq!(port.from_vm(&request.frame(), NOW), Verdict::Forward);
        port
    }

    /// As dnsmasq answers at its boot server's port.
    fn boot_reply() -> DhcpFrame {
        DhcpFrame { ports: (4011, 68), ..DhcpFrame::ack() }.without(51).without(6)
    }

    /// B6: the boot server's answer passes to who asked, fulfils B1, and binds and ends nothing.
    #[test]
    fn b6_the_boot_servers_answer_passes_and_binds_nothing() {
        let right = boot_reply();
        let to_all = DhcpFrame { to_mac: MacAddr::BROADCAST, to: Ipv4Addr::BROADCAST, ..right.clone() };
        for (frame, expected) in [
            (right.clone(), Verdict::Forward),
            (to_all.clone(), Verdict::Forward),
            (right.clone().yiaddr(Ipv4Addr::UNSPECIFIED), Verdict::Forward),
            (right.clone().lease_time(5), Verdict::Forward),
            (right.clone().lease_time(0), Verdict::Forward),
            (DhcpFrame { ports: (4011, 68), ..DhcpFrame::offer() }, Verdict::Forward),
            (right.clone().yiaddr(OTHER_IP), drop_for(DropReason::ReplyAddress)),
            (to_all.yiaddr(OTHER_IP).lease_time(600), drop_for(DropReason::ReplyAddress)),
            (DhcpFrame { ports: (4011, 68), ..DhcpFrame::nak() }, drop_for(DropReason::ReplyType)),
            (right.clone().xid(7), drop_for(DropReason::ReplyTransaction)),
            (DhcpFrame { to: OTHER_IP, ..right.clone() }, drop_for(DropReason::ReplyDestination)),
            (DhcpFrame { from_mac: STRANGER, ..right.clone() }, drop_for(DropReason::ReplyServer)),
            (DhcpFrame { from: NEIGHBOUR_IP, ..right.clone() }, drop_for(DropReason::ReplyServer)),
            (right.clone().without(54), drop_for(DropReason::ReplyServer)),
            (right.set(28, &STRANGER.octets()), drop_for(DropReason::ReplyHardwareAddress)),
        ] {
            let mut port = booting();
            let lease = port.lease();
            assert_eq!(port.from_host(&frame.frame(), at(1)), expected, "{:?}", frame.options);
            assert_eq!(port.lease(), lease);
            assert_eq!(port.poll_event(), None);
            // It may come twice.
            assert_eq!(port.from_host(&boot_reply().frame(), at(2)), Verdict::Forward);
        }
        assert_eq!(bound().from_host(&boot_reply().frame(), NOW), drop_for(DropReason::ReplyTransaction));
        let late = booting().from_host(&boot_reply().frame(), at(60));
        assert_eq!(late, drop_for(DropReason::ReplyTransaction));
        let mut broken = boot_reply().frame();
        broken[14 + 20 + 6] ^= 1;
        assert_eq!(booting().from_host(&broken, NOW), drop_for(DropReason::ReplyChecksum));
    }

    /// B6: the two servers' transactions have nothing to do with each other, even under one number, which clients use
    /// for both (iPXE).
    #[test]
    fn b6_the_servers_answer_their_own_questions() {
        let mut port = booting();
        assert_eq!(port.from_host(&DhcpFrame::ack().frame(), NOW), drop_for(DropReason::ReplyTransaction));
        assert_eq!(port.from_vm(&DhcpFrame::renewal().frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_vm(&DhcpFrame::renewal().frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_host(&boot_reply().frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_host(&DhcpFrame::ack().lease_time(900).frame(), NOW), Verdict::Forward);
        assert_eq!(port.lease().and_then(|lease| lease.expires), Some(at(900)));
        // The repeated renewal's number is void for another ACK, and not for the boot server's.
        assert_eq!(port.from_host(&boot_reply().frame(), NOW), Verdict::Forward);
        let mut port = bound();
        assert_eq!(port.from_vm(&DhcpFrame::renewal().frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_host(&boot_reply().frame(), NOW), drop_for(DropReason::ReplyTransaction));
    }

    /// B6: a datagram for the client's port reaches the VM only as a reply that passes, whatever its sender.
    #[test]
    fn b6_rogue_servers_do_not_reach_the_vm() {
        let mut port = bound();
        let _ = port.from_vm(&DhcpFrame::renewal().frame(), NOW);
        let rogue = DhcpFrame { from_mac: STRANGER, from: NEIGHBOUR_IP, ..DhcpFrame::ack() };
        let rogue = rogue.address_option(54, NEIGHBOUR_IP);
        for frame in [
            rogue.clone(),
            DhcpFrame { to_mac: MacAddr::BROADCAST, to: Ipv4Addr::BROADCAST, ..rogue.clone() },
            DhcpFrame { ports: (53, 68), ..rogue.clone() },
            DhcpFrame { fixed: DhcpFrame::offer().fixed, options: DhcpFrame::offer().options, ..rogue },
        ] {
            assert_eq!(port.from_host(&frame.frame(), NOW), drop_for(DropReason::ReplyServer));
        }
        // A DNS answer to a query that the VM sent from port 68 is treated like a forgery.
        let dns = IpFrame::new(OWN_IP, 17, udp(53, 68, b"anything"));
        let dns = IpFrame { to_mac: VM, from_mac: GATEWAY, from: GATEWAY_IP, ..dns };
        assert_eq!(port.from_host(&dns.frame(), NOW), drop_for(DropReason::ReplyServer));
        let first = dns.clone().fragment(0x2000);
        assert_eq!(port.from_host(&first.frame(), NOW), drop_for(DropReason::ReplyServer));
        // A datagram that shows no ports could be one.
        let hidden = IpFrame { payload: udp(67, 68, b"")[..7].to_vec(), ..dns };
        assert_eq!(port.from_host(&hidden.frame(), NOW), drop_for(DropReason::HostMalformed));
    }
    /// A VM with a given address.
    fn given() -> Port {
        let mut port = fresh();
        let resolvers = [RESOLVER_IP, Ipv4Addr::LOCALHOST, OWN_IP].into_iter().collect();
        port.give(OWN_IP, resolvers, NOW).unwrap();
        port
    }

    /// B9: it sends without a word of DHCP, for ever, and to the resolvers that can be ones (D5).
    #[test]
    fn b9_a_given_address_binds_from_the_start() {
        let mut port = given();
        let lease = Lease {
            address: OWN_IP,
            server: GATEWAY_IP,
            expires: None,
            resolvers: [RESOLVER_IP].into_iter().collect(),
        };
        assert_eq!((port.lease(), port.next_deadline()), (Some(lease), None));
        assert_eq!(port.poll_event(), Some(PortEvent::Bound(lease)));
        for now in [NOW, Timestamp::MAX] {
            for (to, port_number) in [(WORLD_IP, 80), (RESOLVER_IP, 53)] {
                assert_eq!(port.from_vm(&IpFrame::udp(to, port_number).frame(), now), Verdict::Forward);
            }
        }
        let none = Resolvers::default();
        assert_eq!(port.give(OWN_IP, none, NOW), Err(AdoptError::Bound));
        for bad in [GATEWAY_IP, WORLD_IP, Ipv4Addr::new(192, 168, 64, 0), Ipv4Addr::new(192, 168, 64, 255)] {
            assert_eq!(fresh().give(bad, none, NOW), Err(AdoptError::Address(bad)));
        }
    }

    /// B9: neither the time that the server gives nor the one that the VM requests ends it, whatever answers get lost.
    #[test]
    fn b9_no_time_ends_a_given_address() {
        for request in [DhcpFrame::request(), DhcpFrame::renewal(), DhcpFrame::request().lease_time(1)] {
            for is_answered in [true, false] {
                let mut port = given();
                assert_eq!(port.from_vm(&request.frame(), NOW), Verdict::Forward);
                if is_answered {
                    assert_eq!(port.from_host(&DhcpFrame::ack().frame(), NOW), Verdict::Forward);
                }
                // What answers nothing caps a lease otherwise (B7).
                let _ = port.from_host(&DhcpFrame::ack().xid(XID + 5).lease_time(1).frame(), NOW);
                assert_eq!(
                    port.from_vm(&IpFrame::udp(WORLD_IP, 80).frame(), Timestamp::MAX),
                    Verdict::Forward
                );
            }
        }
    }

    /// B9: no reply gives the VM another address.
    #[test]
    fn b9_dhcp_gives_no_other_address() {
        let mut port = given();
        let elsewhere = DhcpFrame::request().address_option(50, OTHER_IP);
        for (request, reply) in
            [(DhcpFrame::discover(), DhcpFrame::offer()), (elsewhere.clone(), DhcpFrame::ack())]
        {
            assert_eq!(port.from_vm(&request.frame(), NOW), Verdict::Forward);
            let reply = DhcpFrame { to: Ipv4Addr::BROADCAST, ..reply.yiaddr(OTHER_IP) };
            assert_eq!(port.from_host(&reply.frame(), NOW), drop_for(DropReason::ReplyAddress));
        }
    }

    /// B9: what ends a lease at once ends this one, and an ACK brings it back without an end.
    #[test]
    fn b9_what_ends_a_lease_at_once_ends_a_given_one_until_an_ack() {
        let elsewhere = DhcpFrame::request().address_option(50, OTHER_IP).xid(XID + 1);
        for ending in [DhcpFrame::release(), DhcpFrame::decline(OWN_IP), elsewhere] {
            let mut port = given();
            assert_eq!(port.from_vm(&ending.frame(), NOW), Verdict::Forward);
            assert_eq!(port.lease(), None);
            assert_eq!(port.from_vm(&IpFrame::udp(WORLD_IP, 80).frame(), NOW), drop_for(DropReason::NoLease));
            assert_eq!(port.from_vm(&DhcpFrame::request().frame(), NOW), Verdict::Forward);
            assert_eq!(port.from_host(&DhcpFrame::ack().frame(), NOW), Verdict::Forward);
            assert_eq!(port.lease().map(|lease| (lease.address, lease.expires)), Some((OWN_IP, None)));
        }
        let mut port = given();
        assert_eq!(port.from_vm(&DhcpFrame::renewal().frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_host(&DhcpFrame::nak().frame(), NOW), Verdict::Forward);
        assert_eq!(port.lease(), None);
    }
}
