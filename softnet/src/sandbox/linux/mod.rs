//! The stages on Linux, in their order.

mod capabilities;
mod confine;
mod landlock;
mod namespaces;
mod seccomp;

use std::io::{self, Write};

use rustix::process::{DumpableBehavior, Resource, Rlimit};

use super::{Missing, SealError};
use crate::needs::Needs;
use crate::privilege::Identity;
use crate::sys;

pub use self::capabilities::keep_only as keep_capabilities;
pub use self::confine::{Calls, Files, OnDenied, limit_files};
pub use self::landlock::restrict as restrict_by_landlock;

/// Exit status after a panic, the same as Rust's.
const PANICKED: i32 = 101;

/// Gives up everything but `needs`, and becomes `identity`. A kernel without Landlock or seccomp is an error if the
/// sandbox is `required`, and a warning if not.
///
/// # Errors
/// When a stage fails. The process is then only partly sealed and must end.
pub fn seal(needs: &Needs, identity: &Identity, required: bool) -> Result<(), SealError> {
    let stage = |what| move |error: io::Error| SealError::Stage(what, error);
    sys::process::ensure_single_thread().map_err(stage("seal a process with more than one thread"))?;
    exit_on_panic();
    sys::fd::close_all_but(needs.descriptors()).map_err(stage("close unneeded descriptors"))?;
    let unshared = namespaces::unshare_all(identity);
    give_up_privilege(identity)?;
    let landlock = landlock::restrict().map_err(stage("restrict the process with Landlock"))?;
    if !landlock {
        report_missing(Missing::Landlock, required)?;
    }
    // After Landlock, which opens a descriptor for its ruleset.
    limit_resources().map_err(stage("limit resources"))?;
    let seccomp =
        match seccomp::Filter::new(needs.allowed()).map_err(stage("compile the system call filter"))? {
            Some(filter) => filter.apply().map_err(stage("filter system calls"))?,
            None => false,
        };
    if !seccomp {
        report_missing(Missing::Seccomp, required)?;
    }
    tracing::info!(
        uid = identity.uid.as_raw(),
        gid = identity.gid.as_raw(),
        descriptors = needs.descriptors().len(),
        network = if unshared.network { "empty" } else { "host" },
        files = if unshared.files { "empty" } else { "host" },
        landlock,
        system_calls = if seccomp { needs.allowed().len() } else { 0 },
        "sealed"
    );
    Ok(())
}

/// Becomes `identity`, without any capability and without a way to regain one.
///
/// # Errors
/// When a stage fails. The process is then only partly sealed and must end.
pub fn give_up_privilege(identity: &Identity) -> Result<(), SealError> {
    let stage = |what| move |error: io::Error| SealError::Stage(what, error);
    capabilities::empty_bounding_set().map_err(stage("empty the capability bounding set"))?;
    identity.assume().map_err(stage("become an ordinary user"))?;
    capabilities::drop_all().map_err(stage("drop all capabilities"))?;
    forbid_new_privilege().map_err(stage("forbid new privilege"))
}

fn report_missing(missing: Missing, required: bool) -> Result<(), SealError> {
    if required {
        return Err(SealError::Missing(missing));
    }
    tracing::warn!(%missing, "this kernel lacks a part of the sandbox, so Softnet is confined less; --require-sandbox makes this an error");
    Ok(())
}

/// Makes a panic print its message and end the process: unwinding, a backtrace and `abort` would all need
/// files or system calls that the seal denies, so seccomp would kill the process before the message is
/// printed.
fn exit_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        let _ = writeln!(io::stderr(), "softnet: {panic}");
        sys::process::exit_now(PANICKED);
    }));
}

fn forbid_new_privilege() -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// No core file, no further descriptor, no further process.
fn limit_resources() -> io::Result<()> {
    for resource in [Resource::Core, Resource::Nofile, Resource::Nproc] {
        rustix::process::setrlimit(resource, Rlimit { current: Some(0), maximum: Some(0) })?;
    }
    Ok(())
}
