//! The packet filter of Softnet: what one virtual machine may send, and what reaches it.
//!
//! A [`Port`] is the port of one VM. The caller passes each Ethernet frame together with the time, and gets a
//! [`Verdict`]:
//!
//! ```
//! use softnet_filter::{Gateway, NetType, OnBlock, Policy, Port, PortConfig, Timestamp, Verdict};
//!
//! let mut port = Port::new(PortConfig {
//!     vm_mac: "02:00:00:00:00:01".parse()?,
//!     gateway: Gateway {
//!         mac: "02:00:00:00:00:fe".parse()?,
//!         address: "192.168.64.1".parse()?,
//!         subnet: "192.168.64.0/24".parse()?,
//!     },
//!     dhcp_server: None,
//!     net_type: NetType::Nat,
//!     policy: Policy::default(),
//!     mtu: 1500,
//!     server_files_by_mac: false,
//!     host_addresses: Vec::new(),
//!     on_block: OnBlock::Reject,
//!     published: Vec::new(),
//!     seed: 4, // a random number
//! })?;
//! let verdict = port.from_vm(b"not a frame", Timestamp::from_secs(1));
//! assert!(matches!(verdict, Verdict::Drop(reason) if reason.name() == "runt"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The crate is pure on purpose. It has no clock, no socket and no log, judges a frame without allocating, keeps a
//! fixed amount of state whatever the VM sends, and does not panic for any bytes. [`Port::poll_event`]
//! returns what it learns (a lease, its end), [`Port::next_deadline`] when it next has something to do, and
//! [`Port::poll_transmit`] the frames that it sends itself.
//!
//! The rules are numbered L (layer 2), A (ARP), S (source and IPv4 header), D (destinations), C (DHCP from the VM), B
//! (the binding learnt from DHCP replies), I (the rest of what reaches the VM), R (resources), H (the host), P (the entries of a policy),
//! F (flows) and J (Softnet's own answers).
//! `docs/rules.md` states each of them, and a test's name begins with its number; the code cites them at the branch
//! that they force, and every dropped frame is counted under one [`DropReason`] that names its rule. `port.rs` holds
//! the order of the rules, and the rules themselves are here:
//!
//! | rule | file | function |
//! | --- | --- | --- |
//! | L1, L2 | `l2.rs` | `judge_source_and_type` |
//! | L3 | `l2.rs` | `judge_runt`, `is_too_long` |
//! | L3 | `port.rs` | `refuse_too_long` |
//! | L3 | `answer.rs` | `fragmentation_needed` |
//! | L4 | `l2.rs` | `judge_trailer` |
//! | L5 | `l2.rs` | `judge_arp_destination`, `judge_ipv4_destination` |
//! | L6 | `counters.rs` | `lose` |
//! | A1 | `arp.rs` | `judge_format`, `judge_operation` |
//! | A2 | `arp.rs` | `judge_sender_mac` |
//! | A3 | `arp.rs` | `judge_probe`, `judge_sender` |
//! | A4 | `arp.rs` | `judge_without_lease` |
//! | A5 | `arp.rs` | `judge_target` |
//! | S1 | `binding/mod.rs` | `judge_source` |
//! | S2 | `ipv4.rs` | `judge_format`, `judge_header`, `judge_long_header` |
//! | S3 | `ipv4.rs` | `judge_format`, `judge_options` |
//! | S3 | `igmp.rs` | `judge` |
//! | S4 | `ipv4.rs` | `judge_fragment` |
//! | S4 | `destination/mod.rs` | `judge_fragment` |
//! | S5 | `ipv4.rs` | `judge_transport` |
//! | D1 | `destination/mod.rs` | `judge_own_address` |
//! | D1, D2, D3 | `destination/table.rs` | `new`, `paint_defaults` |
//! | D1, D2, D3, D4 | `destination/mod.rs` | `judge_class` |
//! | D5 | `destination/mod.rs` | `judge_resolver` |
//! | D6 | `icmp.rs` | `judge` |
//! | D7 | `port.rs` | `judge_part_from_vm` |
//! | D8 | `policy/mod.rs` | `bridge_isolation` |
//! | D9 | `destination/table.rs` | `classify` |
//! | P1 | `policy/entry.rs` | `from_str`, `fmt` |
//! | P2 | `destination/region.rs` | `regions` |
//! | P2 | `destination/table.rs` | `new`, `decide_by_port` |
//! | P2 | `destination/ports.rs` | `decide`, `push_segments` |
//! | P3 | `destination/table.rs` | `new` |
//! | P3, P4 | `destination/mod.rs` | `judge_incoming` |
//! | P4 | `flow/mod.rs` | `judge_stateless_from_vm`, `note_stateless_from_host` |
//! | P5 | `destination/mod.rs` | `judge_class` |
//! | P6 | `destination/mod.rs` | `set_policy` |
//! | F1 | `flow/packet.rs` | `relation` |
//! | F1, F6 | `flow/state.rs` | `note` |
//! | F1, F2, F5 | `flow/mod.rs` | `judge_from_vm`, `judge_from_host` |
//! | F2 | `flow/mod.rs` | `knows_from_vm`, `knows_from_host` |
//! | F2 | `arp.rs` | `judge_target` |
//! | F3 | `flow/table.rs` | `limit`, `is_expired` |
//! | F3 | `flow/state.rs` | `next_state` |
//! | F4 | `flow/table.rs` | `insert`, `make_room_for_others` |
//! | F5 | `flow/fragments.rs` | `note`, `has` |
//! | F6 | `flow/table.rs` | `review` |
//! | C1 | `binding/dhcpv4/client.rs` | `judge_ports`, `judge_wholeness`, `judge_checksum`, `judge_destination` |
//! | C2 | `binding/dhcpv4/client.rs` | `judge_header`, `judge_hardware_address`, `judge_options` |
//! | C3 | `binding/dhcpv4/client.rs` | `judge_message_type` |
//! | C4 | `binding/dhcpv4/client.rs` | `judge_client_address` |
//! | C5 | `binding/dhcpv4/client.rs` | `judge_relaying`, `judge_overload`, `judge_client_id`, `judge_new_client_id` |
//! | C5 | `binding/dhcpv4/hardware_ids.rs` | `is_own_or_opaque` |
//! | C6 | `binding/dhcpv4/client.rs` | `judge_release`, `judge_decline` |
//! | C7 | `binding/dhcpv4/client.rs` | `judge_rate` |
//! | C8 | `binding/dhcpv4/client.rs` | `judge_server` |
//! | C9 | `binding/dhcpv4/client.rs` | `judge_names` |
//! | C10 | `binding/dhcpv4/client.rs` | `may_renew` |
//! | B1 | `binding/dhcpv4/reply.rs` | `judge_source`, `judge_wholeness`, `judge_length`, `judge_checksums`, `judge_station`, `judge_header`, `judge_hardware_address`, `judge_server`, `judge_transaction`, `judge_destination` |
//! | B2 | `binding/dhcpv4/reply.rs` | `judge_address` |
//! | B3 | `binding/dhcpv4/reply.rs` | `judge_options`, `judge_lease_time`, `judge_information` |
//! | B4 | `binding/dhcpv4/terms.rs` | `lease_time` |
//! | B5 | `binding/dhcpv4/reply.rs` | `judge_acknowledgement`, `judge_refusal` |
//! | B6 | `port.rs` | `judge_from_host` |
//! | B6 | `binding/dhcpv4/client.rs` | `judge_boot_request` |
//! | B6 | `binding/dhcpv4/reply.rs` | `judge_boot_reply` |
//! | B7 | `binding/dhcpv4/client.rs` | `judge_transaction` |
//! | B7 | `binding/dhcpv4/reply.rs` | `limit_by_unrequested_ack` |
//! | B7 | `binding/dhcpv4/state.rs` | `record_request`, `limit_by_ack` |
//! | B8 | `binding/dhcpv4/reply.rs` | `judge_information` |
//! | B9 | `binding/dhcpv4/reply.rs` | `judge_address` |
//! | B9 | `binding/dhcpv4/state.rs` | `give`, `may_get`, `lasts`, `cap` |
//! | H1 | `host.rs` | `set_addresses` |
//! | H1 | `destination/table.rs` | `new` |
//! | H2 | `destination/mod.rs` | `judge_exposed` |
//! | H2 | `host.rs` | `leads_to_another_vm` |
//! | H3 | `host.rs` | `judge` |
//! | I1 | `inbound.rs` | `datagram` |
//! | I2 | `inbound.rs` | `judge_type`, `judge_station`, `judge_packet` |
//! | I3 | `arp.rs` | `judge_from_host` |
//! | I4 | `inbound.rs` | `judge_packet`, `judge_udp` |
//! | J1 | `answer.rs` | `is_refusal`, `refusal`, `kind_of` |
//! | J1 | `flow/table.rs` | `review` |
//! | J2 | `answer.rs` | `refusal`, `reset` |
//! | J3 | `transmit.rs` | `push` |
//! | R1 | `event.rs` | `push` |
//! | R1 | `transmit.rs` | `push` |
//! | R4 | `segment.rs` | `new` |
#![forbid(unsafe_code)]
#![deny(missing_docs)]
// A frame must never be able to end the process (rules R3 and I4), so code that can panic does not compile.
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

