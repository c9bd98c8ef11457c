//! DHCP messages (RFC 2131, RFC 2132), read the slow way.

use std::net::Ipv4Addr;

use super::packet::{address, number16, octets};

pub const DISCOVER: u8 = 1;
pub const OFFER: u8 = 2;
pub const REQUEST: u8 = 3;
pub const DECLINE: u8 = 4;
pub const ACK: u8 = 5;
pub const NAK: u8 = 6;
pub const RELEASE: u8 = 7;
pub const INFORM: u8 = 8;

pub const OPTION_RESOLVERS: u8 = 6;
pub const OPTION_HOST_NAME: u8 = 12;
pub const OPTION_REQUESTED: u8 = 50;
pub const OPTION_LEASE_TIME: u8 = 51;
pub const OPTION_OVERLOAD: u8 = 52;
pub const OPTION_TYPE: u8 = 53;
pub const OPTION_SERVER: u8 = 54;
pub const OPTION_CLIENT_ID: u8 = 61;
pub const OPTION_RAPID_COMMIT: u8 = 80;
pub const OPTION_FQDN: u8 = 81;
pub const OPTION_RELAY: u8 = 82;

/// A message with the magic cookie. The options are whole copies, in their order.
#[derive(Debug)]
pub struct Message {
    pub op: u8,
    pub hardware_type: u8,
    pub hardware_length: u8,
    pub hops: u8,
    pub xid: u32,
    pub client: Ipv4Addr,
    pub yours: Ipv4Addr,
    pub relay: Ipv4Addr,
    pub hardware_address: [u8; 16],
    pub options: Vec<(u8, Vec<u8>)>,
    /// An option reaches beyond the message.
    pub broken: bool,
    /// There is an end option, and nothing but zeros behind it.
    pub ended: bool,
}

impl Message {
    /// `None` for what is too short for the fixed fields or has no cookie.
    pub fn read(body: &[u8]) -> Option<Self> {
        if octets::<4>(body, 236)? != [99, 130, 83, 99] {
            return None;
        }
        let mut message = Self {
            op: body[0],
            hardware_type: body[1],
            hardware_length: body[2],
            hops: body[3],
            xid: u32::from_be_bytes(octets(body, 4)?),
            client: address(body, 12)?,
            yours: address(body, 16)?,
            relay: address(body, 24)?,
            hardware_address: octets(body, 28)?,
            options: Vec::new(),
            broken: false,
            ended: false,
        };
        let mut at = 240;
        while at < body.len() {
            match body[at] {
                0 => at += 1,
                255 => {
                    message.ended = body[at + 1..].iter().all(|&byte| byte == 0);
                    return Some(message);
                }
                code => {
                    let value = body.get(at + 1).and_then(|&length| {
                        let begin = at + 2;
                        body.get(begin..begin + usize::from(length))
                    });
                    let Some(value) = value else {
                        message.broken = true;
                        return Some(message);
                    };
                    message.options.push((code, value.to_vec()));
                    at += 2 + value.len();
                }
            }
        }
        Some(message)
    }

    pub fn all(&self, code: u8) -> Vec<&[u8]> {
        self.options.iter().filter(|(c, _)| *c == code).map(|(_, value)| value.as_slice()).collect()
    }

    pub fn has(&self, code: u8) -> bool {
        !self.all(code).is_empty()
    }

    /// The option's value if it is there exactly once.
    pub fn once(&self, code: u8) -> Option<&[u8]> {
        match self.all(code)[..] {
            [value] => Some(value),
            _ => None,
        }
    }

    /// The address in an option that is there exactly once with exactly four bytes.
    pub fn address_once(&self, code: u8) -> Option<Ipv4Addr> {
        self.once(code).filter(|value| value.len() == 4).and_then(|value| address(value, 0))
    }

    /// The number in an option that is there exactly once with exactly four bytes.
    pub fn number_once(&self, code: u8) -> Option<u32> {
        self.address_once(code).map(u32::from)
    }

