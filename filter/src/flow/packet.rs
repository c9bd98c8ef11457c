//! A packet as the flows see it (F1): to which flow it belongs, and what it does to it.

use core::net::Ipv4Addr;

use softnet_wire::icmpv4;

use crate::flow::table::Key;
use crate::ipv4::{self, Packet, Tcp, Transport};
use crate::policy::entry::Origin;

/// What a packet does to its flow.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind<'a> {
    Tcp(Tcp<'a>),
    Udp,
    EchoRequest,
    EchoReply,
    /// Another protocol.
    Other,
}

/// A packet that is no ICMP error and no later fragment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen<'a> {
    pub(crate) key: Key,
    pub(crate) kind: Kind<'a>,
}

/// What a packet has to do with flows.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Relation<'a> {
    /// It is one of a flow, or could begin one.
    Of(Seen<'a>),
    /// It is an ICMP message that is no echo. An error is about a packet that `source` sent, of this flow if the quote shows it.
    Icmp { source: Ipv4Addr, flow: Option<Key> },
}

/// What the packet that `sender` sent has to do with flows.
#[inline(always)]
pub(crate) fn relation<'a>(sender: Origin, packet: Packet<'a>, transport: Transport<'a>) -> Relation<'a> {
    let peer = match sender {
        Origin::Vm => packet.destination(),
        Origin::Outside => packet.source(),
    };
    let key = |source: u16, destination: u16| match sender {
        Origin::Vm => Key::new(peer, packet.protocol(), source, destination),
        Origin::Outside => Key::new(peer, packet.protocol(), destination, source),
    };
    let (key, kind) = match transport {
        Transport::Tcp(tcp) => (key(tcp.source_port(), tcp.destination_port()), Kind::Tcp(tcp)),
        Transport::Udp(udp) => (key(udp.source_port, udp.destination_port), Kind::Udp),
        Transport::Icmp(message) => return relation_of_icmp(sender, peer, message),
        Transport::Opaque => (key(0, 0), Kind::Other),
    };
    Relation::Of(Seen { key, kind })
}

#[cold]
fn relation_of_icmp<'a>(sender: Origin, peer: Ipv4Addr, message: &[u8]) -> Relation<'a> {
    const ALONE: Relation<'_> = Relation::Icmp { source: Ipv4Addr::UNSPECIFIED, flow: None };
    let Some(&[kind, _, _, _, i0, i1]) = message.first_chunk() else { return ALONE };
    let echo = |kind| {
        let identifier = u16::from_be_bytes([i0, i1]);
        Relation::Of(Seen { key: Key::new(peer, ipv4::ICMP, identifier, 0), kind })
    };
    match kind {
        icmpv4::ECHO => echo(Kind::EchoRequest),
        icmpv4::ECHO_REPLY => echo(Kind::EchoReply),
        icmpv4::DESTINATION_UNREACHABLE | icmpv4::TIME_EXCEEDED | icmpv4::PARAMETER_PROBLEM => {
            let quote = icmpv4::Quote::of(message);
            quote.map_or(ALONE, |quote| Relation::Icmp {
                source: quote.source,
                flow: quoted_flow(sender, &quote),
            })
        }
        _ => ALONE,
    }
}

/// The flow of a quoted packet, which went the other way than the error of `sender`.
fn quoted_flow(sender: Origin, quote: &icmpv4::Quote) -> Option<Key> {
    let [a, b, c, d, e, f, ..] = quote.data?;
    let (source, destination) = match quote.protocol {
        ipv4::TCP | ipv4::UDP => (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])),
        ipv4::ICMP if matches!(a, icmpv4::ECHO | icmpv4::ECHO_REPLY) => {
            let identifier = u16::from_be_bytes([e, f]);
            let peer = if sender == Origin::Vm { quote.source } else { quote.destination };
            return Some(Key::new(peer, ipv4::ICMP, identifier, 0));
        }
        ipv4::ICMP => return None,
        _ => (0, 0),
    };
    Some(match sender {
        Origin::Vm => Key::new(quote.source, quote.protocol, destination, source),
        Origin::Outside => Key::new(quote.destination, quote.protocol, source, destination),
    })
}
