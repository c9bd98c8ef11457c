//! The kernel's switches that bridges and TAPs need (kernel doc `networking/ip-sysctl.rst`).
//!
//! `/proc/sys/net` shows the network namespace of the process that reads it, unlike sysfs.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use softnet_filter::NetType;

use super::files::Error;

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// A switch that a network cannot do without could not be set.
#[derive(Debug, thiserror::Error)]
pub enum SwitchError {
    /// Nothing may be written there.
    #[error(
        "cannot set {switch}={value}, because /proc/sys may not be written here, as in most containers; start the container with \
         `--sysctl {cure}`"
    )]
    ReadOnly {
        /// The switch, as sysctl(8) names it.
        switch: String,
        /// What it has to be.
        value: &'static str,
        /// The setting that makes it so for the interfaces that are created later.
        cure: &'static str,
    },
    /// Another failure.
    #[error(transparent)]
    File(#[from] Error),
}

/// Sets the switches of the bridge itself. They are removed with it. Those that a network can do without are left as
/// they are where nothing may be written, as in most containers.
///
/// # Errors
/// If the bridge cannot be made to forward, or not to forward.
pub fn set_up_bridge(name: &str, net_type: NetType) -> Result<(), SwitchError> {
    let (forwarding, cure) = match net_type {
        NetType::Nat => ("1", "net.ipv4.ip_forward=1"),
        NetType::Host => ("0", "net.ipv4.conf.default.forwarding=0"),
    };
    set_needed(&format!("net.ipv4.conf.{name}.forwarding"), forwarding, cure)?;
    let conf = Path::new("/proc/sys/net/ipv4/conf").join(name);
    // A connection from 127.0.0.1 to an exposed port leaves by the bridge; the table's guard chain keeps the VMs from
    // coming in the same way.
    if let Err(error) = set(&conf.join("route_localnet"), "1") {
        tracing::warn!(%error, "connections from 127.0.0.1 of this host do not reach exposed ports; use another address of it");
    }
    for (switch, value) in [("rp_filter", "1"), ("accept_redirects", "0"), ("send_redirects", "0")] {
        if let Err(error) = set(&conf.join(switch), value) {
            // The filter and the guard check the VMs' sources in any case, and no router is behind the bridge.
            tracing::debug!(%error, "a switch of the bridge stays as it is");
        }
    }
    silence_ipv6(name);
    Ok(())
}

fn set_needed(switch: &str, value: &'static str, cure: &'static str) -> Result<(), SwitchError> {
    let path = Path::new("/proc/sys").join(switch.replace('.', "/"));
    set(&path, value).map_err(|error| match error.kind() {
        ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied => {
            SwitchError::ReadOnly { switch: switch.to_owned(), value, cure }
        }
        _ => error.into(),
    })
}

/// Keeps the host from speaking IPv6 on an interface of Softnet's: the filter drops all of it. A kernel
/// without IPv6 has no such switch, and a container may not be allowed to set it; both are harmless.
pub fn silence_ipv6(name: &str) {
    let switch = Path::new("/proc/sys/net/ipv6/conf").join(name).join("disable_ipv6");
    if let Err(error) = set(&switch, "1") {
        tracing::debug!(%error, "cannot turn IPv6 off on an interface that passes none");
    }
}

/// Whether the host forwards IPv4 packets.
pub fn forwarding() -> Result<bool, Error> {
    let path = Path::new(FORWARDING);
    let text = fs::read_to_string(path).map_err(Error::new("read", path))?;
    Ok(text.trim() != "0")
}

/// Turns forwarding on or off for the whole host. Writing resets other switches (ip-sysctl.rst), so read it
/// first.
pub fn set_forwarding(on: bool) -> Result<(), SwitchError> {
    let (value, cure) = if on { ("1", "net.ipv4.ip_forward=1") } else { ("0", "net.ipv4.ip_forward=0") };
    set_needed("net.ipv4.ip_forward", value, cure)
}

/// Writes the switch if it has another value.
fn set(path: &Path, value: &str) -> Result<(), Error> {
    let present = fs::read_to_string(path);
    if present.is_ok_and(|present| present.trim() == value) {
        return Ok(());
    }
    fs::write(path, value).map_err(Error::new("set", path))
}
