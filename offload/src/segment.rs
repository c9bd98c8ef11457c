//! Segmentation (GSO): one super-frame from the host becomes MTU-sized frames for the VM.
//!
//! The kernel passes a TAP up to 64 kB of one TCP stream, or of equal UDP datagrams, behind one set of headers.
//! [`Segments`] writes the headers of each frame into the caller's buffer and points at its payload inside the
//! super-frame, so that a link can send both with one vectored write and the payload is never copied here.
//!
//! The result is byte for byte what the kernel's own software segmentation makes (`tests/kernel.rs` compares
//! them): the IP identification counts up, TCP's sequence number advances, PSH and FIN stay with the last segment
//! and CWR with the first (RFC 3168 §6.1.2), and every length and checksum is right.

use thiserror::Error;

use crate::vnet::{Checksum, GsoKind, VnetHeader};
use crate::wire::{ETHERNET, IPV4, Transport, ipv4, put, tcp, udp, word};
use softnet_wire::checksum::Sum;

/// The longest headers of a frame in bytes: Ethernet, and IPv4 and TCP with all options.
pub const MAX_HEADER_LEN: usize = ETHERNET + 60 + 60;

/// Why a frame from the host cannot be cut or completed. The frame is to be dropped.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Malformed {
    /// The virtio-net header requests no segmentation.
    #[error("not a super-frame")]
    NotSuper,
    /// Not IPv4, or of a protocol other than the one that the virtio-net header names.
    #[error("super-frame's protocol differs from the one in its virtio-net header")]
    Protocol,
    /// An IP fragment, which cannot be cut at the transport layer.
    #[error("super-frame is an IP fragment")]
    Fragment,
    /// A header reaches beyond the frame, or a length field disagrees with the frame's length.
    #[error("super-frame's length fields disagree")]
    Length,
    /// The checksum to complete is not where the headers are.
    #[error("partial checksum at a wrong offset")]
    ChecksumPlace,
    /// The segment size is 0.
    #[error("segment size is 0")]
    SegmentSize,
}

/// The frames of one super-frame, in order.
#[derive(Debug)]
pub struct Segments<'f> {
    headers: &'f [u8],
    payload: &'f [u8],
    transport: Transport,
    transport_at: usize,
    segment_size: usize,
    /// Payload bytes already returned.
    sent: usize,
    /// Frames already returned, modulo 2^16.
    index: u16,
    done: bool,
}

