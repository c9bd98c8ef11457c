//! The port of one VM: everything that is known about it, and the judgement of its frames.

use core::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::arp::{self, Arp, JudgeArp};
use crate::counters::{Counters, Direction};
use crate::destination::{self, Destination};
use crate::dhcp::{self, ClientId, Datagram, Dhcp, DhcpPorts, ReleaseFrame, Terms};
use crate::frame::{self, EtherType, Frame};
use crate::host::{ExposedPort, Host};
use crate::icmp;
use crate::ipv4::{self, JudgeHeader, Packet, Part, Transport, Udp};
use crate::lease::Lease;
use crate::mac::MacAddr;
use crate::policy::Policy;
use crate::table::Table;
use crate::time::Timestamp;
use crate::verdict::{DropReason, Verdict};

/// What `--vm-net-type` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum NetType {
    /// The VM reaches the world through the host.
    #[default]
    Nat,
    /// The VM reaches no global destination, whatever the policy says; only the gateway, and what else the policy
    /// allows (rule D9).
    Host,
}

/// The host on the VM's network. It is the VM's router and its DHCP server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gateway {
    /// Its MAC address.
    pub mac: MacAddr,
    /// Its IPv4 address, from which the DHCP server answers.
    pub address: Ipv4Addr,
    /// The network that it shares with the VM; bits behind the prefix do not matter.
    pub subnet: Ipv4Net,
}

/// Everything that a port needs to know before the first frame.
#[derive(Debug, Clone)]
pub struct PortConfig {
    /// The VM's MAC address (rule L1).
    pub vm_mac: MacAddr,
    /// The host on the VM's network.
    pub gateway: Gateway,
    /// Whether there is a world beyond the gateway.
    pub net_type: NetType,
    /// What `--allow` and `--block` say.
    pub policy: Policy,
    /// The largest IP packet, in bytes, that the VM's link carries (rule L3).
    pub mtu: u16,
    /// Whether the DHCP server files leases by MAC address alone and looks at no client identifier. One that names
    /// somebody else's hardware address then takes nothing from anybody (rule C5).
    pub server_files_by_mac: bool,
    /// The host's addresses besides the gateway's (rule H1); more can be given later by
    /// [`Port::set_host_addresses`].
    pub host_addresses: Vec<Ipv4Addr>,
}

/// Why a [`PortConfig`] makes no port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The VM's MAC address is a group or zero (rule L1).
    #[error(
        "the VM's MAC address {0} belongs to no single station: use a unicast address such as 02:00:00:00:00:01"
    )]
    VmMac(MacAddr),
    /// The gateway's MAC address is a group or zero.
    #[error("the gateway's MAC address {0} belongs to no single station")]
    GatewayMac(MacAddr),
    /// The VM and the gateway have the same MAC address.
    #[error("the VM and the gateway have the same MAC address {0}")]
    SameMac(MacAddr),
    /// The network has no room for a VM beside the gateway.
    #[error("the network {0} has no room for a gateway and a VM: use a prefix of at most 30 bits")]
    SubnetTooSmall(Ipv4Net),
    /// The gateway is no host of its own network.
    #[error("the gateway {address} is no host address of its network {subnet}")]
    GatewayAddress {
        /// The gateway.
        address: Ipv4Addr,
        /// Its network.
        subnet: Ipv4Net,
    },
    /// The MTU is below the 576 bytes that every IPv4 host must be able to take (RFC 791).
    #[error("the MTU {0} is too small: IPv4 needs at least 576 bytes")]
    Mtu(u16),
    /// The rules do not fit into the table; some 30,000 always do.
    #[error("there are too many rules for destinations: join neighbouring networks into larger ones")]
    TooManyRules,
}

/// Something that happened to the port and that the shell must act upon or log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortEvent {
    /// The VM got an address.
    Bound(Lease),
    /// The VM's lease of the same address was renewed.
    Renewed(Lease),
    /// The VM lost its address.
    Unbound {
        /// What it had.
        lease: Lease,
        /// Why it is gone.
        cause: UnboundCause,
    },
    /// The VM uses another DHCP client identifier than before (rule C5).
    ClientIdChanged {
        /// Different client identifiers so far, this one included.
        used: usize,
    },
    /// The VM uses a DHCP client identifier that names a hardware address which is not its own, as cloned disk images
    /// do; its messages are dropped. Told once (rule C5).
    ForeignClientId {
        /// The hardware address, if it is one of Ethernet.
        named: Option<MacAddr>,
    },
}

/// Why a VM lost its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UnboundCause {
    /// The lease ran out.
    Expired,
    /// The VM gave the address back, or Softnet did for it.
    Released,
    /// The VM found the address in use by somebody else.
    Declined,
    /// The server said no to a renewal.
    Refused,
    /// The server gave the VM another address.
    Replaced,
    /// The VM asked the server for another address, or the server said that it has another: whatever becomes of it,
    /// this one may be given to others (rule B7).
    Superseded,
}

