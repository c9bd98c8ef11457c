//! A place for one VM at a time: the VM, its socket, its Softnet, and how they end.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::{Softnet, VmPort};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open};

use crate::end::End;
use crate::plan::{Life, Plan};
use crate::vm::Vm;

/// The first port of the host that leads to a VM; each place has one.
pub const FIRST_PORT: usize = 20_000;

/// Where the VM stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It is about.
    Living,
    /// It was told to end.
    Ending(Instant),
}

/// A process and the means to be told of its end.
#[derive(Debug)]
pub struct Process {
    pub pid: Pid,
    fd: OwnedFd,
    pub gone: bool,
}

impl Process {
    fn new(pid: Pid) -> Result<Self> {
        let raw = rustix::process::Pid::from_raw(pid.as_raw()).context("process 0")?;
        Ok(Self { pid, fd: pidfd_open(raw, PidfdFlags::empty())?, gone: false })
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The place.
#[derive(Debug)]
pub struct Slot {
    /// How many VMs were started before it.
    pub number: usize,
    pub vm: Vm,
    /// The VM's end of the socket, until it closes it.
    pub port: Option<VmPort>,
    pub softnet: Softnet,
    /// The process that was started, which becomes the monitor.
    pub monitor: Process,
    /// Its child, once it is known.
    pub worker: Option<Process>,
    pub phase: Phase,
    /// Something went wrong with it, so how it ends proves nothing.
    pub spoilt: bool,
    /// It did not end and was killed.
    pub killed: bool,
}

impl Slot {
    /// Starts a VM at `place`.
    pub fn start(plan: &Plan, number: usize, place: usize, vm: Vm) -> Result<Self> {
        let (port, theirs) = VmPort::pair()?;
        let mut arguments = vec![
            "--stats".to_owned(),
            format!("--subnet={}", plan.subnet()?),
            format!("--bootpd-lease-time={}", plan.lease_seconds()),
        ];
        if vm.life.exposed {
            arguments.push(format!("--expose={}:80/udp", FIRST_PORT + place));
        }
        let program = Path::new(env!("CARGO_BIN_EXE_softnet"));
        let softnet = Softnet::start(program, theirs, &vm.life.mac.to_string(), arguments)?;
        let monitor = Process::new(softnet.pid())?;
        let (port, phase) = (Some(port), Phase::Living);
        Ok(Self { number, vm, port, softnet, monitor, worker: None, phase, spoilt: false, killed: false })
    }

    /// All that has to end before the place is free.
    pub fn processes(&mut self) -> impl Iterator<Item = &mut Process> {
        std::iter::once(&mut self.monitor).chain(&mut self.worker)
    }

    /// Finds the worker, if it is there already.
    pub fn find_worker(&mut self) {
        if self.worker.is_none() {
            self.worker = worker_of(self.monitor.pid).and_then(|pid| Process::new(pid).ok());
        }
    }

    /// The other end of the queue, as far as it has room.
    pub fn flush(&mut self) {
        let Some(port) = &self.port else { return };
        while let Some(frame) = self.vm.outbox.front() {
            match port.try_send(frame) {
                Ok(true) => {
                    self.vm.outbox.pop_front();
                }
                Ok(false) => return,
                // Nobody is there any more; the process says when.
                Err(_) => self.vm.outbox.clear(),
            }
        }
    }

    /// Brings about the VM's end.
    pub fn end(&mut self, now: Instant) -> Result<()> {
        self.find_worker();
        let Life { end, early, .. } = self.vm.life;
        let end = if end == End::Early { early } else { end };
        if end == End::Release {
            self.vm.give_back();
            let port = self.port.take().context("it is still living")?;
            for frame in self.vm.outbox.drain(..) {
                // Nobody listens if Softnet is gone, which its process tells.
                let _ = port.send(&frame);
            }
        }
        self.vm.fall_silent();
        self.vm.outbox.clear();
        let monitor = self.monitor.pid;
        let worker = self.worker.as_ref().map(|worker| worker.pid);
        match end {
            End::Close | End::Release | End::Early => self.port = None,
            End::Sigterm => signal(monitor, Signal::SIGTERM)?,
            End::Sigint => signal(monitor, Signal::SIGINT)?,
            End::Worker => signal(worker.unwrap_or(monitor), Signal::SIGKILL)?,
            End::Monitor => signal(monitor, Signal::SIGKILL)?,
            End::Both => {
                // So that it cannot tidy up in between.
                signal(monitor, Signal::SIGSTOP)?;
                self.find_worker();
                if let Some(worker) = &self.worker {
                    signal(worker.pid, Signal::SIGKILL)?;
                }
                signal(monitor, Signal::SIGKILL)?;
            }
        }
        self.phase = Phase::Ending(now);
        Ok(())
    }

    /// How long it has been ending.
    pub fn ending_for(&self, now: Instant) -> Option<Duration> {
        match self.phase {
            Phase::Living => None,
            Phase::Ending(since) => Some(now.saturating_duration_since(since)),
        }
    }

    /// Whether both processes are gone.
    pub fn is_over(&self) -> bool {
        self.monitor.gone && self.worker.as_ref().is_none_or(|worker| worker.gone)
    }

    /// What is still there of it, and what it does with signals.
    pub fn remains(&mut self) -> String {
        self.find_worker();
        let remains = self.processes().map(|process| {
            let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap_or_default();
            let wanted = |line: &&str| ["State", "Sig", "Shd"].iter().any(|word| line.starts_with(word));
            let lines: Vec<&str> = status.lines().filter(wanted).collect();
            format!("process {}: {}\n", process.pid, lines.join(", "))
        });
        remains.collect()
    }

    /// Kills what is left, because it has had its time.
    pub fn give_up(&mut self) {
        (self.spoilt, self.killed) = (true, true);
        for process in self.processes().filter(|process| !process.gone) {
            let _ = signal(process.pid, Signal::SIGKILL);
        }
    }
}

/// Sends a signal to somebody who may be gone already.
fn signal(pid: Pid, signal: Signal) -> Result<()> {
    match kill(pid, signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno).with_context(|| format!("send {signal} to process {pid}")),
    }
}

/// The monitor's first child; nft and the like come later and go.
fn worker_of(monitor: Pid) -> Option<Pid> {
    let children = std::fs::read_to_string(format!("/proc/{monitor}/task/{monitor}/children")).ok()?;
    let is_softnet = |pid: &&str| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "softnet")
    };
    Some(Pid::from_raw(children.split_ascii_whitespace().find(is_softnet)?.parse().ok()?))
}
