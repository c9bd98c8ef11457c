//! ICMP (RFC 792).

use core::net::Ipv4Addr;

/// The answer to an echo.
pub const ECHO_REPLY: u8 = 0;
/// An error: the quoted packet did not reach its destination.
pub const DESTINATION_UNREACHABLE: u8 = 3;
/// Its code for a packet that is too long for a link, and must not be fragmented.
pub const FRAGMENTATION_NEEDED: u8 = 4;
/// A request for an echo.
pub const ECHO: u8 = 8;
/// An error: the quoted packet travelled too long.
pub const TIME_EXCEEDED: u8 = 11;
/// An error: the header of the quoted packet has a wrong field.
pub const PARAMETER_PROBLEM: u8 = 12;

/// Bytes before the data of a message, or before the packet that an error quotes.
pub const HEADER_LEN: usize = 8;

/// The destination of the packet that an error quotes. `None` if the quote is not a complete IPv4 header.
#[inline]
pub fn quoted_destination(message: &[u8]) -> Option<Ipv4Addr> {
    match message.get(HEADER_LEN..)?.first_chunk::<20>()? {
        &[0x45..=0x4f, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, d0, d1, d2, d3] => {
            Some(Ipv4Addr::new(d0, d1, d2, d3))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_whom_a_quoted_packet_was_for() {
        #[rustfmt::skip]
        let message = [
            DESTINATION_UNREACHABLE, 3, 0, 0, 0, 0, 0, 0,
            0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 9, 9, 9, 9, 192, 168, 64, 2,
        ];
        assert_eq!(quoted_destination(&message), Some(Ipv4Addr::new(192, 168, 64, 2)));
        for len in 0..message.len() {
            assert_eq!(quoted_destination(&message[..len]), None, "{len} bytes");
        }
        for version_ihl in [0x00, 0x35, 0x44, 0x55, 0x60] {
            let mut message = message;
            message[8] = version_ihl;
            assert_eq!(quoted_destination(&message), None, "{version_ihl:#04x}");
        }
    }
}