/// Why a lease cannot be taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AdoptError {
    /// The port has a lease already.
    #[error("the VM has a lease already")]
    Bound,
    /// The address cannot be the VM's (rule B2).
    #[error("{0} cannot be the address of a VM on this network")]
    Address(Ipv4Addr),
    /// The server is not the gateway.
    #[error("{0} is not the DHCP server of this network")]
    Server(Ipv4Addr),
    /// The lease has run out.
    #[error("the lease has expired")]
    Expired,
    /// The client identifier is shorter than 2 bytes or longer than 255 (RFC 2132, section 9.14).
    #[error("a client identifier has 2 to 255 bytes")]
    ClientId,
}

/// What identifies the VM and its gateway on the wire.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Identity {
    pub(crate) vm_mac: MacAddr,
    pub(crate) gateway_mac: MacAddr,
    /// The end of the header of the VM's IPv4 (see [`frame::tail`]).
    ipv4_from_vm: u64,
    /// The end of the header of the VM's ARP.
    arp_from_vm: u64,
    /// The start of the header of the VM's frames for the gateway (see [`frame::head`]).
    vm_to_gateway: u64,
    pub(crate) gateway: Ipv4Addr,
    network: u32,
    mask: u32,
    pub(crate) server_files_by_mac: bool,
    /// The longest frame that the link carries.
    max_frame_len: usize,
}

impl Identity {
    fn new(config: &PortConfig) -> Result<Self, ConfigError> {
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
        let identity = Self {
            vm_mac,
            gateway_mac: gateway.mac,
            ipv4_from_vm: frame::tail(vm_mac, frame::IPV4),
            arp_from_vm: frame::tail(vm_mac, frame::ARP),
            vm_to_gateway: frame::head(gateway.mac, vm_mac),
            gateway: gateway.address,
            network: subnet.network().to_bits(),
            mask: subnet.netmask().to_bits(),
            server_files_by_mac: config.server_files_by_mac,
            max_frame_len: usize::from(mtu).saturating_add(frame::HEADER_LEN),
        };
        if !identity.is_on_link(gateway.address) || !identity.is_host(gateway.address) {
            return Err(ConfigError::GatewayAddress { address: gateway.address, subnet });
        }
        Ok(identity)
    }

    /// Whether an address is of the VM's own network.
    pub(crate) fn is_on_link(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & self.mask == self.network
    }

    /// Whether an address could be some host's: not one that D1 names, nor multicast.
    fn is_host(&self, address: Ipv4Addr) -> bool {
        let bits = address.to_bits();
        // 0.0.0.0/8, 127.0.0.0/8, and 224.0.0.0/4 with all above.
        let is_special = matches!(address.octets(), [0 | 127 | 224.., ..]);
        !is_special && bits != self.network && bits != self.network | !self.mask
    }

    /// Whether DHCP may give the VM this address (B2).
    pub(crate) fn may_be_leased(&self, address: Ipv4Addr) -> bool {
        self.is_on_link(address) && self.is_host(address) && address != self.gateway
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

/// Whether the host is ready for the VM at its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ready {
    /// Not yet, whatever the address.
    No,
    /// At this address.
    At(Ipv4Addr),
}

/// What the destinations are compiled from, besides the host's addresses.
#[derive(Debug)]
struct Rules {
    policy: Policy,
    gateway: Gateway,
    net_type: NetType,
}

impl Rules {
    fn compile(&self, host: &Host) -> Result<Table, ConfigError> {
        Table::new(&self.policy, self.gateway, self.net_type, host.addresses())
    }
}

/// The port of one VM.
///
/// Frames of both directions must be given in the order in which they pass, with a `now` that does not go back.
#[derive(Debug)]
pub struct Port {
    identity: Identity,
    table: Table,
    dhcp: Dhcp,
    host: Host,
    /// For which address the host is ready, where the VM waits for that (H3); `None` where it does not.
    ready: Option<Ready>,
    /// What the table was compiled from, for when the host's addresses change.
    rules: Rules,
    counters: Counters,
}

impl Port {
    /// A port without a lease.
    ///
    /// # Errors
    ///
    /// If the configuration contradicts itself.
    pub fn new(config: PortConfig) -> Result<Self, ConfigError> {
        let identity = Identity::new(&config)?;
        let mut host = Host::default();
        host.set_addresses(&config.host_addresses, identity.gateway);
        let PortConfig { policy, gateway, net_type, .. } = config;
        let rules = Rules { policy, gateway, net_type };
        let table = rules.compile(&host)?;
        Ok(Self {
            identity,
            table,
            dhcp: Dhcp::default(),
            host,
            ready: None,
            rules,
            counters: Counters::default(),
        })
    }

