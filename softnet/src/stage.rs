//! The life of a filtering process as types: a checked configuration is opened with the privilege that the
//! process has, sealed, and run without any. The compiler enforces the order, and nothing after the seal
//! needs what the seal took away.

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::time::Duration;

use softnet_filter::{Action, Gateway, NetType, Policy, Port, PortConfig, Resolvers, Target};

use crate::attach::{self, Request};
use crate::clock;
use crate::config::{Config, PortSettings};
use crate::host::{HostLink, Mode};
use crate::link::ETHERNET_HEADER;
use crate::observe::{self, DropLog};
use crate::parent::ParentWatch;
use crate::privilege::{self, Identity, Start, System};
use crate::relay::{Controllers, Ended, Relay, RelayError};
use crate::sandbox::{self, SealError};
use crate::surroundings;
use crate::usage::UsageError;

/// All links, timers and signal handlers are set up; privilege is still there.
#[derive(Debug)]
pub struct Opened {
    relay: Relay,
    identity: Identity,
    require_sandbox: bool,
    ready: Option<(OwnedFd, String)>,
    release: bool,
    stats: bool,
    mute_limit: Option<Duration>,
}

impl Opened {
    /// Opens both sides of `config` and puts the port between them.
    ///
    /// # Errors
    /// A [`crate::usage::UsageError`] for what the user can fix on the command line; any other error with its
    /// context.
    pub fn open(config: Config) -> anyhow::Result<Self> {
        let identity = choose_identity(&config.port)?;
        let parent = ParentWatch::new()?;
        let policy = config.port.policy();
        warn_of_ipv6(&policy);
        let request = Request {
            settings: &config.port,
            vm_mac: config.vm_mac,
            isolated: policy.bridge_isolation(),
            vm: &config.vm,
            identity: &identity,
        };
        let HostLink { link, uplink, mode, follower, files_by_mac, leases, host_addresses, exposed, control } =
            attach::open(&request)?;
        let mut port = Port::new(PortConfig {
            vm_mac: config.vm_mac,
            gateway: Gateway { mac: uplink.mac, address: uplink.address, subnet: uplink.subnet },
            dhcp_server: uplink.dhcp_server,
            net_type: config.port.net_type,
            policy: policy.clone(),
            mtu: uplink.mtu,
            server_files_by_mac: files_by_mac,
            host_addresses: Vec::new(),
            on_block: config.port.on_block,
            published: surroundings::published(&config.port.expose),
            seed: random_number(),
        })?;
        let now = clock::now();
        surroundings::set_host_addresses(&mut port, &host_addresses, now)?;
        surroundings::set_exposed(&mut port, &exposed, now);
        if let Some(address) = config.port.client.address {
            let resolvers = resolvers(&config.port, mode, uplink.address);
            port.give(address, resolvers, clock::now())
                .map_err(|error| UsageError::new("--vm-address", address.to_string(), error))?;
        } else if let Some(file) = leases {
            let (server, subnet) = (uplink.address, uplink.subnet);
            let taken = file.take_over(&mut port, config.vm_mac, server, subnet, clock::now());
            if let Err(error) = taken {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(
                    error,
                    "cannot take over the VM's lease; a VM that resumes has to request one"
                );
            }
        }
        let ready_line = serde_json::json!({
            "mode": mode.name(),
            "gateway": uplink.address,
            "subnet": uplink.subnet.trunc().to_string(),
            "mtu": uplink.mtu,
            "interface": uplink.interface,
        });
        let max_frame = usize::from(uplink.mtu) + ETHERNET_HEADER;
        let mut relay = Relay::new(config.vm.open()?, link, port, follower, parent, max_frame)?;
        relay.set_limits(config.port.limit_up, config.port.limit_down);
        relay.set_controllers(Controllers::new([config.port.control, control], &policy))?;
        if let Some(log) = DropLog::if_wanted() {
            relay.set_observer(log);
        }
        tracing::info!(mode = mode.name(), gateway = %uplink.address, interface = %uplink.interface, "opened");
        Ok(Opened {
            relay,
            identity,
            require_sandbox: config.port.require_sandbox,
            ready: config.port.ready.map(|fd| (fd, ready_line.to_string())),
            release: config.port.release,
            stats: config.port.stats,
            mute_limit: config.mute_limit,
        })
    }

    /// Gives up all privilege.
    ///
    /// # Errors
    /// When a part of the privilege cannot be given up; the process must then end.
    pub fn seal(self) -> Result<Sealed, SealError> {
        let mut needs = self.relay.needs();
        if let Some((ready, _)) = &self.ready {
            needs.descriptor(ready);
        }
        self.identity.log();
        // The first use of a clock makes lookups that a sealed process is not allowed to make.
        clock::now();
        sandbox::seal(&needs, &self.identity, self.require_sandbox)?;
        Ok(Sealed(self))
    }
}

/// The resolvers of a VM with a fixed address: those that the DHCP server of the managed network would give it.
fn resolvers(settings: &PortSettings, mode: Mode, gateway: std::net::Ipv4Addr) -> Resolvers {
    let is_served = mode == Mode::Network && settings.net_type == NetType::Nat;
    match &settings.client.resolvers[..] {
        [] if is_served => [gateway].into_iter().collect(),
        resolvers => resolvers.iter().copied().collect(),
    }
}

/// A number that nobody can guess, from the system's source of randomness.
fn random_number() -> u64 {
    // The keys of the standard library's hash tables are random.
    RandomState::new().hash_one(())
}

/// Says which entries open nothing, because all IPv6 is dropped (rule L2).
fn warn_of_ipv6(policy: &Policy) {
    let allowed = policy.rules().iter().filter(|rule| rule.action == Action::Allow);
    for entry in allowed.map(|rule| rule.entry).filter(|entry| matches!(entry.target, Target::Ipv6(_))) {
        tracing::warn!(%entry, "an entry of --allow opens nothing: all IPv6 of the VM is dropped");
    }
}

/// Chooses the user to become, after checking that the caller may have the host side that it asks for.
fn choose_identity(settings: &PortSettings) -> anyhow::Result<Identity> {
    let start = Start::of_this_process()?;
    let identity = Identity::choose(settings.user.as_deref(), settings.group.as_deref(), &start, &System)?;
    privilege::prepare_elevated(&start, settings)?;
    Ok(identity)
}

/// No privilege is left; frames may be parsed.
#[derive(Debug)]
pub struct Sealed(Opened);

impl Sealed {
    /// Reports that frames flow, carries them until there is a reason to end, and releases the lease.
    ///
    /// # Errors
    /// When a link breaks.
    pub fn run(self) -> Result<Ended, RelayError> {
        let Opened { mut relay, ready, release, stats, mute_limit, .. } = self.0;
        if let Some((fd, line)) = ready {
            // A failed write is ignored: the launcher may have stopped reading.
            let _ = writeln!(File::from(fd), "{line}");
        }
        if let Some(limit) = mute_limit {
            relay.warn_if_mute(limit);
        }
        let outcome = relay.run();
        if release {
            relay.release_lease();
        }
        if stats {
            observe::print_counters(relay.counters());
        }
        outcome
    }
}
