//! The program under test, run as a user would run it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use command_fds::{CommandFdExt, FdMapping};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::deadline::{Deadline, PATIENCE, until};

/// Where Softnet finds the descriptor for its ready line, as in [`Softnet::READY_FLAG`].
const READY_FD: i32 = 3;

/// How long to wait for the rest of an ended Softnet's log, if a process that it started keeps its standard
/// error open.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A running Softnet.
#[derive(Debug)]
pub struct Softnet {
    child: Child,
    lines: Receiver<String>,
    log: Arc<Mutex<String>>,
    /// Disconnected once the log is complete.
    log_open: Receiver<()>,
    ready: Option<OwnedFd>,
}

impl Softnet {
    /// Starts `program` with the VM's socket on standard input, as Tart does: `--vm-fd=0
    /// --vm-mac-address=MAC` and `arguments`. Frames may be sent at once; [`Softnet::ready`] waits until they
    /// flow.
    ///
    /// # Errors
    /// Fails if the program cannot be started.
    pub fn start<S: AsRef<OsStr>>(
        program: &Path,
        vm: OwnedFd,
        mac: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Self> {
        let mut command = Command::new(program);
        command
            .args(["--vm-fd=0", &format!("--vm-mac-address={mac}"), Self::READY_FLAG])
            .args(arguments)
            .stdin(vm);
        Self::spawn(command)
    }

    /// The flag that makes the ready line arrive here; [`Softnet::ready`] needs it on the command line.
    pub const READY_FLAG: &'static str = "--ready-fd=3";

    /// Starts Softnet with any command line.
    ///
    /// # Errors
    /// Fails if the program cannot be started.
    pub fn spawn(mut command: Command) -> Result<Self> {
        let (ready, theirs) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        command.stderr(Stdio::piped());
        command.fd_mappings(vec![FdMapping { parent_fd: theirs, child_fd: READY_FD }])?;
        let mut child =
            command.spawn().with_context(|| format!("start {}", command.get_program().display()))?;
        drop(command);
        let (lines, log, log_open) = follow(child.stderr.take().context("standard error is piped")?);
        Ok(Self { child, lines, log, log_open, ready: Some(ready) })
    }

    /// Waits until frames flow, and returns the ready line, which is JSON.
    ///
    /// # Errors
    /// Repeats Softnet's log if it ends instead.
    pub fn ready(&mut self) -> Result<serde_json::Value> {
        let ready = self.ready.take().context("ready() is called once")?;
        if !Deadline::default().readable(ready.as_fd()) {
            bail!("softnet does not become ready: {}", self.log());
        }
        let mut line = String::new();
        BufReader::new(std::fs::File::from(ready)).read_line(&mut line)?;
        if line.is_empty() {
            let status = self.wait()?;
            bail!("softnet ended with {status} instead of becoming ready: {}", self.log());
        }
        serde_json::from_str(&line).with_context(|| format!("the ready line is not JSON: {line}"))
    }

    /// The process that was started.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap_or(i32::MAX))
    }

    /// The process that carries the frames: the one lasting child of the process that was started. Another
    /// program that Softnet has just run may still exist for a moment.
    ///
    /// # Errors
    /// Fails if there is no such process.
    pub fn worker(&self) -> Result<Pid> {
        let path = format!("/proc/{0}/task/{0}/children", self.pid());
        let mut found = String::new();
        let one = || {
            found = std::fs::read_to_string(&path).unwrap_or_default();
            found.split_ascii_whitespace().count() == 1
        };
        ensure!(until(one), "not one worker: {found:?}");
        Ok(Pid::from_raw(found.trim().parse()?))
    }

