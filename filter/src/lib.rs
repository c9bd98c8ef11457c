//! The packet filter of Softnet: what one virtual machine may send, and what reaches it.
//!
//! A [`Port`] stands for the one VM. The shell around it hands over each Ethernet frame together with the time, and
//! gets a [`Verdict`] back:
//!
//! ```
//! use softnet_filter::{Gateway, NetType, Policy, Port, PortConfig, Timestamp, Verdict};
//!
//! let mut port = Port::new(PortConfig {
//!     vm_mac: "02:00:00:00:00:01".parse()?,
//!     gateway: Gateway {
//!         mac: "02:00:00:00:00:fe".parse()?,
//!         address: "192.168.64.1".parse()?,
//!         subnet: "192.168.64.0/24".parse()?,
//!     },
//!     net_type: NetType::Nat,
//!     policy: Policy::default(),
//!     mtu: 1500,
//!     server_files_by_mac: false,
//!     host_addresses: Vec::new(),
//! })?;
//! let verdict = port.from_vm(b"not a frame", Timestamp::from_secs(1));
//! assert!(matches!(verdict, Verdict::Drop(reason) if reason.name() == "runt"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The crate is pure on purpose. It has no clock, no socket and no log, judges a frame without allocating, keeps a
//! fixed amount of state whatever the VM sends, and does not panic for any bytes. What it learns (a lease, its end)
//! it tells through [`Port::poll_event`]; what it must do later it announces through [`Port::next_deadline`].
//!
//! The rules are numbered L (layer 2), A (ARP), S (source and IPv4 header), D (destinations), C (DHCP from the VM),
//! B (the binding learnt from DHCP replies), I (the rest of what reaches the VM), R (resources) and H (the host). `docs/rules.md`
//! states each of them, and a test's name begins with its number; the code cites them at the branch that they force, and every
//! dropped frame is counted under one [`DropReason`] that names its rule.
#![forbid(unsafe_code)]
#![deny(missing_docs)]
// A frame must never be able to end the process (rules R3 and I4), so what can panic does not compile.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::arithmetic_side_effects
    )
)]

mod arp;
mod checksum;
mod counters;
mod destination;
mod dhcp;
mod frame;
mod host;
mod icmp;
mod ipv4;
mod lease;
mod mac;
mod policy;
mod port;
mod table;
#[cfg(test)]
mod testing;
mod time;
mod verdict;

pub use counters::{Counters, Direction, DirectionCounters};
pub use dhcp::{ReleaseFrame, release_message};
pub use host::ExposedPort;
pub use lease::{Lease, Resolvers};
pub use mac::{MacAddr, ParseMacError};
pub use policy::{Action, ParseTargetError, Policy, Rule, Target};
pub use port::{AdoptError, ConfigError, Gateway, NetType, Port, PortConfig, PortEvent, UnboundCause};
pub use time::Timestamp;
pub use verdict::{DropReason, Verdict};

/// Re-exported because [`Gateway::subnet`] and [`Target::Net`] are made of it.
pub use ipnet::Ipv4Net;
