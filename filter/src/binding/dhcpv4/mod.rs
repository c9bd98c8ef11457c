//! DHCP (RFC 2131) as seen from between the client and the server: the messages that a VM may send (rules C), the
//! replies that may reach it, and the lease that the filter learns from them (rules B).
//!
//! All state is a few fixed fields, which do not grow when a VM floods. Besides the lease, the filter remembers
//! the address last offered, the open transactions, those with the boot server, the client identifiers used last, the lease before, and the rates.

mod boot;
mod client;
mod client_ids;
mod hardware_ids;
mod offer;
mod release;
mod reply;
mod state;
mod terms;
mod transactions;

pub(crate) use client::{Datagram, is_dhcp_from_vm, judge_from_vm};
pub(crate) use release::release_frame;
pub use release::release_message;
pub(crate) use reply::judge_from_host;
pub(crate) use state::Dhcp;
pub(crate) use terms::Renewable;