    /// Everything on standard error so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// Fails if it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.pid(), signal).context("signal softnet")
    }

    /// Requests the counters by SIGUSR1 and waits for them.
    ///
    /// # Errors
    /// Fails if no counters arrive.
    pub fn counters(&self) -> Result<Counters> {
        while self.lines.try_recv().is_ok() {}
        self.signal(Signal::SIGUSR1)?;
        let deadline = Deadline::default();
        loop {
            match self.lines.recv_timeout(deadline.left()) {
                Ok(line) => {
                    if let Some(counters) = Counters::parse(&line) {
                        return Ok(counters);
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    bail!("no counters arrived: {}", self.log());
                }
            }
        }
    }

    /// The other ends of its standard input and output, if those were piped.
    pub(crate) fn console(&mut self) -> Result<(ChildStdin, ChildStdout)> {
        self.child.stdin.take().zip(self.child.stdout.take()).context("the console is piped")
    }

    /// Waits for its end, and for the end of its log.
    ///
    /// # Errors
    /// Fails if it does not end within [`PATIENCE`].
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let mut status = None;
        let ended = until(|| {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        });
        match status {
            Some(status) if ended => {
                let _ = self.log_open.recv_timeout(LAST_WORDS);
                Ok(status)
            }
            _ => bail!("softnet (pid {}) did not end within {PATIENCE:?}: {}", self.child.id(), self.log()),
        }
    }

    /// True until it has ended.
    #[must_use]
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Ends it as Tart does and waits.
    ///
    /// # Errors
    /// Fails if it does not end.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGINT)?;
        self.wait()
    }
}

impl Drop for Softnet {
    fn drop(&mut self) {
        // The test is over and has checked the exit status if it needs it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads a stream's lines into a channel and into one text, until its end, at which the last channel closes.
fn follow(
    stream: impl std::io::Read + Send + 'static,
) -> (Receiver<String>, Arc<Mutex<String>>, Receiver<()>) {
    let (sender, lines) = mpsc::channel();
    let (open, log_open) = mpsc::channel();
    let log = Arc::new(Mutex::new(String::new()));
    let copy = Arc::clone(&log);
    std::thread::spawn(move || {
        let _open = open;
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let mut log = copy.lock().unwrap_or_else(PoisonError::into_inner);
            log.push_str(&line);
            log.push('\n');
            drop(log);
            // Once the test is over, the receiver is dropped.
            let _ = sender.send(line);
        }
    });
    (lines, log, log_open)
}

/// Softnet's counters at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counters {
    /// What the VM sent: `forwarded`, `bytes`, `dropped`, and each drop reason by its name.
    pub from_vm: BTreeMap<String, u64>,
    /// The same for frames to the VM.
    pub from_host: BTreeMap<String, u64>,
    /// Softnet's own answers to the VM.
    pub answers: u64,
}

impl Counters {
    /// Parses a line of counters after any prefix; `None` for any other line.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let (_, both) = line.split_once("vm->host ")?;
        let (from_vm, rest) = both.split_once("host->vm ")?;
        let (from_host, answers) = rest.split_once("answers=")?;
        let read = |words: &str| {
            let words = words.split([' ', '[', ']']).filter(|word| !word.is_empty());
            words
                .map(|word| {
                    word.split_once('=')
                        .and_then(|(name, number)| Some((name.to_owned(), number.parse().ok()?)))
                })
                .take_while(Option::is_some)
                .flatten()
                .collect::<BTreeMap<_, _>>()
        };
        let answers = answers.trim().parse().ok()?;
        let counters = Self { from_vm: read(from_vm), from_host: read(from_host), answers };
        counters.from_vm.contains_key("forwarded").then_some(counters)
    }

    /// Why frames of the VM were dropped since `earlier`: the reasons' names and counts, largest first.
    #[must_use]
    pub fn drops_since(&self, earlier: &Self) -> Vec<(String, u64)> {
        let mut drops: Vec<(String, u64)> = self
            .from_vm
            .iter()
            .filter(|(name, _)| !matches!(name.as_str(), "forwarded" | "bytes" | "dropped"))
            .map(|(name, now)| (name.clone(), now - earlier.from_vm.get(name).copied().unwrap_or_default()))
            .filter(|(_, grown)| *grown > 0)
            .collect();
        drops.sort_by_key(|(_, grown)| std::cmp::Reverse(*grown));
        drops
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_counters_is_read_by_direction() {
        let earlier = Counters::parse(
            "vm->host forwarded=1 bytes=60 dropped=0 [] host->vm forwarded=0 bytes=0 dropped=0 [] answers=0",
        );
        let now = Counters::parse(
            "stats: vm->host forwarded=2 bytes=120 dropped=5 [no-lease=2 source-mac=3] host->vm forwarded=9 bytes=8 dropped=1 [other-station=1] answers=2",
        )
        .unwrap();
        assert_eq!((now.from_host["other-station"], now.answers), (1, 2));
        assert_eq!(
            now.drops_since(&earlier.unwrap()),
            [("source-mac".to_owned(), 3), ("no-lease".to_owned(), 2)]
        );
        assert_eq!(Counters::parse("ready"), None);
    }
}
