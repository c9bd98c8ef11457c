//! What follows the VM's lease behind vmnet, and what is learnt of the host meanwhile.

use std::io;
use std::net::Ipv4Addr;

use mio::{Registry, Token};
use softnet_filter::{Lease, Timestamp};

use super::{Interface, VmnetForwards};
use crate::host::addresses::ListedAddresses;
use crate::lease_follower::{Error, LeaseFollower, Notice};
use crate::needs::Needs;

/// Makes the forwards follow the lease, and reports the host's addresses as they come and go (rule H1).
#[derive(Debug)]
pub struct VmnetFollower<I: Interface> {
    forwards: VmnetForwards<I>,
    addresses: ListedAddresses,
    /// The addresses that are still to be reported.
    changed: Option<Vec<Ipv4Addr>>,
}

impl<I: Interface> VmnetFollower<I> {
    /// A follower of both.
    pub fn new(forwards: VmnetForwards<I>, addresses: ListedAddresses) -> Self {
        VmnetFollower { forwards, addresses, changed: None }
    }
}

impl<I: Interface> LeaseFollower for VmnetFollower<I> {
    fn needs(&self, needs: &mut Needs) {
        self.addresses.needs(needs);
    }

    fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        self.addresses.register(registry, token)
    }

    fn lease_changed(&mut self, lease: Option<Lease>, now: Timestamp) {
        self.forwards.set_lease(lease, now);
    }

    fn attend(&mut self, now: Timestamp) -> Result<(), Error> {
        self.forwards.apply(now);
        if let Some(addresses) = self.addresses.changed(now) {
            self.changed = Some(addresses.to_vec());
        }
        Ok(())
    }

    fn deadline(&self) -> Option<Timestamp> {
        self.forwards.deadline().into_iter().chain(self.addresses.deadline()).min()
    }

    fn notice(&mut self) -> Result<Option<Notice>, Error> {
        Ok(self.changed.take().map(Notice::HostAddresses))
    }
}
