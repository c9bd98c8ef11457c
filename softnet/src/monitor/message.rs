//! The messages between the worker and the monitor, one per datagram.
//!
//! Every message begins with [`VERSION`] and its kind. Both ends are the same program, so a message of
//! another version, kind or length comes from an attacker or a bug, and is refused as a whole.

use std::net::Ipv4Addr;
use std::num::NonZeroU16;

use crate::config::expose::{Exposed, Protocol};
use crate::lease_follower::Notice;

/// The first byte of every message.
const VERSION: u8 = 1;

/// Bytes of every report; one of any other size is refused.
pub const REPORT_SIZE: usize = 6;

/// How many entries one notice holds at most. The host's addresses and the exposed ports are cut to it: see
/// [`crate::host::addresses`] and [`crate::host::network::exposed`].
pub const MOST_ENTRIES: usize = 4096;

/// Bytes of an exposed port: whether an address follows, the address, the transport, the port.
const EXPOSED_SIZE: usize = 8;

/// Bytes before the entries of a notice.
const HEADER: usize = 2;

/// Bytes of the longest notice.
pub const LONGEST_NOTICE: usize = HEADER + MOST_ENTRIES * EXPOSED_SIZE;

/// What the worker may report to the monitor.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Report {
    /// The VM holds this address now.
    Lease(Ipv4Addr),
    /// The VM holds no address.
    NoLease,
    /// The VM has not sent anything for a while.
    Quiet,
    /// The VM sends again.
    Active,
}

impl Report {
    /// The message's bytes.
    pub fn to_bytes(self) -> [u8; REPORT_SIZE] {
        let (kind, [a, b, c, d]) = match self {
            Report::NoLease => (0, [0; 4]),
            Report::Lease(address) => (1, address.octets()),
            Report::Quiet => (2, [0; 4]),
            Report::Active => (3, [0; 4]),
        };
        [VERSION, kind, a, b, c, d]
    }

    /// The message in `bytes`; `None` if they are not exactly one.
    pub fn from_bytes(bytes: &[u8]) -> Option<Report> {
        match *bytes {
            [VERSION, 0, 0, 0, 0, 0] => Some(Report::NoLease),
            [VERSION, 1, a, b, c, d] => Some(Report::Lease(Ipv4Addr::new(a, b, c, d))),
            [VERSION, 2, 0, 0, 0, 0] => Some(Report::Quiet),
            [VERSION, 3, 0, 0, 0, 0] => Some(Report::Active),
            _ => None,
        }
    }
}

const PEER_GONE: u8 = 0;
const SETTLED: u8 = 1;
const HOST_ADDRESSES: u8 = 2;
const EXPOSED: u8 = 3;

/// The bytes of a notice. Entries beyond [`MOST_ENTRIES`] are left out.
pub fn notice_to_bytes(notice: &Notice) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    match notice {
        Notice::PeerGone => bytes.push(PEER_GONE),
        Notice::Settled(address) => {
            bytes.push(SETTLED);
            bytes.extend(address.octets());
        }
        Notice::HostAddresses(addresses) => {
            bytes.push(HOST_ADDRESSES);
            bytes.extend(addresses.iter().take(MOST_ENTRIES).flat_map(Ipv4Addr::octets));
        }
        Notice::Exposed(ports) => {
            bytes.push(EXPOSED);
            bytes.extend(ports.iter().take(MOST_ENTRIES).flat_map(exposed_to_bytes));
        }
    }
    bytes
}

/// The notice in `bytes`; `None` if they are not exactly one.
pub fn notice_from_bytes(bytes: &[u8]) -> Option<Notice> {
    let (header, body) = bytes.split_at_checked(HEADER)?;
    match *header {
        [VERSION, PEER_GONE] if body.is_empty() => Some(Notice::PeerGone),
        [VERSION, SETTLED] => Some(Notice::Settled(<[u8; 4]>::try_from(body).ok()?.into())),
        [VERSION, HOST_ADDRESSES] => {
            let (addresses, rest) = body.as_chunks::<4>();
            let fits = rest.is_empty() && addresses.len() <= MOST_ENTRIES;
            fits.then(|| Notice::HostAddresses(addresses.iter().copied().map(Ipv4Addr::from).collect()))
        }
        [VERSION, EXPOSED] => {
            let (ports, rest) = body.as_chunks::<EXPOSED_SIZE>();
            if !rest.is_empty() || ports.len() > MOST_ENTRIES {
                return None;
            }
            ports.iter().map(exposed_from_bytes).collect::<Option<_>>().map(Notice::Exposed)
        }
        _ => None,
    }
}

