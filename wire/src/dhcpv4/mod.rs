//! The format of a DHCP message (RFC 2131, section 2) and of its options (RFC 2132).

use core::net::Ipv4Addr;

pub mod name;

/// The port of a DHCP server.
pub const SERVER_PORT: u16 = 67;
/// The port of a DHCP client.
pub const CLIENT_PORT: u16 = 68;
/// The port of a boot server (PXE 2.1, section 2.2): a client that has an address asks there which file to load.
pub const BOOT_PORT: u16 = 4011;

/// Bytes before the options, the magic cookie included.
pub const FIXED_LEN: usize = 240;
/// What distinguishes a DHCP message from one of BOOTP (RFC 2131, section 3).
pub const COOKIE: [u8; 4] = [99, 130, 83, 99];

/// The operation of a client's message.
pub const BOOT_REQUEST: u8 = 1;
/// The operation of a server's message.
pub const BOOT_REPLY: u8 = 2;
/// The hardware type of Ethernet.
pub const ETHERNET: u8 = 1;

/// Option codes.
pub mod code {
    #![expect(missing_docs, reason = "the names are the protocol's")]
    pub const PAD: u8 = 0;
    pub const SUBNET_MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const RESOLVERS: u8 = 6;
    pub const HOST_NAME: u8 = 12;
    pub const REQUESTED_ADDRESS: u8 = 50;
    pub const LEASE_TIME: u8 = 51;
    pub const OVERLOAD: u8 = 52;
    pub const MESSAGE_TYPE: u8 = 53;
    pub const SERVER: u8 = 54;
    pub const CLIENT_ID: u8 = 61;
    pub const RAPID_COMMIT: u8 = 80;
    pub const FQDN: u8 = 81;
    pub const RELAY_AGENT: u8 = 82;
    pub const END: u8 = 255;
}

/// The values of option 53.
pub mod kind {
    #![expect(missing_docs, reason = "the names are the protocol's")]
    pub const DISCOVER: u8 = 1;
    pub const OFFER: u8 = 2;
    pub const REQUEST: u8 = 3;
    pub const DECLINE: u8 = 4;
    pub const ACK: u8 = 5;
    pub const NAK: u8 = 6;
    pub const RELEASE: u8 = 7;
    pub const INFORM: u8 = 8;
}

/// A message whose fixed part is complete.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// [`BOOT_REQUEST`] or [`BOOT_REPLY`].
    pub operation: u8,
    /// [`ETHERNET`].
    pub hardware_type: u8,
    /// Bytes of a hardware address.
    pub hardware_len: u8,
    /// How many relay agents the message has passed.
    pub hops: u8,
    /// The transaction number, the same in a request and its answer (`xid`).
    pub transaction: u32,
    /// The address that the client has (`ciaddr`).
    pub client_address: Ipv4Addr,
    /// The address that the server gives to the client (`yiaddr`).
    pub your_address: Ipv4Addr,
    /// The address of the relay agent (`giaddr`).
    pub relay_address: Ipv4Addr,
    /// The MAC address of the client (`chaddr`).
    pub hardware_address: [u8; 6],
    /// Whether the rest of `chaddr` is 0.
    pub is_hardware_padding_zero: bool,
    /// Whether [`COOKIE`] precedes the options.
    pub has_cookie: bool,
    options: &'a [u8],
}

impl<'a> Message<'a> {
    /// `None` if the message is truncated.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (fixed, options) = bytes.split_first_chunk::<FIXED_LEN>()?;
        let word = |at: usize| fixed.get(at..).and_then(|rest| rest.first_chunk::<4>()).copied();
        let [operation, hardware_type, hardware_len, hops] = word(0)?;
        Some(Self {
            operation,
            hardware_type,
            hardware_len,
            hops,
            transaction: u32::from_be_bytes(word(4)?),
            client_address: word(12)?.into(),
            your_address: word(16)?.into(),
            relay_address: word(24)?.into(),
            hardware_address: *fixed.get(28..)?.first_chunk()?,
            is_hardware_padding_zero: fixed.get(34..44)?.iter().all(|byte| *byte == 0),
            has_cookie: word(236)? == COOKIE,
            options,
        })
    }

    /// The options in the option field. Options that option 52 places in other fields are not read.
    pub fn options(&self) -> Result<Options<'a>, OptionsError> {
        Options::parse(self.options)
    }
}

