//! A running Softnet's part in a managed network: its place on the bridge, its leased address, its forwards.
//!
//! The files under `ports/` and `leases/` are the truth, and the kernel's table is made from them: a process
//! that changes a file renders the table again, for all members, under the lock. So a start also repairs the
//! rules of others, and removes those of a killed Softnet.
//!
//! The VM's worker normally releases the lease. If it died first, its monitor does that when it leaves the
//! network ([`dnsmasq::release_all`]), and if that died too, the next start does.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use softnet_filter::MacAddr;

use super::build::{Joining, ensure_locked, hands_out, repair};
use super::claim::{self, Claim};
use super::dispute;
use super::dnsmasq;
use super::firewall::Recorded;
use super::lock::Lock;
use super::pool::Pool;
use super::record::{self, MemberRecord};
use super::rules;
use super::ruleset::Limits;
use super::run_dir::{NetworkDir, RunDir};
use super::service;
use super::subnet;
use super::{Error, NetworkConfig, Plan, bridge_mac};
use crate::config::client::ClientSettings;
use crate::config::expose::Expose;
use crate::host::bridge::{self, Gateway};
use crate::host::files;
use crate::host::forwarder::{Forward, Op};
use crate::leases::{Format, LeaseFile};
use crate::netlink::Netlink;

/// How long the same VM's previous Softnet may take to leave: a VM is often restarted before it has ended.
const PREDECESSOR_TIMEOUT: Duration = Duration::from_secs(3);

/// The VM that joins.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Member {
    /// The VM's MAC.
    pub mac: MacAddr,
    /// The ports that it will expose.
    pub exposes: Vec<Expose>,
    /// Whether its lease is released at the end.
    pub release: bool,
    /// How many tracked connections it may have (rule H4).
    pub connections: u32,
    /// Its name.
    pub name: Option<String>,
    /// What the DHCP server gives it.
    pub client: ClientSettings,
}

/// Says so if this VM, or with its fixed address one that runs, may find no address.
fn warn_if_full(plan: &Plan, directory: &NetworkDir, member: &Member, lock: &Lock) {
    let (Ok(leases), Ok(members)) = (dnsmasq::leases(directory), record::members(directory, lock)) else {
        return;
    };
    let (first, last) = subnet::pool(plan.subnet);
    let size = (first.to_bits()..=last.to_bits()).count();
    let fixed = member.client.address;
    if (Pool { size, leases: &leases, members: &members }).is_exceeded_by(member.mac, fixed) {
        let who = if fixed.is_some() { "another VM that runs" } else { "this VM" };
        tracing::warn!(
            network = %plan.name,
            "the DHCP server has {size} addresses, and all are leased or will be to VMs that run, so {who} may get none; stop another \
             VM, wait until leases of ended ones expire ({} s; `softnet network status` shows them), or use another --network with a \
             larger --subnet",
            plan.lease_time.as_secs()
        );
    }
}

/// A place in the network, held until it is left or the process ends.
///
/// Dropping it leaves the network, if the process that joined drops it; in a forked child, dropping it does
/// nothing.
#[derive(Debug)]
pub struct Membership {
    run_dir: RunDir,
    directory: NetworkDir,
    plan: Plan,
    gateway: Gateway,
    record: MemberRecord,
    port: Option<Claim>,
    lease: Option<Claim>,
    /// The lock of the VM's fixed address, whether the VM uses it or not: no other VM gets it.
    fixed: Option<Claim>,
    /// Locks of former addresses that the rules may still allow this VM.
    withheld: Vec<Claim>,
}

