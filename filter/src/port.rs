//! The port of one VM: everything that is known about it, and the judgement of its frames.

use core::fmt;
use core::net::Ipv4Addr;
use core::ops::Deref;

use ipnet::Ipv4Net;

use crate::counters::Counters;
use crate::lease::Lease;
use crate::mac::MacAddr;
use crate::policy::Policy;
use crate::time::Timestamp;
use crate::verdict::{DropReason, Verdict};

/// What `--vm-net-type` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum NetType {
    /// The VM reaches the world through the host.
    #[default]
    Nat,
    /// The VM reaches no global destination, only the gateway and what the policy allows (rule D9).
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
    /// The VM uses another client identifier than before; there have been `used` of the
    /// [`Port::MAX_CLIENT_IDS`] that it may use (rule C5).
    ClientIdChanged {
        /// Different client identifiers so far, this one included.
        used: usize,
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

/// A DHCPRELEASE as a whole Ethernet frame, for the host side.
#[derive(Clone, PartialEq, Eq)]
pub struct ReleaseFrame {
    bytes: [u8; Self::CAPACITY],
    len: usize,
}

impl ReleaseFrame {
    /// Headers, the fixed part, and the options with the longest client identifier.
    const CAPACITY: usize = 14 + 20 + 8 + 240 + 3 + 6 + 257 + 1;
}

impl Deref for ReleaseFrame {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
}

impl fmt::Debug for ReleaseFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReleaseFrame").field("len", &self.len).finish_non_exhaustive()
    }
}

/// The port of one VM.
///
/// Frames of both directions must be given in the order in which they pass, with a `now` that does not go back.
#[derive(Debug)]
pub struct Port {
    config: PortConfig,
    lease: Option<Lease>,
    counters: Counters,
}

impl Port {
    /// How many different DHCP client identifiers a VM may use in its life: firmware, installer, system, and one to
    /// spare (rule C5).
    pub const MAX_CLIENT_IDS: usize = 4;

    /// A port without a lease.
    ///
    /// # Errors
    ///
    /// If the configuration contradicts itself.
    pub fn new(config: PortConfig) -> Result<Self, ConfigError> {
        if !config.vm_mac.is_unicast() {
            return Err(ConfigError::VmMac(config.vm_mac));
        }
        Ok(Self { config, lease: None, counters: Counters::default() })
    }

    /// Judges and counts a frame that the VM sent: an Ethernet frame without its frame check sequence, with whole
    /// checksums.
    pub fn from_vm(&mut self, frame: &[u8], now: Timestamp) -> Verdict {
        self.advance(now);
        let verdict = if frame.len() < 14 { Verdict::Drop(DropReason::Runt) } else { Verdict::Forward };
        self.counters.from_vm.count(verdict, frame.len())
    }

    /// Judges and counts a frame that is on its way to the VM: an Ethernet frame without its frame check sequence. It
    /// may be a TCP or UDP super-frame that is segmented later, and is then judged as one.
    ///
    /// The UDP checksum of a DHCP reply is verified (rule B1), so a frame whose checksum the kernel left to be
    /// finished must be finished first, unless it is a super-frame.
    pub fn from_host(&mut self, frame: &[u8], now: Timestamp) -> Verdict {
        self.advance(now);
        let verdict =
            if frame.len() < 14 { Verdict::Drop(DropReason::HostMalformed) } else { Verdict::Forward };
        self.counters.from_host.count(verdict, frame.len())
    }

    /// Counts a frame of the VM that the link had to cut, and that is therefore dropped whole (rule L3).
    pub fn truncated_from_vm(&mut self) -> Verdict {
        self.counters.from_vm.count(Verdict::Drop(DropReason::Truncated), 0)
    }

    /// The oldest event that has not been fetched. Only the newest 8 are kept; [`Port::lease`] is always true.
    pub fn poll_event(&mut self) -> Option<PortEvent> {
        None
    }

    /// When [`Port::advance`] has something to do: the end of the lease.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.lease.and_then(|lease| lease.expires)
    }

    /// Does what is due at the time `now`: ends a lease that has run out. Judging a frame does the same, so calling
    /// this late never lets a frame pass; calling it at the deadline makes the event come in time.
    pub fn advance(&mut self, now: Timestamp) {
        let _ = now;
    }

    /// The VM's lease, if it has one that was valid when the port was last told the time.
    pub fn lease(&self) -> Option<Lease> {
        self.lease
    }

    /// Takes over a lease that the VM got before this port existed, from the DHCP server's lease file, with the
    /// client identifier (option 61: type byte and value) under which the server files it, if any.
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
        let _ = client_id;
        if !lease.is_valid_at(now) {
            return Err(AdoptError::Expired);
        }
        self.lease = Some(lease);
        Ok(())
    }

    /// Gives the VM's address back at a clean end: the binding is gone at once, and the DHCPRELEASE that tells the
    /// server (RFC 2131, section 4.4.6) is returned for the host side. `None` without a lease.
    pub fn release(&mut self) -> Option<ReleaseFrame> {
        None
    }

    /// What was forwarded and dropped so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}
