//! The minimum cost of reading frames from a datagram socket: the kernel's share of receiving them.

use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bench::sys::Datagrams;
use lab::VmPort;

use crate::usage::Process;

/// The length of a full frame in bytes, and that of its TCP payload.
const FRAME: usize = 1514;
const PAYLOAD: usize = 1448;

/// CPU seconds per byte of TCP payload of a process that receives full frames, many per system call, and
/// discards them, while another process sends as fast as it can.
///
/// # Errors
/// If the receiver cannot be started or ends.
pub fn datagrams(duration: Duration) -> Result<f64> {
    let (vm, theirs) = VmPort::pair()?;
    let mut receiver = Command::new(std::env::current_exe()?)
        .arg("receive")
        .stdin(theirs)
        .stdout(Stdio::null())
        .spawn()
        .context("start the receiver")?;
    let measured = flood(&vm, Process(receiver.id()), duration);
    receiver.kill()?;
    receiver.wait()?;
    measured
}

fn flood(vm: &VmPort, receiver: Process, duration: Duration) -> Result<f64> {
    let frame = [0x5a; FRAME];
    let started = Instant::now();
    let mut sent = 0_usize;
    while started.elapsed() < duration {
        // The send blocks while the queue is full, so all frames but those of one full queue have been
        // received.
        vm.send(&frame)?;
        sent += 1;
    }
    ensure!(sent > 0, "nothing was sent");
    Ok(receiver.cpu()?.as_secs_f64() / (sent * PAYLOAD) as f64)
}

/// The receiver: reads standard input until it is killed.
///
/// # Errors
/// If the socket fails.
pub fn receive() -> Result<()> {
    let socket = std::io::stdin();
    let mut datagrams = Datagrams::new(FRAME);
    loop {
        datagrams.receive(socket.as_fd())?;
    }
}
