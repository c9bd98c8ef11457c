//! What a VM may send to a DHCP server: the rules C.

use core::net::Ipv4Addr;

use crate::binding::dhcpv4::hardware_ids;
use crate::binding::dhcpv4::state::Dhcp;
use crate::binding::dhcpv4::terms::Renewable;
use crate::binding::dhcpv4::transactions::{Asked, Kind};
use crate::event::{PortEvent, UnboundCause};
use crate::frame::Frame;
use crate::ipv4::{Part, UDP_HEADER_LEN, Udp};
use crate::segment::Segment;
use crate::time::Timestamp;
use crate::verdict::DropReason;
use softnet_wire::MacAddr;
use softnet_wire::checksum;
use softnet_wire::dhcpv4::name;
use softnet_wire::dhcpv4::{BOOT_PORT, CLIENT_PORT, SERVER_PORT};
use softnet_wire::dhcpv4::{BOOT_REQUEST, ETHERNET, Message, Options, OptionsError, kind};

/// Whether a datagram of the VM is judged as DHCP: its source is a server's port, or its destination is a server's or
/// a client's, or the boot server's at the gateway. One from port 68 to another port is like any other; its answer is
/// not (B6).
#[inline(always)]
pub(crate) fn is_dhcp_from_vm(segment: &Segment, destination: Ipv4Addr, udp: Udp) -> bool {
    udp.source_port == SERVER_PORT
        || matches!(udp.destination_port, SERVER_PORT | CLIENT_PORT)
        || (udp.destination_port == BOOT_PORT && destination == segment.dhcp_server.address)
}

/// A datagram of the VM on the DHCP ports.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Datagram<'a> {
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
    pub(crate) udp: Udp,
    /// Header and message.
    pub(crate) part: Part<'a>,
}

/// Judges a message by the rules C in their order, and remembers it if it passes. The lease in `dhcp` is valid now.
#[cold]
pub(crate) fn judge_from_vm(
    dhcp: &mut Dhcp,
    segment: &Segment,
    frame: Frame<'_>,
    datagram: Datagram<'_>,
    now: Timestamp,
) -> Result<(), DropReason> {
    let source = datagram.source;
    judge_ports(datagram.udp)?;
    let payload = judge_wholeness(datagram.part)?;
    judge_checksum(&datagram, payload)?;
    judge_destination(dhcp, segment, frame, datagram)?;
    let message = judge_header(payload.get(UDP_HEADER_LEN..).ok_or(DropReason::DhcpHeader)?)?;
    judge_hardware_address(segment, &message)?;
    let options = judge_options(&message)?;
    let kind = judge_message_type(&options)?;
    judge_client_address(dhcp, segment, source, &message, options.message_type)?;
    judge_relaying(&options)?;
    judge_overload(&options)?;
    judge_client_id(dhcp, segment, &options)?;
    judge_release(dhcp, &message, &options)?;
    judge_decline(dhcp, &options, now)?;
    judge_server(segment, &options)?;
    judge_names(&options)?;
    if datagram.udp.destination_port == BOOT_PORT {
        return judge_boot_request(dhcp, kind, &message, &options, now);
    }
    let asked = kind.map(|kind| asked(dhcp, kind, &message, &options));
    judge_transaction(dhcp, &message, &options, asked, now)?;
    judge_new_client_id(dhcp, &options, now)?;
    judge_rate(dhcp, options.message_type, now)?;
    note(dhcp, &message, &options, asked, now);
    Ok(())
}

/// C1: from a client's port to a server's.
fn judge_ports(udp: Udp) -> Result<(), DropReason> {
    match (udp.source_port, udp.destination_port) {
        (CLIENT_PORT, SERVER_PORT | BOOT_PORT) => Ok(()),
        _ => Err(DropReason::DhcpPorts),
    }
}

/// C1: no fragment. Gives the datagram.
fn judge_wholeness(part: Part<'_>) -> Result<&[u8], DropReason> {
    match part {
        Part::Whole(datagram) => Ok(datagram),
        Part::First(_) | Part::Later => Err(DropReason::DhcpFragment),
    }
}

/// C1: a checksum that is there is right: the server's system would drop the message in silence.
fn judge_checksum(datagram: &Datagram<'_>, bytes: &[u8]) -> Result<(), DropReason> {
    let has_checksum = !matches!(bytes, &[_, _, _, _, _, _, 0, 0, ..]);
    let sum = checksum::udp(datagram.source.octets(), datagram.destination.octets(), bytes);
    if has_checksum && !sum.is_valid() { Err(DropReason::DhcpChecksum) } else { Ok(()) }
}

/// C1: broadcast, or from a VM with an address to the server.
fn judge_destination(
    dhcp: &Dhcp,
    segment: &Segment,
    frame: Frame<'_>,
    datagram: Datagram<'_>,
) -> Result<(), DropReason> {
    let Datagram { source, destination, udp, .. } = datagram;
    let is_broadcast = destination.is_broadcast() && frame.destination().is_broadcast();
    // C10: a VM renews its last lease from that address. The boot server renews nothing.
    let may_renew = udp.destination_port == SERVER_PORT && may_renew(dhcp, segment, source);
    let has_address = dhcp.lease().is_some() || may_renew;
    let server = segment.dhcp_server;
    let is_to_server = destination == server.address && frame.destination() == server.mac && has_address;
    if is_broadcast || is_to_server { Ok(()) } else { Err(DropReason::DhcpDestination) }
}

/// C2: the fixed part of the message.
fn judge_header(payload: &[u8]) -> Result<Message<'_>, DropReason> {
    let message = Message::parse(payload).ok_or(DropReason::DhcpHeader)?;
    if message.operation != BOOT_REQUEST
        || message.hardware_type != ETHERNET
        || message.hardware_len != 6
        || message.hops != 0
        || !message.relay_address.is_unspecified()
        || !message.has_cookie
    {
        return Err(DropReason::DhcpHeader);
    }
    Ok(message)
}

/// C2: the message is about the VM.
fn judge_hardware_address(segment: &Segment, message: &Message<'_>) -> Result<(), DropReason> {
    if MacAddr(message.hardware_address) == segment.vm_mac && message.is_hardware_padding_zero {
        Ok(())
    } else {
        Err(DropReason::DhcpHardwareAddress)
    }
}