    /// Takes the host's addresses besides the gateway's, in place of those that were known before (rule H1). Loopback
    /// addresses do not matter. Compiles the destinations anew, which allocates and takes about a millisecond.
    ///
    /// # Errors
    ///
    /// If they do not fit into the table together with the rules; then nothing has changed.
    pub fn set_host_addresses(&mut self, addresses: &[Ipv4Addr]) -> Result<(), ConfigError> {
        let mut host = Host::default();
        host.set_addresses(addresses, self.identity.gateway);
        if host.addresses() != self.host.addresses() {
            self.table = self.rules.compile(&host)?;
            self.host.set_addresses(addresses, self.identity.gateway);
        }
        Ok(())
    }

    /// From now on nothing but DHCP and ARP reaches the VM while it has no address, or one that
    /// [`Port::host_is_ready`] has not named: on its way may be what was meant for the address's former holder
    /// (rule H3).
    pub fn wait_for_host(&mut self) {
        self.ready = Some(Ready::No);
    }

    /// Nothing of a former holder of `address` is left on the host, so the VM may be reached there.
    pub fn host_is_ready(&mut self, address: Ipv4Addr) {
        self.ready = self.ready.map(|_| Ready::At(address));
    }

    /// The VM has lost its address; when it is given one again, the host has to get ready anew.
    pub fn host_is_not_ready(&mut self) {
        self.ready = self.ready.map(|_| Ready::No);
    }

    /// Takes the ports of the host that lead to other VMs, in place of those that were known before: this VM does not
    /// reach them by any address of the host (rule H2).
    pub fn set_exposed(&mut self, exposed: Vec<ExposedPort>) {
        self.host.set_exposed(exposed);
    }

    /// Judges and counts a frame that the VM sent: an Ethernet frame without its frame check sequence, with whole
    /// checksums.
    pub fn from_vm(&mut self, frame: &[u8], now: Timestamp) -> Verdict {
        self.advance(now);
        let verdict = verdict(self.judge_from_vm(frame, now));
        self.counters.from_vm.count(verdict, frame.len())
    }

    /// Judges and counts a frame that is on its way to the VM: an Ethernet frame without its frame check sequence. It
    /// may be a TCP or UDP super-frame that is segmented later, and is then judged as one.
    ///
    /// The UDP checksum of a DHCP reply is verified (rule B1), so a frame whose checksum the kernel left to be
    /// finished must be finished first, unless it is a super-frame.
    pub fn from_host(&mut self, frame: &[u8], now: Timestamp) -> Verdict {
        self.advance(now);
        let verdict = verdict(self.judge_from_host(frame, now));
        self.counters.from_host.count(verdict, frame.len())
    }

    /// Counts a frame of the VM that the link had to cut, and that is therefore dropped whole (rule L3).
    pub fn truncated_from_vm(&mut self) -> Verdict {
        self.counters.from_vm.count(Verdict::Drop(DropReason::Truncated), 0)
    }

    /// Counts a frame from the host that its link could not take in whole (rule L6).
    pub fn truncated_from_host(&mut self) -> Verdict {
        self.counters.from_host.count(Verdict::Drop(DropReason::HostOversize), 0)
    }

    /// Counts `frames` frames of `bytes` bytes together, which were forwarded and which the link then lost for
    /// `reason`: they are dropped frames, and no longer forwarded ones (rule L6). A super-frame of which anything is
    /// lost counts as a whole.
    pub fn dropped_by_link(&mut self, direction: Direction, reason: DropReason, frames: u64, bytes: u64) {
        let counters = match direction {
            Direction::FromVm => &mut self.counters.from_vm,
            Direction::FromHost => &mut self.counters.from_host,
        };
        counters.lose(reason, frames, bytes);
    }

    /// The oldest event that has not been fetched. Only the newest 8 are kept; [`Port::lease`] is always true.
    pub fn poll_event(&mut self) -> Option<PortEvent> {
        self.dhcp.poll_event()
    }

    /// When [`Port::advance`] has something to do: the end of the lease.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.dhcp.lease().and_then(|lease| lease.expires)
    }

    /// Does what is due at the time `now`: ends a lease that has run out. Judging a frame does the same, so calling
    /// this late never lets a frame pass; calling it at the deadline makes the event come in time.
    #[inline(always)]
    pub fn advance(&mut self, now: Timestamp) {
        self.dhcp.advance(now);
    }

    /// The VM's lease, if it has one that was valid when the port was last told the time.
    pub fn lease(&self) -> Option<Lease> {
        self.dhcp.lease().copied()
    }

