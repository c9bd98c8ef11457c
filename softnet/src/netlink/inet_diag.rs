//! The TCP ports with a listening socket, by the kernel's socket diagnostics (sock_diag(7)).
//!
//! `/proc/net/tcp` lists the same, but for it the kernel walks its whole table of connections, which takes
//! milliseconds even if the table is empty.

use std::collections::BTreeSet;
use std::io;

use netlink_packet_core::NLM_F_DUMP;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use super::{Connection, SOCK_DIAG_BY_FAMILY};

/// The states `TCP_LISTEN`, and bound without listening (`TCP_BOUND_INACTIVE`, Linux 6.8).
const STATES: u32 = 1 << 10 | 1 << 13;

/// The local ports of this network namespace's listening TCP sockets, of both address families, without those
/// of connected sockets.
///
/// # Errors
/// Those of the socket, and of a kernel without `tcp_diag`.
pub fn listening_tcp_ports() -> io::Result<BTreeSet<u16>> {
    let mut connection = Connection::open(NETLINK_SOCK_DIAG)?;
    let mut ports = BTreeSet::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        connection.exchange(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, &listen_request(family as u8), |answer| {
            ports.extend(local_port(answer.payload()));
            Ok(())
        })?;
    }
    Ok(ports)
}

/// `struct inet_diag_req_v2`.
fn listen_request(family: u8) -> [u8; 56] {
    let mut request = [0; 56];
    request[..2].copy_from_slice(&[family, libc::IPPROTO_TCP as u8]);
    request[4..8].copy_from_slice(&STATES.to_ne_bytes());
    request
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
    fn listeners_are_listed_and_connections_are_not() {
        let four = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = four.local_addr().unwrap();
        let connected = TcpStream::connect(address).unwrap();
        let mut expected = vec![address.port()];
        // The system may have no IPv6.
        let six = TcpListener::bind("[::1]:0").ok();
        expected.extend(six.iter().map(|six| six.local_addr().unwrap().port()));
        let ports = listening_tcp_ports().unwrap();
        assert!(expected.iter().all(|port| ports.contains(port)), "{expected:?} of {ports:?}");
        assert!(!ports.contains(&connected.local_addr().unwrap().port()));
    }

    #[test]
    fn a_truncated_message_has_no_port() {
        let mut message = listen_request(2);
        message[4..6].copy_from_slice(&80_u16.to_be_bytes());
        assert_eq!(local_port(&message), Some(80));
        for length in 0..6 {
            assert_eq!(local_port(&message[..length]), None, "{length}");
        }
    }
}