/// C2, C5: well-formed options, and a client identifier in one piece.
fn judge_options<'a>(message: &Message<'a>) -> Result<Options<'a>, DropReason> {
    message.options().map_err(|error| match error {
        OptionsError::Malformed => DropReason::DhcpOptions,
        OptionsError::ClientId => DropReason::DhcpClientId,
    })
}

/// C3: a type that clients send. Returns what the message requests; DECLINE and RELEASE request nothing.
fn judge_message_type(options: &Options<'_>) -> Result<Option<Kind>, DropReason> {
    match options.message_type {
        // With rapid commit the server may answer by an ACK at once (RFC 4039).
        kind::DISCOVER if options.has_rapid_commit => Ok(Some(Kind::RapidDiscover)),
        kind::DISCOVER => Ok(Some(Kind::Discover)),
        kind::REQUEST => Ok(Some(Kind::Request)),
        kind::INFORM => Ok(Some(Kind::Inform)),
        kind::DECLINE | kind::RELEASE => Ok(None),
        _ => Err(DropReason::DhcpMessageType),
    }
}

/// C4, C10: the addresses that the message gives as the VM's.
fn judge_client_address(
    dhcp: &Dhcp,
    segment: &Segment,
    source: Ipv4Addr,
    message: &Message<'_>,
    message_type: u8,
) -> Result<(), DropReason> {
    let own = dhcp.lease().map(|lease| lease.address);
    let client_address = message.client_address;
    // C10: only a REQUEST, and with the same address in both places.
    let is_renewable = |address| message_type == kind::REQUEST && may_renew(dhcp, segment, address);
    let renews_the_last =
        is_renewable(client_address) && (source.is_unspecified() || source == client_address);
    let names_source_only =
        client_address.is_unspecified() && dhcp.renewable() == Renewable::Anything && is_renewable(source);
    if renews_the_last || names_source_only {
        return Ok(());
    }
    let is_own_or_none = |address: Ipv4Addr| address.is_unspecified() || Some(address) == own;
    if !is_own_or_none(source) {
        return Err(DropReason::DhcpSource);
    }
    if !is_own_or_none(client_address) {
        return Err(if message_type == kind::RELEASE {
            DropReason::DhcpRelease
        } else {
            DropReason::DhcpClientAddress
        });
    }
    Ok(())
}

/// C10: whether a VM without a lease may renew this one.
fn may_renew(dhcp: &Dhcp, segment: &Segment, address: Ipv4Addr) -> bool {
    dhcp.lease().is_none()
        && match dhcp.renewable() {
            Renewable::Expired(last) => address == last,
            Renewable::Anything => segment.may_be_leased(address),
            Renewable::Nothing => false,
        }
}

/// C5: no relay's information.
fn judge_relaying(options: &Options<'_>) -> Result<(), DropReason> {
    if options.has_relay_agent { Err(DropReason::DhcpRelayOption) } else { Ok(()) }
}

/// C5: no options in other fields.
fn judge_overload(options: &Options<'_>) -> Result<(), DropReason> {
    if options.has_overload { Err(DropReason::DhcpOverload) } else { Ok(()) }
}

/// C5: a client identifier names no other hardware address than the VM's.
///
/// Where the server stores leases by MAC address, an identifier takes nothing from other VMs, and cloned images have
/// the identifier of their template.
fn judge_client_id(dhcp: &mut Dhcp, segment: &Segment, options: &Options<'_>) -> Result<(), DropReason> {
    let is_foreign = |id: &&[u8]| !hardware_ids::is_own_or_opaque(id, segment.vm_mac);
    let Some(id) = options.client_id.filter(is_foreign) else { return Ok(()) };
    if segment.server_files_by_mac {
        return Ok(());
    }
    if !core::mem::replace(&mut dhcp.has_foreign_client_id, true) {
        dhcp.events.push(PortEvent::ForeignClientId { named: hardware_ids::named_mac(id) });
    }
    Err(DropReason::DhcpClientIdForeign)
}

/// C6: the VM gives up the address that it has, and no other. With no lease, `ciaddr` is 0 here (C4).
fn judge_release(dhcp: &Dhcp, message: &Message<'_>, options: &Options<'_>) -> Result<(), DropReason> {
    let own = dhcp.lease().map(|lease| lease.address);
    if options.message_type == kind::RELEASE && own != Some(message.client_address) {
        return Err(DropReason::DhcpRelease);
    }
    Ok(())
}

/// C6: the VM declines the address that it has or was offered, and no other.
fn judge_decline(dhcp: &Dhcp, options: &Options<'_>, now: Timestamp) -> Result<(), DropReason> {
    let own = dhcp.lease().map(|lease| lease.address);
    let declined = options.requested_address;
    if options.message_type == kind::DECLINE
        && (declined.is_none() || (declined != own && declined != dhcp.offered(now)))
    {
        return Err(DropReason::DhcpDecline);
    }
    Ok(())
}

/// C8: no other server is named. A server that sees another one selected may stop answering all clients.
fn judge_server(segment: &Segment, options: &Options<'_>) -> Result<(), DropReason> {
    if options.server.is_none_or(|server| server == segment.dhcp_server.address) {
        Ok(())
    } else {
        Err(DropReason::DhcpServer)
    }
}

/// C9: the names are host names.
fn judge_names(options: &Options<'_>) -> Result<(), DropReason> {
    if options.host_name.is_none_or(name::is_host_name) && options.fqdn.is_none_or(name::is_fqdn_option) {
        Ok(())
    } else {
        Err(DropReason::DhcpName)
    }
}

/// B6: a message to the boot server could move no lease, even if its server handles it like one to port 67: it names
/// no address but the lease, and gives nothing up. So it leaves the lease as it is, and only its answers are awaited.
fn judge_boot_request(
    dhcp: &mut Dhcp,
    kind: Option<Kind>,
    message: &Message<'_>,
    options: &Options<'_>,
    now: Timestamp,
) -> Result<(), DropReason> {
    if !matches!(kind, Some(Kind::Discover | Kind::Request | Kind::Inform)) {
        return Err(DropReason::DhcpMessageType);
    }
    let own = dhcp.lease().map(|lease| lease.address);
    if options.requested_address.is_some() && options.requested_address != own {
        return Err(DropReason::DhcpClientAddress);
    }
    judge_new_client_id(dhcp, options, now)?;
    judge_rate(dhcp, options.message_type, now)?;
    if let Some(id) = options.client_id {
        let _ = dhcp.note_client_id(id, now);
    }
    dhcp.boot_requests.open(message.transaction, now);
    Ok(())
}

