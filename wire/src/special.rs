//! The special-purpose addresses that IANA registers (RFC 6890): which they are, and which of them are globally
//! reachable.
//!
//! <https://www.iana.org/assignments/iana-ipv4-special-registry>

use core::fmt;
use core::net::Ipv4Addr;

/// A block of addresses of one family, as the registry lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block<A> {
    /// The first address.
    pub address: A,
    /// How many bits all addresses of the block share.
    pub prefix_len: u8,
    /// What the block is for.
    pub name: &'static str,
    /// The RFC that reserves it; 0 if none does.
    pub rfc: u16,
    /// Whether a packet for the block is forwarded beyond the network that it comes from.
    pub is_global: bool,
}

impl Block<Ipv4Addr> {
    const fn new(address: [u8; 4], prefix_len: u8, name: &'static str, rfc: u16, is_global: bool) -> Self {
        let [a, b, c, d] = address;
        Self { address: Ipv4Addr::new(a, b, c, d), prefix_len, name, rfc, is_global }
    }

    /// Whether `address` is one of the block.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let differing = self.address.to_bits() ^ address.to_bits();
        differing.leading_zeros() >= u32::from(self.prefix_len)
    }

    /// Whether all of `other` lies in this block, which is larger.
    fn encloses(&self, other: &Self) -> bool {
        self.prefix_len < other.prefix_len && self.contains(other.address)
    }
}

impl fmt::Display for Block<Ipv4Addr> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_len)
    }
}

/// The blocks that any network may use for itself (RFC 1918).
pub const PRIVATE_USE: [Block<Ipv4Addr>; 3] = [
    Block::new([10, 0, 0, 0], 8, "Private-Use", 1918, false),
    Block::new([172, 16, 0, 0], 12, "Private-Use", 1918, false),
    Block::new([192, 168, 0, 0], 16, "Private-Use", 1918, false),
];

/// The block between a carrier's NAT and its customers (RFC 6598).
pub const SHARED_ADDRESS_SPACE: Block<Ipv4Addr> =
    Block::new([100, 64, 0, 0], 10, "Shared Address Space", 6598, false);

/// The hosts of this network, whichever that is. Only the first address is in use: the source of a host without one.
pub const THIS_NETWORK: Block<Ipv4Addr> = Block::new([0, 0, 0, 0], 8, "This network", 791, false);

/// The host itself.
pub const LOOPBACK: Block<Ipv4Addr> = Block::new([127, 0, 0, 0], 8, "Loopback", 1122, false);

/// Addresses that were never assigned.
pub const RESERVED: Block<Ipv4Addr> = Block::new([240, 0, 0, 0], 4, "Reserved", 1112, false);

/// The groups of IPv4 (RFC 5771), which have a registry of their own.
pub const MULTICAST: Block<Ipv4Addr> = Block::new([224, 0, 0, 0], 4, "Multicast", 5771, false);

/// The registry for IPv4, by address. A block that lies in another comes after it.
///
/// 192.88.99.0/24 is deprecated, and the registry does not say whether it is reachable. It counts as not.
pub const IPV4: [Block<Ipv4Addr>; 26] = [
    THIS_NETWORK,
    Block::new([0, 0, 0, 0], 32, "This host on this network", 1122, false),
    PRIVATE_USE[0],
    SHARED_ADDRESS_SPACE,
    LOOPBACK,
    Block::new([169, 254, 0, 0], 16, "Link Local", 3927, false),
    PRIVATE_USE[1],
    Block::new([192, 0, 0, 0], 24, "IETF Protocol Assignments", 6890, false),
    Block::new([192, 0, 0, 0], 29, "IPv4 Service Continuity Prefix", 7335, false),
    Block::new([192, 0, 0, 8], 32, "IPv4 dummy address", 7600, false),
    Block::new([192, 0, 0, 9], 32, "Port Control Protocol Anycast", 7723, true),
    Block::new([192, 0, 0, 10], 32, "Traversal Using Relays around NAT Anycast", 8155, true),
    Block::new([192, 0, 0, 170], 32, "NAT64/DNS64 Discovery", 8880, false),
    Block::new([192, 0, 0, 171], 32, "NAT64/DNS64 Discovery", 8880, false),
    Block::new([192, 0, 2, 0], 24, "Documentation (TEST-NET-1)", 5737, false),
    Block::new([192, 31, 196, 0], 24, "AS112-v4", 7535, true),
    Block::new([192, 52, 193, 0], 24, "AMT", 7450, true),
    Block::new([192, 88, 99, 0], 24, "Deprecated (6to4 Relay Anycast)", 7526, false),
    Block::new([192, 88, 99, 2], 32, "6a44-relay anycast address", 6751, false),
    PRIVATE_USE[2],
    Block::new([192, 175, 48, 0], 24, "Direct Delegation AS112 Service", 7534, true),
    Block::new([198, 18, 0, 0], 15, "Benchmarking", 2544, false),
    Block::new([198, 51, 100, 0], 24, "Documentation (TEST-NET-2)", 5737, false),
    Block::new([203, 0, 113, 0], 24, "Documentation (TEST-NET-3)", 5737, false),
    RESERVED,
    Block::new([255, 255, 255, 255], 32, "Limited Broadcast", 8190, false),
];

