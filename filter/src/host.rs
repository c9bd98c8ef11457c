//! The host's own addresses and ports, as they change (rules H1 to H3).

use core::net::Ipv4Addr;

use crate::ipv4;
use crate::verdict::DropReason;

/// A port of the host that leads to another VM (`--expose` of that VM).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExposedPort {
    /// The number of the protocol: 6 for TCP, 17 for UDP.
    pub protocol: u8,
    /// The port of the host.
    pub port: u16,
    /// The one address of the host at which it is exposed; `None` for all of them.
    pub address: Option<Ipv4Addr>,
}

/// The host's addresses and ports, besides the gateway.
#[derive(Debug, Default)]
pub(crate) struct Host {
    /// Sorted, and without the gateway.
    addresses: Vec<Ipv4Addr>,
    /// Sorted.
    exposed: Vec<ExposedPort>,
}

impl Host {
    /// Takes the host's addresses; the gateway's own and those of loopback (D1) are left out.
    pub(crate) fn set_addresses(&mut self, addresses: &[Ipv4Addr], gateway: Ipv4Addr) {
        self.addresses = addresses
            .iter()
            .copied()
            .filter(|address| *address != gateway && !address.is_loopback() && !address.is_unspecified())
            .collect();
        self.addresses.sort_unstable();
        self.addresses.dedup();
    }

    /// Takes the ports that lead to other VMs.
    pub(crate) fn set_exposed(&mut self, mut exposed: Vec<ExposedPort>) {
        exposed.sort_unstable();
        exposed.dedup();
        self.exposed = exposed;
    }

    /// The host's addresses besides the gateway's.
    pub(crate) fn addresses(&self) -> &[Ipv4Addr] {
        &self.addresses
    }

    /// Whether an address is one of the host's besides the gateway's.
    pub(crate) fn has(&self, address: Ipv4Addr) -> bool {
        self.addresses.binary_search(&address).is_ok()
    }

    /// Whether a packet for `address`, which is the host's, would reach another VM.
    pub(crate) fn leads_to_another_vm(&self, address: Ipv4Addr, protocol: u8, port: Option<u16>) -> bool {
        let Some(port) = port.filter(|_| matches!(protocol, ipv4::TCP | ipv4::UDP)) else { return false };
        let exposes = |at| self.exposed.binary_search(&ExposedPort { protocol, port, address: at }).is_ok();
        exposes(None) || exposes(Some(address))
    }
}

/// Whether the host is ready for the VM at its address (H3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Readiness {
    /// The VM does not wait for the host.
    #[default]
    NotAwaited,
    /// Not yet, whatever the address.
    No,
    /// At this address.
    At(Ipv4Addr),
}

impl Readiness {
    /// From now on the VM waits for the host.
    pub(crate) fn await_host(&mut self) {
        *self = Self::No;
    }

    /// The host is ready at `address`, where the VM waits for that.
    pub(crate) fn set(&mut self, address: Ipv4Addr) {
        if *self != Self::NotAwaited {
            *self = Self::At(address);
        }
    }

    /// The host is no longer ready, where the VM waits for that.
    pub(crate) fn clear(&mut self) {
        if *self != Self::NotAwaited {
            *self = Self::No;
        }
    }

