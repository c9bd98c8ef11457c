//! The packets that ask the host's filters: the same as a VM would send, from a port of the bridge that is there for as long
//! as a look takes, with a hardware address that is no VM's.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;

use rustix::net::{
    AddressFamily, SendFlags, SocketAddrV4, SocketFlags, SocketType, ipproto, sendto, socket_with,
};
use softnet_filter::{MacAddr, NetType};
use softnet_wire::build::Builder;
use softnet_wire::checksum::Sum;
use softnet_wire::dhcpv4::{
    BOOT_REPLY, BOOT_REQUEST, CLIENT_PORT, COOKIE, ETHERNET, SERVER_PORT, code, kind,
};
use softnet_wire::ethernet;
use softnet_wire::transport::{TCP, UDP};

use super::findings::Need;
use crate::host::network::Plan;
use crate::host::network::ruleset::TAP_PREFIX;
use crate::netlink::trace::Headers;
use crate::sys::tun;

/// The TAP's name; the kernel picks the number.
const NAME: &str = "snl%d";

/// Where the packet to the world goes. It never leaves: the look's own rules drop it behind all filters, by its sender's MAC
/// address and by its source before translation.
const WORLD: Ipv4Addr = Ipv4Addr::new(1, 1, 1, 1);
const HTTPS: u16 = 443;
const DNS: u16 = 53;

/// A name that dnsmasq never forwards: it has no dot (`--domain-needed`).
const NAME_ASKED_FOR: &[u8] = b"\x0csoftnet-look\0";

/// The field `chaddr` of a DHCP message, after the UDP header (RFC 2131, section 2).
const CHADDR: &str = "@th,288,48";

/// The longest of the probes, in bytes.
const LONGEST: usize = 400;

/// What the probes have in common.
#[derive(Clone, Copy, Debug)]
pub struct Probes {
    /// An address of the network that no VM has.
    address: Ipv4Addr,
    gateway: Ipv4Addr,
    bridge: MacAddr,
    /// The hardware address that sends them: the bridge's with another first octet, so that the looks at two networks do not
    /// mix. A VM's TAP may not use another than its VM's (rule H10).
    mac: MacAddr,
    /// A port that no look before has used, so that no tracked connection is continued.
    port: u16,
}

impl Probes {
    /// The probes for a network, from an `address` of it that no VM has and a `port` of its own.
    pub fn new(plan: &Plan, address: Ipv4Addr, port: u16) -> Self {
        let [_, b, c, d, e, f] = plan.mac().octets();
        let mac = MacAddr([0x0e, b, c, d, e, f]);
        Probes { address, gateway: plan.gateway().addr(), bridge: plan.mac(), mac, port }
    }

    /// The hardware address that sends the probes.
    pub fn mac(&self) -> MacAddr {
        self.mac
    }

    /// What VMs of such a network need; to the world only where the host has a way there.
    pub fn needs(net_type: NetType, has_route: bool) -> Vec<Need> {
        let mut needs = vec![Need::DhcpRequest, Need::DhcpAnswer];
        if net_type == NetType::Nat {
            needs.extend([Need::DnsQuestion, Need::DnsAnswer]);
            needs.extend(has_route.then_some(Need::World));
        }
        needs
    }

    /// The rules that have the kernel report the probes' way, and that keep all of them but the question and its answer from
    /// arriving. The first and the last chain of each hook show whether a packet was lost in between.
    pub fn table(&self, bridge: &str, tap: &str) -> String {
        let Probes { address, port, mac, .. } = self;
        let (name, lowest, highest) = (table_name(tap), i32::MIN, i32::MAX);
        let mut chains = String::new();
        // Translation has changed the source of the packet to the world by then, unless nobody tracks it.
        let world = format!(
            "ether saddr {mac} drop\n\t\tmeta l4proto tcp ct original ip saddr {address} ct original proto-src {port} drop\n\
             \t\tip saddr {address} tcp sport {port} drop"
        );
        // A VM may be leased the address meanwhile, and its answers pass.
        let client = mac.octets().iter().fold("0x".to_owned(), |text, octet| text + &format!("{octet:02x}"));
        let answers = format!(
            "oifname \"{bridge}\" ip daddr {address} udp sport {SERVER_PORT} {CHADDR} {client} VERDICT\n\
             \t\toifname \"{bridge}\" ip daddr {address} udp sport {DNS} udp dport {port} VERDICT"
        );
        for (hook, first, last) in [
            ("prerouting", format!("ether saddr {mac} meta nftrace set 1"), String::new()),
            ("input", String::new(), format!("ether saddr {mac} udp dport {SERVER_PORT} drop")),
            ("forward", String::new(), String::new()),
            ("output", answers.replace("VERDICT", "meta nftrace set 1"), String::new()),
            ("postrouting", String::new(), format!("{}\n\t\t{world}", answers.replace("VERDICT", "drop"))),
        ] {
            for (place, priority, rules) in [(FIRST, lowest, first), (LAST, highest, last)] {
                chains += &format!(
                    "\tchain {hook}{place} {{\n\t\ttype filter hook {hook} priority {priority}; policy accept;\n\
                     \t\t{rules}\n\t}}\n"
                );
            }
        }
        format!("table ip {name} {{\n{chains}}}\n")
    }

