//! Frames and steps in symbols: what stands for an address or a station is known only when the frame is made.

use std::time::Duration;

use softnet_filter::Rule;

use super::wire;
use crate::oracle::dhcp;

/// An IPv4 address by what it is.
#[derive(Debug, Clone, Copy)]
pub enum Address {
    /// The VM's lease; before it has one, the address last offered.
    Own,
    Gateway,
    /// The DHCP server, which may be the gateway.
    Server,
    Neighbour,
    FarResolver,
    Zero,
    LimitedBroadcast,
    Network,
    SubnetBroadcast,
    World,
    Offered,
    Private,
    Metadata,
    Loopback,
    Group,
    /// The last lease if it has expired, else the lease.
    Last,
    HostPublic,
    HostPrivate,
    HostOnLink,
    OtherInSubnet(u8),
    Any(u32),
}

/// An Ethernet address by whose it is.
#[derive(Debug, Clone, Copy)]
pub enum Station {
    Vm,
    Gateway,
    /// The DHCP server.
    Server,
    Neighbour,
    Broadcast,
    /// That of the packet's multicast group.
    Group,
    /// Bridges' own, 01:80:c2:00:00:00.
    Reserved,
    Zero,
    Any([u8; 6]),
}

/// A transaction of DHCP.
#[derive(Debug, Clone, Copy)]
pub enum Xid {
    /// That of the VM's last message.
    Last,
    /// One of a few.
    Numbered(u8),
}

/// What is in an IPv4 packet.
#[derive(Debug, Clone)]
pub enum Content {
    Udp {
        from: u16,
        to: u16,
        data: Vec<u8>,
    },
    Tcp {
        from: u16,
        to: u16,
        flags: u8,
        data: Vec<u8>,
    },
    Icmp {
        kind: u8,
        quoted: Option<(Address, Address)>,
        data: Vec<u8>,
    },
    /// Of versions 1 and 2 about the group, of version 3 about one record of it.
    Igmp {
        kind: u8,
        group: Address,
    },
    Other {
        protocol: u8,
        data: Vec<u8>,
    },
}

/// A message of the VM to the DHCP server.
#[derive(Debug, Clone)]
pub struct Question {
    pub kind: u8,
    pub xid: Xid,
    pub source: Address,
    /// The server's port.
    pub port: u16,
    /// To the server alone, or to all.
    pub unicast: bool,
    pub client: Address,
    pub requested: Option<Address>,
    pub server: Option<Address>,
    pub client_id: Option<Vec<u8>>,
    pub extra: Vec<(u8, Vec<u8>)>,
}

/// A message of the DHCP server, or of one who plays it.
#[derive(Debug, Clone)]
pub struct Answer {
    pub kind: u8,
    /// The server's port.
    pub port: u16,
    pub xid: Xid,
    pub station: Station,
    pub source: Address,
    pub to: Station,
    pub destination: Address,
    pub yours: Address,
    pub server: Option<Address>,
    pub lease_time: Option<u32>,
    pub resolvers: Vec<Address>,
    pub mac: Station,
    pub extra: Vec<(u8, Vec<u8>)>,
}

/// A frame in symbols.
#[derive(Debug, Clone)]
pub enum Symbol {
    Arp {
        operation: u16,
        mac: Station,
        sender: Address,
        target: Address,
    },
    Ipv4 {
        source: Address,
        destination: Address,
        fragment: u16,
        time_to_live: u8,
        content: Content,
    },
    Question(Question),
    Answer(Answer),
    /// Any other EtherType.
    Other {
        ether_type: u16,
        body: Vec<u8>,
    },
}

