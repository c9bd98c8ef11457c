//! The user that the process that parses frames becomes. Never root.

use std::io;

use rustix::process::{Gid, RawGid, RawUid, Uid};

use super::{Account, Accounts};
use crate::usage::UsageError;

/// The user made for Softnet, if the system has one.
const DEDICATED: &str = "softnet";
/// The user that owns no files.
const NOBODY: &str = "nobody";

/// Who started this process.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Start {
    /// Real user and group: the caller's.
    pub real: (Uid, Gid),
    /// Effective user and group: root's if the program is set-user-ID.
    pub effective: (Uid, Gid),
    /// Supplementary groups: the caller's.
    pub groups: Vec<Gid>,
    /// The program's file gave the process more than its caller has: a set-user-ID or set-group-ID bit, or capabilities.
    pub secure: bool,
    /// `SUDO_UID` and `SUDO_GID`, which is `None` if it is missing or no number.
    pub sudo: Option<(RawUid, Option<RawGid>)>,
}

impl Start {
    /// The facts about this process.
    ///
    /// # Errors
    /// When the groups cannot be read.
    pub fn of_this_process() -> io::Result<Self> {
        use rustix::process::{getegid, geteuid, getgid, getgroups, getuid};
        let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
        Ok(Start {
            real: (getuid(), getgid()),
            effective: (geteuid(), getegid()),
            groups: getgroups()?,
            secure: crate::sys::secure::is_secure_execution(),
            sudo: number("SUDO_UID").map(|uid| (uid, number("SUDO_GID"))),
        })
    }

    /// Whether the process has more privilege than its caller, whose arguments and environment are then not
    /// trusted.
    pub fn is_elevated(&self) -> bool {
        self.secure || self.real != self.effective
    }

    /// Whether the caller is root, not only the process.
    pub fn is_by_root(&self) -> bool {
        self.real.0.is_root()
    }
}

/// How the identity was chosen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    /// The user who started Softnet.
    Caller,
    /// `--user`.
    Flag,
    /// The user who called `sudo`.
    Sudo,
    /// The user `softnet`.
    Dedicated,
    /// The user `nobody`, because there is no better one.
    Nobody,
    /// The user namespace maps only its root, which is an unprivileged user outside.
    OnlyOne,
}

/// A user to become permanently.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Identity {
    /// Real, effective and saved user.
    pub uid: Uid,
    /// Real, effective and saved group.
    pub gid: Gid,
    /// Supplementary groups.
    pub groups: Vec<Gid>,
    /// Why this one.
    pub origin: Origin,
}

impl Identity {
    /// Chooses for the arguments `--user` and `--group`.
    ///
    /// # Errors
    /// When one of them does not exist, is root, or the caller may not name it.
    pub fn choose(
        user: Option<&str>,
        group: Option<&str>,
        start: &Start,
        accounts: &impl Accounts,
    ) -> Result<Self, UsageError> {
        let mut identity = match user {
            Some(name) => Self::named("--user", name, start, accounts)?,
            None => unnamed(start, accounts)?,
        };
        if let Some(name) = group {
            let error = |reason| UsageError::new("--group", name, reason);
            let gid = accounts
                .group(name)
                .ok_or_else(|| error("is not a group of this system; name an existing one"))?;
            if start.is_by_root() {
                if gid.is_root() {
                    return Err(error("is root's; name the group of an ordinary user"));
                }
            } else if gid != start.real.1 && !(start.effective.0.is_root() && start.groups.contains(&gid)) {
                return Err(error("is not a group of the calling user; only root may name another"));
            }
            identity.gid = gid;
        }
        Ok(identity)
    }

