//! Group membership (IGMP): what hosts report (RFC 1112, RFC 2236, RFC 3376).

use core::net::Ipv4Addr;

use crate::checksum::Sum;

/// The type of a router's query.
pub const QUERY: u8 = 0x11;
/// The type of a report of version 1.
pub const REPORT_V1: u8 = 0x12;
/// The type of a report of version 2.
pub const REPORT_V2: u8 = 0x16;
/// The type of a host's notice that it leaves a group.
pub const LEAVE: u8 = 0x17;
/// The type of a report of version 3, which is about any number of groups.
pub const REPORT_V3: u8 = 0x22;

/// The group of all routers, to which hosts send that they leave a group.
pub const ALL_ROUTERS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 2);
/// The group to which reports of version 3 are sent.
pub const V3_ROUTERS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 22);

/// Bytes of a message of version 1 or 2, and of the fixed part of one of version 3.
pub const HEADER_LEN: usize = 8;
/// Bytes of a group record of version 3 before its sources.
const RECORD_LEN: usize = 8;

/// What a host reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// It is in the group (versions 1 and 2).
    Member(Ipv4Addr),
    /// It leaves the group (version 2).
    Leave(Ipv4Addr),
    /// Any number of groups (version 3).
    Records,
}

impl Report {
    /// `None` unless this is a complete report of a host with nothing behind it, with the right checksum, about
    /// multicast groups.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (&[kind, _, _, _, a, b, c, d], rest) = bytes.split_first_chunk::<HEADER_LEN>()?;
        if !Sum::of(bytes).is_valid() {
            return None;
        }
        let group = Some(Ipv4Addr::new(a, b, c, d)).filter(|group| group.is_multicast() && rest.is_empty());
        match kind {
            REPORT_V1 | REPORT_V2 => group.map(Self::Member),
            LEAVE => group.map(Self::Leave),
            REPORT_V3 => are_records(u16::from_be_bytes([c, d]), rest).then_some(Self::Records),
            _ => None,
        }
    }
}

/// Whether this is so many group records and nothing else (RFC 3376, section 4.2.4). Auxiliary data, which no version
/// defines, must not be sent.
fn are_records(count: u16, mut bytes: &[u8]) -> bool {
    for _ in 0..count {
        let Some((&[_, auxiliary, s0, s1, group @ ..], rest)) = bytes.split_first_chunk::<RECORD_LEN>()
        else {
            return false;
        };
        let sources = usize::from(u16::from_be_bytes([s0, s1])).saturating_mul(4);
        match rest.split_at_checked(sources) {
            Some((_, rest)) if auxiliary == 0 && Ipv4Addr::from(group).is_multicast() => bytes = rest,
            _ => return false,
        }
    }
    bytes.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);

    /// The message with its checksum.
    fn with_checksum(mut bytes: Vec<u8>) -> Vec<u8> {
        bytes[2..4].fill(0);
        let sum = Sum::of(&bytes).finish();
        bytes[2..4].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    fn report(bytes: &[u8]) -> Option<Report> {
        Report::parse(&with_checksum(bytes.to_vec()))
    }

    #[test]
    fn reads_the_reports_of_each_version() {
        // A report of version 2 as Linux sends it.
        assert_eq!(Report::parse(&[0x16, 0, 0xf8, 0xfa, 239, 1, 2, 3]), Some(Report::Member(GROUP)));
        assert_eq!(report(&[REPORT_V1, 0, 0, 0, 239, 1, 2, 3]), Some(Report::Member(GROUP)));
        assert_eq!(report(&[LEAVE, 0, 0, 0, 239, 1, 2, 3]), Some(Report::Leave(GROUP)));
        for kind in (0..=255).filter(|kind| ![REPORT_V1, REPORT_V2, LEAVE, REPORT_V3].contains(kind)) {
            assert_eq!(report(&[kind, 0, 0, 0, 239, 1, 2, 3]), None, "{kind:#04x}");
        }
        assert_eq!(Report::parse(&[0x16, 0, 0xf8, 0xfb, 239, 1, 2, 3]), None);
        assert_eq!(report(&[REPORT_V2, 0, 0, 0, 10, 1, 2, 3]), None);
        assert_eq!(report(&[REPORT_V2, 0, 0, 0, 239, 1, 2, 3, 0]), None);
        assert_eq!(Report::parse(&[0x16, 0, 0xe9, 0xff, 0, 0, 0]), None);
    }

    #[test]
    fn counts_records_and_their_sources() {
        #[rustfmt::skip]
        let bytes = [
            REPORT_V3, 0, 0, 0, 0, 0, 0, 2,
            4, 0, 0, 0, 239, 1, 2, 3,
            1, 0, 0, 2, 239, 1, 2, 4, 10, 0, 0, 1, 10, 0, 0, 2,
        ];
        assert_eq!(report(&bytes), Some(Report::Records));
        assert_eq!(report(&bytes[..8]), None);
        for len in (8..bytes.len()).chain([bytes.len() + 1]) {
            let mut bytes = bytes.to_vec();
            bytes.resize(len, 0);
            assert_eq!(report(&bytes), None, "{len} bytes");
        }
        for (at, value) in [(7, 1), (7, 3), (9, 1), (12, 10), (19, 1), (19, 3), (18, 255)] {
            let mut bytes = bytes;
            bytes[at] = value;
            assert_eq!(report(&bytes), None, "{value} at {at}");
        }
        assert_eq!(report(&[REPORT_V3, 0, 0, 0, 0, 0, 0, 0]), Some(Report::Records));
    }
}