    /// H3: whether anything but DHCP and ARP may reach the VM at `destination`, with the address that it has now. What is for
    /// another VM comes when the host still believes that this one has that address: the DHCP server enters the
    /// address that it offers into the host's neighbour table.
    #[inline(always)]
    pub(crate) fn judge(
        self,
        address: Option<Ipv4Addr>,
        destination: Ipv4Addr,
        may_be_leased: impl FnOnce(Ipv4Addr) -> bool,
    ) -> Result<(), DropReason> {
        let is_ready = address.is_some_and(|address| {
            self == Self::At(address) && (destination == address || !may_be_leased(destination))
        });
        if is_ready || self == Self::NotAwaited { Ok(()) } else { Err(DropReason::NotReady) }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::*;
    use crate::{DropReason, ExposedPort, NetType, Port, PortConfig, Verdict};
    use core::net::Ipv4Addr;

    const PUBLIC: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 2);
    const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
    const SECOND: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 9);

    /// A port with a lease behind a host that has all of the addresses above.
    fn on_a_real_host(allow: &[&str], block: &[&str]) -> Port {
        let host_addresses = vec![PRIVATE, PUBLIC, SECOND, GATEWAY_IP, Ipv4Addr::LOCALHOST, PUBLIC];
        bound_by(PortConfig { host_addresses, ..config(allow, block) })
    }

    fn sent(port: &mut Port, to: Ipv4Addr, protocol: u8) -> Verdict {
        let frame = match protocol {
            6 => IpFrame::tcp(to, 2375),
            17 => IpFrame::udp(to, 2375),
            1 => IpFrame::icmp(to, 8),
            other => IpFrame::new(to, other, [0; 8]),
        };
        port.from_vm(&frame.frame(), NOW)
    }

    /// H1: with no flags the host's global addresses are as open as the gateway, and its private ones are closed.
    #[test]
    fn h1_the_hosts_addresses_without_flags() {
        let mut port = on_a_real_host(&[], &[]);
        for to in [GATEWAY_IP, PUBLIC] {
            for protocol in [1, 6, 17] {
                assert_eq!(sent(&mut port, to, protocol), Verdict::Forward, "{to} {protocol}");
            }
            for protocol in [4, 41, 47, 50, 89, 132] {
                assert_eq!(
                    sent(&mut port, to, protocol),
                    drop_for(DropReason::GatewayProtocol),
                    "{to} {protocol}"
                );
            }
        }
        assert_eq!(sent(&mut port, PRIVATE, 6), drop_for(DropReason::NotGlobal));
        assert_eq!(sent(&mut port, SECOND, 6), drop_for(DropReason::Neighbour));
        // To the rest of the world any protocol passes, to the next address too.
        for to in [WORLD_IP, Ipv4Addr::new(9, 9, 9, 3)] {
            assert_eq!(sent(&mut port, to, 47), Verdict::Forward);
        }
        let to_stranger = IpFrame::tcp(PUBLIC, 80).in_frame_to(STRANGER);
        assert_eq!(port.from_vm(&to_stranger.frame(), NOW), drop_for(DropReason::DestinationMac));
    }

    /// H1: `@host` is all of them; an entry longer than /0 decides about the one that it names, and /0 only if no other
    /// entry matches.
    #[test]
    fn h1_host_is_every_address_of_it() {
        let all = [GATEWAY_IP, PUBLIC, PRIVATE, SECOND];
        for (allow, block, open) in [
            (&[][..], &["@host"][..], &[][..]),
            (&["@host"], &[], &all),
            (&["@host"], &["@host"], &[]),
            (&["10.77.0.0/16"], &["@host"], &[PRIVATE]),
            (&["9.9.9.2"], &["@host"], &[PUBLIC]),
            (&["8.0.0.0/7"], &["@host"], &[PUBLIC]),
            (&["@host"], &["9.9.9.0/24"], &[GATEWAY_IP, PRIVATE, SECOND]),
            (&["0.0.0.0/0"], &["@host"], &[]),
            (&["@host"], &["0.0.0.0/0"], &all),
            (&["0.0.0.0/0"], &[], &all),
            (&[], &["0.0.0.0/0"], &[]),
            (&["10.0.0.0/8"], &[], &[GATEWAY_IP, PUBLIC, PRIVATE]),
            (&["192.168.64.0/24"], &[], &[GATEWAY_IP, PUBLIC, SECOND]),
        ] {
            let mut port = on_a_real_host(allow, block);
            for to in all {
                let passed = sent(&mut port, to, 6).is_forward();
                assert_eq!(passed, open.contains(&to), "{allow:?} {block:?} {to}");
            }
        }
        assert_eq!(sent(&mut on_a_real_host(&[], &["@host"]), PUBLIC, 6), drop_for(DropReason::Blocked));
    }

    /// H1: addresses come and go while the VM runs.
    #[test]
    fn h1_addresses_come_and_go() {
        let mut port = bound_with(&[], &["@host"]);
        assert_eq!(sent(&mut port, PUBLIC, 6), Verdict::Forward);
        port.set_host_addresses(&[PUBLIC], NOW).unwrap();
        assert_eq!(sent(&mut port, PUBLIC, 6), drop_for(DropReason::Blocked));
        assert!(port.lease().is_some());
        port.set_host_addresses(&[PRIVATE], NOW).unwrap();
        assert_eq!(sent(&mut port, PUBLIC, 6), Verdict::Forward);
        assert_eq!(sent(&mut port, PRIVATE, 6), drop_for(DropReason::Blocked));
    }

    /// D9, H1: without global destinations the host's global addresses are closed, whatever the flags say.
    #[test]
    fn h1_a_host_only_network_has_no_global_address() {
        for allow in [&[][..], &["@host"], &["9.9.9.2"], &["0.0.0.0/0"]] {
            let host_addresses = vec![PUBLIC, PRIVATE];
            let config = PortConfig { net_type: NetType::Host, host_addresses, ..config(allow, &[]) };
            let mut port = bound_by(config);
            assert_eq!(sent(&mut port, PUBLIC, 6), drop_for(DropReason::HostOnly), "{allow:?}");
            assert_eq!(sent(&mut port, GATEWAY_IP, 6), Verdict::Forward);
        }
    }

    /// H2: a port that leads to another VM is closed at every address of the host, or at the one where it is exposed.
    #[test]
    fn h2_ports_of_other_vms_are_closed() {
        let exposed = drop_for(DropReason::ExposedPort);
        for allow in [&["@host"][..], &["0.0.0.0/0"], &["9.9.9.2", "192.168.64.0/24"]] {
            let mut port = on_a_real_host(allow, &[]);
            port.set_exposed(
                vec![
                    ExposedPort { protocol: 17, port: 53, address: Some(PUBLIC) },
                    ExposedPort { protocol: 6, port: 2222, address: None },
                ],
                NOW,
            );
            for to in [GATEWAY_IP, PUBLIC] {
                let mut judge = |frame: IpFrame| port.from_vm(&frame.frame(), NOW);
                assert_eq!(judge(IpFrame::tcp(to, 2222)), exposed, "{to}");
                assert_eq!(judge(IpFrame::udp(to, 2222)), Verdict::Forward);
                assert_eq!(judge(IpFrame::tcp(to, 2223)), Verdict::Forward);
                assert_eq!(judge(IpFrame::tcp(to, 53)), Verdict::Forward);
                let expected = if to == PUBLIC { exposed } else { Verdict::Forward };
                assert_eq!(judge(IpFrame::udp(to, 53)), expected);
                assert_eq!(judge(IpFrame::icmp(to, 8)), Verdict::Forward);
            }
            // At other addresses the port is not the host's.
            assert_eq!(port.from_vm(&IpFrame::tcp(WORLD_IP, 2222).frame(), NOW), Verdict::Forward);
            port.set_exposed(Vec::new(), NOW);
            assert_eq!(port.from_vm(&IpFrame::tcp(PUBLIC, 2222).frame(), NOW), Verdict::Forward);
        }
        let mut port = on_a_real_host(&[], &["@host"]);
        port.set_exposed(vec![ExposedPort { protocol: 6, port: 2222, address: None }], NOW);
        assert_eq!(port.from_vm(&IpFrame::tcp(PUBLIC, 2222).frame(), NOW), drop_for(DropReason::Blocked));
    }

    /// H3: frames that may be for a former holder of the VM's address do not reach it; ARP and DHCP do.
    #[test]
    fn h3_nothing_of_a_former_holder_reaches_the_vm() {
        let data = IpFrame::udp(WORLD_IP, 80).reversed().frame();
        let arp = ArpFrame {
            from_mac: GATEWAY,
            sender_mac: GATEWAY,
            sender: GATEWAY_IP,
            ..ArpFrame::request(OWN_IP)
        };
        let not_ready = drop_for(DropReason::NotReady);
        let mut port = fresh();
        assert_eq!(port.from_host(&data, NOW), Verdict::Forward, "the VM does not wait for the host");
        port.wait_for_host();
        assert_eq!(port.from_host(&data, NOW), not_ready);
        assert_eq!(port.from_vm(&DhcpFrame::request().frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_host(&DhcpFrame::ack().frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_host(&data, NOW), not_ready);
        assert_eq!(port.from_host(&arp.frame(), NOW), Verdict::Forward);
        port.host_is_ready(OTHER_IP);
        assert_eq!(port.from_host(&data, NOW), not_ready);
        port.host_is_ready(OWN_IP);
        assert_eq!(port.from_host(&data, NOW), Verdict::Forward);
        let to = |to| IpFrame { to, ..IpFrame::udp(WORLD_IP, 80).reversed() }.frame();
        for other in [OTHER_IP, NEIGHBOUR_IP] {
            assert_eq!(port.from_host(&to(other), NOW), not_ready, "{other}");
        }
        for group in [Ipv4Addr::BROADCAST, Ipv4Addr::new(192, 168, 64, 255), Ipv4Addr::new(224, 0, 0, 251)] {
            assert_eq!(port.from_host(&to(group), NOW), Verdict::Forward, "{group}");
        }
        port.host_is_not_ready();
        assert_eq!(port.from_host(&data, NOW), not_ready);
        port.host_is_ready(OWN_IP);
        let end = NOW.saturating_add(core::time::Duration::from_secs(600));
        assert_eq!(port.from_host(&data, end), not_ready, "the lease is over");
        let mut port = bound();
        port.host_is_ready(OTHER_IP);
        assert_eq!(port.from_host(&data, NOW), Verdict::Forward, "a VM that does not wait still does not");
    }
}