impl Membership {
    /// Creates or repairs the network and takes a place in it, under one lock, so that no `down` comes
    /// between.
    ///
    /// # Errors
    /// Those of [`super::ensure`]; [`Error::MacTaken`] if a running Softnet has this MAC; [`Error::AddressOutside`],
    /// [`Error::AddressTaken`] or [`Error::AddressLeased`] if the VM cannot have its fixed address.
    pub fn join(config: &NetworkConfig, member: &Member) -> Result<Self, Error> {
        let run_dir = RunDir::of_this_namespace();
        let directory = run_dir.network(config.name.as_str());
        let path = directory.ports().join(member.mac.to_string());
        let lock = lock_after_predecessor(&run_dir, &path)?;
        if member.mac == bridge_mac(&config.name) {
            return Err(Error::MacIsGateway(member.mac));
        }
        let joining = Joining { mac: member.mac, client: &member.client };
        let (plan, gateway) = ensure_locked(config, Some(joining), &run_dir, &lock)?;
        let Some(port) = Claim::take(path.clone())? else {
            let holder = files::read(&path)?.and_then(|text| record::read_member(&text));
            let pid = holder.map(|holder| holder.pid);
            return Err(Error::MacTaken { name: plan.name, mac: member.mac, pid });
        };
        let record = MemberRecord {
            release: member.release,
            exposes: member.exposes.clone(),
            connections: member.connections,
            name: own_name(&plan, &directory, member, &lock)?,
            client: member.client.clone(),
            ..MemberRecord::new(member.mac, std::process::id())
        };
        let largest = Limits::of_this_host().largest_share;
        if member.connections > largest {
            tracing::warn!(
                asked = member.connections,
                given = largest,
                "the VM's connection limit is cut to a quarter of the host's table; raise net.netfilter.nf_conntrack_max for more"
            );
        }
        let fixed = member.client.address.map(|address| reserve(&directory, member.mac, address)).transpose();
        let fixed = match fixed {
            Ok(fixed) => fixed,
            Err(error) => {
                port.release()?;
                return Err(error);
            }
        };
        warn_if_full(&plan, &directory, member, &lock);
        let port = port.with_content(&record::write_member(&record))?;
        Ok(Membership {
            run_dir,
            directory,
            plan,
            gateway,
            record,
            port: Some(port),
            lease: None,
            fixed,
            withheld: Vec::new(),
        })
    }

    /// The network's settings.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What the host's filters drop of what VMs here need; `None` if that is unknown.
    pub fn firewall(&self) -> Option<Recorded> {
        Recorded::read(&self.directory).ok().flatten()
    }

