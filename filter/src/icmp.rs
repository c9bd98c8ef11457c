//! ICMP (RFC 792): rule D6.

use core::net::Ipv4Addr;

use crate::verdict::DropReason;

/// Bytes of the header of the messages that may pass.
const HEADER_LEN: usize = 8;

/// Judges an ICMP message of the VM, whose address is `own`; wherever it goes.
///
/// A VM asks for echoes, answers them, and reports errors about what it was sent. All else serves to misdirect routes
/// or to learn about hosts, or is obsolete (RFC 6918).
pub(crate) fn judge(message: &[u8], own: Ipv4Addr) -> Result<(), DropReason> {
    match message.first() {
        // Echo reply, echo.
        Some(0 | 8) => Ok(()),
        // Destination unreachable, time exceeded, parameter problem: each quotes the packet that it is about.
        Some(3 | 11 | 12) => {
            let quote = message.get(HEADER_LEN..).and_then(|quote| quote.first_chunk::<20>());
            match quote {
                Some(&[0x45..=0x4f, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, d0, d1, d2, d3])
                    if Ipv4Addr::new(d0, d1, d2, d3) == own =>
                {
                    Ok(())
                }
                _ => Err(DropReason::IcmpQuote),
            }
        }
        _ => Err(DropReason::IcmpType),
    }
}
