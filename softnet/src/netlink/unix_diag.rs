//! The peer of a Unix socket by the kernel's socket diagnostics (sock_diag(7), `linux/unix_diag.h`).
//!
//! Only the messages: the caller owns the socket, which stays open after the seal.

use std::io;

use super::{SOCK_DIAG_BY_FAMILY, find, messages, request};

const UDIAG_SHOW_PEER: u32 = 4;
const UNIX_DIAG_PEER: u16 = 2;
/// `struct unix_diag_msg`.
const MESSAGE: usize = 16;

/// The request for the peer of the socket with this inode: `struct unix_diag_req`.
pub fn peer_request(inode: u32) -> Vec<u8> {
    let mut payload = [0; 24];
    let mut put = |at: usize, bytes: &[u8]| payload[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &[libc::AF_UNIX as u8]);
    put(4, &u32::MAX.to_ne_bytes()); // any state
    put(8, &inode.to_ne_bytes());
    put(12, &UDIAG_SHOW_PEER.to_ne_bytes());
    put(16, &[0xff; 8]); // INET_DIAG_NOCOOKIE
    request(SOCK_DIAG_BY_FAMILY, 0, 0, &payload)
}

/// The inode of the peer in the kernel's answer; 0 if it has closed.
///
/// # Errors
/// `InvalidData` if the answer names no peer: it is an error or is truncated.
pub fn peer(answer: &[u8]) -> io::Result<u32> {
    let message = messages(answer).next().and_then(Result::ok);
    let peer = message
        .filter(|message| message.message_type() == SOCK_DIAG_BY_FAMILY)
        .and_then(|message| find(message.payload().get(MESSAGE..)?, UNIX_DIAG_PEER))
        .and_then(|value| Some(u32::from_ne_bytes(*value.first_chunk()?)));
    peer.ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, "no peer in the answer of the socket diagnostics")
    })
}

#[cfg(test)]
mod tests {
    use super::super::attribute;
    use super::*;

    #[test]
    fn an_answer_that_is_truncated_or_lacks_the_attribute_names_no_peer() {
        let answer =
            |attributes: &[u8]| request(SOCK_DIAG_BY_FAMILY, 0, 0, &[&[0; MESSAGE][..], attributes].concat());
        let attributes = attribute(UNIX_DIAG_PEER, &7_u32.to_ne_bytes());
        let whole = answer(&attributes);
        assert_eq!(peer(&whole).unwrap(), 7);
        for length in 0..whole.len() {
            assert!(peer(&whole[..length]).is_err(), "{length} bytes");
        }
        for length in 0..attributes.len() {
            assert!(peer(&answer(&attributes[..length])).is_err(), "{length} bytes of the attribute");
        }
        assert!(peer(&answer(&attribute(9, &7_u32.to_ne_bytes()))).is_err());
        assert!(peer(&request(2, 0, 0, &[0; MESSAGE])).is_err());
    }
}