    /// Takes over a lease that the VM got before this port existed, from the DHCP server's lease file, with the
    /// client identifier (option 61: type byte and value) under which the server files it, if any.
    ///
    /// Resolvers that cannot be any are left out (rule D5).
    ///
    /// # Errors
    ///
    /// If a DHCP reply with this lease would not have been believed either.
    pub fn adopt(
        &mut self,
        lease: Lease,
        client_id: Option<&[u8]>,
        now: Timestamp,
    ) -> Result<(), AdoptError> {
        self.advance(now);
        if self.dhcp.lease().is_some() {
            return Err(AdoptError::Bound);
        }
        if lease.server != self.identity.gateway {
            return Err(AdoptError::Server(lease.server));
        }
        if !self.identity.may_be_leased(lease.address) {
            return Err(AdoptError::Address(lease.address));
        }
        if !lease.is_valid_at(now) {
            return Err(AdoptError::Expired);
        }
        let client_id = match client_id {
            None => None,
            Some(id) if !(2..=255).contains(&id.len()) => return Err(AdoptError::ClientId),
            Some(id) => {
                if self.dhcp.client_ids.find(id).is_none() {
                    let _ = self.dhcp.client_ids.add(id);
                }
                ClientId::new(id)
            }
        };
        let resolvers = lease
            .resolvers
            .iter()
            .filter(|resolver| self.identity.is_sane_resolver(*resolver) && *resolver != lease.address);
        // Nobody knows whether it lasts as long as the server's leases usually do (B7).
        let terms = Terms { client_id, has_asked_time: true };
        self.dhcp.bind(Lease { resolvers: resolvers.collect(), ..lease }, terms, now);
        Ok(())
    }

    /// Gives the VM's address back at a clean end: the binding is gone at once, and the DHCPRELEASE that tells the
    /// server (RFC 2131, section 4.4.6) is returned for the host side. `None` if the server can have no lease for it.
    pub fn release(&mut self, now: Timestamp) -> Option<ReleaseFrame> {
        self.advance(now);
        let transaction = self.dhcp.transactions.fresh_id();
        let lease = self.dhcp.take_for_release(self.identity.server_files_by_mac, now)?;
        ReleaseFrame::new(&lease, &self.identity, transaction)
    }

    /// The DHCPRELEASE of an earlier lease, if there is one to send to the host side: the server has given the VM
    /// another address since, and a VM has one at a time (rule C5). It carries the identifier of that lease.
    pub fn poll_release(&mut self) -> Option<ReleaseFrame> {
        // A server that files by MAC address has one lease of the VM, and has moved it itself.
        let lease = self.dhcp.take_surplus().filter(|_| !self.identity.server_files_by_mac)?;
        ReleaseFrame::new(&lease, &self.identity, self.dhcp.transactions.fresh_id())
    }

    /// What was forwarded and dropped so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The rules L, A, S, D and C.
    #[inline(always)]
    fn judge_from_vm(&mut self, bytes: &[u8], now: Timestamp) -> Result<(), DropReason> {
        // L3
        let frame = Frame::parse(bytes).ok_or(DropReason::Runt)?;
        if bytes.len() > self.identity.max_frame_len {
            return Err(DropReason::Oversize);
        }
        // L1, L2: the source and the EtherType at once.
        let tail = frame.tail();
        if tail == self.identity.ipv4_from_vm {
            self.judge_ipv4_from_vm(frame, now)
        } else if tail == self.identity.arp_from_vm {
            self.judge_arp_from_vm(frame, now)
        } else {
            Err(self.why_not_from_vm(frame))
        }
    }

    /// L1, L2: what is wrong with a frame that is neither IPv4 nor ARP of the VM.
    #[cold]
    fn why_not_from_vm(&self, frame: Frame<'_>) -> DropReason {
        match frame.ether_type() {
            _ if frame.source() != self.identity.vm_mac => DropReason::SourceMac,
            EtherType::Vlan => DropReason::VlanTag,
            EtherType::Ipv6 => DropReason::Ipv6,
            EtherType::Ipv4 | EtherType::Arp | EtherType::Other => DropReason::EtherType,
        }
    }

    #[inline(always)]
    fn judge_arp_from_vm(&self, frame: Frame<'_>, now: Timestamp) -> Result<(), DropReason> {
        // A1
        let arp = Arp::parse(frame.payload()).ok_or(DropReason::ArpMalformed)?;
        // L4
        if frame.has_trailer(arp::LEN) {
            return Err(DropReason::TrailingBytes);
        }
        arp.judge_from_vm(frame, &self.identity, &self.table, &self.dhcp, now)
    }

    #[inline(always)]
    fn judge_ipv4_from_vm(&mut self, frame: Frame<'_>, now: Timestamp) -> Result<(), DropReason> {
        // S2, S3
        let packet = Packet::parse_plain(frame.payload())?;
        // L4
        if frame.has_trailer(packet.len()) {
            return Err(DropReason::TrailingBytes);
        }
        packet.judge_header()?;
        match packet.part() {
            part @ Part::Whole(_) => self.judge_part_from_vm(frame, packet, part, now),
            Part::First(_) | Part::Later => self.judge_fragment_from_vm(frame, now),
        }
    }

