//! Reserves an exposed port: a socket that is bound and never listens.
//!
//! So a port in use is an error at start, not a forward that shadows a service; and a program that starts
//! later gets the error that the port is in use. Packets to the port are translated to the VM before they
//! reach the socket.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};

use crate::config::expose::{Expose, Protocol};

/// A port of the host that is reserved until this is dropped.
#[derive(Debug)]
pub struct Reservation(OwnedFd);

/// Why a port cannot be reserved. The caller adds the flag and the value.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another program uses it.
    #[error("port {0} is taken by another program (`ss -lntup` shows which); choose another")]
    Taken(u16),
    /// The address is not the host's.
    #[error("{0} is not an address of this host (`ip address` lists them)")]
    NoSuchAddress(std::net::Ipv4Addr),
    /// Only root may expose privileged ports, regardless of Softnet's privilege.
    #[error("only root may expose ports below {0}; choose a higher one")]
    Privileged(u32),
    /// Anything else.
    #[error("port {0} cannot be reserved: {1}")]
    Io(u16, io::Error),
}

impl Reservation {
    /// Reserves the port of `expose`. `caller_is_root` is about the user who started Softnet, not about its
    /// privilege.
    ///
    /// # Errors
    /// When the port or the address is not available.
    pub fn make(expose: &Expose, caller_is_root: bool) -> Result<Self, Error> {
        let port = expose.external.get();
        let first_free = first_unprivileged_port();
        if !caller_is_root && u32::from(port) < first_free {
            return Err(Error::Privileged(first_free));
        }
        let kind = match expose.protocol {
            Protocol::Tcp => SocketType::STREAM,
            Protocol::Udp => SocketType::DGRAM,
        };
        let failed = |errno: Errno| match errno {
            Errno::ADDRINUSE => Error::Taken(port),
            Errno::ADDRNOTAVAIL => Error::NoSuchAddress(expose.bind_address()),
            other => Error::Io(port, other.into()),
        };
        let socket = socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC, None).map_err(failed)?;
        // Datagrams that come before the forward does are not worth memory. The kernel rounds up to its minimum.
        let _ = sockopt::set_socket_recv_buffer_size(&socket, 0);
        bind(&socket, &SocketAddrV4::new(expose.bind_address(), port)).map_err(failed)?;
        Ok(Reservation(socket))
    }
}

impl AsFd for Reservation {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn first_unprivileged_port() -> u32 {
    let setting = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    setting.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpListener, UdpSocket};

    fn expose(port: u16, suffix: &str) -> Expose {
        format!("127.0.0.1:{port}:80{suffix}").parse().unwrap()
    }

    #[test]
    fn a_reserved_port_is_taken_and_a_taken_port_is_not_reserved() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(
            matches!(Reservation::make(&expose(port, ""), true), Err(Error::Taken(taken)) if taken == port)
        );
        drop(listener);
        let reservation = Reservation::make(&expose(port, ""), true).unwrap();
        assert!(TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_err());
        assert!(matches!(Reservation::make(&expose(port, ""), true), Err(Error::Taken(_))));
        drop(reservation);
        Reservation::make(&expose(port, ""), true).unwrap();
    }

    #[test]
    fn tcp_and_udp_are_apart() {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        assert!(matches!(Reservation::make(&expose(port, "/udp"), true), Err(Error::Taken(_))));
    }

    #[test]
    fn low_ports_and_foreign_addresses_are_refused() {
        let low = Reservation::make(&expose(1, ""), false).unwrap_err();
        assert!(matches!(low, Error::Privileged(_)), "{low}");
        let foreign = Reservation::make(&"192.0.2.1:54321:80".parse().unwrap(), true).unwrap_err();
        assert!(matches!(foreign, Error::NoSuchAddress(_)), "{foreign}");
    }
}
