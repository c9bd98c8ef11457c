//! Questions of names and segments of TCP, as far as guests and servers of a run need them.

use std::net::Ipv4Addr;

use lab::wire::{Transport, checksum, tcp, u16_at};

/// The domain in which every name has an answer.
pub const KNOWN: &str = "example.com";
/// The domain about which its server says nothing.
pub const SILENT: &str = "silent.test";

/// What a segment of TCP does.
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH_ACK: u8 = 0x18;
pub const ACK: u8 = 0x10;
const SYN_ACK: u8 = 0x12;

/// A question of the IPv4 address of `name`.
pub fn question(id: u16, name: &str) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    // Recursion desired; one question.
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).unwrap_or_default());
        bytes.extend(label.bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

/// The answer to a question of a name in [`KNOWN`]; `None` to any other.
pub fn answer(question: &[u8], address: Ipv4Addr) -> Option<Vec<u8>> {
    let mut labels = Vec::new();
    let mut rest = question.get(12..)?;
    loop {
        let (&length, behind) = rest.split_first()?;
        if length == 0 {
            rest = behind;
            break;
        }
        labels.push(String::from_utf8_lossy(behind.get(..usize::from(length))?).to_ascii_lowercase());
        rest = behind.get(usize::from(length)..)?;
    }
    let name = labels.join(".");
    if name != KNOWN && !name.ends_with(&format!(".{KNOWN}")) {
        return None;
    }
    let end = question.len() - rest.len() + 4;
    let is_address = rest.get(..4)? == [0, 1, 0, 1];
    let mut bytes = question.get(..2)?.to_vec();
    bytes.extend([0x81, 0x80, 0, 1, 0, u8::from(is_address), 0, 0, 0, 0]);
    bytes.extend(question.get(12..end)?);
    if is_address {
        // The name of the question, class IN, kept for no time.
        bytes.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        bytes.extend(address.octets());
    }
    Some(bytes)
}

/// Whether a message answers the question with this number: `Some(true)` with an address, `Some(false)` with a refusal.
pub fn answers(message: &[u8], id: u16) -> Option<bool> {
    let is_answer = message.len() >= 12 && u16_at(message, 0) == id && message.get(2)? & 0x80 != 0;
    is_answer.then(|| message.get(3).is_some_and(|code| code & 0x0f == 0) && u16_at(message, 6) > 0)
}

/// A segment with this acknowledgement.
pub fn segment(
    from: (Ipv4Addr, u16),
    to: (Ipv4Addr, u16),
    numbers: (u32, u32),
    flags: u8,
    payload: &[u8],
) -> Transport {
    let (protocol, mut bytes) = tcp(from, to, numbers.0, flags, payload);
    bytes.splice(8..12, numbers.1.to_be_bytes());
    bytes.splice(16..18, [0, 0]);
    let length = u16::try_from(bytes.len()).unwrap_or_default().to_be_bytes();
    let sum = checksum(&[&from.0.octets(), &to.0.octets(), &[0, protocol], &length, &bytes]);
    bytes.splice(16..18, sum.to_be_bytes());
    (protocol, bytes)
}

/// A segment that came in a frame.
#[derive(Debug, Clone, Copy)]
pub struct Segment<'a> {
    pub ports: (u16, u16),
    pub sequence: u32,
    pub acknowledged: u32,
    pub flags: u8,
    pub payload: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Reads it from a frame whose packet has no options.
    pub fn parse(frame: &'a [u8]) -> Option<Self> {
        if u16_at(frame, 12) != lab::wire::IPV4 || frame.get(23) != Some(&6) {
            return None;
        }
        let number = |at: usize| Some(u32::from_be_bytes(*frame.get(at..)?.first_chunk()?));
        let header = usize::from(frame.get(46)? >> 4) * 4;
        let end = (14 + usize::from(u16_at(frame, 16))).min(frame.len());
        Some(Self {
            ports: (u16_at(frame, 34), u16_at(frame, 36)),
            sequence: number(38)?,
            acknowledged: number(42)?,
            flags: *frame.get(47)?,
            payload: frame.get(34 + header..end).unwrap_or_default(),
        })
    }

    /// Whether it accepts a connection.
    pub fn accepts(&self) -> bool {
        self.flags & SYN_ACK == SYN_ACK
    }
}
