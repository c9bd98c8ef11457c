//! Test support: private networks, wires and real guests.
//!
//! A test here never touches the host's network. [`stage::enter`] moves it into its own namespaces (network,
//! mounts, processes, IPC). They have no connection to the outside, and disappear with their content when the
//! test ends in any way. Inside, [`net`] builds bridges, TAPs, further hosts and a small internet, [`wire`]
//! makes and reads frames, [`VmPort`] plays a VM on its socket, [`DhcpServer`] plays a server on the wire,
//! [`guest`] boots real Linux guests, and [`Softnet`] runs the program under test.
//!
//! On macOS there is no lab: only [`SocketGuest`], a guest that needs none, what it is made of, its peers, and the
//! [`Controller`] of its Softnet.
//!
//! It deliberately emulates neither Softnet nor the kernel. Bridges, TAPs, routes, dnsmasq and guests are
//! real.

pub mod deadline;
pub mod wire;

mod controller;
mod service;
mod socket_guest;

pub use controller::Controller;
pub use service::{Service, hello};
pub use socket_guest::{Lease, SocketGuest};

#[cfg(target_os = "linux")]
pub mod debian;
#[cfg(target_os = "linux")]
pub mod guest;
#[cfg(target_os = "linux")]
pub mod harness;
#[cfg(target_os = "linux")]
pub mod net;
#[cfg(target_os = "linux")]
pub mod stage;

#[cfg(target_os = "linux")]
mod dhcp_server;
#[cfg(target_os = "linux")]
mod kernel_guest;
#[cfg(target_os = "linux")]
mod machine;
#[cfg(target_os = "linux")]
mod overheard;
#[cfg(target_os = "linux")]
mod segment;
#[cfg(target_os = "linux")]
mod softnet;
#[cfg(target_os = "linux")]
mod tap;
#[cfg(target_os = "linux")]
mod vm_port;

#[cfg(target_os = "linux")]
pub use dhcp_server::DhcpServer;
#[cfg(target_os = "linux")]
pub use kernel_guest::kernel_guest;
#[cfg(target_os = "linux")]
pub use lab_agent::packet::{PacketSocket, Sighting};
#[cfg(target_os = "linux")]
pub use machine::{Disk, Machine};
#[cfg(target_os = "linux")]
pub use overheard::{Message, Overheard};
#[cfg(target_os = "linux")]
pub use segment::Segment;
#[cfg(target_os = "linux")]
pub use softnet::{Counters, Softnet};
#[cfg(target_os = "linux")]
pub use vm_port::VmPort;
