//! Why a packet would pass or not: for people who ask, not for packets.

use core::net::Ipv4Addr;

use crate::answer::{self, Answers};
use crate::binding::dhcpv4;
use crate::destination::{Destination, Destinations};
use crate::ipv4::{self, Udp};
use crate::lease::{Lease, Resolvers};
use crate::policy::entry::Origin;
use crate::segment::Segment;
use crate::verdict::{DropReason, Verdict};
use softnet_wire::dhcpv4::CLIENT_PORT;

/// What somebody wants to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// Who would begin.
    pub origin: Origin,
    /// The address of the other side.
    pub peer: Ipv4Addr,
    /// The number of the protocol.
    pub protocol: u8,
    /// The peer's port, if the protocol has ports.
    pub port: Option<u16>,
    /// The VM's port, if the protocol has ports and it matters: the host may publish it (rule P4).
    pub own_port: Option<u16>,
}

/// Why a packet would pass or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Explanation {
    /// What would happen to it.
    pub verdict: Verdict,
    /// What decides that.
    pub decider: Decider,
    /// What the VM would hear.
    pub answer: OwnAnswer,
}

/// What decides about a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decider {
    /// An entry: the one at this index of [`Policy::rules`](crate::Policy::rules).
    Entry(usize),
    /// A rule that holds where no entry matches, or whatever the entries say, such as `D3`.
    Rule(&'static str),
}

/// What Softnet itself would answer to the VM (rule J1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnAnswer {
    /// Nothing.
    Nothing,
    /// A TCP RST: the program of the VM hears "connection refused".
    Reset,
    /// An ICMP error: the program of the VM hears "prohibited".
    Prohibited,
}

pub(crate) fn explain(
    segment: &Segment,
    destinations: &Destinations,
    lease: Option<&Lease>,
    answers: &Answers,
    question: &Question,
) -> Explanation {
    let Question { origin, peer, protocol, port, own_port } = *question;
    let judgement = match origin {
        Origin::Vm if is_dhcp_from_vm(segment, question) => Err(DropReason::DhcpPorts),
        Origin::Outside if protocol == ipv4::UDP && own_port == Some(CLIENT_PORT) => {
            Err(DropReason::ReplyServer)
        }
        Origin::Vm => {
            // Without a lease nobody knows the resolvers, or the VM's own address.
            let nobody = Lease {
                address: Ipv4Addr::UNSPECIFIED,
                server: segment.dhcp_server.address,
                expires: None,
                resolvers: Resolvers::default(),
            };
            let to = Destination { address: peer, protocol, port, is_fragment: false };
            destinations.judge_peer(segment, lease.unwrap_or(&nobody), to)
        }
        Origin::Outside => destinations.judge_incoming(peer, protocol, port, own_port),
    };
    let answer = match judgement {
        Err(reason) if origin == Origin::Vm && answer::is_refusal(reason) && answers.answers_refusals() => {
            answer_of(segment, peer, protocol)
        }
        _ => OwnAnswer::Nothing,
    };
    let verdict = match judgement {
        Ok(()) => Verdict::Forward,
        Err(reason) => Verdict::Drop(reason),
    };
    Explanation { verdict, decider: decider(destinations, segment, judgement, question), answer }
}

/// C1: whether a datagram of the VM would have to be DHCP, and so to come from its client's port.
fn is_dhcp_from_vm(segment: &Segment, question: &Question) -> bool {
    let Question { peer, protocol, port, .. } = *question;
    let datagram = |destination_port| Udp { source_port: 0, destination_port };
    protocol == ipv4::UDP && port.is_some_and(|port| dhcpv4::is_dhcp_from_vm(segment, peer, datagram(port)))
}

fn answer_of(segment: &Segment, peer: Ipv4Addr, protocol: u8) -> OwnAnswer {
    if peer.is_multicast() || segment.is_broadcast(peer) {
        OwnAnswer::Nothing
    } else if protocol == ipv4::TCP {
        OwnAnswer::Reset
    } else {
        OwnAnswer::Prohibited
    }
}

