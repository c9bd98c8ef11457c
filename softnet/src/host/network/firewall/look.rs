//! One look: sends the probes and follows their way through the kernel's tables.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant, SystemTime};

use super::findings::{Filter, Findings, Need};
use super::probes::{Probes, make_tap, place_of, table_name};
use crate::host::network::dnsmasq;
use crate::host::network::lock::Lock;
use crate::host::network::run_dir::{NetworkDir, RunDir};
use crate::host::network::{Error, Plan, generation, ruleset, subnet};
use crate::host::tools::Tool;
use crate::host::{bridge, port_state};
use crate::netlink::Netlink;
use crate::netlink::trace::{Step, Traces};

/// How long the probes may take to where they go. The kernel needs microseconds; only the resolver is a process.
const LIMIT: Duration = Duration::from_secs(1);

/// How soon to ask again whether the bridge carries the TAP's frames.
const PORT_RETRY: Duration = Duration::from_millis(5);

/// The kernel's list of iptables' own tables in this network namespace; nft shows none of them.
const LEGACY_TABLES: &str = "/proc/net/ip_tables_names";
/// ufw's settings, which say whether it is on.
const UFW: &str = "/etc/ufw/ufw.conf";

/// The prefix of Softnet's own tables. What they drop is meant to be dropped.
const OWN: &str = "softnet";

/// A look that has begun.
#[derive(Debug)]
pub struct Look {
    tap: File,
    name: String,
    traces: Traces,
    probes: Probes,
    needs: Vec<Need>,
    ways: BTreeMap<Need, Way>,
    /// Which probe the kernel's number of a packet stands for.
    numbers: BTreeMap<u32, Need>,
    sent: bool,
    /// The kernel lost a part of what it had to report.
    incomplete: bool,
    until: Instant,
}

/// The way of one probe.
#[derive(Debug, Default)]
struct Way {
    /// Between the look's first and last chain of this hook, where only a filter can keep it.
    within: Option<String>,
    /// The foreign table that it is in.
    filter: Option<Filter>,
    dropped: bool,
    arrived: bool,
}

impl Look {
    /// Makes a port of the bridge and the look's own rules. Softnet still knows afterwards that nobody else has changed the
    /// kernel's rules.
    ///
    /// # Errors
    ///
    /// If the kernel refuses, or nft is missing.
    pub fn begin(plan: &Plan, directory: &NetworkDir, run_dir: &RunDir, lock: &Lock) -> Result<Self, Error> {
        let mut netlink = Netlink::open()?;
        let bridge = bridge::find(&mut netlink, plan.name.as_str())?;
        let has_route = netlink.routes()?.iter().any(|route| route.destination.prefix_len() == 0);
        let probes = Probes::new(plan, unused_address(plan, directory)?, unused_port());
        let traces = Traces::follow().map_err(Error::Look)?;
        let (tap, name) = make_tap().map_err(Error::Look)?;
        bridge::join(&mut netlink, &name, &bridge, probes.mac(), true)?;
        let look = Look {
            tap,
            traces,
            probes,
            needs: Probes::needs(plan.net_type, has_route),
            ways: BTreeMap::new(),
            numbers: BTreeMap::new(),
            sent: false,
            incomplete: false,
            until: Instant::now() + LIMIT,
            name,
        };
        let table = look.probes.table(plan.name.as_str(), &look.name);
        change(&(ruleset::gone("ip", &table_name(&look.name)) + &table), run_dir, lock)?;
        Ok(look)
    }

    /// Removes what [`Look::begin`] made.
    ///
    /// # Errors
    ///
    /// If nft fails.
    pub fn end(self, run_dir: &RunDir, lock: &Lock) -> Result<(), Error> {
        change(&ruleset::gone("ip", &table_name(&self.name)), run_dir, lock)
    }

    /// Sends the probes once the bridge carries them, and reads how far they are. Returns true when the look is over.
    ///
    /// # Errors
    ///
    /// If the probes cannot be sent.
    pub fn go_on(&mut self) -> Result<bool, Error> {
        if !self.sent && port_state::frames_flow(&mut Netlink::open()?, &self.name)? == Some(true) {
            self.probes.send(&self.needs, &self.tap).map_err(Error::Look)?;
            self.sent = true;
        }
        let Look { traces, probes, ways, numbers, name, .. } = self;
        let own = table_name(name);
        let complete = traces.read(|step| {
            if let Some(packet) = &step.packet {
                match probes.which(packet) {
                    Some(need) => drop(numbers.insert(step.id, need)),
                    None => drop(numbers.remove(&step.id)),
                }
            }
            if let Some(need) = numbers.get(&step.id) {
                ways.entry(*need).or_default().take(*need, step, &own);
            }
        });
        self.incomplete |= !complete;
        Ok(self.needs.iter().all(|need| self.is_known(*need)) || Instant::now() >= self.until)
    }

    fn is_known(&self, need: Need) -> bool {
        let is_over = |need| self.ways.get(&need).is_some_and(|way| way.arrived || way.dropped);
        // There is no answer to a question that was dropped.
        let is_dropped = |need| self.ways.get(&need).is_some_and(|way| way.dropped);
        is_over(need) || need == Need::DnsAnswer && is_dropped(Need::DnsQuestion)
    }

    /// When [`Look::go_on`] has something to do, if nothing is reported before.
    pub fn deadline(&self) -> Instant {
        if self.sent { self.until } else { self.until.min(Instant::now() + PORT_RETRY) }
    }

