//! The few header fields that merging and cutting need, and where they are.
//!
//! This is not a validating parser: the filter decides whether a frame may pass. It only
//! ensures that every offset it returns is within the frame.

/// Length in bytes of the Ethernet header; no VLAN tag is ever expected.
pub(crate) use softnet_wire::ethernet::HEADER_LEN as ETHERNET;
/// Length in bytes of an IPv4 header without options.
pub(crate) use softnet_wire::ipv4::HEADER_LEN as IPV4;
/// Lengths in bytes of a TCP header without options and of a UDP header.
pub(crate) use softnet_wire::transport::{TCP_HEADER_LEN as TCP, UDP_HEADER_LEN as UDP};

use softnet_wire::transport;

/// The largest value of IPv4's total length, in bytes.
pub(crate) const MAX_DATAGRAM: usize = 65_535;

/// Offsets from the start of the IPv4 header.
pub(crate) mod ipv4 {
    pub(crate) const TOTAL_LENGTH: usize = 2;
    pub(crate) const IDENTIFICATION: usize = 4;
    pub(crate) const FRAGMENT: usize = 6;
    pub(crate) const PROTOCOL: usize = 9;
    pub(crate) const CHECKSUM: usize = 10;
    pub(crate) const ADDRESSES: usize = 12;
    /// "Don't fragment", in the word at [`FRAGMENT`].
    pub(crate) use softnet_wire::ipv4::DONT_FRAGMENT as DF;
    use softnet_wire::ipv4::{MORE_FRAGMENTS, OFFSET};
    /// "More fragments" and the offset, in the same word: any of them set makes a fragment.
    pub(crate) const FRAGMENT_MASK: u16 = MORE_FRAGMENTS | OFFSET;
}

/// Offsets from the start of the TCP header.
pub(crate) mod tcp {
    pub(crate) const SEQUENCE: usize = 4;
    pub(crate) const ACKNOWLEDGMENT: usize = 8;
    pub(crate) const DATA_OFFSET: usize = 12;
    pub(crate) const FLAGS: usize = 13;
    pub(crate) const WINDOW: usize = 14;
    pub(crate) const CHECKSUM: usize = 16;
    pub(crate) const URGENT: usize = 18;
    pub(crate) const FIN: u8 = 0x01;
    pub(crate) const PSH: u8 = 0x08;
    pub(crate) const ACK: u8 = 0x10;
    pub(crate) const CWR: u8 = 0x80;
}

/// Offsets from the start of the UDP header.
pub(crate) mod udp {
    pub(crate) const LENGTH: usize = 4;
    pub(crate) const CHECKSUM: usize = 6;
}

/// The transports that are merged and cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    pub(crate) fn from_protocol(protocol: u8) -> Option<Transport> {
        match protocol {
            transport::TCP => Some(Transport::Tcp),
            transport::UDP => Some(Transport::Udp),
            _ => None,
        }
    }

    pub(crate) fn protocol(self) -> u8 {
        match self {
            Transport::Tcp => transport::TCP,
            Transport::Udp => transport::UDP,
        }
    }

    /// Where the checksum is, from the start of the transport header.
    pub(crate) fn checksum_offset(self) -> usize {
        match self {
            Transport::Tcp => tcp::CHECKSUM,
            Transport::Udp => udp::CHECKSUM,
        }
    }

    /// The length in bytes of the header that starts at `at`, all of it within `frame`.
    pub(crate) fn header_len(self, frame: &[u8], at: usize) -> Option<usize> {
        let length = match self {
            Transport::Tcp => usize::from(frame.get(at + tcp::DATA_OFFSET)? >> 4) * 4,
            Transport::Udp => UDP,
        };
        let least = match self {
            Transport::Tcp => TCP,
            Transport::Udp => UDP,
        };
        (length >= least && at + length <= frame.len()).then_some(length)
    }
}

/// The word at `at`; 0 beyond the end, which callers have excluded.
#[inline]
pub(crate) fn word(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u16::from_be_bytes(*word))
}

/// The double word at `at`; 0 beyond the end, which callers have excluded.
#[inline]
pub(crate) fn double_word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u32::from_be_bytes(*word))
}

/// Writes `value` at `at`; beyond the end, which callers have excluded, it writes nothing.
#[inline]
pub(crate) fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    if let Some(place) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
        *place = value;
    }
}