    /// The one message type.
    pub fn kind(&self) -> Option<u8> {
        match self.once(OPTION_TYPE) {
            Some(&[kind]) => Some(kind),
            _ => None,
        }
    }

    /// Whether some option is there more than once.
    pub fn repeats(&self) -> bool {
        self.options.iter().any(|(code, _)| self.all(*code).len() > 1)
    }

    /// The resolvers of all options 6.
    pub fn resolvers(&self) -> Vec<Ipv4Addr> {
        self.all(OPTION_RESOLVERS)
            .concat()
            .chunks_exact(4)
            .map(|four| address(four, 0).expect("four bytes"))
            .collect()
    }

    /// Whether the hardware address is `mac` with nothing behind it.
    pub fn is_of(&self, mac: [u8; 6]) -> bool {
        self.hardware_address[..6] == mac && self.hardware_address[6..].iter().all(|&byte| byte == 0)
    }
}

/// What a client identifier says about hardware (RFC 2132, section 9.14; RFC 4361; RFC 8415, section 11).
#[derive(PartialEq)]
pub enum Names {
    /// The given MAC address and no other.
    Own,
    /// Another.
    Foreign,
    /// None.
    Nothing,
    /// It is too short for what it claims to be.
    Unclear,
}

/// Which hardware a client identifier names: by a hardware type (1 to 38 are assigned, 1 is Ethernet's), or by a
/// DUID-LLT or DUID-LL, behind the type 255 or bare.
///
/// RFC 2132 calls all types from 1 to 254 hardware's, but those beyond 38 are the letters of names that people gave.
pub fn client_id_names(id: &[u8], own: [u8; 6]) -> Names {
    let named = |mac: &[u8]| if mac == own { Names::Own } else { Names::Foreign };
    match id {
        [] | [_] => Names::Unclear,
        [1..=38, mac @ ..] => named(mac),
        // Four bytes tell the interface, then comes the DUID.
        [255, _, _, _, _, duid @ ..] => match (number16(duid, 0), number16(duid, 2)) {
            (Some(1), Some(_)) if duid.len() < 8 => Names::Unclear,
            (Some(1), Some(hardware)) => only_ethernet(hardware, named(&duid[8..])),
            (Some(3), Some(hardware)) => only_ethernet(hardware, named(&duid[4..])),
            _ => Names::Unclear,
        },
        [255, ..] => Names::Unclear,
        [0, 1, 0, 1, _, _, _, _, mac @ ..] | [0, 3, 0, 1, mac @ ..] if mac.len() == 6 => named(mac),
        _ => Names::Nothing,
    }
}

/// The own MAC address under another hardware's type may be the VM's or not.
fn only_ethernet(hardware: u16, names: Names) -> Names {
    if hardware != 1 && names == Names::Own { Names::Unclear } else { names }
}

/// C9: whether option 12 holds a name: labels with dots between them, and at most one dot or NUL at the end.
pub fn is_host_name(value: &[u8]) -> bool {
    let end = match value.last() {
        Some(b'.' | 0) => value.len() - 1,
        _ => value.len(),
    };
    let labels: Vec<&[u8]> = value[..end].split(|&byte| byte == b'.').collect();
    end <= 253 && labels.iter().all(|label| is_label(label))
}

/// C9: whether the name in option 81 is one, or empty (RFC 4702).
pub fn is_fqdn(value: &[u8]) -> bool {
    let Some(name) = value.get(3..) else { return false };
    if name.is_empty() {
        return true;
    }
    if value[0] & 4 == 0 {
        return is_host_name(name);
    }
    let (mut at, mut text) = (0, 0);
    while at < name.len() {
        let length = usize::from(name[at]);
        if length == 0 {
            return at + 1 == name.len() && text <= 254;
        }
        match name.get(at + 1..at + 1 + length) {
            Some(label) if is_label(label) => (at, text) = (at + 1 + length, text + 1 + length),
            _ => return false,
        }
    }
    text <= 254
}

fn is_label(label: &[u8]) -> bool {
    let is_allowed = |byte: &u8| matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-');
    !label.is_empty() && label.len() <= 63 && label.iter().all(is_allowed)
}
