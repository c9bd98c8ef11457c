//! One entry of `--allow` or `--block`, and its grammar (rule P1): `[in |out ]TARGET[:PORT[-PORT]][/tcp|/udp]`.

use core::fmt;
use core::net::{Ipv4Addr, Ipv6Addr};
use core::ops::Range;
use core::str::FromStr;

use ipnet::{Ipv4Net, Ipv6Net};

/// What an entry is about: peers of the VM and, if it says so, their ports, a protocol, and who begins.
///
/// It is parsed from and written as text; what it writes is its normal form, which is the same for all entries that
/// mean the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Who begins what the entry is about: the VM (`out`), or a peer (`in`). `None` if the entry does not say (rule P3).
    pub origin: Option<Origin>,
    /// The peers.
    pub target: Target,
    /// The ports at the peer's end, whoever begins. `None` is all of them, and what has no ports.
    pub ports: Option<Ports>,
    /// The protocol. `None` is both if there are ports, and any protocol if there are none.
    pub protocol: Option<Protocol>,
}

impl Entry {
    /// Whether the entry speaks about ports or a protocol, and so takes precedence over those that do not (rule P2).
    pub fn has_ports(&self) -> bool {
        self.ports.is_some() || self.protocol.is_some()
    }
}

impl From<Target> for Entry {
    fn from(target: Target) -> Self {
        Self { origin: None, target, ports: None, protocol: None }
    }
}

/// Who begins a connection or an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The VM.
    Vm,
    /// Somebody else: the host, or a peer beyond it.
    Outside,
}

/// Which peers an entry is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Target {
    /// The addresses of an IPv4 network; bits after the prefix do not matter.
    Ipv4(Ipv4Net),
    /// The addresses of an IPv6 network; bits after the prefix do not matter. It decides about nothing yet, because all
    /// IPv6 is dropped (rule L2).
    Ipv6(Ipv6Net),
    /// `@host`: the gateway, whatever its address turns out to be, and every other address of the host (rule H1).
    Host,
    /// `@private`: the networks that anybody may use for himself: RFC 1918, 100.64.0.0/10 (RFC 6598) and unique local
    /// IPv6 (RFC 4193).
    Private,
    /// `@metadata`: the addresses at which clouds tell their VMs names, keys and passwords.
    Metadata,
    /// `@internet`: all that is globally reachable (rule D3).
    Internet,
}

/// The groups of addresses that have a name.
const GROUPS: [(&str, Target); 4] = [
    ("@host", Target::Host),
    ("@private", Target::Private),
    ("@metadata", Target::Metadata),
    ("@internet", Target::Internet),
];

/// A range of ports, of 1 to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ports {
    low: u16,
    high: u16,
}

impl Ports {
    /// The ports from `low` to `high`, both included. `None` if `low` is 0 or greater than `high`.
    pub const fn new(low: u16, high: u16) -> Option<Self> {
        if low == 0 || low > high { None } else { Some(Self { low, high }) }
    }

    /// The first port.
    pub const fn low(self) -> u16 {
        self.low
    }

    /// The last port.
    pub const fn high(self) -> u16 {
        self.high
    }
}

/// A protocol that has ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Why a text is no [`Entry`], and which part of it is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct ParseEntryError {
    reason: Reason,
    start: usize,
    end: usize,
}

impl ParseEntryError {
    /// The part of the text that is wrong, in bytes. It is empty where something is missing.
    pub fn span(&self) -> Range<usize> {
        self.start..self.end
    }
}

/// What is wrong, and what would be right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Reason {
    #[error("is empty; give a network such as 10.0.0.0/8, or leave the comma out")]
    Empty,
    #[error("has a space or a tab where none belongs; one is written only behind `in` or `out`")]
    Space,
    #[error(
        "begins with a word that is neither `in` nor `out`; write `in 10.0.0.0/8`, `out 10.0.0.0/8` or 10.0.0.0/8"
    )]
    Origin,
    #[error("names no network; write one such as 10.0.0.0/8, also behind `in` and `out`")]
    NoTarget,
    #[error("is neither an address (10.1.2.3), a network (10.0.0.0/8, 2001:db8::/32) nor a group (@host)")]
    Address,
    #[error("the number of bits behind the slash must be 0 to 32 for IPv4 and 0 to 128 for IPv6")]
    PrefixLength,
    #[error(
        "behind the slash stands neither a number of bits nor `tcp` or `udp`, the protocols that have ports"
    )]
    Slash,
    #[error("there is no such group; use @host, @private, @metadata or @internet")]
    Group,
    #[error("brackets are for an IPv6 network with ports: [2001:db8::/32]:443")]
    Brackets,
    #[error("an IPv6 network with ports stands in brackets: [2001:db8::/32]:443")]
    NoBrackets,
    #[error(
        "a port is a number from 1 to 65535 without sign, space or leading zero, and a range is written 80-90"
    )]
    Port,
    #[error("the range of ports ends before it begins; write the lower port first")]
    PortOrder,
    #[error("names are not supported yet; give the addresses or networks that the name stands for")]
    Name,
}

