//! Makes a network namespace look like a VM: carries frames between its TAP and the VM's end of a peer's
//! socket.
//!
//! The namespace's TAP has all offloads, so that the "guest" costs little and the peer is the bottleneck. On
//! the socket the frames are like those of any VM: at most one MTU long and with complete checksums.

use std::fs::File;
use std::io::{self, BufReader, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;

use anyhow::{Context, Result};
use bench::sys::{self, BATCH, Datagrams};
use softnet_offload::vnet::VNET_HEADER_LEN;
use softnet_offload::{Coalescer, Features, MAX_HEADER_LEN, Segments, VnetHeader, finish_checksum};

/// The descriptor of the namespace's TAP.
pub const TAP_FD: i32 = 3;
/// The descriptor of the peer.
pub const PEER_FD: i32 = 4;

const FEATURES: Features = Features { tcp: true, udp: true };
/// The longest frame of a TAP with its header, in bytes.
const SUPER_FRAME: usize = VNET_HEADER_LEN + 14 + 65_535;
/// The longest frame on the socket, in bytes; passt ignores the MTU at times.
const FRAME: usize = 65_550;

/// What the pump is connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Peer {
    /// A socket with one bare frame per datagram.
    Datagram,
    /// A socket with a length before each frame.
    Stream,
    /// Another TAP: frames pass as they are.
    Tap,
}

/// Carries frames both ways until it is killed or the peer has closed.
///
/// # Errors
/// When either end fails.
pub fn run(peer: Peer) -> Result<()> {
    let (tap, far) = (File::from(sys::inherited(TAP_FD)?), sys::inherited(PEER_FD)?);
    let (up_tap, up_far) = (tap.try_clone()?, far.try_clone()?);
    let up = thread::spawn(move || match peer {
        Peer::Tap => copy(up_tap, File::from(up_far)),
        Peer::Datagram => up(up_tap, |frames| send_datagrams(up_far.as_fd(), frames)),
        Peer::Stream => up(up_tap, |frames| send_stream(up_far.as_fd(), frames)),
    });
    match peer {
        Peer::Tap => copy(File::from(far), tap),
        Peer::Datagram => down_datagrams(&far, &tap),
        Peer::Stream => down_stream(far, &tap),
    }
    .context("towards the guest")?;
    up.join().map_err(|_| anyhow::anyhow!("the thread failed"))?.context("from the guest")
}

fn copy(mut from: File, mut to: File) -> io::Result<()> {
    let mut frame = vec![0; SUPER_FRAME];
    loop {
        let length = from.read(&mut frame)?;
        // A refused frame is lost.
        let _ = to.write(&frame[..length]);
    }
}

/// From the TAP: super-frames are cut and checksums completed.
fn up(mut tap: File, send: impl Fn(&[[&[u8]; 2]]) -> io::Result<()>) -> io::Result<()> {
    let mut read = vec![0; SUPER_FRAME];
    let mut headers = vec![[0; MAX_HEADER_LEN]; BATCH];
    loop {
        let length = tap.read(&mut read)?;
        let Some((head, frame)) = read[..length].split_first_chunk_mut::<VNET_HEADER_LEN>() else { continue };
        let Ok(vnet) = VnetHeader::parse(head) else { continue };
        if vnet.gso.is_none() {
            if finish_checksum(frame, &vnet).is_ok() {
                send(&[[frame, &[]]])?;
            }
            continue;
        }
        let Ok(mut segments) = Segments::new(frame, &vnet) else { continue };
        let header_len = segments.header_len();
        while segments.remaining() > 0 {
            let mut frames = [[&[][..]; 2]; BATCH];
            let mut count = 0;
            for (header, frame) in headers.iter_mut().zip(&mut frames) {
                let Some(payload) = segments.next_into(header) else { break };
                *frame = [&header[..header_len], payload];
                count += 1;
            }
            send(&frames[..count])?;
        }
    }
}

/// Waits while the queue is full, as a VM does.
fn send_datagrams(socket: BorrowedFd<'_>, mut frames: &[[&[u8]; 2]]) -> io::Result<()> {
    while !frames.is_empty() {
        frames = &frames[sys::send(socket, frames)?..];
    }
    Ok(())
}

fn send_stream(socket: BorrowedFd<'_>, frames: &[[&[u8]; 2]]) -> io::Result<()> {
    let mut stream = UnixStream::from(socket.try_clone_to_owned()?);
    let prefixes: Vec<[u8; 4]> = frames
        .iter()
        .map(|[header, payload]| ((header.len() + payload.len()) as u32).to_be_bytes())
        .collect();
    let mut slices: Vec<IoSlice<'_>> = prefixes
        .iter()
        .zip(frames)
        .flat_map(|(prefix, [header, payload])| [&prefix[..], header, payload])
        .map(IoSlice::new)
        .collect();
    let mut slices = slices.as_mut_slice();
    while !slices.is_empty() {
        let written = stream.write_vectored(slices)?;
        IoSlice::advance_slices(&mut slices, written);
    }
    Ok(())
}

fn down_datagrams(socket: &OwnedFd, tap: &File) -> io::Result<()> {
    let mut datagrams = Datagrams::new(2048);
    let mut coalescer = Coalescer::new(FEATURES);
    loop {
        datagrams.receive(socket.as_fd())?;
        let frames: Vec<&[u8]> = datagrams.iter().collect();
        write_batch(&mut coalescer, &frames, tap);
    }
}

fn down_stream(socket: OwnedFd, tap: &File) -> io::Result<()> {
    let mut stream = BufReader::with_capacity(4 * FRAME, UnixStream::from(socket));
    let mut coalescer = Coalescer::new(FEATURES);
    let mut batch: Vec<Vec<u8>> = Vec::new();
    loop {
        let mut prefix = [0; 4];
        stream.read_exact(&mut prefix)?;
        let mut frame = vec![0; u32::from_be_bytes(prefix) as usize];
        stream.read_exact(&mut frame)?;
        batch.push(frame);
        let more = stream.buffer().first_chunk().is_some_and(|prefix: &[u8; 4]| {
            stream.buffer().len() >= 4 + u32::from_be_bytes(*prefix) as usize
        });
        if !more || batch.len() == BATCH {
            let frames: Vec<&[u8]> = batch.iter().map(Vec::as_slice).collect();
            write_batch(&mut coalescer, &frames, tap);
            batch.clear();
        }
    }
}

fn write_batch(coalescer: &mut Coalescer, frames: &[&[u8]], mut tap: &File) {
    for packet in coalescer.coalesce(frames) {
        let slices: Vec<IoSlice<'_>> = packet.parts().map(IoSlice::new).collect();
        // A refused packet is lost, as on any network.
        let _ = tap.write_vectored(&slices);
    }
}