/// The options that matter here. None of them may occur twice, which would split it (RFC 3396).
#[derive(Debug, Clone, Copy, Default)]
pub struct Options<'a> {
    /// One of [`kind`].
    pub message_type: u8,
    /// The address that the client requests.
    pub requested_address: Option<Ipv4Addr>,
    /// Seconds for which the client has the address.
    pub lease_time: Option<u32>,
    /// The address that identifies the server.
    pub server: Option<Ipv4Addr>,
    /// The type and the value of the client identifier.
    pub client_id: Option<&'a [u8]>,
    /// The addresses of DNS resolvers, 4 bytes each.
    pub resolvers: &'a [u8],
    /// The name of the client (see [`name::is_host_name`]).
    pub host_name: Option<&'a [u8]>,
    /// The value of option 81: flags, two codes and a name (see [`name::is_fqdn_option`]).
    pub fqdn: Option<&'a [u8]>,
    /// Whether the client accepts an ACK without an offer (RFC 4039).
    pub has_rapid_commit: bool,
    /// Whether other fields hold further options.
    pub has_overload: bool,
    /// Whether a relay agent added its option (RFC 3046).
    pub has_relay_agent: bool,
}

/// Why options cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionsError {
    /// An option reaches beyond the field, the end is missing, something other than padding follows it, an option
    /// has a length that it cannot have, or there is not exactly one message type.
    Malformed,
    /// The client identifier is split over several options, or shorter than its type and one byte.
    ClientId,
}

impl<'a> Options<'a> {
    fn parse(mut rest: &'a [u8]) -> Result<Self, OptionsError> {
        let mut options = Self::default();
        let mut message_type = None;
        let mut resolvers = None;
        loop {
            let (&option, after) = rest.split_first().ok_or(OptionsError::Malformed)?;
            rest = after;
            match option {
                code::PAD => continue,
                code::END => break,
                _ => {}
            }
            let (&len, after) = rest.split_first().ok_or(OptionsError::Malformed)?;
            let (value, after) = after.split_at_checked(usize::from(len)).ok_or(OptionsError::Malformed)?;
            rest = after;
            match option {
                code::MESSAGE_TYPE => {
                    let &[kind] = value else { return Err(OptionsError::Malformed) };
                    set_once(&mut message_type, kind)?;
                }
                code::REQUESTED_ADDRESS => {
                    set_once(&mut options.requested_address, Ipv4Addr::from(four(value)?))?;
                }
                code::SERVER => set_once(&mut options.server, Ipv4Addr::from(four(value)?))?,
                code::LEASE_TIME => set_once(&mut options.lease_time, u32::from_be_bytes(four(value)?))?,
                code::RESOLVERS if value.is_empty() || value.len() % 4 != 0 => {
                    return Err(OptionsError::Malformed);
                }
                code::RESOLVERS => set_once(&mut resolvers, value)?,
                code::CLIENT_ID if options.client_id.is_some() || value.len() < 2 => {
                    return Err(OptionsError::ClientId);
                }
                code::CLIENT_ID => options.client_id = Some(value),
                code::HOST_NAME => set_once(&mut options.host_name, value)?,
                code::FQDN => set_once(&mut options.fqdn, value)?,
                code::RAPID_COMMIT => options.has_rapid_commit = true,
                code::OVERLOAD => options.has_overload = true,
                code::RELAY_AGENT => options.has_relay_agent = true,
                _ => {}
            }
        }
        if rest.iter().any(|byte| *byte != code::PAD) {
            return Err(OptionsError::Malformed);
        }
        options.message_type = message_type.ok_or(OptionsError::Malformed)?;
        options.resolvers = resolvers.unwrap_or(&[]);
        Ok(options)
    }
}

fn four(value: &[u8]) -> Result<[u8; 4], OptionsError> {
    value.try_into().map_err(|_| OptionsError::Malformed)
}

