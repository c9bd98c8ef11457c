//! Address resolution (RFC 826), the rules A and I3.

pub(crate) use softnet_wire::arp::{Arp, LEN, REPLY, REQUEST};

use crate::binding::Bindings;
use crate::binding::dhcpv4::Renewable;
use crate::config::Station;
use crate::destination::Destinations;
use crate::flow::Tracker;
use crate::frame::Frame;
use crate::l2;
use crate::lease::Lease;
use crate::segment::Segment;
use crate::time::Timestamp;
use crate::verdict::DropReason;

/// What opens a neighbour to the VM.
#[derive(Debug)]
pub(crate) struct Reach<'a> {
    pub(crate) destinations: &'a Destinations,
    pub(crate) tracker: &'a mut Tracker,
}

/// A1: ARP for IPv4 over Ethernet, of full length.
#[inline(always)]
pub(crate) fn judge_format(bytes: &[u8]) -> Result<Arp<'_>, DropReason> {
    Arp::parse(bytes).ok_or(DropReason::ArpMalformed)
}

/// Judges ARP of the VM, whose `bindings` are valid now.
#[inline(always)]
pub(crate) fn judge_from_vm(
    arp: Arp<'_>,
    frame: Frame<'_>,
    segment: &Segment,
    reach: Reach<'_>,
    bindings: &Bindings,
    now: Timestamp,
) -> Result<(), DropReason> {
    judge_operation(arp)?;
    l2::judge_arp_destination(frame, segment)?;
    judge_sender_mac(arp, segment)?;
    // A3, A5: the request that a VM sends most often.
    match bindings.ipv4() {
        Some(lease) if arp.sender() == lease.address && arp.target() == segment.router.address => Ok(()),
        _ => judge_addresses(arp, frame, segment, reach, bindings, now),
    }
}

/// A1: a request or a reply.
#[inline(always)]
fn judge_operation(arp: Arp<'_>) -> Result<(), DropReason> {
    if matches!(arp.operation(), REQUEST | REPLY) { Ok(()) } else { Err(DropReason::ArpMalformed) }
}

/// A2: the sender is the VM.
#[inline(always)]
fn judge_sender_mac(arp: Arp<'_>, segment: &Segment) -> Result<(), DropReason> {
    if arp.sender_mac() == segment.vm_mac { Ok(()) } else { Err(DropReason::ArpSenderMac) }
}

/// A3 to A5: everything but the VM's request for the router.
#[cold]
fn judge_addresses(
    arp: Arp<'_>,
    frame: Frame<'_>,
    segment: &Segment,
    reach: Reach<'_>,
    bindings: &Bindings,
    now: Timestamp,
) -> Result<(), DropReason> {
    // A3, A4: whether another host has the address that the VM is about to use (RFC 5227, section 2.1.1).
    let is_probe = arp.operation() == REQUEST && arp.sender().is_unspecified();
    if is_probe && Some(arp.target()) == bindings.dhcpv4.offered(now) {
        return Ok(());
    }
    let Some(lease) = bindings.ipv4() else {
        return judge_without_lease(arp, frame, segment, bindings);
    };
    if is_probe {
        return judge_probe(arp, lease);
    }
    judge_sender(arp, lease)?;
    judge_target(arp, segment, reach, lease, bindings.ipv4_number(), now)
}

/// A4, C10: the VM needs the DHCP server's MAC address, and the server the VM's, to renew a lease that has just
/// expired.
fn judge_without_lease(
    arp: Arp<'_>,
    frame: Frame<'_>,
    segment: &Segment,
    bindings: &Bindings,
) -> Result<(), DropReason> {
    let server = segment.dhcp_server;
    let is_last = bindings.dhcpv4.renewable() == Renewable::Expired(arp.sender());
    let is_to_server = arp.operation() == REQUEST || frame.destination() == server.mac;
    if is_last && is_to_server && arp.target() == server.address {
        Ok(())
    } else {
        Err(DropReason::ArpNoLease)
    }
}