mod answer;
mod arp;
mod binding;
mod config;
mod counters;
mod destination;
mod event;
mod explain;
mod flow;
mod frame;
mod host;
mod icmp;
mod igmp;
mod inbound;
mod ipv4;
mod l2;
mod lease;
mod policy;
mod port;
mod rate;
mod segment;
#[cfg(test)]
mod testing;
mod time;
mod transmit;
mod verdict;

pub use binding::dhcpv4::release_message;
pub use config::{ConfigError, Gateway, NetType, OnBlock, PolicyError, PortConfig, PublishedPort, Station};
pub use counters::{Counters, Direction, DirectionCounters};
pub use event::{PortEvent, UnboundCause};
pub use explain::{Decider, Explanation, OwnAnswer, Question};
pub use host::ExposedPort;
pub use lease::{AdoptError, Lease, Resolvers};
pub use policy::entry::{Entry, Origin, ParseEntryError, Ports, Protocol, Target};
pub use policy::{Action, Policy, Rule};
pub use port::Port;
pub use softnet_wire::{MacAddr, ParseMacError};
pub use time::Timestamp;
pub use transmit::OwnFrame;
pub use verdict::{DropReason, Verdict};

/// Re-exported because they are the types of [`Gateway::subnet`] and in [`Target`].
pub use ipnet::{Ipv4Net, Ipv6Net};
