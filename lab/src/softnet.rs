//! The program under test, run as a user would run it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use command_fds::{CommandFdExt, FdMapping};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::deadline::{Deadline, PATIENCE};

/// Where Softnet finds the descriptor for its ready line, as in [`Softnet::READY_FLAG`].
const READY_FD: i32 = 3;

/// A running Softnet.
#[derive(Debug)]
pub struct Softnet {
    child: Child,
    lines: Receiver<String>,
    log: Arc<Mutex<String>>,
    ready: Option<OwnedFd>,
}

impl Softnet {
    /// Starts `program` with the VM's socket on standard input, as Tart does: `--vm-fd=0 --vm-mac-address=MAC` and
    /// `arguments`. Frames may be sent at once; [`Softnet::ready`] waits until they flow.
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

    /// Starts any command line of Softnet.
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
        let (lines, log) = follow(child.stderr.take().context("standard error is piped")?);
        Ok(Self { child, lines, log, ready: Some(ready) })
    }

    /// Waits until frames flow and returns the JSON line that says how.
    ///
    /// # Errors
    /// Repeats Softnet's own words if it ends instead.
    pub fn ready(&mut self) -> Result<serde_json::Value> {
        let ready = self.ready.take().context("asked for once")?;
        if !Deadline::default().readable(ready.as_fd()) {
            bail!("softnet does not get ready: {}", self.log());
        }
        let mut line = String::new();
        BufReader::new(std::fs::File::from(ready)).read_line(&mut line)?;
        if line.is_empty() {
            let status = self.wait()?;
            bail!("softnet ended with {status} instead of getting ready: {}", self.log());
        }
        serde_json::from_str(&line).with_context(|| format!("the ready line is not JSON: {line}"))
    }

    /// The process that was started.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap_or(i32::MAX))
    }

    /// Everything on standard error so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// Fails if it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.pid(), signal).context("signal softnet")
    }

    /// Asks for the counters by SIGUSR1 and waits for them.
    ///
    /// # Errors
    /// Fails if no counters come.
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
                    bail!("no counters came: {}", self.log());
                }
            }
        }
    }

    /// The other ends of its standard input and output, if those were piped.
    pub(crate) fn console(&mut self) -> Result<(ChildStdin, ChildStdout)> {
        self.child.stdin.take().zip(self.child.stdout.take()).context("the console is piped")
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// Fails if it does not end within [`PATIENCE`].
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let mut status = None;
        let ended = crate::deadline::until(|| {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        });
        match status {
            Some(status) if ended => Ok(status),
            _ => bail!("softnet (pid {}) did not end within {PATIENCE:?}: {}", self.child.id(), self.log()),
        }
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
        // The test is over; what it wanted to know about the end it has asked.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads a stream's lines into a channel and into one text, until its end.
fn follow(stream: impl std::io::Read + Send + 'static) -> (Receiver<String>, Arc<Mutex<String>>) {
    let (sender, lines) = mpsc::channel();
    let log = Arc::new(Mutex::new(String::new()));
    let copy = Arc::clone(&log);
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let mut log = copy.lock().unwrap_or_else(PoisonError::into_inner);
            log.push_str(&line);
            log.push('\n');
            drop(log);
            // Nobody listens any more once the test is over.
            let _ = sender.send(line);
        }
    });
    (lines, log)
}

/// Softnet's counters: the numbers of its line by the name in front of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counters(pub BTreeMap<String, u64>);

impl Counters {
    /// Reads a line of counters; `None` for any other line.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let pairs = line.split([' ', ',']).filter_map(|word| {
            let (name, number) = word.split_once('=')?;
            Some((name.to_owned(), number.parse().ok()?))
        });
        let counters: BTreeMap<String, u64> = pairs.collect();
        (counters.len() >= 2).then_some(Self(counters))
    }

    /// What has grown since `earlier`, by how much.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> BTreeMap<String, u64> {
        let grown = |(name, now): (&String, &u64)| {
            let before = earlier.0.get(name).copied().unwrap_or_default();
            (*now > before).then(|| (name.clone(), now - before))
        };
        self.0.iter().filter_map(grown).collect()
    }
}
