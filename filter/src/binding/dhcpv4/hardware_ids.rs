//! The hardware addresses in client identifiers (option 61) (C5).

use softnet_wire::MacAddr;

/// The last hardware type that IANA has assigned below the letters and digits of ASCII. RFC 2132 makes any type from
/// 1 to 254 a hardware type, but clients that a person configured send plain text, which begins above these.
const LAST_HARDWARE_TYPE: u8 = 38;

/// Whether a client identifier names the MAC address `own`, or none at all (C5).
///
/// A server stores a lease under the identifier, so a VM that names another VM's MAC address in it takes that
/// VM's address.
pub(crate) fn is_own_or_opaque(id: &[u8], own: MacAddr) -> bool {
    let own = own.octets();
    match id {
        // A hardware type and address (RFC 2132, section 9.14).
        [1..=LAST_HARDWARE_TYPE, address @ ..] => address == own,
        [255, rest @ ..] => match (duid_address(rest), rest) {
            // Some clients send the DUID alone,
            (Some(address), _) => address == own,
            // but it belongs after an identity association (RFC 4361, section 6.1).
            (None, [_, _, _, _, duid @ ..]) => match (duid_address(duid), duid) {
                (Some(address), _) => address == own,
                // Based on a link-layer address, but not on one of Ethernet.
                (None, [0, 1 | 3, ..]) => false,
                (None, _) => true,
            },
            (None, _) => true,
        },
        // A bare DUID begins with a zero, and so does a name.
        _ => duid_address(id).is_none_or(|address| address == own),
    }
}

/// The Ethernet address that an identifier names, if it names one.
pub(crate) fn named_mac(id: &[u8]) -> Option<MacAddr> {
    let address = match id {
        [1, address @ ..] => address.try_into().ok(),
        [255, rest @ ..] => duid_address(rest).or_else(|| duid_address(rest.get(4..)?)),
        _ => duid_address(id),
    };
    address.map(MacAddr)
}

/// The Ethernet address on which a DUID is based: with (1) or without (3) a time (RFC 8415, sections 11.2 and 11.4).
fn duid_address(duid: &[u8]) -> Option<[u8; 6]> {
    match duid {
        [0, 1, 0, 1, _, _, _, _, address @ ..] | [0, 3, 0, 1, address @ ..] => address.try_into().ok(),
        _ => None,
    }
}
