//! Whether processes grow: those that live long, from their first samples to their last, and those that live shortly, from
//! the first of them to the last at the same age.

use std::collections::BTreeMap;

use nix::unistd::Pid;

use crate::census::Usage;
use crate::ledger::{Invariant, Ledger};

/// Fewer samples than this say nothing.
const FEW: usize = 12;
/// KiB that a process may have more at the end, and the part of what it had.
const SLACK: (u64, u64) = (192, 10);

/// The name of the server's row.
pub const SERVER: &str = "dnsmasq";
/// Sockets that the server may have for questions that are open, when somebody keeps it busy (its `RANDOM_SOCKS`, and those
/// of connections): as many as the rules let pass while dnsmasq keeps them open (rule H4).
const OPEN_QUESTIONS: u64 = 250;

/// The samples of one kind of process, in order.
#[derive(Debug, Default)]
pub struct Growth(BTreeMap<String, Vec<Usage>>);

impl Growth {
    /// Notes what `pid` uses under `name`; says whether it could be seen.
    pub fn sample(&mut self, name: &str, pid: Pid) -> bool {
        let Some(usage) = Usage::of(pid) else { return false };
        self.0.entry(name.to_owned()).or_default().push(usage);
        true
    }

    /// Compares the first quarter of each row with the last, and says how large it was. With
    /// `has_hogs` the server has more open at some times than at others.
    pub fn judge(&self, has_hogs: bool, ledger: &mut Ledger) -> Vec<String> {
        let mut lines = Vec::new();
        for (name, samples) in &self.0 {
            if samples.len() < FEW {
                continue;
            }
            let quarter = samples.len() / 4;
            let (first, last) = (&samples[..quarter], &samples[samples.len() - quarter..]);
            let memory = |samples: &[Usage]| median(samples.iter().map(|usage| usage.memory));
            // A monitor has more for a moment while it changes something; one that leaks stays.
            let descriptors =
                |samples: &[Usage]| samples.iter().map(|usage| usage.descriptors).min().unwrap_or_default();
            let (before, after) = (memory(first), memory(last));
            let (slack, part) = SLACK;
            let line = format!(
                "{name:<30} {before:>6} -> {after:>6} KiB {:>4} -> {:>3} descriptors {:>5} samples",
                descriptors(first),
                descriptors(last),
                samples.len()
            );
            ledger.check(Invariant::Memory, after <= before + before / part + slack, || line.clone());
            let busy = if has_hogs && name == SERVER { OPEN_QUESTIONS } else { 0 };
            // With an address, a monitor has the lock of that too.
            let lock = u64::from(name.starts_with("monitor"));
            let flat = descriptors(last) <= descriptors(first) + busy + lock;
            ledger.check(Invariant::Descriptors, flat, || line.clone());
            lines.push(line);
        }
        lines
    }
}

fn median(values: impl Iterator<Item = u64>) -> u64 {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}