    /// The user of this name or number, whom `flag` names.
    ///
    /// # Errors
    /// When there is none, it is root, or the caller may not name it.
    pub fn named(
        flag: &'static str,
        name: &str,
        start: &Start,
        accounts: &impl Accounts,
    ) -> Result<Self, UsageError> {
        let error = |reason| UsageError::new(flag, name, reason);
        let account = accounts
            .user(name)
            .or_else(|| accounts.user_by_id(name.parse().ok()?))
            .ok_or_else(|| error("is not a user of this system; name an existing one"))?;
        if account.uid.is_root() {
            return Err(error("is root; name an ordinary user"));
        }
        if !start.is_by_root() {
            if account.uid != start.real.0 {
                return Err(error("is not the calling user; only root may name another"));
            }
            return Ok(caller(start));
        }
        if !accounts.can_become(&account) {
            return Err(error("is not mapped in this user namespace; name a user that is"));
        }
        Ok(identity(&account, account.gid, Origin::Flag, accounts))
    }

    /// Logs the choice, if it does not follow from the arguments or the caller.
    pub fn log(&self) {
        let uid = self.uid.as_raw();
        match self.origin {
            Origin::Caller | Origin::Flag => {}
            Origin::Sudo => tracing::info!(uid, "switching to the user who called sudo"),
            Origin::Dedicated => tracing::info!(uid, "switching to the user softnet"),
            Origin::Nobody => tracing::warn!(
                uid,
                "started by root without --user: the filter runs as nobody; a dedicated user is safer (useradd --system softnet)"
            ),
            Origin::OnlyOne => {
                tracing::info!(
                    "this user namespace maps no other user; keeping the current one, without capabilities"
                );
            }
        }
    }
}

fn unnamed(start: &Start, accounts: &impl Accounts) -> Result<Identity, UsageError> {
    if !start.is_by_root() {
        return Ok(caller(start));
    }
    if !start.effective.0.is_root() {
        // Root started a program that is set-user-ID for another user.
        let (uid, gid) = start.effective;
        return Ok(Identity { uid, gid, groups: vec![gid], origin: Origin::Caller });
    }
    let usable = |account: &Account| !account.uid.is_root() && accounts.can_become(account);
    let nobody = accounts.user(NOBODY);
    if let Some((uid, gid)) = start.sudo.filter(|(uid, _)| *uid != 0) {
        let group = gid.and_then(|gid| accounts.group(&gid.to_string())).filter(|gid| !gid.is_root());
        if let (Some(account), Some(group)) = (accounts.user_by_id(uid).filter(usable), group) {
            return Ok(identity(&account, group, Origin::Sudo, accounts));
        }
        // Somebody called sudo: nothing may run as root, or as another user, because they are unknown. A user
        // namespace that maps only root has nobody else.
        if nobody.as_ref().is_none_or(|nobody| accounts.can_become(nobody)) {
            return Err(UsageError::flag(
                "--user",
                "is missing, and SUDO_UID and SUDO_GID do not name an ordinary user and group of this system; name the user to switch to",
            ));
        }
    }
    if let Some(account) = accounts.user(DEDICATED).filter(usable) {
        return Ok(identity(&account, account.gid, Origin::Dedicated, accounts));
    }
    match nobody {
        Some(account) if usable(&account) => Ok(identity(&account, account.gid, Origin::Nobody, accounts)),
        Some(account) if !accounts.can_become(&account) => {
            let (uid, gid) = start.effective;
            Ok(Identity { uid, gid, groups: start.groups.clone(), origin: Origin::OnlyOne })
        }
        _ => Err(UsageError::flag(
            "--user",
            "is missing, and this system has neither a user softnet nor nobody; name an ordinary user",
        )),
    }
}

fn caller(start: &Start) -> Identity {
    let (uid, gid) = start.real;
    Identity { uid, gid, groups: start.groups.clone(), origin: Origin::Caller }
}

fn identity(account: &Account, gid: Gid, origin: Origin, accounts: &impl Accounts) -> Identity {
    Identity { uid: account.uid, gid, groups: accounts.groups_of(account, gid), origin }
}

#[cfg(target_os = "linux")]
impl Identity {
    /// Becomes this identity permanently: supplementary groups, then real, effective and saved group and user. Makes only
    /// plain system calls for the calling thread, so it may run between fork and exec.
    ///
    /// # Errors
    /// When the system refuses, or the process could become root again.
    pub fn assume(&self) -> io::Result<()> {
        use rustix::process::{getegid, geteuid, getgid, getuid};
        use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid, set_thread_uid};

