//! The kernel's switches that bridges and TAPs need (kernel doc `networking/ip-sysctl.rst`).
//!
//! `/proc/sys/net` shows the network namespace of the process that reads it, unlike sysfs.

use std::fs;
use std::path::Path;

use softnet_filter::NetType;

use super::files::Error;

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// Sets the switches of the bridge itself. They are removed with it.
pub fn set_up_bridge(name: &str, net_type: NetType) -> Result<(), Error> {
    let conf = Path::new("/proc/sys/net/ipv4/conf").join(name);
    let forwarding = match net_type {
        NetType::Nat => "1",
        NetType::Host => "0",
    };
    set(&conf.join("forwarding"), forwarding)?;
    // A connection from 127.0.0.1 to an exposed port leaves by the bridge; the table's guard chain keeps the VMs from
    // coming in the same way.
    set(&conf.join("route_localnet"), "1")?;
    set(&conf.join("rp_filter"), "1")?;
    set(&conf.join("accept_redirects"), "0")?;
    set(&conf.join("send_redirects"), "0")?;
    silence_ipv6(name);
    Ok(())
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
pub fn set_forwarding(on: bool) -> Result<(), Error> {
    set(Path::new(FORWARDING), if on { "1" } else { "0" })
}

/// Writes the switch if it has another value.
fn set(path: &Path, value: &str) -> Result<(), Error> {
    let present = fs::read_to_string(path);
    if present.is_ok_and(|present| present.trim() == value) {
        return Ok(());
    }
    fs::write(path, value).map_err(Error::new("set", path))
}
