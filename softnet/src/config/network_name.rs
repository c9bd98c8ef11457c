//! The name of a managed network, checked once.

use std::fmt;
use std::str::FromStr;

use softnet_filter::NetType;

/// Names that the run directory and the kernel use for other things.
const RESERVED: [&str; 7] = ["control", "lock", "locks", "ip_forward", "all", "default", "lo"];

/// The name of a managed network, which is its bridge's name too.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NetworkName(String);

/// Why a name is invalid.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "is not a valid network name; use 1 to 15 of the characters a-z, A-Z, 0-9 and _, begin with a letter, and use none of \
     the reserved names {}",
    RESERVED.join(", ")
)]
pub struct NameError;

impl NetworkName {
    /// The network that a VM joins by default. NAT and host-only VMs do not share one.
    pub fn default_for(net_type: NetType) -> Self {
        NetworkName(match net_type {
            NetType::Nat => "softnet0".to_owned(),
            NetType::Host => "softnet_host0".to_owned(),
        })
    }

    /// Whether the name could be a top-level domain of the Internet, which has letters only (RFC 3696, section 2).
    pub fn could_be_a_domain(&self) -> bool {
        self.0.bytes().all(|byte| byte.is_ascii_alphabetic())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NetworkName {
    type Err = NameError;

    /// The name becomes an interface's name, a file's name and a word in an nftables ruleset, so it contains
    /// no character that is special to any of them.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic());
        if first && text.len() <= 15 && text.bytes().all(plain) && !RESERVED.contains(&text) {
            Ok(NetworkName(text.to_owned()))
        } else {
            Err(NameError)
        }
    }
}

impl fmt::Display for NetworkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_mean_something_elsewhere_are_refused() {
        for good in ["softnet0", "a", "my_net_2", "fifteen_letters"] {
            assert_eq!(good.parse::<NetworkName>().unwrap().as_str(), good);
        }
        let bad = [
            "",
            "-x",
            "_x",
            ".",
            "..",
            "a/b",
            "a b",
            "a\"",
            "sixteen_letters0",
            "ä",
            "all",
            "lock",
            "locks",
            "control",
            "netns-1",
            "a%d",
        ];
        for bad in bad {
            assert_eq!(bad.parse::<NetworkName>(), Err(NameError), "{bad}");
        }
        for net_type in [NetType::Nat, NetType::Host] {
            let name = NetworkName::default_for(net_type);
            assert_eq!(name.as_str().parse::<NetworkName>(), Ok(name));
        }
    }
}
