//! Ports for the tests of this crate, and the frames of their VM and its gateway: valid by default, broken field by
//! field.

use core::net::Ipv4Addr;

use softnet_wire::dhcpv4::{BOOT_REPLY, BOOT_REQUEST, CLIENT_PORT, SERVER_PORT};
use softnet_wire::make::{self, Arp, Dhcp, Ipv4};
pub(crate) use softnet_wire::make::{datagram as udp, ethernet, fix_header};

use crate::frame;
use crate::verdict::{DropReason, Verdict};
use crate::{Action, Gateway, MacAddr, NetType, Policy, Port, PortConfig, Rule, Timestamp};

pub(crate) const VM: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x01]);
pub(crate) const GATEWAY: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0xfe]);
pub(crate) const STRANGER: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x77]);

pub(crate) const OWN_IP: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 2);
pub(crate) const OTHER_IP: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 3);
pub(crate) const GATEWAY_IP: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 1);
pub(crate) const NEIGHBOUR_IP: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 77);
pub(crate) const RESOLVER_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 53);
pub(crate) const WORLD_IP: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 9);

/// Any time; tests count from here.
pub(crate) const NOW: Timestamp = Timestamp::from_secs(1_000);

pub(crate) fn drop_for(reason: DropReason) -> Verdict {
    Verdict::Drop(reason)
}

pub(crate) fn config(allow: &[&str], block: &[&str]) -> PortConfig {
    let rules = |list: &[&str], action| {
        list.iter().map(|entry| Rule { entry: entry.parse().unwrap(), action }).collect::<Vec<_>>()
    };
    PortConfig {
        vm_mac: VM,
        gateway: Gateway { mac: GATEWAY, address: GATEWAY_IP, subnet: "192.168.64.0/24".parse().unwrap() },
        dhcp_server: None,
        net_type: NetType::Nat,
        policy: Policy::new([rules(allow, Action::Allow), rules(block, Action::Block)].concat()),
        mtu: 1500,
        server_files_by_mac: false,
        host_addresses: Vec::new(),
        on_block: Default::default(),
        published: Vec::new(),
        seed: 7,
    }
}

/// A port without a lease.
pub(crate) fn fresh() -> Port {
    Port::new(config(&[], &[])).unwrap()
}

/// A port with a lease of [`OWN_IP`] for 600 s from [`NOW`], with [`RESOLVER_IP`].
pub(crate) fn bound() -> Port {
    bound_with(&[], &[])
}

pub(crate) fn bound_with(allow: &[&str], block: &[&str]) -> Port {
    bound_by(config(allow, block))
}

pub(crate) fn bound_by(config: PortConfig) -> Port {
    let mut port = Port::new(config).unwrap();
    assert_eq!(port.from_vm(&DhcpFrame::request().frame(), NOW), Verdict::Forward);
    assert_eq!(port.from_host(&DhcpFrame::ack().frame(), NOW), Verdict::Forward);
    assert_eq!(port.lease().map(|lease| lease.address), Some(OWN_IP));
    assert!(matches!(port.poll_event(), Some(crate::PortEvent::Bound(_))));
    port
}

/// An IPv4 packet in its frame. From the VM to the world by default.
#[derive(Clone)]
pub(crate) struct IpFrame {
    pub(crate) to_mac: MacAddr,
    pub(crate) from_mac: MacAddr,
    pub(crate) from: Ipv4Addr,
    pub(crate) to: Ipv4Addr,
    pub(crate) protocol: u8,
    pub(crate) ttl: u8,
    /// Flags and offset.
    pub(crate) fragment: u16,
    pub(crate) payload: Vec<u8>,
}

impl IpFrame {
    pub(crate) fn new(to: Ipv4Addr, protocol: u8, payload: impl Into<Vec<u8>>) -> Self {
        Self {
            to_mac: GATEWAY,
            from_mac: VM,
            from: OWN_IP,
            to,
            protocol,
            ttl: 64,
            fragment: 0,
            payload: payload.into(),
        }
    }

