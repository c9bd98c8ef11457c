//! A running Softnet's part in a managed network: its place on the bridge, its leased address, its forwards.
//!
//! The files under `ports/` and `leases/` are the truth, and the kernel's table is made from them: whoever changes a file
//! renders the table anew, for all members, under the lock. So a start repairs what others had installed, and removes what
//! a killed one left.
//!
//! The lease is the DHCP server's, and the VM's own Softnet gives it back. Where it died before, whoever leaves in its place
//! does that ([`dnsmasq::release_all`]), and if nobody was left to leave, the next start.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use softnet_filter::MacAddr;

use super::build::{apply_rules, ensure_locked, hands_out, members};
use super::dnsmasq;
use super::keeper;
use super::record::{self, MemberRecord};
use super::run_dir::{self, Claim, Lock, NetworkDir, RunDir};
use super::{Error, NetworkConfig, Plan};
use crate::conntrack;
use crate::host::bridge::{self, Gateway};
use crate::host::expose::{Expose, Forward, Op, Protocol};
use crate::leases::{Format, LeaseFile};
use crate::netlink::{self, Netlink};

/// How long the same VM's last Softnet may take to leave: whoever restarts a VM seldom waits for its end.
const PREDECESSOR: Duration = Duration::from_secs(3);

/// Who joins.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Member {
    /// The VM's MAC.
    pub mac: MacAddr,
    /// The ports that it will expose.
    pub exposes: Vec<Expose>,
    /// Whether its lease is given back at the end.
    pub release: bool,
}

/// A place in the network, held until it is left or the process dies.
///
/// Dropping it leaves the network, if it is dropped by the process that joined: a forked child that inherits one must not.
#[derive(Debug)]
pub struct Membership {
    run_dir: RunDir,
    directory: NetworkDir,
    plan: Plan,
    gateway: Gateway,
    record: MemberRecord,
    port: Option<Claim>,
    lease: Option<Claim>,
}

impl Membership {
    /// Makes the network whole and takes a place in it, in one step, so that no `down` comes between.
    ///
    /// # Errors
    /// Those of [`super::ensure`]; [`Error::MacTaken`] if a running Softnet has this MAC.
    pub fn join(config: &NetworkConfig, member: &Member) -> Result<Self, Error> {
        let run_dir = RunDir::of_this_namespace();
        let directory = run_dir.network(config.name.as_str());
        let path = directory.ports().join(member.mac.to_string());
        let lock = lock_after_predecessor(&run_dir, &path)?;
        let (plan, gateway) = ensure_locked(config, Some(member.mac), &run_dir, &lock)?;
        if member.mac == gateway.mac {
            return Err(Error::MacIsGateway(member.mac));
        }
        let Some(port) = Claim::take(path.clone())? else {
            let holder = run_dir::read(&path)?.and_then(|text| record::read_member(&text));
            let pid = holder.map(|holder| holder.pid);
            return Err(Error::MacTaken { name: plan.name, mac: member.mac, pid });
        };
        let record = MemberRecord {
            mac: member.mac,
            pid: std::process::id(),
            tap: None,
            address: None,
            release: member.release,
            exposes: member.exposes.clone(),
            forwards: Vec::new(),
        };
        let port = port.saying(&record::write_member(&record))?;
        Ok(Membership { run_dir, directory, plan, gateway, record, port: Some(port), lease: None })
    }

    /// What was decided for the network.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Where the network's DHCP server notes its leases.
    pub fn lease_file(&self) -> LeaseFile {
        let content = dnsmasq::lease_text(&self.directory).ok();
        LeaseFile { path: dnsmasq::lease_file(&self.directory), format: Format::Dnsmasq, content }
    }