fn exposed_to_bytes(exposed: &Exposed) -> [u8; EXPOSED_SIZE] {
    let [a, b, c, d] = exposed.address.unwrap_or(Ipv4Addr::UNSPECIFIED).octets();
    let protocol = exposed.protocol.number();
    let [high, low] = exposed.port.get().to_be_bytes();
    [exposed.address.is_some().into(), a, b, c, d, protocol, high, low]
}

fn exposed_from_bytes(bytes: &[u8; EXPOSED_SIZE]) -> Option<Exposed> {
    let [bound, a, b, c, d, protocol, high, low] = *bytes;
    let address = match (bound, [a, b, c, d]) {
        (0, [0, 0, 0, 0]) => None,
        (1, octets) => Some(octets.into()),
        _ => return None,
    };
    let protocol = match protocol {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        _ => return None,
    };
    Some(Exposed { address, protocol, port: NonZeroU16::new(u16::from_be_bytes([high, low]))? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_read_back_and_nothing_else_does() {
        let lease = Report::Lease(Ipv4Addr::new(192, 168, 64, 5));
        for report in [Report::NoLease, lease, Report::Quiet, Report::Active] {
            assert_eq!(Report::from_bytes(&report.to_bytes()), Some(report));
        }
        for garbage in [
            &[][..],
            &[1, 1, 2, 3, 4],
            &[1, 1, 2, 3, 4, 5, 6],
            &[1, 4, 0, 0, 0, 0],
            &[1, 0, 0, 0, 0, 1],
            &[2, 0, 0, 0, 0, 0],
        ] {
            assert_eq!(Report::from_bytes(garbage), None);
        }
    }

    fn exposed(address: Option<[u8; 4]>, protocol: Protocol, port: u16) -> Exposed {
        Exposed { address: address.map(Ipv4Addr::from), protocol, port: NonZeroU16::new(port).unwrap() }
    }

    #[test]
    fn notices_read_back() {
        let address = Ipv4Addr::new(192, 0, 2, 1);
        let ports = vec![
            exposed(None, Protocol::Tcp, 8080),
            exposed(Some([127, 0, 0, 1]), Protocol::Udp, 53),
            exposed(Some([0, 0, 0, 0]), Protocol::Tcp, 65535),
        ];
        for notice in [
            Notice::PeerGone,
            Notice::Settled(address),
            Notice::HostAddresses(Vec::new()),
            Notice::HostAddresses(vec![address, Ipv4Addr::new(10, 0, 0, 1)]),
            Notice::Exposed(Vec::new()),
            Notice::Exposed(ports),
        ] {
            assert_eq!(notice_from_bytes(&notice_to_bytes(&notice)), Some(notice));
        }
    }

    #[test]
    fn a_notice_is_whole_or_refused() {
        let port = [1, EXPOSED, 0, 0, 0, 0, 0, 6, 0, 80];
        assert!(notice_from_bytes(&port).is_some());
        for length in (0..port.len()).filter(|&length| length != HEADER) {
            assert_eq!(notice_from_bytes(&port[..length]), None, "{length} bytes");
        }
        for (at, value) in [(0, 2), (1, 4), (2, 2), (3, 1), (7, 1), (9, 0)] {
            let mut spoilt = port;
            spoilt[at] = value;
            assert_eq!(notice_from_bytes(&spoilt), None, "byte {at}");
        }
        assert_eq!(notice_from_bytes(&[1, PEER_GONE, 0]), None);
        assert_eq!(notice_from_bytes(&vec![1; HEADER + (MOST_ENTRIES + 1) * 4]), None);
    }

    #[test]
    fn a_list_that_is_too_long_is_cut() {
        let many = Notice::Exposed(vec![exposed(None, Protocol::Tcp, 1); MOST_ENTRIES + 1]);
        let bytes = notice_to_bytes(&many);
        assert_eq!(bytes.len(), LONGEST_NOTICE);
        assert!(
            matches!(notice_from_bytes(&bytes), Some(Notice::Exposed(ports)) if ports.len() == MOST_ENTRIES)
        );
    }
}