    /// Sends the probes of `needs`: what a VM sends into the TAP, the server's DHCP answer by the host itself. The resolver
    /// answers the question.
    ///
    /// # Errors
    ///
    /// Those of the TAP and of the socket.
    pub fn send(&self, needs: &[Need], tap: &File) -> io::Result<()> {
        for need in needs {
            let frame = match need {
                Need::DhcpRequest => self.discover(),
                Need::DnsQuestion => self.question(),
                Need::World => self.first_packet(),
                Need::DhcpAnswer => {
                    self.send_offer()?;
                    continue;
                }
                Need::DnsAnswer => continue,
            };
            let frame = frame.ok_or_else(|| io::Error::other("a probe is too long"))?;
            (&*tap).write_all(frame.as_bytes())?;
        }
        Ok(())
    }

    /// Which probe these headers are, if one.
    pub fn which(&self, headers: &Headers) -> Option<Need> {
        let address = |at: usize| Some(Ipv4Addr::from(*headers.network.get(at..)?.first_chunk::<4>()?));
        let port = |at: usize| Some(u16::from_be_bytes(*headers.transport.get(at..)?.first_chunk()?));
        let (protocol, to) = (*headers.network.get(9)?, address(16)?);
        let is_from_tap = headers.ethernet.get(6..12) == Some(&self.mac.octets()[..]);
        match (protocol, port(0)?, port(2)?) {
            (UDP, CLIENT_PORT, SERVER_PORT) if is_from_tap => Some(Need::DhcpRequest),
            (UDP, from, DNS) if is_from_tap && from == self.port => Some(Need::DnsQuestion),
            // Translation changes its source.
            (TCP, _, HTTPS) if is_from_tap => Some(Need::World),
            (UDP, SERVER_PORT, CLIENT_PORT) if to == self.address => Some(Need::DhcpAnswer),
            (UDP, DNS, port) if to == self.address && port == self.port => Some(Need::DnsAnswer),
            _ => None,
        }
    }

    fn discover(&self) -> Option<Builder<LONGEST>> {
        let mut frame = Builder::new();
        let (from, to) = ((Ipv4Addr::UNSPECIFIED, CLIENT_PORT), (Ipv4Addr::BROADCAST, SERVER_PORT));
        frame.ethernet(MacAddr::BROADCAST, self.mac, ethernet::IPV4)?.ipv4(from.0, to.0, UDP, |packet| {
            packet
                .udp(from, to, |message| {
                    message.bytes(&dhcp(BOOT_REQUEST, kind::DISCOVER, self.mac)).map(drop)
                })
                .map(drop)
        })?;
        Some(frame)
    }

