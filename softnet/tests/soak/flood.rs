//! Frames that no VM may send, each of which the filter must drop and count.
//!
//! Where a frame has room for it, it carries [`MARK`], so that whoever sees it on the host's side knows it for what it is.

use std::net::Ipv4Addr;
use std::time::Duration;

use lab::net::{INTERNET, LAN, METADATA};
use lab::wire::{Arp, Dhcp, Ipv4, Mac, dhcp_kind as kind, dhcp_option as option, ethernet, udp};

use crate::dice::Dice;

/// In all bad frames that can say it.
pub const MARK: &[u8] = b"this must not leave";

/// From one burst of a flooding VM to the next.
pub const PAUSE: Duration = Duration::from_millis(20);

/// A victim where there is none: an address that no VM will have, for a forgery must not come true on its way.
pub const NOBODY: (Mac, Ipv4Addr) = (Mac([2, 0, 0, 0, 0, 1]), Ipv4Addr::new(10, 8, 7, 6));

/// An option number for private use (RFC 3942).
const PRIVATE: u8 = 231;
/// The client's name (RFC 2132, section 3.14).
const HOST_NAME: u8 = 12;

/// Who floods, and whom it wants to harm.
#[derive(Debug, Clone, Copy)]
pub struct Scene {
    /// The VM.
    pub mac: Mac,
    /// Its address, if it has one.
    pub address: Option<Ipv4Addr>,
    /// The gateway.
    pub gateway: (Mac, Ipv4Addr),
    /// Another VM.
    pub victim: (Mac, Ipv4Addr),
}

impl Scene {
    /// A bad frame of any kind.
    pub fn frame(&self, dice: &mut Dice) -> Vec<u8> {
        match dice.below(8) {
            0 => self.forged(dice),
            1 => self.arp(dice),
            2 => self.astray(dice),
            3 | 4 => self.dhcp(dice),
            5 => self.foreign_type(dice),
            6 => self.broken(dice),
            _ => {
                // Not its own MAC, but for one of 2⁴⁸.
                let length = 1 + usize::try_from(dice.below(1600)).unwrap_or_default();
                dice.bytes(length)
            }
        }
    }

    /// The own address, or one that it will not be given.
    fn own(&self) -> Ipv4Addr {
        self.address.unwrap_or(NOBODY.1)
    }

    fn packet(&self, from: Ipv4Addr, to: Ipv4Addr) -> Ipv4 {
        Ipv4::new(from, to, udp((from, 4000), (to, 80), MARK))
    }

    /// As somebody else.
    fn forged(&self, dice: &mut Dice) -> Vec<u8> {
        let (mac, address) = self.victim;
        let station = self.gateway.0;
        match dice.below(4) {
            0 => self.packet(address, INTERNET).frame(station, mac),
            1 => self.packet(address, INTERNET).frame(station, self.mac),
            2 => self.packet(self.own(), INTERNET).frame(station, dice.mac()),
            _ => self.packet(self.gateway.1, address).frame(mac, self.mac),
        }
    }

    fn arp(&self, dice: &mut Dice) -> Vec<u8> {
        let (mac, address) = self.victim;
        match dice.below(4) {
            // I am the gateway.
            0 => Arp::request(self.mac, self.gateway.1, self.gateway.1).frame(),
            1 => Arp::reply(self.mac, self.gateway.1, mac, address).frame(),
            // I am that VM.
            2 => Arp::reply(self.mac, address, self.gateway.0, self.gateway.1).frame(),
            _ => Arp::request(mac, address, self.gateway.1).frame(),
        }
    }

    /// To where it has no business.
    fn astray(&self, dice: &mut Dice) -> Vec<u8> {
        let (mac, address) = self.victim;
        match dice.below(4) {
            0 => self.packet(self.own(), LAN).frame(self.gateway.0, self.mac),
            1 => self.packet(self.own(), METADATA).frame(self.gateway.0, self.mac),
            2 => self.packet(self.own(), address).frame(mac, self.mac),
            _ => self.packet(self.own(), address).frame(self.gateway.0, self.mac),
        }
    }

    fn dhcp(&self, dice: &mut Dice) -> Vec<u8> {
        let (mac, address) = self.victim;
        let server = self.gateway.1.octets();
        let xid = u32::from_be_bytes([0xff; 4]) >> (dice.below(8) + 1);
        let message = |kind, client| Dhcp::client(kind, xid, client).with(PRIVATE, MARK);
        let from_here = |message: Dhcp| {
            message.packet(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST).frame(Mac::BROADCAST, self.mac)
        };
        match dice.below(6) {
            // For others, in their name or in the own.
            0 => from_here(message(kind::DISCOVER, dice.mac())),
            1 => message(kind::DISCOVER, dice.mac()).broadcast(),
            // For another server, at whose sight some servers fall silent for all; under a name that is none.
            2 if dice.below(2) == 0 => {
                from_here(message(kind::DISCOVER, self.mac).with(option::SERVER, &[0; 4]))
            }
            2 => from_here(message(kind::DISCOVER, self.mac).with(HOST_NAME, b"vm\nname")),
            // Taking another's lease.
            3 => {
                let release = message(kind::RELEASE, mac).with(option::SERVER, &server);
                from_here(Dhcp { ciaddr: address, ..release })
            }
            4 => {
                let decline = message(kind::DECLINE, self.mac).with(option::SERVER, &server);
                from_here(decline.with(option::REQUESTED_ADDRESS, &self.gateway.1.octets()))
            }
            // As if it were the server.
            _ => Dhcp::server(kind::ACK, xid, mac, self.own())
                .with(PRIVATE, MARK)
                .packet(self.gateway.1, Ipv4Addr::BROADCAST)
                .frame(Mac::BROADCAST, self.mac),
        }
    }

    fn foreign_type(&self, dice: &mut Dice) -> Vec<u8> {
        // IPv6, a VLAN tag, LLDP, a pause frame.
        let types = [(0x86dd, 1), (0x8100, 1), (0x88cc, 1), (0x8808, 1)];
        let ether_type = dice.pick(&types).unwrap_or_default();
        ethernet(Mac::BROADCAST, self.mac, ether_type, &[&[0; 46][..], MARK].concat())
    }

    fn broken(&self, dice: &mut Dice) -> Vec<u8> {
        let packet = self.packet(self.own(), INTERNET);
        let packet = match dice.below(5) {
            0 => Ipv4 { checksum: Some(0xdead), ..packet },
            1 => Ipv4 { ihl: Some(4), ..packet },
            2 => Ipv4 { ttl: 0, ..packet },
            3 => Ipv4 { fragment: 0xc000, ..packet },
            _ => Ipv4 { payload: MARK.repeat(200), ..packet },
        };
        packet.frame(self.gateway.0, self.mac)
    }
}