impl<'f> Segments<'f> {
    /// Prepares to cut `frame`, which starts with its Ethernet header, as `vnet` says.
    ///
    /// # Errors
    /// Anything that would make a segment wrong: see [`Malformed`].
    pub fn new(frame: &'f [u8], vnet: &VnetHeader) -> Result<Segments<'f>, Malformed> {
        let gso = vnet.gso.ok_or(Malformed::NotSuper)?;
        let transport = match gso.kind {
            GsoKind::TcpV4 => Transport::Tcp,
            GsoKind::UdpL4 => Transport::Udp,
            GsoKind::TcpV6 => return Err(Malformed::Protocol),
        };
        if gso.segment_size == 0 {
            return Err(Malformed::SegmentSize);
        }
        let ip = frame.get(ETHERNET..).filter(|ip| ip.len() >= IPV4).ok_or(Malformed::Length)?;
        if frame[12..ETHERNET] != [0x08, 0x00] || ip[0] >> 4 != 4 {
            return Err(Malformed::Protocol);
        }
        if Transport::from_protocol(ip[ipv4::PROTOCOL]) != Some(transport) {
            return Err(Malformed::Protocol);
        }
        if word(ip, ipv4::FRAGMENT) & ipv4::FRAGMENT_MASK != 0 {
            return Err(Malformed::Fragment);
        }
        let ip_len = usize::from(ip[0] & 0x0f) * 4;
        if ip_len < IPV4 || usize::from(word(ip, ipv4::TOTAL_LENGTH)) != ip.len() {
            return Err(Malformed::Length);
        }
        let transport_at = ETHERNET + ip_len;
        let transport_len = transport.header_len(frame, transport_at).ok_or(Malformed::Length)?;
        let place = Checksum::Partial {
            start: u16::try_from(transport_at).map_err(|_| Malformed::ChecksumPlace)?,
            offset: u16::try_from(transport.checksum_offset()).map_err(|_| Malformed::ChecksumPlace)?,
        };
        if vnet.checksum != place {
            return Err(Malformed::ChecksumPlace);
        }
        let (headers, payload) = frame.split_at(transport_at + transport_len);
        if transport == Transport::Udp
            && usize::from(word(headers, transport_at + udp::LENGTH)) != transport_len + payload.len()
        {
            return Err(Malformed::Length);
        }
        let segment_size = usize::from(gso.segment_size);
        Ok(Segments {
            headers,
            payload,
            transport,
            transport_at,
            segment_size,
            sent: 0,
            index: 0,
            done: false,
        })
    }

    /// Length in bytes of each frame's headers; the same for all, at most [`MAX_HEADER_LEN`].
    #[must_use]
    pub fn header_len(&self) -> usize {
        self.headers.len()
    }

    /// The number of remaining frames.
    #[must_use]
    pub fn remaining(&self) -> usize {
        match self.done {
            true => 0,
            false => (self.payload.len() - self.sent).div_ceil(self.segment_size).max(1),
        }
    }

    /// Skips the next `count` frames, which have been sent already.
    pub fn skip(&mut self, count: usize) {
        if count >= self.remaining() {
            self.done = true;
        } else {
            self.sent += count * self.segment_size;
            self.index = self.index.wrapping_add(count as u16);
        }
    }

    /// Writes the next frame's headers to the first [`header_len`](Segments::header_len) bytes of `out` and
    /// returns its payload; `None` after the last.
    pub fn next_into(&mut self, out: &mut [u8; MAX_HEADER_LEN]) -> Option<&'f [u8]> {
        if self.done {
            return None;
        }
        let rest = &self.payload[self.sent..];
        let payload = &rest[..rest.len().min(self.segment_size)];
        let last = payload.len() == rest.len();

        // At most 60 bytes of IP and 60 of TCP header after Ethernet's 14: see the bounds in `new`.
        let header = &mut out[..self.headers.len()];
        header.copy_from_slice(self.headers);
        let (ethernet_and_ip, transport) = header.split_at_mut(self.transport_at);
        let ip = &mut ethernet_and_ip[ETHERNET..];

        // No longer than the super-frame's own total length, which is 16 bits wide.
        let transport_len = (transport.len() + payload.len()) as u16;
        put(ip, ipv4::TOTAL_LENGTH, (ip.len() as u16 + transport_len).to_be_bytes());
        let identification = word(ip, ipv4::IDENTIFICATION).wrapping_add(self.index);
        put(ip, ipv4::IDENTIFICATION, identification.to_be_bytes());
        put(ip, ipv4::CHECKSUM, [0, 0]);
        let checksum = Sum::of(ip).finish();
        put(ip, ipv4::CHECKSUM, checksum.to_be_bytes());

        let pseudo = Sum::pseudo_header(addresses(ip), self.transport.protocol(), transport_len);
        match self.transport {
            Transport::Tcp => {
                let advanced =
                    crate::wire::double_word(transport, tcp::SEQUENCE).wrapping_add(self.sent as u32);
                put(transport, tcp::SEQUENCE, advanced.to_be_bytes());
                if !last {
                    transport[tcp::FLAGS] &= !(tcp::FIN | tcp::PSH);
                }
                if self.sent != 0 {
                    transport[tcp::FLAGS] &= !tcp::CWR;
                }
                put(transport, tcp::CHECKSUM, [0, 0]);
                let sum = pseudo + Sum::of(transport) + Sum::of(payload);
                put(transport, tcp::CHECKSUM, sum.finish().to_be_bytes());
            }
            Transport::Udp => {
                put(transport, udp::LENGTH, transport_len.to_be_bytes());
                put(transport, udp::CHECKSUM, [0, 0]);
                let sum = pseudo + Sum::of(transport) + Sum::of(payload);
                put(transport, udp::CHECKSUM, sum.finish_udp().to_be_bytes());
            }
        }

        self.sent += payload.len();
        self.index = self.index.wrapping_add(1);
        self.done = last;
        Some(payload)
    }
}

