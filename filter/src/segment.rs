//! The stations of the VM's network: the VM itself, its router and its DHCP server.

use core::net::Ipv4Addr;

use crate::config::{ConfigError, PortConfig, Station};
use crate::frame;
use softnet_wire::MacAddr;

/// The VM's network as the rules see it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment {
    pub(crate) vm_mac: MacAddr,
    /// The station that carries packets out of the network.
    pub(crate) router: Station,
    /// The station that assigns addresses.
    pub(crate) dhcp_server: Station,
    /// The end of the header of the VM's IPv4 (see [`frame::tail`]).
    pub(crate) ipv4_from_vm: u64,
    /// The end of the header of the VM's ARP.
    pub(crate) arp_from_vm: u64,
    /// The start of the header of the VM's frames for the router (see [`frame::head`]).
    pub(crate) vm_to_router: u64,
    network: u32,
    mask: u32,
    pub(crate) server_files_by_mac: bool,
    /// The longest packet that the link carries.
    pub(crate) mtu: u16,
    /// The longest frame that the link carries.
    pub(crate) max_frame_len: usize,
}

impl Segment {
    pub(crate) fn new(config: &PortConfig) -> Result<Self, ConfigError> {
        let PortConfig { vm_mac, gateway, mtu, .. } = *config;
        let subnet = gateway.subnet.trunc();
        if !vm_mac.is_unicast() {
            return Err(ConfigError::VmMac(vm_mac));
        }
        if !gateway.mac.is_unicast() {
            return Err(ConfigError::GatewayMac(gateway.mac));
        }
        if vm_mac == gateway.mac {
            return Err(ConfigError::SameMac(vm_mac));
        }
        if subnet.prefix_len() > 30 {
            return Err(ConfigError::SubnetTooSmall(subnet));
        }
        if mtu < 576 {
            return Err(ConfigError::Mtu(mtu));
        }
        let router = Station { mac: gateway.mac, address: gateway.address };
        let dhcp_server = config.dhcp_server.unwrap_or(router);
        if !dhcp_server.mac.is_unicast() || vm_mac == dhcp_server.mac {
            return Err(ConfigError::DhcpServerMac(dhcp_server.mac));
        }
        let segment = Self {
            vm_mac,
            router,
            dhcp_server,
            ipv4_from_vm: frame::tail(vm_mac, frame::IPV4),
            arp_from_vm: frame::tail(vm_mac, frame::ARP),
            vm_to_router: frame::head(gateway.mac, vm_mac),
            network: subnet.network().to_bits(),
            mask: subnet.netmask().to_bits(),
            server_files_by_mac: config.server_files_by_mac,
            mtu,
            max_frame_len: usize::from(mtu).saturating_add(frame::HEADER_LEN),
        };
        if !segment.is_on_link(gateway.address) || !segment.is_host(gateway.address) {
            return Err(ConfigError::GatewayAddress { address: gateway.address, subnet });
        }
        if !segment.is_on_link(dhcp_server.address) || !segment.is_host(dhcp_server.address) {
            return Err(ConfigError::DhcpServerAddress { address: dhcp_server.address, subnet });
        }
        Ok(segment)
    }

    /// Whether an address is in the VM's own network.
    pub(crate) fn is_on_link(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & self.mask == self.network
    }

    /// Whether an address stands for all hosts of the VM's network.
    pub(crate) fn is_broadcast(&self, address: Ipv4Addr) -> bool {
        let bits = address.to_bits();
        address.is_broadcast() || bits == self.network || bits == self.network | !self.mask
    }

    /// Whether an address could be a host's: neither one that D1 names nor multicast.
    fn is_host(&self, address: Ipv4Addr) -> bool {
        let bits = address.to_bits();
        // 0.0.0.0/8, 127.0.0.0/8, and 224.0.0.0/4 with all above.
        let is_special = matches!(address.octets(), [0 | 127 | 224.., ..]);
        !is_special && bits != self.network && bits != self.network | !self.mask
    }

    /// Whether DHCP may give the VM this address (B2).
    pub(crate) fn may_be_leased(&self, address: Ipv4Addr) -> bool {
        self.is_on_link(address) && self.is_host(address) && !self.is_served_from(address)
    }