/// A part of the text, with its place in it.
#[derive(Clone, Copy)]
struct Part<'a> {
    text: &'a str,
    start: usize,
}

impl<'a> Part<'a> {
    fn error(self, reason: Reason) -> ParseEntryError {
        ParseEntryError { reason, start: self.start, end: self.start.saturating_add(self.text.len()) }
    }

    /// The parts around the first `separator`.
    fn split(self, separator: char) -> (Self, Option<Self>) {
        match self.text.split_once(separator) {
            Some((before, after)) => (Self { text: before, ..self }, Some(self.end(after))),
            None => (self, None),
        }
    }

    /// This part without `suffix`.
    fn without_suffix(self, suffix: &str) -> Option<Self> {
        Some(Self { text: self.text.strip_suffix(suffix)?, ..self })
    }

    /// The part that `text` is, which is the end of this one.
    fn end<'b>(self, text: &'b str) -> Part<'b> {
        Part { text, start: self.start.saturating_add(self.text.len().saturating_sub(text.len())) }
    }
}

impl FromStr for Entry {
    type Err = ParseEntryError;

    /// Reads what rule P1 allows. A bare address is a network of that address alone; bits after a prefix are masked.
    fn from_str(text: &str) -> Result<Self, ParseEntryError> {
        let whole = Part { text, start: 0 };
        if text.is_empty() {
            return Err(whole.error(Reason::Empty));
        }
        let (origin, rest) = parse_origin(whole)?;
        let is_space = |c: char| c.is_whitespace() || c.is_control();
        if let Some((at, space)) = rest.text.char_indices().find(|(_, c)| is_space(*c)) {
            let start = rest.start.saturating_add(at);
            let end = start.saturating_add(space.len_utf8());
            return Err(ParseEntryError { reason: Reason::Space, start, end });
        }
        let (rest, protocol) = match (rest.without_suffix("/tcp"), rest.without_suffix("/udp")) {
            (Some(rest), _) => (rest, Some(Protocol::Tcp)),
            (None, Some(rest)) => (rest, Some(Protocol::Udp)),
            (None, None) => (rest, None),
        };
        let (target, ports) = parse_target(rest)?;
        let ports = ports.map(parse_ports).transpose()?;
        Ok(Self { origin, target, ports, protocol })
    }
}

/// Whether a text is made of letters alone.
fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphabetic())
}

/// The word before the target, if there is one.
fn parse_origin(whole: Part<'_>) -> Result<(Option<Origin>, Part<'_>), ParseEntryError> {
    let (word, rest) = whole.split(' ');
    let origin = match word.text {
        "in" => Some(Origin::Outside),
        "out" => Some(Origin::Vm),
        _ => None,
    };
    match (origin, rest) {
        (Some(_), Some(rest)) => Ok((origin, rest.end(rest.text.trim_start_matches(' ')))),
        (Some(_), None) => Err(whole.error(Reason::NoTarget)),
        (None, Some(rest)) if is_word(word.text) && !rest.text.is_empty() => Err(word.error(Reason::Origin)),
        (None, Some(_)) => Err(Part { text: " ", start: word.text.len() }.error(Reason::Space)),
        (None, None) => Ok((None, whole)),
    }
}

/// The target, and what stands behind the colon after it.
fn parse_target(part: Part<'_>) -> Result<(Target, Option<Part<'_>>), ParseEntryError> {
    if let Some(inside) = part.text.strip_prefix('[') {
        return parse_brackets(part, part.end(inside));
    }
    let (first, ports) = part.split(':');
    if first.text.is_empty() && ports.is_none() {
        return Err(part.error(Reason::NoTarget));
    }
    if first.text.starts_with('@') {
        let group = GROUPS.iter().find(|(name, _)| *name == first.text);
        return group.map(|(_, target)| (*target, ports)).ok_or(first.error(Reason::Group));
    }
    // An IPv6 address has two colons at least, and no dot or slash before the first.
    let has_more = ports.is_some_and(|ports| ports.text.contains(':'));
    if has_more && !first.text.contains(['.', '/']) {
        return Ok((Target::Ipv6(parse_ipv6(part)?), None));
    }
    Ok((Target::Ipv4(parse_ipv4(first)?), ports))
}