/// Completes the checksum that `vnet` says is partial; does nothing when there is none.
///
/// For ordinary frames only: the segments that [`Segments`] makes have complete checksums.
///
/// # Errors
/// [`Malformed::ChecksumPlace`] if the checksum would start within the Ethernet and IP headers or its field lies
/// beyond the frame; the frame is then untouched.
pub fn finish_checksum(frame: &mut [u8], vnet: &VnetHeader) -> Result<(), Malformed> {
    let Checksum::Partial { start, offset } = vnet.checksum else { return Ok(()) };
    let (start, offset) = (usize::from(start), usize::from(offset));
    if start < ETHERNET + IPV4 {
        return Err(Malformed::ChecksumPlace);
    }
    let covered = frame.get_mut(start..).ok_or(Malformed::ChecksumPlace)?;
    if offset + 2 > covered.len() {
        return Err(Malformed::ChecksumPlace);
    }
    // The field holds the sum of the pseudo-header, so it is summed like the rest. Zero is sent as all ones, as
    // UDP requires; to every other protocol the two are the same number.
    let checksum = Sum::of(covered).finish_udp();
    put(covered, offset, checksum.to_be_bytes());
    Ok(())
}

/// Completes the checksum of TCP or UDP over IPv4 in `frame` if its field holds the sum of the pseudo-header and nothing
/// else. That is how a driver leaves it to a card that offers to complete checksums, and how a VMM passes it on where
/// its socket has no place for a virtio-net header.
///
/// For frames without such a header. A right checksum that is the same number by chance stays as it is, because what it
/// covers then adds up to nothing. Fragments are left alone: none of them holds all that the checksum covers.
pub fn finish_open_checksum(frame: &mut [u8]) {
    // Nearly all frames end here: what is compared is in the first 60 bytes.
    if let Some((start, offset)) = open_checksum(frame) {
        let end = ETHERNET + usize::from(word(frame, ETHERNET + ipv4::TOTAL_LENGTH));
        if let Some(covered) = frame.get_mut(start..end) {
            let checksum = Sum::of(covered).finish_udp();
            put(covered, offset, checksum.to_be_bytes());
        }
    }
}

/// Where what an open checksum covers begins, and where the checksum is in it.
#[inline]
fn open_checksum(frame: &[u8]) -> Option<(usize, usize)> {
    let (ethernet, ip) = frame.split_at_checked(ETHERNET)?;
    let header = ip.first_chunk::<IPV4>()?;
    let transport = Transport::from_protocol(header[ipv4::PROTOCOL])?;
    if ethernet[12..] != [0x08, 0x00]
        || header[0] >> 4 != 4
        || word(header, ipv4::FRAGMENT) & ipv4::FRAGMENT_MASK != 0
    {
        return None;
    }
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let covered = usize::from(word(header, ipv4::TOTAL_LENGTH)).checked_sub(header_len)?;
    let rest = ip.get(header_len..)?.get(..covered)?;
    let (start, offset) = (ETHERNET + header_len, transport.checksum_offset());
    if header_len < IPV4 || rest.len() < offset + 2 {
        return None;
    }
    // No longer than the total length, which is 16 bits wide.
    let pseudo = Sum::pseudo_header(addresses(header), transport.protocol(), covered as u16);
    (word(rest, offset) == pseudo.partial()).then_some((start, offset))
}

/// Source and destination of an IPv4 header.
fn addresses(ip: &[u8]) -> [u8; 8] {
    ip.get(ipv4::ADDRESSES..).and_then(<[u8]>::first_chunk).copied().unwrap_or_default()
}
