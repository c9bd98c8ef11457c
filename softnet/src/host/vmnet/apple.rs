//! The calls into the framework, by the `vmnet` crate. The only file of the host side that no test here executes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use softnet_filter::NetType;
use vmnet::mode::Mode;
use vmnet::parameters::{Parameter, ParameterKind};
use vmnet::port_forwarding::{AddressFamily, Protocol as VmnetProtocol};
use vmnet::{Batch, Error, Events, Options, Status};

use super::{Interface, Parameters, RawParameters, Refusal, Waker, check_exposes, gateway, host_link, wake};
use crate::config::PortSettings;
use crate::config::expose::Protocol;
use crate::host::HostLink;
use crate::host::forwarder::Forward;
use crate::link::BATCH_FRAMES;
use crate::usage::UsageError;

/// How long the host's bridge may take to get its address after vmnet has started the interface.
const BRIDGE_LIMIT: Duration = Duration::from_secs(5);
/// How often to look for it meanwhile.
const BRIDGE_PAUSE: Duration = Duration::from_millis(10);

/// Starts the interface that `settings` ask for.
///
/// # Errors
/// When vmnet refuses, which on macOS 15 and older it does without root.
pub fn open(settings: &PortSettings, isolated: bool) -> anyhow::Result<HostLink> {
    check_exposes(&settings.expose)?;
    if let Err(error) = crate::bootpd::tune_system(settings.lease_time) {
        tracing::warn!(%error, "cannot set the DHCP server's lease time; many short-lived VMs may exhaust its addresses");
    }
    let (waker, wake) = wake::pair().context("cannot create the socket that wakes the event loop")?;
    let (interface, raw) = Apple::start(settings.net_type, isolated, waker).map_err(not_started)?;
    let parameters = Parameters::try_from(raw)?;
    let gateway = wait_for_bridge(parameters.gateway)?;
    Ok(host_link(interface, parameters, wake, gateway, settings.expose.clone()))
}

fn not_started(error: Error) -> anyhow::Error {
    match error {
        Error::VmnetErrorStatus(Status::NotAuthorized) | Error::VmnetStartInterfaceFailed => {
            UsageError::flag(
                "softnet",
                "vmnet needs root on this macOS; set the SUID bit or allow sudo without a password",
            )
            .into()
        }
        Error::VmnetErrorStatus(Status::SharingServiceBusy) => {
            anyhow::Error::new(error).context("vmnet is busy; Internet Sharing may hold its network")
        }
        other => anyhow::Error::new(other).context("cannot start a vmnet interface"),
    }
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
struct Apple {
    interface: vmnet::Interface,
    reads: Batch,
    writes: Batch,
}

impl fmt::Debug for Apple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Apple").finish_non_exhaustive()
    }
}

impl Apple {
    fn start(net_type: NetType, isolated: bool, waker: Waker) -> Result<(Self, RawParameters), Error> {
        let mode = match net_type {
            NetType::Nat => Mode::Shared(vmnet::mode::Shared::default()),
            NetType::Host => Mode::Host(vmnet::mode::Host::default()),
        };
        let options = Options { enable_isolation: Some(isolated), ..Options::default() };
        let mut interface = vmnet::Interface::new(mode, options)?;
        let raw = raw_parameters(&interface);
        let waker = Arc::new(waker);
        let first = Arc::clone(&waker);
        interface.set_event_callback(Events::PACKETS_AVAILABLE, move |_, _| waker.wake())?;
        // Frames that arrived before the callback was set have no wake-up of their own.
        first.wake();
        let (reads, writes) = (Batch::preallocate(BATCH_FRAMES), Batch::preallocate(BATCH_FRAMES));
        Ok((Apple { interface, reads, writes }, raw))
    }
}

fn raw_parameters(interface: &vmnet::Interface) -> RawParameters {
    let parameters = interface.parameters();
    let mut raw = RawParameters::default();
    for kind in [
        ParameterKind::StartAddress,
        ParameterKind::SubnetMask,
        ParameterKind::MTU,
        ParameterKind::MaxPacketSize,
        ParameterKind::ReadMaxPackets,
        ParameterKind::WriteMaxPackets,
    ] {
        match parameters.get(kind) {
            Some(Parameter::StartAddress(value)) => raw.start_address = Some(value),
            Some(Parameter::SubnetMask(value)) => raw.subnet_mask = Some(value),
            Some(Parameter::MTU(value)) => raw.mtu = Some(value),
            Some(Parameter::MaxPacketSize(value)) => raw.max_packet_size = Some(value),
            Some(Parameter::ReadMaxPackets(value)) => raw.read_max_packets = Some(value),
            Some(Parameter::WriteMaxPackets(value)) => raw.write_max_packets = Some(value),
            _ => {}
        }
    }
    raw
}

impl Interface for Apple {
    fn read(&mut self, buffers: &mut [&mut [u8]], lengths: &mut [usize]) -> Result<usize, Refusal> {
        let count = match self.interface.read_batch(&mut self.reads, buffers) {
            Err(Error::VmnetReadNothing) => 0,
            other => other.map_err(refusal)?,
        };
        for (length, size) in lengths.iter_mut().zip(self.reads.packet_sizes().take(count)) {
            *length = size;
        }
        Ok(count)
    }

    fn write(&mut self, frames: &[&[u8]]) -> Result<usize, Refusal> {
        self.interface.write_batch(&mut self.writes, frames).map_err(refusal)
    }

    fn add_forward(&mut self, forward: &Forward) -> Result<(), Refusal> {
        let Forward { expose, to } = forward;
        self.interface
            .port_forwarding_rule_add(
                AddressFamily::Ipv4,
                protocol(expose.protocol),
                expose.external.get(),
                IpAddr::V4(*to),
                expose.internal.get(),
            )
            .map_err(refusal)
    }

    fn remove_forward(&mut self, forward: &Forward) -> Result<(), Refusal> {
        let Forward { expose, .. } = forward;
        self.interface
            .port_forwarding_rule_remove(
                AddressFamily::Ipv4,
                protocol(expose.protocol),
                expose.external.get(),
            )
            .map_err(refusal)
    }
}

impl Drop for Apple {
    /// Clears the callback first, then stops the interface. A callback that is still running owns its socket.
    fn drop(&mut self) {
        let cleared = self.interface.clear_event_callback();
        let stopped = self.interface.finalize();
        if let Err(error) = cleared.and(stopped) {
            tracing::warn!(%error, "vmnet did not stop the interface cleanly");
        }
    }
}

fn protocol(protocol: Protocol) -> VmnetProtocol {
    match protocol {
        Protocol::Tcp => VmnetProtocol::Tcp,
        Protocol::Udp => VmnetProtocol::Udp,
    }
}

fn refusal(error: Error) -> Refusal {
    match error {
        Error::VmnetErrorStatus(Status::BufferExhausted | Status::MemFailure) => Refusal::Exhausted,
        Error::VmnetErrorStatus(Status::PacketTooBig | Status::InvalidArgument | Status::TooManyPackets) => {
            Refusal::Argument(error.to_string())
        }
        other => Refusal::Broken(other.to_string()),
    }
}
