//! What a user may request whose privilege comes only from the program's set-user-ID bit: the administrator's
//! list in `/etc/softnet/bridges.conf`, similar to that of QEMU's bridge helper.
//!
//! ```text
//! # one rule per line; a deny takes precedence over every allow, and the default is deny
//! allow virbr0
//! deny  br-office
//! allow all
//! ```
//!
//! A name is the name of a bridge (`--bridge`), a TAP (`--tap`) or a network that Softnet manages
//! (`--network`, `--subnet`). The default network with its default subnet needs no rule, but can be denied.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::str::FromStr;

use softnet_filter::NetType;

use crate::config::{HostSide, NetworkName, PortSettings};
use crate::usage::UsageError;

/// Where the administrator's list is.
const PATH: &str = "/etc/softnet/bridges.conf";

/// Refuses a host side that the list does not allow, and an address there that could be another machine's.
///
/// # Errors
/// When it is not allowed, or the list cannot be trusted.
pub fn permit(settings: &PortSettings) -> Result<(), UsageError> {
    permit_address(settings)?;
    if let Some(root) = &settings.client.tftp_root {
        let reason = "is served with the rights of another user; only root may choose it";
        return Err(UsageError::new("--tftp-root", root, reason));
    }
    judge(&settings.host, &Bridges::read(Path::new(PATH)))
}

/// Only on the managed network does anything ensure that no other machine has the address. A DHCP server of the caller's
/// could give the VM any address.
fn permit_address(settings: &PortSettings) -> Result<(), UsageError> {
    let named = [
        ("--gateway", settings.servers.gateway.map(|(named, _)| named)),
        ("--dhcp-server", settings.servers.dhcp_server),
    ];
    if let Some((flag, Some(named))) = named.into_iter().find(|(_, named)| named.is_some()) {
        let reason = "may be chosen by root only; ask the administrator to start Softnet";
        return Err(UsageError::new(flag, named.address.to_string(), reason));
    }
    match (&settings.host, settings.client.address) {
        (HostSide::Tap(_) | HostSide::Bridge(_), Some(address)) => {
            let reason = "may be another machine's; with --tap and --bridge only root may choose the address";
            Err(UsageError::new("--vm-address", address.to_string(), reason))
        }
        _ => Ok(()),
    }
}

fn judge(host: &HostSide, bridges: &Result<Bridges, Error>) -> Result<(), UsageError> {
    let (flag, name, by_default) = match host {
        HostSide::Tap(name) => ("--tap", name.as_str(), false),
        HostSide::Bridge(name) => ("--bridge", name.as_str(), false),
        HostSide::Managed { network, subnet: Some(_), .. } => ("--subnet", network.as_str(), false),
        HostSide::Managed { network, .. } => ("--network", network.as_str(), is_default(network)),
    };
    let refused = |reason: &dyn std::fmt::Display| Err(UsageError::new(flag, name, reason));
    match bridges {
        Err(error) => refused(error),
        Ok(bridges) => match bridges.entry(name) {
            Entry::Allowed => Ok(()),
            Entry::Unlisted if by_default => Ok(()),
            Entry::Denied => refused(&format_args!("is denied to you in {PATH}; ask the administrator")),
            Entry::Unlisted => refused(&format_args!(
                "is not permitted to you; ask the administrator to add \"allow {name}\" to {PATH}"
            )),
        },
    }
}

/// Whether a VM joins this network without asking for it by name.
fn is_default(network: &NetworkName) -> bool {
    [NetType::Nat, NetType::Host].into_iter().any(|of| NetworkName::default_for(of) == *network)
}

/// Why the list cannot be used.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// Users other than root could have written it.
    #[error("users other than root can write to {0}; run `chown root {0}` and `chmod go-w {0}`")]
    Untrusted(String),
    /// It cannot be read.
    #[error("{PATH} cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    /// It has an invalid line, whose meaning would be a guess.
    #[error("{PATH}, line {0}: neither \"allow NAME\" nor \"deny NAME\"; correct the line")]
    Syntax(usize),
}

/// What the list says about a name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Entry {
    /// A rule allows it, and no rule denies it.
    Allowed,
    /// A rule denies it.
    Denied,
    /// No rule names it.
    Unlisted,
}

/// The administrator's list.
#[derive(Debug, Default, Eq, PartialEq)]
struct Bridges {
    allowed: Vec<String>,
    denied: Vec<String>,
}

