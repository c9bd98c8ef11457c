//! What nobody who reads frames from a datagram socket can go below: the kernel's part in receiving them.

use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bench::sys::Datagrams;
use lab::VmPort;

use crate::usage::Process;

/// A full frame in bytes, and how much of it is TCP's payload.
const FRAME: usize = 1514;
const PAYLOAD: usize = 1448;

/// CPU seconds for each byte of TCP payload of a process that receives full frames, many a system call, and does nothing
/// with them, while another sends as fast as it can.
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
        // Waits while the queue is full, so all but a queue's worth has been received.
        vm.send(&frame)?;
        sent += 1;
    }
    ensure!(sent > 0, "nothing was sent");
    Ok(receiver.cpu()?.as_secs_f64() / (sent * PAYLOAD) as f64)
}

/// The receiver: reads standard input until it is killed.
///
/// # Errors
/// If the socket breaks.
pub fn receive() -> Result<()> {
    let socket = std::io::stdin();
    let mut datagrams = Datagrams::new(FRAME);
    loop {
        datagrams.receive(socket.as_fd())?;
    }
}
