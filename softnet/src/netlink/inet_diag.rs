//! Which TCP ports somebody listens at, by the kernel's socket diagnostics (sock_diag(7)).
//!
//! `/proc/net/tcp` tells the same, but the kernel walks its whole table of connections for it, which takes
//! milliseconds even if the table is empty.

use std::collections::BTreeSet;
use std::io;

use netlink_packet_core::NLM_F_DUMP;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use super::{Connection, SOCK_DIAG_BY_FAMILY};

/// `TCP_LISTEN`, and bound without listening (`TCP_BOUND_INACTIVE`, Linux 6.8).
const STATES: u32 = 1 << 10 | 1 << 13;

/// The local ports of the TCP sockets of this network namespace that listen, of both address families. Those
/// that are connected are not among them.
///
/// # Errors
/// Those of the socket, and of a kernel without `tcp_diag`.
pub fn listening_tcp_ports() -> io::Result<BTreeSet<u16>> {
    let mut connection = Connection::open(NETLINK_SOCK_DIAG)?;
    let mut ports = BTreeSet::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        connection.exchange(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, &question(family as u8), |answer| {
            ports.extend(local_port(answer.payload()));
            Ok(())
        })?;
    }
    Ok(ports)
}

/// `struct inet_diag_req_v2`.
fn question(family: u8) -> [u8; 56] {
    let mut question = [0; 56];
    question[..2].copy_from_slice(&[family, libc::IPPROTO_TCP as u8]);
    question[4..8].copy_from_slice(&STATES.to_ne_bytes());
    question
}

/// The port in a `struct inet_diag_msg`: after four bytes, in network byte order.
fn local_port(message: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(*message.get(4..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn listeners_are_told_and_connections_are_not() {
        let four = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = four.local_addr().unwrap();
        let connected = TcpStream::connect(address).unwrap();
        let mut expected = vec![address.port()];
        // There may be no IPv6.
        let six = TcpListener::bind("[::1]:0").ok();
        expected.extend(six.iter().map(|six| six.local_addr().unwrap().port()));
        let ports = listening_tcp_ports().unwrap();
        assert!(expected.iter().all(|port| ports.contains(port)), "{expected:?} of {ports:?}");
        assert!(!ports.contains(&connected.local_addr().unwrap().port()));
    }

    #[test]
    fn a_message_that_is_cut_short_names_no_port() {
        let mut message = question(2);
        message[4..6].copy_from_slice(&80_u16.to_be_bytes());
        assert_eq!(local_port(&message), Some(80));
        for length in 0..6 {
            assert_eq!(local_port(&message[..length]), None, "{length}");
        }
    }
}
