//! The VM as its controllers see it: the policy in force, the counters, the lease.

use serde_json::{Value, json};
use softnet_filter::{Action, DirectionCounters, Entry, Policy, PolicyError, Port, Rule, Timestamp};

use super::Relay;
use super::wake::Wake;
use crate::control::{Connection, Control, Listing, NewPolicy, SetError, Vm};
use crate::needs::Needs;

/// What controllers have set, and where they speak.
#[derive(Debug)]
pub struct Controllers {
    /// By number, as in [`Wake::Control`]. `None` where none was opened, or the controller has gone.
    connections: [Option<Connection>; Wake::CONTROLS],
    control: Control,
    listing: Listing,
}

impl Controllers {
    /// Those that speak over `connections` about a VM with this policy.
    pub fn new(connections: [Option<Connection>; Wake::CONTROLS], policy: &Policy) -> Self {
        Controllers { connections, control: Control::default(), listing: listing(policy) }
    }

    /// Adds the descriptors and system calls that they need.
    pub fn needs(&self, needs: &mut Needs) {
        self.connections.iter().flatten().for_each(|connection| connection.needs(needs));
    }

    /// There may be a request, or room for an answer.
    pub fn note(&mut self, number: usize, readable: bool) {
        if let Some(connection) = self.connections.get_mut(number).and_then(Option::as_mut)
            && readable
        {
            connection.note_readable();
        }
    }

    /// Whether a request waits.
    pub fn have_work(&self) -> bool {
        self.connections.iter().flatten().any(Connection::has_work)
    }
}

impl Relay {
    /// Lets `controllers` speak about the VM.
    ///
    /// # Errors
    /// When the poller cannot watch a connection.
    pub fn set_controllers(&mut self, mut controllers: Controllers) -> std::io::Result<()> {
        for (number, connection) in controllers.connections.iter_mut().enumerate() {
            if let Some(connection) = connection {
                connection.register(self.sources.registry(), Wake::Control(number).token())?;
            }
        }
        if controllers.connections.iter().any(Option::is_some) {
            // A policy with directions that comes later knows what lives (P6).
            self.port.record_flows();
        }
        self.controllers = Some(controllers);
        Ok(())
    }

    /// Carries out at most one request of each controller.
    pub(super) fn attend_controllers(&mut self, now: Timestamp) {
        let Some(controllers) = &mut self.controllers else { return };
        let Controllers { connections, control, listing } = controllers;
        for slot in connections {
            let Some(connection) = slot else { continue };
            control.turn(connection, &mut Controlled { port: &mut self.port, listing, now });
            if connection.is_over()
                && let Some(connection) = slot.take()
            {
                connection.deregister(self.sources.registry());
            }
        }
    }
}

/// The VM during one request.
struct Controlled<'a> {
    port: &'a mut Port,
    listing: &'a mut Listing,
    now: Timestamp,
}

impl Vm for Controlled<'_> {
    type Policy = Policy;

    fn policy(&self) -> Listing {
        self.listing.clone()
    }

    fn prepare(&self, new: &NewPolicy) -> Result<(Policy, Listing), SetError> {
        let mut rules = Vec::with_capacity(new.allow.len() + new.block.len());
        for (list, targets, action) in
            [("allow", &new.allow, Action::Allow), ("block", &new.block, Action::Block)]
        {
            for (index, target) in targets.iter().enumerate() {
                let entry = target.parse::<Entry>().map_err(|error| SetError::Entry {
                    list,
                    index,
                    reason: error.to_string(),
                })?;
                rules.push(Rule { entry, action });
            }
        }
        let policy = Policy::new(rules);
        if policy.bridge_isolation() != self.port.policy().bridge_isolation() {
            return Err(SetError::Isolation);
        }
        let listing = listing(&policy);
        Ok((policy, listing))
    }

    fn apply(&mut self, policy: Policy, listing: &Listing) -> Result<(), SetError> {
        self.port.set_policy(policy, self.now).map_err(|error| match error {
            PolicyError::Isolation => SetError::Isolation,
            error => SetError::Filter(error.to_string()),
        })?;
        *self.listing = listing.clone();
        Ok(())
    }

    fn statistics(&self) -> Value {
        let counters = self.port.counters();
        json!({
            "fromVm": direction(&counters.from_vm),
            "toVm": direction(&counters.from_host),
            "answers": counters.answers,
        })
    }

    fn lease(&self) -> Value {
        let Some(lease) = self.port.lease() else { return Value::Null };
        let left = lease.expires.map(|expires| expires.saturating_since(self.now).as_secs());
        let resolvers: Vec<_> = lease.resolvers.iter().collect();
        json!({"address": lease.address, "server": lease.server, "secondsLeft": left, "resolvers": resolvers})
    }
}

fn listing(policy: &Policy) -> Listing {
    Listing { allow: policy.list(Action::Allow), block: policy.list(Action::Block) }
}

fn direction(counters: &DirectionCounters) -> Value {
    let drops: serde_json::Map<String, Value> =
        counters.drops().map(|(reason, count)| (reason.name().to_owned(), count.into())).collect();
    json!({
        "forwardedFrames": counters.forwarded_frames(),
        "forwardedBytes": counters.forwarded_bytes(),
        "droppedFrames": counters.dropped_total(),
        "drops": drops,
    })
}