    pub(crate) fn udp(to: Ipv4Addr, port: u16) -> Self {
        Self::new(to, 17, udp(40_000, port, b"some data"))
    }

    pub(crate) fn tcp(to: Ipv4Addr, port: u16) -> Self {
        Self::new(to, 6, tcp(40_000, port))
    }

    pub(crate) fn icmp(to: Ipv4Addr, kind: u8) -> Self {
        Self::new(to, 1, [kind, 0, 0, 0, 0, 1, 0, 1])
    }

    /// The way back: from the gateway's MAC address and the destination to the VM.
    pub(crate) fn reversed(self) -> Self {
        Self { to_mac: self.from_mac, from_mac: self.to_mac, from: self.to, to: self.from, ..self }
    }

    /// In a frame from the gateway to the VM, with the addresses as they are.
    pub(crate) fn reversed_stations(self) -> Self {
        Self { to_mac: VM, from_mac: GATEWAY, ..self }
    }

    pub(crate) fn in_frame_to(self, to_mac: MacAddr) -> Self {
        Self { to_mac, ..self }
    }

    pub(crate) fn fragment(self, fragment: u16) -> Self {
        Self { fragment, ..self }
    }

    pub(crate) fn packet(&self) -> Vec<u8> {
        let (from, to, ttl, fragment) = (self.from, self.to, self.ttl, self.fragment);
        Ipv4 { ttl, fragment, ..Ipv4::new(from, to, (self.protocol, self.payload.clone())) }.bytes()
    }

    pub(crate) fn frame(&self) -> Vec<u8> {
        ethernet(self.to_mac, self.from_mac, frame::IPV4, &self.packet())
    }
}

/// A TCP SYN.
pub(crate) fn tcp(from: u16, to: u16) -> Vec<u8> {
    make::tcp((OWN_IP, from), (WORLD_IP, to), 0, 2, b"").1
}

/// ARP of the VM, a request by default.
#[derive(Clone, Copy)]
pub(crate) struct ArpFrame {
    pub(crate) to_mac: MacAddr,
    pub(crate) from_mac: MacAddr,
    pub(crate) operation: u16,
    pub(crate) sender_mac: MacAddr,
    pub(crate) sender: Ipv4Addr,
    pub(crate) target: Ipv4Addr,
}

impl ArpFrame {
    pub(crate) fn request(target: Ipv4Addr) -> Self {
        Self {
            to_mac: MacAddr::BROADCAST,
            from_mac: VM,
            operation: 1,
            sender_mac: VM,
            sender: OWN_IP,
            target,
        }
    }

    pub(crate) fn probe(target: Ipv4Addr) -> Self {
        Self { sender: Ipv4Addr::UNSPECIFIED, ..Self::request(target) }
    }

    pub(crate) fn frame(&self) -> Vec<u8> {
        let operation = self.operation;
        let arp = Arp { operation, ..Arp::request(self.sender_mac, self.sender, self.target) };
        ethernet(self.to_mac, self.from_mac, frame::ARP, &arp.bytes())
    }
}

/// A DHCP message in its frame.
#[derive(Clone)]
pub(crate) struct DhcpFrame {
    pub(crate) to_mac: MacAddr,
    pub(crate) from_mac: MacAddr,
    pub(crate) from: Ipv4Addr,
    pub(crate) to: Ipv4Addr,
    pub(crate) ports: (u16, u16),
    /// The 240 fixed bytes.
    pub(crate) fixed: Vec<u8>,
    pub(crate) options: Vec<(u8, Vec<u8>)>,
    /// What follows the options.
    pub(crate) tail: Vec<u8>,
}

pub(crate) const XID: u32 = 0x1234_5678;

impl DhcpFrame {
    fn new(op: u8, kind: u8) -> Self {
        let bare = Dhcp { op, options: vec![], tail: vec![], ..Dhcp::client(kind, XID, VM) };
        Self {
            to_mac: MacAddr::BROADCAST,
            from_mac: VM,
            from: Ipv4Addr::UNSPECIFIED,
            to: Ipv4Addr::BROADCAST,
            ports: (CLIENT_PORT, SERVER_PORT),
            fixed: bare.bytes(),
            options: vec![(53, vec![kind])],
            tail: vec![255],
        }
    }

