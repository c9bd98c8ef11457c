//! The monitor: the first process of every Softnet on Linux, which does what the process with the frames cannot or must not.
//!
//! # Theory of operation
//! [`fork_worker`] forks. The child goes on as the *worker*: it parses frames and will be sealed. The parent stays as the
//! *monitor*: it closes every descriptor that it does not need, the VM's socket and the link to the host among them, and
//! never sees a frame. It has four tasks, and the first is the managed network's only:
//!
//! - what needs privilege late ([`place`]): port forwards when the lease is known, a word with the server's file about whose
//!   an address is, and taking all of it back at the end;
//! - the host's addresses, which it tells the worker as they come and go (rule H1);
//! - the ports of the host that lead to other VMs, likewise (rule H2);
//! - the question whether the VM's end of a datagram socket is still open. The kernel answers it through a socket that can
//!   list all of the host's sockets, so the worker must not have it (rule H10).
//!
//! On the managed network the monitor keeps root with two capabilities; elsewhere it becomes the user that the worker becomes,
//! without any ([`privilege`]). Landlock and seccomp take from it what its tasks do not take ([`seal`]).
//!
//! The two talk over one socket, in messages of fixed kinds and bounded size ([`message`]). What the worker may say is "the
//! VM's address is this", "it has none", "the VM is silent" and "it speaks again", and what that can cause was decided before
//! the fork: the ports on the command line lead to that address if the network hands it out and the DHCP server's file gives
//! it to this VM's MAC. Messages are acted upon at most every [`watch::REPORT_INTERVAL`]. What the monitor says is the state of the host
//! and "settled": the worker keeps the answer with a new lease from the VM until the monitor has prepared the host for it.
//!
//! Either's death is the other's end: the worker sees the channel close, the monitor waits for its child, cleans up and
//! ends with the child's status. Both hold the lock of the place in the network, so it is free only when neither can send a
//! frame any more; then the next start cleans up.
//!
//! The worker gives the VM's lease back at its end. What the server has still noted for the VM after that, because the worker
//! died before or the server's answer found no VM any more, leaving the network gives back ([`Membership::leave`]). That takes
//! no privilege and nothing of the worker's but its word for the address, and ends no other VM's lease.
//!
//! [`Membership::leave`]: crate::host::network::Membership::leave

mod channel;
mod follower;
mod message;
mod place;
mod privilege;
mod seal;
mod watch;

use std::io;
use std::os::fd::AsFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::Pid;

use crate::host::addresses::AddressWatch;
use crate::host::network::exposed::ExposedWatch;
use crate::lease_follower::LeaseFollower;
use crate::privilege::Identity;
use crate::sys::process::{Fork, fork, keep_only};
use crate::sys::signalfd::SignalFd;
use crate::vm::{PeerWatch, VmSocket};
use channel::Channel;
use follower::Reporter;
use watch::{Monitor, Watches};

pub use place::Place;

/// Confines the monitor: its identity, its capabilities, its files and its system calls. `has_place` says whether it acts for
/// a managed network; `worker` is the one process that it signals where it does not.
///
/// # Errors
/// When something cannot be given up.
pub fn confine(has_place: bool, identity: &Identity, worker: Pid) -> io::Result<()> {
    privilege::reduce(has_place, identity)?;
    seal::seal(has_place, worker)
}

/// What the monitor keeps.
#[derive(Debug)]
pub struct MonitorState {
    /// The place in the managed network, if the VM is on one.
    pub place: Option<Place>,
    /// The host's addresses.
    pub addresses: AddressWatch,
    /// The ports that lead to other VMs.
    pub exposed: ExposedWatch,
}

/// Forks. The child returns, with the means to report and to hear; the parent stays behind as the monitor and ends the
/// process when the child has ended.
///
/// Signals are held from before the fork, so that none ends the parent and leaves its work undone.
///
/// # Errors
/// When the process cannot be split.
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
            let MonitorState { place, addresses, exposed } = state;
            // The only process that ever has it; made while its namespace may still be entered.
            let watches = Watches { peer: watch_peer(vm), addresses, exposed };
            let channel = Channel::new(monitor_end);
            let confined = {
                let mut keep = watches.descriptors();
                keep.extend(place.iter().flat_map(Place::descriptors));
                keep.extend([channel.as_fd(), signals.as_fd()]);
                keep_only(&keep).and_then(|()| confine(place.is_some(), identity, worker))
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
