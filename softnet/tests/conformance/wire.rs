//! The test bench: Softnet between a socket that the test holds and a bridge that the test plays.

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use lab::net::Host;
use lab::wire::{Arp, Dhcp, Ipv4, Mac, Transport, dhcp_kind, udp};
use lab::{DhcpServer, Segment, Softnet, VmPort};

/// The VM's hardware address.
pub const VM_MAC: Mac = Mac([0x52, 0x54, 0x00, 0xaa, 0xbb, 0x01]);
/// Another station's.
pub const OTHER_MAC: Mac = Mac([0x52, 0x54, 0x00, 0xaa, 0xbb, 0x02]);
/// The bridge's address, of a /24.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 1);
/// What the VM leases.
pub const VM: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 2);
/// Another station on the segment.
pub const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 9);
/// Somebody on the internet.
pub const WORLD: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);

/// A frame with a name for the message when the test fails.
pub type Named = (String, Vec<u8>);

/// What the VM may certainly send in its present state, to mark a point in the order of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marker {
    /// Without a lease: a DISCOVER. Scarce, for DHCP is rate limited.
    Discover,
    /// With an offer: a probe of the offered address (A3).
    Probe(Ipv4Addr),
    /// With a lease: an ARP request to the gateway (A5).
    Gateway(Ipv4Addr),
}

/// Softnet in TAP mode with both of its sides in the test's hands.
#[derive(Debug)]
pub struct Wire {
    pub segment: Segment,
    pub vm: VmPort,
    pub softnet: Softnet,
    pub marker: Marker,
    serial: u32,
}

impl Wire {
    /// Starts Softnet; the VM has no lease.
    pub fn start(flags: &[&str]) -> Result<Self> {
        let segment = Segment::build(&Host::main()?, GATEWAY, 24)?;
        let (vm, softnet) = launch(flags)?;
        Ok(Self::of(segment, vm, softnet))
    }

    /// Of a Softnet that the test has started on the segment's TAP.
    pub fn of(segment: Segment, vm: VmPort, softnet: Softnet) -> Self {
        Self { segment, vm, softnet, marker: Marker::Discover, serial: 0 }
    }

    /// Starts Softnet and gets the VM its lease.
    pub fn leased(flags: &[&str]) -> Result<Self> {
        let mut wire = Self::start(flags)?;
        wire.lease(VM)?;
        Ok(wire)
    }

    /// Starts Softnet anew on the same TAP, with other flags and another socket, and gets the VM its lease again.
    pub fn restart_leased(&mut self, flags: &[&str]) -> Result<()> {
        if self.softnet.is_running() {
            self.softnet.stop()?;
        }
        (self.vm, self.softnet) = launch(flags)?;
        self.lease(VM)
    }

    /// Gets the VM this address.
    pub fn lease(&mut self, address: Ipv4Addr) -> Result<()> {
        let xid = self.next();
        let leased = DhcpServer::new(&self.segment).lease(&self.vm, VM_MAC, address, xid);
        leased.with_context(|| self.why())?;
        self.marker = Marker::Gateway(address);
        Ok(())
    }

    /// Brings the VM to where it has been offered this address and has requested it; the transaction stays open.
    pub fn requested(&mut self, address: Ipv4Addr) -> Result<u32> {
        let xid = self.next();
        let server = DhcpServer::new(&self.segment);
        self.vm.send(&Dhcp::client(dhcp_kind::DISCOVER, xid, VM_MAC).broadcast())?;
        server.heard(dhcp_kind::DISCOVER, xid)?;
        server.send(&server.answer(dhcp_kind::OFFER, xid, VM_MAC, address), VM_MAC)?;
        DhcpServer::told(&self.vm, dhcp_kind::OFFER, xid).with_context(|| self.why())?;
        let request = Dhcp::client(dhcp_kind::REQUEST, xid, VM_MAC)
            .with(lab::wire::dhcp_option::REQUESTED_ADDRESS, &address.octets())
            .with(lab::wire::dhcp_option::SERVER, &GATEWAY.octets());
        self.vm.send(&request.broadcast())?;
        server.heard(dhcp_kind::REQUEST, xid)?;
        self.marker = Marker::Probe(address);
        Ok(xid)
    }