    pub(crate) fn client(kind: u8) -> Self {
        Self::new(BOOT_REQUEST, kind)
    }

    pub(crate) fn discover() -> Self {
        Self::client(1)
    }

    pub(crate) fn request() -> Self {
        Self::client(3).address_option(50, OWN_IP).address_option(54, GATEWAY_IP)
    }

    /// As a client with a lease renews it (RFC 2131, section 4.3.2).
    pub(crate) fn renewal() -> Self {
        Self::client(3).unicast().ciaddr(OWN_IP)
    }

    pub(crate) fn release() -> Self {
        Self::client(7).unicast().ciaddr(OWN_IP).address_option(54, GATEWAY_IP)
    }

    pub(crate) fn decline(address: Ipv4Addr) -> Self {
        Self::client(4).address_option(50, address).address_option(54, GATEWAY_IP)
    }

    pub(crate) fn inform() -> Self {
        Self::client(8).unicast().ciaddr(OWN_IP)
    }

    pub(crate) fn server(kind: u8) -> Self {
        let message = Self {
            to_mac: VM,
            from_mac: GATEWAY,
            from: GATEWAY_IP,
            to: OWN_IP,
            ports: (SERVER_PORT, CLIENT_PORT),
            ..Self::new(BOOT_REPLY, kind)
        };
        message.address_option(54, GATEWAY_IP)
    }

    pub(crate) fn offer() -> Self {
        Self::server(2).yiaddr(OWN_IP).lease_time(600)
    }

    pub(crate) fn ack() -> Self {
        Self::server(5).yiaddr(OWN_IP).lease_time(600).address_option(6, RESOLVER_IP)
    }

    pub(crate) fn nak() -> Self {
        Self { to_mac: MacAddr::BROADCAST, to: Ipv4Addr::BROADCAST, ..Self::server(6) }
    }

    fn unicast(self) -> Self {
        Self { to_mac: GATEWAY, to: GATEWAY_IP, from: OWN_IP, ..self }
    }

    pub(crate) fn set(mut self, at: usize, bytes: &[u8]) -> Self {
        self.fixed[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub(crate) fn xid(self, xid: u32) -> Self {
        self.set(4, &xid.to_be_bytes())
    }

    pub(crate) fn ciaddr(self, address: Ipv4Addr) -> Self {
        self.set(12, &address.octets())
    }

    pub(crate) fn yiaddr(self, address: Ipv4Addr) -> Self {
        self.set(16, &address.octets())
    }

    /// Adds an option.
    pub(crate) fn option(mut self, code: u8, value: &[u8]) -> Self {
        self.options.push((code, value.to_vec()));
        self
    }

    /// Removes all options of a code.
    pub(crate) fn without(mut self, code: u8) -> Self {
        self.options.retain(|(other, _)| *other != code);
        self
    }

    pub(crate) fn address_option(self, code: u8, address: Ipv4Addr) -> Self {
        self.without(code).option(code, &address.octets())
    }

    pub(crate) fn lease_time(self, seconds: u32) -> Self {
        self.without(51).option(51, &seconds.to_be_bytes())
    }

    pub(crate) fn message(&self) -> Vec<u8> {
        let mut message = self.fixed.clone();
        for (code, value) in &self.options {
            message.extend([*code, value.len() as u8]);
            message.extend(value);
        }
        message.extend(&self.tail);
        message
    }

    pub(crate) fn packet(&self) -> IpFrame {
        let (from, to) = ((self.from, self.ports.0), (self.to, self.ports.1));
        let (protocol, datagram) = make::udp(from, to, &self.message());
        IpFrame {
            to_mac: self.to_mac,
            from_mac: self.from_mac,
            from: self.from,
            ..IpFrame::new(self.to, protocol, datagram)
        }
    }

    pub(crate) fn frame(&self) -> Vec<u8> {
        self.packet().frame()
    }
}
