//! Opens the host side of macOS: starts the interface, and implements [`Interface`] by the framework's calls
//! ([`super::bindings`]). With them, the only file of the host side that no test here executes.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::geteuid;
use softnet_filter::NetType;

use super::bindings::{Mode, Session};
use super::status::{Failure, not_started};
use super::{Interface, Parameters, RawParameters, Refusal, Waker, check_exposes, gateway, host_link, wake};
use crate::config::PortSettings;
use crate::config::expose::Protocol;
use crate::host::HostLink;
use crate::host::addresses::{self, ListedAddresses};
use crate::host::forwarder::Forward;

/// How long the host's bridge may take to get its address after vmnet has started the interface.
const BRIDGE_LIMIT: Duration = Duration::from_secs(5);
/// How often to look for it meanwhile.
const BRIDGE_PAUSE: Duration = Duration::from_millis(10);

/// Starts the interface that `settings` ask for.
///
/// # Errors
/// When vmnet refuses, which it does without root on macOS 15 and older, and without root and entitlement on newer ones.
pub fn open(settings: &PortSettings, isolated: bool) -> anyhow::Result<HostLink> {
    check_exposes(&settings.expose)?;
    let tuned = crate::bootpd::tune_system(settings.lease_time).inspect_err(|error| {
        tracing::warn!(%error, "cannot set the DHCP server's lease time; many short-lived VMs may exhaust its addresses");
    });
    let (waker, wake) = wake::pair().context("cannot create the socket that wakes the event loop")?;
    let (interface, raw) = Apple::start(settings.net_type, isolated, waker).map_err(|failure| {
        let darwin = rustix::system::uname().release().to_string_lossy().into_owned();
        not_started(failure, geteuid().is_root(), &darwin)
    })?;
    let parameters = Parameters::try_from(raw)?;
    let gateway = wait_for_bridge(parameters.gateway)?;
    // Subscribed first and listed then, so that no change between the two is missed.
    let changes = addresses::routing_messages().context("cannot watch the host's addresses")?;
    let addresses = ListedAddresses::new(changes, addresses::is_address_change, parameters.gateway)
        .context("cannot list the host's addresses")?;
    Ok(host_link(interface, parameters, wake, gateway, settings.expose.clone(), addresses, tuned.is_ok()))
}

/// Waits for the host's bridge.
fn wait_for_bridge(address: Ipv4Addr) -> anyhow::Result<(String, [u8; 6])> {
    let started = Instant::now();
    loop {
        if let Some(gateway) =
            gateway::gateway_interface(address).context("cannot list the host's interfaces")?
        {
            return Ok(gateway);
        }
        anyhow::ensure!(
            started.elapsed() < BRIDGE_LIMIT,
            "no interface of this host has vmnet's address {address}, so the gateway is unknown"
        );
        std::thread::sleep(BRIDGE_PAUSE);
    }
}

/// A started interface.
#[derive(Debug)]
struct Apple {
    session: Session,
    waker: Arc<Waker>,
}

impl Apple {
    fn start(net_type: NetType, isolated: bool, waker: Waker) -> Result<(Self, RawParameters), Failure> {
        let mode = match net_type {
            NetType::Nat => Mode::Shared,
            NetType::Host => Mode::Host,
        };
        let (mut session, raw) = Session::start(mode, isolated)?;
        let waker = Arc::new(waker);
        let callback = Arc::clone(&waker);
        session.set_event_callback(move || callback.wake())?;
        // Frames that arrived before the callback was set may have no wake-up of their own.
        waker.wake_once();
        Ok((Apple { session, waker }, raw))
    }
}

impl Drop for Apple {
    /// Lets go of a callback that waits, before the session stops the interface.
    fn drop(&mut self) {
        self.waker.close();
    }
}

impl Interface for Apple {
    fn read(&mut self, buffers: &mut [&mut [u8]], lengths: &mut [usize]) -> Result<usize, Refusal> {
        Ok(self.session.read(buffers, lengths)?)
    }

    fn write(&mut self, frames: &[&[u8]]) -> Result<usize, Refusal> {
        Ok(self.session.write(frames)?)
    }

    fn add_forward(&mut self, forward: &Forward) -> Result<(), Refusal> {
        let Forward { expose, to } = forward;
        let (external, internal) = (expose.external.get(), expose.internal.get());
        Ok(self.session.add_forward(number(expose.protocol), external, *to, internal)?)
    }

    fn remove_forward(&mut self, forward: &Forward) -> Result<(), Refusal> {
        let Forward { expose, .. } = forward;
        Ok(self.session.remove_forward(number(expose.protocol), expose.external.get())?)
    }
}

/// The protocol's number in the IP header.
fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    }
}
