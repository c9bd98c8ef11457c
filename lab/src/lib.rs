//! Test support: private networks, wires and real guests.
//!
//! A test here never touches the host's network. [`stage::enter`] moves it into its own namespaces (network,
//! mounts, processes, IPC). They have no connection to the outside, and disappear with their content when the
//! test ends in any way. Inside, [`net`] builds bridges, TAPs, further hosts and a small internet, [`wire`]
//! makes and reads frames, [`VmPort`] plays a VM on its socket, [`DhcpServer`] plays a server on the wire,
//! [`guest`] boots real Linux guests, and [`Softnet`] runs the program under test.
//!
//! It deliberately emulates neither Softnet nor the kernel. Bridges, TAPs, routes, dnsmasq and guests are
//! real.

pub mod deadline;
pub mod guest;
pub mod harness;
pub mod net;
pub mod stage;
pub mod wire;

mod dhcp_server;
mod kernel_guest;
mod segment;
mod service;
mod softnet;
mod tap;
mod vm_port;

pub use dhcp_server::DhcpServer;
pub use kernel_guest::kernel_guest;
pub use lab_agent::packet::{PacketSocket, Sighting};
pub use segment::Segment;
pub use service::{Service, hello};
pub use softnet::{Counters, Softnet};
pub use vm_port::VmPort;