    /// The lease file of the network's DHCP server.
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
        let addresses = self.lease.iter().chain(&self.fixed).chain(&self.withheld);
        self.port.iter().chain(addresses).map(Claim::as_fd).collect()
    }

    /// Another descriptor of the place's lock, which stays locked until both are closed.
    ///
    /// # Errors
    /// When there are too many descriptors.
    pub fn duplicate_lock(&self) -> std::io::Result<OwnedFd> {
        let port = self.port.as_ref().ok_or(std::io::ErrorKind::NotFound)?;
        port.as_fd().try_clone_to_owned()
    }

    /// Makes the TAP a port of the bridge. `isolated` ports reach the gateway but not each other.
    pub fn attach(&mut self, tap: &str, isolated: bool) -> Result<(), Error> {
        let lock = self.lock()?;
        let mut netlink = Netlink::open()?;
        let name = self.plan.name.as_str();
        let bridge = match bridge::find(&mut netlink, name) {
            // The bridge was deleted since the network was repaired, and its keeper waits for the lock.
            Err(bridge::Error::Missing(_)) => {
                repair(&self.plan, &self.run_dir, &lock, |_| {
                    service::ensure(&self.plan.name, &self.directory, &lock)
                })?;
                bridge::find(&mut netlink, name)?
            }
            found => found?,
        };
        self.record.tap = Some((tap.to_owned(), isolated));
        self.write(&lock)?;
        // Before the bridge accepts a frame from it.
        rules::apply_for_tap(tap, &self.run_dir, &lock)?;
        // It was ended if it has to read the tags of a VM again. The VM's first message finds the new one.
        if dnsmasq::running(&self.directory).is_none() {
            service::ensure(&self.plan.name, &self.directory, &lock)?;
        }
        // The rules keep the ports free from now on.
        rules::forget_shadows(&self.record.exposes);
        let bridge = bridge::join(&mut netlink, tap, &bridge, self.record.mac, isolated)?;
        self.gateway = bridge::gateway(&mut netlink, &bridge)?;
        Ok(())
    }

    /// Records the VM's address, takes the address's lock, and lets the VM's TAP send from it (rule H10).
    /// Tracked connections of the former and the new address are deleted when this returns (rule H3).
    ///
    /// # Errors
    /// [`Error::LeaseTaken`] if another VM has it, [`Error::NotOurs`] if the network does not hand it out,
    /// [`Error::NotLeased`] if the server's file does not have it for this VM; then no address is recorded.
    /// After any other error none is recorded either.
    pub fn set_address(&mut self, address: Option<Ipv4Addr>) -> Result<(), Error> {
        if address == self.record.address {
            return Ok(());
        }
        let lock = self.lock()?;
        let former = self.record.address.take();
        let claimed = match address.map(|address| self.claim(address)).transpose() {
            // Nothing has changed, and the caller will retry.
            Err(error) if former.is_none() => return Err(error),
            claimed => claimed,
        };
        let former_claim = self.lease.take();
        let claimed = claimed.map(|lease| {
            self.record.address = address;
            self.lease = lease.flatten();
        });
        // The VM may still release the former address, or request it again.
        self.record.last = former.or(self.record.last);
        self.record.forwards.retain(|forward| Some(forward.to) == address);
        let recorded = self.write(&lock).and_then(|()| rules::apply(&self.run_dir, &lock));
        // After the rules, which block the former address and forward nothing to the new one yet, and before
        // another VM can get it.
        let forgotten = rules::forget(&former.into_iter().chain(self.record.address).collect());
        // Packets that wait for an ARP answer are the former holder's. The kernel resolves the new holder
        // again.
        let forget = |address| -> Result<(), crate::netlink::Error> {
            let mut netlink = Netlink::open()?;
            let bridge = netlink.link(self.plan.name.as_str())?;
            bridge.map_or(Ok(()), |bridge| netlink.forget_neighbour(bridge.index, address))
        };
        for address in former.into_iter().chain(self.record.address) {
            if let Err(error) = forget(address) {
                tracing::debug!(%error, "cannot delete the neighbour entry; packets for the address's former holder may still be queued");
            }
        }
        // If the rules may still allow the address, no other VM gets it before this VM is gone.
        match former_claim {
            Some(former) if recorded.is_ok() => former.release()?,
            Some(former) => self.withheld.push(former),
            None => {}
        }
        claimed?;
        let prepared = recorded.and_then(|()| forgotten.map(drop).map_err(Error::Conntrack));
        if prepared.is_err() {
            // As if it had none, so that the next report prepares the host again; the rules may allow it already.
            self.record.address = None;
            self.withheld.extend(self.lease.take());
        }
        prepared
    }

    /// Takes the lock of an address that the server has leased to this VM. The lock of its fixed address is held already.
    fn claim(&self, address: Ipv4Addr) -> Result<Option<Claim>, Error> {
        let mac = self.record.mac;
        if self.fixed.is_some() && self.record.client.address == Some(address) {
            // It may have been leased to another VM just before the server knew that it is reserved.
            return leased_to_another(&self.directory, mac, address)?.map_or(Ok(None), Err);
        }
        if !hands_out(&self.plan, address) {
            return Err(Error::NotOurs(address, self.plan.name.clone()));
        }
        // The worker that reports the address parses the VM's frames, and may be compromised.
        let leases = dnsmasq::leases(&self.directory)?;
        if !leases.iter().any(|lease| lease.mac == mac && lease.address == address) {
            return Err(Error::NotLeased { mac, address });
        }
        let path = self.directory.leases().join(address.to_string());
        let Some(lease) = Claim::take(path.clone())? else {
            return Err(Error::LeaseTaken { address, holder: holder(&path)? });
        };
        Ok(Some(lease.with_content(&format!("{}\n", self.record.mac))?))
    }

    /// Whether the DHCP server's file gives `address` to this VM; `None` if no VM has it, or the file cannot
    /// be read.
    pub fn server_gives(&self, address: Ipv4Addr) -> Option<bool> {
        dispute::server_gives(&self.directory, self.record.mac, address).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read which VM has the address");
            None
        })
    }

    /// Sends `signal` to the Softnet that holds `address`, and returns its VM's MAC; `None` if no process
    /// holds it any more.
    ///
    /// # Errors
    /// When the holder cannot be determined or signalled.
    pub fn evict(&self, address: Ipv4Addr, signal: Signal) -> Result<Option<MacAddr>, Error> {
        let lock = self.lock()?;
        dispute::evict(&self.directory, address, signal, &lock)
    }

    /// Carries out all `ops` or none. Forwards lead to the address recorded by [`Membership::set_address`] only.
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
            rules::apply(&self.run_dir, &lock)
        });
        match applied {
            Ok(()) => rules::forget_before(&installed(ops)),
            Err(_) => {
                self.record.forwards = former;
                // Or another start would install what failed here.
                if let Err(error) = self.lock().and_then(|lock| self.write(&lock)) {
                    tracing::debug!(%error, "cannot record that the forwards did not change");
                }
            }
        }
        applied
    }

    /// Records that the VM has released its address and is about to leave, which removes the address from the
    /// host.
    pub fn address_released(&mut self) {
        self.record.last = self.record.address.take().or(self.record.last);
    }

    /// Leaves the network: forwards, lease and place are gone afterwards. The TAP goes with its descriptor.
    ///
    /// Normally the worker releases the lease. If it was killed first, dnsmasq still lists the lease after
    /// processing the worker's messages, and this releases it. Until then the place is kept, so that the VM's
    /// next Softnet does not take over a lease that is about to be released.
    pub fn leave(mut self) -> Result<(), Error> {
        self.leave_network()
    }

    fn leave_network(&mut self) -> Result<(), Error> {
        let (Some(port), lease) = (self.port.take(), self.lease.take()) else { return Ok(()) };
        // Before taking the lock, which others wait for.
        let idle = !self.record.release || dnsmasq::wait_until_idle(&self.directory);
        let lock = self.run_dir.lock()?;
        let is_current = port.is_current();
        for lease in lease.into_iter().chain(self.fixed.take()).chain(std::mem::take(&mut self.withheld)) {
            lease.release()?;
        }
        let MemberRecord { mac, address, last, release, .. } = self.record;
        let released = if release && is_current {
            dnsmasq::release_all(&self.plan, &self.directory, mac, address).map(|count| {
                // dnsmasq must process it before another VM sends a request.
                idle && (count == 0 || dnsmasq::wait_until_idle(&self.directory))
            })
        } else {
            Ok(true)
        };
        match released {
            Ok(true) => port.release()?,
            // The next start ensures a server first, and then finds the file without its lock.
            Ok(false) => {
                tracing::warn!("dnsmasq is slow; the next start checks whether a lease is left");
                drop(port);
            }
            Err(error) => {
                tracing::warn!(%error, "cannot release the VM's lease; the next start tries again");
                drop(port);
            }
        }
        if !is_current {
            return Ok(());
        }
        let applied = rules::apply(&self.run_dir, &lock);
        if let Err(error) = rules::forget(&address.into_iter().chain(last).collect()) {
            tracing::warn!(%error, "cannot delete the VM's tracked connections; they stay until they time out or its address is leased again");
        }
        applied
    }

    /// Waits for the lock. The network may have been removed by force since, and even created again.
    fn lock(&self) -> Result<Lock, Error> {
        let lock = self.run_dir.lock()?;
        match &self.port {
            Some(port) if port.is_current() => Ok(lock),
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

/// Takes the lock once the place at `path` is free, or after [`PREDECESSOR_TIMEOUT`].
fn lock_after_predecessor(run_dir: &RunDir, path: &Path) -> Result<Lock, Error> {
    let deadline = Instant::now() + PREDECESSOR_TIMEOUT;
    loop {
        let lock = run_dir.lock()?;
        if !claim::is_claimed(path) || Instant::now() >= deadline {
            return Ok(lock);
        }
        drop(lock);
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The name by which the host finds the VM: the one that it was given, unless a running VM has it. A set-user-ID start
/// names none, because programs of the host trust a name.
fn own_name(
    plan: &Plan,
    directory: &NetworkDir,
    member: &Member,
    lock: &Lock,
) -> Result<Option<String>, Error> {
    let Some(name) = &member.name else { return Ok(None) };
    if lock.is_elevated() {
        tracing::info!(name, "the host does not find this VM by its name: root has not started it");
        return Ok(None);
    }
    if !plan.names {
        tracing::warn!(
            name,
            network = %plan.name,
            "the host does not find this VM by its name: the network's name could be a domain of the Internet; use a --network with a \
             digit in its name"
        );
        return Ok(None);
    }
    let members = record::members(directory, lock)?;
    let holder = members.iter().find(|other| other.name.as_ref() == Some(name) && other.mac != member.mac);
    if let Some(MemberRecord { mac, .. }) = holder {
        tracing::warn!(name, holder = %mac, "another VM has this name, so the host does not find this one by it");
        return Ok(None);
    }
    if let Some(error) = dnsmasq::names_error(directory) {
        tracing::warn!(name, "the host does not find this VM by its name until that is mended: {error}");
    }
    Ok(Some(name.clone()))
}

/// Takes the lock of the VM's fixed address. Whether the server leases it to another VM from now on is checked when the
/// server knows that it is reserved ([`Membership::set_address`]).
fn reserve(directory: &NetworkDir, mac: MacAddr, address: Ipv4Addr) -> Result<Claim, Error> {
    let path = directory.leases().join(address.to_string());
    let Some(claim) = Claim::take(path.clone())? else {
        return Err(Error::AddressTaken { address, holder: holder(&path)? });
    };
    // A lease that was released just now, also on behalf of a killed Softnet, is none any more.
    dnsmasq::wait_until_idle(directory);
    match leased_to_another(directory, mac, address) {
        Ok(None) => Ok(claim.with_content(&format!("{mac}\n"))?),
        Ok(Some(error)) | Err(error) => {
            claim.release()?;
            Err(error)
        }
    }
}

/// [`Error::AddressLeased`] if another VM has a lease of the address that lives.
fn leased_to_another(
    directory: &NetworkDir,
    mac: MacAddr,
    address: Ipv4Addr,
) -> Result<Option<Error>, Error> {
    let leases = dnsmasq::leases(directory)?;
    let another = leases.iter().find(|lease| {
        lease.address == address && lease.mac != mac && lease.left().is_none_or(|left| !left.is_zero())
    });
    Ok(another.map(|lease| Error::AddressLeased { address, mac: lease.mac, left: lease.left() }))
}

/// The VM that has claimed an address, by the address's public file.
fn holder(path: &Path) -> Result<String, Error> {
    Ok(files::read(path)?.unwrap_or_default().lines().next().unwrap_or_default().to_owned())
}

/// The forwards that `ops` install.
fn installed(ops: &[Op]) -> Vec<Forward> {
    let install = |op: &Op| match op {
        Op::Install(forward) => Some(*forward),
        Op::Remove(_) => None,
    };
    ops.iter().filter_map(install).collect()
}

impl Drop for Membership {
    fn drop(&mut self) {
        if self.record.pid != std::process::id() {
            return;
        }
        if let Err(error) = self.leave_network() {
            tracing::warn!(%error, network = %self.plan.name, "cannot leave the network cleanly; the next start will clean up");
        }
    }
}