    /// Whether an address is the router's or the DHCP server's.
    pub(crate) fn is_served_from(&self, address: Ipv4Addr) -> bool {
        address == self.router.address || address == self.dhcp_server.address
    }

    /// Whether an address that DHCP names as a resolver may be opened as one (D5).
    pub(crate) fn is_sane_resolver(&self, address: Ipv4Addr) -> bool {
        self.is_host(address)
    }

    /// Whether a MAC address may be that of another station (L5).
    pub(crate) fn may_be_peer(&self, mac: MacAddr) -> bool {
        mac.is_unicast() && mac != self.vm_mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;
    use crate::{Gateway, Port};
    use ipnet::Ipv4Net;

    /// L1: the VM has an address of its own.
    #[test]
    fn l1_vm_mac_is_unicast() {
        for vm_mac in [MacAddr::ZERO, MacAddr::BROADCAST, MacAddr([1, 0, 0x5e, 0, 0, 1])] {
            let error = Port::new(PortConfig { vm_mac, ..config(&[], &[]) }).unwrap_err();
            assert_eq!(error, ConfigError::VmMac(vm_mac));
        }
    }

    /// R4: a configuration that contradicts itself is refused.
    #[test]
    fn r4_configuration_is_checked() {
        let config = config(&[], &[]);
        let gateway = config.gateway;
        let with = |mac, address: &str, subnet: &str| {
            let gateway = Gateway { mac, address: address.parse().unwrap(), subnet: subnet.parse().unwrap() };
            Port::new(PortConfig { gateway, ..config.clone() }).err()
        };
        let ip = |text: &str| text.parse::<Ipv4Addr>().unwrap();
        let net = |text: &str| text.parse::<Ipv4Net>().unwrap();
        let address =
            |address, subnet| Some(ConfigError::GatewayAddress { address: ip(address), subnet: net(subnet) });
        assert_eq!(with(GATEWAY, "10.0.0.1", "10.0.0.0/30"), None);
        assert_eq!(with(GATEWAY, "10.0.0.1", "10.0.0.3/30"), None);
        assert_eq!(
            with(GATEWAY, "10.0.0.1", "10.0.0.0/31"),
            Some(ConfigError::SubnetTooSmall(net("10.0.0.0/31")))
        );
        assert_eq!(
            with(GATEWAY, "10.0.0.1", "10.0.0.1/32"),
            Some(ConfigError::SubnetTooSmall(net("10.0.0.1/32")))
        );
        for bad in ["10.0.0.0", "10.0.0.255", "10.0.1.1", "0.0.0.0"] {
            assert_eq!(with(GATEWAY, bad, "10.0.0.0/24"), address(bad, "10.0.0.0/24"));
        }
        assert_eq!(with(GATEWAY, "127.0.0.1", "127.0.0.0/8"), address("127.0.0.1", "127.0.0.0/8"));
        for mac in [MacAddr::ZERO, MacAddr::BROADCAST] {
            assert_eq!(with(mac, "10.0.0.1", "10.0.0.0/24"), Some(ConfigError::GatewayMac(mac)));
        }
        assert_eq!(with(VM, "10.0.0.1", "10.0.0.0/24"), Some(ConfigError::SameMac(VM)));
        let server = |mac, address: &str| {
            let dhcp_server = Some(Station { mac, address: address.parse().unwrap() });
            Port::new(PortConfig { dhcp_server, ..config.clone() }).err()
        };
        assert_eq!(server(STRANGER, "192.168.64.3"), None);
        for mac in [MacAddr::ZERO, MacAddr::BROADCAST, VM] {
            assert_eq!(server(mac, "192.168.64.3"), Some(ConfigError::DhcpServerMac(mac)));
        }
        for bad in ["192.168.64.0", "192.168.64.255", "192.168.65.3"] {
            let error = ConfigError::DhcpServerAddress { address: ip(bad), subnet: net("192.168.64.0/24") };
            assert_eq!(server(STRANGER, bad), Some(error));
        }
        let mtu = |mtu| Port::new(PortConfig { mtu, gateway, ..config.clone() }).err();
        assert_eq!((mtu(575), mtu(576), mtu(u16::MAX)), (Some(ConfigError::Mtu(575)), None, None));
    }
}