fn set_once<T>(slot: &mut Option<T>, value: T) -> Result<(), OptionsError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(OptionsError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ACK for 192.168.64.2 from 192.168.64.1.
    #[rustfmt::skip]
    const HEAD: [u8; 34] = [
        2, 1, 6, 0, 0x12, 0x34, 0x56, 0x78, 0, 0, 0, 0, 0, 0, 0, 0, 192, 168, 64, 2, 0, 0, 0, 0, 10, 0, 0, 9,
        2, 0, 0, 0, 0, 1,
    ];
    #[rustfmt::skip]
    const OPTIONS: [u8; 42] = [
        53, 1, 5, 0, 54, 4, 192, 168, 64, 1, 51, 4, 0, 0, 2, 88, 6, 8, 10, 0, 0, 53, 10, 0, 0, 54,
        61, 3, 1, 2, 3, 12, 2, b'v', b'm', 81, 3, 1, 0, 0, 255, 0,
    ];

    fn message(options: &[u8]) -> Vec<u8> {
        [&HEAD[..], &[0; 202], &COOKIE, options].concat()
    }

    #[test]
    fn reads_the_fixed_part() {
        let bytes = message(&OPTIONS);
        let message = Message::parse(&bytes).unwrap();
        assert_eq!(
            (message.operation, message.hardware_type, message.hardware_len),
            (BOOT_REPLY, ETHERNET, 6)
        );
        assert_eq!((message.hops, message.transaction), (0, 0x1234_5678));
        assert_eq!(message.client_address, Ipv4Addr::UNSPECIFIED);
        assert_eq!(message.your_address, Ipv4Addr::new(192, 168, 64, 2));
        assert_eq!(message.relay_address, Ipv4Addr::new(10, 0, 0, 9));
        assert_eq!(message.hardware_address, [2, 0, 0, 0, 0, 1]);
        assert!(message.is_hardware_padding_zero && message.has_cookie);
        for (at, padding_zero, cookie) in
            [(34, false, true), (43, false, true), (44, true, true), (239, true, false)]
        {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            let message = Message::parse(&bytes).unwrap();
            assert_eq!(
                (message.is_hardware_padding_zero, message.has_cookie),
                (padding_zero, cookie),
                "{at}"
            );
        }
        for len in 0..FIXED_LEN {
            assert!(Message::parse(&bytes[..len]).is_none(), "{len} bytes");
        }
    }

    #[test]
    fn reads_the_options() {
        let options = Options::parse(&OPTIONS).unwrap();
        assert_eq!(options.message_type, kind::ACK);
        assert_eq!(options.server, Some(Ipv4Addr::new(192, 168, 64, 1)));
        assert_eq!((options.lease_time, options.requested_address), (Some(600), None));
        assert_eq!(options.resolvers, [10, 0, 0, 53, 10, 0, 0, 54]);
        assert_eq!(options.client_id, Some(&[1, 2, 3][..]));
        assert_eq!((options.host_name, options.fqdn), (Some(&b"vm"[..]), Some(&[1, 0, 0][..])));
        assert!(!options.has_rapid_commit && !options.has_overload && !options.has_relay_agent);
        let options = Options::parse(&[53, 1, 1, 50, 4, 10, 0, 0, 7, 80, 0, 52, 1, 1, 82, 0, 255]).unwrap();
        assert_eq!(options.requested_address, Some(Ipv4Addr::new(10, 0, 0, 7)));
        assert!(options.has_rapid_commit && options.has_overload && options.has_relay_agent);
    }

    #[test]
    fn refuses_options_that_do_not_fit() {
        let error = |options: &[u8]| Options::parse(options).unwrap_err();
        // Up to the end mark each byte is needed.
        for len in 0..OPTIONS.len() - 1 {
            assert_eq!(error(&OPTIONS[..len]), OptionsError::Malformed, "{len} bytes");
        }
        for (malformed, why) in [
            (&[255][..], "no type"),
            (&[53, 1, 1, 53, 1, 1, 255], "two types"),
            (&[53, 2, 1, 1, 255], "a type of two bytes"),
            (&[53, 1, 1, 54, 3, 10, 0, 0, 255], "an address of three bytes"),
            (&[53, 1, 1, 51, 2, 0, 9, 255], "a time of two bytes"),
            (&[53, 1, 1, 6, 0, 255], "no resolver"),
            (&[53, 1, 1, 6, 3, 10, 0, 0, 255], "a resolver of three bytes"),
            (&[53, 1, 1, 12, 1, b'a', 12, 1, b'b', 255], "two names"),
            (&[53, 1, 1, 255, 1], "something behind the end"),
        ] {
            assert_eq!(error(malformed), OptionsError::Malformed, "{why}");
        }
        for (malformed, why) in [
            (&[53, 1, 1, 61, 1, 1, 255][..], "an identifier of one byte"),
            (&[53, 1, 1, 61, 2, 1, 2, 61, 2, 1, 2, 255], "two identifiers"),
        ] {
            assert_eq!(error(malformed), OptionsError::ClientId, "{why}");
        }
    }
}
