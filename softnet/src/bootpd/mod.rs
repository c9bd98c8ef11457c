//! The settings of macOS's DHCP server, bootpd.
//!
//! vmnet's DHCP range has some 250 addresses, and bootpd leases each for a day by default: a host that starts
//! a few hundred VMs a day runs out. And bootpd files leases by client identifier, of which a VM may have several, an
//! installer's and a system's; then each takes an address, and who looks for the VM's MAC address in the lease file
//! (`tart ip`) does not find it. Both are system preferences of Internet Sharing: `bootpd` → `DHCPLeaseTimeSecs` and
//! `dhcp_ignore_client_identifier` in `com.apple.InternetSharing.default.plist`, which other programs may use too. So
//! this module changes them under the preferences' lock, only if they differ, and touches no other key.

#[cfg(target_os = "macos")]
mod apple;

#[cfg(target_os = "macos")]
pub use apple::tune_system;

use std::time::{Duration, Instant};

/// How long another program may have the lock; storing a change takes milliseconds. A start goes on without it then.
const LOCK_LIMIT: Duration = Duration::from_secs(5);
/// How often to try meanwhile: nothing reports when the lock is free, except a call that waits without limit.
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// What Softnet sets.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Default)]
pub struct Settings {
    /// Seconds that a lease lasts; `None` for bootpd's default.
    pub lease_time: Option<u32>,
    /// Whether bootpd files leases by MAC address alone.
    pub ignores_client_ids: bool,
}

/// Access to the settings in the preferences.
pub trait Preferences {
    /// Tries to take the lock, without waiting.
    ///
    /// # Errors
    /// When the lock cannot be taken, for instance without privilege.
    fn try_lock(&mut self) -> Result<Lock, BootpdError>;
    /// Forgets what was read, so that the next look is at what is stored.
    fn forget(&mut self);
    /// The settings as they are.
    fn settings(&self) -> Settings;
    /// Changes the settings, and leaves all other keys as they are.
    ///
    /// # Errors
    /// When the preferences reject them.
    fn change(&mut self, settings: Settings) -> Result<(), BootpdError>;
    /// Stores the change.
    ///
    /// # Errors
    /// When it cannot be stored.
    fn commit(&mut self) -> Result<(), BootpdError>;
    /// Notifies the programs that use what is stored.
    ///
    /// # Errors
    /// When they cannot be notified.
    fn apply(&mut self) -> Result<(), BootpdError>;
    /// Releases the lock.
    fn unlock(&mut self);
}

/// What an attempt to take the lock led to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Lock {
    /// It is taken, and what was read is what is stored.
    Taken,
    /// Another program has it.
    Busy,
    /// It is free, but another program has changed the preferences since they were read. The system gives no lock then.
    Stale,
}

/// Why bootpd was not told. Softnet only warns about it.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("cannot {step} the system's DHCP preferences: {reason}")]
pub struct BootpdError {
    /// What was tried.
    pub step: &'static str,
    /// The system's message.
    pub reason: String,
}

/// The outcome of [`tune`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Tuned {
    /// The settings were right already.
    Already,
    /// They were changed.
    Changed,
}

/// Lets leases last `seconds` and client identifiers count for nothing, if that differs from what is set.
///
/// # Errors
/// The first step that failed; the lock is released in any case.
pub fn tune(preferences: &mut impl Preferences, seconds: u32) -> Result<Tuned, BootpdError> {
    tune_within(preferences, seconds, LOCK_LIMIT)
}

fn tune_within(
    preferences: &mut impl Preferences,
    seconds: u32,
    limit: Duration,
) -> Result<Tuned, BootpdError> {
    let wanted = Settings { lease_time: Some(seconds), ignores_client_ids: true };
    // This is the usual case, and reading needs no privilege.
    if preferences.settings() == wanted {
        return Ok(Tuned::Already);
    }
    lock(preferences, limit)?;
    let outcome = tune_locked(preferences, wanted);
    preferences.unlock();
    outcome
}

fn lock(preferences: &mut impl Preferences, limit: Duration) -> Result<(), BootpdError> {
    let begun = Instant::now();
    loop {
        match preferences.try_lock()? {
            Lock::Taken => return Ok(()),
            _ if begun.elapsed() >= limit => {
                let reason = format!("another program has had them locked for {} s", limit.as_secs());
                return Err(BootpdError { step: "lock", reason });
            }
            Lock::Busy => std::thread::sleep(LOCK_PAUSE),
            Lock::Stale => preferences.forget(),
        }
    }
}

