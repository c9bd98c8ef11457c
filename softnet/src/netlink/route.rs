//! Links, addresses and routes by rtnetlink (RFC 3549): the few requests that the host side needs, blocking.
//!
//! Netlink answers for the caller's network namespace. sysfs (`/sys/class/net`) shows the namespace of the
//! process that mounted it, so nothing in Softnet reads it. This module contains no policy: it executes
//! requests on an interface index, and every error names the request.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use ipnet::Ipv4Net;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NetlinkDeserializable, NetlinkHeader,
    NetlinkSerializable, Nla, Parseable,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    BridgePortState, BridgeStpState, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData,
    InfoPortKind, InfoTun, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State,
};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use softnet_filter::MacAddr;

use super::Connection;

/// A request that the kernel refused or that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The netlink socket could not be opened.
    #[error("cannot open a netlink socket: {0}")]
    Open(#[source] io::Error),
    /// The kernel refused the request.
    #[error("cannot {request}: {source}{}", hint(source))]
    Refused {
        /// The request, with the interface's name or index.
        request: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel's answer could not be read.
    #[error("cannot {request}: the kernel's answer is invalid ({detail})")]
    Answer {
        /// The request.
        request: String,
        /// What was wrong with the answer.
        detail: String,
    },
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => " (this needs CAP_NET_ADMIN: start Softnet as root)",
        _ => "",
    }
}

/// The kinds of links that Softnet distinguishes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// A bridge.
    Bridge,
    /// A TUN or TAP device.
    Tun(Tun),
    /// WireGuard.
    Wireguard,
    /// Anything else, physical interfaces included.
    Other,
}

/// The kernel's attributes of a TUN or TAP device (`IFLA_TUN_*`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Tun {
    /// It carries Ethernet frames (TAP), not IP packets (TUN).
    pub tap: bool,
    /// It persists when no process is attached.
    pub persistent: bool,
    /// It was created with `IFF_MULTI_QUEUE`, so attaching needs that flag too.
    pub multi_queue: bool,
    /// It was created with `IFF_VNET_HDR`.
    pub vnet_header: bool,
    /// The user that may attach to it without privilege.
    pub owner: Option<u32>,
    /// The group that may attach to it without privilege.
    pub group: Option<u32>,
}

/// The state of one interface at the time of the request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its index, which is unique while the interface exists.
    pub index: u32,
    /// Its kind.
    pub kind: Kind,
    /// Index of the bridge (or bond, or VRF) that it is a port of.
    pub master: Option<u32>,
    /// Its hardware address; `None` for links that are not Ethernet.
    pub mac: Option<MacAddr>,
    /// Largest payload of one frame, in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// The queueing discipline is active. The kernel attaches it shortly after carrier-up; earlier frames are
    /// dropped.
    pub transmits: bool,
    /// The kernel's `isolated` flag, if the link is a bridge's port.
    pub isolated: Option<bool>,
    /// Whether the bridge carries frames to and from the link, if it is a bridge's port.
    pub forwards: Option<bool>,
    /// If it is a bridge with a spanning tree: how long it listens and learns before it carries a new port's frames.
    pub spanning_tree: Option<Duration>,
}

/// An IPv4 route.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Route {
    /// Its destination; `0.0.0.0/0` is the default route.
    pub destination: Ipv4Net,
    /// Index of its outgoing interface.
    pub output: Option<u32>,
}

/// A socket for rtnetlink in the network namespace that it was opened in.
#[derive(Debug)]
pub struct Netlink {
    connection: Connection,
}

impl Netlink {
    /// Opens the socket. Reading needs no privilege, changes need `CAP_NET_ADMIN`.
    pub fn open() -> Result<Self, Error> {
        Connection::open(NETLINK_ROUTE).map(|connection| Netlink { connection }).map_err(Error::Open)
    }

