//! Servers that send a greeting, so that a test sees at both ends whether a host was reached.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};

#[cfg(target_os = "linux")]
use crate::net::Host;

/// A TCP and a UDP server on one port of one host.
///
/// It answers `hello from NAME to ADDRESS`, where ADDRESS is the client's as it sees it, and runs until the
/// program ends.
#[derive(Debug)]
pub struct Service {
    /// Where it listens.
    pub at: SocketAddrV4,
    seen: Arc<Mutex<Vec<Ipv4Addr>>>,
}

impl Service {
    /// Starts it on `host`; it is reachable when this returns.
    ///
    /// # Errors
    /// Fails if the address is not the host's or the port is taken.
    #[cfg(target_os = "linux")]
    pub fn start(host: &Host, address: Ipv4Addr, port: u16, name: &str) -> Result<Self> {
        let at = SocketAddrV4::new(address, port);
        let (tcp, udp) = host
            .run(|| io::Result::Ok((TcpListener::bind(at)?, UdpSocket::bind(at)?)))?
            .with_context(|| format!("listen on {at}"))?;
        Self::over(tcp, udp, name)
    }

    /// Starts it in this host on a free port of every address; it is reachable when this returns.
    ///
    /// # Errors
    /// Fails if the system gives no sockets.
    pub fn here(name: &str) -> Result<Self> {
        let tcp = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).context("listen on a free port")?;
        let udp = UdpSocket::bind(tcp.local_addr()?)?;
        Self::over(tcp, udp, name)
    }

    fn over(tcp: TcpListener, udp: UdpSocket, name: &str) -> Result<Self> {
        let SocketAddr::V4(at) = tcp.local_addr()? else { bail!("listening on IPv6") };
        let seen = Arc::new(Mutex::new(Vec::new()));
        let greet = {
            let (seen, name) = (Arc::clone(&seen), name.to_owned());
            move |peer: SocketAddr| {
                let SocketAddr::V4(peer) = peer else { return String::new() };
                seen.lock().unwrap_or_else(PoisonError::into_inner).push(*peer.ip());
                format!("hello from {name} to {}\n", peer.ip())
            }
        };
        let greet_udp = greet.clone();
        std::thread::spawn(move || {
            for mut stream in tcp.incoming().flatten() {
                // A peer that has closed has been counted already.
                let _ = stream.peer_addr().and_then(|peer| stream.write_all(greet(peer).as_bytes()));
            }
        });
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(greet_udp(peer).as_bytes(), peer);
            }
        });
        Ok(Self { at, seen })
    }

    /// The clients so far, one entry per connection or datagram.
    #[must_use]
    pub fn seen(&self) -> Vec<Ipv4Addr> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Connects from the calling thread's host and reads the one line that a [`Service`] sends.
///
/// # Errors
/// The error of the connection or of the read.
pub fn hello(to: SocketAddrV4, patience: Duration) -> io::Result<String> {
    let stream = TcpStream::connect_timeout(&to.into(), patience)?;
    stream.set_read_timeout(Some(patience))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}
