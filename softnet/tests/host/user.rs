//! An ordinary user of the host: a process of this program's own that runs as somebody without any right.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::VmPort;
use lab::deadline::Deadline;
use lab::stage::run;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;

/// The user and the group.
pub const USER: u32 = 1000;
/// The program with its set-user-ID bit, after [`install`].
pub const SET_USER_ID: &str = "/run/suid/softnet";

/// What the process is to do.
const VERB: &str = "SOFTNET_HOST_TEST_VERB";
/// This program where the user may start it.
const PROGRAM: &str = "/run/lab/user";

/// A process of the user's; what it holds it holds until this is dropped.
pub struct User {
    child: Child,
    /// What it said when it was done.
    pub said: String,
}

impl User {
    /// Does this as the ordinary user.
    pub fn does(verb: &str, words: &[&str]) -> Result<Self> {
        Self::process(USER, PROGRAM, verb, words)
    }

    /// Does this as root.
    pub fn root_does(verb: &str, words: &[&str]) -> Result<Self> {
        Self::process(0, PROGRAM, verb, words)
    }

    /// Is a process of the user's that calls itself `name` with these arguments, and does nothing.
    pub fn pretends(name: &str, words: &[&str]) -> Result<Self> {
        Self::process(USER, name, "wait", words)
    }

    fn process(user: u32, name: &str, verb: &str, words: &[&str]) -> Result<Self> {
        if !Path::new(PROGRAM).exists() {
            File::create(PROGRAM)?;
            let own = std::env::current_exe()?;
            run("mount", &["--bind", own.to_str().context("an odd path")?, PROGRAM])?;
        }
        let mut child = Command::new(PROGRAM)
            .arg0(name)
            .args(words)
            .env(VERB, verb)
            .uid(user)
            .gid(user)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut said = String::new();
        BufReader::new(child.stdout.take().context("piped")?).read_line(&mut said)?;
        ensure!(said.ends_with('\n'), "the user's process failed at {verb} {words:?}");
        Ok(Self { child, said: said.trim_end().to_owned() })
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Does what [`User`] asked for, if this process was started by it.
pub fn act() -> Option<ExitCode> {
    let verb = std::env::var(VERB).ok()?;
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Some(match obey(&verb, &words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{verb}: {error:#}");
            ExitCode::FAILURE
        }
    })
}

fn obey(verb: &str, words: &[&str]) -> Result<()> {
    match (verb, words) {
        ("wait", _) => done("waiting"),
        ("lock", [how, directory]) => {
            let how =
                if *how == "shared" { FlockArg::LockSharedNonblock } else { FlockArg::LockExclusiveNonblock };
            let mut held = Vec::new();
            lock_all(Path::new(directory), how, &mut held);
            done(&held.len().to_string())
        }
        ("send", [device, to, hex]) => {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_broadcast(true)?;
            if *device != "-" {
                setsockopt(&socket, sockopt::BindToDevice, &(*device).into())?;
            }
            let message = lab_hex(hex)?;
            // To be forbidden to send is one of the ways to be stopped.
            let sent = socket.send_to(&message, to.parse::<SocketAddrV4>()?);
            done(&format!("{sent:?}"))
        }
        ("stop", [last]) => stop(last.parse()?),
        _ => bail!("not understood: {words:?}"),
    }
}

/// Says so, and stays until the test has seen enough.
fn done(said: &str) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{said}")?;
    out.flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn lab_hex(digits: &str) -> Result<Vec<u8>> {
    let octet = |at: usize| Ok(u8::from_str_radix(digits.get(at..at + 2).context("odd")?, 16)?);
    (0..digits.len()).step_by(2).map(octet).collect()
}

/// Locks what it may open and what is free, directories too.
fn lock_all(path: &Path, how: FlockArg, held: &mut Vec<Flock<File>>) {
    if let Ok(file) = File::open(path)
        && let Ok(lock) = Flock::lock(file, how)
    {
        held.push(lock);
    }
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        lock_all(&entry.path(), how, held);
    }
}

/// Starts the set-user-ID program again and again, and stops it the moment that it, or what it started, holds a lock: the
/// first one, then the second one, and so on. All of them stay stopped.
fn stop(last: u8) -> Result<()> {
    let mut stopped = 0;
    let mut stayed = Vec::new();
    for which in 0..4u8 {
        let (vm, theirs) = VmPort::pair()?;
        let (ready, writer) = std::io::pipe()?;
        let mac = crate::fixture::mac(last + which);
        let child = Command::new(SET_USER_ID)
            .args(["--vm-fd=0", "--ready-fd=1", &format!("--vm-mac-address={mac}")])
            .stdin(theirs)
            .stdout(writer)
            .stderr(Stdio::null())
            .spawn()?;
        let pid = child.id().cast_signed();
        // Who waits for one that is stopped comes no further; that is for the test to find.
        let deadline = Deadline::after(Duration::from_secs(5));
        let mut seen = BTreeSet::new();
        while !Deadline::after(Duration::ZERO).readable(ready.as_fd()) && !deadline.left().is_zero() {
            let locks = std::fs::read_to_string("/proc/locks")?;
            let mut hit = false;
            for line in locks.lines().filter(|line| line.contains("FLOCK")) {
                let mut words = line.split_ascii_whitespace().skip_while(|word| word.parse::<i32>().is_err());
                let holder =
                    words.next().and_then(|pid| pid.parse().ok()).filter(|holder| descends(*holder, pid));
                let (Some(holder), Some(file)) = (holder, words.next()) else { continue };
                seen.insert(file.to_owned());
                if seen.len() > usize::from(which) {
                    // Its own processes, if the kernel lets it; no other user's.
                    hit |= kill(Pid::from_raw(holder), Signal::SIGSTOP).is_ok();
                }
            }
            if hit {
                stopped += 1;
                break;
            }
        }
        stayed.push((vm, ready, child));
    }
    done(&format!("stopped {stopped} times"))
}

fn descends(mut pid: i32, from: i32) -> bool {
    while pid > 1 {
        if pid == from {
            return true;
        }
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        pid = parent.unwrap_or_default();
    }
    false
}

/// Installs the program for everybody, for this test's eyes only.
pub fn install() -> Result<()> {
    std::fs::create_dir("/run/suid")?;
    run("mount", &["-t", "tmpfs", "-o", "mode=755", "none", "/run/suid"])?;
    run("install", &["-m", "4755", crate::fixture::SOFTNET, SET_USER_ID])?;
    Ok(())
}
