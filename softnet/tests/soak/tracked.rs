//! How many connections the kernel tracks for each VM, as it says itself (ctnetlink).

use std::collections::HashMap;
use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use ipnet::Ipv4Net;
use netlink_sys::{Socket, SocketAddr};

/// `NETLINK_NETFILTER`, and in it the request of a dump of all connections (linux/netfilter/nfnetlink_conntrack.h).
const NETFILTER: isize = 12;
const GET: u16 = 1 << 8 | 1;
/// `NLM_F_REQUEST` and `NLM_F_DUMP`.
const DUMP: u16 = 0x301;
/// Types of messages: the end, an error.
const DONE: u16 = 3;
const ERROR: u16 = 2;
/// `CTA_TUPLE_ORIG`, in it `CTA_TUPLE_IP`, in it `CTA_IP_V4_SRC`.
const PATH: [u16; 3] = [1, 1, 1];

/// The connections that each address of the network has opened.
pub fn by_source(subnet: Ipv4Net) -> Result<HashMap<Ipv4Addr, usize>> {
    let socket = Socket::new(NETFILTER).context("open a socket of ctnetlink")?;
    let mut request = 20u32.to_ne_bytes().to_vec();
    request.extend([GET, DUMP].map(u16::to_ne_bytes).concat());
    request.extend([0; 8]);
    // IPv4.
    request.extend([2, 0, 0, 0]);
    socket.send_to(&request, &SocketAddr::new(0, 0), 0).context("ask for all connections")?;
    let mut found = HashMap::new();
    loop {
        let (bytes, _) = socket.recv_from_full().context("read the connections")?;
        let mut rest = bytes.as_slice();
        while let Some((kind, message)) = next_message(&mut rest) {
            match kind {
                DONE | ERROR => return Ok(found),
                _ => {
                    let source = source(message.get(4..).unwrap_or_default());
                    for source in source.into_iter().filter(|source| subnet.contains(source)) {
                        *found.entry(source).or_default() += 1;
                    }
                }
            }
        }
    }
}

fn next_message<'a>(rest: &mut &'a [u8]) -> Option<(u16, &'a [u8])> {
    let length = usize::try_from(u32::from_ne_bytes(*rest.first_chunk()?)).ok()?;
    let kind = u16::from_ne_bytes(*rest.get(4..)?.first_chunk()?);
    let message = rest.get(16..length)?;
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, message))
}

fn source(attributes: &[u8]) -> Option<Ipv4Addr> {
    let inner = PATH.iter().try_fold(attributes, |within, wanted| attribute(within, *wanted))?;
    Some(Ipv4Addr::from(*inner.first_chunk::<4>()?))
}

fn attribute(mut rest: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?) & 0x3fff;
        if kind == wanted {
            return rest.get(4..length);
        }
        rest = rest.get(length.max(4).next_multiple_of(4)..)?;
    }
}
