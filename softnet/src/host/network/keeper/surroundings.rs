//! Resets everything that the keeper inherited from the process that started it, so that it runs like a
//! system service.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, fstat};
use rustix::process::{Resource, Rlimit, getrlimit, setpriority_process, setrlimit, umask};
use rustix::thread::{CapabilitySet, CpuSet, sched_setaffinity, set_name};

use crate::sandbox;
use crate::sys;

/// The control group of keepers and servers, at the root of each hierarchy.
const GROUP: &str = "softnet";

/// What the keeper, nft and dnsmasq need: to change interfaces, tables and switches; for the server, to open
/// its sockets and to change its user; and to inspect and end the server, which runs as another user.
const KEPT: [CapabilitySet; 8] = [
    CapabilitySet::NET_ADMIN,
    CapabilitySet::NET_RAW,
    CapabilitySet::NET_BIND_SERVICE,
    CapabilitySet::SETUID,
    CapabilitySet::SETGID,
    CapabilitySet::CHOWN,
    CapabilitySet::KILL,
    CapabilitySet::SYS_PTRACE,
];

/// Resource limits of a system service.
const LIMITS: [(Resource, Option<u64>, Option<u64>); 11] = [
    (Resource::Cpu, None, None),
    (Resource::Fsize, None, None),
    (Resource::Data, None, None),
    (Resource::As, None, None),
    (Resource::Nproc, None, None),
    (Resource::Rss, None, None),
    (Resource::Stack, Some(8 << 20), None),
    (Resource::Core, Some(0), None),
    (Resource::Memlock, Some(8 << 20), Some(8 << 20)),
    (Resource::Locks, None, None),
    // Each of the server's queries and connections is a socket.
    (Resource::Nofile, Some(16_384), Some(65_536)),
];

/// Resets one inherited attribute.
type Step = fn() -> io::Result<()>;

/// Takes the channel from standard input, if the starter passed one there; standard input and output become
/// /dev/null.
pub fn take_channel() -> io::Result<Option<OwnedFd>> {
    let stdin = io::stdin();
    let channel = match FileType::from_raw_mode(fstat(&stdin)?.st_mode) {
        FileType::Socket => Some(stdin.as_fd().try_clone_to_owned()?),
        _ => None,
    };
    let nowhere = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&nowhere)?;
    rustix::stdio::dup2_stdout(&nowhere)?;
    Ok(channel)
}

/// Redirects standard error, the log, to the file at `path`.
pub fn take_log(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o644)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)?;
    Ok(rustix::stdio::dup2_stderr(&file)?)
}

/// Resets everything that was inherited. A failure is logged only: the keeper still works.
pub fn reset_inherited() {
    let steps: [(&str, Step); 7] = [
        ("the signal dispositions", sys::process::default_signals),
        ("the resource limits", lift_limits),
        ("the priority", || Ok(setpriority_process(None, 0)?)),
        ("the scheduling policy", sys::process::default_scheduling),
        ("the CPU affinity", any_processor),
        ("the OOM score", || fs::write("/proc/self/oom_score_adj", "0")),
        ("the capabilities", bound_capabilities),
    ];
    umask(Mode::from_raw_mode(0o022));
    let _ = set_name(c"softnet-warden");
    // Before the capabilities go.
    for path in hierarchies(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()) {
        if let Err(error) = join_group(&path) {
            tracing::warn!(%error, hierarchy = %path.display(), "dnsmasq stays in the control group of the process that started the keeper");
        }
    }
    for (what, step) in steps {
        if let Err(error) = step() {
            tracing::warn!(%error, "cannot reset {what}; dnsmasq inherits what the keeper was started with");
        }
    }
}

fn lift_limits() -> io::Result<()> {
    let mut outcome = Ok(());
    for (resource, current, maximum) in LIMITS {
        if let Err(error) = setrlimit(resource, Rlimit { current, maximum }) {
            // Root in a container may not raise its hard limit.
            let most = getrlimit(resource).maximum;
            let current = [current, most].into_iter().flatten().min();
            if setrlimit(resource, Rlimit { current, maximum: most }).is_err() {
                outcome = Err(error.into());
            }
        }
    }
    outcome
}

fn any_processor() -> io::Result<()> {
    let mut all = CpuSet::new();
    (0..CpuSet::MAX_CPU).for_each(|processor| all.set(processor));
    Ok(sched_setaffinity(None, &all)?)
}

fn bound_capabilities() -> io::Result<()> {
    let kept = KEPT.into_iter().fold(CapabilitySet::empty(), CapabilitySet::union);
    sandbox::keep_capabilities(kept)
}

/// The mount points of control group hierarchies, from the text of `mountinfo` (proc_pid_mountinfo(5)).
fn hierarchies(mounts: &str) -> Vec<PathBuf> {
    let mount = |line: &str| {
        let (place, kind) = line.split_once(" - ")?;
        let is_hierarchy = matches!(kind.split(' ').next(), Some("cgroup" | "cgroup2"));
        is_hierarchy.then(|| place.split(' ').nth(4).map(PathBuf::from)).flatten()
    };
    mounts.lines().filter_map(mount).collect()
}

/// Moves this process to the group at the root of the hierarchy that is mounted at `root`.
fn join_group(root: &Path) -> io::Result<()> {
    let group = root.join(GROUP);
    match fs::create_dir(&group) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // A cpuset group of version 1 accepts no process before it has processors and memory
    // (cgroup-v1/cpusets.rst).
    for name in ["cpuset.cpus", "cpuset.mems"] {
        if File::open(root.join("cgroup.sane_behavior")).is_ok()
            && let Ok(all) = fs::read_to_string(root.join(name))
        {
            fs::write(group.join(name), all)?;
        }
    }
    fs::write(group.join("cgroup.procs"), "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_both_versions_are_found() {
        let mounts = "30 25 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
                      31 30 0:27 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n\
                      36 30 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let found = hierarchies(mounts);
        assert_eq!(found, ["/sys/fs/cgroup/unified", "/sys/fs/cgroup/memory"].map(PathBuf::from));
    }
}