    /// A right server on this segment.
    pub fn server(&self) -> DhcpServer<'_> {
        DhcpServer::new(&self.segment)
    }

    /// A number that no other call gives.
    pub fn next(&mut self) -> u32 {
        self.serial += 1;
        0x0500_0000 + self.serial
    }

    /// An IPv4 frame from the VM to the gateway's hardware address.
    pub fn routed(&self, packet: &Ipv4) -> Vec<u8> {
        packet.frame(self.segment.mac, VM_MAC)
    }

    /// A UDP packet of the leased VM, recognisable by its destination.
    pub fn to(&self, destination: Ipv4Addr) -> Named {
        (format!("UDP to {destination}"), self.routed(&packet(destination)))
    }

    /// Fails unless the host gets this frame, byte for byte.
    pub fn passes(&mut self, what: &str, frame: &[u8]) -> Result<()> {
        self.vm.send(frame)?;
        let marker = self.mark()?;
        let before = self.until_mark(&marker)?;
        if before.iter().any(|seen| seen == frame) {
            return Ok(());
        }
        // Frames of different flows in one batch may change places; a further marker ends the batch.
        let marker = self.mark()?;
        let before = self.until_mark(&marker)?;
        ensure!(before.iter().any(|seen| seen == frame), "must pass, but did not: {what}; {}", self.why());
        Ok(())
    }

    /// Fails if the host gets anything for this frame.
    pub fn drops(&mut self, what: &str, frame: &[u8]) -> Result<()> {
        self.drops_all(&[(what.to_owned(), frame.to_vec())])
    }

    /// Fails if the host gets anything for any of these frames.
    pub fn drops_all(&mut self, frames: &[Named]) -> Result<()> {
        for (_, frame) in frames {
            self.vm.send(frame)?;
        }
        let marker = self.mark()?;
        let mut seen = self.until_mark(&marker)?;
        if self.marker != Marker::Discover {
            // See `passes`; a DISCOVER is too scarce to send a second.
            let marker = self.mark()?;
            seen.extend(self.until_mark(&marker)?);
        }
        let names: Vec<&str> = frames
            .iter()
            .filter(|(_, frame)| seen.iter().any(|seen| seen.starts_with(frame) || frame.starts_with(seen)))
            .map(|(what, _)| what.as_str())
            .collect();
        ensure!(names.is_empty(), "must be dropped, but passed: {}", names.join("; "));
        ensure!(
            seen.is_empty(),
            "{} frames came out that nobody sent, the first is {:02x?}",
            seen.len(),
            seen[0]
        );
        Ok(())
    }

    /// Fails unless all of these frames reach the host.
    pub fn passes_all(&mut self, frames: &[Named]) -> Result<()> {
        for (what, frame) in frames {
            self.passes(what, frame)?;
        }
        Ok(())
    }

    /// Fails if these bytes leave the VM's side in whatever frame.
    pub fn never_leaks(&mut self, what: &str, frame: &[u8], secret: &[u8]) -> Result<()> {
        self.vm.send(frame)?;
        for _ in 0..2 {
            let marker = self.mark()?;
            for seen in self.until_mark(&marker)? {
                ensure!(!lab::wire::carries(&seen, secret), "{what}: bytes behind the packet were forwarded");
            }
        }
        Ok(())
    }

    /// Fails unless the VM gets this frame of the host, byte for byte.
    pub fn reaches_vm(&mut self, what: &str, frame: &[u8]) -> Result<()> {
        ensure!(self.inbound(frame)?, "must reach the VM, but did not: {what}; {}", self.why());
        Ok(())
    }

    /// Fails if the VM gets this frame of the host.
    pub fn never_reaches_vm(&mut self, what: &str, frame: &[u8]) -> Result<()> {
        ensure!(!self.inbound(frame)?, "must not reach the VM, but did: {what}");
        Ok(())
    }

    /// Sends a frame out of the bridge and one that must arrive behind it; says whether the first arrived.
    pub fn inbound(&mut self, frame: &[u8]) -> Result<bool> {
        self.segment.send(frame)?;
        let mark = self.next().to_be_bytes();
        let follower =
            Ipv4::new(GATEWAY, VM, udp((GATEWAY, 9), (VM, 9), &mark)).frame(VM_MAC, self.segment.mac);
        self.segment.send(&follower)?;
        let (before, _) = self.vm.expect("the frame behind it", |seen| seen == follower)?;
        Ok(before.iter().any(|seen| seen == frame))
    }

    /// Fails unless the VM has this address: its own packet passes, and with it everything that needs a lease.
    pub fn has_lease(&mut self, address: Ipv4Addr) -> Result<()> {
        self.marker = Marker::Gateway(address);
        let packet = Ipv4::new(address, WORLD, udp((address, 4000), (WORLD, 80), b"leased"));
        let frame = self.routed(&packet);
        self.passes(&format!("a packet from the leased {address}"), &frame)
    }

    /// Fails if the VM can send from this address. The marker must be one that its state allows.
    pub fn lacks_lease(&mut self, why: &str, address: Ipv4Addr) -> Result<()> {
        let packet = Ipv4::new(address, WORLD, udp((address, 4000), (WORLD, 80), b"not leased"));
        let frame = self.routed(&packet);
        self.drops(&format!("a packet from {address} after {why}"), &frame)
    }

    /// Waits until everything that the VM sent so far has been judged, and forgets what came out of it.
    pub fn settle(&mut self) -> Result<()> {
        let marker = self.mark()?;
        self.until_mark(&marker)?;
        Ok(())
    }

    fn mark(&mut self) -> Result<Marked> {
        let number = self.next();
        let [a, b, c, d] = number.to_be_bytes();
        // The target's hardware address of a request means nothing to anybody (RFC 826), so it can carry the number.
        let numbered = |request: Arp| Arp { target_mac: Mac([2, 0x0f, a, b, c, d]), ..request }.frame();
        let frame = match self.marker {
            Marker::Discover => Dhcp::client(dhcp_kind::DISCOVER, number, VM_MAC).broadcast(),
            Marker::Probe(address) => numbered(Arp::request(VM_MAC, Ipv4Addr::UNSPECIFIED, address)),
            Marker::Gateway(own) => numbered(Arp::request(VM_MAC, own, GATEWAY)),
        };
        self.vm.send(&frame)?;
        Ok(Marked(frame))
    }

    fn until_mark(&mut self, marker: &Marked) -> Result<Vec<Vec<u8>>> {
        let expected = self.segment.expect("the marker behind it", |seen| seen == marker.0);
        Ok(expected.with_context(|| self.why())?.0)
    }

    /// Softnet's own account, for the message of a failed test.
    fn why(&self) -> String {
        match self.softnet.counters() {
            Ok(counters) => format!(
                "counters: from the VM {:?}, from the host {:?}",
                counters.from_vm, counters.from_host
            ),
            Err(error) => format!("{error:#}"),
        }
    }
}

struct Marked(Vec<u8>);

/// A UDP packet from the leased address; the payload names the destination, so that no two are alike.
pub fn packet(to: Ipv4Addr) -> Ipv4 {
    Ipv4::new(VM, to, udp((VM, 4000), (to, 80), &to.octets()))
}

/// A packet of the leased VM to the world with this behind the IPv4 header.
pub fn to_world(transport: Transport) -> Ipv4 {
    Ipv4::new(VM, WORLD, transport)
}

/// A name and a frame.
pub fn named(what: impl Into<String>, frame: Vec<u8>) -> Named {
    (what.into(), frame)
}

/// The program under test.
pub fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_softnet"))
}

fn launch(flags: &[&str]) -> Result<(VmPort, Softnet)> {
    let (vm, theirs) = VmPort::pair()?;
    let tap = format!("--tap={}", Segment::TAP);
    let flags = std::iter::once(tap.as_str()).chain(flags.iter().copied());
    let mut softnet = Softnet::start(program(), theirs, &VM_MAC.to_string(), flags)?;
    let ready = softnet.ready()?;
    let Some("tap") = ready["mode"].as_str() else { bail!("the ready line is {ready}") };
    Ok((vm, softnet))
}