/// How a finished frame is spoilt.
#[derive(Debug, Clone)]
pub enum Damage {
    /// A byte somewhere, from the begin or within the options of DHCP.
    Set {
        at: usize,
        value: u8,
    },
    Flip {
        at: usize,
        bit: u8,
    },
    /// Cut after so many bytes.
    Cut {
        length: usize,
    },
    /// Bytes behind the frame.
    Append {
        count: usize,
        byte: u8,
    },
    /// IPv4 options, all of them "no operation", with lengths and checksums to match.
    Options {
        words: usize,
    },
    /// Router Alert as the only option, with lengths and checksums to match.
    RouterAlert,
    /// Padding to the shortest frame.
    Pad,
    /// Checksums made right again, so that damage gets past them.
    Repair,
}

/// A frame with its stations and its damage.
#[derive(Debug, Clone)]
pub struct Shot {
    pub to: Station,
    pub from: Station,
    pub symbol: Symbol,
    pub damage: Vec<Damage>,
}

/// What happens next.
#[derive(Debug, Clone)]
pub enum Step {
    Wait(Duration),
    Vm(Box<Shot>),
    Host(Box<Shot>),
    /// A whole dialogue: DISCOVER, OFFER, REQUEST, ACK.
    Dora {
        address: Address,
        lease_time: u32,
        resolvers: Vec<Address>,
    },
    /// REQUEST to the server alone and its ACK.
    Renew {
        lease_time: u32,
    },
    /// REQUESTs as fast as can be.
    Flood {
        count: usize,
        xid: u8,
    },
    /// The last frame of the VM, or for it, once more.
    Replay {
        of_vm: bool,
    },
    /// The host's addresses besides the gateway's.
    HostAddresses(Vec<Address>),
    /// Ports that lead to other VMs: protocol, port, address.
    Exposed(Vec<(u8, u16, Option<Address>)>),
    /// Another policy.
    Policy(Vec<Rule>),
    /// C10: which lease was the VM's last.
    LastLease(Option<Address>),
    /// What answers the last frame of the other side: stations, addresses and ports change places.
    Answer {
        of_vm: bool,
        flags: u8,
    },
    /// A frame that the link had to cut.
    Truncated,
}

impl Question {
    /// A message to all by a VM without an address, in the last transaction.
    pub fn new(kind: u8) -> Self {
        Self {
            kind,
            xid: Xid::Last,
            source: Address::Zero,
            port: 67,
            unicast: false,
            client: Address::Zero,
            requested: None,
            server: None,
            client_id: None,
            extra: vec![],
        }
    }
}

impl Answer {
    /// The server's answer to the VM's last message.
    pub fn new(kind: u8, yours: Address, lease_time: u32) -> Self {
        Self {
            kind,
            port: 67,
            xid: Xid::Last,
            station: Station::Server,
            source: Address::Server,
            to: Station::Vm,
            destination: yours,
            yours,
            server: Some(Address::Server),
            lease_time: Some(lease_time),
            resolvers: vec![],
            mac: Station::Vm,
            extra: vec![],
        }
    }

    /// The server's no to the VM's last message.
    pub fn nak() -> Self {
        Self {
            destination: Address::LimitedBroadcast,
            to: Station::Broadcast,
            lease_time: None,
            ..Self::new(dhcp::NAK, Address::Zero, 0)
        }
    }
}

impl Damage {
    pub fn apply(&self, frame: &mut Vec<u8>) {
        match *self {
            Self::Set { at, value } => {
                if let Some(byte) = frame.get_mut(at) {
                    *byte = value;
                }
            }
            Self::Flip { at, bit } => {
                if let Some(byte) = frame.get_mut(at) {
                    *byte ^= 1 << (bit & 7);
                }
            }
            Self::Cut { length } => frame.truncate(length),
            Self::Append { count, byte } => frame.resize(frame.len() + count, byte),
            Self::Options { words } => wire::insert_options(frame, &vec![1; 4 * words]),
            Self::RouterAlert => wire::insert_options(frame, &[148, 4, 0, 0]),
            Self::Pad => frame.resize(frame.len().max(60), 0),
            Self::Repair => wire::fix(frame),
        }
    }
}
