//! ICMP (RFC 792): rule D6.

use core::net::Ipv4Addr;

use softnet_wire::icmpv4::{
    DESTINATION_UNREACHABLE, ECHO, ECHO_REPLY, PARAMETER_PROBLEM, Quote, TIME_EXCEEDED,
};

use crate::verdict::DropReason;

/// Judges an ICMP message of the VM, whose address is `own`, to any destination.
///
/// A VM requests echoes, answers them, and reports errors about packets that it received. Other types can misdirect
/// routes or gather information about hosts, or are obsolete (RFC 6918).
pub(crate) fn judge(message: &[u8], own: Ipv4Addr) -> Result<(), DropReason> {
    match message.first() {
        Some(&(ECHO_REPLY | ECHO)) => Ok(()),
        // Each quotes the packet that it is about.
        Some(&(DESTINATION_UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM)) => {
            let is_own = Quote::of(message).is_some_and(|quote| quote.destination == own);
            if is_own { Ok(()) } else { Err(DropReason::IcmpQuote) }
        }
        _ => Err(DropReason::IcmpType),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;
    use crate::verdict::Verdict;

    /// The destinations of each kind to which ICMP may otherwise go.
    const ANYONE: [Ipv4Addr; 3] = [GATEWAY_IP, WORLD_IP, NEIGHBOUR_IP];

    fn error(kind: u8, quote: &[u8]) -> Vec<u8> {
        [&[kind, 1, 0, 0, 0, 0, 0, 0], quote].concat()
    }

    /// D6: of 256 types, five pass, to any destination and under any policy (D8).
    #[test]
    fn d6_other_types_are_dropped() {
        let quote = IpFrame::udp(WORLD_IP, 80).reversed().packet();
        for allow in [&["@host", "192.168.64.0/24"][..], &["0.0.0.0/0"]] {
            let mut port = bound_with(allow, &[]);
            for to in ANYONE {
                for kind in 0..=255 {
                    let frame = IpFrame::new(to, 1, error(kind, &quote)).frame();
                    let expected = match kind {
                        0 | 3 | 8 | 11 | 12 => Verdict::Forward,
                        _ => drop_for(DropReason::IcmpType),
                    };
                    assert_eq!(port.from_vm(&frame, NOW), expected, "{kind} to {to}");
                }
            }
        }
    }

    /// D6: an error quotes a packet that was for the VM, and enough of it to see that.
    #[test]
    fn d6_errors_quote_a_packet_for_the_vm() {
        let mut port = bound();
        let quote = IpFrame::udp(WORLD_IP, 80).reversed().packet();
        let dropped = drop_for(DropReason::IcmpQuote);
        for kind in [3, 11, 12] {
            let mut judge =
                |quote: &[u8]| port.from_vm(&IpFrame::new(WORLD_IP, 1, error(kind, quote)).frame(), NOW);
            assert_eq!(judge(&quote), Verdict::Forward);
            assert_eq!(judge(&quote[..20]), Verdict::Forward);
            for len in 0..20 {
                assert_eq!(judge(&quote[..len]), dropped);
            }
            let foreign = IpFrame::udp(OTHER_IP, 80).packet();
            assert_eq!(judge(&foreign), dropped);
            for version_ihl in [0x00, 0x44, 0x35, 0x55, 0x60] {
                let mut quote = quote.clone();
                quote[0] = version_ihl;
                assert_eq!(judge(&quote), dropped);
            }
            let mut quote = quote.clone();
            quote[0] = 0x46;
            assert_eq!(judge(&quote), Verdict::Forward);
        }
    }

    /// D6: the first fragment of a message is judged like an unfragmented one.
    #[test]
    fn d6_fragments_are_judged_too() {
        let mut port = bound();
        let redirect = error(5, &IpFrame::udp(WORLD_IP, 80).reversed().packet()[..32]);
        let frame = IpFrame::new(WORLD_IP, 1, redirect).fragment(0x2000).frame();
        assert_eq!(port.from_vm(&frame, NOW), drop_for(DropReason::IcmpType));
        let echo = IpFrame::new(WORLD_IP, 1, error(8, &[0; 32])).fragment(0x2000).frame();
        assert_eq!(port.from_vm(&echo, NOW), Verdict::Forward);
    }
}