/// An IPv6 network in brackets, and what stands behind the colon after them.
fn parse_brackets<'a>(
    part: Part<'a>,
    inside: Part<'a>,
) -> Result<(Target, Option<Part<'a>>), ParseEntryError> {
    let (net, Some(rest)) = inside.split(']') else { return Err(part.error(Reason::Brackets)) };
    if !net.text.contains(':') {
        return Err(part.error(Reason::Brackets));
    }
    let net = Target::Ipv6(parse_ipv6(net)?);
    match rest.text.strip_prefix(':') {
        Some(ports) => Ok((net, Some(rest.end(ports)))),
        None if rest.text.is_empty() => Ok((net, None)),
        None => Err(rest.error(Reason::Brackets)),
    }
}

fn parse_ipv6(part: Part<'_>) -> Result<Ipv6Net, ParseEntryError> {
    let (address, prefix) = part.split('/');
    let parsed: Ipv6Addr = address.text.parse().map_err(|_| address.error(Reason::Address))?;
    if prefix.is_some_and(|prefix| prefix.text.contains(':')) {
        return Err(part.error(Reason::NoBrackets));
    }
    let prefix_len = prefix.map_or(Ok(128), parse_prefix_len)?;
    let net = Ipv6Net::new(parsed, prefix_len);
    net.map(|net| net.trunc()).map_err(|_| prefix.unwrap_or(part).error(Reason::PrefixLength))
}

fn parse_ipv4(part: Part<'_>) -> Result<Ipv4Net, ParseEntryError> {
    let (address, prefix) = part.split('/');
    let reason = if is_name(address.text) { Reason::Name } else { Reason::Address };
    let parsed: Ipv4Addr = address.text.parse().map_err(|_| address.error(reason))?;
    let prefix_len = prefix.map_or(Ok(32), parse_prefix_len)?;
    let net = Ipv4Net::new(parsed, prefix_len);
    net.map(|net| net.trunc()).map_err(|_| prefix.unwrap_or(part).error(Reason::PrefixLength))
}

fn parse_prefix_len(part: Part<'_>) -> Result<u8, ParseEntryError> {
    let last = part.text.rsplit('/').next().unwrap_or(part.text);
    if is_word(last) {
        return Err(part.end(last).error(Reason::Slash));
    }
    // A number parser accepts a sign, which no number of bits has.
    let digits = part.text.bytes().all(|byte| byte.is_ascii_digit());
    part.text.parse().ok().filter(|_| digits).ok_or(part.error(Reason::PrefixLength))
}

/// Whether a text looks like a DNS name: labels between dots, of which the last is no number.
fn is_name(text: &str) -> bool {
    let is_character = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'*');
    let name = text.strip_suffix('.').unwrap_or(text);
    let is_label = |label: &str| !label.is_empty() && label.bytes().all(is_character);
    let is_number = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    match name.rsplit_once('.') {
        Some((front, last)) => front.split('.').all(is_label) && is_label(last) && !is_number(last),
        None => matches!(name, "*" | "**"),
    }
}

fn parse_ports(part: Part<'_>) -> Result<Ports, ParseEntryError> {
    if let (_, Some(protocol)) = part.split('/') {
        return Err(protocol.error(Reason::Slash));
    }
    let (low, high) = part.split('-');
    let low = parse_port(low)?;
    let high = high.map_or(Ok(low), parse_port)?;
    Ports::new(low, high).ok_or(part.error(Reason::PortOrder))
}

fn parse_port(part: Part<'_>) -> Result<u16, ParseEntryError> {
    let digits = part.text.bytes().all(|byte| byte.is_ascii_digit()) && !part.text.starts_with('0');
    part.text.parse().ok().filter(|_| digits).ok_or(part.error(Reason::Port))
}