/// A3: a probe is for the VM's own address.
fn judge_probe(arp: Arp<'_>, lease: &Lease) -> Result<(), DropReason> {
    if arp.target() == lease.address { Ok(()) } else { Err(DropReason::ArpTarget) }
}

/// A3: the sender's address is the VM's.
fn judge_sender(arp: Arp<'_>, lease: &Lease) -> Result<(), DropReason> {
    if arp.sender() == lease.address { Ok(()) } else { Err(DropReason::ArpSenderAddress) }
}

/// A5, F2: a request is for a host that the VM needs or may reach, or that has reached the VM. A reply may be sent to any
/// host, since it only reports the VM's own address correctly.
fn judge_target(
    arp: Arp<'_>,
    segment: &Segment,
    Reach { destinations, tracker }: Reach<'_>,
    lease: &Lease,
    lease_number: u32,
    now: Timestamp,
) -> Result<(), DropReason> {
    let target = arp.target();
    if arp.operation() == REPLY
        || segment.is_served_from(target)
        || target == lease.address
        || lease.resolvers.contains(target)
        || (segment.is_on_link(target)
            && (destinations.is_allowed(target) || tracker.has_peer(destinations, target, lease_number, now)))
    {
        Ok(())
    } else {
        Err(DropReason::ArpTarget)
    }
}

