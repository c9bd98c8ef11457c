//! What a run amounted to.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use lab::Counters;
use lab::wire::Mac;

use crate::end::End;

/// The figures.
#[derive(Debug, Default)]
pub struct Figures {
    /// VMs that were started.
    pub vms: usize,
    /// Those that were started again before they had ended, and the number of each the last time.
    pub restarted: BTreeMap<Mac, usize>,
    /// How many of them ended in which way.
    pub ends: BTreeMap<End, usize>,
    /// From a VM's start to its first address.
    pub waits: Vec<Duration>,
    /// From the word to end to the last process's end.
    pub endings: Vec<Duration>,
    /// How many addresses were given, and how many different ones.
    pub bound: u64,
    pub addresses: std::collections::BTreeSet<std::net::Ipv4Addr>,
    pub renewed: u64,
    pub refused: u64,
    pub served: u64,
    /// Those who overslept and were answered, and the longest that one of them waited.
    pub awoken: u64,
    pub longest_awakening: Duration,
    /// The most connections that were tracked for one VM.
    pub most_connections: usize,
    pub good: u64,
    pub bad: u64,
    /// Of those whose Softnet said at its end what it had counted.
    pub forwarded: u64,
    pub dropped: BTreeMap<String, u64>,
    /// The network's size and what was leased at most.
    pub pool: u64,
    pub most_leased: usize,
    pub took: Duration,
    pub growth: Vec<String>,
}

impl Figures {
    /// Adds what an ended Softnet has counted.
    pub fn count(&mut self, counters: &Counters) {
        for (name, count) in &counters.from_vm {
            match name.as_str() {
                "forwarded" => self.forwarded += count,
                "bytes" | "dropped" => {}
                _ => *self.dropped.entry(name.clone()).or_default() += count,
            }
        }
    }
}

/// The median, the 99th of a hundred, and the longest.
fn spread(times: &[Duration]) -> String {
    let mut times = times.to_vec();
    times.sort_unstable();
    let at = |percent: usize| times.get((times.len() * percent / 100).min(times.len().saturating_sub(1)));
    let text = |time: Option<&Duration>| {
        time.map_or_else(String::new, |time| format!("{:.2} s", time.as_secs_f64()))
    };
    format!("{} median, {} at 99 %, {} longest", text(at(50)), text(at(99)), text(times.last()))
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, value: String| writeln!(f, "{name:<30} {value}");
        row("time", format!("{:.0} s", self.took.as_secs_f64()))?;
        row(
            "VMs",
            format!("{}, {} of them restarted before they had ended", self.vms, self.restarted.len()),
        )?;
        let ends: Vec<String> = self.ends.iter().map(|(end, count)| format!("{end} {count}")).collect();
        row("their ends", ends.join(", "))?;
        row("from start to address", spread(&self.waits))?;
        row("from word to end", spread(&self.endings))?;
        row(
            "addresses",
            format!(
                "{} given, {} different, {} of {} leased at most",
                self.bound,
                self.addresses.len(),
                self.most_leased,
                self.pool
            ),
        )?;
        row("DHCP", format!("{} renewals, {} refusals", self.renewed, self.refused))?;
        row("errands done", format!("{}", self.served))?;
        row("connections of one VM", format!("{} at most", self.most_connections))?;
        row(
            "renewals after the lease",
            format!("{}, {:.1} s at most", self.awoken, self.longest_awakening.as_secs_f64()),
        )?;
        row("frames that VMs sent", format!("{} good, {} bad", self.good, self.bad))?;
        let dropped: u64 = self.dropped.values().sum();
        row(
            "frames that Softnet counted",
            format!("{} forwarded, {dropped} dropped for {} reasons", self.forwarded, self.dropped.len()),
        )?;
        let mut reasons: Vec<(&String, &u64)> = self.dropped.iter().collect();
        reasons.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        for chunk in reasons.chunks(4) {
            let words: Vec<String> = chunk.iter().map(|(name, count)| format!("{name} {count}")).collect();
            row("", words.join(", "))?;
        }
        self.growth.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}
