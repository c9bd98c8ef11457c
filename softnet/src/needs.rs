//! What a running Softnet needs from the system: the descriptors that stay open and the system calls that
//! stay allowed.
//!
//! Every part declares its needs beside the code that has them, and the seal allows the union over the parts
//! in use.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, RawFd};

/// A system call that some part of a running Softnet makes. All others end the process.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Syscall {
    /// `read(2)`
    Read,
    /// `write(2)`
    Write,
    /// `readv(2)`
    Readv,
    /// `writev(2)`
    Writev,
    /// `recvfrom(2)`, which is also `recv`.
    Recvfrom,
    /// `sendto(2)` without an address, which is `send`.
    Sendto,
    /// `sendmsg(2)`
    Sendmsg,
    /// `recvmmsg(2)`
    Recvmmsg,
    /// `sendmmsg(2)`
    Sendmmsg,
    /// `epoll_wait(2)`, or `epoll_pwait(2)` where the C library has only that.
    EpollWait,
    /// `epoll_ctl(2)`
    EpollCtl,
    /// `timerfd_settime(2)`
    TimerfdSettime,
    /// `clock_gettime(2)`, for clock sources that the vDSO cannot read.
    ClockGettime,
    /// `rt_sigreturn(2)`, the end of every signal handler.
    RtSigreturn,
    /// `close(2)`
    Close,
    /// `brk(2)`
    Brk,
    /// `mmap(2)` of private anonymous memory that is not executable.
    Mmap,
    /// `munmap(2)`
    Munmap,
    /// `sigaltstack(2)`
    Sigaltstack,
    /// `exit_group(2)`
    ExitGroup,
    /// `fcntl(2)` that asks whether a descriptor is open: builds with debug assertions ask before they close one.
    FcntlGetFlags,
}

impl Syscall {
    /// All system calls of a sealed process, whichever parts are in use: at most 20. The one that is missing
    /// is used by debug builds only.
    pub const ALL: [Syscall; 20] = [
        Syscall::Read,
        Syscall::Write,
        Syscall::Readv,
        Syscall::Writev,
        Syscall::Recvfrom,
        Syscall::Sendto,
        Syscall::Sendmsg,
        Syscall::Recvmmsg,
        Syscall::Sendmmsg,
        Syscall::EpollWait,
        Syscall::EpollCtl,
        Syscall::TimerfdSettime,
        Syscall::ClockGettime,
        Syscall::RtSigreturn,
        Syscall::Close,
        Syscall::Brk,
        Syscall::Mmap,
        Syscall::Munmap,
        Syscall::Sigaltstack,
        Syscall::ExitGroup,
    ];
}

// Checks that none was forgotten: the one for debug builds is the last variant.
const _: () = assert!(Syscall::FcntlGetFlags as usize == Syscall::ALL.len());

/// What the allocator and the standard library always need. Memory grows for a log line or the end's
/// statistics, never for a frame. The alternate signal stack and its guard are released when `main` returns.
const RUNTIME: &[Syscall] = &[
    Syscall::Brk,
    Syscall::Mmap,
    Syscall::Munmap,
    Syscall::Close,
    Syscall::Sigaltstack,
    Syscall::ExitGroup,
    #[cfg(debug_assertions)]
    Syscall::FcntlGetFlags,
];

/// Collects what the parts in use need.
#[derive(Clone, Debug)]
pub struct Needs {
    descriptors: BTreeSet<RawFd>,
    calls: BTreeSet<Syscall>,
}

impl Needs {
    /// What every process needs to run, write to standard error, and end.
    pub fn new() -> Self {
        let mut needs = Needs { descriptors: BTreeSet::new(), calls: RUNTIME.iter().copied().collect() };
        needs.descriptor(&std::io::stderr());
        needs.calls(&[Syscall::Write]);
        needs
    }

    /// `descriptor` stays open.
    pub fn descriptor(&mut self, descriptor: &impl AsFd) {
        self.raw_descriptor(descriptor.as_fd().as_raw_fd());
    }

    /// The descriptor `number`, which other code owns for the whole life of the process, stays open.
    pub fn raw_descriptor(&mut self, number: RawFd) {
        self.descriptors.insert(number);
    }

    /// `calls` stay allowed.
    pub fn calls(&mut self, calls: &[Syscall]) {
        self.calls.extend(calls);
    }

    /// The descriptors that stay open.
    pub fn descriptors(&self) -> &BTreeSet<RawFd> {
        &self.descriptors
    }

    /// The system calls that stay allowed.
    pub fn allowed(&self) -> &BTreeSet<Syscall> {
        &self.calls
    }
}

impl Default for Needs {
    fn default() -> Self {
        Needs::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `EpollWait` as `epoll_wait`.
    fn name(call: Syscall) -> String {
        let mut name = String::new();
        for letter in format!("{call:?}").chars() {
            if letter.is_ascii_uppercase() && !name.is_empty() {
                name.push('_');
            }
            name.push(letter.to_ascii_lowercase());
        }
        name
    }

    #[test]
    fn the_document_lists_the_system_calls_and_no_others() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/seal.md");
        let document = std::fs::read_to_string(path).unwrap();
        let (_, section) = document.split_once("## The system calls").unwrap();
        let (section, _) = section.split_once("\n#").unwrap();
        let rows = section.lines().filter(|line| line.starts_with('|'));
        let listed: BTreeSet<&str> = rows.flat_map(|row| row.split('`').skip(1).step_by(2)).collect();
        let mut expected: BTreeSet<String> = Syscall::ALL.map(name).into();
        expected.insert("epoll_pwait".to_owned());
        assert_eq!(listed, expected.iter().map(String::as_str).collect());
    }
}