    /// The link called `name`, or `None` if there is none.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.into()));
        self.one_link(&format!("look up interface {name}"), message)
    }

    /// The link with `index`, or `None` if it is gone.
    pub fn link_at(&mut self, index: u32) -> Result<Option<Link>, Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.one_link(&format!("look up interface number {index}"), message)
    }

    /// All links of the namespace.
    pub fn links(&mut self) -> Result<Vec<Link>, Error> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = self.exchange("list the interfaces", request, NLM_F_DUMP)?;
        Ok(answers.into_iter().filter_map(new_link).collect())
    }

    /// Creates the bridge `name` with a fixed hardware address and MTU, down. Fails with `EEXIST` if the name
    /// is taken.
    ///
    /// A bridge whose address was set explicitly keeps it when ports come and go.
    pub fn create_bridge(&mut self, name: &str, mac: MacAddr, mtu: u32) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.attributes.extend([
            LinkAttribute::IfName(name.into()),
            LinkAttribute::Address(mac.octets().to_vec()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
        ]);
        let what = format!("create bridge {name}");
        self.change(&what, RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Deletes the link with `index`.
    pub fn delete_link(&mut self, index: u32) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.change(&format!("delete interface number {index}"), RouteNetlinkMessage::DelLink(message), 0)
    }

    /// Sets the link's hardware address.
    pub fn set_mac(&mut self, index: u32, mac: MacAddr) -> Result<(), Error> {
        self.set_link("set the MAC address", index, |message| {
            message.attributes.push(LinkAttribute::Address(mac.octets().to_vec()));
        })
    }

    /// Sets the link's MTU in bytes.
    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> Result<(), Error> {
        self.set_link("set the MTU", index, |message| message.attributes.push(LinkAttribute::Mtu(mtu)))
    }

    /// Brings the link up.
    pub fn set_up(&mut self, index: u32) -> Result<(), Error> {
        self.set_link("bring up", index, |message| {
            message.header.flags = LinkFlags::Up;
            message.header.change_mask = LinkFlags::Up;
        })
    }

    /// Brings the link down: it carries no frame from then on.
    pub fn set_down(&mut self, index: u32) -> Result<(), Error> {
        self.set_link("bring down", index, |message| message.header.change_mask = LinkFlags::Up)
    }

    /// Makes the link a port of the bridge with index `bridge`.
    pub fn enslave(&mut self, port: u32, bridge: u32) -> Result<(), Error> {
        self.set_link("enslave to the bridge", port, |message| {
            message.attributes.push(LinkAttribute::Controller(bridge));
        })
    }

    /// Sets or clears the kernel's `isolated` flag of a bridge's port. Isolated ports exchange no frames with
    /// each other.
    pub fn set_isolated(&mut self, port: u32, isolated: bool) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.index = port;
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::Isolated(isolated)])),
        ]));
        let what = format!("set the isolation of bridge port number {port}");
        self.change(&what, RouteNetlinkMessage::NewLink(message), 0)
    }

    /// The link's IPv4 addresses with their prefix lengths, the primary ones first.
    pub fn addresses(&mut self, index: u32) -> Result<Vec<Ipv4Net>, Error> {
        let all = self.all_addresses()?;
        Ok(all.into_iter().filter(|(of, _)| *of == index).map(|(_, address)| address).collect())
    }

    /// All IPv4 addresses of the namespace with their prefix lengths and the indices of their links.
    pub fn all_addresses(&mut self) -> Result<Vec<(u32, Ipv4Net)>, Error> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        let what = "list the IPv4 addresses";
        let answers = self.exchange(what, RouteNetlinkMessage::GetAddress(message), NLM_F_DUMP)?;
        let addresses = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(message) => Some((message.header.index, address_of(&message)?)),
            _ => None,
        });
        Ok(addresses.collect())
    }

    /// Adds an IPv4 address to the link. Succeeds if the link already has it.
    pub fn add_address(&mut self, index: u32, address: Ipv4Net) -> Result<(), Error> {
        let what = format!("add address {address} to interface number {index}");
        let message = RouteNetlinkMessage::NewAddress(address_message(index, address));
        self.change(&what, message, NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Removes an IPv4 address from the link.
    pub fn remove_address(&mut self, index: u32, address: Ipv4Net) -> Result<(), Error> {
        let what = format!("remove address {address} from interface number {index}");
        self.change(&what, RouteNetlinkMessage::DelAddress(address_message(index, address)), 0)
    }

    /// Deletes the neighbour entry of `address` on the interface, and drops the packets that wait for its MAC
    /// address. Succeeds if there is no such entry.
    pub fn forget_neighbour(&mut self, index: u32, address: Ipv4Addr) -> Result<(), Error> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = index;
        message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(address)));
        let what = format!("forget the neighbour {address} on interface number {index}");
        match self.change(&what, RouteNetlinkMessage::DelNeighbour(message), 0) {
            Err(Error::Refused { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
            outcome => outcome,
        }
    }

    /// All IPv4 routes that carry traffic away or refuse it, of every table; the host's own addresses are not
    /// among them.
    pub fn routes(&mut self) -> Result<Vec<Route>, Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        let answers =
            self.exchange("list the IPv4 routes", RouteNetlinkMessage::GetRoute(message), NLM_F_DUMP)?;
        Ok(answers.into_iter().filter_map(|answer| route_of(&answer)).collect())
    }

    fn one_link(&mut self, what: &str, message: LinkMessage) -> Result<Option<Link>, Error> {
        match self.exchange(what, RouteNetlinkMessage::GetLink(message), 0) {
            Ok(answers) => Ok(answers.into_iter().find_map(new_link)),
            Err(Error::Refused { source, .. })
                if source.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn set_link(&mut self, what: &str, index: u32, fill: impl FnOnce(&mut LinkMessage)) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        fill(&mut message);
        let what = format!("{what} (interface number {index})");
        self.change(&what, RouteNetlinkMessage::SetLink(message), 0)
    }

    fn change(&mut self, what: &str, message: RouteNetlinkMessage, flags: u16) -> Result<(), Error> {
        self.exchange(what, message, flags | NLM_F_ACK).map(drop)
    }

    /// Sends one request and collects the answers.
    fn exchange(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        let mut payload = vec![0; message.buffer_len()];
        message.serialize(&mut payload);
        let is_dump = flags & NLM_F_DUMP == NLM_F_DUMP;
        let mut answers = Vec::new();
        let outcome = self.connection.exchange(message.message_type(), flags, &payload, |answer| {
            match NetlinkHeader::parse(answer)
                .and_then(|header| RouteNetlinkMessage::deserialize(&header, answer.payload()))
            {
                Ok(answer) => answers.push(answer),
                // One link or route that cannot be decoded must not hide all the others.
                Err(error) if is_dump => tracing::debug!(%error, "skipped a netlink message"),
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            }
            Ok(())
        });
        match outcome {
            Ok(()) => Ok(answers),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Err(Error::Answer { request: what.to_owned(), detail: error.to_string() })
            }
            Err(source) => Err(Error::Refused { request: what.to_owned(), source }),
        }
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.socket.as_fd()
    }
}

