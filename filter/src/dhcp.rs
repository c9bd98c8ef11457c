//! What DHCP messages mean (RFC 2131).

pub(crate) mod message;
pub(crate) mod name;

/// The port of a DHCP server.
pub(crate) const SERVER_PORT: u16 = 67;
/// The port of a DHCP client.
pub(crate) const CLIENT_PORT: u16 = 68;
