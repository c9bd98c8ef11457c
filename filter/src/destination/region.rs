//! Which addresses the target of an entry stands for, and which of two entries about one address decides (rules P2, H1).

use core::net::Ipv4Addr;

use ipnet::Ipv4Net;
use softnet_wire::special::{self, Block};

use crate::policy::entry::Target;

/// Which of two entries about one address decides: the one with the greater rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    /// For a network with a prefix of no bits.
    Everything,
    /// For a globally reachable address, by `@internet`.
    Internet,
    /// For an address of the host besides the gateway's, by `@host`.
    Host,
    /// For a network with a prefix of so many bits.
    Prefix(u8),
}

/// Addresses with a common prefix, and the rank of an entry that names them. In the rank of `@internet` it is only those of
/// them that are globally reachable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Region {
    pub(crate) rank: Rank,
    pub(crate) address: Ipv4Addr,
    pub(crate) prefix_len: u8,
}

impl Region {
    fn of(net: Ipv4Net) -> Self {
        let prefix_len = net.prefix_len();
        let rank = if prefix_len == 0 { Rank::Everything } else { Rank::Prefix(prefix_len) };
        Self { rank, address: net.network(), prefix_len }
    }

    fn of_address(rank: Rank, address: Ipv4Addr) -> Self {
        Self { rank, address, prefix_len: 32 }
    }

    /// Whether an address has the prefix.
    pub(crate) fn has_prefix_of(&self, address: Ipv4Addr) -> bool {
        let differing = self.address.to_bits() ^ address.to_bits();
        differing.leading_zeros() >= u32::from(self.prefix_len)
    }

    fn of_block(block: Block<Ipv4Addr>) -> Self {
        Self { rank: Rank::Prefix(block.prefix_len), address: block.address, prefix_len: block.prefix_len }
    }
}

/// The regions that a target stands for, where the host has `gateway` and the addresses `host`.
pub(crate) fn regions(target: Target, gateway: Ipv4Addr, host: &[Ipv4Addr]) -> Vec<Region> {
    match target {
        Target::Ipv4(net) => vec![Region::of(net)],
        // All IPv6 is dropped (L2).
        Target::Ipv6(_) => Vec::new(),
        Target::Host => {
            let others = host.iter().map(|address| Region::of_address(Rank::Host, *address));
            [Region::of_address(Rank::Prefix(32), gateway)].into_iter().chain(others).collect()
        }
        Target::Private => {
            let blocks = special::PRIVATE_USE.into_iter().chain([special::SHARED_ADDRESS_SPACE]);
            blocks.map(Region::of_block).collect()
        }
        Target::Metadata => {
            let addresses = special::METADATA_IPV4.into_iter();
            addresses.map(|address| Region::of_address(Rank::Prefix(32), address)).collect()
        }
        Target::Internet => {
            vec![Region { rank: Rank::Internet, address: Ipv4Addr::UNSPECIFIED, prefix_len: 0 }]
        }
    }
}