        // The process already has the caller's groups.
        if !matches!(self.origin, Origin::Caller | Origin::OnlyOne) {
            set_thread_groups(&self.groups)?;
        }
        set_thread_res_gid(self.gid, self.gid, self.gid)?;
        set_thread_res_uid(self.uid, self.uid, self.uid)?;
        let became = (getuid(), geteuid(), getgid(), getegid()) == (self.uid, self.uid, self.gid, self.gid);
        let root_again = !self.uid.is_root() && set_thread_uid(Uid::ROOT).is_ok();
        if became && !root_again { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EPERM)) }
    }
}

#[cfg(not(target_os = "linux"))]
impl Identity {
    /// Becomes this identity permanently: supplementary groups, group and user.
    ///
    /// # Errors
    /// When the system refuses, or the process could become root again.
    pub fn assume(&self) -> io::Result<()> {
        use nix::unistd::{setgid, setuid};
        use rustix::process::{getegid, geteuid, getgid, getuid};

        if geteuid().is_root() {
            crate::sys::groups::set_groups(&self.groups)?;
        }
        setgid(self.gid.as_raw().into())?;
        setuid(self.uid.as_raw().into())?;
        let became = (getuid(), geteuid(), getgid(), getegid()) == (self.uid, self.uid, self.gid, self.gid);
        let root_again = setuid(0.into()).is_ok() || nix::unistd::seteuid(0.into()).is_ok();
        if became && !root_again { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EPERM)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A system with ordinary users, and a dedicated one if asked for.
    struct Host {
        users: &'static [(&'static str, RawUid)],
        mapped: std::ops::Range<RawUid>,
    }

    const HOST: Host =
        Host { users: &[("root", 0), ("ann", 1000), ("bob", 1001), ("nobody", 65534)], mapped: 0..65536 };
    const WITH_DEDICATED: Host = Host { users: &[("softnet", 300), ("nobody", 65534)], ..HOST };

    fn uid(uid: RawUid) -> Uid {
        Uid::from_raw(uid)
    }

    fn gid(gid: RawGid) -> Gid {
        Gid::from_raw(gid)
    }

    impl Accounts for Host {
        fn user(&self, name: &str) -> Option<Account> {
            let (name, id) = self.users.iter().find(|(known, _)| *known == name)?;
            Some(Account { name: (*name).to_owned(), uid: uid(*id), gid: gid(*id) })
        }
        fn user_by_id(&self, id: RawUid) -> Option<Account> {
            self.users.iter().find(|(_, known)| *known == id).and_then(|(name, _)| self.user(name))
        }
        fn group(&self, name: &str) -> Option<Gid> {
            match name {
                "kvm" => Some(gid(104)),
                "wheel" => Some(gid(0)),
                "1000" => Some(gid(1000)),
                "1001" => Some(gid(1001)),
                _ => None,
            }
        }
        fn groups_of(&self, _account: &Account, own: Gid) -> Vec<Gid> {
            vec![own, gid(104)]
        }
        fn can_become(&self, account: &Account) -> bool {
            self.mapped.contains(&account.uid.as_raw())
        }
    }

    fn start(real: RawUid, effective: RawUid) -> Start {
        Start {
            real: (uid(real), gid(real)),
            effective: (uid(effective), gid(effective)),
            groups: vec![gid(real), gid(27)],
            secure: real != effective,
            sudo: None,
        }
    }

    fn chosen(start: &Start, user: Option<&str>, group: Option<&str>) -> Result<Identity, String> {
        Identity::choose(user, group, start, &HOST).map_err(|error| error.to_string())
    }

    #[test]
    fn an_ordinary_user_stays_who_they_are_whatever_the_program_is() {
        for start in [start(1000, 1000), start(1000, 0)] {
            let identity = chosen(&start, None, None).unwrap();
            assert_eq!((identity.uid, identity.gid), (uid(1000), gid(1000)));
            assert_eq!((identity.groups, identity.origin), (start.groups, Origin::Caller));
        }
    }

    #[test]
    fn root_becomes_somebody_else() {
        let origin = |start: &Start, host: &Host| {
            let identity = Identity::choose(None, None, start, host).unwrap();
            (identity.uid.as_raw(), identity.gid.as_raw(), identity.origin)
        };
        let root = start(0, 0);
        assert_eq!(origin(&root, &HOST), (65534, 65534, Origin::Nobody));
        assert_eq!(origin(&root, &WITH_DEDICATED), (300, 300, Origin::Dedicated));
        let by_sudo = Start { sudo: Some((1000, Some(1001))), ..root.clone() };
        assert_eq!(origin(&by_sudo, &HOST), (1000, 1001, Origin::Sudo));
        let only_root = Host { mapped: 0..1, ..HOST };
        assert_eq!(origin(&root, &only_root), (0, 0, Origin::OnlyOne));
        assert_eq!(origin(&by_sudo, &only_root), (0, 0, Origin::OnlyOne));
    }

    #[test]
    fn the_word_of_sudo_counts_only_for_root_and_has_to_resolve() {
        let by_sudo = |uid, gid| Start { sudo: Some((uid, gid)), ..start(0, 0) };
        assert_eq!(chosen(&by_sudo(0, Some(0)), None, None).unwrap().origin, Origin::Nobody);
        for (uid, gid) in [(4242, Some(1000)), (1000, Some(4242)), (1000, None), (1000, Some(0))] {
            let refused = chosen(&by_sudo(uid, gid), None, None).unwrap_err();
            assert!(refused.contains("SUDO_UID"), "{uid} {gid:?}: {refused}");
            assert_eq!(chosen(&by_sudo(uid, gid), Some("ann"), None).unwrap().uid, self::uid(1000));
        }
        for elevated in [start(1000, 0), start(1000, 1000)] {
            let pretended = Start { sudo: Some((1001, Some(1001))), ..elevated };
            assert_eq!(chosen(&pretended, None, None).unwrap().uid, uid(1000));
        }
    }

    #[test]
    fn only_root_names_another_user_and_nobody_names_root() {
        let named = chosen(&start(0, 0), Some("ann"), None).unwrap();
        assert_eq!(
            (named.uid, named.groups, named.origin),
            (uid(1000), vec![gid(1000), gid(104)], Origin::Flag)
        );
        assert_eq!(chosen(&start(0, 0), Some("1001"), None).unwrap().uid, uid(1001));
        for set_user_id in [start(1000, 0), start(1000, 1000)] {
            assert_eq!(chosen(&set_user_id, Some("ann"), None).unwrap().uid, uid(1000));
            let refused = chosen(&set_user_id, Some("bob"), None).unwrap_err();
            assert_eq!(refused, "--user \"bob\": is not the calling user; only root may name another");
        }
        for (start, name) in [(start(0, 0), "root"), (start(1000, 0), "root"), (start(0, 0), "0")] {
            assert!(chosen(&start, Some(name), None).unwrap_err().contains("is root"));
        }
        assert!(
            chosen(&start(0, 0), Some("carl"), None).unwrap_err().contains("is not a user of this system")
        );
    }

    #[test]
    fn a_group_is_the_callers_own_or_given_by_root() {
        assert_eq!(chosen(&start(0, 0), Some("ann"), Some("kvm")).unwrap().gid, gid(104));
        let member = Start { groups: vec![gid(104)], ..start(1000, 0) };
        assert_eq!(chosen(&member, None, Some("kvm")).unwrap().gid, gid(104));
        assert!(
            chosen(&start(1000, 0), None, Some("kvm"))
                .unwrap_err()
                .contains("not a group of the calling user")
        );
        // Without privilege the kernel does not even change to another group of the caller.
        let unprivileged = Start { effective: (uid(1000), gid(1000)), ..member };
        assert!(chosen(&unprivileged, None, Some("kvm")).unwrap_err().contains("only root"));
        assert!(chosen(&start(0, 0), None, Some("wheel")).unwrap_err().contains("is root's"));
        assert!(
            chosen(&start(0, 0), None, Some("none")).unwrap_err().contains("is not a group of this system")
        );
    }
}
