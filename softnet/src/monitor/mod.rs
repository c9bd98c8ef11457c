//! The monitor: the first process of every Softnet on Linux. It does what the process that parses frames
//! cannot or must not do.
//!
//! # Theory of operation
//! [`fork_worker`] forks. The child continues as the *worker*: it parses frames and will be sealed. The
//! parent becomes the *monitor*: it closes every descriptor that it does not need, including the VM's socket
//! and the link to the host, and never sees a frame. It has four tasks, the first on the managed network
//! only:
//!
//! - work that needs privilege after the seal ([`place`]): install port forwards when the lease is known,
//!   check in the server's file which VM has an address, and undo all of it at the end;
//! - tell the worker when the host's addresses change (rule H1);
//! - tell the worker when the host's ports that lead to other VMs change (rule H2);
//! - check whether the VM's end of a datagram socket is still open. That needs a netlink socket that can list
//!   all of the host's sockets, so the worker must not have it (rule H10).
//!
//! On the managed network the monitor keeps root with two capabilities; elsewhere it becomes the user that
//! the worker becomes, without any ([`privilege`]). Landlock and seccomp deny it what its tasks do not need
//! ([`seal`]).
//!
//! The two communicate over one socket, in messages of fixed kinds and bounded size ([`message`]). The worker
//! may report "the VM's address is this", "it has none", "the VM is silent" and "it sends again", and the
//! possible effects were fixed before the fork: the ports on the command line lead to that address if it is
//! in the network's DHCP range and the DHCP server's file has it for this VM's MAC. The monitor acts on
//! reports at most once per [`watch::REPORT_INTERVAL`]. It sends the state of the host, and "settled": the
//! worker withholds the answer with a new lease from the VM until the monitor has prepared the host for it.
//!
//! If one ends, the other ends too: the worker sees the channel close; the monitor waits for its child,
//! cleans up and exits with the child's status. Both hold the lock of the place in the network, so it is free
//! only when neither can send a frame any more; then the next start cleans up.
//!
//! The worker releases the VM's lease when it ends. If it died before, or the server's answer came after the
//! VM was gone, the server still lists a lease; leaving the network releases that ([`Membership::leave`]).
//! This needs no privilege and nothing from the worker but the address that it reported, and ends no other
//! VM's lease.
//!
//! [`Membership::leave`]: crate::host::network::Membership::leave

mod channel;
mod follower;
mod gate;
mod message;
mod place;
mod privilege;
mod seal;
mod watch;

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::Pid;

use crate::host::addresses::AddressWatch;
use crate::host::network::exposed::ExposedWatch;
use crate::lease_follower::LeaseFollower;
use crate::privilege::Identity;
use crate::signals::signalfd::SignalFd;
use crate::sys::process::{Fork, fork, keep_only};
use crate::vm::{PeerWatch, VmSocket};
use channel::Channel;
use follower::Reporter;
pub use gate::Gate;
use watch::{Monitor, Watches};

pub use place::Place;

/// Confines the monitor: its identity, its capabilities, its files and its system calls. `has_place` says
/// whether it serves a managed network; if not, `worker` is the only process that it may signal. `sockets` is the
/// directory of the VM's control socket, which it removes at the end.
///
/// # Errors
/// When a part of the privilege cannot be given up.
pub fn confine(has_place: bool, identity: &Identity, worker: Pid, sockets: Option<&Path>) -> io::Result<()> {
    privilege::reduce(has_place, identity)?;
    seal::seal(has_place, worker, sockets)
}

/// What the monitor holds.
#[derive(Debug)]
pub struct MonitorState {
    /// The place in the managed network, if the VM is on one.
    pub place: Option<Place>,
    /// The host's addresses.
    pub addresses: AddressWatch,
    /// The ports that lead to other VMs.
    pub exposed: ExposedWatch,
    /// The VM's control socket, and the other end of one of the worker's connections.
    pub gate: Option<Gate>,
}

/// Forks. The child returns with its end of the channel; the parent becomes the monitor and exits when the
/// child has ended.
///
/// Signals are blocked before the fork, so that none ends the parent before it has cleaned up.
///
/// # Errors
/// When the process cannot fork.
pub fn fork_worker(
    state: MonitorState,
    vm: &VmSocket,
    identity: &Identity,
) -> io::Result<Box<dyn LeaseFollower>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (monitor_end, worker_end) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let signals = SignalFd::new()?;
    match fork()? {
        Fork::Child => {
            signals.release()?;
            drop(monitor_end);
            let place = state.place.as_ref().map(|place| place.membership.duplicate_lock()).transpose()?;
            // Closes the worker's copies; the ports and the lock of an address stay with the parent.
            drop(state);
            Ok(Box::new(Reporter::new(worker_end, place)))
        }
        Fork::Parent(worker) => {
            drop(worker_end);
            let MonitorState { place, addresses, exposed, gate } = state;
            // Only this process ever has the watch. It is created before the namespace's files become
            // inaccessible.
            let watches = Watches { peer: watch_peer(vm), addresses, exposed, gate };
            let channel = Channel::new(monitor_end);
            let confined = {
                let mut keep = watches.descriptors();
                keep.extend(place.iter().flat_map(Place::descriptors));
                keep.extend([channel.as_fd(), signals.as_fd()]);
                let sockets = watches.gate.as_ref().and_then(Gate::directory);
                keep_only(&keep).and_then(|()| confine(place.is_some(), identity, worker, sockets.as_deref()))
            };
            let status = match confined {
                Ok(()) => Monitor::new(place, watches, channel).watch(worker, signals),
                Err(error) => {
                    // The worker sees the channel close and ends too.
                    tracing::error!(%error, "cannot confine the monitor");
                    drop((place, channel));
                    1
                }
            };
            std::process::exit(status)
        }
    }
}

fn watch_peer(vm: &VmSocket) -> Option<PeerWatch> {
    vm.watch_peer()?
        .inspect_err(|error| {
            tracing::debug!(%error, "the kernel cannot report when the VM closes its socket; watching only the parent process");
        })
        .ok()
}
