//! The destinations compiled into one table, so that the decision costs the same however many rules there are.
//!
//! The table is a trie with the strides 16, 8 and 8: one to three loads a lookup. An entry is either the [`Class`] of
//! every address below it or the number of a block that tells them apart. Prefixes are painted over each other in
//! the order of their precedence, so that what is left is the longest match.

use core::net::Ipv4Addr;

use crate::policy::{Action, Policy, Target};
use crate::port::{ConfigError, Gateway, NetType};

/// What the rules D1 to D4 and D9 say about a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Class {
    /// No rule matched: globally reachable, open to every protocol (D3, D4).
    World,
    /// No rule matched: the gateway, open to TCP, UDP and ICMP (D4).
    Gateway,
    /// `--allow` names it (D2).
    Allowed,
    /// `--block` names it (D2).
    Blocked,
    /// No rule matched: not globally reachable (D3).
    NotGlobal,
    /// No rule matched: multicast (D3).
    Multicast,
    /// No rule matched: another host on the VM's network (D3), even where the network has public addresses.
    Neighbour,
    /// No rule matched: globally reachable, but the network has no world (D9).
    HostOnly,
    /// Nothing opens it (D1).
    Never,
}

impl Class {
    const ALL: [Self; 9] = [
        Self::World,
        Self::Gateway,
        Self::Allowed,
        Self::Blocked,
        Self::NotGlobal,
        Self::Multicast,
        Self::Neighbour,
        Self::HostOnly,
        Self::Never,
    ];
}

/// Destinations that no flag opens (D1), besides those that depend on the network.
const NEVER: [(Ipv4Addr, u8); 3] =
    [(Ipv4Addr::new(0, 0, 0, 0), 8), (Ipv4Addr::new(127, 0, 0, 0), 8), (Ipv4Addr::new(240, 0, 0, 0), 4)];

/// Destinations that are closed unless a rule opens them (D3): what the IANA IPv4 Special-Purpose Address Registry
/// calls not globally reachable, and 168.63.129.16, where Azure answers its guests.
const NOT_GLOBAL: [(Ipv4Addr, u8); 12] = [
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(168, 63, 129, 16), 32),
];

/// The exceptions in 192.0.0.0/24: the anycast addresses of PCP (RFC 7723) and TURN (RFC 8155).
const GLOBAL_AFTER_ALL: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 0, 9), Ipv4Addr::new(192, 0, 0, 10)];

/// Entries below this are a [`Class`]; the others, less this, the number of a block.
const FIRST_BLOCK: u16 = 16;

type Block = [u16; 256];

/// The compiled destinations of one VM.
pub(crate) struct Table {
    /// By the upper 16 bits of the address.
    root: Box<[u16]>,
    /// By 8 further bits each.
    blocks: Vec<Block>,
}

impl Table {
    /// Compiles the policy for a VM behind `gateway`. 128 KiB, and half a KiB for each /16 and each /24 that is not
    /// of one class.
    pub(crate) fn new(policy: &Policy, gateway: Gateway, net_type: NetType) -> Result<Self, ConfigError> {
        let world = match net_type {
            NetType::Nat => Class::World,
            NetType::Host => Class::HostOnly,
        };
        let mut table = Self { root: vec![world as u16; 1 << 16].into_boxed_slice(), blocks: Vec::new() };

        for (address, prefix) in NOT_GLOBAL {
            table.paint(address, prefix, Class::NotGlobal)?;
        }
        for address in GLOBAL_AFTER_ALL {
            table.paint(address, 32, world)?;
        }
        table.paint(Ipv4Addr::new(224, 0, 0, 0), 4, Class::Multicast)?;
        table.paint(gateway.subnet.network(), gateway.subnet.prefix_len(), Class::Neighbour)?;
        table.paint(gateway.address, 32, Class::Gateway)?;

        // D2: the longest prefix is painted last, and of one prefix the block.
        let mut rules: Vec<(u8, Action, Ipv4Addr)> = policy
            .rules()
            .iter()
            .map(|rule| match rule.target {
                Target::Net(net) => (net.prefix_len(), rule.action, net.network()),
                Target::Gateway => (32, rule.action, gateway.address),
            })
            .collect();
        rules.sort_unstable();
        for (prefix, action, address) in rules {
            let class = match action {
                Action::Allow => Class::Allowed,
                Action::Block => Class::Blocked,
            };
            table.paint(address, prefix, class)?;
        }

        for (address, prefix) in NEVER {
            table.paint(address, prefix, Class::Never)?;
        }
        table.paint(gateway.subnet.network(), 32, Class::Never)?;
        table.paint(gateway.subnet.broadcast(), 32, Class::Never)?;
        table.blocks.shrink_to_fit();
        Ok(table)
    }