/// What the message requests.
fn asked(dhcp: &Dhcp, kind: Kind, message: &Message<'_>, options: &Options<'_>) -> Asked {
    Asked {
        kind,
        requested: options.requested_address,
        client_address: Some(message.client_address).filter(|address| !address.is_unspecified()),
        lease_time: options.lease_time,
        client_id: options.client_id.and_then(|id| dhcp.client_ids.find(id)),
    }
}

/// Whether the message has a client identifier that is not remembered.
fn has_new_client_id(dhcp: &Dhcp, options: &Options<'_>) -> bool {
    options.client_id.is_some_and(|id| dhcp.client_ids.find(id).is_none())
}

/// B7: the replies to the message can be distinguished from those to earlier ones.
fn judge_transaction(
    dhcp: &Dhcp,
    message: &Message<'_>,
    options: &Options<'_>,
    asked: Option<Asked>,
    now: Timestamp,
) -> Result<(), DropReason> {
    let is_new_id = has_new_client_id(dhcp, options);
    if asked.is_none_or(|asked| dhcp.transactions.admits(message.transaction, asked, is_new_id, now)) {
        Ok(())
    } else {
        Err(DropReason::DhcpTransaction)
    }
}

/// C5: how often the VM uses another client identifier.
fn judge_new_client_id(dhcp: &Dhcp, options: &Options<'_>, now: Timestamp) -> Result<(), DropReason> {
    if has_new_client_id(dhcp, options) && !dhcp.new_client_ids.has_room(now) {
        return Err(DropReason::DhcpClientIdLimit);
    }
    Ok(())
}

/// C7. Only messages that would pass count, so that invalid ones cannot keep a VM from its lease.
fn judge_rate(dhcp: &mut Dhcp, message_type: u8, now: Timestamp) -> Result<(), DropReason> {
    let is_decline = message_type == kind::DECLINE;
    if !dhcp.messages.has_room(now) || (is_decline && !dhcp.declines.has_room(now)) {
        return Err(DropReason::DhcpRate);
    }
    dhcp.messages.count(now);
    if is_decline {
        dhcp.declines.count(now);
    }
    Ok(())
}

