//! Who serves the network behind `--tap` and `--bridge` where the host does not: `--gateway` and `--dhcp-server`.

use std::net::Ipv4Addr;

use softnet_filter::MacAddr;

/// The stations that were named.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Servers {
    /// The router, with the length of its network's prefix in bits, if that was given.
    pub gateway: Option<(Named, Option<u8>)>,
    /// The DHCP server, if it is not the router.
    pub dhcp_server: Option<Named>,
}

/// A station by its address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Named {
    /// Its IPv4 address, which can be a host's.
    pub address: Ipv4Addr,
    /// Its MAC address, unicast and not zero. Without it Softnet asks for it.
    pub mac: Option<MacAddr>,
}

/// Why a value is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ServerError {
    /// Not an address.
    #[error("is not an IPv4 address; write it as {0}")]
    Address(&'static str),
    /// Not the address of one station.
    #[error("is not the address of one station; give the one that it has in the VM's network")]
    NotAHost,
    /// Not a prefix length.
    #[error("has an invalid prefix length; use one from 1 to 30, such as 192.168.1.1/24")]
    Prefix,
    /// Not the MAC address of one station.
    #[error(
        "has an invalid MAC address; write six octets of one station, such as 192.168.1.1,02:00:00:00:00:fe"
    )]
    Mac,
}

/// `ADDR[/LEN][,MAC]`.
///
/// # Errors
/// If it is something else.
pub fn parse_gateway(value: &str) -> Result<(Named, Option<u8>), ServerError> {
    let (place, mac) = split_mac(value)?;
    let (address, prefix) = match place.split_once('/') {
        Some((address, prefix)) => (address, Some(parse_prefix(prefix)?)),
        None => (place, None),
    };
    let address = parse_address(address, "192.168.1.1, 192.168.1.1/24 or 192.168.1.1,02:00:00:00:00:fe")?;
    Ok((Named { address, mac }, prefix))
}

/// `ADDR[,MAC]`.
///
/// # Errors
/// If it is something else.
pub fn parse_dhcp_server(value: &str) -> Result<Named, ServerError> {
    let (address, mac) = split_mac(value)?;
    Ok(Named { address: parse_address(address, "192.168.1.2 or 192.168.1.2,02:00:00:00:00:fd")?, mac })
}

fn split_mac(value: &str) -> Result<(&str, Option<MacAddr>), ServerError> {
    let Some((place, mac)) = value.split_once(',') else { return Ok((value, None)) };
    let mac: MacAddr = mac.parse().map_err(|_| ServerError::Mac)?;
    if mac.is_unicast() { Ok((place, Some(mac))) } else { Err(ServerError::Mac) }
}

fn parse_prefix(text: &str) -> Result<u8, ServerError> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let length = text.parse().ok().filter(|length| is_number && (1..=30).contains(length));
    length.ok_or(ServerError::Prefix)
}

fn parse_address(text: &str, example: &'static str) -> Result<Ipv4Addr, ServerError> {
    let address: Ipv4Addr = text.parse().map_err(|_| ServerError::Address(example))?;
    let is_special = matches!(address.octets(), [0 | 127 | 224.., ..]);
    if is_special { Err(ServerError::NotAHost) } else { Ok(address) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_with_what_may_follow_are_taken() {
        let address = Ipv4Addr::new(192, 168, 1, 1);
        let mac = Some(MacAddr([2, 0, 0, 0, 0, 0xfe]));
        for (value, expected) in [
            ("192.168.1.1", (Named { address, mac: None }, None)),
            ("192.168.1.1/24", (Named { address, mac: None }, Some(24))),
            ("192.168.1.1,02:00:00:00:00:fe", (Named { address, mac }, None)),
            ("192.168.1.1/8,02:00:00:00:00:fe", (Named { address, mac }, Some(8))),
        ] {
            assert_eq!(parse_gateway(value), Ok(expected), "{value}");
        }
        assert_eq!(parse_dhcp_server("192.168.1.1"), Ok(Named { address, mac: None }));
        assert_eq!(parse_dhcp_server("192.168.1.1,02:00:00:00:00:fe"), Ok(Named { address, mac }));
    }

    #[test]
    fn what_is_no_station_is_refused() {
        for (value, error) in [
            ("0.0.0.0", ServerError::NotAHost),
            ("127.0.0.1", ServerError::NotAHost),
            ("224.0.0.1", ServerError::NotAHost),
            ("255.255.255.255", ServerError::NotAHost),
            ("10.0.0.1,ff:ff:ff:ff:ff:ff", ServerError::Mac),
            ("10.0.0.1,00:00:00:00:00:00", ServerError::Mac),
            ("10.0.0.1,", ServerError::Mac),
        ] {
            assert_eq!(parse_gateway(value), Err(error), "{value}");
            assert_eq!(parse_dhcp_server(value), Err(error), "{value}");
        }
        for value in ["", "router", "10.0.0", "::1", ",02:00:00:00:00:fe"] {
            assert!(matches!(parse_gateway(value), Err(ServerError::Address(_))), "{value}");
        }
        for value in ["10.0.0.1/", "10.0.0.1/0", "10.0.0.1/31", "10.0.0.1/+8", "10.0.0.1/x"] {
            assert_eq!(parse_gateway(value), Err(ServerError::Prefix), "{value}");
        }
        assert!(matches!(parse_dhcp_server("10.0.0.1/24"), Err(ServerError::Address(_))));
    }
}
