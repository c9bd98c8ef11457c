//! The language between a test and a guest: one JSON line a request, one JSON line an answer, on the guest's console.
//!
//! The guest does nothing of its own accord. The test asks, waits for the answer, and can therefore read Softnet's
//! counters before and after exactly one attempt.

use std::net::{Ipv4Addr, SocketAddrV4};

use serde::{Deserialize, Serialize};

pub mod packet;

/// What starts every line of the agent, so that the kernel's own console output is never taken for an answer.
pub const MARK: &str = "@@";

/// The guest's only network interface.
pub const INTERFACE: &str = "eth0";

/// The word on the kernel's command line that carries the guest's MAC address: `lab.mac=aa:bb:cc:dd:ee:ff`.
pub const MAC_WORD: &str = "lab.mac=";

/// What a test asks of a guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Request {
    /// Get a lease with busybox's `udhcpc` and configure the interface as it says.
    Dhcp,
    /// Configure the interface by hand, without asking anybody: a guest that lies about its address.
    Configure {
        /// The address to take, with its prefix length.
        address: (Ipv4Addr, u8),
        /// The default route's next hop.
        gateway: Ipv4Addr,
    },
    /// Run a program of the guest (busybox has most) to its end.
    Run {
        /// The program and its arguments.
        argv: Vec<String>,
    },
    /// Connect, say nothing, and read one line.
    Tcp {
        /// Where to.
        to: SocketAddrV4,
        /// How long to try, in milliseconds.
        patience_ms: u64,
    },
    /// Send one datagram and read one.
    Udp {
        /// Where to.
        to: SocketAddrV4,
        /// How long to wait for the answer, in milliseconds.
        patience_ms: u64,
    },
    /// Put whole Ethernet frames on the wire as they are, past the guest's own network stack.
    Send {
        /// Each frame as hexadecimal digits.
        frames: Vec<String>,
    },
    /// Answer every TCP connection to this port with one line.
    Serve {
        /// The port.
        port: u16,
        /// The line, without its end.
        say: String,
    },
    /// Say what the interface looks like.
    Facts,
    /// Switch the machine off; there is no answer.
    PowerOff,
}

/// What a guest answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The guest is up and listens for requests.
    Ready,
    /// It is done, and nothing more is to be said.
    Done,
    /// The lease that `udhcpc` got.
    Leased(Lease),
    /// The line or datagram that came back.
    Heard(String),
    /// A program ended.
    Exited {
        /// Its exit status, or 128 plus the signal that ended it.
        code: i32,
        /// All of its output, standard error behind standard output.
        output: String,
    },
    /// What the interface looks like.
    Facts(Facts),
    /// It could not be done, and why, in the guest's kernel's words.
    Failed(String),
}

/// The part of a DHCP lease that tests look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The guest's address.
    pub address: Ipv4Addr,
    /// Option 3's first address.
    pub router: Option<Ipv4Addr>,
    /// Option 6's addresses.
    pub dns: Vec<Ipv4Addr>,
    /// Option 51, in seconds.
    pub seconds: Option<u32>,
}

/// The interface as the guest's kernel sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Its hardware address, as `aa:bb:cc:dd:ee:ff`.
    pub mac: String,
    /// Neighbours whose hardware address is known.
    pub neighbours: Vec<(Ipv4Addr, String)>,
}

/// Writes bytes as hexadecimal digits.
#[must_use]
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads hexadecimal digits; `None` if there is anything else or half a byte.
#[must_use]
pub fn from_hex(digits: &str) -> Option<Vec<u8>> {
    if !digits.is_ascii() || !digits.len().is_multiple_of(2) {
        return None;
    }
    digits
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_goes_both_ways() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(from_hex(&to_hex(&bytes)), Some(bytes));
        assert_eq!(from_hex("0"), None);
        assert_eq!(from_hex("zz"), None);
        assert_eq!(from_hex("éé"), None);
    }

    #[test]
    fn a_request_is_one_line() {
        let text =
            serde_json::to_string(&Request::Run { argv: vec!["sh".into(), "-c".into(), "a\nb".into()] })
                .unwrap();
        assert!(!text.contains('\n'));
    }
}
