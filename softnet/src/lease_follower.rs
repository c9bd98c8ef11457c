//! The interface between the event loop and the code that acts on the VM's lease outside the filter.

use std::io;
use std::net::Ipv4Addr;

use mio::{Registry, Token};
use softnet_filter::{Lease, Timestamp};

use crate::config::expose::Exposed;
use crate::needs::Needs;

/// Why Softnet has to end: the follower ended or failed, or reported something that the filter cannot hold.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct Error(pub String);

/// What a follower has learnt other than from frames.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Notice {
    /// All addresses of the host but the gateway's (rule H1). They replace those named before.
    HostAddresses(Vec<Ipv4Addr>),
    /// All ports of the host that lead to other VMs (rule H2). They replace those named before.
    Exposed(Vec<Exposed>),
    /// The host is ready for the VM at this address: no state of its former holder is left (rules H3 and
    /// H10).
    Settled(Ipv4Addr),
    /// The VM's end of its socket is closed.
    PeerGone,
}

/// Acts on the VM's lease outside the filter: port forwards follow it.
pub trait LeaseFollower: std::fmt::Debug {
    /// Declares the descriptors and system calls that the follower needs once the process is sealed.
    fn needs(&self, needs: &mut Needs);
    /// Lets `registry` wake the event loop under `token`, if the follower needs to be woken.
    fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()>;
    /// The VM has this lease now, or none.
    fn lease_changed(&mut self, lease: Option<Lease>, now: Timestamp);
    /// The poller woke for the follower, or its deadline has come.
    ///
    /// # Errors
    /// When Softnet has to end.
    fn attend(&mut self, now: Timestamp) -> Result<(), Error>;
    /// When to call [`LeaseFollower::attend`] at the latest.
    fn deadline(&self) -> Option<Timestamp>;

    /// The next notice since the last call; the caller calls until it gets `None`, each time after
    /// [`LeaseFollower::attend`].
    ///
    /// # Errors
    /// When Softnet has to end.
    fn notice(&mut self) -> Result<Option<Notice>, Error> {
        Ok(None)
    }

    /// Whether a new lease has to wait for [`Notice::Settled`] before the VM gets the server's answer.
    fn settles(&self) -> bool {
        false
    }

    /// Whether it wants to know when the VM falls silent and when it sends again:
    /// [`LeaseFollower::vm_is_quiet`].
    fn watches_the_vm(&self) -> bool {
        false
    }

    /// The VM has been silent for long, or sends again.
    fn vm_is_quiet(&mut self, _quiet: bool, _now: Timestamp) {}
}

/// Follows nothing.
#[derive(Debug)]
pub struct NoFollower;

impl LeaseFollower for NoFollower {
    fn needs(&self, _needs: &mut Needs) {}
    fn register(&mut self, _registry: &Registry, _token: Token) -> io::Result<()> {
        Ok(())
    }
    fn lease_changed(&mut self, _lease: Option<Lease>, _now: Timestamp) {}
    fn attend(&mut self, _now: Timestamp) -> Result<(), Error> {
        Ok(())
    }
    fn deadline(&self) -> Option<Timestamp> {
        None
    }
}