    /// A fragment takes a way of its own, so that whole packets need not ask again and again what they are. It looks
    /// at the packet afresh: to hand it over would cost every whole packet its registers.
    #[cold]
    fn judge_fragment_from_vm(&mut self, frame: Frame<'_>, now: Timestamp) -> Result<(), DropReason> {
        let packet = Packet::parse_plain(frame.payload())?;
        packet.judge_fragment()?;
        self.judge_part_from_vm(frame, packet, packet.part(), now)
    }

    #[inline(always)]
    fn judge_part_from_vm(
        &mut self,
        frame: Frame<'_>,
        packet: Packet<'_>,
        part: Part<'_>,
        now: Timestamp,
    ) -> Result<(), DropReason> {
        // S5
        let transport = Transport::parse(packet.protocol(), part)?;
        if let Transport::Udp(udp) = transport
            && udp.is_dhcp_from_vm()
        {
            let datagram = Datagram { source: packet.source(), destination: packet.destination(), udp, part };
            return dhcp::judge_from_vm(&mut self.dhcp, &self.identity, frame, datagram, now);
        }
        // S1. A lease that has run out was ended before.
        let Some(lease) = self.dhcp.lease() else {
            return Err(DropReason::NoLease);
        };
        if packet.source() != lease.address {
            return Err(DropReason::SourceAddress);
        }
        // D6: whoever it goes to.
        if let Transport::Icmp(message) = transport {
            icmp::judge(message, lease.address)?;
        }
        // D3, D4: whole packets to the world, which go by the gateway.
        if matches!(part, Part::Whole(_))
            && self.table.is_world(packet.destination())
            && frame.head() == self.identity.vm_to_gateway
        {
            return Ok(());
        }
        let to = Destination {
            address: packet.destination(),
            protocol: packet.protocol(),
            port: transport.destination_port(),
            is_fragment: !matches!(part, Part::Whole(_)),
        };
        destination::judge(&self.table, &self.host, &self.identity, lease, frame.destination(), to)
    }

    /// The rules B and I.
    #[inline(always)]
    fn judge_from_host(&mut self, bytes: &[u8], now: Timestamp) -> Result<(), DropReason> {
        // I4
        let frame = Frame::parse(bytes).ok_or(DropReason::HostMalformed)?;
        // I2
        match frame.ether_type() {
            EtherType::Ipv4 | EtherType::Arp => {}
            EtherType::Vlan => return Err(DropReason::HostVlanTag),
            EtherType::Ipv6 | EtherType::Other => return Err(DropReason::HostEtherType),
        }
        let is_for_vm = frame.destination() == self.identity.vm_mac || frame.destination().is_broadcast();
        if !is_for_vm && !is_multicast_ipv4(frame) {
            return Err(DropReason::OtherStation);
        }
        if frame.ether_type() == EtherType::Arp {
            let arp = Arp::parse(frame.payload()).ok_or(DropReason::HostMalformed)?;
            return arp.judge_from_host(frame, &self.identity);
        }
        let packet = Packet::parse(frame.payload()).ok_or(DropReason::HostMalformed)?;
        if !is_for_vm && !packet.destination().is_multicast() {
            return Err(DropReason::OtherStation);
        }
        // B6. What hides its ports, or is a later fragment of what had others, is no DHCP to anyone (I1).
        if packet.protocol() == ipv4::UDP
            && let Part::Whole(payload) | Part::First(payload) = packet.part()
        {
            let &[s0, s1, d0, d1, ..] =
                payload.first_chunk::<{ ipv4::UDP_HEADER_LEN }>().ok_or(DropReason::HostMalformed)?;
            let udp = Udp {
                source_port: u16::from_be_bytes([s0, s1]),
                destination_port: u16::from_be_bytes([d0, d1]),
            };
            if udp.destination_port == dhcp::CLIENT_PORT {
                return dhcp::judge_from_host(&mut self.dhcp, &self.identity, frame, packet, udp, now);
            }
        }
        // H3
        match self.ready {
            Some(ready) if self.dhcp.lease().is_none_or(|lease| ready != Ready::At(lease.address)) => {
                Err(DropReason::NotReady)
            }
            _ => Ok(()),
        }
    }
}

fn verdict(judgement: Result<(), DropReason>) -> Verdict {
    match judgement {
        Ok(()) => Verdict::Forward,
        Err(reason) => Verdict::Drop(reason),
    }
}