/// Storing and notifying happen under the lock, so that nobody is notified of another's half-made change.
fn tune_locked(preferences: &mut impl Preferences, wanted: Settings) -> Result<Tuned, BootpdError> {
    // Another Softnet may have set it meanwhile.
    if preferences.settings() == wanted {
        return Ok(Tuned::Already);
    }
    preferences.change(wanted)?;
    preferences.commit()?;
    preferences.apply()?;
    Ok(Tuned::Changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Preferences that record the calls.
    #[derive(Debug, Default)]
    struct Fake {
        stored: Settings,
        /// What was read, until it is forgotten; the system keeps it, too.
        read: std::cell::Cell<Option<Settings>>,
        /// Another process has the lock for so many attempts, and then stores this, if it stores anything.
        busy: usize,
        meanwhile: Option<Settings>,
        fails_at: Option<&'static str>,
        done: Vec<&'static str>,
    }

    impl Fake {
        fn step(&mut self, step: &'static str) -> Result<(), BootpdError> {
            self.done.push(step);
            if self.fails_at == Some(step) {
                return Err(BootpdError { step, reason: "no".to_owned() });
            }
            Ok(())
        }
    }

    impl Preferences for Fake {
        fn try_lock(&mut self) -> Result<Lock, BootpdError> {
            if self.busy > 0 {
                self.busy -= 1;
                return Ok(Lock::Busy);
            }
            self.stored = self.meanwhile.take().unwrap_or(self.stored);
            if self.read.get().is_some_and(|read| read != self.stored) {
                return Ok(Lock::Stale);
            }
            self.step("lock")?;
            Ok(Lock::Taken)
        }
        fn forget(&mut self) {
            self.read.set(None);
        }
        fn settings(&self) -> Settings {
            let read = self.read.get().unwrap_or(self.stored);
            self.read.set(Some(read));
            read
        }
        fn change(&mut self, settings: Settings) -> Result<(), BootpdError> {
            self.step("change")?;
            self.stored = settings;
            Ok(())
        }
        fn commit(&mut self) -> Result<(), BootpdError> {
            self.step("commit")
        }
        fn apply(&mut self) -> Result<(), BootpdError> {
            self.step("apply")
        }
        fn unlock(&mut self) {
            self.done.push("unlock");
        }
    }

    const RIGHT: Settings = Settings { lease_time: Some(600), ignores_client_ids: true };

    #[test]
    fn what_differs_is_changed_stored_and_applied_under_the_lock() {
        for stored in [
            Settings::default(),
            Settings { lease_time: Some(86_400), ..RIGHT },
            Settings { ignores_client_ids: false, ..RIGHT },
        ] {
            let mut fake = Fake { stored, ..Fake::default() };
            assert_eq!(tune(&mut fake, 600), Ok(Tuned::Changed));
            assert_eq!(fake.stored, RIGHT);
            assert_eq!(fake.done, ["lock", "change", "commit", "apply", "unlock"]);
        }
    }

    #[test]
    fn what_is_right_is_left_alone() {
        let mut fake = Fake { stored: RIGHT, ..Fake::default() };
        assert_eq!(tune(&mut fake, 600), Ok(Tuned::Already));
        assert!(fake.done.is_empty());
    }

    /// Two VMs that start at the same time: the second finds the lock taken, and then other settings than it has read.
    #[test]
    fn what_another_process_stores_meanwhile_is_no_failure() {
        let mut same = Fake { busy: 2, meanwhile: Some(RIGHT), ..Fake::default() };
        assert_eq!(tune(&mut same, 600), Ok(Tuned::Already));
        assert_eq!(same.done, ["lock", "unlock"]);
        let other = Settings { lease_time: Some(700), ..RIGHT };
        let mut other = Fake { busy: 2, meanwhile: Some(other), ..Fake::default() };
        assert_eq!(tune(&mut other, 600), Ok(Tuned::Changed));
        assert_eq!(other.stored, RIGHT);
    }

    #[test]
    fn nobody_holds_a_start_up_for_ever() {
        let mut fake = Fake { busy: usize::MAX, ..Fake::default() };
        let error = tune_within(&mut fake, 600, Duration::ZERO).unwrap_err().to_string();
        assert!(error.contains("another program"), "{error}");
        assert!(fake.done.is_empty(), "{:?}", fake.done);
    }

    #[test]
    fn a_failure_gives_the_lock_back() {
        for (step, done) in [
            ("lock", &["lock"][..]),
            ("change", &["lock", "change", "unlock"]),
            ("commit", &["lock", "change", "commit", "unlock"]),
            ("apply", &["lock", "change", "commit", "apply", "unlock"]),
        ] {
            let mut fake = Fake { fails_at: Some(step), ..Fake::default() };
            assert_eq!(tune(&mut fake, 600).unwrap_err().step, step);
            assert_eq!(fake.done, done);
        }
    }
}
