//! What Softnet tells the VM itself: rule L3.

use softnet_filter::{PortConfig, Timestamp};

use super::packet::{Ethernet, ICMP, Ipv4, number16};
use super::{Opinion, Oracle, is_end_of_time, world};

/// Whether a frame is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Must,
    May,
    MustNot,
}

impl Oracle {
    /// L3: whether the link does not carry a frame of this length.
    pub fn is_too_long(&self, frame: &[u8]) -> bool {
        frame.len() > 14 + usize::from(self.config.mtu)
    }

    /// Whether a frame that is too long is answered.
    pub fn answer_to(&self, frame: &[u8], now: Timestamp) -> Answer {
        let is_over = self.over_answers.tokens(now) < 1.0 && !is_end_of_time(now);
        if is_over || !may_be_answered(frame) {
            return Answer::MustNot;
        }
        let config = PortConfig { mtu: u16::MAX, ..self.config.clone() };
        match (Self { config, ..self.clone() }).on_leaving(frame, now) {
            Opinion::MustDrop(_) => Answer::MustNot,
            Opinion::MustPass if self.under_answers.tokens(now) >= 1.0 => Answer::Must,
            _ => Answer::May,
        }
    }

    /// RFC 1191, section 4: the answer to a frame, from the gateway to the VM.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_answer(&self, answer: &[u8], frame: &[u8]) -> Result<(), &'static str> {
        let ethernet = Ethernet::read(answer).ok_or("a runt")?;
        let ip = Ipv4::read(ethernet.body).ok_or("no packet")?;
        let sent = Ipv4::read(&frame[14..]).ok_or("no packet was sent")?;
        let quote = ip.payload.get(8..).ok_or("no quote")?;
        let is_right = |right: bool, wrong| if right { Ok(()) } else { Err(wrong) };
        is_right(
            (ethernet.destination, ethernet.source) == (self.own_mac(), self.gateway_mac()),
            "its stations",
        )?;
        is_right(ethernet.ether_type == 0x0800 && ip.header_is_right && ip.trailer.is_empty(), "its header")?;
        is_right((ip.source, ip.destination) == (self.gateway(), sent.source), "its addresses")?;
        is_right(ip.protocol == ICMP && ip.payload[..2] == [3, 4], "its type")?;
        is_right(number16(ip.payload, 6) == Some(self.config.mtu), "its MTU")?;
        is_right(sum(ip.payload) == 0xffff, "its checksum")?;
        is_right(quote.len() >= 28 && frame[14..].starts_with(quote) && ip.total_length <= 576, "its quote")
    }
}

/// Whether anyone may answer such a packet (RFC 1122, section 3.2.2), and must not fragment it.
fn may_be_answered(frame: &[u8]) -> bool {
    let Some(ip) = Ethernet::read(frame).and_then(|ethernet| Ipv4::read(ethernet.body)) else { return false };
    let is_dhcp = ip.udp_ports().is_some_and(|(from, to)| from == 67 || matches!(to, 67 | 68));
    let is_error = ip.protocol == ICMP && !matches!(ip.payload.first(), Some(0 | 8));
    ip.dont_fragment && ip.offset == 0 && !is_dhcp && !is_error && !world::is_multicast(ip.destination)
}

/// The one's complement sum of 16-bit words.
fn sum(bytes: &[u8]) -> u32 {
    let words = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let sum = words.sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    (folded & 0xffff) + (folded >> 16)
}
