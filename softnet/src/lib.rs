//! The part of Softnet that uses the operating system.
//!
//! `link` carries frames; `vm` and `host` implement it for the two sides and know neither the filter nor each other;
//! `relay` is the event loop that knows both; `stage` takes a configuration through opened, sealed and running. The
//! rules themselves are in `softnet-filter`.

pub mod attach;
pub mod bootpd;
pub mod cli;
pub mod clock;
pub mod command;
pub mod config;
pub mod control;
pub mod escalation;
pub mod host;
pub mod lease_follower;
pub mod leases;
pub mod link;
pub mod logging;
#[cfg(target_os = "linux")]
pub mod manage;
#[cfg(target_os = "linux")]
pub mod monitor;
pub mod needs;
#[cfg(target_os = "linux")]
pub mod netlink;
pub mod observe;
pub mod parent;
#[cfg(target_os = "linux")]
mod policy;
pub mod privilege;
pub mod quiet;
pub mod relay;
#[cfg(target_os = "linux")]
pub mod run;
pub mod sandbox;
pub mod signals;
pub mod stage;
mod surroundings;
mod sys;
pub mod usage;
pub mod vm;
