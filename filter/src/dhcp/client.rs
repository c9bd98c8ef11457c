//! What a VM may say to a DHCP server: the rules C.

use core::net::Ipv4Addr;

use crate::dhcp::message::{BOOT_REQUEST, ETHERNET, Message, Options, OptionsError, kind};
use crate::dhcp::state::{Asked, Dhcp};
use crate::dhcp::{CLIENT_PORT, SERVER_PORT};
use crate::frame::Frame;
use crate::ipv4::{Packet, Part, UDP_HEADER_LEN, Udp};
use crate::mac::MacAddr;
use crate::port::{Identity, PortEvent, UnboundCause};
use crate::time::Timestamp;
use crate::verdict::DropReason;

impl Udp {
    /// Whether a datagram of the VM is judged as DHCP: it comes from a server's port or goes to a server's or a
    /// client's. One from port 68 to elsewhere is like any other; its answer is not (B6).
    #[inline(always)]
    pub(crate) fn is_dhcp_from_vm(self) -> bool {
        self.source_port == SERVER_PORT || matches!(self.destination_port, SERVER_PORT | CLIENT_PORT)
    }
}

/// Judges a message, and takes note of it if it passes. The lease in `dhcp` is valid now.
#[cold]
pub(crate) fn judge_from_vm(
    dhcp: &mut Dhcp,
    identity: &Identity,
    frame: &Frame<'_>,
    packet: &Packet<'_>,
    udp: Udp,
    now: Timestamp,
) -> Result<(), DropReason> {
    let own = dhcp.lease().map(|lease| lease.address);

    // C1
    if udp.source_port != CLIENT_PORT || udp.destination_port != SERVER_PORT {
        return Err(DropReason::DhcpPorts);
    }
    let Part::Whole(datagram) = packet.part else {
        return Err(DropReason::DhcpFragment);
    };
    let is_broadcast = packet.destination.is_broadcast() && frame.destination.is_broadcast();
    let is_to_server =
        packet.destination == identity.gateway && frame.destination == identity.gateway_mac && own.is_some();
    if !is_broadcast && !is_to_server {
        return Err(DropReason::DhcpDestination);
    }

    // C2
    let message = datagram.get(UDP_HEADER_LEN..).and_then(Message::parse).ok_or(DropReason::DhcpHeader)?;
    if message.operation != BOOT_REQUEST
        || message.hardware_type != ETHERNET
        || message.hardware_len != 6
        || message.hops != 0
        || !message.relay_address.is_unspecified()
        || !message.has_cookie
    {
        return Err(DropReason::DhcpHeader);
    }
    if MacAddr(message.hardware_address) != identity.vm_mac || !message.is_hardware_padding_zero {
        return Err(DropReason::DhcpHardwareAddress);
    }
    let options = message.options().map_err(|error| match error {
        OptionsError::Malformed => DropReason::DhcpOptions,
        OptionsError::ClientId => DropReason::DhcpClientId,
    })?;

    // C3
    use kind::{DECLINE, DISCOVER, INFORM, RELEASE, REQUEST};
    if !matches!(options.message_type, DISCOVER | REQUEST | DECLINE | RELEASE | INFORM) {
        return Err(DropReason::DhcpMessageType);
    }

    // C4
    let is_own_or_none = |address: Ipv4Addr| address.is_unspecified() || Some(address) == own;
    if !is_own_or_none(packet.source) {
        return Err(DropReason::DhcpSource);
    }
    if !is_own_or_none(message.client_address) {
        return Err(if options.message_type == RELEASE {
            DropReason::DhcpRelease
        } else {
            DropReason::DhcpClientAddress
        });
    }

    // C5
    let known_id = judge_identity(dhcp, identity, &options)?;

    // C6
    match options.message_type {
        // With no lease, `ciaddr` is 0 here.
        RELEASE if own != Some(message.client_address) => return Err(DropReason::DhcpRelease),
        DECLINE => {
            let declined = options.requested_address;
            if declined.is_none() || (declined != own && declined != dhcp.offered(now)) {
                return Err(DropReason::DhcpDecline);
            }
        }
        _ => {}
    }

    // C7. Only what would pass counts, so that garbage cannot keep a VM from its lease.
    if !dhcp.rate.take(now) {
        return Err(DropReason::DhcpRate);
    }

    // The message passes. What does it change?
    let client_id = match (known_id, options.client_id) {
        (Some(number), _) => Some(number),
        (None, Some(id)) => note_client_id(dhcp, id),
        (None, None) => None,
    };
    match options.message_type {
        DISCOVER => dhcp.transactions.open(message.transaction, Asked::Discover, client_id),
        REQUEST => dhcp.transactions.open(message.transaction, Asked::Request, client_id),
        INFORM => dhcp.transactions.open(message.transaction, Asked::Inform, client_id),
        RELEASE => dhcp.give_up(UnboundCause::Released),
        _ => dhcp.give_up(UnboundCause::Declined),
    }
    Ok(())
}

