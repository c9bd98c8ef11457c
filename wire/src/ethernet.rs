//! Ethernet II frames (IEEE 802.3, clause 3) and the addresses of their stations.

use core::fmt;
use core::str::FromStr;

/// An Ethernet (EUI-48) address in the order of transmission.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// `ff:ff:ff:ff:ff:ff`.
    pub const BROADCAST: Self = Self([0xff; 6]);
    /// `00:00:00:00:00:00`, which no station may have.
    pub const ZERO: Self = Self([0; 6]);

    /// The six octets in the order of transmission.
    #[inline]
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }

    /// Whether the address names a group of stations: multicast, or broadcast.
    #[inline]
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether the address names one station and could belong to it: neither a group nor all zero.
    #[inline]
    pub const fn is_unicast(self) -> bool {
        !self.is_group() && !self.is_zero()
    }

    /// Whether this is [`MacAddr::BROADCAST`].
    #[inline]
    pub const fn is_broadcast(self) -> bool {
        matches!(self.0, [0xff, 0xff, 0xff, 0xff, 0xff, 0xff])
    }

    /// Whether this is [`MacAddr::ZERO`].
    #[inline]
    pub const fn is_zero(self) -> bool {
        matches!(self.0, [0, 0, 0, 0, 0, 0])
    }
}

impl From<[u8; 6]> for MacAddr {
    #[inline]
    fn from(octets: [u8; 6]) -> Self {
        Self(octets)
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a MAC address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a MAC address is six hexadecimal octets such as 02:00:00:00:00:01")]
pub struct ParseMacError;

impl FromStr for MacAddr {
    type Err = ParseMacError;

    /// Six octets of one or two hexadecimal digits (macOS prints no leading zeros), all separated by `:` or all by
    /// `-`.
    fn from_str(text: &str) -> Result<Self, ParseMacError> {
        let separator = if text.contains('-') { '-' } else { ':' };
        let mut parts = text.split(separator);
        let mut octets = [0; 6];
        for octet in &mut octets {
            let part = parts.next().ok_or(ParseMacError)?;
            // from_str_radix takes a sign, which no MAC address has.
            if !matches!(part.len(), 1 | 2) || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(ParseMacError);
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| ParseMacError)?;
        }
        match parts.next() {
            None => Ok(Self(octets)),
            Some(_) => Err(ParseMacError),
        }
    }
}

/// Bytes of an Ethernet header: destination, source, EtherType.
pub const HEADER_LEN: usize = 14;

/// The shortest Ethernet frame without its frame check sequence; up to here a frame may be padded.
pub const PADDED_LEN: usize = 60;

/// The EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// The EtherType of ARP.
pub const ARP: u16 = 0x0806;

/// What an Ethernet frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EtherType {
    /// [`IPV4`].
    Ipv4,
    /// [`ARP`].
    Arp,
    /// IPv6.
    Ipv6,
    /// A VLAN tag of any kind: 802.1Q, 802.1ad, and the values of stacked tags from before that standard.
    Vlan,
    /// Everything else, including a length (LLC).
    Other,
}

/// An Ethernet frame. Its header is complete; its payload is not parsed.
///
/// Fields are read only when needed: most frames pass after one read of each.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    /// At least a header.
    bytes: &'a [u8],
}

impl<'a> Frame<'a> {
    /// `None` for a runt.
    #[inline(always)]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        (bytes.len() >= HEADER_LEN).then_some(Self { bytes })
    }

    /// The compiler removes the fallback.
    #[inline(always)]
    fn header(&self) -> &'a [u8; HEADER_LEN] {
        self.bytes.first_chunk().unwrap_or(&[0; HEADER_LEN])
    }

    /// What follows the header, padding included.
    #[inline(always)]
    pub fn payload(&self) -> &'a [u8] {
        self.bytes.get(HEADER_LEN..).unwrap_or_default()
    }

    /// The address that the frame is sent to.
    #[inline(always)]
    pub fn destination(&self) -> MacAddr {
        MacAddr(self.header().first_chunk().copied().unwrap_or_default())
    }

    /// The address that the frame is sent from.
    #[inline(always)]
    pub fn source(&self) -> MacAddr {
        let [_, _, _, _, _, _, source @ .., _, _] = *self.header();
        MacAddr(source)
    }

    /// The destination and the first two bytes of the source, as one word to compare.
    #[inline(always)]
    pub fn head(&self) -> u64 {
        u64::from_ne_bytes(self.header().first_chunk().copied().unwrap_or_default())
    }

    /// The source and the EtherType, as one word to compare.
    #[inline(always)]
    pub fn tail(&self) -> u64 {
        u64::from_ne_bytes(self.header().last_chunk().copied().unwrap_or_default())
    }

    /// What the frame carries.
    #[inline(always)]
    pub fn ether_type(&self) -> EtherType {
        let [.., high, low] = *self.header();
        match u16::from_be_bytes([high, low]) {
            IPV4 => EtherType::Ipv4,
            ARP => EtherType::Arp,
            other => Self::other_ether_type(other),
        }
    }

    /// A function of its own, to keep the code for the two that pass short.
    #[cold]
    fn other_ether_type(number: u16) -> EtherType {
        match number {
            0x86dd => EtherType::Ipv6,
            0x8100 | 0x88a8 | 0x9100 | 0x9200 | 0x9300 => EtherType::Vlan,
            _ => EtherType::Other,
        }
    }

    /// Whether there are bytes behind a packet of `packet_len` bytes that padding does not explain.
    #[inline(always)]
    pub fn has_trailer(&self, packet_len: usize) -> bool {
        self.bytes.len() > PADDED_LEN && self.payload().len() > packet_len
    }
}