    fn question(&self) -> Option<Builder<LONGEST>> {
        let mut frame = Builder::new();
        let (from, to) = ((self.address, self.port), (self.gateway, DNS));
        frame.ethernet(self.bridge, self.mac, ethernet::IPV4)?.ipv4(from.0, to.0, UDP, |packet| {
            packet
                .udp(from, to, |message| {
                    // One question, with recursion (RFC 1035, section 4.1.1), for an address of class IN.
                    let header = [0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
                    message.bytes(&header)?.bytes(NAME_ASKED_FOR)?.bytes(&[0, 1, 0, 1]).map(drop)
                })
                .map(drop)
        })?;
        Some(frame)
    }

    /// A SYN for the port that most programs use.
    fn first_packet(&self) -> Option<Builder<LONGEST>> {
        let mut segment = [0_u8; 20];
        let mut put = |at: usize, bytes: &[u8]| {
            segment.get_mut(at..)?.get_mut(..bytes.len())?.copy_from_slice(bytes);
            Some(())
        };
        put(0, &self.port.to_be_bytes())?;
        put(2, &HTTPS.to_be_bytes())?;
        // Five words of header, SYN, a window (RFC 9293, section 3.1).
        put(12, &[0x50, 0x02, 0xff, 0xff])?;
        let [[a, b, c, d], [e, f, g, h]] = [self.address.octets(), WORLD.octets()];
        let sum = Sum::pseudo_header([a, b, c, d, e, f, g, h], TCP, 20) + Sum::of(&segment);
        segment.get_mut(16..18)?.copy_from_slice(&sum.finish().to_be_bytes());
        let mut frame = Builder::new();
        frame
            .ethernet(self.bridge, self.mac, ethernet::IPV4)?
            .ipv4(self.address, WORLD, TCP, |packet| packet.bytes(&segment).map(drop))?;
        Some(frame)
    }

    /// As dnsmasq sends it: through the host's own rules, to the address that the client is to have.
    fn send_offer(&self) -> io::Result<()> {
        let mut packet = Builder::<LONGEST>::new();
        let (from, to) = ((self.gateway, SERVER_PORT), (self.address, CLIENT_PORT));
        packet
            .ipv4(from.0, to.0, UDP, |packet| {
                packet
                    .udp(from, to, |message| {
                        message.bytes(&dhcp(BOOT_REPLY, kind::OFFER, self.mac)).map(drop)
                    })
                    .map(drop)
            })
            .ok_or_else(|| io::Error::other("a probe is too long"))?;
        // The packet has its own header (raw(7)).
        let socket =
            socket_with(AddressFamily::INET, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::RAW))?;
        match sendto(&socket, packet.as_bytes(), SendFlags::DONTWAIT, &SocketAddrV4::new(self.address, 0)) {
            // A filter has dropped it.
            Err(rustix::io::Errno::PERM) | Ok(_) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The ends of the names of the first and the last chain of each hook.
const FIRST: &str = "_first";
const LAST: &str = "_last";

/// The hook of a chain of the look's own table, and whether it is the last one there.
pub fn place_of(chain: &str) -> Option<(&str, bool)> {
    let last = chain.strip_suffix(LAST).map(|hook| (hook, true));
    last.or_else(|| chain.strip_suffix(FIRST).map(|hook| (hook, false)))
}

/// The name of the look's table: like those for single TAPs, it is removed once its TAP is gone.
pub fn table_name(tap: &str) -> String {
    format!("{TAP_PREFIX}{tap}")
}

/// Makes the TAP, which exists until the file is closed. Returns its name too.
///
/// # Errors
///
/// If the kernel has no TAPs, or refuses.
pub fn make_tap() -> io::Result<(File, String)> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
    let device = options.open("/dev/net/tun")?;
    let name = tun::attach(device.as_fd(), NAME, libc::IFF_TAP | libc::IFF_NO_PI)?;
    Ok((device, name))
}

/// A DHCP message of this operation and type, from or for this client (RFC 2131, section 2).
fn dhcp(operation: u8, message_type: u8, client: MacAddr) -> Vec<u8> {
    let mut message = vec![operation, ETHERNET, 6, 0];
    message.extend(*b"look");
    message.resize(28, 0);
    message.extend(client.octets());
    message.resize(236, 0);
    message.extend(COOKIE);
    message.extend([code::MESSAGE_TYPE, 1, message_type, code::END]);
    message.resize(softnet_wire::build::MIN_MESSAGE_LEN, 0);
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::network::tests::plan;

    fn probes() -> Probes {
        Probes::new(&plan(NetType::Nat), "192.168.64.200".parse().unwrap(), 40_000)
    }

    /// What the kernel reports of a frame.
    fn headers(frame: &[u8]) -> Headers {
        Headers {
            ethernet: frame[..14].to_vec(),
            network: frame[14..34].to_vec(),
            transport: frame[34..].to_vec(),
        }
    }

    #[test]
    fn each_probe_is_known_again_by_its_headers() {
        let probes = probes();
        for (frame, need) in [
            (probes.discover(), Need::DhcpRequest),
            (probes.question(), Need::DnsQuestion),
            (probes.first_packet(), Need::World),
        ] {
            let frame = frame.unwrap();
            let mut headers = headers(frame.as_bytes());
            assert_eq!(probes.which(&headers), Some(need));
            assert!(Sum::of(&headers.network).is_valid());
            // A VM's own packet of the same kind.
            headers.ethernet[11] ^= 1;
            assert_eq!(probes.which(&headers), None);
        }
        assert_eq!(probes.which(&Headers::default()), None);
    }

    #[test]
    fn the_packet_to_the_world_has_a_right_checksum() {
        let frame = probes().first_packet().unwrap();
        let segment = &frame.as_bytes()[34..];
        let [[a, b, c, d], [e, f, g, h]] = [[192, 168, 64, 200], [1, 1, 1, 1]];
        assert!((Sum::pseudo_header([a, b, c, d, e, f, g, h], TCP, 20) + Sum::of(segment)).is_valid());
    }

    #[test]
    fn a_host_only_network_needs_dhcp_alone() {
        assert_eq!(Probes::needs(NetType::Host, true), [Need::DhcpRequest, Need::DhcpAnswer]);
        assert!(!Probes::needs(NetType::Nat, false).contains(&Need::World));
    }

    #[test]
    fn the_look_has_a_first_and_a_last_chain_in_each_hook() {
        let table = probes().table("softnet0", "snl0");
        assert!(table.starts_with("table ip softnet-tap-snl0 {"), "{table}");
        for hook in ["prerouting", "input", "forward", "output", "postrouting"] {
            for (end, last) in [("first", false), ("last", true)] {
                let chain = format!("{hook}_{end}");
                assert!(table.contains(&format!("chain {chain} {{")), "{table}");
                assert_eq!(place_of(&chain), Some((hook, last)));
            }
        }
        assert_eq!(place_of("input"), None);
        assert_eq!(table.matches("udp sport 67 @th,288,48 0x0e534e").count(), 2, "{table}");
    }
}