    /// The network's gateway.
    pub fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    /// The descriptors whose locks are the membership.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.port.iter().chain(&self.lease).map(Claim::as_fd).collect()
    }

    /// A descriptor of the network's keeper, which can be read when that has ended; `None` if there is none.
    pub fn keeper_descriptor(&self) -> Option<OwnedFd> {
        keeper::descriptor(&self.directory)
    }

    /// Sees to it that the network has a keeper. Takes root's privilege whole; a process that has given some of it up relies
    /// on the keeper's warden.
    ///
    /// # Errors
    /// When none can be started.
    pub fn revive_keeper(&self) -> Result<(), Error> {
        let lock = self.lock()?;
        keeper::ensure(&self.plan.name, &self.directory, &lock)
    }

    /// Makes the TAP a port of the bridge. `isolated` ports reach the gateway but not each other.
    pub fn attach(&mut self, tap: &str, isolated: bool) -> Result<(), Error> {
        let lock = self.lock()?;
        let mut netlink = Netlink::open()?;
        let bridge = bridge::find(&mut netlink, self.plan.name.as_str())?;
        self.gateway = bridge::join(&mut netlink, tap, &bridge, self.record.mac, isolated)?;
        self.record.tap = Some((tap.to_owned(), isolated));
        self.write(&lock)
    }

    /// Notes which address the VM has now, and takes the address's lock.
    ///
    /// # Errors
    /// [`Error::LeaseTaken`] if another VM has it, [`Error::NotOurs`] if the network does not hand it out; then no address
    /// is noted.
    pub fn set_address(&mut self, address: Option<Ipv4Addr>) -> Result<(), Error> {
        if address == self.record.address {
            return Ok(());
        }
        let lock = self.lock()?;
        self.record.address = None;
        if let Some(former) = self.lease.take() {
            former.release()?;
        }
        let claimed = address.map_or(Ok(()), |address| self.claim(address));
        self.write(&lock)?;
        claimed
    }

    fn claim(&mut self, address: Ipv4Addr) -> Result<(), Error> {
        if !hands_out(&self.plan, address) {
            return Err(Error::NotOurs(address, self.plan.name.clone()));
        }
        let path = self.directory.leases().join(address.to_string());
        let Some(lease) = Claim::take(path.clone())? else {
            let holder =
                run_dir::read(&path)?.unwrap_or_default().lines().next().unwrap_or_default().to_owned();
            return Err(Error::LeaseTaken { address, holder });
        };
        self.lease = Some(lease.saying(&format!("{}\n", self.record.mac))?);
        self.record.address = Some(address);
        Ok(())
    }

    /// Carries out all `ops` or none. Forwards lead to the address noted by [`Membership::set_address`] only.
    pub fn apply(&mut self, ops: &[Op]) -> Result<(), Error> {
        let former = self.record.forwards.clone();
        for &op in ops {
            match op {
                Op::Remove(forward) => self.record.forwards.retain(|installed| *installed != forward),
                Op::Install(Forward { to, .. }) if Some(to) != self.record.address => {
                    self.record.forwards = former;
                    return Err(Error::NotOurs(to, self.plan.name.clone()));
                }
                Op::Install(forward) => self.record.forwards.push(forward),
            }
        }
        let applied = self.lock().and_then(|lock| {
            self.write(&lock)?;
            apply_rules(&self.plan, &members(&self.directory, &lock)?)
        });
        match applied {
            Ok(()) => forget_earlier_flows(ops),
            Err(_) => self.record.forwards = former,
        }
        applied
    }

    /// Leaves the network: forwards, lease and place are gone afterwards. The TAP goes with its descriptor.
    ///
    /// The lease is the VM's own Softnet to give back. What the DHCP server has still noted for the VM when it has heeded all
    /// that came from there, that Softnet did not live to give back, and it is given back here. Until then the place is kept,
    /// so that the VM's next Softnet takes no lease over that is about to end.
    pub fn leave(mut self) -> Result<(), Error> {
        self.give_up()
    }

    fn give_up(&mut self) -> Result<(), Error> {
        let (Some(port), lease) = (self.port.take(), self.lease.take()) else { return Ok(()) };
        // Before the lock, for which others wait.
        let settled = !self.record.release || dnsmasq::settle(&self.directory);
        let lock = self.run_dir.lock()?;
        let stands = port.stands();
        if let Some(lease) = lease {
            lease.release()?;
        }
        let MemberRecord { mac, address, release, .. } = self.record;
        let given_back = if release && stands {
            dnsmasq::release_all(&self.plan, &self.directory, mac, address).map(|count| {
                // Heeded before anybody else asks.
                settled && (count == 0 || dnsmasq::settle(&self.directory))
            })
        } else {
            Ok(true)
        };
        match given_back {
            Ok(true) => port.release()?,
            // It sees to a server first, and finds the file without its lock.
            Ok(false) => {
                tracing::warn!("dnsmasq is slow to answer; the next start looks whether a lease is left");
                drop(port);
            }
            Err(error) => {
                tracing::warn!(%error, "the next start tries again");
                drop(port);
            }
        }
        if self.record.forwards.is_empty() || !stands {
            return Ok(());
        }
        apply_rules(&self.plan, &members(&self.directory, &lock)?)
    }

    /// Waits for the lock. The network may have been taken down by force since, and even been made anew.
    fn lock(&self) -> Result<Lock, Error> {
        let lock = self.run_dir.lock()?;
        match &self.port {
            Some(port) if port.stands() => Ok(lock),
            _ => Err(Error::Gone(self.plan.name.clone())),
        }
    }

    fn write(&mut self, _lock: &Lock) -> Result<(), Error> {
        if let Some(port) = &mut self.port {
            port.write(&record::write_member(&self.record))?;
        }
        Ok(())
    }
}

/// Takes the lock once nobody has the place at `path`, or after [`PREDECESSOR`].
fn lock_after_predecessor(run_dir: &RunDir, path: &Path) -> Result<Lock, Error> {
    let give_up = Instant::now() + PREDECESSOR;
    loop {
        let lock = run_dir.lock()?;
        if !run_dir::is_claimed(path) || Instant::now() >= give_up {
            return Ok(lock);
        }
        drop(lock);
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Lets UDP clients that sent before a port was led to where it leads now be led there too. Only what was sent to the host
/// itself is forgotten; flows that pass through it, to the same port of others, stay.
fn forget_earlier_flows(ops: &[Op]) {
    let installed: Vec<&Forward> = ops
        .iter()
        .filter_map(|op| match op {
            Op::Install(forward) if forward.expose.protocol == Protocol::Udp => Some(forward),
            _ => None,
        })
        .collect();
    if installed.is_empty() {
        return;
    }
    let forgotten = own_addresses().map_err(io::Error::other).and_then(|own| {
        let is_own = |address: Ipv4Addr| address.is_loopback() || own.contains(&address);
        conntrack::forget_udp(|flow| {
            let (address, port) = flow.destination;
            is_own(address)
                && installed.iter().any(|Forward { expose, to }| {
                    expose.external.get() == port && flow.answers != (*to, expose.internal.get())
                })
        })
    });
    match forgotten {
        Ok(count) => tracing::debug!(count, "forgot earlier UDP flows"),
        Err(error) => {
            tracing::warn!(%error, "UDP clients that sent earlier are not led to the VM before they pause")
        }
    }
}

fn own_addresses() -> Result<Vec<Ipv4Addr>, netlink::Error> {
    Ok(Netlink::open()?.all_addresses()?.iter().map(|(_, address)| address.addr()).collect())
}

impl Drop for Membership {
    fn drop(&mut self) {
        if self.record.pid != std::process::id() {
            return;
        }
        if let Err(error) = self.give_up() {
            tracing::warn!(%error, network = %self.plan.name, "the next start will clean up");
        }
    }
}
