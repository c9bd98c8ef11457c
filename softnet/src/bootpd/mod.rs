//! The lease time of macOS's DHCP server, bootpd.
//!
//! vmnet's DHCP range has some 250 addresses, and bootpd leases each for a day by default: a host that starts
//! a few hundred VMs a day runs out. The time is a system preference of Internet Sharing, `bootpd` →
//! `DHCPLeaseTimeSecs` in `com.apple.InternetSharing.default.plist`, which other programs may use too. So
//! this module changes it under the preferences' lock, only if it differs, and touches no other key.

#[cfg(target_os = "macos")]
mod apple;

#[cfg(target_os = "macos")]
pub use apple::tune_system;

/// Access to the lease time in the preferences.
pub trait Preferences {
    /// Waits for the lock, and then reads the latest state.
    ///
    /// # Errors
    /// When the lock cannot be taken, for instance without privilege.
    fn lock(&mut self) -> Result<(), BootpdError>;
    /// The lease time in seconds, if one is set.
    fn lease_time(&self) -> Option<u32>;
    /// Sets the lease time, and leaves all other keys as they are.
    ///
    /// # Errors
    /// When the preferences reject it.
    fn set_lease_time(&mut self, seconds: u32) -> Result<(), BootpdError>;
    /// Stores the change and notifies the programs that use it.
    ///
    /// # Errors
    /// When it cannot be stored.
    fn commit(&mut self) -> Result<(), BootpdError>;
    /// Releases the lock.
    fn unlock(&mut self);
}

/// Why the lease time was not set. Softnet only warns about it.
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
    /// It already had the value.
    Already,
    /// It was changed.
    Changed,
}

/// Sets the lease time to `seconds`, if it differs.
///
/// # Errors
/// The first step that failed; the lock is released in any case.
pub fn tune(preferences: &mut impl Preferences, seconds: u32) -> Result<Tuned, BootpdError> {
    // This is the usual case, and reading needs no privilege.
    if preferences.lease_time() == Some(seconds) {
        return Ok(Tuned::Already);
    }
    preferences.lock()?;
    let outcome = tune_locked(preferences, seconds);
    preferences.unlock();
    outcome
}

fn tune_locked(preferences: &mut impl Preferences, seconds: u32) -> Result<Tuned, BootpdError> {
    // Another Softnet may have set it while this one waited.
    if preferences.lease_time() == Some(seconds) {
        return Ok(Tuned::Already);
    }
    preferences.set_lease_time(seconds)?;
    preferences.commit()?;
    Ok(Tuned::Changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Preferences that record the calls.
    #[derive(Debug, Default)]
    struct Fake {
        stored: Option<u32>,
        /// What another process stores while this one waits for the lock.
        meanwhile: Option<u32>,
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
        fn lock(&mut self) -> Result<(), BootpdError> {
            self.step("lock")?;
            self.stored = self.meanwhile.or(self.stored);
            Ok(())
        }
        fn lease_time(&self) -> Option<u32> {
            self.stored
        }
        fn set_lease_time(&mut self, seconds: u32) -> Result<(), BootpdError> {
            self.step("set")?;
            self.stored = Some(seconds);
            Ok(())
        }
        fn commit(&mut self) -> Result<(), BootpdError> {
            self.step("commit")
        }
        fn unlock(&mut self) {
            self.done.push("unlock");
        }
    }

    #[test]
    fn a_time_that_differs_is_changed_under_the_lock() {
        for stored in [None, Some(86_400)] {
            let mut fake = Fake { stored, ..Fake::default() };
            assert_eq!(tune(&mut fake, 600), Ok(Tuned::Changed));
            assert_eq!(fake.stored, Some(600));
            assert_eq!(fake.done, ["lock", "set", "commit", "unlock"]);
        }
    }

    #[test]
    fn a_time_that_is_right_is_left_alone() {
        let mut fake = Fake { stored: Some(600), ..Fake::default() };
        assert_eq!(tune(&mut fake, 600), Ok(Tuned::Already));
        assert!(fake.done.is_empty());
        let mut raced = Fake { meanwhile: Some(600), ..Fake::default() };
        assert_eq!(tune(&mut raced, 600), Ok(Tuned::Already));
        assert_eq!(raced.done, ["lock", "unlock"]);
    }

    #[test]
    fn a_failure_gives_the_lock_back() {
        for (step, done) in [
            ("lock", &["lock"][..]),
            ("set", &["lock", "set", "unlock"]),
            ("commit", &["lock", "set", "commit", "unlock"]),
        ] {
            let mut fake = Fake { fails_at: Some(step), ..Fake::default() };
            assert_eq!(tune(&mut fake, 600).unwrap_err().step, step);
            assert_eq!(fake.done, done);
        }
    }
}
