//! What entries with ports or a protocol say about an address and a port (rule P2), in a few loads and one or two binary
//! searches, however many entries there are.
//!
//! A trie gives the number of a [`Level`]: what the entries for the longest prefix of the address say about each port. Where
//! they say nothing, the level of the next shorter prefix decides.

use std::collections::BTreeMap;

use core::net::Ipv4Addr;
use core::ops::Range;

use ipnet::Ipv4Net;
use softnet_wire::special;

use crate::destination::region::{Rank, Region};
use crate::destination::trie::{Full, Trie};
use crate::policy::Action;
use crate::policy::entry::{Ports, Protocol};

/// The most levels: some two for each prefix that entries with ports name.
const LEVELS: u16 = 1 << 14;

/// The level of addresses about which no entry with ports speaks.
const SILENT: u16 = 0;

/// An entry with ports or a protocol, of one region.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PortRule {
    pub(crate) ports: Option<Ports>,
    pub(crate) protocol: Option<Protocol>,
    pub(crate) action: Action,
}

impl PortRule {
    /// The first and the last port.
    fn range(&self) -> (u16, u16) {
        self.ports.map_or((0, u16::MAX), |ports| (ports.low(), ports.high()))
    }

    fn width(&self) -> u16 {
        let (low, high) = self.range();
        high.saturating_sub(low)
    }

    fn is_about(&self, protocol: Protocol) -> bool {
        self.protocol.is_none_or(|own| own == protocol)
    }
}

/// What an entry with ports decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PortDecision {
    pub(crate) action: Action,
    /// Whether the entry is for a prefix of no bits.
    pub(crate) is_for_everything: bool,
}

/// What entries say about the ports from this one up to the next segment.
#[derive(Debug, Clone, Copy)]
struct Segment {
    from: u16,
    action: Option<Action>,
}

/// What the entries of one prefix say.
#[derive(Debug, Clone)]
struct Level {
    /// The level of the next shorter prefix.
    parent: u16,
    is_for_everything: bool,
    /// Whether an entry of this level or of one above it allows something.
    allows: bool,
    /// Segments, by port.
    tcp: Range<usize>,
    udp: Range<usize>,
}

/// The entries with ports of one policy, compiled.
pub(crate) struct PortTable {
    trie: Trie<LEVELS>,
    levels: Vec<Level>,
    segments: Vec<Segment>,
}

impl PortTable {
    /// Compiles the entries of each region, for a VM whose network is `subnet`.
    pub(crate) fn new(rules: &BTreeMap<Region, Vec<PortRule>>, subnet: Ipv4Net) -> Result<Self, Full> {
        let silent = Level { parent: SILENT, is_for_everything: false, allows: false, tcp: 0..0, udp: 0..0 };
        let mut table = Self { trie: Trie::new(SILENT), levels: vec![silent], segments: Vec::new() };
        // In the order of their ranks: what is painted last decides first.
        for (region, rules) in rules {
            let level = Level {
                parent: SILENT,
                is_for_everything: region.rank == Rank::Everything,
                allows: rules.iter().any(|rule| rule.action == Action::Allow),
                tcp: table.push_segments(rules, Protocol::Tcp),
                udp: table.push_segments(rules, Protocol::Udp),
            };
            if region.rank == Rank::Internet {
                table.paint_internet(&level, subnet)?;
            } else {
                table.paint(region.address, region.prefix_len, &level)?;
            }
        }
        table.trie.shrink_to_fit();
        Ok(table)
    }

    /// What the entries say about a port of an address.
    #[inline(always)]
    pub(crate) fn decide(&self, address: Ipv4Addr, protocol: Protocol, port: u16) -> Option<PortDecision> {
        let mut number = self.trie.decide(address.octets());
        while number != SILENT {
            let level = self.levels.get(usize::from(number))?;
            let range = match protocol {
                Protocol::Tcp => &level.tcp,
                Protocol::Udp => &level.udp,
            };
            if let Some(action) = action_at(self.segments.get(range.start..range.end)?, port) {
                return Some(PortDecision { action, is_for_everything: level.is_for_everything });
            }
            number = level.parent;
        }
        None
    }