/// I3: on the way to the VM, only the router and the DHCP server claim their own addresses. A function of its own, to
/// keep the code for IPv4 short.
#[cold]
pub(crate) fn judge_from_host(frame: Frame<'_>, segment: &Segment) -> Result<(), DropReason> {
    // I4
    let arp = Arp::parse(frame.payload()).ok_or(DropReason::HostMalformed)?;
    let is_claimed = |station: Station| {
        arp.sender() == station.address && (arp.sender_mac() != station.mac || frame.source() != station.mac)
    };
    if is_claimed(segment.router) || is_claimed(segment.dhcp_server) {
        return Err(DropReason::ArpGateway);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use core::net::Ipv4Addr;

    use softnet_wire::MacAddr;

    use super::*;
    use crate::testing::*;
    use crate::verdict::Verdict;

    fn reply(target: Ipv4Addr) -> ArpFrame {
        ArpFrame { operation: REPLY, to_mac: STRANGER, ..ArpFrame::request(target) }
    }

    /// A1: every field of the fixed part has one value, and the packet its full length.
    #[test]
    fn a1_other_arp_is_dropped() {
        let mut port = bound();
        let frame = ArpFrame::request(GATEWAY_IP).frame();
        assert_eq!(port.from_vm(&frame, NOW), Verdict::Forward);
        for at in 14..20 {
            for value in 0..=255 {
                let mut frame = frame.clone();
                if frame[at] != value {
                    frame[at] = value;
                    assert_eq!(
                        port.from_vm(&frame, NOW),
                        drop_for(DropReason::ArpMalformed),
                        "{at}: {value}"
                    );
                }
            }
        }
        for operation in 0..=u16::MAX {
            let frame = ArpFrame { operation, ..ArpFrame::request(GATEWAY_IP) }.frame();
            let expected = if matches!(operation, 1 | 2) {
                Verdict::Forward
            } else {
                drop_for(DropReason::ArpMalformed)
            };
            assert_eq!(port.from_vm(&frame, NOW), expected, "{operation}");
        }
        for len in 14..42 {
            assert_eq!(port.from_vm(&frame[..len], NOW), drop_for(DropReason::ArpMalformed), "{len}");
        }
    }

    /// A2: the sender is the frame's source, which is the VM (L1).
    #[test]
    fn a2_foreign_sender_hardware_address_is_dropped() {
        let mut port = bound();
        for mac in [STRANGER, GATEWAY, MacAddr::ZERO, MacAddr::BROADCAST] {
            let arp = ArpFrame { sender_mac: mac, ..ArpFrame::request(GATEWAY_IP) };
            assert_eq!(port.from_vm(&arp.frame(), NOW), drop_for(DropReason::ArpSenderMac));
            let arp = ArpFrame { from_mac: mac, ..arp };
            assert_eq!(port.from_vm(&arp.frame(), NOW), drop_for(DropReason::SourceMac));
            let probe = ArpFrame { sender_mac: mac, ..ArpFrame::probe(OWN_IP) };
            assert_eq!(port.from_vm(&probe.frame(), NOW), drop_for(DropReason::ArpSenderMac));
        }
    }

    /// A3: no other address than the VM's as the sender, in requests or replies.
    #[test]
    fn a3_foreign_sender_protocol_address_is_dropped() {
        let mut port = bound();
        for sender in [GATEWAY_IP, NEIGHBOUR_IP, Ipv4Addr::BROADCAST] {
            for arp in [ArpFrame::request(GATEWAY_IP), reply(GATEWAY_IP), ArpFrame::request(sender)] {
                let arp = ArpFrame { sender, ..arp };
                assert_eq!(port.from_vm(&arp.frame(), NOW), drop_for(DropReason::ArpSenderAddress));
            }
        }
        let arp = ArpFrame { sender: Ipv4Addr::UNSPECIFIED, ..reply(OWN_IP) };
        assert_eq!(port.from_vm(&arp.frame(), NOW), drop_for(DropReason::ArpSenderAddress));
    }

    /// A3: a probe of the VM's own address passes, and of the one just offered, and of no other.
    #[test]
    fn a3_probe_is_for_the_own_or_offered_address() {
        let mut port = bound();
        assert_eq!(port.from_vm(&ArpFrame::probe(OWN_IP).frame(), NOW), Verdict::Forward);
        for target in [GATEWAY_IP, OTHER_IP, NEIGHBOUR_IP, RESOLVER_IP] {
            assert_eq!(port.from_vm(&ArpFrame::probe(target).frame(), NOW), drop_for(DropReason::ArpTarget));
        }
        let _ = port.from_vm(&DhcpFrame::discover().frame(), NOW);
        let _ =
            port.from_host(&DhcpFrame { to: OTHER_IP, ..DhcpFrame::offer().yiaddr(OTHER_IP) }.frame(), NOW);
        assert_eq!(port.from_vm(&ArpFrame::probe(OTHER_IP).frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_vm(&ArpFrame::probe(OWN_IP).frame(), NOW), Verdict::Forward);
        // The offer expires.
        let later = |secs| NOW.saturating_add(core::time::Duration::from_secs(secs));
        assert_eq!(port.from_vm(&ArpFrame::probe(OTHER_IP).frame(), later(59)), Verdict::Forward);
        assert_eq!(
            port.from_vm(&ArpFrame::probe(OTHER_IP).frame(), later(60)),
            drop_for(DropReason::ArpTarget)
        );
    }

    /// A4: without a lease nothing but the probe of an offered address.
    #[test]
    fn a4_no_arp_without_a_lease() {
        let mut port = fresh();
        let no_lease = drop_for(DropReason::ArpNoLease);
        let requests = [GATEWAY_IP, OWN_IP, Ipv4Addr::UNSPECIFIED].map(ArpFrame::request);
        let probes = [GATEWAY_IP, OWN_IP, Ipv4Addr::UNSPECIFIED].map(ArpFrame::probe);
        for arp in requests.iter().chain(&probes).chain(&[reply(GATEWAY_IP), reply(OWN_IP)]) {
            assert_eq!(port.from_vm(&arp.frame(), NOW), no_lease);
        }
        let _ = port.from_vm(&DhcpFrame::discover().frame(), NOW);
        let _ = port.from_host(&DhcpFrame::offer().frame(), NOW);
        assert_eq!(port.from_vm(&ArpFrame::probe(OWN_IP).frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_vm(&ArpFrame::probe(OTHER_IP).frame(), NOW), no_lease);
        assert_eq!(port.from_vm(&ArpFrame::request(GATEWAY_IP).frame(), NOW), no_lease);
        let reply = ArpFrame { operation: REPLY, ..ArpFrame::probe(OWN_IP) };
        assert_eq!(port.from_vm(&reply.frame(), NOW), no_lease);
    }

    /// A5: the target of a request is the gateway, a resolver, the VM's own address, or a neighbour that is allowed
    /// by name.
    #[test]
    fn a5_requests_do_not_scan() {
        let mut port = bound_with(&["192.168.64.64/26", "10.0.0.0/8"], &["192.168.64.78"]);
        let world = Ipv4Addr::new(10, 1, 1, 1);
        let blocked = Ipv4Addr::new(192, 168, 64, 78);
        for target in [GATEWAY_IP, RESOLVER_IP, OWN_IP, NEIGHBOUR_IP] {
            assert_eq!(port.from_vm(&ArpFrame::request(target).frame(), NOW), Verdict::Forward, "{target}");
        }
        for target in [OTHER_IP, blocked, WORLD_IP, world, Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST] {
            let verdict = port.from_vm(&ArpFrame::request(target).frame(), NOW);
            assert_eq!(verdict, drop_for(DropReason::ArpTarget), "{target}");
        }
        let request = ArpFrame::request(NEIGHBOUR_IP).frame();
        assert_eq!(bound().from_vm(&request, NOW), drop_for(DropReason::ArpTarget));
        // A reply may be sent to any host.
        assert_eq!(bound().from_vm(&reply(NEIGHBOUR_IP).frame(), NOW), Verdict::Forward);
        assert_eq!(bound().from_vm(&reply(GATEWAY_IP).frame(), NOW), Verdict::Forward);
    }

    /// D7, A5: the VM finds its DHCP server even where every destination is blocked.
    #[test]
    fn a5_gateway_is_found_under_any_block() {
        let mut port = bound_with(&[], &["0.0.0.0/0", "@host"]);
        assert_eq!(port.from_vm(&ArpFrame::request(GATEWAY_IP).frame(), NOW), Verdict::Forward);
    }

    /// L5: ARP is for one station or for all.
    #[test]
    fn l5_arp_is_not_for_groups() {
        let mut port = bound();
        for (mac, expected) in [
            (MacAddr::BROADCAST, Verdict::Forward),
            (GATEWAY, Verdict::Forward),
            (STRANGER, Verdict::Forward),
            (MacAddr([0x01, 0x80, 0xc2, 0, 0, 0]), drop_for(DropReason::GroupMac)),
            (MacAddr([0x01, 0x00, 0x5e, 0, 0, 1]), drop_for(DropReason::GroupMac)),
            (MacAddr::ZERO, drop_for(DropReason::DestinationMac)),
            (VM, drop_for(DropReason::DestinationMac)),
        ] {
            let arp = ArpFrame { to_mac: mac, ..ArpFrame::request(GATEWAY_IP) };
            assert_eq!(port.from_vm(&arp.frame(), NOW), expected, "{mac}");
        }
    }

    /// I3: only the gateway claims the gateway's address, in both fields that name the sender.
    #[test]
    fn i3_gateway_cannot_be_claimed() {
        let mut port = bound();
        let claim = |from_mac, sender_mac, operation, to_mac| {
            let arp =
                ArpFrame { to_mac, from_mac, operation, sender_mac, sender: GATEWAY_IP, target: OWN_IP };
            arp.frame()
        };
        for operation in [REQUEST, REPLY, 9] {
            for to_mac in [VM, MacAddr::BROADCAST] {
                let own = claim(GATEWAY, GATEWAY, operation, to_mac);
                assert_eq!(port.from_host(&own, NOW), Verdict::Forward);
                for (from_mac, sender_mac) in
                    [(STRANGER, STRANGER), (GATEWAY, STRANGER), (STRANGER, GATEWAY), (VM, VM)]
                {
                    let forged = claim(from_mac, sender_mac, operation, to_mac);
                    assert_eq!(port.from_host(&forged, NOW), drop_for(DropReason::ArpGateway));
                }
            }
        }
        // A neighbour may claim its own address.
        let neighbour = ArpFrame {
            to_mac: MacAddr::BROADCAST,
            from_mac: STRANGER,
            operation: REQUEST,
            sender_mac: STRANGER,
            sender: NEIGHBOUR_IP,
            target: OWN_IP,
        };
        assert_eq!(port.from_host(&neighbour.frame(), NOW), Verdict::Forward);
    }
}
