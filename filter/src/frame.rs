//! Ethernet II framing (IEEE 802.3, clause 3).

use crate::mac::MacAddr;

/// Bytes of an Ethernet header: destination, source, EtherType.
pub(crate) const HEADER_LEN: usize = 14;

/// The shortest Ethernet frame without its frame check sequence; up to here a frame may be padded.
pub(crate) const PADDED_LEN: usize = 60;

/// What an Ethernet frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EtherType {
    Ipv4,
    Arp,
    Ipv6,
    /// A VLAN tag of any kind: 802.1Q, 802.1ad, and the value of stacked tags from before that standard.
    Vlan,
    /// All else, a length (LLC) included.
    Other,
}

/// An Ethernet frame. Its header is whole; its payload is only bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame<'a> {
    pub(crate) destination: MacAddr,
    pub(crate) source: MacAddr,
    pub(crate) ether_type: EtherType,
    pub(crate) payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// `None` for a runt.
    #[inline(always)]
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (header, payload) = bytes.split_first_chunk::<HEADER_LEN>()?;
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = *header;
        Some(Self {
            destination: MacAddr([d0, d1, d2, d3, d4, d5]),
            source: MacAddr([s0, s1, s2, s3, s4, s5]),
            ether_type: match u16::from_be_bytes([t0, t1]) {
                0x0800 => EtherType::Ipv4,
                0x0806 => EtherType::Arp,
                0x86dd => EtherType::Ipv6,
                0x8100 | 0x88a8 | 0x9100 | 0x9200 | 0x9300 => EtherType::Vlan,
                _ => EtherType::Other,
            },
            payload,
        })
    }

    /// Whether there are bytes behind a packet of `packet_len` bytes that padding does not explain (rule L4).
    #[inline(always)]
    pub(crate) fn has_trailer(&self, packet_len: usize) -> bool {
        const PADDED_PAYLOAD: usize = PADDED_LEN - HEADER_LEN;
        self.payload.len() > packet_len && self.payload.len() > PADDED_PAYLOAD
    }
}