fn new_link(answer: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = answer else { return None };
    let mut link = Link {
        name: String::new(),
        index: message.header.index,
        kind: Kind::Other,
        master: None,
        mac: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        // A link whose state the kernel does not report is assumed to transmit.
        transmits: true,
        isolated: None,
        forwards: None,
        spanning_tree: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(bytes) => link.mac = <[u8; 6]>::try_from(bytes).ok().map(MacAddr::from),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Controller(index) => link.master = Some(index),
            // A link without a carrier has no queue if it never had one (`noop_qdisc`), and is down if it
            // lost it.
            LinkAttribute::Qdisc(discipline) => link.transmits &= discipline != "noop",
            LinkAttribute::OperState(state) => link.transmits &= matches!(state, State::Up | State::Unknown),
            LinkAttribute::LinkInfo(infos) => read_info(&mut link, infos),
            _ => {}
        }
    }
    Some(link)
}

fn read_info(link: &mut Link, infos: Vec<LinkInfo>) {
    for info in infos {
        match info {
            LinkInfo::Kind(InfoKind::Bridge) => link.kind = Kind::Bridge,
            LinkInfo::Kind(InfoKind::Wireguard) => link.kind = Kind::Wireguard,
            LinkInfo::Kind(InfoKind::Tun) => link.kind = Kind::Tun(Tun::default()),
            LinkInfo::Data(InfoData::Bridge(attributes)) => link.spanning_tree = spanning_tree(&attributes),
            LinkInfo::Data(InfoData::Tun(attributes)) => link.kind = Kind::Tun(read_tun(&attributes)),
            LinkInfo::PortData(InfoPortData::BridgePort(attributes)) => {
                for attribute in attributes {
                    match attribute {
                        InfoBridgePort::Isolated(isolated) => link.isolated = Some(isolated),
                        InfoBridgePort::State(state) => {
                            link.forwards = Some(state == BridgePortState::Forwarding);
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
}

/// Twice the forward delay, which the kernel reports in hundredths of a second: once to listen, once to learn.
fn spanning_tree(attributes: &[InfoBridge]) -> Option<Duration> {
    let mut is_on = false;
    let mut delay = 0;
    for attribute in attributes {
        match attribute {
            InfoBridge::StpState(state) => is_on = *state != BridgeStpState::Disabled,
            InfoBridge::ForwardDelay(hundredths) => delay = *hundredths,
            _ => {}
        }
    }
    is_on.then(|| Duration::from_millis(u64::from(delay) * 20))
}

/// Reads `IFLA_TUN_*` (`linux/if_link.h`), which the packet library leaves undecoded.
fn read_tun(attributes: &[InfoTun]) -> Tun {
    const OWNER: u16 = 1;
    const GROUP: u16 = 2;
    const TYPE: u16 = 3;
    const VNET_HDR: u16 = 5;
    const PERSIST: u16 = 6;
    const MULTI_QUEUE: u16 = 7;
    const IFF_TAP: u8 = 2;

    let mut tun = Tun::default();
    for attribute in attributes {
        let mut value = vec![0; attribute.value_len()];
        attribute.emit_value(&mut value);
        let flag = value.first().copied().unwrap_or(0);
        let id = || value.as_slice().try_into().ok().map(u32::from_ne_bytes);
        match attribute.kind() {
            OWNER => tun.owner = id(),
            GROUP => tun.group = id(),
            TYPE => tun.tap = flag == IFF_TAP,
            VNET_HDR => tun.vnet_header = flag != 0,
            PERSIST => tun.persistent = flag != 0,
            MULTI_QUEUE => tun.multi_queue = flag != 0,
            _ => {}
        }
    }
    tun
}

fn address_message(index: u32, address: Ipv4Net) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.index = index;
    message.header.prefix_len = address.prefix_len();
    message.attributes.push(AddressAttribute::Local(IpAddr::V4(address.addr())));
    message.attributes.push(AddressAttribute::Address(IpAddr::V4(address.addr())));
    message.attributes.push(AddressAttribute::Broadcast(address.broadcast()));
    message
}

/// The interface's own address: `IFA_LOCAL`, which on a point-to-point link differs from `IFA_ADDRESS`.
fn address_of(message: &AddressMessage) -> Option<Ipv4Net> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
        _ => None,
    })?;
    Ipv4Net::new(local, message.header.prefix_len).ok()
}

fn route_of(answer: &RouteNetlinkMessage) -> Option<Route> {
    let RouteNetlinkMessage::NewRoute(message) = answer else { return None };
    let counts = matches!(
        message.header.kind,
        RouteType::Unicast | RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit
    );
    if !counts {
        return None;
    }
    let mut destination = Ipv4Addr::UNSPECIFIED;
    let mut output = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = *address,
            RouteAttribute::Oif(index) => output = Some(*index),
            _ => {}
        }
    }
    let destination = Ipv4Net::new(destination, message.header.destination_prefix_length).ok()?;
    Some(Route { destination, output })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_found_by_name_and_by_index() {
        let mut netlink = Netlink::open().unwrap();
        let by_name = netlink.link("lo").unwrap().expect("every namespace has lo");
        let by_index = netlink.link_at(by_name.index).unwrap().expect("it was there a moment ago");
        assert_eq!(by_name.name, by_index.name);
        assert_eq!(by_name.kind, Kind::Other);
        assert!(netlink.links().unwrap().iter().any(|link| link.name == "lo"));
    }

    #[test]
    fn a_link_that_is_not_there_is_none() {
        assert_eq!(Netlink::open().unwrap().link("no-such-link").unwrap(), None);
    }

    #[test]
    fn a_refusal_names_the_request_and_the_reason() {
        let refused = Netlink::open().unwrap().delete_link(u32::MAX / 2).unwrap_err();
        let text = refused.to_string();
        assert!(text.starts_with("cannot delete interface number 2147483647: "), "{text}");
        assert_eq!(text.matches("cannot").count(), 1, "{text}");
    }
}