    /// Whether any entry speaks about a port of the address.
    pub(crate) fn speaks_about(&self, address: Ipv4Addr) -> bool {
        self.trie.decide(address.octets()) != SILENT
    }

    /// Whether any entry allows a port of the address.
    pub(crate) fn allows_some(&self, address: Ipv4Addr) -> bool {
        let level = self.levels.get(usize::from(self.trie.decide(address.octets())));
        level.is_some_and(|level| level.allows)
    }

    /// Appends what the entries say about the ports of a protocol: of two the narrower, of two as narrow the block.
    fn push_segments(&mut self, rules: &[PortRule], protocol: Protocol) -> Range<usize> {
        let begin = self.segments.len();
        let mut rules: Vec<&PortRule> = rules.iter().filter(|rule| rule.is_about(protocol)).collect();
        rules.sort_by_key(|rule| (core::cmp::Reverse(rule.width()), rule.action));
        let starts = rules.iter().flat_map(|rule| {
            let (low, high) = rule.range();
            [Some(low), high.checked_add(1)].into_iter().flatten()
        });
        let mut starts: Vec<u16> = starts.chain([0]).collect();
        starts.sort_unstable();
        starts.dedup();
        let mut actions: Vec<Option<Action>> = vec![None; starts.len()];
        for rule in &rules {
            let (low, high) = rule.range();
            let covered =
                starts.partition_point(|start| *start < low)..starts.partition_point(|start| *start <= high);
            actions.get_mut(covered).unwrap_or(&mut []).fill(Some(rule.action));
        }
        if !rules.is_empty() {
            let segments = starts.into_iter().zip(actions).map(|(from, action)| Segment { from, action });
            self.segments.extend(segments);
        }
        begin..self.segments.len()
    }

    /// Puts a level above those that the addresses of a prefix have.
    fn paint(&mut self, address: Ipv4Addr, prefix_len: u8, level: &Level) -> Result<(), Full> {
        // The same level above different ones is as many levels.
        let mut made: Vec<(u16, u16)> = Vec::new();
        let Self { trie, levels, .. } = self;
        trie.paint(address.octets(), prefix_len, |parent| {
            if let Some((_, number)) = made.iter().find(|(other, _)| *other == parent) {
                return *number;
            }
            let number = u16::try_from(levels.len()).unwrap_or(u16::MAX);
            let allows = level.allows || levels.get(usize::from(parent)).is_some_and(|level| level.allows);
            levels.push(Level { parent, allows, ..level.clone() });
            made.push((parent, number));
            // Too large a number ends the compilation below.
            if number < LEVELS { number } else { parent }
        })?;
        if self.levels.len() > usize::from(LEVELS) { Err(Full) } else { Ok(()) }
    }

    /// The same for the addresses that are globally reachable. Nothing but a prefix of no bits has been painted before.
    fn paint_internet(&mut self, level: &Level, subnet: Ipv4Net) -> Result<(), Full> {
        let below = self.trie.decide(Ipv4Addr::UNSPECIFIED.octets());
        self.paint(Ipv4Addr::UNSPECIFIED, 0, level)?;
        let internet = self.trie.decide(Ipv4Addr::UNSPECIFIED.octets());
        for block in special::not_global().chain([special::AZURE_PLATFORM]) {
            self.trie.paint(block.address.octets(), block.prefix_len, |_| below)?;
        }
        for block in special::global_inside() {
            self.trie.paint(block.address.octets(), block.prefix_len, |_| internet)?;
        }
        self.trie.paint(special::MULTICAST.address.octets(), special::MULTICAST.prefix_len, |_| below)?;
        self.trie.paint(subnet.network().octets(), subnet.prefix_len(), |_| below)
    }
}

/// What the last segment says that begins at or before a port. The first begins at port 0.
#[inline(always)]
fn action_at(segments: &[Segment], port: u16) -> Option<Action> {
    let (mut low, mut high) = (0_usize, segments.len());
    loop {
        let middle = low.wrapping_add(high) / 2;
        let segment = segments.get(middle)?;
        if segment.from > port {
            high = middle;
        } else if segment.from == port || middle == low {
            // Most entries are for one port, at which a segment begins.
            return segment.action;
        } else {
            low = middle;
        }
    }
}
