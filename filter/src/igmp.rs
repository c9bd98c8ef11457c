//! Group membership (IGMP): the exception of rule S3.

use crate::ipv4::{Packet, Part};
use crate::verdict::DropReason;
use softnet_wire::igmp::{ALL_ROUTERS, Report, V3_ROUTERS};

/// Judges IGMP of the VM to a multicast group: what a host reports about itself, to the group where that belongs, and
/// not beyond the network. A query would make the VM the network's querier.
pub(crate) fn judge(packet: Packet<'_>) -> Result<(), DropReason> {
    let to = packet.destination();
    let is_due = match packet.part() {
        Part::Whole(message) => match Report::parse(message) {
            Some(Report::Member(group)) => to == group,
            // RFC 2236, section 9: to the group itself is how earlier drafts of it did.
            Some(Report::Leave(group)) => to == ALL_ROUTERS || to == group,
            Some(Report::Records) => to == V3_ROUTERS,
            None => false,
        },
        Part::First(_) | Part::Later => false,
    };
    if is_due && packet.time_to_live() == 1 { Ok(()) } else { Err(DropReason::IgmpMessage) }
}

#[cfg(test)]
mod tests {
    use core::net::Ipv4Addr;

    use super::*;
    use crate::l2::multicast_mac;
    use crate::testing::*;
    use crate::verdict::Verdict;
    use crate::{MacAddr, Port};
    use softnet_wire::make::Ipv4;

