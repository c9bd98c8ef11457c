//! The virtio-net header in front of every frame of a TAP opened with `IFF_VNET_HDR`.
//!
//! It is the 10-byte `struct virtio_net_hdr` of `<linux/virtio_net.h>` (virtio 1.2 §5.1.6, without the
//! `num_buffers` field, which `TUNSETVNETHDRSZ` can enable and Softnet does not use):
//!
//! | bytes | field | meaning |
//! | --- | --- | --- |
//! | 0 | `flags` | 1 `NEEDS_CSUM`, 2 `DATA_VALID` |
//! | 1 | `gso_type` | 0 none, 1 TCP/IPv4, 4 TCP/IPv6, 5 UDP datagrams; bit 7: segments carry ECN's CWR |
//! | 2..4 | `hdr_len` | length of all headers, a hint |
//! | 4..6 | `gso_size` | payload bytes of each segment but the last |
//! | 6..8 | `csum_start` | where the checksum starts, from the start of the Ethernet header |
//! | 8..10 | `csum_offset` | where its field is, from `csum_start` |
//!
//! The numbers are little-endian here. The kernel takes them in the byte order of the host unless
//! `TUNSETVNETLE` selects little-endian; both are the same on every machine that Softnet is built for, and a
//! big-endian one has to set `TUNSETVNETLE`.

use thiserror::Error;

/// Length in bytes of the header.
pub const VNET_HEADER_LEN: usize = 10;

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// What the header says about its frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// What is left to do for the transport checksum.
    pub checksum: Checksum,
    /// How the frame is to be cut, if it is a super-frame.
    pub gso: Option<Gso>,
}

/// The state of a frame's transport checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// The frame is as it would be on a wire; its checksum has not been verified.
    #[default]
    Whole,
    /// The frame is as it would be on a wire, and its checksum has been verified (`DATA_VALID`).
    Verified,
    /// The field holds only the sum of the pseudo-header (`NEEDS_CSUM`).
    Partial {
        /// Offset in bytes of the transport header, from the start of the frame.
        start: u16,
        /// Offset in bytes of the checksum field, from `start`.
        offset: u16,
    },
}

/// How a super-frame is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// Which protocol's headers are repeated.
    pub kind: GsoKind,
    /// Whether the first segment carries CWR (RFC 3168 §6.1.2); only for TCP.
    pub ecn: bool,
    /// Length in bytes of the headers, as a hint; never trusted.
    pub header_len: u16,
    /// Payload bytes of each segment but the last, at least 1.
    pub segment_size: u16,
}

/// The protocol of a super-frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP over IPv4 (TSO).
    TcpV4,
    /// TCP over IPv6 (TSO).
    TcpV6,
    /// UDP datagrams of one size (USO).
    UdpL4,
}

/// A header that Softnet cannot interpret.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum VnetError {
    /// A `gso_type` that was never negotiated.
    #[error("virtio-net header: unknown gso_type {0}")]
    UnknownGso(u8),
    /// A super-frame without a segment size.
    #[error("virtio-net header: gso_size is 0")]
    ZeroSegmentSize,
}

impl VnetHeader {
    /// For a frame that is as it would be on a wire.
    pub const NONE: [u8; VNET_HEADER_LEN] = [0; VNET_HEADER_LEN];

