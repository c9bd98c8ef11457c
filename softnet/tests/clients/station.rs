//! A machine behind the program, with one client on it.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::deadline::{until, until_within};
use lab::wire::{Mac, dhcp_kind as kind};
use lab::{Disk, Machine, Message, Softnet, VmPort, hello};

use crate::kinds::Client;

/// Drops that no client is spared: reason, and why it is right.
const EXPECTED: &[(&str, &str)] = &[
    ("ipv6", "all IPv6 is dropped, because it has no rules yet (L2)"),
    (
        "reply-hardware-address",
        "a clone asks for the template's address, and all hear that it is refused (B1)",
    ),
];

/// How long a client may take to get an address. dhclient waits up to 10 s before it asks again, and the tests share
/// the processors.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running machine and its Softnet.
pub struct Station {
    pub machine: Machine,
    pub softnet: Softnet,
    client: &'static Client,
}

impl Station {
    /// Starts a Softnet with these arguments, boots the machine and starts the client.
    pub fn boot(
        client: &'static Client,
        name: &str,
        mac: Mac,
        disk: &Disk,
        arguments: &[&str],
    ) -> Result<Self> {
        let (port, theirs) = VmPort::pair()?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_softnet"));
        command.args(["--vm-fd=0", &format!("--vm-mac-address={mac}"), Softnet::READY_FLAG]);
        command.args(arguments).env("RUST_LOG", "trace").stdin(theirs);
        let mut softnet = Softnet::spawn(command)?;
        softnet.ready()?;
        let machine = Machine::boot(name, disk, &port, mac)?;
        let station = Self { machine, softnet, client };
        station.start()?;
        Ok(station)
    }

    pub fn start(&self) -> Result<()> {
        self.machine.sh(self.client.start).map(drop)
    }

    /// A disk on which the client is installed.
    pub fn disk(client: &Client, name: &str) -> Result<Disk> {
        let disk = Disk::new(name)?;
        for (path, content) in client.files {
            disk.write(path, content)?;
        }
        Ok(disk)
    }

    /// How many messages have passed: what came later is behind this in [`Station::expect`].
    pub fn now(&self) -> usize {
        self.machine.overheard.messages().len()
    }

    /// Waits for a message after the first `since`.
    pub fn expect(
        &self,
        what: &str,
        since: usize,
        patience: Duration,
        wanted: impl Fn(&Message) -> bool,
    ) -> Result<Message> {
        let mut found = None;
        let _ = until_within(patience, || {
            found = self.machine.overheard.messages().into_iter().skip(since).find(&wanted);
            found.is_some()
        });
        found.with_context(|| format!("no {what}: {}", self.report(since)))
    }

    /// Waits until the client has an address that it was given after the first `since` messages.
    pub fn address(&self, since: usize) -> Result<Ipv4Addr> {
        let ack =
            self.expect("lease", since, PATIENCE, |message| message.dhcp.message_type() == kind::ACK)?;
        let wanted = format!("inet {}/", ack.dhcp.yiaddr);
        let mut shown = String::new();
        let has_it = until(|| {
            shown = self.machine.host.ip("-4 -oneline addr show dev eth0").unwrap_or_default();
            shown.contains(&wanted)
        });
        ensure!(has_it, "the client does not use {wanted} but {shown}: {}", self.report(since));
        Ok(ack.dhcp.yiaddr)
    }

    /// Fails unless the machine reaches this address with what the client has configured.
    pub fn reaches(&self, to: Ipv4Addr) -> Result<()> {
        let to = SocketAddrV4::new(to, 80);
        let mut last = None;
        let reached = until(|| {
            last = Some(self.machine.host.run(|| hello(to, Duration::from_secs(2))));
            matches!(last, Some(Ok(Ok(_))))
        });
        ensure!(reached, "{to} is not reached: {last:?}: {}", self.report(0));
        Ok(())
    }

    /// Fails if the filter has dropped anything of the client's, or DHCP to it.
    pub fn dropped_nothing(&self) -> Result<()> {
        let now = self.softnet.counters()?;
        let mut dropped: Vec<_> =
            now.drops_since(&lab::Counters::default()).into_iter().map(|(reason, _)| reason).collect();
        dropped.extend(now.from_host.into_keys().filter(|reason| reason.starts_with("reply-")));
        dropped.retain(|reason| !EXPECTED.iter().any(|(expected, _)| reason == expected));
        ensure!(dropped.is_empty(), "dropped: {dropped:?}: {}", self.report(0));
        Ok(())
    }

    /// Ends the machine and its Softnet, and fails if anything was dropped.
    pub fn end(self) -> Result<()> {
        self.dropped_nothing()?;
        let Self { machine, mut softnet, .. } = self;
        drop(machine);
        let status = softnet.stop()?;
        ensure!(status.success(), "softnet ended with {status}: {}", softnet.log());
        Ok(())
    }

    /// What was said on the wire since then, what Softnet dropped, and the client's own log.
    pub fn report(&self, since: usize) -> String {
        let mut text = format!("{} said:\n", self.client.name);
        for Message { source, destination, dhcp } in self.machine.overheard.messages().iter().skip(since) {
            let id = dhcp.option(61).unwrap_or_default();
            text += &format!(
                "{source} > {destination} type {} xid {:x} ciaddr {} yiaddr {} id {id:02x?} requested {:?}\n",
                dhcp.message_type(),
                dhcp.xid,
                dhcp.ciaddr,
                dhcp.yiaddr,
                dhcp.option(50)
            );
        }
        for line in self
            .softnet
            .log()
            .lines()
            .filter(|line| !line.contains("TRACE") || line.contains("dropped a frame"))
        {
            text += line;
            text += "\n";
        }
        text + &self.machine.sh("tail -n 60 /run/client.log; ip addr; ip route").unwrap_or_default()
    }
}

/// True once the managed network's server has a lease of this MAC address.
pub fn is_leased(mac: Mac) -> bool {
    std::fs::read_to_string(Path::new("/run/softnet/softnet0/dnsmasq.leases"))
        .is_ok_and(|leases| leases.contains(&mac.to_string()))
}
