//! Where a VM may send: the rules D, and L5, which binds the frame's destination to the packet's.

use core::net::Ipv4Addr;

use crate::frame::Frame;
use crate::icmp;
use crate::ipv4::{self, Packet, Transport, Udp};
use crate::lease::Lease;
use crate::mac::MacAddr;
use crate::port::Identity;
use crate::table::{Class, Table};
use crate::verdict::DropReason;

const DNS_PORT: u16 = 53;

/// Judges the destination of a packet that comes from the VM's own address and is not DHCP.
#[inline(always)]
pub(crate) fn judge(
    table: &Table,
    identity: &Identity,
    lease: &Lease,
    frame: &Frame<'_>,
    packet: &Packet<'_>,
    transport: Transport<'_>,
) -> Result<(), DropReason> {
    // D6: whoever it goes to.
    if let Transport::Icmp(message) = transport {
        icmp::judge(message, lease.address)?;
    }
    match table.classify(packet.destination) {
        // D3, D4. The way into the world is the gateway.
        Class::World if frame.destination == identity.gateway_mac && !packet.is_fragment() => Ok(()),
        class => judge_closely(class, identity, lease, frame, packet, transport),
    }
}

/// All but a whole packet for the world.
fn judge_closely(
    class: Class,
    identity: &Identity,
    lease: &Lease,
    frame: &Frame<'_>,
    packet: &Packet<'_>,
    transport: Transport<'_>,
) -> Result<(), DropReason> {
    let destination = packet.destination;
    let is_resolver = lease.resolvers.contains(destination);
    let is_dns = match transport {
        Transport::Tcp { destination_port } | Transport::Udp(Udp { destination_port, .. }) => {
            destination_port == DNS_PORT
        }
        Transport::Icmp(_) | Transport::Opaque => false,
    };

    // D1: the own address is wherever the lease says.
    if destination == lease.address {
        return Err(DropReason::NeverDestination);
    }
    let closed = match class {
        Class::World | Class::Allowed => None,
        // D4
        Class::Gateway if matches!(packet.protocol, ipv4::ICMP | ipv4::TCP | ipv4::UDP) => None,
        Class::Gateway => Some(DropReason::GatewayProtocol),
        // D2: a block wins over D5, since D5 is for what no rule matches.
        Class::Blocked => return Err(DropReason::Blocked),
        Class::Never => return Err(DropReason::NeverDestination),
        // D9 before D5: a network without a world has no resolver out there either.
        Class::HostOnly => return Err(DropReason::HostOnly),
        Class::NotGlobal => Some(DropReason::NotGlobal),
        Class::Multicast => Some(DropReason::Multicast),
        Class::Neighbour => Some(DropReason::Neighbour),
    };
    let is_on_link = identity.is_on_link(destination);

    // S4: nobody can say for what port a later fragment is, and neighbours have been crashed by worse.
    if packet.is_fragment() && (is_on_link || is_resolver) {
        return Err(DropReason::FragmentRestricted);
    }
    // D5
    if let Some(reason) = closed
        && !(is_resolver && is_dns)
    {
        return Err(if is_resolver { DropReason::ResolverPort } else { reason });
    }

    // L5
    if destination.is_multicast() {
        return if frame.destination == multicast_mac(destination) {
            Ok(())
        } else {
            Err(DropReason::MulticastMac)
        };
    }
    let is_neighbour = is_on_link && destination != identity.gateway;
    if frame.destination == identity.gateway_mac || (is_neighbour && identity.may_be_peer(frame.destination))
    {
        Ok(())
    } else if frame.destination.is_group() {
        Err(DropReason::GroupMac)
    } else {
        Err(DropReason::DestinationMac)
    }
}

/// The MAC address of an IPv4 multicast group (RFC 1112, section 6.4).
fn multicast_mac(group: Ipv4Addr) -> MacAddr {
    let [_, b, c, d] = group.octets();
    MacAddr([0x01, 0x00, 0x5e, b & 0x7f, c, d])
}
