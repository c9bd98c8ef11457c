//! The privileged parent: what must be done with privilege after the worker has given up its own.
//!
//! # Theory of operation
//! On the managed network some work needs privilege late: port forwards when the lease is known, and taking all of it back
//! at the end. So [`entrust`] forks. The child goes on as the *worker*: it parses frames and will be sealed. The parent
//! stays as the *monitor*: it keeps root with two capabilities ([`privilege`]), the place in the network ([`Membership`]) and the reserved ports, closes every
//! other descriptor, and never sees a frame.
//!
//! What the worker may say is one fixed-size message, "the VM's address is this" or "it has none" ([`message`]), and what
//! that can cause was decided before the fork: the ports on the command line lead to that address if it is one that the
//! network hands out and nobody else holds. A worker that was taken over can point this VM's own forwards at a free address
//! of this network, and no more. Messages are acted upon at most every [`guard::PACE`].
//!
//! Either's death is the other's end: the worker sees the channel close, the monitor waits for its child, cleans up and
//! ends with the child's status. If both are killed, their locks are free, and the next start cleans up.
//!
//! The worker gives the VM's lease back at its end. What the server has still noted for the VM after that, because the worker
//! died before or the server's answer found no VM any more, leaving the network gives back ([`Membership::leave`]). That takes
//! no privilege and nothing of the worker's but its word for the address, and ends no other VM's lease.

mod follower;
mod guard;
mod message;
mod privilege;

use std::io;
use std::os::fd::AsFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::host::expose::Expose;
use crate::host::network::Membership;
use crate::host::reservation::Reservation;
use crate::relay::LeaseFollower;
use crate::sys::process::{Fork, fork, keep_only};
use crate::sys::signalfd::SignalFd;
use follower::Reporter;
use guard::Guard;

/// What the monitor keeps.
#[derive(Debug)]
pub struct Custody {
    /// The place in the managed network.
    pub membership: Membership,
    /// The ports that lead to the VM.
    pub exposes: Vec<Expose>,
    /// The sockets that keep those ports from others.
    pub reservations: Vec<Reservation>,
}

/// Forks. The child returns, with the means to report the lease; the parent stays behind as the monitor and ends the
/// process when the child has ended.
///
/// Signals are held from before the fork, so that none ends the parent and leaves its work undone.
///
/// # Errors
/// When the process cannot be split.
pub fn entrust(custody: Custody) -> io::Result<Box<dyn LeaseFollower>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (monitor_end, worker_end) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let signals = SignalFd::new()?;
    match fork()? {
        Fork::Child => {
            signals.release()?;
            drop(monitor_end);
            // Closes the worker's copies; the locks and ports stay with the parent.
            drop(custody);
            Ok(Box::new(Reporter::new(worker_end)))
        }
        Fork::Parent(worker) => {
            let mut keep = custody.membership.descriptors();
            keep.extend(custody.reservations.iter().map(AsFd::as_fd));
            keep.extend([monitor_end.as_fd(), signals.as_fd()]);
            let status = match privilege::reduce().and_then(|()| keep_only(&keep)) {
                Ok(()) => Guard::new(custody, monitor_end).watch(worker, signals),
                Err(error) => {
                    // The worker sees the channel close and ends too.
                    tracing::error!(%error, "cannot give up what belongs to the worker");
                    drop(custody);
                    1
                }
            };
            std::process::exit(status)
        }
    }
}
