//! Ethernet addresses.

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
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }

    /// Whether the address names a group of stations: multicast, or broadcast.
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether the address names one station and could belong to it: neither a group nor all zero.
    pub const fn is_unicast(self) -> bool {
        !self.is_group() && !self.is_zero()
    }

    /// Whether this is [`MacAddr::BROADCAST`].
    pub const fn is_broadcast(self) -> bool {
        matches!(self.0, [0xff, 0xff, 0xff, 0xff, 0xff, 0xff])
    }

    /// Whether this is [`MacAddr::ZERO`].
    pub const fn is_zero(self) -> bool {
        matches!(self.0, [0, 0, 0, 0, 0, 0])
    }
}

impl From<[u8; 6]> for MacAddr {
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

/// The text is no MAC address.
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

#[cfg(test)]
mod tests {
    use super::*;

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