/// The entry or the rule behind a judgement.
fn decider(
    destinations: &Destinations,
    segment: &Segment,
    judgement: Result<(), DropReason>,
    question: &Question,
) -> Decider {
    let Question { origin, peer, protocol, port, .. } = *question;
    let entry = destinations.deciding_entry(origin, peer, protocol, port);
    match (judgement, entry) {
        (Err(DropReason::Blocked | DropReason::IncomingBlocked), Some(entry)) => Decider::Entry(entry.index),
        // P4: the block of everything does not close a published port.
        (Ok(()), Some(entry)) if entry.blocks => Decider::Rule("P4"),
        (Ok(()), Some(entry)) => Decider::Entry(entry.index),
        (Err(reason), _) => Decider::Rule(reason.rule()),
        (Ok(()), None) if origin == Origin::Outside => Decider::Rule("P4"),
        (Ok(()), None) if peer == segment.router.address => Decider::Rule("D4"),
        (Ok(()), None) if destinations.is_host_address(peer) => Decider::Rule("H1"),
        (Ok(()), None) if destinations.is_global(peer) => Decider::Rule("D3"),
        (Ok(()), None) => Decider::Rule("D5"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;
    use crate::{OnBlock, PortConfig, PublishedPort};

    fn question(peer: Ipv4Addr, protocol: u8, port: Option<u16>) -> Question {
        Question { origin: Origin::Vm, peer, protocol, port, own_port: None }
    }

    /// P2: the entry that decides is named, or the rule that holds without one.
    #[test]
    fn p2_the_deciding_entry_is_named() {
        let port = bound_with(
            &["9.0.0.0/8:443/tcp", "@private", "@internet"],
            &["9.9.9.9", "8.0.0.0/8:80-90", "8.8.8.8:85"],
        );
        for (peer, protocol, number, decider, forwards) in [
            ("9.9.9.9", 6, Some(443), Decider::Entry(0), true),
            ("9.9.9.9", 17, Some(443), Decider::Entry(3), false),
            ("9.9.9.8", 6, Some(80), Decider::Entry(2), true),
            ("8.8.8.8", 6, Some(85), Decider::Entry(5), false),
            ("8.8.8.8", 6, Some(80), Decider::Entry(4), false),
            ("8.8.8.8", 1, None, Decider::Entry(2), true),
            ("10.0.0.1", 6, Some(1), Decider::Entry(1), true),
            ("127.0.0.1", 6, Some(1), Decider::Rule("D1"), false),
            ("169.254.169.254", 6, Some(80), Decider::Rule("D3"), false),
        ] {
            let explanation = port.explain(&question(peer.parse().unwrap(), protocol, number));
            assert_eq!(explanation.decider, decider, "{peer} {protocol}");
            assert_eq!(explanation.verdict.is_forward(), forwards, "{peer} {protocol}");
        }
        let port = bound();
        for (peer, protocol, number, rule, forwards) in [
            (WORLD_IP, 6, Some(80), "D3", true),
            (GATEWAY_IP, 6, Some(80), "D4", true),
            (GATEWAY_IP, 47, None, "D4", false),
            (RESOLVER_IP, 17, Some(53), "D5", true),
            (RESOLVER_IP, 17, Some(54), "D5", false),
            (NEIGHBOUR_IP, 6, Some(80), "D3", false),
            (OWN_IP, 6, Some(80), "D1", false),
        ] {
            let explanation = port.explain(&question(peer, protocol, number));
            assert_eq!(explanation.decider, Decider::Rule(rule), "{peer}");
            assert_eq!(explanation.verdict.is_forward(), forwards, "{peer}");
        }
    }

    /// P4: what others begin, by `in` entries, the default, and published ports.
    #[test]
    fn p4_incoming_is_explained() {
        let published = vec![PublishedPort { protocol: 6, port: 22 }];
        let port =
            bound_by(PortConfig { published, ..config(&["in 10.0.0.9"], &["in 0.0.0.0/0", "in 9.9.9.9"]) });
        let incoming = |peer, own_port| Question {
            origin: Origin::Outside,
            own_port: Some(own_port),
            ..question(peer, 6, Some(5_000))
        };
        for (peer, own_port, decider, forwards) in [
            (Ipv4Addr::new(10, 0, 0, 9), 80, Decider::Entry(0), true),
            (Ipv4Addr::new(10, 0, 0, 8), 80, Decider::Entry(1), false),
            (Ipv4Addr::new(10, 0, 0, 8), 22, Decider::Rule("P4"), true),
            (WORLD_IP, 22, Decider::Entry(2), false),
        ] {
            let explanation = port.explain(&incoming(peer, own_port));
            assert_eq!(explanation.decider, decider, "{peer} {own_port}");
            assert_eq!(explanation.verdict.is_forward(), forwards, "{peer} {own_port}");
            assert_eq!(explanation.answer, OwnAnswer::Nothing);
        }
        let explanation = bound_with(&["in 1.1.1.1"], &[]).explain(&incoming(WORLD_IP, 22));
        assert_eq!((explanation.decider, explanation.verdict), (Decider::Rule("P4"), Verdict::Forward));
    }

    /// J1: what the VM would hear is what it does hear.
    #[test]
    fn j1_the_answer_is_explained() {
        let port = bound_with(&[], &["9.9.9.9"]);
        let answer = |peer: Ipv4Addr, protocol| port.explain(&question(peer, protocol, Some(80))).answer;
        assert_eq!(answer(WORLD_IP, 6), OwnAnswer::Reset);
        assert_eq!(answer(WORLD_IP, 17), OwnAnswer::Prohibited);
        assert_eq!(answer(WORLD_IP, 1), OwnAnswer::Prohibited);
        assert_eq!(answer(Ipv4Addr::new(8, 8, 8, 8), 6), OwnAnswer::Nothing);
        assert_eq!(answer(Ipv4Addr::new(224, 0, 0, 251), 17), OwnAnswer::Nothing);
        let silent = bound_by(PortConfig { on_block: OnBlock::Drop, ..config(&[], &["9.9.9.9"]) });
        assert_eq!(silent.explain(&question(WORLD_IP, 6, Some(80))).answer, OwnAnswer::Nothing);
    }
}