/// The name that stands for every name.
const ALL: &str = "all";

impl Bridges {
    /// Reads `path`; no file is an empty list.
    fn read(path: &Path) -> Result<Self, Error> {
        let mut file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Bridges::default()),
            other => other?,
        };
        // A user who may write to the directory may replace the file.
        let directory = path.parent().unwrap_or(Path::new("/"));
        for (metadata, path) in [(fs::metadata(directory)?, directory), (file.metadata()?, path)] {
            if metadata.uid() != 0 || metadata.mode() & 0o022 != 0 {
                return Err(Error::Untrusted(path.display().to_string()));
            }
        }
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        text.parse()
    }

    /// What the list says about `name`.
    fn entry(&self, name: &str) -> Entry {
        let names = |list: &[String]| list.iter().any(|listed| listed == name || listed == ALL);
        match (names(&self.denied), names(&self.allowed)) {
            (true, _) => Entry::Denied,
            (false, true) => Entry::Allowed,
            (false, false) => Entry::Unlisted,
        }
    }
}

impl FromStr for Bridges {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let mut bridges = Bridges::default();
        for (number, line) in text.lines().enumerate() {
            let rule = line.split('#').next().unwrap_or_default();
            let words: Vec<&str> = rule.split_whitespace().collect();
            match words[..] {
                [] => {}
                ["allow", name] => bridges.allowed.push(name.to_owned()),
                ["deny", name] => bridges.denied.push(name.to_owned()),
                _ => return Err(Error::Syntax(number + 1)),
            }
        }
        Ok(bridges)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn managed(network: &str, subnet: Option<&str>) -> HostSide {
        let subnet = subnet.map(|subnet| subnet.parse().unwrap());
        HostSide::Managed { network: network.parse().unwrap(), explicit: true, subnet }
    }

    fn judged(host: &HostSide, list: &str) -> Result<(), String> {
        judge(host, &list.parse()).map_err(|error| error.to_string())
    }

    #[test]
    fn only_the_default_network_needs_no_rule() {
        judged(&managed("softnet0", None), "").unwrap();
        judged(&managed("softnet_host0", None), "").unwrap();
        for host in [
            HostSide::Tap("tap0".to_owned()),
            HostSide::Bridge("virbr0".to_owned()),
            managed("other", None),
            managed("softnet0", Some("10.1.2.0/24")),
        ] {
            let refused = judged(&host, "allow somethingelse").unwrap_err();
            assert!(refused.contains("ask the administrator to add \"allow "), "{refused}");
        }
        judged(&HostSide::Bridge("virbr0".to_owned()), "allow virbr0 # libvirt's").unwrap();
        judged(&managed("softnet0", Some("10.1.2.0/24")), "\n\nallow softnet0").unwrap();
        judged(&HostSide::Tap("tap0".to_owned()), "allow all").unwrap();
    }

    #[test]
    fn a_deny_wins_wherever_it_stands() {
        for list in ["deny br0\nallow all", "allow all\ndeny br0", "allow br0\ndeny all"] {
            let refused = judged(&HostSide::Bridge("br0".to_owned()), list).unwrap_err();
            assert!(refused.contains("is denied to you"), "{refused}");
        }
        assert!(judged(&managed("softnet0", None), "deny softnet0").is_err());
        judged(&managed("softnet0", None), "deny br0").unwrap();
    }

    #[test]
    fn a_list_that_makes_no_sense_permits_nothing() {
        for list in ["allow", "allow a b", "permit a", "allow all\ninclude /x", "ALLOW all"] {
            let refused = judged(&managed("softnet0", None), list).unwrap_err();
            assert!(refused.contains("neither \"allow NAME\""), "{refused}");
        }
        assert!(judged(&HostSide::Bridge("a".to_owned()), "allow all\nx").unwrap_err().contains("line 2"));
    }

    #[test]
    fn a_list_that_others_could_have_written_permits_nothing() {
        use std::os::unix::fs::PermissionsExt;
        let directory = std::env::temp_dir().join(format!("softnet-bridges-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let path = directory.join("bridges.conf");
        assert_eq!(Bridges::read(&path).unwrap(), Bridges::default());
        fs::write(&path, "allow all").unwrap();
        // Also if the tests are not root's: then the file is not root's either.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        let error = Bridges::read(&path).unwrap_err();
        fs::remove_dir_all(&directory).unwrap();
        assert!(matches!(error, Error::Untrusted(_)), "{error}");
    }
}
