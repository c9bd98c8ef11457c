//! The resources that a process has used: CPU time, memory, wake-ups.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// A process with its children, whose usage is read from `/proc`: Softnet is two processes on Linux.
#[derive(Clone, Copy, Debug)]
pub struct Process(pub u32);

impl Process {
    /// CPU time of all threads so far, in user and kernel mode.
    ///
    /// The scheduler's count is exact to the nanosecond; the ticks of `/proc/PID/stat` are not.
    ///
    /// # Errors
    /// If the process has ended.
    pub fn cpu(&self) -> Result<Duration> {
        self.family()?.iter().map(Process::own_cpu).sum()
    }

    fn own_cpu(&self) -> Result<Duration> {
        let mut total = Duration::ZERO;
        for thread in fs::read_dir(format!("/proc/{}/task", self.0))? {
            let text = fs::read_to_string(thread?.path().join("schedstat"))?;
            let nanoseconds = text.split_whitespace().next().context("an empty schedstat")?;
            total += Duration::from_nanos(nanoseconds.parse()?);
        }
        Ok(total)
    }

    /// Resident memory now and at its peak, in bytes. Memory that the processes share counts for each.
    ///
    /// # Errors
    /// If the process has ended.
    pub fn memory(&self) -> Result<(u64, u64)> {
        let mut sum = (0, 0);
        for process in self.family()? {
            sum.0 += process.status("VmRSS:")? * 1024;
            sum.1 += process.status("VmHWM:")? * 1024;
        }
        Ok(sum)
    }

    /// How often it went to sleep so far.
    ///
    /// # Errors
    /// If the process has ended.
    pub fn sleeps(&self) -> Result<u64> {
        self.family()?.iter().map(|process| process.status("voluntary_ctxt_switches:")).sum()
    }

    /// The process and its children.
    fn family(&self) -> Result<Vec<Process>> {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.0))?;
        let children = children.split_ascii_whitespace().map(|pid| Ok(Process(pid.parse()?)));
        std::iter::once(Ok(*self)).chain(children).collect()
    }

    fn status(&self, field: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0))?;
        let value =
            status.lines().find_map(|line| line.strip_prefix(field)).with_context(|| field.to_owned())?;
        Ok(value.split_whitespace().next().unwrap_or_default().parse()?)
    }
}
