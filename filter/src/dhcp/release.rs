//! The one frame that the filter makes itself: a DHCPRELEASE that gives the VM's address back (RFC 2131, section
//! 4.4.6).

use core::fmt;
use core::ops::Deref;

use crate::checksum;
use crate::dhcp::message::{BOOT_REQUEST, COOKIE, ETHERNET, FIXED_LEN, code, kind};
use crate::dhcp::state::Dhcp;
use crate::dhcp::{CLIENT_PORT, SERVER_PORT};
use crate::frame;
use crate::ipv4;
use crate::port::Identity;

/// BOOTP's messages are of 300 bytes at least, and some servers insist.
const MIN_MESSAGE_LEN: usize = 300;

/// A DHCPRELEASE as a whole Ethernet frame, for the host side. Dereferences to its bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct ReleaseFrame {
    bytes: [u8; Self::CAPACITY],
    len: usize,
}

impl ReleaseFrame {
    const HEADERS_LEN: usize = frame::HEADER_LEN + ipv4::HEADER_LEN + ipv4::UDP_HEADER_LEN;
    /// Headers, the fixed part, and the options with the longest client identifier.
    const CAPACITY: usize = Self::HEADERS_LEN + FIXED_LEN + 3 + 6 + 257 + 1;

    /// The frame that gives the lease in `dhcp` back; `None` without one. Broadcast is not needed: the VM's neighbour
    /// is the server.
    pub(crate) fn new(dhcp: &Dhcp, identity: &Identity) -> Option<Self> {
        let lease = dhcp.lease()?;
        let mac = identity.vm_mac.octets();
        let own = lease.address.octets();
        let server = lease.server.octets();
        let client_id = dhcp.lease_client_id().unwrap_or(&[]);

        let mut message_len = FIXED_LEN.saturating_add(3 + 6 + 1);
        if !client_id.is_empty() {
            message_len = message_len.saturating_add(client_id.len()).saturating_add(2);
        }
        let message_len = message_len.max(MIN_MESSAGE_LEN);
        let udp_len = message_len.saturating_add(ipv4::UDP_HEADER_LEN);
        let ip_len = udp_len.saturating_add(ipv4::HEADER_LEN);

        let mut writer = Writer { bytes: [0; Self::CAPACITY], at: 0 };
        writer.put(&identity.gateway_mac.octets())?.put(&mac)?.put(&[0x08, 0x00])?;

        // Don't fragment, TTL 64.
        let ip_start = writer.at;
        writer.put(&[0x45, 0])?.put_u16(ip_len)?.put(&[0, 0, 0x40, 0, 64, ipv4::UDP, 0, 0])?;
        writer.put(&own)?.put(&server)?;
        let sum = checksum::Sum::default().add(writer.bytes.get(ip_start..writer.at)?);
        writer.set_u16(ip_start.saturating_add(10), sum.checksum())?;

        let udp_start = writer.at;
        writer.put_u16(usize::from(CLIENT_PORT))?.put_u16(usize::from(SERVER_PORT))?;
        writer.put_u16(udp_len)?.put(&[0, 0])?;
        writer.put(&[BOOT_REQUEST, ETHERNET, 6, 0])?.put(&dhcp.transactions.fresh_id().to_be_bytes())?;
        // No seconds, no flags; `ciaddr`, then three addresses that a client leaves 0.
        writer.put(&[0; 4])?.put(&own)?.put(&[0; 12])?;
        // `chaddr` with its padding, `sname`, `file`.
        writer.put(&mac)?.put(&[0; 10 + 64 + 128])?.put(&COOKIE)?;
        writer.put(&[code::MESSAGE_TYPE, 1, kind::RELEASE])?.put(&[code::SERVER, 4])?.put(&server)?;
        if let Ok(len @ 1..) = u8::try_from(client_id.len()) {
            writer.put(&[code::CLIENT_ID, len])?.put(client_id)?;
        }
        writer.put(&[code::END])?;

        let end = udp_start.saturating_add(udp_len);
        let sum = checksum::udp(own, server, writer.bytes.get(udp_start..end)?);
        // A checksum that comes out as 0 is sent as its other zero, since 0 means none (RFC 768).
        let checksum = match sum.checksum() {
            0 => 0xffff,
            checksum => checksum,
        };
        writer.set_u16(udp_start.saturating_add(6), checksum)?;
        Some(Self { bytes: writer.bytes, len: end })
    }
}

impl Deref for ReleaseFrame {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
}

impl fmt::Debug for ReleaseFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReleaseFrame").field("len", &self.len).finish_non_exhaustive()
    }
}

/// Writes into a fixed buffer; `None` where it ends.
struct Writer {
    bytes: [u8; ReleaseFrame::CAPACITY],
    at: usize,
}

impl Writer {
    fn put(&mut self, bytes: &[u8]) -> Option<&mut Self> {
        let end = self.at.checked_add(bytes.len())?;
        self.bytes.get_mut(self.at..end)?.copy_from_slice(bytes);
        self.at = end;
        Some(self)
    }

    fn put_u16(&mut self, number: usize) -> Option<&mut Self> {
        self.put(&u16::try_from(number).ok()?.to_be_bytes())
    }

    fn set_u16(&mut self, at: usize, number: u16) -> Option<()> {
        self.bytes.get_mut(at..at.checked_add(2)?)?.copy_from_slice(&number.to_be_bytes());
        Some(())
    }
}