/// C5: judges what a message says about who sends it, and gives the number of its client identifier if that has been
/// used before.
fn judge_identity(dhcp: &Dhcp, identity: &Identity, options: &Options<'_>) -> Result<Option<u8>, DropReason> {
    if options.has_relay_agent {
        return Err(DropReason::DhcpRelayOption);
    }
    if options.has_overload {
        return Err(DropReason::DhcpOverload);
    }
    let Some(id) = options.client_id else {
        return Ok(None);
    };
    if !is_own_or_opaque(id, identity.vm_mac) {
        return Err(DropReason::DhcpClientIdForeign);
    }
    match dhcp.client_ids.find(id) {
        Some(number) => Ok(Some(number)),
        None if dhcp.client_ids.has_room() => Ok(None),
        None => Err(DropReason::DhcpClientIdLimit),
    }
}

fn note_client_id(dhcp: &mut Dhcp, id: &[u8]) -> Option<u8> {
    let number = dhcp.client_ids.add(id);
    let used = dhcp.client_ids.used();
    if used > 1 {
        dhcp.push_event(PortEvent::ClientIdChanged { used });
    }
    number
}

/// The last hardware type that IANA has assigned below the letters and digits of ASCII. RFC 2132 makes any type from
/// 1 to 254 a hardware type, but clients that a person configured send a bare text, which begins above these.
const LAST_HARDWARE_TYPE: u8 = 38;

/// Whether a client identifier names the MAC address `own`, or none at all (C5).
///
/// A server files a lease under the identifier, so whoever names another VM's MAC address in it wins that VM's
/// address.
fn is_own_or_opaque(id: &[u8], own: MacAddr) -> bool {
    let own = own.octets();
    match id {
        // A hardware type and address (RFC 2132, section 9.14).
        [1..=LAST_HARDWARE_TYPE, address @ ..] => address == own,
        [255, rest @ ..] => match (duid_address(rest), rest) {
            // Some clients send the DUID alone,
            (Some(address), _) => address == own,
            // but it belongs behind an identity association (RFC 4361, section 6.1).
            (None, [_, _, _, _, duid @ ..]) => match (duid_address(duid), duid) {
                (Some(address), _) => address == own,
                // Based on a link-layer address, but not on one of Ethernet.
                (None, [0, 1 | 3, ..]) => false,
                (None, _) => true,
            },
            (None, _) => true,
        },
        // A bare DUID begins with a zero, and so does a name.
        _ => duid_address(id).is_none_or(|address| address == own),
    }
}

/// The Ethernet address on which a DUID is based: with (1) or without (3) a time (RFC 8415, sections 11.2 and 11.4).
fn duid_address(duid: &[u8]) -> Option<[u8; 6]> {
    match duid {
        [0, 1, 0, 1, _, _, _, _, address @ ..] | [0, 3, 0, 1, address @ ..] => address.try_into().ok(),
        _ => None,
    }
}