    /// Waits this much longer: what follows cannot be done yet.
    pub fn postpone(&mut self, by: Duration) {
        self.until = Instant::now() + by;
    }

    /// What has been found; `None` if too little is known.
    pub fn findings(&self) -> Option<Findings> {
        let mut findings = Findings::default();
        for (need, way) in self.ways.iter().filter(|(_, way)| !way.arrived) {
            // A packet that netfilter's hook has swallowed without a word of nft's. One that the kernel itself does not
            // deliver, for its address or its route, is in no hook.
            let swallowed = || way.within.as_deref().map(hidden_filter);
            if let Some(filter) = way.filter.clone().filter(|_| way.dropped).or_else(swallowed) {
                findings.add(*need, filter);
            }
        }
        (self.sent && !self.incomplete).then_some(findings)
    }
}

impl AsFd for Look {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.traces.as_fd()
    }
}

impl Way {
    fn take(&mut self, need: Need, step: Step, own: &str) {
        if step.table == own {
            if let Some((hook, last)) = place_of(&step.chain) {
                self.within = (!last).then(|| hook.to_owned());
                self.arrived |= last && hook == need.hook();
            }
            return;
        }
        if step.table.starts_with(OWN) {
            // Dropped by Softnet: it is in no foreign filter, whatever comes of it.
            self.within = self.within.take().filter(|_| !step.dropped);
            return;
        }
        if step.packet.is_some() {
            let (family, table, base) = (step.family, step.table, step.chain.clone());
            self.filter = Some(Filter::Table { family, table, base, chains: BTreeSet::new() });
        }
        if let Some(Filter::Table { chains, .. }) = &mut self.filter {
            chains.insert(step.chain);
        }
        self.dropped |= step.dropped;
    }
}

/// A filter in this hook that nft does not show.
fn hidden_filter(hook: &str) -> Filter {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    if read(LEGACY_TABLES).trim().is_empty() {
        return Filter::Unknown;
    }
    let ufw = read(UFW).lines().any(|line| line.trim() == "ENABLED=yes");
    Filter::Legacy { ufw, chain: hook.to_ascii_uppercase() }
}

/// Changes the kernel's rules by one transaction, and notes it as Softnet's own.
fn change(text: &str, run_dir: &RunDir, _lock: &Lock) -> Result<(), Error> {
    let before = generation::if_as_noted(run_dir);
    Tool::Nft.run(&["-f", "-"], text)?;
    if before.is_some() {
        generation::note(run_dir, before);
    }
    Ok(())
}

/// The highest address that no VM has.
fn unused_address(plan: &Plan, directory: &NetworkDir) -> Result<Ipv4Addr, Error> {
    let leased: BTreeSet<Ipv4Addr> =
        dnsmasq::leases(directory)?.into_iter().map(|lease| lease.address).collect();
    let (first, last) = subnet::pool(plan.subnet);
    let free = |address: &Ipv4Addr| !leased.contains(address);
    Ok((first.to_bits()..=last.to_bits()).rev().map(Ipv4Addr::from_bits).find(free).unwrap_or(last))
}

/// A port that the last looks have not used: tracked connections outlive a look.
fn unused_port() -> u16 {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    40_000 + u16::try_from(now.as_millis() % 20_000).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::trace::Headers;

    fn step(table: &str, chain: &str, dropped: bool, is_first: bool) -> Step {
        let packet = is_first.then(Headers::default);
        Step { id: 1, family: "ip", table: table.into(), chain: chain.into(), dropped, packet }
    }

    fn way(steps: &[Step]) -> Way {
        let mut way = Way::default();
        steps.iter().for_each(|step| way.take(Need::World, step.clone(), "softnet-tap-snl0"));
        way
    }

    const FIRST: (&str, &str) = ("softnet-tap-snl0", "postrouting_first");
    const LAST: (&str, &str) = ("softnet-tap-snl0", "postrouting_last");

    #[test]
    fn a_packet_that_passes_the_last_chain_has_arrived() {
        let steps = [step(FIRST.0, FIRST.1, false, true), step("filter", "FORWARD", false, true)];
        let through = way(&[&steps[..], &[step(LAST.0, LAST.1, true, true)]].concat());
        assert!(through.arrived && !through.dropped && through.within.is_none(), "{through:?}");
        let swallowed = way(&steps);
        assert!(!swallowed.arrived && !swallowed.dropped && swallowed.within.is_some(), "{swallowed:?}");
    }

    #[test]
    fn a_drop_is_named_by_its_base_chain_and_all_chains_before() {
        let dropped = way(&[
            step(FIRST.0, FIRST.1, false, true),
            step("filter", "FORWARD", false, true),
            step("filter", "ufw-before-forward", false, false),
            step("filter", "FORWARD", true, false),
        ]);
        let chains = ["FORWARD", "ufw-before-forward"].map(str::to_owned).into();
        let (table, base) = ("filter".to_owned(), "FORWARD".to_owned());
        assert_eq!(dropped.filter, Some(Filter::Table { family: "ip", table, base, chains }));
        assert!(dropped.dropped && !dropped.arrived);
    }

    #[test]
    fn what_softnet_drops_is_nobody_elses() {
        let way =
            way(&[step(FIRST.0, FIRST.1, false, true), step("softnet-softnet0", "forward", true, true)]);
        assert!(!way.dropped && way.within.is_none(), "{way:?}");
    }
}
