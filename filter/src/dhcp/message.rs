//! The format of a DHCP message (RFC 2131, section 2) and of its options (RFC 2132).

use core::net::Ipv4Addr;

/// Bytes before the options, the magic cookie included.
pub(crate) const FIXED_LEN: usize = 240;
pub(crate) const COOKIE: [u8; 4] = [99, 130, 83, 99];

pub(crate) const BOOT_REQUEST: u8 = 1;
pub(crate) const BOOT_REPLY: u8 = 2;
pub(crate) const ETHERNET: u8 = 1;

/// Option codes.
pub(crate) mod code {
    pub(crate) const PAD: u8 = 0;
    pub(crate) const RESOLVERS: u8 = 6;
    pub(crate) const HOST_NAME: u8 = 12;
    pub(crate) const REQUESTED_ADDRESS: u8 = 50;
    pub(crate) const LEASE_TIME: u8 = 51;
    pub(crate) const OVERLOAD: u8 = 52;
    pub(crate) const MESSAGE_TYPE: u8 = 53;
    pub(crate) const SERVER: u8 = 54;
    pub(crate) const CLIENT_ID: u8 = 61;
    pub(crate) const RAPID_COMMIT: u8 = 80;
    pub(crate) const FQDN: u8 = 81;
    pub(crate) const RELAY_AGENT: u8 = 82;
    pub(crate) const END: u8 = 255;
}

/// The values of option 53.
pub(crate) mod kind {
    pub(crate) const DISCOVER: u8 = 1;
    pub(crate) const OFFER: u8 = 2;
    pub(crate) const REQUEST: u8 = 3;
    pub(crate) const DECLINE: u8 = 4;
    pub(crate) const ACK: u8 = 5;
    pub(crate) const NAK: u8 = 6;
    pub(crate) const RELEASE: u8 = 7;
    pub(crate) const INFORM: u8 = 8;
}

/// A message whose fixed part is whole.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    pub(crate) operation: u8,
    pub(crate) hardware_type: u8,
    pub(crate) hardware_len: u8,
    pub(crate) hops: u8,
    pub(crate) transaction: u32,
    pub(crate) client_address: Ipv4Addr,
    pub(crate) your_address: Ipv4Addr,
    pub(crate) relay_address: Ipv4Addr,
    pub(crate) hardware_address: [u8; 6],
    pub(crate) is_hardware_padding_zero: bool,
    pub(crate) has_cookie: bool,
    options: &'a [u8],
}

impl<'a> Message<'a> {
    /// `None` if the message is truncated.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
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

    /// The options in the option field. What option 52 would add from other fields is not looked at.
    pub(crate) fn options(&self) -> Result<Options<'a>, OptionsError> {
        Options::parse(self.options)
    }
}

/// The options that matter here. None of them may occur twice, which would split it (RFC 3396).
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Options<'a> {
    pub(crate) message_type: u8,
    pub(crate) requested_address: Option<Ipv4Addr>,
    /// Seconds.
    pub(crate) lease_time: Option<u32>,
    pub(crate) server: Option<Ipv4Addr>,
    pub(crate) client_id: Option<&'a [u8]>,
    /// A multiple of 4 bytes.
    pub(crate) resolvers: &'a [u8],
    /// The host's name, by itself and as the domain name that the client wants (C9).
    pub(crate) host_name: Option<&'a [u8]>,
    pub(crate) fqdn: Option<&'a [u8]>,
    pub(crate) has_rapid_commit: bool,
    pub(crate) has_overload: bool,
    pub(crate) has_relay_agent: bool,
}

/// Why options cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OptionsError {
    /// An option reaches beyond the field, the end is missing, something other than padding follows it, an option
    /// has a length that it cannot have, or there is not one message type.
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
