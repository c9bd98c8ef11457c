//! Frames built and checked the slow way, independently of the code under test.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod invariants;

use softnet_offload::vnet::{Checksum, Gso, GsoKind, VNET_HEADER_LEN};
use softnet_offload::{Coalescer, Features, MAX_HEADER_LEN, Segments, VnetHeader};

pub const BOTH: Features = Features { tcp: true, udp: true };

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;
pub const ECE: u8 = 0x40;
pub const CWR: u8 = 0x80;

/// The timestamp option as Linux sends it, with two padding bytes before it.
pub const TIMESTAMPS: [u8; 12] = [1, 1, 8, 10, 0, 0, 0x12, 0x34, 0, 0, 0x56, 0x78];

/// What varies between the frames of the tests.
#[derive(Clone, Debug)]
pub struct Spec {
    pub ports: (u16, u16),
    pub id: u16,
    pub fragment: u16,
    pub tos: u8,
    pub ttl: u8,
    pub body: Body,
    pub payload: Vec<u8>,
}

#[derive(Clone, Debug)]
pub enum Body {
    Tcp { sequence: u32, ack: u32, flags: u8, window: u16, options: Vec<u8> },
    Udp,
}

impl Spec {
    pub fn tcp(payload: &[u8]) -> Spec {
        let body =
            Body::Tcp { sequence: 1000, ack: 77, flags: ACK, window: 501, options: TIMESTAMPS.to_vec() };
        Spec {
            ports: (40_000, 80),
            id: 7,
            fragment: 0x4000,
            tos: 0,
            ttl: 64,
            body,
            payload: payload.to_vec(),
        }
    }

    pub fn udp(payload: &[u8]) -> Spec {
        Spec { body: Body::Udp, ..Spec::tcp(payload) }
    }

    /// Length in bytes of all headers.
    pub fn header_len(&self) -> usize {
        match &self.body {
            Body::Tcp { options, .. } => 54 + options.len(),
            Body::Udp => 42,
        }
    }

    /// The frame as it would be on a wire.
    pub fn frame(&self) -> Vec<u8> {
        let transport_len = self.header_len() - 34 + self.payload.len();
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, self.tos];
        frame.extend((20 + transport_len as u16).to_be_bytes());
        frame.extend(self.id.to_be_bytes());
        frame.extend(self.fragment.to_be_bytes());
        frame.extend([self.ttl, if matches!(self.body, Body::Udp) { 17 } else { 6 }, 0, 0]);
        frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend(self.ports.0.to_be_bytes());
        frame.extend(self.ports.1.to_be_bytes());
        match &self.body {
            Body::Tcp { sequence, ack, flags, window, options } => {
                frame.extend(sequence.to_be_bytes());
                frame.extend(ack.to_be_bytes());
                frame.extend([((20 + options.len()) as u8 / 4) << 4, *flags]);
                frame.extend(window.to_be_bytes());
                frame.extend([0; 4]);
                frame.extend(options);
            }
            Body::Udp => {
                frame.extend((transport_len as u16).to_be_bytes());
                frame.extend([0, 0]);
            }
        }
        frame.extend(&self.payload);
        fix_checksums(&mut frame);
        frame
    }

    /// The same as a super-frame: the checksum partial, and a virtio-net header before it.
    pub fn super_frame(&self, segment_size: u16) -> (VnetHeader, Vec<u8>) {
        let mut frame = self.frame();
        let (kind, offset, ecn) = match self.body {
            Body::Tcp { flags, .. } => (GsoKind::TcpV4, 16, flags & CWR != 0),
            Body::Udp => (GsoKind::UdpL4, 6, false),
        };
        let pseudo = !sum(&pseudo_header(&frame));
        frame[34 + offset..36 + offset].copy_from_slice(&(!pseudo).to_be_bytes());
        let vnet = VnetHeader {
            checksum: Checksum::Partial { start: 34, offset: offset as u16 },
            gso: Some(Gso { kind, ecn, header_len: self.header_len() as u16, segment_size }),
        };
        (vnet, frame)
    }
}

