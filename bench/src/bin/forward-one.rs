//! Carries frames between the datagram socket on standard input and the TAP that its argument names, one
//! frame per system call, without looking at them.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::os::fd::{AsFd, AsRawFd};

use bench::sys;
use nix::sys::socket::{MsgFlags, recv, send};

/// The longest frame, in bytes.
const FRAME: usize = 1514;

fn main() -> Result<()> {
    let name = std::env::args().nth(1).ok_or_else(|| Error::other("which TAP?"))?;
    let (socket, mut tap) = (std::io::stdin(), sys::tap(&name, false)?);
    sys::set_nonblocking(socket.as_fd(), true)?;
    sys::set_nonblocking(tap.as_fd(), true)?;
    let mut frame = [0; FRAME];
    loop {
        let [from_vm, from_host] = sys::wait(socket.as_fd(), tap.as_fd())?;
        while from_vm && let Ok(length) = recv(socket.as_raw_fd(), &mut frame, MsgFlags::empty()) {
            // A refused frame is lost; the link still works.
            let _ = tap.write(&frame[..length]);
        }
        if !from_host {
            continue;
        }
        loop {
            match tap.read(&mut frame) {
                // The frame is lost if the queue is full.
                Ok(length) => drop(send(socket.as_raw_fd(), &frame[..length], MsgFlags::MSG_NOSIGNAL)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
    }
}
