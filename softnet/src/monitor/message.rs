//! The one message that the worker sends to the monitor.

use std::net::Ipv4Addr;

/// Bytes of every message; one of any other size is refused.
pub const SIZE: usize = 5;

/// What the worker may say.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Report {
    /// The VM holds this address now.
    Lease(Ipv4Addr),
    /// The VM holds no address.
    NoLease,
}

impl Report {
    /// The message's bytes.
    pub fn to_bytes(self) -> [u8; SIZE] {
        let (kind, [a, b, c, d]) = match self {
            Report::Lease(address) => (1, address.octets()),
            Report::NoLease => (0, [0; 4]),
        };
        [kind, a, b, c, d]
    }

    /// The address that the VM holds.
    pub fn address(self) -> Option<Ipv4Addr> {
        match self {
            Report::Lease(address) => Some(address),
            Report::NoLease => None,
        }
    }

    /// The message in `bytes`; `None` if they are not exactly one.
    pub fn from_bytes(bytes: &[u8]) -> Option<Report> {
        match *bytes {
            [0, 0, 0, 0, 0] => Some(Report::NoLease),
            [1, a, b, c, d] => Some(Report::Lease(Ipv4Addr::new(a, b, c, d))),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_read_back_and_nothing_else_does() {
        for report in [Report::NoLease, Report::Lease(Ipv4Addr::new(192, 168, 64, 5))] {
            assert_eq!(Report::from_bytes(&report.to_bytes()), Some(report));
        }
        for garbage in [&[][..], &[1, 2, 3, 4], &[1, 2, 3, 4, 5, 6], &[2, 0, 0, 0, 0], &[0, 0, 0, 0, 1]] {
            assert_eq!(Report::from_bytes(garbage), None);
        }
    }
}