impl fmt::Display for Entry {
    /// The normal form (rule P1).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.origin {
            Some(Origin::Outside) => "in ",
            Some(Origin::Vm) => "out ",
            None => "",
        })?;
        match (self.target, self.ports) {
            (Target::Ipv6(net), Some(ports)) => write!(f, "[{}]:{ports}", net.trunc())?,
            (target, Some(ports)) => write!(f, "{target}:{ports}")?,
            (target, None) => write!(f, "{target}")?,
        }
        f.write_str(match self.protocol {
            Some(Protocol::Tcp) => "/tcp",
            Some(Protocol::Udp) => "/udp",
            None => "",
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ipv4(net) => fmt::Display::fmt(&net.trunc(), f),
            Self::Ipv6(net) => fmt::Display::fmt(&net.trunc(), f),
            Self::Host | Self::Private | Self::Metadata | Self::Internet => {
                let group = GROUPS.iter().find(|(_, target)| target == self);
                f.write_str(group.map_or("", |(name, _)| name))
            }
        }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.low == self.high {
            write!(f, "{}", self.low)
        } else {
            write!(f, "{}-{}", self.low, self.high)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// P1: each form, and its normal form.
    #[test]
    fn p1_normal_forms() {
        for (text, normal) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("10.1.2.3", "10.1.2.3/32"),
            ("1.2.3.4/0", "0.0.0.0/0"),
            ("@host", "@host"),
            ("@private", "@private"),
            ("@metadata", "@metadata"),
            ("@internet", "@internet"),
            ("2001:DB8::1", "2001:db8::1/128"),
            ("2001:db8::1/32", "2001:db8::/32"),
            ("::/0", "::/0"),
            ("[2001:db8::1]", "2001:db8::1/128"),
            ("[2001:db8::1]:443", "[2001:db8::1/128]:443"),
            ("[2001:db8::/32]:80-90/tcp", "[2001:db8::/32]:80-90/tcp"),
            ("2001:db8::/32/udp", "2001:db8::/32/udp"),
            ("[::ffff:1.2.3.4]:1", "[::ffff:1.2.3.4/128]:1"),
            ("10.1.2.3:80", "10.1.2.3/32:80"),
            ("10.0.0.0/8:80-80", "10.0.0.0/8:80"),
            ("10.0.0.0/8:1-65535", "10.0.0.0/8:1-65535"),
            ("10.0.0.0/8:80-90/tcp", "10.0.0.0/8:80-90/tcp"),
            ("10.0.0.0/8/udp", "10.0.0.0/8/udp"),
            ("@host:22/tcp", "@host:22/tcp"),
            ("@internet/udp", "@internet/udp"),
            ("in 10.0.0.0/8", "in 10.0.0.0/8"),
            ("in   10.0.0.1:22", "in 10.0.0.1/32:22"),
            ("out @host:53/udp", "out @host:53/udp"),
        ] {
            let entry: Entry = text.parse().unwrap_or_else(|error| panic!("{text:?}: {error}"));
            assert_eq!(entry.to_string(), normal, "{text:?}");
            assert_eq!(normal.parse(), Ok(entry), "{normal:?}");
        }
    }

    /// P1: the parts of an entry are what they say.
    #[test]
    fn p1_parts_of_an_entry() {
        let entry: Entry = "in 10.0.0.0/8:80-90/udp".parse().unwrap();
        assert_eq!(entry.origin, Some(Origin::Outside));
        assert_eq!(entry.target, Target::Ipv4("10.0.0.0/8".parse().unwrap()));
        assert_eq!(entry.ports, Ports::new(80, 90));
        assert_eq!(entry.ports.map(|ports| (ports.low(), ports.high())), Some((80, 90)));
        assert_eq!(entry.protocol, Some(Protocol::Udp));
        assert!(entry.has_ports());
        let entry: Entry = "out @host/tcp".parse().unwrap();
        assert_eq!((entry.origin, entry.protocol), (Some(Origin::Vm), Some(Protocol::Tcp)));
        assert!(entry.has_ports());
        assert_eq!("10.0.0.0/8".parse::<Entry>(), Ok(Target::Ipv4("10.0.0.0/8".parse().unwrap()).into()));
        assert!(!"in 10.0.0.0/8".parse::<Entry>().unwrap().has_ports());
        assert_eq!((Ports::new(0, 1), Ports::new(2, 1)), (None, None));
        // Bits after a prefix may also come from the caller.
        let target = Target::Ipv4("10.1.2.3/8".parse().unwrap());
        assert_eq!(target.to_string(), "10.0.0.0/8");
        assert_eq!(Target::Ipv6("2001:db8::1/32".parse().unwrap()).to_string(), "2001:db8::/32");
    }

    /// P1, R4: what is refused, why, and which part of it.
    #[test]
    fn p1_refused_forms() {
        use Reason::*;
        for (text, reason, wrong) in [
            ("", Empty, ""),
            ("in", NoTarget, "in"),
            ("out", NoTarget, "out"),
            ("in ", NoTarget, ""),
            ("out  ", NoTarget, ""),
            ("from 10.0.0.0/8", Origin, "from"),
            ("in from 10.0.0.0/8", Space, " "),
            ("In 10.0.0.0/8", Origin, "In"),
            ("OUT 10.0.0.0/8", Origin, "OUT"),
            (" 10.0.0.0/8", Space, " "),
            ("10.0.0.0/8 ", Space, " "),
            ("in 10.0.0.0/8 ", Space, " "),
            ("10.0.0.0/8\t", Space, "\t"),
            ("in\t10.0.0.0/8", Space, "\t"),
            ("10.0.0.0/8\n", Space, "\n"),
            ("10.0.0.0/8: 80", Space, " "),
            ("in 10.0.0.0/8: 80", Space, " "),
            ("10.0.0.0/8:", Port, ""),
            ("10.0.0.0/8:0", Port, "0"),
            ("10.0.0.0/8:65536", Port, "65536"),
            ("10.0.0.0/8:+80", Port, "+80"),
            ("10.0.0.0/8:080", Port, "080"),
            ("10.0.0.0/8:80-", Port, ""),
            ("10.0.0.0/8:-80", Port, ""),
            ("10.0.0.0/8:90-80", PortOrder, "90-80"),
            ("10.0.0.0/8:80:90", Port, "80:90"),
            ("10.0.0.0/8:80-90-100", Port, "90-100"),
            ("10.0.0.0/8:https", Port, "https"),
            ("10.0.0.0/8:80/TCP", Slash, "TCP"),
            ("10.0.0.0/8/sctp", Slash, "sctp"),
            ("10.0.0.0/sctp", Slash, "sctp"),
            ("10.0.0.0/33", PrefixLength, "33"),
            ("10.0.0.0/256", PrefixLength, "256"),
            ("10.0.0.0/", PrefixLength, ""),
            ("10.0.0.0/+8", PrefixLength, "+8"),
            ("10.0.0.0/-1", PrefixLength, "-1"),
            ("10.0.0.0/8/8", PrefixLength, "8/8"),
            ("10.0.0.0/255.0.0.0", PrefixLength, "255.0.0.0"),
            ("2001:db8::/129", PrefixLength, "129"),
            ("2001:db8::/", PrefixLength, ""),
            ("2001:db8::/32:443", NoBrackets, "2001:db8::/32:443"),
            ("2001:db8::x", Address, "2001:db8::x"),
            ("fe80::1%eth0", Address, "fe80::1%eth0"),
            ("[2001:db8::1", Brackets, "[2001:db8::1"),
            ("[2001:db8::]/32:443", Brackets, "/32:443"),
            ("[10.0.0.1]:80", Brackets, "[10.0.0.1]:80"),
            ("[2001:db8::1]:", Port, ""),
            ("@", Group, "@"),
            ("@HOST", Group, "@HOST"),
            ("@hosts", Group, "@hosts"),
            ("@host/32", Group, "@host/32"),
            ("/8", Address, ""),
            ("/tcp", NoTarget, ""),
            (":80", Address, ""),
            ("host", Address, "host"),
            ("10.0.0", Address, "10.0.0"),
            ("10.0.0.0.0/8", Address, "10.0.0.0.0"),
            ("010.0.0.1", Address, "010.0.0.1"),
            ("256.0.0.0/8", Address, "256.0.0.0"),
            ("10.0.0.0-10.0.0.9", Address, "10.0.0.0-10.0.0.9"),
            ("example.com", Name, "example.com"),
            ("example.com:443", Name, "example.com"),
            ("out *.example.com.", Name, "*.example.com."),
            ("**", Name, "**"),
            ("exa mple.com", Origin, "exa"),
        ] {
            let error = text.parse::<Entry>().unwrap_err();
            assert_eq!(error.reason, reason, "{text:?}");
            assert_eq!(&text[error.span()], wrong, "{text:?}");
            assert!(!error.to_string().is_empty());
        }
    }
}
