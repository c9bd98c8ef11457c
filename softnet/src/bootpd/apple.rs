//! The preferences in the system's store, by SystemConfiguration.
//!
//! `unsafe`, because the framework's calls are C and its values are counted references.
#![expect(unsafe_code, reason = "SystemConfiguration and CoreFoundation are C interfaces")]

use core_foundation::base::{CFType, TCFType, kCFAllocatorDefault};
use core_foundation::boolean::CFBoolean;
use core_foundation::dictionary::{CFDictionary, CFDictionaryRef, CFMutableDictionary};
use core_foundation::number::CFNumber;
use core_foundation::string::CFString;
use system_configuration_sys::preferences::{
    SCPreferencesApplyChanges, SCPreferencesCommitChanges, SCPreferencesCreate, SCPreferencesGetValue,
    SCPreferencesLock, SCPreferencesRef, SCPreferencesSetValue, SCPreferencesSynchronize,
    SCPreferencesUnlock,
};

use super::{BootpdError, Lock, Preferences, Settings, Tuned, tune};

/// The preferences file, in `/Library/Preferences/SystemConfiguration`.
const FILE: &str = "com.apple.InternetSharing.default.plist";
/// The dictionary of bootpd's settings.
const DICTIONARY: &str = "bootpd";
/// The lease time in it, a number.
const LEASE_TIME: &str = "DHCPLeaseTimeSecs";
/// Whether leases are filed by MAC address alone, a boolean (bootpd(8)).
const IGNORE_CLIENT_IDS: &str = "dhcp_ignore_client_identifier";

/// `kSCStatusPrefsBusy` and `kSCStatusStale` (`SystemConfiguration.h`; `SCPLock.c` of configd says when).
const PREFS_BUSY: libc::c_int = 3002;
const STALE: libc::c_int = 3005;

/// Lets the leases of this system's DHCP server last `seconds`, and client identifiers count for nothing there.
///
/// # Errors
/// When the preferences cannot be read or written.
pub fn tune_system(seconds: u32) -> Result<Tuned, BootpdError> {
    tune(&mut SystemPreferences::open()?, seconds)
}

/// An open preferences session.
#[derive(Debug)]
struct SystemPreferences {
    session: CFType,
}

impl SystemPreferences {
    fn open() -> Result<Self, BootpdError> {
        let (name, file) = (CFString::from_static_string("softnet"), CFString::from_static_string(FILE));
        // SAFETY: both strings live through the call; a null result is an error; otherwise the reference is ours to
        // release.
        let session = unsafe {
            let session = SCPreferencesCreate(
                kCFAllocatorDefault,
                name.as_concrete_TypeRef(),
                file.as_concrete_TypeRef(),
            );
            if session.is_null() {
                return Err(failed("open"));
            }
            CFType::wrap_under_create_rule(session.cast())
        };
        Ok(SystemPreferences { session })
    }

    fn raw(&self) -> SCPreferencesRef {
        self.session.as_CFTypeRef().cast_mut().cast()
    }

    /// The dictionary of bootpd's settings, if there is one.
    fn dictionary(&self) -> Option<CFDictionary<CFString, CFType>> {
        let key = CFString::from_static_string(DICTIONARY);
        // SAFETY: the session and the key live through the call; the value belongs to the session, and is retained
        // before anything changes that; its type is checked before it is taken for a dictionary.
        unsafe {
            let value = SCPreferencesGetValue(self.raw(), key.as_concrete_TypeRef());
            if value.is_null() {
                return None;
            }
            let value = CFType::wrap_under_get_rule(value);
            value
                .instance_of::<CFDictionary>()
                .then(|| CFDictionary::wrap_under_get_rule(value.as_CFTypeRef() as CFDictionaryRef))
        }
    }
}

impl Preferences for SystemPreferences {
    fn try_lock(&mut self) -> Result<Lock, BootpdError> {
        // SAFETY: the session lives through the call; the other one takes nothing.
        let (locked, error) = unsafe { (SCPreferencesLock(self.raw(), 0), SCError()) };
        match (locked, error) {
            (0, PREFS_BUSY) => Ok(Lock::Busy),
            (0, STALE) => Ok(Lock::Stale),
            (0, _) => Err(failed("lock")),
            _ => Ok(Lock::Taken),
        }
    }

    fn forget(&mut self) {
        // SAFETY: the session lives through the call.
        unsafe { SCPreferencesSynchronize(self.raw()) }
    }

    fn settings(&self) -> Settings {
        let Some(dictionary) = self.dictionary() else { return Settings::default() };
        let value = |key| Some(dictionary.find(CFString::from_static_string(key))?.clone());
        let lease_time = value(LEASE_TIME).and_then(|value| value.downcast::<CFNumber>()?.to_i64());
        let ignores = value(IGNORE_CLIENT_IDS).and_then(|value| value.downcast::<CFBoolean>());
        Settings {
            lease_time: lease_time.and_then(|seconds| u32::try_from(seconds).ok()),
            ignores_client_ids: ignores.is_some_and(bool::from),
        }
    }

    fn change(&mut self, settings: Settings) -> Result<(), BootpdError> {
        let mut dictionary = match self.dictionary() {
            Some(present) => CFMutableDictionary::from(&present),
            None => CFMutableDictionary::new(),
        };
        if let Some(seconds) = settings.lease_time {
            let value = CFNumber::from(i64::from(seconds)).as_CFType();
            dictionary.set(CFString::from_static_string(LEASE_TIME), value);
        }
        let value = CFBoolean::from(settings.ignores_client_ids).as_CFType();
        dictionary.set(CFString::from_static_string(IGNORE_CLIENT_IDS), value);
        let key = CFString::from_static_string(DICTIONARY);
        // SAFETY: session, key and value live through the call, which retains what it keeps.
        let set = unsafe {
            SCPreferencesSetValue(
                self.raw(),
                key.as_concrete_TypeRef(),
                dictionary.as_concrete_TypeRef().cast_const().cast(),
            )
        };
        if set == 0 { Err(failed("change")) } else { Ok(()) }
    }

    fn commit(&mut self) -> Result<(), BootpdError> {
        // SAFETY: the session lives through the call.
        let stored = unsafe { SCPreferencesCommitChanges(self.raw()) };
        if stored == 0 { Err(failed("store")) } else { Ok(()) }
    }

    fn apply(&mut self) -> Result<(), BootpdError> {
        // SAFETY: the session lives through the call.
        let applied = unsafe { SCPreferencesApplyChanges(self.raw()) };
        if applied == 0 { Err(failed("apply")) } else { Ok(()) }
    }

    fn unlock(&mut self) {
        // SAFETY: the session lives through the call. It fails only if the lock is not held.
        unsafe {
            SCPreferencesUnlock(self.raw());
        }
    }
}

/// The framework's error of the last call on this thread.
fn failed(step: &'static str) -> BootpdError {
    // SAFETY: both calls take no pointer; the string is a constant of the framework.
    let reason = unsafe { std::ffi::CStr::from_ptr(SCErrorString(SCError())) };
    BootpdError { step, reason: reason.to_string_lossy().into_owned() }
}

// SAFETY: as declared in SystemConfiguration/SystemConfiguration.h.
#[link(name = "SystemConfiguration", kind = "framework")]
unsafe extern "C" {
    fn SCError() -> libc::c_int;
    fn SCErrorString(status: libc::c_int) -> *const libc::c_char;
}