/// The effect of a message that passes.
fn note(dhcp: &mut Dhcp, message: &Message<'_>, options: &Options<'_>, asked: Option<Asked>, now: Timestamp) {
    let client_id = options.client_id.and_then(|id| dhcp.note_client_id(id, now));
    match (asked, options.message_type) {
        (Some(asked), _) => dhcp.record_request(message.transaction, Asked { client_id, ..asked }, now),
        (None, kind::RELEASE) => dhcp.give_up(UnboundCause::Released),
        (None, _) => dhcp.give_up(UnboundCause::Declined),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;
    use crate::{Port, Verdict};

    fn judge(port: &mut Port, frame: &DhcpFrame) -> Verdict {
        port.from_vm(&frame.frame(), NOW)
    }

    /// The verdict on a message of a VM without a lease.
    fn first(frame: &DhcpFrame) -> Verdict {
        judge(&mut fresh(), frame)
    }

    /// C1: from 68 to 67, and neither port otherwise, whatever the destination.
    #[test]
    fn c1_ports() {
        let mut port = bound();
        for (from, to, expected) in [
            (67, 68, drop_for(DropReason::DhcpPorts)),
            (67, 67, drop_for(DropReason::DhcpPorts)),
            (68, 68, drop_for(DropReason::DhcpPorts)),
            (67, 53, drop_for(DropReason::DhcpPorts)),
            (4000, 67, drop_for(DropReason::DhcpPorts)),
            (4000, 68, drop_for(DropReason::DhcpPorts)),
            (68, 53, Verdict::Forward),
            (4000, 69, Verdict::Forward),
        ] {
            for destination in [WORLD_IP, GATEWAY_IP] {
                let frame = IpFrame::new(destination, 17, udp(from, to, &[0; 300]));
                assert_eq!(port.from_vm(&frame.frame(), NOW), expected, "{from} to {to}");
            }
            if expected != Verdict::Forward {
                assert_eq!(first(&DhcpFrame { ports: (from, to), ..DhcpFrame::discover() }), expected);
            }
        }
        // There is no DHCP over TCP.
        assert_eq!(port.from_vm(&IpFrame::tcp(WORLD_IP, 67).frame(), NOW), Verdict::Forward);
    }

    fn to_boot_server(kind: u8) -> DhcpFrame {
        let renewal = DhcpFrame::renewal();
        DhcpFrame { ports: (68, 4011), options: vec![(53, vec![kind])], ..renewal }
            .address_option(54, GATEWAY_IP)
    }

    /// B6: who has a lease may ask the boot server, by itself and about itself.
    #[test]
    fn b6_a_vm_with_a_lease_asks_the_boot_server() {
        for kind in [1, 3, 8] {
            let frame = to_boot_server(kind);
            assert_eq!(judge(&mut bound(), &frame), Verdict::Forward, "{kind}");
            assert_eq!(first(&frame), drop_for(DropReason::DhcpDestination), "{kind}");
        }
        let right = to_boot_server(3);
        for (frame, expected) in [
            (right.clone().address_option(50, OWN_IP), Verdict::Forward),
            (DhcpFrame { from: Ipv4Addr::UNSPECIFIED, ..right.clone() }, Verdict::Forward),
            (DhcpFrame { ports: (4011, 4011), ..right.clone() }, drop_for(DropReason::DhcpPorts)),
            (DhcpFrame { ports: (40_000, 4011), ..right.clone() }, drop_for(DropReason::DhcpPorts)),
            (DhcpFrame { ports: (67, 4011), ..right.clone() }, drop_for(DropReason::DhcpPorts)),
            (
                DhcpFrame { to_mac: MacAddr::BROADCAST, ..right.clone() },
                drop_for(DropReason::DhcpDestination),
            ),
            (DhcpFrame { to: Ipv4Addr::BROADCAST, ..right.clone() }, drop_for(DropReason::NeverDestination)),
            (right.clone().set(28, &STRANGER.octets()), drop_for(DropReason::DhcpHardwareAddress)),
            (right.clone().set(3, &[1]), drop_for(DropReason::DhcpHeader)),
            (right.clone().ciaddr(OTHER_IP), drop_for(DropReason::DhcpClientAddress)),
            (right.clone().address_option(50, OTHER_IP), drop_for(DropReason::DhcpClientAddress)),
            (right.clone().address_option(54, NEIGHBOUR_IP), drop_for(DropReason::DhcpServer)),
            (right.option(82, &[1, 1, 1]), drop_for(DropReason::DhcpRelayOption)),
            (to_boot_server(7), drop_for(DropReason::DhcpMessageType)),
            (to_boot_server(4).address_option(50, OWN_IP), drop_for(DropReason::DhcpMessageType)),
            (to_boot_server(1).option(80, &[]), drop_for(DropReason::DhcpMessageType)),
            (to_boot_server(5), drop_for(DropReason::DhcpMessageType)),
        ] {
            let mut port = bound();
            assert_eq!(judge(&mut port, &frame), expected, "{:?} {:?}", frame.ports, frame.options);
            assert_eq!(port.lease().map(|lease| lease.address), Some(OWN_IP));
        }
        let fragment = to_boot_server(3).packet().fragment(0x2000);
        let fragment = IpFrame { payload: fragment.payload[..240].to_vec(), ..fragment };
        assert_eq!(bound().from_vm(&fragment.frame(), NOW), drop_for(DropReason::DhcpFragment));
        // Only at the gateway is the port the boot server's.
        let elsewhere = IpFrame::udp(WORLD_IP, 4011).frame();
        assert_eq!(bound().from_vm(&elsewhere, NOW), Verdict::Forward);
    }

    /// B6: what is sent to the boot server counts like what is sent to the DHCP server (C7).
    #[test]
    fn b6_questions_to_the_boot_server_are_limited() {
        let mut port = bound();
        let passed = (0..20).filter(|_| judge(&mut port, &to_boot_server(3)).is_forward()).count();
        assert_eq!(passed, 9);
    }

    /// B6: an address that the VM's lease merely was is no reason to ask the boot server.
    #[test]
    fn b6_an_expired_lease_asks_no_boot_server() {
        let mut port = bound();
        let late = NOW.saturating_add(core::time::Duration::from_secs(600));
        assert_eq!(port.from_vm(&to_boot_server(3).frame(), late), drop_for(DropReason::DhcpDestination));
        assert_eq!(port.from_vm(&DhcpFrame::renewal().frame(), late), Verdict::Forward);
    }

    /// C1: every wrong checksum; but a datagram may have none (RFC 768).
    #[test]
    fn c1_checksum() {
        let right = DhcpFrame::discover().frame();
        let field = 14 + 20 + 6;
        let judge = |frame: &[u8]| fresh().from_vm(frame, NOW);
        assert_eq!(judge(&right), Verdict::Forward);
        for bit in 0..16 {
            let mut frame = right.clone();
            frame[field + bit / 8] ^= 1 << (bit % 8);
            assert_eq!(judge(&frame), drop_for(DropReason::DhcpChecksum), "bit {bit}");
        }
        let mut other = right.clone();
        *other.last_mut().unwrap() ^= 1;
        assert_eq!(judge(&other), drop_for(DropReason::DhcpChecksum));
        let mut none = right.clone();
        none[field..field + 2].fill(0);
        assert_eq!(judge(&none), Verdict::Forward);
        let mut port = bound();
        let mut renewal = DhcpFrame::renewal().frame();
        renewal[field] ^= 1;
        assert_eq!(port.from_vm(&renewal, NOW), drop_for(DropReason::DhcpChecksum));
    }

    /// C1: broadcast in a broadcast frame, or with a lease to the server in the server's.
    #[test]
    fn c1_destination() {
        let to = |to_mac, to| DhcpFrame { to_mac, to, ..DhcpFrame::request() };
        for (frame, without, with) in [
            (to(MacAddr::BROADCAST, Ipv4Addr::BROADCAST), true, true),
            (to(GATEWAY, Ipv4Addr::BROADCAST), false, false),
            (to(MacAddr([0x01, 0, 0x5e, 0, 0, 1]), Ipv4Addr::BROADCAST), false, false),
            (to(GATEWAY, GATEWAY_IP), false, true),
            (to(MacAddr::BROADCAST, GATEWAY_IP), false, false),
            (to(STRANGER, GATEWAY_IP), false, false),
            (to(STRANGER, NEIGHBOUR_IP), false, false),
            (to(GATEWAY, WORLD_IP), false, false),
            (to(MacAddr::BROADCAST, Ipv4Addr::new(192, 168, 64, 255)), false, false),
        ] {
            let expected =
                |passes| if passes { Verdict::Forward } else { drop_for(DropReason::DhcpDestination) };
            assert_eq!(first(&frame), expected(without), "{}, {}", frame.to_mac, frame.to);
            assert_eq!(judge(&mut bound(), &frame), expected(with), "{}, {}", frame.to_mac, frame.to);
            let mut open = bound_with(&["0.0.0.0/0"], &[]);
            assert_eq!(judge(&mut open, &frame), expected(with), "{}, {}", frame.to_mac, frame.to);
        }
    }

    /// C1: unfragmented and of valid lengths.
    #[test]
    fn c1_whole_packets_only() {
        let packet = DhcpFrame::discover().packet();
        assert_eq!(
            fresh().from_vm(&packet.clone().fragment(0x4000).frame(), NOW),
            Verdict::Forward,
            "DF is no fragment"
        );
        let mut first = packet.clone();
        first.payload.truncate(96);
        assert_eq!(fresh().from_vm(&first.fragment(0x2000).frame(), NOW), drop_for(DropReason::DhcpFragment));
        let mut short = packet.clone();
        short.payload.truncate(200);
        assert_eq!(fresh().from_vm(&short.frame(), NOW), drop_for(DropReason::UdpLength));
        let empty = IpFrame { payload: udp(68, 67, b""), ..packet.clone() };
        assert_eq!(fresh().from_vm(&empty.frame(), NOW), drop_for(DropReason::DhcpHeader));
        let fixed_but_one = IpFrame { payload: udp(68, 67, &DhcpFrame::discover().fixed[..239]), ..packet };
        assert_eq!(fresh().from_vm(&fixed_but_one.frame(), NOW), drop_for(DropReason::DhcpHeader));
    }

    /// C2: the fixed part, byte by byte.
    #[test]
    fn c2_fixed_part() {
        let header = drop_for(DropReason::DhcpHeader);
        for (at, value) in [(0, 2), (0, 0), (1, 6), (1, 0), (2, 0), (2, 16), (3, 1), (27, 1), (24, 10)] {
            assert_eq!(first(&DhcpFrame::discover().set(at, &[value])), header, "{at}");
        }
        for at in 236..240 {
            assert_eq!(first(&DhcpFrame::discover().set(at, &[0])), header, "{at}");
        }
        for at in 28..44 {
            let verdict = first(&DhcpFrame::discover().set(at, &[0x55]));
            assert_eq!(verdict, drop_for(DropReason::DhcpHardwareAddress), "{at}");
        }
        // Seconds, flags, `sname` and `file` are the client's.
        for at in [8, 9, 10, 11, 44, 107, 108, 235] {
            assert_eq!(first(&DhcpFrame::discover().set(at, &[1])), Verdict::Forward, "{at}");
        }
    }

    /// C2: options within the message, an end, and nothing but padding behind it.
    #[test]
    fn c2_options_are_well_formed() {
        let with_tail = |tail: &[u8]| DhcpFrame { tail: tail.to_vec(), ..DhcpFrame::discover() };
        let malformed = drop_for(DropReason::DhcpOptions);
        assert_eq!(first(&with_tail(&[0, 0, 0, 255, 0, 0, 0])), Verdict::Forward);
        assert_eq!(first(&with_tail(&[12, 3, b'f', b'o', b'o', 255])), Verdict::Forward);
        assert_eq!(first(&with_tail(&[13, 0, 255])), Verdict::Forward);
        for tail in [
            &[][..],
            &[0, 0],
            &[12],
            &[12, 1],
            &[12, 2, b'f'],
            &[12, 2, b'f', b'o'],
            &[12, 255, 1, 2, 3, 255],
            &[255, 82, 1, 1],
            &[255, 0, 0, 1],
            &[255, 255],
            &[50, 3, 1, 2, 3, 255],
            &[50, 5, 1, 2, 3, 4, 5, 255],
            &[54, 0, 255],
            &[51, 2, 1, 1, 255],
        ] {
            assert_eq!(first(&with_tail(tail)), malformed, "{tail:?}");
        }
    }

    /// C2: one message type, of one byte; options with addresses occur once.
    #[test]
    fn c2_options_occur_once() {
        let malformed = drop_for(DropReason::DhcpOptions);
        assert_eq!(first(&DhcpFrame::discover().without(53)), malformed);
        assert_eq!(first(&DhcpFrame::discover().without(53).option(53, &[])), malformed);
        assert_eq!(first(&DhcpFrame::discover().without(53).option(53, &[1, 1])), malformed);
        assert_eq!(first(&DhcpFrame::discover().option(53, &[1])), malformed);
        assert_eq!(first(&DhcpFrame::discover().option(53, &[3])), malformed);
        for code in [50, 51, 54] {
            let once = DhcpFrame::discover().option(code, &GATEWAY_IP.octets());
            assert_eq!(first(&once), Verdict::Forward, "{code}");
            assert_eq!(first(&once.option(code, &GATEWAY_IP.octets())), malformed, "{code}");
        }
    }

    /// C3: of all types only a client's.
    #[test]
    fn c3_message_types() {
        for kind in 0..=255 {
            let expected = match kind {
                1 | 3 => Verdict::Forward,
                // Without a lease there is nothing to decline or release.
                4 => drop_for(DropReason::DhcpDecline),
                7 => drop_for(DropReason::DhcpRelease),
                8 => Verdict::Forward,
                _ => drop_for(DropReason::DhcpMessageType),
            };
            assert_eq!(first(&DhcpFrame::client(kind)), expected, "{kind}");
        }
    }

    /// C4: 0.0.0.0 or the VM's own address, in the header and in `ciaddr`.
    #[test]
    fn c4_addresses() {
        for address in [GATEWAY_IP, OTHER_IP, WORLD_IP, Ipv4Addr::BROADCAST] {
            let from = DhcpFrame { from: address, ..DhcpFrame::request() };
            let with = DhcpFrame::request().ciaddr(address);
            // C10 is about ports that never knew a lease.
            let mut given_up = bound();
            assert_eq!(judge(&mut given_up, &DhcpFrame::release()), Verdict::Forward);
            for mut port in [given_up, bound()] {
                assert_eq!(judge(&mut port, &from), drop_for(DropReason::DhcpSource), "{address}");
                assert_eq!(judge(&mut port, &with), drop_for(DropReason::DhcpClientAddress), "{address}");
            }
        }
        let from = DhcpFrame { from: OWN_IP, ..DhcpFrame::request() };
        let with = DhcpFrame::request().ciaddr(OWN_IP);
        let mut given_up = bound();
        assert_eq!(judge(&mut given_up, &DhcpFrame::release()), Verdict::Forward);
        assert_eq!(judge(&mut given_up, &from), drop_for(DropReason::DhcpSource));
        assert_eq!(judge(&mut given_up, &with), drop_for(DropReason::DhcpClientAddress));
        assert_eq!(judge(&mut bound(), &from), Verdict::Forward);
        assert_eq!(judge(&mut bound(), &with), Verdict::Forward);
        assert_eq!(judge(&mut bound(), &DhcpFrame::renewal()), Verdict::Forward);
        assert_eq!(judge(&mut bound(), &DhcpFrame::inform()), Verdict::Forward);
    }

    /// D7: a VM renews its lease whatever is blocked.
    #[test]
    fn d7_renewal_survives_every_block() {
        let mut port = bound_with(&[], &["0.0.0.0/0", "@host", "255.255.255.255"]);
        assert_eq!(judge(&mut port, &DhcpFrame::renewal()), Verdict::Forward);
        assert_eq!(port.from_host(&DhcpFrame::ack().frame(), NOW), Verdict::Forward);
        let rebinding = DhcpFrame { from: OWN_IP, ..DhcpFrame::client(3).ciaddr(OWN_IP) };
        assert_eq!(judge(&mut port, &rebinding), Verdict::Forward);
        assert_eq!(port.from_host(&DhcpFrame::ack().frame(), NOW), Verdict::Forward);
    }

    /// C5: no relay information, no overload, wherever they occur.
    #[test]
    fn c5_relay_and_overload_are_dropped() {
        for (code, value, reason) in [
            (82, &[1, 1, 0][..], DropReason::DhcpRelayOption),
            (82, &[], DropReason::DhcpRelayOption),
            (52, &[1], DropReason::DhcpOverload),
            (52, &[3], DropReason::DhcpOverload),
            (52, &[], DropReason::DhcpOverload),
        ] {
            assert_eq!(first(&DhcpFrame::request().option(code, value)), drop_for(reason));
            let mut before = DhcpFrame::request();
            before.options.insert(0, (code, value.to_vec()));
            assert_eq!(first(&before), drop_for(reason));
        }
    }

    /// C5: a client identifier in one piece, of a type and at least one byte.
    #[test]
    fn c5_client_id_is_whole() {
        let id = |id: &[u8]| DhcpFrame::discover().option(61, id);
        assert_eq!(first(&id(b"\0id")), Verdict::Forward);
        assert_eq!(first(&id(&[0, 1])), Verdict::Forward);
        for frame in [id(&[]), id(&[0]), id(b"\0id").option(61, b"\0id"), id(b"\0id").option(61, &[])] {
            assert_eq!(first(&frame), drop_for(DropReason::DhcpClientId));
        }
    }

    /// C5: an identifier that contains a MAC address contains the VM's own.
    #[test]
    fn c5_client_id_names_the_own_mac() {
        for mac in [VM, STRANGER, GATEWAY] {
            let mac = mac.octets();
            let is_own = mac == VM.octets();
            let with = |prefix: &[u8], suffix: &[u8]| [prefix, &mac, suffix].concat();
            let iaid = [255, 1, 2, 3, 4];
            let ids = [
                with(&[1], &[]),
                with(&[6], &[]),
                with(&[38], &[]),
                with(&[&iaid[..], &[0, 3, 0, 1]].concat(), &[]),
                with(&[&iaid[..], &[0, 1, 0, 1, 9, 9, 9, 9]].concat(), &[]),
                with(&[255, 0, 3, 0, 1], &[]),
                with(&[255, 0, 1, 0, 1, 9, 9, 9, 9], &[]),
                with(&[0, 3, 0, 1], &[]),
                with(&[0, 1, 0, 1, 9, 9, 9, 9], &[]),
            ];
            for id in &ids {
                let expected =
                    if is_own { Verdict::Forward } else { drop_for(DropReason::DhcpClientIdForeign) };
                assert_eq!(first(&DhcpFrame::discover().option(61, id)), expected, "{id:02x?}");
            }
            // Of the type, but without its form.
            for id in [
                with(&[1], &[0]),
                with(&[1, 0], &[]),
                with(&[&iaid[..], &[0, 3, 0, 6]].concat(), &[]),
                with(&[&iaid[..], &[0, 3, 0, 1]].concat(), &[0]),
                with(&[&iaid[..], &[0, 1, 0, 1, 9, 9, 9]].concat(), &[]),
            ] {
                let verdict = first(&DhcpFrame::discover().option(61, &id));
                assert_eq!(verdict, drop_for(DropReason::DhcpClientIdForeign), "{id:02x?}");
            }
            // Names, DUIDs of other kinds (enterprise, UUID), and text that a person typed: not a MAC address for the
            // server.
            for id in [
                with(&[0], &[]),
                with(&[39], &[]),
                with(&[254], &[]),
                with(&[255, 1, 2, 3, 4, 0, 2], &[]),
                with(&[255, 1, 2, 3, 4, 0, 4], &[]),
                b"client".to_vec(),
                vec![255, 1],
                vec![255, 1, 2, 3, 4],
            ] {
                assert_eq!(first(&DhcpFrame::discover().option(61, &id)), Verdict::Forward, "{id:02x?}");
            }
        }
        assert_eq!(
            first(&DhcpFrame::discover().option(61, &[1, 2])),
            drop_for(DropReason::DhcpClientIdForeign)
        );
    }

    /// C5: a burst of four identifiers, each change reported, then one in 150 s; those that were used last do not
    /// count.
    #[test]
    fn c5_new_client_ids_are_few() {
        let mut port = fresh();
        let id = |id: &[u8]| DhcpFrame::discover().option(61, id);
        let mut longest = [7; 255];
        longest[0] = 0;
        let ids: [&[u8]; 4] = [b"\0firmware", b"\0installer", b"\0system", &longest];
        let (mut now, mut xid) = (NOW, 0);
        let mut judge = |port: &mut Port, frame: DhcpFrame, after| {
            now = now.saturating_add(core::time::Duration::from_secs(after));
            xid += 1;
            port.from_vm(&frame.xid(xid).frame(), now)
        };
        for (used, text) in (1..).zip(ids) {
            assert_eq!(judge(&mut port, id(text), 1), Verdict::Forward);
            let event = (used > 1).then_some(PortEvent::ClientIdChanged { used });
            assert_eq!(port.poll_event(), event);
            assert_eq!(judge(&mut port, id(ids[0]), 1), Verdict::Forward);
            assert_eq!(judge(&mut port, DhcpFrame::discover(), 1), Verdict::Forward);
            assert_eq!(port.poll_event(), None);
        }
        let limit = drop_for(DropReason::DhcpClientIdLimit);
        assert_eq!(judge(&mut port, id(b"\0fifth"), 1), limit);
        assert_eq!(judge(&mut port, id(&longest[..254]), 1), limit);
        for text in ids {
            assert_eq!(judge(&mut port, id(text), 1), Verdict::Forward);
        }
        // Twelve seconds and six have passed since the first.
        assert_eq!(judge(&mut port, id(b"\0fifth"), 130), limit);
        assert_eq!(judge(&mut port, id(b"\0fifth"), 3), Verdict::Forward);
        assert_eq!(port.poll_event(), Some(PortEvent::ClientIdChanged { used: 5 }));
        // The one that was used longest ago is forgotten, and counts as new.
        assert_eq!(judge(&mut port, id(ids[0]), 1), limit);
        assert_eq!(judge(&mut port, id(ids[3]), 1), Verdict::Forward);
    }

    /// C5: where the server stores leases by MAC address, the identifier of an image's template takes nothing from
    /// other VMs; elsewhere it is reported once.
    #[test]
    fn c5_foreign_client_ids_of_clones() {
        let foreign = [1, 2, 0, 0, 0, 0, 0x77];
        let clone = DhcpFrame::discover().option(61, &foreign);
        let mut port =
            Port::new(crate::PortConfig { server_files_by_mac: true, ..config(&[], &[]) }).unwrap();
        assert_eq!(judge(&mut port, &clone), Verdict::Forward);
        assert_eq!(port.poll_event(), None);
        let mut port = fresh();
        for _ in 0..3 {
            assert_eq!(judge(&mut port, &clone), drop_for(DropReason::DhcpClientIdForeign));
        }
        assert_eq!(port.poll_event(), Some(PortEvent::ForeignClientId { named: Some(STRANGER) }));
        assert_eq!(port.poll_event(), None);
        for (id, named) in [
            (&[1, 2, 3][..], None),
            (&[255, 0, 0, 0, 1, 0, 3, 0, 1, 2, 0, 0, 0, 0, 0x77], Some(STRANGER)),
            (&[255, 0, 3, 0, 1, 2, 0, 0, 0, 0, 0x77], Some(STRANGER)),
            (&[0, 1, 0, 1, 9, 9, 9, 9, 2, 0, 0, 0, 0, 0x77], Some(STRANGER)),
            (&[255, 0, 0, 0, 1, 0, 1, 0, 9], None),
        ] {
            let mut port = fresh();
            let verdict = judge(&mut port, &DhcpFrame::discover().option(61, id));
            assert_eq!(verdict, drop_for(DropReason::DhcpClientIdForeign));
            assert_eq!(port.poll_event(), Some(PortEvent::ForeignClientId { named }), "{id:02x?}");
        }
    }

    /// C5: a VM has one lease at a time; the earlier one is released with its own identifier, once the new one is
    /// bound.
    #[test]
    fn c5_the_earlier_lease_is_given_back() {
        let mut port = fresh();
        let _ = judge(&mut port, &DhcpFrame::request().option(61, b"\0first"));
        assert_eq!(port.from_host(&DhcpFrame::ack().frame(), NOW), Verdict::Forward);
        assert_eq!(port.poll_transmit(), None);
        let other = DhcpFrame::request().xid(7).address_option(50, OTHER_IP).option(61, b"\0second");
        assert_eq!(judge(&mut port, &other), Verdict::Forward);
        assert_eq!(port.poll_transmit(), None, "the server may refuse");
        let ack = DhcpFrame { to: OTHER_IP, ..DhcpFrame::ack().xid(7).yiaddr(OTHER_IP) };
        assert_eq!(port.from_host(&ack.frame(), NOW), Verdict::Forward);
        let (_, frame) = port.poll_transmit().unwrap();
        let expected = DhcpFrame::release().xid(8).option(61, b"\0first");
        let expected = DhcpFrame { tail: vec![255], ..expected };
        let message = expected.message();
        assert_eq!(frame[42..][..message.len()], message);
        assert_eq!(port.poll_transmit(), None);
        assert_eq!(port.lease().map(|lease| lease.address), Some(OTHER_IP));

        // Not one that is the same, has expired, or was given up.
        let at = |secs| NOW.saturating_add(core::time::Duration::from_secs(secs));
        let takes = |port: &mut Port, xid, address, now| {
            let request = DhcpFrame::request().xid(xid).address_option(50, address);
            assert_eq!(port.from_vm(&request.frame(), now), Verdict::Forward);
            let ack = DhcpFrame { to: address, ..DhcpFrame::ack().xid(xid).yiaddr(address) };
            assert_eq!(port.from_host(&ack.frame(), now), Verdict::Forward);
        };
        let mut port = bound();
        takes(&mut port, 7, OWN_IP, NOW);
        assert_eq!(port.poll_transmit(), None);
        let request = DhcpFrame::request().xid(8).address_option(50, NEIGHBOUR_IP);
        assert_eq!(judge(&mut port, &request), Verdict::Forward);
        takes(&mut port, 9, OWN_IP, NOW);
        assert_eq!(port.poll_transmit(), None, "the server has kept it for the VM");
        takes(&mut port, 10, OTHER_IP, at(601));
        assert_eq!(port.poll_transmit(), None);
        let release = DhcpFrame { from: OTHER_IP, ..DhcpFrame::release().ciaddr(OTHER_IP) };
        assert_eq!(port.from_vm(&release.frame(), at(602)), Verdict::Forward);
        takes(&mut port, 11, OWN_IP, at(603));
        assert_eq!(port.poll_transmit(), None);
        // At the end, the lease that the server may still have for the VM is released.
        let request = DhcpFrame::request().xid(12).address_option(50, OTHER_IP);
        assert_eq!(port.from_vm(&request.frame(), at(604)), Verdict::Forward);
        assert_eq!(port.lease(), None);
        assert!(port.release(at(604)));
        let (_, frame) = port.poll_transmit().unwrap();
        assert_eq!(frame[26..30], OWN_IP.octets());
        assert!(!port.release(at(604)));
    }

    /// C5: an identifier in a message that is dropped for another reason is not counted.
    #[test]
    fn c5_dropped_messages_use_up_no_client_id() {
        let mut port = fresh();
        for n in 0..10 {
            let release = DhcpFrame::client(7).option(61, &[0, n]);
            assert_eq!(judge(&mut port, &release), drop_for(DropReason::DhcpRelease));
        }
        for n in 10..14 {
            let discover = DhcpFrame::discover().option(61, &[0, n]).xid(n.into());
            assert_eq!(judge(&mut port, &discover), Verdict::Forward);
        }
    }

    /// C6: a RELEASE is for the VM's own lease, and ends it at once.
    #[test]
    fn c6_release() {
        let mut port = bound();
        let lease = port.lease().unwrap();
        for frame in
            [DhcpFrame::release().ciaddr(OTHER_IP), DhcpFrame::release().ciaddr(Ipv4Addr::UNSPECIFIED)]
        {
            assert_eq!(judge(&mut port, &frame), drop_for(DropReason::DhcpRelease));
            assert_eq!(port.lease(), Some(lease));
        }
        assert_eq!(judge(&mut port, &DhcpFrame::release()), Verdict::Forward);
        assert_eq!(port.lease(), None);
        assert_eq!(port.poll_event(), Some(PortEvent::Unbound { lease, cause: UnboundCause::Released }));
        assert_eq!(port.from_vm(&IpFrame::udp(WORLD_IP, 80).frame(), NOW), drop_for(DropReason::NoLease));
        let broadcast = DhcpFrame::client(7).ciaddr(OWN_IP);
        assert_eq!(judge(&mut port, &broadcast), drop_for(DropReason::DhcpRelease));
    }

    /// C6: a DECLINE is for the lease or the valid offer, and ends both at once.
    #[test]
    fn c6_decline() {
        let mut port = bound();
        let lease = port.lease().unwrap();
        for frame in
            [DhcpFrame::decline(OTHER_IP), DhcpFrame::client(4), DhcpFrame::decline(Ipv4Addr::UNSPECIFIED)]
        {
            assert_eq!(judge(&mut port, &frame), drop_for(DropReason::DhcpDecline));
            assert_eq!(judge(&mut fresh(), &frame), drop_for(DropReason::DhcpDecline));
        }
        assert_eq!(port.lease(), Some(lease));
        assert_eq!(judge(&mut port, &DhcpFrame::decline(OWN_IP)), Verdict::Forward);
        assert_eq!(port.lease(), None);
        assert_eq!(port.poll_event(), Some(PortEvent::Unbound { lease, cause: UnboundCause::Declined }));
        assert_eq!(judge(&mut port, &DhcpFrame::decline(OWN_IP)), drop_for(DropReason::DhcpDecline));

        let mut port = fresh();
        let _ = judge(&mut port, &DhcpFrame::discover());
        let _ = port.from_host(&DhcpFrame::offer().frame(), NOW);
        assert_eq!(judge(&mut port, &DhcpFrame::decline(OTHER_IP)), drop_for(DropReason::DhcpDecline));
        assert_eq!(judge(&mut port, &DhcpFrame::decline(OWN_IP)), Verdict::Forward);
        assert_eq!(judge(&mut port, &DhcpFrame::decline(OWN_IP)), drop_for(DropReason::DhcpDecline));
        assert_eq!(port.from_vm(&ArpFrame::probe(OWN_IP).frame(), NOW), drop_for(DropReason::ArpNoLease));
        // The VM can get the address again.
        let _ = judge(&mut port, &DhcpFrame::discover());
        assert_eq!(port.from_host(&DhcpFrame::offer().frame(), NOW), Verdict::Forward);
    }

    /// C6: an ACK that crosses the RELEASE or DECLINE on its way would bind an address that the server considers
    /// free; so it is void, and stays so if the VM requests again under the same number.
    #[test]
    fn c6_giving_up_voids_replies_on_their_way() {
        let late = drop_for(DropReason::ReplyTransaction);
        for give_up in [DhcpFrame::release(), DhcpFrame::decline(OWN_IP)] {
            let mut port = bound();
            assert_eq!(judge(&mut port, &DhcpFrame::renewal()), Verdict::Forward);
            assert_eq!(judge(&mut port, &give_up), Verdict::Forward);
            assert_eq!(port.from_host(&DhcpFrame::ack().frame(), NOW), late);
            assert_eq!(judge(&mut port, &DhcpFrame::request()), Verdict::Forward);
            assert_eq!(port.from_host(&DhcpFrame::ack().frame(), NOW), late);
            assert_eq!(port.lease(), None);
            // Other numbers cannot be confused with it.
            assert_eq!(judge(&mut port, &DhcpFrame::request().xid(7)), Verdict::Forward);
            assert_eq!(port.from_host(&DhcpFrame::ack().xid(7).frame(), NOW), Verdict::Forward);
            assert_eq!(port.lease().map(|lease| lease.address), Some(OWN_IP));
        }
        // A DISCOVER with rapid commit may be answered by an ACK.
        let mut port = fresh();
        let _ = judge(&mut port, &DhcpFrame::discover().xid(7));
        let _ = port.from_host(&DhcpFrame::offer().xid(7).frame(), NOW);
        assert_eq!(judge(&mut port, &DhcpFrame::discover().option(80, &[])), Verdict::Forward);
        assert_eq!(judge(&mut port, &DhcpFrame::decline(OWN_IP)), Verdict::Forward);
        assert_eq!(port.from_host(&DhcpFrame::ack().frame(), NOW), late);
    }

    /// C7: a VM that declines all that it is offered does not empty the server's pool.
    #[test]
    fn c7_declines_are_few() {
        let mut port = fresh();
        let mut passed_until = |seconds| {
            let mut passed = 0;
            for second in (seconds - 60..seconds).step_by(2) {
                let now = NOW.saturating_add(core::time::Duration::from_secs(second));
                let id = u32::try_from(second).unwrap();
                assert!(port.from_vm(&DhcpFrame::discover().xid(id).frame(), now).is_forward());
                assert!(port.from_host(&DhcpFrame::offer().xid(id).frame(), now).is_forward());
                let decline = DhcpFrame::decline(OWN_IP).xid(id).frame();
                passed += usize::from(port.from_vm(&decline, now).is_forward());
            }
            passed
        };
        assert_eq!(passed_until(60), 8);
        assert_eq!(passed_until(540), 0);
        assert_eq!(passed_until(660), 1);
        assert_eq!(passed_until(720), 0);
    }

    /// C7: a burst of ten, then one a second; what is dropped anyway does not count.
    #[test]
    fn c7_rate() {
        let mut port = fresh();
        let at = |millis| NOW.saturating_add(core::time::Duration::from_millis(millis));
        for _ in 0..100 {
            let _ = port.from_vm(&DhcpFrame::client(2).frame(), at(0));
        }
        let passed = |port: &mut Port, count, millis| {
            let frame = DhcpFrame::discover().frame();
            (0..count).filter(|_| port.from_vm(&frame, at(millis)).is_forward()).count()
        };
        assert_eq!(passed(&mut port, 100, 0), 10);
        assert_eq!(passed(&mut port, 100, 999), 0);
        assert_eq!(passed(&mut port, 100, 1_000), 1);
        assert_eq!(passed(&mut port, 100, 3_500), 2);
        assert_eq!(passed(&mut port, 100, 4_000), 1);
        assert_eq!(passed(&mut port, 100, 60_000), 10);
        assert_eq!(port.counters().from_vm.dropped(DropReason::DhcpRate), 100 * 6 - 24);
        assert_eq!(port.from_vm(&DhcpFrame::discover().frame(), Timestamp::MAX), Verdict::Forward);
    }
}