/// Whether a frame is for the stations of an IPv4 multicast group (RFC 1112, section 6.4).
fn is_multicast_ipv4(frame: Frame<'_>) -> bool {
    frame.ether_type() == EtherType::Ipv4
        && matches!(frame.destination().octets(), [0x01, 0x00, 0x5e, 0..=0x7f, _, _])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;

    /// The way of a VM from its first DHCP message to its first answer from the world.
    #[test]
    fn a_vm_starts_and_talks() {
        let mut port = fresh();
        assert_eq!(port.from_vm(&IpFrame::udp(WORLD_IP, 53).frame(), NOW), drop_for(DropReason::NoLease));
        assert_eq!(port.from_vm(&DhcpFrame::discover().frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_host(&DhcpFrame::offer().frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_vm(&ArpFrame::probe(OWN_IP).frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_vm(&DhcpFrame::request().frame(), NOW), Verdict::Forward);
        assert_eq!(port.lease(), None);
        assert_eq!(port.from_host(&DhcpFrame::ack().frame(), NOW), Verdict::Forward);
        let lease = port.lease().unwrap();
        assert_eq!(port.poll_event(), Some(PortEvent::Bound(lease)));
        assert_eq!(lease.address, OWN_IP);
        assert_eq!(port.next_deadline(), Some(NOW.saturating_add(core::time::Duration::from_secs(600))));
        assert_eq!(port.from_vm(&ArpFrame::request(GATEWAY_IP).frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_vm(&IpFrame::udp(WORLD_IP, 53).frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_host(&IpFrame::udp(WORLD_IP, 53).reversed().frame(), NOW), Verdict::Forward);
        assert_eq!(port.counters().from_vm.forwarded_frames(), 5);
        assert_eq!(port.counters().from_host.forwarded_frames(), 3);
    }

    /// L1: no other source address, whatever the frame carries.
    #[test]
    fn l1_foreign_source_mac_is_dropped() {
        let mut port = bound();
        let foreign = [GATEWAY, STRANGER, MacAddr::ZERO, MacAddr::BROADCAST, MacAddr([3, 0, 0, 0, 0, 1])];
        let near = (0..48).map(|bit| {
            let mut mac = VM.octets();
            mac[bit / 8] ^= 1 << (bit % 8);
            MacAddr(mac)
        });
        for from_mac in near.chain(foreign) {
            for frame in [
                IpFrame { from_mac, ..IpFrame::udp(WORLD_IP, 80) }.frame(),
                ArpFrame { from_mac, ..ArpFrame::request(GATEWAY_IP) }.frame(),
                DhcpFrame { from_mac, ..DhcpFrame::discover() }.frame(),
                ethernet(GATEWAY, from_mac, 0x86dd, &[]),
            ] {
                assert_eq!(port.from_vm(&frame, NOW), drop_for(DropReason::SourceMac), "{from_mac}");
            }
        }
    }

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
        let mtu = |mtu| Port::new(PortConfig { mtu, gateway, ..config.clone() }).err();
        assert_eq!((mtu(575), mtu(576), mtu(u16::MAX)), (Some(ConfigError::Mtu(575)), None, None));
    }

    /// S1: the leased address and no other, and DHCP alone without a lease.
    #[test]
    fn s1_source_is_the_lease() {
        let mut port = bound();
        for from in
            [GATEWAY_IP, OTHER_IP, Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, WORLD_IP, Ipv4Addr::LOCALHOST]
        {
            for frame in [IpFrame::udp(WORLD_IP, 80), IpFrame::tcp(WORLD_IP, 80), IpFrame::icmp(WORLD_IP, 8)]
            {
                let frame = IpFrame { from, ..frame };
                assert_eq!(port.from_vm(&frame.frame(), NOW), drop_for(DropReason::SourceAddress), "{from}");
                assert_eq!(fresh().from_vm(&frame.frame(), NOW), drop_for(DropReason::NoLease), "{from}");
                let later = frame.fragment(9);
                assert_eq!(port.from_vm(&later.frame(), NOW), drop_for(DropReason::SourceAddress), "{from}");
            }
        }
        assert_eq!(port.from_vm(&IpFrame::udp(WORLD_IP, 80).frame(), NOW), Verdict::Forward);
        assert_eq!(fresh().from_vm(&IpFrame::udp(WORLD_IP, 80).frame(), NOW), drop_for(DropReason::NoLease));
    }

    /// S1: an offer is no lease.
    #[test]
    fn s1_offer_is_no_lease() {
        let mut port = fresh();
        let _ = port.from_vm(&DhcpFrame::discover().frame(), NOW);
        let _ = port.from_host(&DhcpFrame::offer().frame(), NOW);
        assert_eq!(port.from_vm(&IpFrame::udp(GATEWAY_IP, 53).frame(), NOW), drop_for(DropReason::NoLease));
    }

    /// I1: what is for the VM passes, whoever sent it.
    #[test]
    fn i1_incoming_traffic_passes() {
        let mut port = fresh();
        for (to_mac, to) in [
            (VM, OWN_IP),
            (VM, OTHER_IP),
            (MacAddr::BROADCAST, Ipv4Addr::BROADCAST),
            (MacAddr::BROADCAST, Ipv4Addr::new(192, 168, 64, 255)),
            (MacAddr([0x01, 0, 0x5e, 0, 0, 0xfb]), Ipv4Addr::new(224, 0, 0, 251)),
            (MacAddr::BROADCAST, Ipv4Addr::new(224, 0, 0, 251)),
            (VM, Ipv4Addr::new(224, 0, 0, 251)),
        ] {
            for from_mac in [GATEWAY, STRANGER] {
                for from in [GATEWAY_IP, NEIGHBOUR_IP, WORLD_IP] {
                    let back = |frame: IpFrame| IpFrame { to_mac, from_mac, from, to, ..frame };
                    for frame in [
                        back(IpFrame::udp(to, 1234)),
                        back(IpFrame::udp(to, 67)),
                        back(IpFrame::tcp(to, 22)),
                        back(IpFrame::icmp(to, 3)),
                        back(IpFrame::icmp(to, 8)),
                        back(IpFrame::new(to, 47, [0; 9])),
                        back(IpFrame::udp(to, 1234).fragment(0x2000)),
                        back(IpFrame::udp(to, 68).fragment(0x2001)),
                        back(IpFrame::new(to, 17, [0; 3]).fragment(7)),
                    ] {
                        assert_eq!(port.from_host(&frame.frame(), NOW), Verdict::Forward);
                    }
                }
            }
        }
        let arp =
            ArpFrame { to_mac: VM, from_mac: GATEWAY, sender_mac: GATEWAY, ..ArpFrame::request(OWN_IP) };
        for to_mac in [VM, MacAddr::BROADCAST] {
            assert_eq!(port.from_host(&ArpFrame { to_mac, ..arp }.frame(), NOW), Verdict::Forward);
        }
    }

    /// I1: a super-frame is one frame, up to the longest that there is.
    #[test]
    fn i1_super_frames_pass() {
        let mut port = fresh();
        let mut segment = tcp(80, 40_000);
        segment.resize(65_515, 0);
        let frame = IpFrame::new(WORLD_IP, 6, segment).reversed().frame();
        assert_eq!(frame.len(), 65_549);
        assert_eq!(port.from_host(&frame, NOW), Verdict::Forward);
    }

    /// I2: frames for other stations and groups do not pass.
    #[test]
    fn i2_other_stations() {
        let mut port = bound();
        let frame = IpFrame::udp(WORLD_IP, 80).reversed();
        let arp = ArpFrame { from_mac: GATEWAY, sender_mac: GATEWAY, ..ArpFrame::request(OWN_IP) };
        for mac in [
            STRANGER,
            GATEWAY,
            MacAddr::ZERO,
            MacAddr([0x01, 0x80, 0xc2, 0, 0, 0]),
            MacAddr([0x33, 0x33, 0, 0, 0, 1]),
            MacAddr([0x01, 0, 0x5e, 0x80, 0, 0xfb]),
            MacAddr([0x01, 0, 0x5e, 0, 0, 0xfb]),
        ] {
            let dropped = drop_for(DropReason::OtherStation);
            assert_eq!(port.from_host(&frame.clone().in_frame_to(mac).frame(), NOW), dropped, "{mac}");
            assert_eq!(port.from_host(&ArpFrame { to_mac: mac, ..arp }.frame(), NOW), dropped, "{mac}");
        }
    }

    /// I2: nothing but IPv4 and ARP, and no tags.
    #[test]
    fn i2_other_ether_types() {
        let mut port = bound();
        let packet = IpFrame::udp(WORLD_IP, 80).reversed().packet();
        for ether_type in 0..=u16::MAX {
            let expected = match ether_type {
                0x0800 => Verdict::Forward,
                0x0806 => drop_for(DropReason::HostMalformed),
                0x8100 | 0x88a8 | 0x9100 | 0x9200 | 0x9300 => drop_for(DropReason::HostVlanTag),
                _ => drop_for(DropReason::HostEtherType),
            };
            for to_mac in [VM, MacAddr::BROADCAST] {
                let frame = ethernet(to_mac, GATEWAY, ether_type, &packet);
                assert_eq!(port.from_host(&frame, NOW), expected, "{ether_type:#06x}");
            }
        }
    }

    /// I4: every prefix of every kind of frame, and every byte of them changed: a verdict, and no lease.
    #[test]
    fn i4_garbage_harms_nothing() {
        let frames = [
            IpFrame::udp(WORLD_IP, 80).reversed().frame(),
            IpFrame::tcp(WORLD_IP, 80).reversed().frame(),
            ArpFrame { to_mac: VM, from_mac: GATEWAY, sender_mac: GATEWAY, ..ArpFrame::request(OWN_IP) }
                .frame(),
            DhcpFrame::ack().frame(),
            DhcpFrame::nak().frame(),
        ];
        let mut port = fresh();
        let malformed = drop_for(DropReason::HostMalformed);
        for frame in &frames {
            for len in 0..frame.len() {
                assert!(!port.from_host(&frame[..len], NOW).is_forward(), "{len}");
                let _ = port.from_vm(&frame[..len], NOW);
                if len < 34 {
                    assert_eq!(port.from_host(&frame[..len], NOW), malformed, "{len}");
                }
            }
            for at in 0..frame.len() {
                for value in [0, 1, 0x45, 0x7f, 0x80, 0xff] {
                    let mut frame = frame.clone();
                    frame[at] = value;
                    let _ = port.from_host(&frame, NOW);
                    let _ = port.from_vm(&frame, NOW);
                }
            }
        }
        assert_eq!(port.lease(), None);
        for byte in [0, 0x08, 0x45, 0xff] {
            for len in [0, 1, 13, 14, 33, 34, 60, 1514, 65_535, 65_600] {
                let _ = port.from_host(&vec![byte; len], NOW);
                let _ = port.from_vm(&vec![byte; len], NOW);
            }
        }
        assert_eq!(port.lease(), None);
    }

    /// H3: what may be for a former holder of the VM's address does not reach it; ARP and DHCP do.
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
        assert_eq!(port.from_host(&data, NOW), Verdict::Forward, "where nobody waits for the host");
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
        port.host_is_not_ready();
        assert_eq!(port.from_host(&data, NOW), not_ready);
        port.host_is_ready(OWN_IP);
        let end = NOW.saturating_add(core::time::Duration::from_secs(600));
        assert_eq!(port.from_host(&data, end), not_ready, "the lease is over");
        let mut port = bound();
        port.host_is_ready(OTHER_IP);
        assert_eq!(port.from_host(&data, NOW), Verdict::Forward, "who does not wait is not made to");
    }

    /// L6: what a link loses is dropped, not forwarded.
    #[test]
    fn l6_losses_of_links_are_drops() {
        let mut port = bound();
        let frame = IpFrame::udp(WORLD_IP, 80).frame();
        for _ in 0..3 {
            assert!(port.from_vm(&frame, NOW).is_forward());
        }
        let len = frame.len() as u64;
        let before = port.counters().from_vm.forwarded_bytes();
        port.dropped_by_link(Direction::FromVm, DropReason::HostQueueFull, 2, 2 * len);
        port.dropped_by_link(Direction::FromHost, DropReason::VmRefused, 1, 1);
        let _ = port.truncated_from_host();
        let Counters { from_vm, from_host } = port.counters();
        assert_eq!(from_vm.forwarded_frames(), 2, "the request and one datagram");
        assert_eq!(from_vm.forwarded_bytes(), before - 2 * len);
        assert_eq!((from_vm.dropped(DropReason::HostQueueFull), from_vm.dropped_total()), (2, 2));
        assert_eq!((from_host.forwarded_frames(), from_host.dropped_total()), (0, 2));
    }

    /// A lease of the server's file is taken over if a reply with it would have been believed.
    #[test]
    fn adopt_checks_the_lease() {
        let lease = Lease {
            address: OWN_IP,
            server: GATEWAY_IP,
            expires: Some(Timestamp::from_secs(1_600)),
            resolvers: [RESOLVER_IP, Ipv4Addr::LOCALHOST, OWN_IP].into_iter().collect(),
        };
        let mut port = fresh();
        for (bad, error) in [
            (Lease { address: GATEWAY_IP, ..lease }, AdoptError::Address(GATEWAY_IP)),
            (Lease { address: WORLD_IP, ..lease }, AdoptError::Address(WORLD_IP)),
            (Lease { server: OTHER_IP, ..lease }, AdoptError::Server(OTHER_IP)),
            (Lease { expires: Some(NOW), ..lease }, AdoptError::Expired),
        ] {
            assert_eq!(port.adopt(bad, None, NOW), Err(error));
        }
        for id in [&[][..], &[0], &[0; 256]] {
            assert_eq!(port.adopt(lease, Some(id), NOW), Err(AdoptError::ClientId));
        }
        assert_eq!(port.lease(), None);
        assert_eq!(port.adopt(lease, Some(b"\0system"), NOW), Ok(()));
        let adopted = Lease { resolvers: [RESOLVER_IP].into_iter().collect(), ..lease };
        assert_eq!(port.lease(), Some(adopted));
        assert_eq!(port.poll_event(), Some(PortEvent::Bound(adopted)));
        assert_eq!(port.adopt(lease, None, NOW), Err(AdoptError::Bound));
        assert_eq!(port.from_vm(&IpFrame::udp(WORLD_IP, 80).frame(), NOW), Verdict::Forward);
        // After its end another one can be.
        let mut longest = [7; 255];
        longest[0] = 0;
        let next = Lease { expires: None, ..lease };
        assert_eq!(port.adopt(next, Some(&longest), Timestamp::from_secs(1_600)), Ok(()));
        assert_eq!(port.next_deadline(), None);
        // The identifier is the one under which the lease is given back, and a known one (C5).
        let end = Timestamp::from_secs(1_600);
        assert!(port.release(end).is_some_and(|frame| frame.windows(255).any(|window| window == longest)));
        for n in 1..=4 {
            let discover = DhcpFrame::discover().option(61, &longest[..255 - usize::from(n == 1)]).xid(n);
            assert_eq!(port.from_vm(&discover.frame(), end), Verdict::Forward);
        }
    }
}
