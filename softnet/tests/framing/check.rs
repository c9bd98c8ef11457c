//! The length-prefixed framing against a second reading of it: bytes cut into chunks at any place must come out as the
//! same frames. Shared with the fuzz target of this name.

use std::io::Write;
use std::os::unix::net::UnixStream;

use softnet::link::{FrameBatch, Link, LinkError, Received, StreamLink};

/// A frame of the largest Ethernet without jumbo frames.
const MAX_FRAME: usize = 1514;

/// The longest announcement that is not garbage: a 64 KiB super-frame.
const LONGEST: usize = 65_564;

/// What a sequence of bytes says.
#[derive(Debug, Default, Eq, PartialEq)]
struct Reading {
    frames: Vec<Vec<u8>>,
    oversized: usize,
    broken: bool,
}

/// Reads `wire` in one go.
fn expected(mut wire: &[u8]) -> Reading {
    let mut reading = Reading::default();
    while let Some((prefix, rest)) = wire.split_first_chunk::<4>() {
        let len = u32::from_be_bytes(*prefix) as usize;
        if len > LONGEST {
            reading.broken = true;
            break;
        }
        if len > MAX_FRAME {
            reading.oversized += 1;
        } else if let Some(frame) = rest.get(..len) {
            reading.frames.push(frame.to_vec());
        } else {
            break;
        }
        wire = rest.get(len..).unwrap_or_default();
    }
    reading
}

/// Feeds `wire` in chunks of the lengths that `cuts` give in turn.
fn seen(wire: &[u8], cuts: &[u8]) -> Reading {
    let (mut near, far) = UnixStream::pair().expect("a socket pair");
    let mut link = StreamLink::new(far.into()).expect("a stream link");
    let mut batch = FrameBatch::new(MAX_FRAME);
    let mut reading = Reading::default();
    let mut cuts = cuts.iter().cycle().map(|cut| 1 + usize::from(*cut) * 37);
    let mut rest = wire;
    while !rest.is_empty() {
        let (chunk, after) = rest.split_at(cuts.next().unwrap_or(usize::MAX).min(rest.len()));
        near.write_all(chunk).expect("room in the socket");
        rest = after;
        loop {
            batch.clear();
            let received = link.recv(&mut batch);
            reading.oversized += batch.take_truncated();
            reading.frames.extend(batch.frames().map(<[u8]>::to_vec));
            match received {
                Ok(Received::More) => {}
                Ok(Received::Drained) => break,
                Err(LinkError::Framing(_)) => {
                    reading.broken = true;
                    return reading;
                }
                Err(error) => panic!("the link failed: {error}"),
            }
        }
    }
    reading
}

/// Takes the cuts from the first bytes of `data` and the wire from the rest, and compares both readings.
pub fn check(data: &[u8]) {
    let Some((cuts, wire)) = data.split_first_chunk::<4>() else { return };
    let (expected, seen) = (expected(wire), seen(wire, cuts));
    assert_eq!(seen, expected);
}
