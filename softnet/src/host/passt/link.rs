//! The stream to passt, with one correction: passt sends its DHCP replies without a UDP checksum.
//!
//! IPv4 allows that (RFC 768), and the filter does not (rule B1), because on a bridge any host could have
//! sent a reply. Here only passt is at the far end, so this link fills in the checksum for exactly those
//! packets.

use std::io;

use mio::{Interest, Registry, Token};
use softnet_wire::checksum::Sum;

use crate::link::{ETHERNET_HEADER, FrameBatch, Link, LinkError, Received, Sent, StreamLink};
use crate::needs::Needs;

/// The link to passt.
#[derive(Debug)]
pub struct PasstLink(StreamLink);

impl PasstLink {
    /// Carries frames over passt's stream socket.
    pub fn new(stream: StreamLink) -> Self {
        PasstLink(stream)
    }
}

impl Link for PasstLink {
    fn register(&mut self, registry: &Registry, token: Token, interest: Interest) -> io::Result<()> {
        self.0.register(registry, token, interest)
    }

    fn needs(&self, needs: &mut Needs) {
        self.0.needs(needs);
    }

    fn recv(&mut self, batch: &mut FrameBatch) -> Result<Received, LinkError> {
        let received = self.0.recv(batch)?;
        batch.edit(|frame| {
            let _ = complete(frame);
        });
        Ok(received)
    }

    fn send(&mut self, batch: &mut FrameBatch) -> Result<Sent, LinkError> {
        self.0.send(batch)
    }
}

/// Fills in the UDP checksum of a DHCP reply that has none; `None` if the frame is not one.
fn complete(frame: &mut [u8]) -> Option<()> {
    const UDP: u8 = 17;
    const HEADER: usize = 20;
    const CHECKSUM: usize = 6;

    let (ethernet, packet) = frame.split_at_mut_checked(ETHERNET_HEADER)?;
    let (header, rest) = packet.split_at_mut_checked(HEADER)?;
    // IPv4 without options, not a fragment: the only form that passt sends.
    let whole = header.get(6..8) == Some(&[0, 0]) || header.get(6..8) == Some(&[0x40, 0]);
    if ethernet.get(12..) != Some(&[8, 0]) || header.first() != Some(&0x45) || !whole {
        return None;
    }
    let length = u16::from_be_bytes(*rest.get(4..)?.first_chunk()?);
    let datagram = rest.get_mut(..usize::from(length))?;
    let from_server_to_client = datagram.get(..4)? == [0, 67, 0, 68];
    if header.get(9) != Some(&UDP) || !from_server_to_client || datagram.get(CHECKSUM..8)? != [0, 0] {
        return None;
    }
    let addresses: [u8; 8] = *header.get(12..)?.first_chunk()?;
    let sum = Sum::pseudo_header(addresses, UDP, length) + Sum::of(datagram);
    datagram.get_mut(CHECKSUM..8)?.copy_from_slice(&sum.finish_udp().to_be_bytes());
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(sport: u8) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([8, 0]);
        frame.extend([0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 192, 168, 64, 1, 192, 168, 64, 2]);
        frame.extend([0, sport, 0, 68, 0, 12, 0, 0]);
        frame.extend(*b"dhcp");
        // Padding of the Ethernet frame belongs to no sum.
        frame.extend([0xff; 4]);
        frame
    }

    #[test]
    fn a_missing_checksum_is_filled_in_and_is_right() {
        let mut frame = reply(67);
        assert_eq!(complete(&mut frame), Some(()));
        assert_ne!(frame[40..42], [0, 0]);
        let sum = Sum::pseudo_header(*frame[26..].first_chunk().unwrap(), 17, 12) + Sum::of(&frame[34..46]);
        assert!(sum.is_valid());
        let once = frame.clone();
        assert_eq!(complete(&mut frame), None, "a checksum that is there is passt's own");
        assert_eq!(frame, once);
    }

    #[test]
    fn everything_else_is_left_as_it_is() {
        let mut fragment = reply(67);
        fragment[20] = 0x20;
        let mut tagged = reply(67);
        tagged[12] = 0x81;
        let mut too_long = reply(67);
        too_long[39] = 200;
        for original in [reply(53), fragment, tagged, too_long] {
            let mut frame = original.clone();
            assert_eq!(complete(&mut frame), None);
            assert_eq!(frame, original);
        }
        for length in 0..reply(67).len() {
            let _ = complete(&mut reply(67)[..length]);
        }
    }
}
