//! Which TCP ports somebody listens at, by the kernel's socket diagnostics (sock_diag(7)).
//!
//! `/proc/net/tcp` tells the same, but the kernel walks its whole table of connections for it, which takes milliseconds even
//! if the table is empty.

use std::collections::BTreeSet;
use std::io;

use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const HEADER: usize = 16;

/// `TCP_LISTEN`, and bound without listening (`TCP_BOUND_INACTIVE`, Linux 6.8).
const STATES: u32 = 1 << 10 | 1 << 13;

/// The local ports of the TCP sockets of this network namespace that listen, of both address families. Those that are connected
/// are not among them.
///
/// # Errors
/// Those of the socket, and of a kernel without `tcp_diag`.
pub fn listening_tcp_ports() -> io::Result<BTreeSet<u16>> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut ports = BTreeSet::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        socket.send(&request(family as u8), 0)?;
        while !read(&socket.recv_from_full()?.0, &mut ports)? {}
    }
    Ok(ports)
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
fn request(family: u8) -> [u8; HEADER + 56] {
    let mut request = [0; HEADER + 56];
    let mut put = |at: usize, bytes: &[u8]| request[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &(HEADER as u32 + 56).to_ne_bytes());
    put(4, &SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    put(6, &(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    put(16, &[family, libc::IPPROTO_TCP as u8]);
    put(20, &STATES.to_ne_bytes());
    request
}

/// Adds the ports in `bytes`, which hold some messages, and says whether that was the last.
fn read(mut bytes: &[u8], ports: &mut BTreeSet<u16>) -> io::Result<bool> {
    while let Some(length) = bytes.first_chunk().map(|length| u32::from_ne_bytes(*length) as usize) {
        let message = bytes.get(..length).filter(|message| message.len() >= HEADER);
        let message = message.ok_or(io::ErrorKind::InvalidData)?;
        match u16::from_ne_bytes([message[4], message[5]]) {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = message.get(HEADER..).and_then(|body| body.first_chunk());
                let code = code.map_or(libc::EINVAL, |code| i32::from_ne_bytes(*code).saturating_neg());
                return Err(io::Error::from_raw_os_error(code));
            }
            // `struct inet_diag_msg`: the local port is behind four bytes, in network byte order.
            _ => ports.extend(
                message.get(HEADER + 4..).and_then(|id| Some(u16::from_be_bytes(*id.first_chunk()?))),
            ),
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
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
    fn cut_messages_are_errors_or_nothing() {
        let mut message = request(2).to_vec();
        message[20..22].copy_from_slice(&80u16.to_be_bytes());
        let mut ports = BTreeSet::new();
        assert!(!read(&message, &mut ports).unwrap());
        assert_eq!(ports, BTreeSet::from([80]));
        for length in 0..message.len() {
            let _ = read(&message[..length], &mut BTreeSet::new());
        }
    }
}