/// What [`Frame::head`] gives for frames from `source` to `destination`, and for some others, whose source begins the
/// same.
pub fn head(destination: MacAddr, source: MacAddr) -> u64 {
    let [a, b, c, d, e, f] = destination.octets();
    let [g, h, ..] = source.octets();
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

/// What [`Frame::tail`] gives for frames from `source` that carry `ether_type`, and for no others.
pub fn tail(source: MacAddr, ether_type: u16) -> u64 {
    let [a, b, c, d, e, f] = source.octets();
    let [g, h] = ether_type.to_be_bytes();
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_the_header() {
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0x08, 0x06, 0xaa];
        let frame = Frame::parse(&bytes).unwrap();
        assert_eq!(frame.destination(), MacAddr([1, 2, 3, 4, 5, 6]));
        assert_eq!(frame.source(), MacAddr([7, 8, 9, 10, 11, 12]));
        assert_eq!((frame.ether_type(), frame.payload()), (EtherType::Arp, &[0xaa][..]));
        assert_eq!(frame.head(), head(frame.destination(), frame.source()));
        assert_eq!(frame.tail(), tail(frame.source(), 0x0806));
        assert!(Frame::parse(&bytes[..13]).is_none());
        assert!(Frame::parse(&bytes[..14]).is_some_and(|frame| frame.payload().is_empty()));
    }

    #[test]
    fn parses_and_prints() {
        let mac = MacAddr([0x02, 0x1a, 0, 0xff, 0x10, 0x9]);
        assert_eq!(mac.to_string(), "02:1a:00:ff:10:09");
        assert_eq!(format!("{mac:?}"), "02:1a:00:ff:10:09");
        for text in ["02:1a:00:ff:10:09", "02:1A:00:FF:10:09", "2:1a:0:ff:10:9", "02-1a-00-ff-10-09"] {
            assert_eq!(text.parse(), Ok(mac), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_mac() {
        for text in [
            "",
            "02",
            "02:1a:00:ff:10",
            "02:1a:00:ff:10:09:00",
            "02:1a:00:ff:10:",
            "02:1a:00:ff:10:009",
            "02:1a:00:ff:10:+9",
            "02:1a:00:ff:10:0g",
            "02-1a:00-ff:10-09",
            " 02:1a:00:ff:10:09",
            "021a00ff1009",
        ] {
            assert_eq!(text.parse::<MacAddr>(), Err(ParseMacError), "{text}");
        }
    }

    #[test]
    fn knows_kinds() {
        assert!(MacAddr([2, 0, 0, 0, 0, 1]).is_unicast());
        assert!(!MacAddr([3, 0, 0, 0, 0, 1]).is_unicast());
        assert!(MacAddr([1, 0, 0x5e, 0, 0, 1]).is_group());
        assert!(!MacAddr::ZERO.is_unicast() && MacAddr::ZERO.is_zero() && !MacAddr::ZERO.is_group());
        assert!(MacAddr::BROADCAST.is_group() && MacAddr::BROADCAST.is_broadcast());
        assert!(!MacAddr([0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]).is_broadcast());
        assert!(!MacAddr([0, 0, 0, 0, 0, 1]).is_zero());
        assert_eq!(MacAddr::from([1, 2, 3, 4, 5, 6]).octets(), [1, 2, 3, 4, 5, 6]);
    }
}
