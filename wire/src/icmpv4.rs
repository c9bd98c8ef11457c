//! ICMP (RFC 792).

use core::net::Ipv4Addr;

use crate::ipv4;

/// The answer to an echo.
pub const ECHO_REPLY: u8 = 0;
/// An error: the quoted packet did not reach its destination.
pub const DESTINATION_UNREACHABLE: u8 = 3;
/// Its code for a packet that is too long for a link, and must not be fragmented.
pub const FRAGMENTATION_NEEDED: u8 = 4;
/// The code of [`DESTINATION_UNREACHABLE`] for what a filter does not let pass (RFC 1812, section 5.2.7.1).
pub const PROHIBITED: u8 = 13;
/// A request for an echo.
pub const ECHO: u8 = 8;
/// An error: the quoted packet travelled too long.
pub const TIME_EXCEEDED: u8 = 11;
/// An error: the header of the quoted packet has a wrong field.
pub const PARAMETER_PROBLEM: u8 = 12;

/// Bytes before the data of a message, or before the packet that an error quotes.
pub const HEADER_LEN: usize = 8;

/// What an error quotes: the header of the packet that it is about, and the beginning of what that carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quote {
    /// Who sent the packet.
    pub source: Ipv4Addr,
    /// Whom it was for.
    pub destination: Ipv4Addr,
    /// The number of the protocol that it carried.
    pub protocol: u8,
    /// The first bytes of that, which are ports or the like; `None` for a later fragment, or if they are not there.
    pub data: Option<[u8; 8]>,
}

impl Quote {
    /// `None` if the quote is not a complete IPv4 header.
    #[inline]
    pub fn of(message: &[u8]) -> Option<Self> {
        let quoted = message.get(HEADER_LEN..)?;
        let header = quoted.first_chunk::<{ ipv4::HEADER_LEN }>()?;
        let &[
            version_ihl @ 0x45..=0x4f,
            _,
            _,
            _,
            _,
            _,
            f0,
            f1,
            _,
            protocol,
            _,
            _,
            s0,
            s1,
            s2,
            s3,
            d0,
            d1,
            d2,
            d3,
        ] = header
        else {
            return None;
        };
        let header_len = usize::from(version_ihl & 0x0f).wrapping_mul(4);
        let is_first = u16::from_be_bytes([f0, f1]) & ipv4::OFFSET == 0;
        let data = quoted.get(header_len..).and_then(|data| data.first_chunk());
        Some(Self {
            source: Ipv4Addr::new(s0, s1, s2, s3),
            destination: Ipv4Addr::new(d0, d1, d2, d3),
            protocol,
            data: data.copied().filter(|_| is_first),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_an_error_quotes() {
        #[rustfmt::skip]
        let message = [
            DESTINATION_UNREACHABLE, 3, 0, 0, 0, 0, 0, 0,
            0x45, 0, 0, 28, 0, 0, 0x20, 0, 64, 17, 0, 0, 9, 9, 9, 9, 192, 168, 64, 2,
            0, 53, 0x0f, 0xa0, 0, 8, 0, 0,
        ];
        let quote = Quote {
            source: Ipv4Addr::new(9, 9, 9, 9),
            destination: Ipv4Addr::new(192, 168, 64, 2),
            protocol: 17,
            data: Some([0, 53, 0x0f, 0xa0, 0, 8, 0, 0]),
        };
        assert_eq!(Quote::of(&message), Some(quote));
        for len in 0..28 {
            assert_eq!(Quote::of(&message[..len]), None, "{len} bytes");
        }
        for len in 28..36 {
            assert_eq!(Quote::of(&message[..len]), Some(Quote { data: None, ..quote }), "{len} bytes");
        }
        for version_ihl in [0x00, 0x35, 0x44, 0x55, 0x60] {
            let mut message = message;
            message[8] = version_ihl;
            assert_eq!(Quote::of(&message), None, "{version_ihl:#04x}");
        }
        let mut later = message;
        later[15] = 1;
        assert_eq!(Quote::of(&later), Some(Quote { data: None, ..quote }));
        let mut options = message.to_vec();
        options[8] = 0x46;
        options.splice(28..28, [1, 1, 1, 0]);
        assert_eq!(Quote::of(&options), Some(quote));
    }
}
