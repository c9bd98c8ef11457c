//! Port forwards that follow the VM's lease.

use std::cell::RefCell;
use std::rc::Rc;

use softnet_filter::{Lease, Timestamp};

use super::Interface;
use crate::config::expose::Expose;
use crate::host::forwarder::{Forwarder, Op};

/// Keeps vmnet's forwards in step with the VM's lease; removes them when dropped.
#[derive(Debug)]
pub struct VmnetForwards<I: Interface> {
    interface: Rc<RefCell<I>>,
    forwarder: Forwarder,
}

impl<I: Interface> VmnetForwards<I> {
    /// Forwards of `exposes` on `interface`; none is in place before there is a lease.
    pub fn new(interface: Rc<RefCell<I>>, exposes: Vec<Expose>) -> Self {
        VmnetForwards { interface, forwarder: Forwarder::new(exposes) }
    }

    /// The VM has this lease now, or none.
    pub fn set_lease(&mut self, lease: Option<Lease>, now: Timestamp) {
        self.forwarder.set_address(lease.map(|lease| lease.address));
        self.apply(now);
    }

    /// When to call [`VmnetForwards::apply`] again.
    pub fn deadline(&self) -> Option<Timestamp> {
        self.forwarder.next_deadline()
    }

    /// Executes every step that is due. A failed one delays no other, and is tried again later.
    pub fn apply(&mut self, now: Timestamp) {
        let mut interface = self.interface.borrow_mut();
        let mut failed = false;
        for op in self.forwarder.due(now) {
            let outcome = match &op {
                Op::Install(forward) => interface.add_forward(forward),
                Op::Remove(forward) => interface.remove_forward(forward),
            };
            match (outcome, &op) {
                (Ok(()), Op::Install(forward)) => tracing::info!(%forward, "forwarding"),
                (Ok(()), Op::Remove(forward)) => tracing::info!(%forward, "no longer forwarding"),
                (Err(error), Op::Install(forward) | Op::Remove(forward)) => {
                    tracing::warn!(%forward, %error, "vmnet did not change a port forward; trying again later");
                    failed = true;
                    continue;
                }
            }
            self.forwarder.done(op);
        }
        if failed {
            self.forwarder.failed(now);
        }
    }
}

impl<I: Interface> Drop for VmnetForwards<I> {
    fn drop(&mut self) {
        let mut interface = self.interface.borrow_mut();
        for forward in self.forwarder.installed() {
            if let Err(error) = interface.remove_forward(forward) {
                tracing::warn!(%forward, %error, "vmnet did not remove a port forward; it ends with the interface");
            }
        }
    }
}