/// The folded sum of 16-bit words, as RFC 1071 has it.
pub fn sum(data: &[u8]) -> u16 {
    let mut sum = 0_u64;
    for pair in data.chunks(2) {
        sum += u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn pseudo_header(frame: &[u8]) -> Vec<u8> {
    let mut pseudo = frame[26..34].to_vec();
    pseudo.extend([0, frame[23]]);
    pseudo.extend(((frame.len() - 34) as u16).to_be_bytes());
    pseudo
}

/// Puts the right checksums into a frame with an IPv4 header of 20 bytes.
pub fn fix_checksums(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let ip = !sum(&frame[14..34]);
    frame[24..26].copy_from_slice(&ip.to_be_bytes());
    let at = if frame[23] == 17 { 40 } else { 50 };
    if frame.len() >= at + 2 {
        frame[at..at + 2].fill(0);
        let mut covered = pseudo_header(frame);
        covered.extend(&frame[34..]);
        let checksum = match !sum(&covered) {
            0 if frame[23] == 17 => 0xffff,
            checksum => checksum,
        };
        frame[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    }
}

/// Whether an IPv4 frame has right lengths and checksums.
pub fn is_valid(frame: &[u8]) -> bool {
    let ip_len = frame.get(14).map_or(0, |first| usize::from(first & 15) * 4);
    if ip_len < 20 || frame.len() < 14 + ip_len + 8 {
        return false;
    }
    let total = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
    let mut covered = pseudo_header(frame);
    let transport_len = frame.len() - 14 - ip_len;
    covered.truncate(10);
    covered.extend((transport_len as u16).to_be_bytes());
    covered.extend(&frame[14 + ip_len..]);
    let udp_length = frame[23] != 17
        || usize::from(u16::from_be_bytes([frame[14 + ip_len + 4], frame[14 + ip_len + 5]])) == transport_len;
    total == frame.len() - 14
        && udp_length
        && sum(&frame[14..14 + ip_len]) == 0xffff
        && sum(&covered) == 0xffff
}

/// All frames that a super-frame is cut into.
pub fn cut(vnet: &VnetHeader, frame: &[u8]) -> Vec<Vec<u8>> {
    let mut segments = Segments::new(frame, vnet).expect("a well-formed super-frame");
    let mut frames = Vec::new();
    let mut header = [0xaa; MAX_HEADER_LEN];
    let mut resumed = Segments::new(frame, vnet).expect("a well-formed super-frame");
    loop {
        let expected = segments.remaining();
        let Some(payload) = segments.next_into(&mut header) else { break };
        assert_eq!(segments.remaining(), expected - 1);
        frames.push([&header[..segments.header_len()], payload].concat());
        // A cut that begins in the middle makes the same frames.
        if frames.len() % 3 == 2 {
            resumed.skip(1);
        } else {
            let mut header = [0x55; MAX_HEADER_LEN];
            let payload = resumed.next_into(&mut header).expect("as many frames as in one go");
            assert_eq!(Some(&[&header[..resumed.header_len()], payload].concat()), frames.last());
        }
    }
    assert_eq!(resumed.remaining(), 0);
    frames
}

/// A packet as the TAP gets it.
#[derive(Debug, PartialEq, Eq)]
pub struct Written {
    pub vnet: VnetHeader,
    pub frame: Vec<u8>,
    pub count: usize,
}

impl Written {
    /// The frames that come out of it at the far end.
    pub fn frames(&self) -> Vec<Vec<u8>> {
        match self.vnet.gso {
            Some(_) => cut(&self.vnet, &self.frame),
            None => vec![self.frame.clone()],
        }
    }
}

/// The packets that a batch becomes.
pub fn coalesce(features: Features, frames: &[Vec<u8>]) -> Vec<Written> {
    let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
    Coalescer::new(features)
        .coalesce(frames.as_slice())
        .map(|packet| {
            let bytes = packet.parts().collect::<Vec<_>>().concat();
            let (head, frame) = bytes.split_first_chunk::<VNET_HEADER_LEN>().expect("a head");
            let vnet = VnetHeader::parse(head).expect("a header of ours");
            let count = packet.frames().count();
            assert_eq!(packet.parts().count(), count + 1);
            Written { vnet, frame: frame.to_vec(), count }
        })
        .collect()
}