/// Where the platform answers the guests of the Azure cloud: a public address that is in no registry, and that is not
/// reachable from anywhere else.
pub const AZURE_PLATFORM: Block<Ipv4Addr> = Block::new([168, 63, 129, 16], 32, "Azure's platform", 0, false);

/// Where clouds tell their VMs names, keys and passwords, over IPv4: most of them, the credentials of containers and pods
/// on AWS, Tencent, Azure, Alibaba, and Oracle's older cloud. None of these is in a registry of its own.
pub const METADATA_IPV4: [Ipv4Addr; 7] = [
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(169, 254, 170, 2),
    Ipv4Addr::new(169, 254, 170, 23),
    Ipv4Addr::new(169, 254, 0, 23),
    AZURE_PLATFORM.address,
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(192, 0, 0, 192),
];

/// The largest blocks that are not globally reachable.
pub fn not_global() -> impl Iterator<Item = Block<Ipv4Addr>> {
    IPV4.into_iter().filter(|block| !block.is_global && !is_inside_not_global(block))
}

/// The blocks inside those that are globally reachable after all.
pub fn global_inside() -> impl Iterator<Item = Block<Ipv4Addr>> {
    IPV4.into_iter().filter(|block| block.is_global && is_inside_not_global(block))
}

fn is_inside_not_global(block: &Block<Ipv4Addr>) -> bool {
    IPV4.iter().any(|other| !other.is_global && other.encloses(block))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The blocks from which the filter, the host's rules and the choice of a subnet are derived.
    #[test]
    fn the_blocks_are_those_of_the_registry() {
        let text = |blocks: Vec<Block<Ipv4Addr>>| blocks.iter().map(Block::to_string).collect::<Vec<_>>();
        assert_eq!(
            text(not_global().collect()),
            [
                "0.0.0.0/8",
                "10.0.0.0/8",
                "100.64.0.0/10",
                "127.0.0.0/8",
                "169.254.0.0/16",
                "172.16.0.0/12",
                "192.0.0.0/24",
                "192.0.2.0/24",
                "192.88.99.0/24",
                "192.168.0.0/16",
                "198.18.0.0/15",
                "198.51.100.0/24",
                "203.0.113.0/24",
                "240.0.0.0/4",
            ]
        );
        assert_eq!(text(global_inside().collect()), ["192.0.0.9/32", "192.0.0.10/32"]);
        assert_eq!(text(PRIVATE_USE.to_vec()), ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]);
        assert_eq!(SHARED_ADDRESS_SPACE.to_string(), "100.64.0.0/10");
        assert_eq!(text(vec![THIS_NETWORK, LOOPBACK, RESERVED]), ["0.0.0.0/8", "127.0.0.0/8", "240.0.0.0/4"]);
        assert_eq!(AZURE_PLATFORM.to_string(), "168.63.129.16/32");
    }

    #[test]
    fn blocks_are_whole_and_in_order() {
        for block in IPV4 {
            let host_bits = u32::MAX.checked_shr(block.prefix_len.into()).unwrap_or(0);
            assert_eq!(block.address.to_bits() & host_bits, 0, "{block}");
        }
        assert!(IPV4.is_sorted_by_key(|block| (block.address, block.prefix_len)));
    }

    #[test]
    fn a_block_ends_where_its_prefix_does() {
        for (inside, address) in [
            (false, [100, 63, 255, 255]),
            (true, [100, 64, 0, 0]),
            (true, [100, 127, 255, 255]),
            (false, [100, 128, 0, 0]),
        ] {
            assert_eq!(SHARED_ADDRESS_SPACE.contains(address.into()), inside, "{address:?}");
        }
        assert!(AZURE_PLATFORM.contains(AZURE_PLATFORM.address));
        assert!(!AZURE_PLATFORM.contains([168, 63, 129, 17].into()));
    }

    /// They are closed to a VM unless something opens them.
    #[test]
    fn no_metadata_is_global() {
        for address in METADATA_IPV4 {
            let mut closed = not_global().chain([AZURE_PLATFORM]);
            assert!(closed.any(|block| block.contains(address)), "{address}");
            assert!(!global_inside().any(|block| block.contains(address)), "{address}");
        }
    }
}
