//! What Softnet tells the VM itself: rules L3, F6 and J.

use softnet_filter::{OnBlock, PortConfig, Timestamp, Verdict};

use super::packet::{Ethernet, ICMP, Ipv4, TCP, number16, octets, sum16};
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

    /// J1: whether a frame is answered that is dropped as the oracle says, or for another reason.
    pub fn refusal_of(&self, frame: &[u8], opinion: Opinion, verdict: Verdict, now: Timestamp) -> Answer {
        let is_over = self.over_answers.tokens(now) < 1.0 && !is_end_of_time(now);
        let is_silent = self.config.on_block == OnBlock::Drop || !self.may_be_refused(frame);
        let Verdict::Drop(reason) = verdict else { return Answer::MustNot };
        if is_over || is_silent {
            return Answer::MustNot;
        }
        let is_under = self.under_answers.tokens(now) >= 1.0;
        let is_refusal = |rule| matches!(rule, "D1" | "D2" | "D3" | "D4" | "D5" | "D9");
        match opinion {
            // A packet may break other rules too, for which it is dropped in silence. The host's other addresses are as
            // open as the gateway (H1, D4).
            Opinion::MustDrop(rule) if is_refusal(rule) || rule == "H1" => {
                if is_refusal(reason.rule()) && is_under { Answer::Must } else { Answer::May }
            }
            // The policy may close such a port too, and then it refuses the packet first.
            Opinion::MustDrop("H2") if is_refusal(reason.rule()) => Answer::May,
            Opinion::MustDrop(_) | Opinion::MustPass => Answer::MustNot,
            Opinion::Nothing => Answer::May,
        }
    }

    /// J1: whether a packet is one that may be answered: for one host, by one host, not a later fragment; of TCP a SYN, of ICMP an
    /// echo request.
    fn may_be_refused(&self, frame: &[u8]) -> bool {
        let Some(ethernet) = Ethernet::read(frame).filter(|ethernet| !ethernet.is_group()) else {
            return false;
        };
        let Some(ip) = Ipv4::read(ethernet.body) else { return false };
        let is_kind = match ip.protocol {
            TCP => ip.payload.get(13).is_some_and(|flags| flags & 0x16 == 2),
            ICMP => ip.payload.first() == Some(&8),
            _ => true,
        };
        is_kind
            && ip.offset == 0
            && !world::is_multicast(ip.destination)
            && !ip.destination.is_broadcast()
            && !self.is_edge(ip.destination)
    }

    /// J2: the packet of an answer, in a frame of the gateway for the VM.
    fn read_answer<'a>(&self, answer: &'a [u8]) -> Result<Ipv4<'a>, &'static str> {
        let ethernet = Ethernet::read(answer).ok_or("a runt")?;
        let ip = Ipv4::read(ethernet.body).ok_or("no packet")?;
        let stations = (ethernet.destination, ethernet.source);
        is_right(stations == (self.own_mac(), self.gateway_mac()), "its stations")?;
        is_right(ethernet.ether_type == 0x0800 && ip.header_is_right && ip.trailer.is_empty(), "its header")?;
        Ok(ip)
    }

    /// J1, J2: the answer to a refused frame, in the name of whom it was for.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_refusal(&self, answer: &[u8], frame: &[u8]) -> Result<(), &'static str> {
        let ip = self.read_answer(answer)?;
        let sent = Ipv4::read(&frame[14..]).ok_or("no packet was sent")?;
        is_right((ip.source, ip.destination) == (sent.destination, sent.source), "its addresses")?;
        if sent.protocol == TCP {
            let number = |bytes: &[u8], at: usize| octets::<4>(bytes, at).map(u32::from_be_bytes);
            let header_length = usize::from(sent.payload[12] >> 4) * 4;
            let data = sent.payload.len() - header_length;
            let controls = u32::from(sent.payload[13] & 2 != 0) + u32::from(sent.payload[13] & 1);
            let end = number(sent.payload, 4).map(|first| first.wrapping_add(data as u32 + controls));
            let ports = sent.ports().map(|(from, to)| (to, from));
            is_right(ip.protocol == TCP && ip.ports() == ports, "its ports")?;
            is_right(ip.payload.len() == 20 && ip.payload[12..14] == [0x50, 0x14], "its flags")?;
            is_right(number(ip.payload, 4) == Some(0), "its sequence number")?;
            return is_right(number(ip.payload, 8) == end, "its acknowledgement");
        }
        let quote = ip.payload.get(8..).ok_or("no quote")?;
        is_right(ip.protocol == ICMP && ip.payload[..2] == [3, 13], "its type")?;
        is_right(ip.payload[4..8] == [0; 4], "its unused bytes")?;
        is_right(sum16(ip.payload) == 0xffff, "its checksum")?;
        is_right(frame[14..].starts_with(quote) && ip.total_length <= 576, "its quote")?;
        is_right(quote.len() >= sent.total_length.min(28), "the length of its quote")
    }

    /// F6: the RST of a connection that has ended.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_reset(&self, answer: &[u8], now: Timestamp) -> Result<(), &'static str> {
        let ip = self.read_answer(answer)?;
        let is_to_vm = self.lease_at(now).is_some_and(|lease| lease.address == ip.destination);
        let is_reset = ip.protocol == TCP && ip.payload.len() == 20 && ip.payload[13] == 4;
        if is_to_vm && is_reset && self.config.on_block == OnBlock::Reject {
            Ok(())
        } else {
            Err("it is no RST")
        }
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
        let ip = self.read_answer(answer)?;
        let sent = Ipv4::read(&frame[14..]).ok_or("no packet was sent")?;
        let quote = ip.payload.get(8..).ok_or("no quote")?;
        is_right((ip.source, ip.destination) == (self.gateway(), sent.source), "its addresses")?;
        is_right(ip.protocol == ICMP && ip.payload[..2] == [3, 4], "its type")?;
        is_right(number16(ip.payload, 6) == Some(self.config.mtu), "its MTU")?;
        is_right(sum16(ip.payload) == 0xffff, "its checksum")?;
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

/// `Err(wrong)` unless it is right.
fn is_right(right: bool, wrong: &'static str) -> Result<(), &'static str> {
    if right { Ok(()) } else { Err(wrong) }
}
