//! What a DHCP server may say to the VM, and what is believed of it: the rules B.

use core::net::Ipv4Addr;
use core::time::Duration;

use crate::checksum;
use crate::dhcp::SERVER_PORT;
use crate::dhcp::message::{BOOT_REPLY, Message, Options, kind};
use crate::dhcp::state::{Dhcp, Transaction};
use crate::frame::Frame;
use crate::ipv4::{Packet, Part, UDP_HEADER_LEN, Udp};
use crate::lease::{Lease, Resolvers};
use crate::mac::MacAddr;
use crate::port::Identity;
use crate::time::Timestamp;
use crate::verdict::DropReason;

/// A lease time that never ends (RFC 2131, section 3.3).
const INFINITE: u32 = 0xffff_ffff;

/// Judges a datagram for the port of a DHCP client, whatever is in it, and learns from it if it passes. A client may
/// read such a datagram as DHCP, wherever it comes from, so none passes that fails B1 (B6).
#[cold]
pub(crate) fn judge_from_host(
    dhcp: &mut Dhcp,
    identity: &Identity,
    frame: &Frame<'_>,
    packet: &Packet<'_>,
    udp: Udp,
    now: Timestamp,
) -> Result<(), DropReason> {
    // B1
    if frame.source != identity.gateway_mac
        || packet.source != identity.gateway
        || udp.source_port != SERVER_PORT
    {
        return Err(DropReason::ReplyServer);
    }
    let Part::Whole(payload) = packet.part else {
        return Err(DropReason::ReplyFragment);
    };
    let message = verified_payload(packet, payload)?;
    if frame.destination != identity.vm_mac && !frame.destination.is_broadcast() {
        return Err(DropReason::ReplyDestination);
    }
    let message = Message::parse(message).ok_or(DropReason::ReplyHeader)?;
    if message.operation != BOOT_REPLY || message.hardware_len != 6 || !message.has_cookie {
        return Err(DropReason::ReplyHeader);
    }
    if MacAddr(message.hardware_address) != identity.vm_mac {
        return Err(DropReason::ReplyHardwareAddress);
    }
    let transaction = *dhcp.transactions.find(message.transaction).ok_or(DropReason::ReplyTransaction)?;
    // B3
    let options = message.options().map_err(|_| DropReason::ReplyOptions)?;
    if options.server != Some(identity.gateway) {
        return Err(DropReason::ReplyServer);
    }
    let is_to = |address: Ipv4Addr| packet.destination == address || packet.destination.is_broadcast();

    // B3: an ACK to an INFORM tells options, and nothing about an address.
    if options.message_type == kind::ACK && transaction.is_inform && message.your_address.is_unspecified() {
        let own = dhcp.lease().map_or(Ipv4Addr::BROADCAST, |lease| lease.address);
        if !is_to(own) {
            return Err(DropReason::ReplyDestination);
        }
        if options.lease_time.is_some() {
            return Err(DropReason::ReplyLeaseTime);
        }
        dhcp.transactions.close(message.transaction);
        return Ok(());
    }
    if !transaction.is_for_address {
        return Err(DropReason::ReplyTransaction);
    }
    if !is_to(message.your_address) {
        return Err(DropReason::ReplyDestination);
    }
    match options.message_type {
        kind::OFFER => {
            judge_address(identity, message.your_address)?;
            dhcp.offer(message.your_address, now);
            Ok(())
        }
        kind::ACK => learn(dhcp, identity, &message, &options, transaction, now),
        kind::NAK => {
            dhcp.refuse();
            dhcp.transactions.close(message.transaction);
            Ok(())
        }
        _ => Err(DropReason::ReplyType),
    }
}

/// B5: an ACK that passes replaces the binding.
fn learn(
    dhcp: &mut Dhcp,
    identity: &Identity,
    message: &Message<'_>,
    options: &Options<'_>,
    transaction: Transaction,
    now: Timestamp,
) -> Result<(), DropReason> {
    judge_address(identity, message.your_address)?;
    // B3, B4
    let expires = match options.lease_time {
        None | Some(0) => return Err(DropReason::ReplyLeaseTime),
        Some(INFINITE) => None,
        Some(seconds) => Some(now.saturating_add(Duration::from_secs(u64::from(seconds)))),
    };
    let (resolvers, _) = options.resolvers.as_chunks::<4>();
    let resolvers = resolvers
        .iter()
        .map(|octets| Ipv4Addr::from(*octets))
        .filter(|resolver| identity.is_sane_resolver(*resolver) && *resolver != message.your_address);
    let lease = Lease {
        address: message.your_address,
        server: identity.gateway,
        expires,
        resolvers: Resolvers::from_iter(resolvers),
    };
    dhcp.transactions.close(message.transaction);
    dhcp.bind(lease, transaction.client_id);
    Ok(())
}

/// B1: the bytes behind the UDP header, if lengths and checksums are right. A checksum of 0, which says that there is
/// none, is not: the servers that are known always send one.
fn verified_payload<'a>(packet: &Packet<'a>, payload: &'a [u8]) -> Result<&'a [u8], DropReason> {
    let &[_, _, _, _, l0, l1, c0, c1] =
        payload.first_chunk::<UDP_HEADER_LEN>().ok_or(DropReason::ReplyHeader)?;
    if usize::from(u16::from_be_bytes([l0, l1])) != payload.len() {
        return Err(DropReason::ReplyHeader);
    }
    let sum = checksum::udp(packet.source.octets(), packet.destination.octets(), payload);
    if [c0, c1] == [0, 0] || !sum.is_valid() || !packet.is_checksum_valid() {
        return Err(DropReason::ReplyChecksum);
    }
    payload.get(UDP_HEADER_LEN..).ok_or(DropReason::ReplyHeader)
}

/// B2
fn judge_address(identity: &Identity, address: Ipv4Addr) -> Result<(), DropReason> {
    if identity.may_be_leased(address) { Ok(()) } else { Err(DropReason::ReplyAddress) }
}
