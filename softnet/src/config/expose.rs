//! `--expose`: which ports of the host lead to which ports of the VM.

use std::fmt;
use std::net::Ipv4Addr;
use std::num::NonZeroU16;
use std::str::FromStr;

/// The transport of an exposed port.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Protocol {
    /// TCP, the default.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Its number in the IP header.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

/// A port of the host that leads to some port of a VM.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Exposed {
    /// The host's address that it is bound to; `None` means all of them.
    pub address: Option<Ipv4Addr>,
    /// The transport.
    pub protocol: Protocol,
    /// The host's port.
    pub port: NonZeroU16,
}

impl fmt::Display for Exposed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.address.unwrap_or(Ipv4Addr::UNSPECIFIED);
        write!(f, "{address}:{}/{}", self.port, self.protocol)
    }
}

/// One exposed port: `[ADDR:]EXT:INT[/tcp|/udp]`.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Expose {
    /// The host's address that it is bound to; `None` means all of them.
    pub address: Option<Ipv4Addr>,
    /// The host's port.
    pub external: NonZeroU16,
    /// The VM's port.
    pub internal: NonZeroU16,
    /// The transport.
    pub protocol: Protocol,
}

/// Why an entry of `--expose` is refused. The caller adds the flag and the value.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ParseError {
    /// Not two or three parts.
    #[error(
        "is not of the form [ADDRESS:]EXTERNAL:INTERNAL[/tcp|/udp], such as 8080:80 or 127.0.0.1:5353:53/udp"
    )]
    Form,
    /// An invalid port.
    #[error("{0:?} is not a port; ports are 1 to 65535")]
    Port(String),
    /// An invalid address.
    #[error("{0:?} is not an IPv4 address of this host (`ip address` lists them)")]
    Address(String),
    /// IPv6 is not supported yet.
    #[error("IPv6 addresses cannot be exposed yet; give an IPv4 address")]
    Ipv6,
    /// An unknown protocol.
    #[error("{0:?} is not a protocol; use /tcp or /udp")]
    Protocol(String),
}

impl FromStr for Expose {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (ports, protocol) = match text.split_once('/') {
            None | Some((_, "tcp")) => (text.split('/').next().unwrap_or(text), Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some((_, other)) => return Err(ParseError::Protocol(other.to_owned())),
        };
        if ports.starts_with('[') || ports.contains("::") {
            return Err(ParseError::Ipv6);
        }
        let parts: Vec<&str> = ports.split(':').collect();
        let (address, external, internal) = match parts.as_slice() {
            [external, internal] => (None, external, internal),
            [address, external, internal] => (Some(parse_address(address)?), external, internal),
            [_] | [] => return Err(ParseError::Form),
            _ => return Err(ParseError::Ipv6),
        };
        Ok(Expose { address, external: parse_port(external)?, internal: parse_port(internal)?, protocol })
    }
}

fn parse_port(text: &str) -> Result<NonZeroU16, ParseError> {
    // `u16::from_str` accepts a leading plus sign, which is not valid here.
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits).ok_or_else(|| ParseError::Port(text.to_owned()))
}

fn parse_address(text: &str) -> Result<Ipv4Addr, ParseError> {
    let bad = || ParseError::Address(text.to_owned());
    let address: Ipv4Addr = text.parse().map_err(|_| bad())?;
    if address.is_broadcast() || address.is_multicast() {
        return Err(bad());
    }
    Ok(address)
}

impl Expose {
    /// The host's half of the entry.
    pub fn exposed(&self) -> Exposed {
        let address = self.address.filter(|address| !address.is_unspecified());
        Exposed { address, protocol: self.protocol, port: self.external }
    }

    /// The host's address, `0.0.0.0` standing for all.
    pub fn bind_address(&self) -> Ipv4Addr {
        self.address.unwrap_or(Ipv4Addr::UNSPECIFIED)
    }

    /// Whether both use the same port of the host: same port and transport, on the same address or on all.
    pub fn collides_with(&self, other: &Expose) -> bool {
        let wild = self.bind_address().is_unspecified() || other.bind_address().is_unspecified();
        self.protocol == other.protocol
            && self.external == other.external
            && (wild || self.address == other.address)
    }
}

impl fmt::Display for Expose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(address) = self.address {
            write!(f, "{address}:")?;
        }
        write!(f, "{}:{}/{}", self.external, self.internal, self.protocol)
    }
}

/// The first two entries that use the same port of the host, if any do.
pub fn first_collision(exposes: &[Expose]) -> Option<(Expose, Expose)> {
    exposes.iter().enumerate().find_map(|(index, later)| {
        let earlier = exposes.get(..index)?.iter().find(|earlier| earlier.collides_with(later))?;
        Some((*earlier, *later))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expose(text: &str) -> Expose {
        text.parse().unwrap()
    }

    #[test]
    fn all_forms_parse_and_print() {
        for (text, printed) in [
            ("8080:80", "8080:80/tcp"),
            ("8080:80/tcp", "8080:80/tcp"),
            ("53:5353/udp", "53:5353/udp"),
            ("127.0.0.1:65535:1", "127.0.0.1:65535:1/tcp"),
        ] {
            assert_eq!(expose(text).to_string(), printed);
            assert_eq!(expose(printed), expose(text));
        }
    }

    #[test]
    fn each_mistake_has_its_reason() {
        let refused = |text: &str| text.parse::<Expose>().unwrap_err();
        let port = |text: &str| ParseError::Port(text.to_owned());
        assert_eq!(refused(""), ParseError::Form);
        assert_eq!(refused("80"), ParseError::Form);
        assert_eq!(refused("0:80"), port("0"));
        assert_eq!(refused("80:65536"), port("65536"));
        assert_eq!(refused("+80:80"), port("+80"));
        assert_eq!(refused("80:"), port(""));
        assert_eq!(refused("80-90:80"), port("80-90"));
        assert_eq!(refused("80:80/sctp"), ParseError::Protocol("sctp".into()));
        assert_eq!(refused("80:80/tcp/udp"), ParseError::Protocol("tcp/udp".into()));
        assert_eq!(refused("host:80:80"), ParseError::Address("host".into()));
        assert_eq!(refused("224.0.0.1:80:80"), ParseError::Address("224.0.0.1".into()));
        assert_eq!(refused("[::1]:80:80"), ParseError::Ipv6);
        assert_eq!(refused("fe80::1:80:80"), ParseError::Ipv6);
    }

    #[test]
    fn a_port_exposed_twice_is_found() {
        let found = |entries: &[&str]| {
            let exposes: Vec<Expose> = entries.iter().map(|text| expose(text)).collect();
            first_collision(&exposes).map(|(a, b)| (a.to_string(), b.to_string()))
        };
        assert_eq!(found(&["80:80", "80:80/udp", "81:80"]), None);
        assert_eq!(found(&["10.0.0.1:80:80", "10.0.0.2:80:80"]), None);
        assert_eq!(found(&["80:80", "80:81"]), Some(("80:80/tcp".into(), "80:81/tcp".into())));
        assert!(found(&["10.0.0.1:80:80", "80:80"]).is_some());
        assert!(found(&["10.0.0.1:80:80", "0.0.0.0:80:80"]).is_some());
    }
}