    const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);
    const ALERT: &[u8] = &[148, 4, 0, 0];

    /// IGMP to its group in the group's MAC address, as a host sends it.
    fn igmp(kind: u8, rest: &[u8], to: Ipv4Addr) -> Ipv4 {
        let message = softnet_wire::make::igmp(kind, rest);
        Ipv4 { ttl: 1, options: ALERT.to_vec(), ..Ipv4::new(OWN_IP, to, message) }
    }

    fn report(to: Ipv4Addr) -> Ipv4 {
        igmp(0x16, &to.octets(), to)
    }

    fn sent(port: &mut Port, packet: &Ipv4) -> Verdict {
        port.from_vm(&packet.frame(multicast_mac(packet.to), VM), NOW)
    }

    /// S3: reports and leaves of every version, with the one option or with none, to open groups.
    #[test]
    fn s3_what_hosts_report_passes() {
        let mut port = bound_with(&["224.0.0.0/4"], &[]);
        let record: &[u8] = &[0, 0, 0, 1, 4, 0, 0, 0, 239, 1, 2, 3];
        for packet in [
            report(GROUP),
            igmp(0x12, &GROUP.octets(), GROUP),
            igmp(0x17, &GROUP.octets(), ALL_ROUTERS),
            igmp(0x17, &GROUP.octets(), GROUP),
            igmp(0x22, record, V3_ROUTERS),
        ] {
            assert_eq!(sent(&mut port, &packet), Verdict::Forward, "{packet:?}");
            assert_eq!(sent(&mut port, &Ipv4 { options: vec![], ..packet }), Verdict::Forward);
        }
        assert_eq!(port.counters().from_vm.dropped_total(), 0);
    }

    /// S3: no other message, and none where it does not belong, with the option or without.
    #[test]
    fn s3_other_igmp_is_dropped() {
        let mut port = bound_with(&["224.0.0.0/4"], &[]);
        let record: &[u8] = &[0, 0, 0, 1, 4, 0, 0, 0, 239, 1, 2, 3];
        let mut broken = report(GROUP);
        broken.payload[3] ^= 1;
        for packet in [
            igmp(0x11, &[0; 4], Ipv4Addr::new(224, 0, 0, 1)),
            igmp(0x11, &GROUP.octets(), GROUP),
            igmp(0x13, &GROUP.octets(), GROUP),
            igmp(0x16, &GROUP.octets(), ALL_ROUTERS),
            igmp(0x17, &GROUP.octets(), V3_ROUTERS),
            igmp(0x22, record, GROUP),
            igmp(0x22, &record[..10], V3_ROUTERS),
            igmp(0x16, &[], GROUP),
            Ipv4 { ttl: 2, ..report(GROUP) },
            Ipv4 { ttl: 64, ..report(GROUP) },
            broken,
        ] {
            let dropped = drop_for(DropReason::IgmpMessage);
            assert_eq!(sent(&mut port, &packet), dropped, "{packet:?}");
            assert_eq!(sent(&mut port, &Ipv4 { options: vec![], ..packet }), dropped);
        }
        for fragment in [0x2000, 1] {
            let packet = Ipv4 { options: vec![], fragment, ..report(GROUP) };
            assert_eq!(sent(&mut port, &packet), drop_for(DropReason::IgmpMessage));
        }
    }

    /// S3: the option is no way around another rule.
    #[test]
    fn s3_every_other_rule_applies_to_igmp() {
        for (allow, block, expected) in [
            (&["239.1.2.3"][..], &[][..], Verdict::Forward),
            (&["239.0.0.0/8"], &["239.2.0.0/16"], Verdict::Forward),
            (&[], &[], drop_for(DropReason::Multicast)),
            (&["239.1.2.4"], &[], drop_for(DropReason::Multicast)),
            (&["224.0.0.0/4"], &["239.1.0.0/16"], drop_for(DropReason::Blocked)),
        ] {
            assert_eq!(sent(&mut bound_with(allow, block), &report(GROUP)), expected, "{allow:?} {block:?}");
        }
        let mut port = bound_with(&["224.0.0.0/4"], &[]);
        for (packet, expected) in [
            (Ipv4 { from: OTHER_IP, ..report(GROUP) }, DropReason::SourceAddress),
            (Ipv4 { from: Ipv4Addr::UNSPECIFIED, ..report(GROUP) }, DropReason::SourceAddress),
            (Ipv4 { checksum: Some(7), ..report(GROUP) }, DropReason::Ipv4Checksum),
            (Ipv4 { ttl: 0, ..report(GROUP) }, DropReason::TtlZero),
            (Ipv4 { fragment: 0x8000, ..report(GROUP) }, DropReason::ReservedFlag),
        ] {
            assert_eq!(sent(&mut port, &packet), drop_for(expected), "{packet:?}");
        }
        for mac in [MacAddr::BROADCAST, GATEWAY, multicast_mac(ALL_ROUTERS)] {
            let verdict = port.from_vm(&report(GROUP).frame(mac, VM), NOW);
            assert_eq!(verdict, drop_for(DropReason::MulticastMac), "{mac}");
        }
        let long = [report(GROUP).frame(multicast_mac(GROUP), VM), vec![0; 60]].concat();
        assert_eq!(port.from_vm(&long, NOW), drop_for(DropReason::TrailingBytes));
        let verdict = sent(&mut crate::testing::fresh(), &report(GROUP));
        assert_eq!(verdict, drop_for(DropReason::NoLease));
    }

    /// S3: no other option, no other packet.
    #[test]
    fn s3_the_option_is_for_igmp_to_a_group_alone() {
        let mut port = bound_with(&["0.0.0.0/0"], &[]);
        let record_route = [ALERT, &[7, 7, 4, 0, 0, 0, 0, 0]].concat();
        for options in
            [&[148, 4, 0, 1][..], &[148, 4, 1, 0], &[148, 3, 0, 0], &[20, 4, 0, 0], &[1; 4], &record_route]
                .iter()
                .copied()
                .chain([&[148, 4, 0, 0, 0, 0, 0, 0][..], &[1, 1, 1, 1, 148, 4, 0, 0], &[0; 40]])
        {
            let packet = Ipv4 { options: options.to_vec(), ..report(GROUP) };
            assert_eq!(sent(&mut port, &packet), drop_for(DropReason::Ipv4Options), "{options:?}");
        }
        for packet in [
            Ipv4 { protocol: 17, payload: udp(1, 2, &[]), ..report(GROUP) },
            Ipv4 { protocol: 46, ..report(GROUP) },
            Ipv4 { fragment: 0x2000, ..report(GROUP) },
            Ipv4 { fragment: 1, ..report(GROUP) },
        ] {
            assert_eq!(sent(&mut port, &packet), drop_for(DropReason::Ipv4Options), "{packet:?}");
        }
        for to in [WORLD_IP, GATEWAY_IP, NEIGHBOUR_IP] {
            let verdict = port.from_vm(&Ipv4 { to, ..report(GROUP) }.frame(GATEWAY, VM), NOW);
            assert_eq!(verdict, drop_for(DropReason::Ipv4Options), "{to}");
        }
    }
}
