//! Which destinations the user opens and closes: `--allow` and `--block` (rule D2).
//!
//! This is the list as it was given. What it means together with the destinations that nothing opens (rule D1) and
//! those that are closed unless opened (rule D3) is compiled into one table when the port is made.

use core::fmt;
use core::net::Ipv4Addr;
use core::str::FromStr;

use ipnet::Ipv4Net;

/// The rules about destinations, in any order: the longest prefix decides, and of two rules for the same prefix the
/// blocking one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    rules: Vec<Rule>,
}

impl Policy {
    /// A policy of these rules; none leaves the secure defaults.
    pub fn new(rules: Vec<Rule>) -> Self {
        Self { rules }
    }

    /// The rules as they were given.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Whether the host must keep this VM apart from the other ports of its bridge. It must unless the policy allows
    /// 0.0.0.0/0 (rule D8).
    pub fn bridge_isolation(&self) -> bool {
        let has = |action| {
            self.rules.iter().any(|rule| {
                matches!(rule.target, Target::Net(net) if net.prefix_len() == 0) && rule.action == action
            })
        };
        !has(Action::Allow) || has(Action::Block)
    }
}

/// One entry of `--allow` or `--block`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rule {
    /// Which destinations.
    pub target: Target,
    /// What happens to packets for them.
    pub action: Action,
}

/// What happens to packets for a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// They pass.
    Allow,
    /// They are dropped.
    Block,
}

/// The destinations of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Target {
    /// The addresses of a network; bits after the prefix do not matter.
    Net(Ipv4Net),
    /// The gateway, whatever its address turns out to be: `@host`.
    Gateway,
}

/// Why a text is not a [`Target`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseTargetError {
    /// Nothing between two commas.
    #[error("there is no address")]
    Empty,
    /// An IPv6 address or network.
    #[error("IPv6 is not supported yet: all IPv6 of the VM is dropped, so leave this out")]
    Ipv6,
    /// The part before the slash is no address.
    #[error("expected an IPv4 address (10.1.2.3), a network (10.0.0.0/8) or @host")]
    Address,
    /// The part after the slash is not a prefix length.
    #[error("the prefix length after the slash must be a number from 0 to 32")]
    PrefixLength,
}

impl FromStr for Target {
    type Err = ParseTargetError;

    /// `10.0.0.0/8`, a bare address as a `/32`, or `@host`. Host bits may be set; they are masked (rule D2).
    fn from_str(text: &str) -> Result<Self, ParseTargetError> {
        if text.is_empty() {
            return Err(ParseTargetError::Empty);
        }
        if text == "@host" {
            return Ok(Self::Gateway);
        }
        if text.contains(':') {
            return Err(ParseTargetError::Ipv6);
        }
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: Ipv4Addr = address.parse().map_err(|_| ParseTargetError::Address)?;
        let prefix = match prefix {
            None => 32,
            // A number parser accepts a sign, which no prefix length has.
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
                digits.parse().map_err(|_| ParseTargetError::PrefixLength)?
            }
            Some(_) => return Err(ParseTargetError::PrefixLength),
        };
        let net = Ipv4Net::new(address, prefix).map_err(|_| ParseTargetError::PrefixLength)?;
        Ok(Self::Net(net.trunc()))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net(net) => fmt::Display::fmt(&net.trunc(), f),
            Self::Gateway => f.write_str("@host"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(target: &str, action: Action) -> Rule {
        Rule { target: target.parse().unwrap(), action }
    }

    /// D2: a bare address is a /32, host bits are masked, `@host` is the gateway.
    #[test]
    fn d2_targets_parse() {
        let net = |text: &str| Target::Net(text.parse().unwrap());
        assert_eq!("10.0.0.0/8".parse(), Ok(net("10.0.0.0/8")));
        assert_eq!("10.1.2.3/8".parse(), Ok(net("10.0.0.0/8")));
        assert_eq!("10.1.2.3".parse(), Ok(net("10.1.2.3/32")));
        assert_eq!("0.0.0.0/0".parse(), Ok(net("0.0.0.0/0")));
        assert_eq!("1.2.3.4/0".parse(), Ok(net("0.0.0.0/0")));
        assert_eq!("@host".parse(), Ok(Target::Gateway));
        assert_eq!("10.1.2.3/8".parse::<Target>().unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(Target::Net("10.1.2.3/8".parse().unwrap()).to_string(), "10.0.0.0/8");
        assert_eq!(Target::Gateway.to_string(), "@host");
    }

    /// R4: what cannot be parsed is refused, with the reason.
    #[test]
    fn r4_bad_targets_are_refused() {
        for (text, error) in [
            ("", ParseTargetError::Empty),
            ("::/0", ParseTargetError::Ipv6),
            ("fe80::1", ParseTargetError::Ipv6),
            ("host", ParseTargetError::Address),
            ("@HOST", ParseTargetError::Address),
            ("@host/32", ParseTargetError::Address),
            ("10.0.0", ParseTargetError::Address),
            ("10.0.0.0.0/8", ParseTargetError::Address),
            ("010.0.0.1", ParseTargetError::Address),
            ("256.0.0.0/8", ParseTargetError::Address),
            (" 10.0.0.0/8", ParseTargetError::Address),
            ("/8", ParseTargetError::Address),
            ("10.0.0.0/", ParseTargetError::PrefixLength),
            ("10.0.0.0/33", ParseTargetError::PrefixLength),
            ("10.0.0.0/256", ParseTargetError::PrefixLength),
            ("10.0.0.0/+8", ParseTargetError::PrefixLength),
            ("10.0.0.0/-1", ParseTargetError::PrefixLength),
            ("10.0.0.0/8/8", ParseTargetError::PrefixLength),
            ("10.0.0.0/255.0.0.0", ParseTargetError::PrefixLength),
            ("10.0.0.0/8 ", ParseTargetError::PrefixLength),
        ] {
            assert_eq!(text.parse::<Target>(), Err(error), "{text:?}");
            assert!(!error.to_string().is_empty());
        }
    }

    /// D8: exactly `--allow=0.0.0.0/0` ends the isolation on the bridge.
    #[test]
    fn d8_only_allowing_everything_ends_isolation() {
        let isolated = |rules: &[Rule]| Policy::new(rules.to_vec()).bridge_isolation();
        let all = rule("0.0.0.0/0", Action::Allow);
        assert!(isolated(&[]));
        assert!(isolated(&[rule("0.0.0.0/0", Action::Block)]));
        assert!(isolated(&[rule("0.0.0.0/1", Action::Allow), rule("128.0.0.0/1", Action::Allow)]));
        assert!(isolated(&[rule("@host", Action::Allow)]));
        assert!(isolated(&[all, rule("0.0.0.0/0", Action::Block)]));
        assert!(!isolated(&[all]));
        assert!(!isolated(&[rule("10.0.0.0/8", Action::Block), all]));
        assert_eq!(Policy::new(vec![all]).rules(), [all]);
    }
}
