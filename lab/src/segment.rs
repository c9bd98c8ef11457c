//! The host's side of the wire, for tests that play all hosts on it: a bridge, one TAP, and raw sockets on
//! both.

use std::net::Ipv4Addr;
use std::os::fd::AsFd;

use anyhow::{Context, Result, bail};
use lab_agent::packet::PacketSocket;

use crate::deadline::Deadline;
use crate::net::Host;
use crate::wire::Mac;

/// A bridge with one TAP as its port.
///
/// The test reads on the TAP what Softnet writes into it. It sends through the bridge, so the kernel delivers
/// the frame to the TAP like any host's frame.
#[derive(Debug)]
pub struct Segment {
    /// The bridge's hardware address, the gateway's.
    pub mac: Mac,
    /// The bridge's own address, the gateway's.
    pub gateway: Ipv4Addr,
    bridge: PacketSocket,
    tap: PacketSocket,
}

impl Segment {
    /// The bridge's name.
    pub const BRIDGE: &'static str = "br0";
    /// The TAP's name.
    pub const TAP: &'static str = "tap0";

    /// Makes both on the lab's main host; `address` has a prefix length.
    ///
    /// # Errors
    /// Says which step failed.
    pub fn build(host: &Host, gateway: Ipv4Addr, prefix: u8) -> Result<Self> {
        host.bridge(Self::BRIDGE, &format!("{gateway}/{prefix}"))?;
        host.tap(Self::TAP, Self::BRIDGE)?;
        // A fixed address: otherwise a bridge has the lowest address of its ports, which changes with the
        // ports.
        let mac = Mac([0x02, 0xb0, 0, 0, 0, 1]);
        host.ip(&format!("link set {} address {mac}", Self::BRIDGE))?;
        Ok(Self {
            mac,
            gateway,
            bridge: PacketSocket::open(Self::BRIDGE).context("open a raw socket on the bridge")?,
            tap: PacketSocket::open(Self::TAP).context("open a raw socket on the TAP")?,
        })
    }

    /// Sends a frame out of the bridge, towards the TAP and so towards the VM.
    ///
    /// # Errors
    /// Returns the kernel's error.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        self.bridge.send(frame).context("send a frame out of the bridge")
    }

    /// The next frame that Softnet forwarded, or `None` at the deadline.
    ///
    /// # Errors
    /// Fails on a broken socket.
    pub fn recv(&self, deadline: Deadline) -> Result<Option<Vec<u8>>> {
        while deadline.readable(self.tap.as_fd()) {
            match self.tap.try_recv() {
                Ok(frame) => return Ok(Some(frame)),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("receive from the TAP"),
            }
        }
        Ok(None)
    }

    /// Waits for a frame that `wanted` accepts, and returns it after all frames that arrived before it.
    ///
    /// # Errors
    /// Fails if none arrives before the deadline.
    pub fn expect(&self, what: &str, wanted: impl Fn(&[u8]) -> bool) -> Result<(Vec<Vec<u8>>, Vec<u8>)> {
        let deadline = Deadline::default();
        let mut before = Vec::new();
        while let Some(frame) = self.recv(deadline)? {
            if wanted(&frame) {
                return Ok((before, frame));
            }
            before.push(frame);
        }
        bail!("the host never received {what}; it received {} other frames", before.len())
    }
}
