//! Carries frames between the datagram socket on standard input and the TAP that its argument names, many
//! datagrams per system call (TAPs have no such call), without looking at them.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::os::fd::AsFd;

use bench::sys::{self, BATCH, Datagrams};

/// The longest frame, in bytes.
const FRAME: usize = 1514;

fn main() -> Result<()> {
    let name = std::env::args().nth(1).ok_or_else(|| Error::other("which TAP?"))?;
    let (socket, mut tap) = (std::io::stdin(), sys::tap(&name, false)?);
    sys::set_nonblocking(socket.as_fd(), true)?;
    sys::set_nonblocking(tap.as_fd(), true)?;
    let mut from_vm = Datagrams::new(FRAME);
    let mut from_host = vec![0; FRAME * BATCH];
    loop {
        let [vm_ready, host_ready] = sys::wait(socket.as_fd(), tap.as_fd())?;
        if vm_ready && from_vm.receive(socket.as_fd()).is_ok() {
            for frame in from_vm.iter() {
                // A refused frame is lost; the link still works.
                let _ = tap.write(frame);
            }
        }
        if host_ready {
            let mut lengths = [0; BATCH];
            let mut count = 0;
            for slot in from_host.chunks_exact_mut(FRAME) {
                match tap.read(slot) {
                    Ok(length) => lengths[count] = length,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
                count += 1;
            }
            let mut frames = [[&[][..]; 2]; BATCH];
            for ((frame, slot), length) in frames.iter_mut().zip(from_host.chunks_exact(FRAME)).zip(lengths) {
                frame[0] = &slot[..length];
            }
            // Frames that a full queue does not accept are lost.
            let _ = sys::send(socket.as_fd(), &frames[..count]);
        }
    }
}