    /// Reads the header. Unknown flags are ignored, as virtio requires of drivers.
    ///
    /// # Errors
    /// A `gso_type` other than those of [`GsoKind`], or one with a segment size of 0.
    pub fn parse(bytes: &[u8; VNET_HEADER_LEN]) -> Result<VnetHeader, VnetError> {
        let [flags, gso_type, h0, h1, s0, s1, c0, c1, o0, o1] = *bytes;
        let checksum = if flags & NEEDS_CSUM != 0 {
            Checksum::Partial { start: u16::from_le_bytes([c0, c1]), offset: u16::from_le_bytes([o0, o1]) }
        } else if flags & DATA_VALID != 0 {
            Checksum::Verified
        } else {
            Checksum::Whole
        };
        let kind = match gso_type & !GSO_ECN {
            GSO_NONE => None,
            GSO_TCPV4 => Some(GsoKind::TcpV4),
            GSO_TCPV6 => Some(GsoKind::TcpV6),
            GSO_UDP_L4 => Some(GsoKind::UdpL4),
            _ => return Err(VnetError::UnknownGso(gso_type)),
        };
        let gso = kind.map(|kind| Gso {
            kind,
            ecn: gso_type & GSO_ECN != 0,
            header_len: u16::from_le_bytes([h0, h1]),
            segment_size: u16::from_le_bytes([s0, s1]),
        });
        if gso.is_some_and(|gso| gso.segment_size == 0) {
            return Err(VnetError::ZeroSegmentSize);
        }
        Ok(VnetHeader { checksum, gso })
    }

    /// The header as bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; VNET_HEADER_LEN] {
        let (flags, start, offset) = match self.checksum {
            Checksum::Whole => (0, 0, 0),
            Checksum::Verified => (DATA_VALID, 0, 0),
            Checksum::Partial { start, offset } => (NEEDS_CSUM, start, offset),
        };
        let (gso_type, header_len, segment_size) = self.gso.map_or((GSO_NONE, 0, 0), |gso| {
            let kind = match gso.kind {
                GsoKind::TcpV4 => GSO_TCPV4,
                GsoKind::TcpV6 => GSO_TCPV6,
                GsoKind::UdpL4 => GSO_UDP_L4,
            };
            (kind | if gso.ecn { GSO_ECN } else { 0 }, gso.header_len, gso.segment_size)
        });
        let ([h0, h1], [s0, s1]) = (header_len.to_le_bytes(), segment_size.to_le_bytes());
        let ([c0, c1], [o0, o1]) = (start.to_le_bytes(), offset.to_le_bytes());
        [flags, gso_type, h0, h1, s0, s1, c0, c1, o0, o1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a Linux TAP passes for a TCP super-frame with a timestamp option and MTU 1500.
    const TSO: [u8; 10] = [0x01, 0x01, 0x42, 0x00, 0xa8, 0x05, 0x22, 0x00, 0x10, 0x00];

    #[test]
    fn reads_a_tcp_super_frame() {
        let header = VnetHeader::parse(&TSO).unwrap();
        assert_eq!(header.checksum, Checksum::Partial { start: 34, offset: 16 });
        assert_eq!(
            header.gso,
            Some(Gso { kind: GsoKind::TcpV4, ecn: false, header_len: 66, segment_size: 1448 })
        );
        assert_eq!(header.to_bytes(), TSO);
    }

    #[test]
    fn an_ordinary_frame_is_all_zeros() {
        assert_eq!(VnetHeader::parse(&VnetHeader::NONE), Ok(VnetHeader::default()));
        assert_eq!(VnetHeader::default().to_bytes(), VnetHeader::NONE);
    }

    #[test]
    fn every_kind_survives_the_round_trip() {
        for kind in [GsoKind::TcpV4, GsoKind::TcpV6, GsoKind::UdpL4] {
            for ecn in [false, true] {
                let gso = Some(Gso { kind, ecn, header_len: 0x0102, segment_size: 0x0304 });
                let header =
                    VnetHeader { checksum: Checksum::Partial { start: 0x0506, offset: 0x0708 }, gso };
                assert_eq!(VnetHeader::parse(&header.to_bytes()), Ok(header));
            }
        }
        let verified = VnetHeader { checksum: Checksum::Verified, gso: None };
        assert_eq!(VnetHeader::parse(&verified.to_bytes()), Ok(verified));
    }

    #[test]
    fn refuses_what_cannot_be_cut() {
        let mut ufo = TSO;
        ufo[1] = 3;
        assert_eq!(VnetHeader::parse(&ufo), Err(VnetError::UnknownGso(3)));
        let mut zero = TSO;
        zero[4..6].fill(0);
        assert_eq!(VnetHeader::parse(&zero), Err(VnetError::ZeroSegmentSize));
    }
}
