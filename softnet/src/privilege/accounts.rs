//! The system's users and groups.

use std::fs;

use nix::unistd::{Group, User};
use rustix::process::{Gid, RawUid, Uid};

/// A user.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Account {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: Uid,
    /// Primary group.
    pub gid: Gid,
}

/// Where users and groups are looked up.
pub trait Accounts {
    /// The user called `name`.
    fn user(&self, name: &str) -> Option<Account>;
    /// The user with this id.
    fn user_by_id(&self, uid: RawUid) -> Option<Account>;
    /// The group called `name`, or with `name` as its number.
    fn group(&self, name: &str) -> Option<Gid>;
    /// The groups that `account` is a member of, including `gid`.
    fn groups_of(&self, account: &Account, gid: Gid) -> Vec<Gid>;
    /// Whether a process here can become `account`: a user namespace may not map it.
    fn can_become(&self, account: &Account) -> bool;
}

/// The user database of the system (`/etc/passwd`, LDAP and so on).
#[derive(Clone, Copy, Debug)]
pub struct System;

impl Accounts for System {
    fn user(&self, name: &str) -> Option<Account> {
        User::from_name(name).ok().flatten().map(Account::from)
    }

    fn user_by_id(&self, uid: RawUid) -> Option<Account> {
        User::from_uid(uid.into()).ok().flatten().map(Account::from)
    }

    fn group(&self, name: &str) -> Option<Gid> {
        let by_name = Group::from_name(name).ok().flatten();
        let group = by_name.or_else(|| Group::from_gid(name.parse::<u32>().ok()?.into()).ok().flatten());
        group.map(|group| Gid::from_raw(group.gid.as_raw()))
    }

    #[cfg(not(target_vendor = "apple"))]
    fn groups_of(&self, account: &Account, gid: Gid) -> Vec<Gid> {
        let listed = std::ffi::CString::new(account.name.as_str())
            .ok()
            .and_then(|name| nix::unistd::getgrouplist(&name, gid.as_raw().into()).ok());
        let listed = listed.unwrap_or_default().into_iter().map(|gid| Gid::from_raw(gid.as_raw()));
        let mut groups: Vec<Gid> =
            listed.filter(|gid| is_mapped("/proc/self/gid_map", gid.as_raw())).collect();
        if groups.is_empty() {
            groups.push(gid);
        }
        groups
    }

    #[cfg(target_vendor = "apple")]
    fn groups_of(&self, account: &Account, gid: Gid) -> Vec<Gid> {
        let listed = std::ffi::CString::new(account.name.as_str())
            .map(|name| crate::sys::groups::of_user(&name, gid))
            .unwrap_or_default();
        if listed.is_empty() { vec![gid] } else { listed }
    }

    fn can_become(&self, account: &Account) -> bool {
        is_mapped("/proc/self/uid_map", account.uid.as_raw())
            && is_mapped("/proc/self/gid_map", account.gid.as_raw())
    }
}

impl From<User> for Account {
    fn from(user: User) -> Self {
        Account {
            name: user.name,
            uid: Uid::from_raw(user.uid.as_raw()),
            gid: Gid::from_raw(user.gid.as_raw()),
        }
    }
}

/// Whether the user namespace's map in the file `path` has `id`. Without such a file there are no user
/// namespaces, and every id is valid.
fn is_mapped(path: &str, id: u32) -> bool {
    fs::read_to_string(path).map_or(true, |map| map_contains(&map, id))
}

/// Lines of `inside outside count` (user_namespaces(7)).
fn map_contains(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(|word| word.parse::<u32>().ok());
        let (first, _outside, count) = (numbers.next(), numbers.next(), numbers.next());
        first.flatten().zip(count.flatten()).is_some_and(|(first, count)| id >= first && id - first < count)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_contains_what_its_lines_span() {
        assert!(map_contains("         0          0 4294967295\n", 65534));
        assert!(!map_contains("         0       1000          1\n", 1));
        let two = "0 1000 1\n1 100000 65536\n";
        assert!(map_contains(two, 65534) && map_contains(two, 0) && !map_contains(two, 65537));
        assert!(!map_contains("", 0));
    }

    #[test]
    fn root_is_known_by_name_and_number() {
        let root = System.user("root").unwrap();
        assert!(root.uid.is_root());
        assert_eq!(System.user_by_id(0), Some(root));
        assert_eq!(System.group("0"), Some(Gid::ROOT));
        assert_eq!(System.user("no such user"), None);
    }
}