    /// What the rules say about `destination`, except for the VM's own address, which changes.
    #[inline]
    pub(crate) fn classify(&self, destination: Ipv4Addr) -> Class {
        let [a, b, c, d] = destination.octets();
        let mut entry = self.root.get(usize::from(u16::from_be_bytes([a, b]))).copied();
        for byte in [c, d] {
            match entry {
                Some(number) if number >= FIRST_BLOCK => {
                    let block = self.blocks.get(usize::from(number.wrapping_sub(FIRST_BLOCK)));
                    entry = block.and_then(|block| block.get(usize::from(byte))).copied();
                }
                _ => break,
            }
        }
        // There is always an entry, and it is a class; if that were ever wrong, nothing would pass.
        entry.and_then(|class| Class::ALL.get(usize::from(class))).copied().unwrap_or(Class::Never)
    }

    /// Gives every address of a prefix the class, over whatever was there.
    fn paint(&mut self, address: Ipv4Addr, prefix: u8, class: Class) -> Result<(), ConfigError> {
        let [a, b, c, d] = address.octets();
        let high = u16::from_be_bytes([a, b]);
        let class = class as u16;
        if prefix <= 16 {
            fill(&mut self.root, usize::from(high), 16_u8.saturating_sub(prefix), class);
            return Ok(());
        }
        let second = Self::open(self.root.get_mut(usize::from(high)), &mut self.blocks)?;
        if prefix <= 24 {
            if let Some(block) = self.blocks.get_mut(second) {
                fill(block, usize::from(c), 24_u8.saturating_sub(prefix), class);
            }
            return Ok(());
        }
        // The entry is written back because it lies in the vector that the new block may have moved.
        let mut entry = self.blocks.get(second).and_then(|block| block.get(usize::from(c))).copied();
        let third = Self::open(entry.as_mut(), &mut self.blocks)?;
        if let (Some(slot), Some(entry)) =
            (self.blocks.get_mut(second).and_then(|block| block.get_mut(usize::from(c))), entry)
        {
            *slot = entry;
        }
        if let Some(block) = self.blocks.get_mut(third) {
            fill(block, usize::from(d), 32_u8.saturating_sub(prefix), class);
        }
        Ok(())
    }

    /// The block behind an entry; an entry that was a class becomes a block of that class.
    fn open(entry: Option<&mut u16>, blocks: &mut Vec<Block>) -> Result<usize, ConfigError> {
        let entry = entry.ok_or(ConfigError::TooManyRules)?;
        if *entry < FIRST_BLOCK {
            let number = u16::try_from(blocks.len().saturating_add(usize::from(FIRST_BLOCK)))
                .map_err(|_| ConfigError::TooManyRules)?;
            blocks.push([*entry; 256]);
            *entry = number;
        }
        Ok(usize::from(entry.saturating_sub(FIRST_BLOCK)))
    }
}

impl core::fmt::Debug for Table {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Table").field("blocks", &self.blocks.len()).finish_non_exhaustive()
    }
}

/// Fills the 2^`free_bits` entries around `index` that have the upper bits of `index` in common.
fn fill(entries: &mut [u16], index: usize, free_bits: u8, class: u16) {
    let count = 1_usize << free_bits.min(16);
    let start = index & !count.wrapping_sub(1);
    entries.iter_mut().skip(start).take(count).for_each(|entry| *entry = class);
}
