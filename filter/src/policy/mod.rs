//! What the user opens and closes: `--allow` and `--block` (rules D2, P1).
//!
//! This is the list as it was given. What it means together with the destinations that nothing opens (rule D1) and
//! those that are closed unless opened (rule D3) is compiled into tables when the port takes it.

pub(crate) mod entry;

use crate::policy::entry::{Entry, Target};

/// The rules about peers of the VM, in any order; rule P2 says which of them decides.
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

    /// The entries of `--allow` or of `--block` in their normal form (rule P1), sorted as text, none of them twice.
    pub fn list(&self, action: Action) -> Vec<String> {
        let rules = self.rules.iter().filter(|rule| rule.action == action);
        let mut entries: Vec<String> = rules.map(|rule| rule.entry.to_string()).collect();
        entries.sort_unstable();
        entries.dedup();
        entries
    }

    /// Whether an entry says who begins: then flows decide about answers (rule P3).
    pub fn is_stateful(&self) -> bool {
        self.rules.iter().any(|rule| rule.entry.origin.is_some())
    }

    /// Whether the host must keep this VM apart from the other ports of its bridge. It must unless the policy allows
    /// 0.0.0.0/0, whatever the ports, and blocks no 0.0.0.0/0 of any kind (rule D8).
    pub fn bridge_isolation(&self) -> bool {
        let is_everything =
            |entry: &Entry| matches!(entry.target, Target::Ipv4(net) if net.prefix_len() == 0);
        let allows = |rule: &Rule| {
            let Rule { entry, action } = rule;
            *action == Action::Allow && is_everything(entry) && entry.origin.is_none() && !entry.has_ports()
        };
        let blocks = |rule: &Rule| rule.action == Action::Block && is_everything(&rule.entry);
        !self.rules.iter().any(allows) || self.rules.iter().any(blocks)
    }
}

/// One entry of `--allow` or `--block`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rule {
    /// What it is about.
    pub entry: Entry,
    /// What happens to packets that it is about.
    pub action: Action,
}

/// What happens to packets that an entry is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// They pass.
    Allow,
    /// They are dropped.
    Block,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(allow: &[&str], block: &[&str]) -> Policy {
        let rules = |list: &[&str], action| -> Vec<Rule> {
            list.iter().map(|entry| Rule { entry: entry.parse().unwrap(), action }).collect()
        };
        Policy::new([rules(allow, Action::Allow), rules(block, Action::Block)].concat())
    }

    /// D8: exactly `--allow=0.0.0.0/0` ends the isolation on the bridge.
    #[test]
    fn d8_only_allowing_everything_ends_isolation() {
        for (allow, block) in [
            (&[][..], &[][..]),
            (&[], &["0.0.0.0/0"]),
            (&["0.0.0.0/1", "128.0.0.0/1"], &[]),
            (&["@host", "@internet", "@private", "::/0"], &[]),
            (&["out 0.0.0.0/0", "in 0.0.0.0/0", "0.0.0.0/0:80", "0.0.0.0/0/tcp"], &[]),
            (&["0.0.0.0/0"], &["0.0.0.0/0"]),
            (&["0.0.0.0/0"], &["in 0.0.0.0/0"]),
            (&["0.0.0.0/0"], &["0.0.0.0/0:25"]),
        ] {
            assert!(policy(allow, block).bridge_isolation(), "{allow:?} {block:?}");
        }
        assert!(!policy(&["0.0.0.0/0"], &[]).bridge_isolation());
        assert!(!policy(&["1.2.3.4/0"], &["10.0.0.0/8", "@internet", "::/0"]).bridge_isolation());
    }

    /// P3: one entry with a direction makes a policy stateful; ports do not.
    #[test]
    fn p3_an_entry_with_a_direction_makes_a_policy_stateful() {
        assert!(!policy(&[], &[]).is_stateful());
        assert!(!policy(&["10.0.0.0/8:80"], &["0.0.0.0/0", "@host/udp"]).is_stateful());
        assert!(policy(&["10.0.0.0/8", "in 10.0.0.0/8"], &[]).is_stateful());
        assert!(policy(&[], &["out @host:22"]).is_stateful());
    }

    /// P1: the lists in normal form, sorted as text, without doubles.
    #[test]
    fn p1_lists_are_sorted_and_without_doubles() {
        let policy =
            policy(&["@host", "9.9.9.9", "10.1.2.3/8", "10.0.0.0/8:80-80", "9.9.9.9/32"], &["in 1.1.1.1"]);
        assert_eq!(policy.list(Action::Allow), ["10.0.0.0/8", "10.0.0.0/8:80", "9.9.9.9/32", "@host"]);
        assert_eq!(policy.list(Action::Block), ["in 1.1.1.1/32"]);
        assert_eq!(policy.rules().len(), 6);
    }
}
