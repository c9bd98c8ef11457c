//! What vmnet answers, and what it means for a start that it refuses.

use std::fmt;

use super::Refusal;
use crate::usage::UsageError;

/// `vmnet_return_t`, from `vmnet.h`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Status(pub u32);

impl Status {
    /// `VMNET_SUCCESS`.
    pub const SUCCESS: Self = Self(1000);
    /// `VMNET_MEM_FAILURE`.
    pub const MEM_FAILURE: Self = Self(1002);
    /// `VMNET_INVALID_ARGUMENT`.
    pub const INVALID_ARGUMENT: Self = Self(1003);
    /// `VMNET_PACKET_TOO_BIG`.
    pub const PACKET_TOO_BIG: Self = Self(1006);
    /// `VMNET_BUFFER_EXHAUSTED`.
    pub const BUFFER_EXHAUSTED: Self = Self(1007);
    /// `VMNET_TOO_MANY_PACKETS`.
    pub const TOO_MANY_PACKETS: Self = Self(1008);
    /// `VMNET_SHARING_SERVICE_BUSY`.
    pub const SHARING_SERVICE_BUSY: Self = Self(1009);

    /// Ok for [`Status::SUCCESS`].
    ///
    /// # Errors
    /// If it is any other.
    pub fn check(self) -> Result<(), Failure> {
        if self == Self::SUCCESS { Ok(()) } else { Err(Failure::Status(self)) }
    }

    /// The header's description.
    fn description(self) -> &'static str {
        match self.0 {
            1000 => "success",
            1001 => "general failure",
            1002 => "memory allocation failure",
            1003 => "invalid argument",
            1004 => "interface setup is not complete",
            1005 => "permission denied",
            1006 => "packet larger than the MTU",
            1007 => "buffers exhausted in the kernel",
            1008 => "too many packets",
            1009 => "a conflicting sharing service is in use",
            1010 => "missing authorization",
            _ => "unknown status",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (vmnet status {})", self.description(), self.0)
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a call into the framework failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The framework reports it.
    #[error("{0}")]
    Status(Status),
    /// The framework returned no interface, and no status.
    #[error("vmnet returned no interface")]
    NoInterface,
    /// The framework accepted the call and did not complete it in time.
    #[error("vmnet did not complete the call within {0} s")]
    NoAnswer(u64),
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Status(Status::BUFFER_EXHAUSTED | Status::MEM_FAILURE) => Self::Exhausted,
            Failure::Status(Status::PACKET_TOO_BIG | Status::INVALID_ARGUMENT | Status::TOO_MANY_PACKETS) => {
                Self::Argument(failure.to_string())
            }
            other => Self::Broken(other.to_string()),
        }
    }
}

/// Darwin's major version in macOS 26.
const DARWIN_OF_MACOS_26: u32 = 25;

/// Whether vmnet on this version of Darwin, such as `24.6.0` on macOS 15.6, serves a user other than root whose
/// program has the entitlement `com.apple.security.virtualization`. No, if the version is unknown.
#[must_use]
pub fn serves_users(darwin: &str) -> bool {
    let major = darwin.split('.').next().and_then(|major| major.parse::<u32>().ok());
    major.is_some_and(|major| major >= DARWIN_OF_MACOS_26)
}

/// The error for a start that failed.
///
/// Without root any failure may be a refusal: 1001, 1002, 1005 and no interface at all were all seen for it,
/// depending on the version, beside the 1010 that is meant for it.
#[must_use]
pub fn not_started(failure: Failure, is_root: bool, darwin: &str) -> anyhow::Error {
    if failure == Failure::Status(Status::SHARING_SERVICE_BUSY) {
        return anyhow::Error::new(failure).context("vmnet is busy; Internet Sharing may hold its network");
    }
    if is_root {
        return anyhow::Error::new(failure).context("cannot start a vmnet interface");
    }
    let cure = "set Softnet's SUID bit (chown root and chmod u+s), or allow sudo without a password";
    let reason = if serves_users(darwin) {
        format!(
            "vmnet refused this user: {failure}. It needs root ({cure}), or Softnet's code signature needs the entitlement \
             com.apple.security.virtualization, which `codesign -d --entitlements - PATH` shows"
        )
    } else {
        format!("vmnet needs root on this macOS: {failure}; {cure}")
    };
    UsageError::flag("softnet", reason).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_served_from_macos_26_on() {
        for (darwin, served) in [
            ("22.1.0", false),
            ("24.6.0", false),
            ("25.0.0", true),
            ("26.1.2", true),
            ("", false),
            ("x", false),
        ] {
            assert_eq!(serves_users(darwin), served, "{darwin:?}");
        }
    }

    #[test]
    fn a_refusal_names_status_and_cure() {
        let refusals = [1001, 1002, 1005, 1010].map(|status| Failure::Status(Status(status)));
        for failure in refusals.into_iter().chain([Failure::NoInterface]) {
            for (darwin, says) in
                [("25.0.0", "com.apple.security.virtualization"), ("24.6.0", "needs root on this macOS")]
            {
                let error = not_started(failure, false, darwin);
                let text = error.to_string();
                assert!(text.contains(says) && text.contains("SUID bit"), "{text}");
                assert!(text.contains(&failure.to_string()), "{text}");
                assert!(error.is::<UsageError>());
            }
            let error = not_started(failure, true, "25.0.0");
            assert!(!error.is::<UsageError>(), "root is not told to become root: {error:#}");
        }
        let busy = not_started(Failure::Status(Status(1009)), false, "25.0.0");
        assert!(format!("{busy:#}").contains("Internet Sharing"), "{busy:#}");
    }

    #[test]
    fn a_status_says_whether_frames_an_argument_or_the_interface_are_lost() {
        let refusal = |status| Refusal::from(Failure::Status(Status(status)));
        assert_eq!([refusal(1007), refusal(1002)], [Refusal::Exhausted, Refusal::Exhausted]);
        for status in [1003, 1006, 1008] {
            assert!(matches!(refusal(status), Refusal::Argument(_)), "{status}");
        }
        for status in [1001, 1004, 1005, 1009, 1010, 7] {
            assert!(matches!(refusal(status), Refusal::Broken(_)), "{status}");
        }
        assert_eq!(Status::SUCCESS.check(), Ok(()));
        assert_eq!(Status(1005).check().unwrap_err().to_string(), "permission denied (vmnet status 1005)");
    }
}
