//! What leaves the VM: the rules L, A, S, D and C.

use std::net::Ipv4Addr;
use std::time::Duration;

use softnet_filter::{Action, Lease, Origin, Timestamp};

use super::dhcp::{self, Message, Names};
use super::flows::{self, Fate};
use super::packet::{self, Arp, Ethernet, ICMP, IGMP, Ipv4, TCP, UDP, UdpChecksum, octets};
use super::{Believed, Oracle, Outcome, Rule, To, Transaction, Wish, breaks, capped, is_end_of_time, world};

const LIMITED_BROADCAST: Ipv4Addr = Ipv4Addr::BROADCAST;
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
/// The shortest frame on a wire, without its check sequence.
const SHORTEST_FRAME: usize = 60;

impl Oracle {
    /// Safety: the rule that forbids the frame to leave, if one does.
    pub fn must_not_leave(&self, frame: &[u8], now: Timestamp) -> Option<Rule> {
        self.check_frame(frame, now).err()
    }

    fn check_frame(&self, frame: &[u8], now: Timestamp) -> Result<(), Rule> {
        let ethernet = Ethernet::read(frame).ok_or("L3")?;
        breaks("L3", frame.len() > 14 + usize::from(self.config.mtu))?;
        breaks("L1", ethernet.source != self.own_mac())?;
        match ethernet.ether_type {
            IPV4 => self.check_ipv4(&ethernet, now),
            ARP => self.check_arp(&ethernet, now),
            _ => Err("L2"),
        }
    }

    fn check_arp(&self, ethernet: &Ethernet<'_>, now: Timestamp) -> Result<(), Rule> {
        let arp = Arp::read(ethernet.body).ok_or("A1")?;
        breaks("A1", arp.hardware_type != 1 || arp.protocol_type != IPV4)?;
        breaks("A1", arp.hardware_length != 6 || arp.protocol_length != 4)?;
        breaks("A1", !matches!(arp.operation, 1 | 2))?;
        breaks("A2", arp.sender_mac != self.own_mac())?;
        breaks("L4", ethernet.length > SHORTEST_FRAME)?;

        let own = self.lease_at(now).map(|lease| lease.address);
        let probes = arp.operation == 1 && arp.sender.is_unspecified();
        if probes && (own == Some(arp.target) || self.offered() == Some(arp.target)) {
            return Ok(());
        }
        // C10
        let to_server = arp.operation == 1 || ethernet.destination == self.server_mac();
        if self.believed_at(now) == Believed::Expired(arp.sender) && arp.target == self.server() && to_server
        {
            return Ok(());
        }
        let own = own.ok_or("A4")?;
        breaks("A3", arp.sender != own)?;
        breaks("A5", arp.operation == 1 && !self.may_ask_for(arp.target, own, now))
    }

    /// A5: whose MAC address the VM may ask for.
    fn may_ask_for(&self, target: Ipv4Addr, own: Ipv4Addr, now: Timestamp) -> bool {
        target == self.gateway()
            || target == self.server()
            || target == own
            || self.is_resolver(target, now)
            || self.is_allowed_neighbour(target, own)
            || (self.is_on_link(target) && self.fate_of_peer(target, now) != Fate::Stranger)
    }

    /// A host of the VM's network, not the gateway, that a flag opens.
    fn is_allowed_neighbour(&self, address: Ipv4Addr, own: Ipv4Addr) -> bool {
        self.is_on_link(address)
            && address != self.gateway()
            && !self.is_never(address, own)
            && world::allows_some(&self.config, address)
    }

    /// D1.
    pub(super) fn is_never(&self, address: Ipv4Addr, own: Ipv4Addr) -> bool {
        world::is_never(address) || self.is_edge(address) || address == own
    }

    fn check_ipv4(&self, ethernet: &Ethernet<'_>, now: Timestamp) -> Result<(), Rule> {
        let ip = Ipv4::read(ethernet.body).ok_or("S2")?;
        breaks("S2", !ip.header_is_right || ip.time_to_live == 0 || ip.reserved_flag)?;
        let to_group = ip.protocol == IGMP && world::is_multicast(ip.destination);
        let is_alert = ip.options == [0x94, 4, 0, 0] && to_group && !ip.is_fragment();
        breaks("S3", ip.header_length > 20 && !is_alert)?;
        breaks("L4", !ip.trailer.is_empty() && ethernet.length > SHORTEST_FRAME)?;
        if ip.is_fragment() {
            check_fragment(&ip)?;
        }
        check_transport(&ip)?;
        if let Some((from, to)) = ip.udp_ports() {
            breaks("C1", from == 67 || to == 68)?;
            if from == 68 && (to == 67 || self.is_to_boot_server(&ip)) {
                return self.check_client_message(ethernet, &ip, now);
            }
            breaks("C1", self.is_to_boot_server(&ip))?;
            let to_here = self.is_on_link(ip.destination) || ip.destination == LIMITED_BROADCAST;
            breaks("C1", to == 67 && to_here)?;
        }
        let own = self.lease_at(now).ok_or("S1")?.address;
        breaks("S1", ip.source != own)?;
        self.check_reach(&ip, own, now)?;
        self.check_station(ethernet, &ip, now)?;
        breaks("S3", to_group && !is_report(&ip))?;
        breaks("D6", ip.protocol == ICMP && ip.offset == 0 && !is_proper_icmp(ip.payload, own))
    }

    /// P3, P4, F: the destination, or the flow that a packet belongs to.
    fn check_reach(&self, ip: &Ipv4<'_>, own: Ipv4Addr, now: Timestamp) -> Result<(), Rule> {
        let to = To::of(ip);
        if self.is_stateful() && !world::is_multicast(to.address) {
            if ip.is_fragment() {
                self.check_place_of_fragment(&to, now)?;
            }
            if self.fate(Origin::Vm, ip, now) != Fate::Stranger {
                return Ok(());
            }
            self.check_destination(&to, own, now)?;
            breaks("F5", ip.is_fragment())?;
            return breaks("F1", !flows::can_begin(ip));
        }
        match self.check_destination(&to, own, now) {
            Err("D2" | "D3" | "D5") if self.answers_published(ip, now) != Fate::Stranger => Ok(()),
            judgement => judgement,
        }
    }

    /// S4 where it speaks of destinations.
    fn check_place_of_fragment(&self, to: &To, now: Timestamp) -> Result<(), Rule> {
        let rule = self.rule_for(to);
        let to_world = world::is_globally_reachable(to.address) && !self.is_on_link(to.address);
        let is_closed = rule == Some(Action::Block) || (rule.is_none() && self.is_host_only() && to_world);
        let open_host = self.is_host(to.address)
            && !is_closed
            && (rule.is_some() || to.address == self.gateway() || to_world);
        let restricted =
            self.is_host(to.address) || self.is_on_link(to.address) || self.is_resolver(to.address, now);
        breaks("S4", restricted && !(open_host && matches!(to.protocol, ICMP | UDP)))?;
        breaks("S4", world::has_ports(&self.config, to.address))
    }

    /// H2: whether a port of the host leads to another VM.
    pub(super) fn leads_away(&self, to: &To) -> bool {
        self.is_host(to.address)
            && matches!(to.protocol, TCP | UDP)
            && self.exposed.iter().any(|exposed| {
                exposed.protocol == to.protocol
                    && Some(exposed.port) == to.port
                    && exposed.address.is_none_or(|address| address == to.address)
            })
    }

    /// D1 to D5, D8, D9, and S4 where it speaks of destinations.
    pub(super) fn check_destination(&self, to: &To, own: Ipv4Addr, now: Timestamp) -> Result<(), Rule> {
        let address = to.address;
        let rule = self.rule_for(to);
        let to_world = world::is_globally_reachable(address) && !self.is_on_link(address);
        let resolves = self.is_resolver(address, now);
        breaks("D1", self.is_never(address, own))?;
        breaks("D2", rule == Some(Action::Block))?;
        breaks("D9", self.is_host_only() && to_world)?;
        let datagram = matches!(to.protocol, ICMP | UDP);
        if to.is_fragment {
            self.check_place_of_fragment(to, now)?;
        }
        breaks("H2", self.leads_away(to))?;
        if rule.is_some() {
            return Ok(());
        }
        if address == self.gateway() {
            return breaks("D4", !datagram && to.protocol != TCP);
        }
        if to_world {
            return breaks("H1", self.is_host(address) && !datagram && to.protocol != TCP);
        }
        if resolves {
            return breaks("D5", to.port != Some(53));
        }
        Err("D3")
    }

    /// L5.
    fn check_station(&self, ethernet: &Ethernet<'_>, ip: &Ipv4<'_>, now: Timestamp) -> Result<(), Rule> {
        let to = ip.destination;
        if world::is_multicast(to) {
            return breaks("L5", ethernet.destination != world::multicast_mac(to));
        }
        breaks("L5", ethernet.is_group())?;
        breaks("L5", ethernet.destination == self.own_mac() || ethernet.destination == [0; 6])?;
        let neighbour = self.is_on_link(to)
            && to != self.gateway()
            && (self.rule_for(&To::of(ip)) == Some(Action::Allow)
                || self.is_resolver(to, now)
                || self.fate(Origin::Vm, ip, now) != Fate::Stranger);
        breaks("L5", ethernet.destination != self.gateway_mac() && !neighbour)
    }

    /// B6: whether a UDP packet goes to where PXE clients ask.
    fn is_to_boot_server(&self, ip: &Ipv4<'_>) -> bool {
        ip.udp_ports().is_some_and(|(_, to)| to == 4011) && ip.destination == self.server()
    }

    /// C1 to C7, of a UDP packet from 68 to 67, or to the boot server.
    fn check_client_message(
        &self,
        ethernet: &Ethernet<'_>,
        ip: &Ipv4<'_>,
        now: Timestamp,
    ) -> Result<(), Rule> {
        let own = self.lease_at(now).map(|lease| lease.address);
        let broadcast = ethernet.is_broadcast() && ip.destination == LIMITED_BROADCAST;
        let to_server = ethernet.destination == self.server_mac() && ip.destination == self.server();
        breaks("C1", ip.is_fragment())?;
        breaks("C1", packet::udp_checksum(ip, ip.payload) == UdpChecksum::Wrong)?;
        let boots = self.is_to_boot_server(ip);
        let renews = own.is_some() || (!boots && self.may_believe(ip.source, now));
        breaks("C1", !(broadcast || to_server && renews))?;

        let message = Message::read(&ip.payload[8..]).ok_or("C2")?;
        breaks("C2", message.op != 1 || message.hardware_type != 1 || message.hardware_length != 6)?;
        breaks("C2", message.hops != 0 || !message.relay.is_unspecified())?;
        breaks("C2", !message.is_of(self.own_mac()) || message.broken)?;
        let kind = message.kind().ok_or("C2")?;
        breaks("C3", ![1, 3, 4, 7, 8].contains(&kind))?;
        if boots {
            let at_once = kind == dhcp::DISCOVER && message.has(dhcp::OPTION_RAPID_COMMIT);
            breaks("B6", at_once || matches!(kind, dhcp::RELEASE | dhcp::DECLINE))?;
            let is_own = |value: &&[u8]| octets(value, 0).map(Ipv4Addr::from) == own;
            breaks("B6", !message.all(dhcp::OPTION_REQUESTED).iter().all(is_own))?;
        }
        // C4, C10
        let may_say = |address: Ipv4Addr| {
            address.is_unspecified()
                || Some(address) == own
                || (kind == dhcp::REQUEST && own.is_none() && self.may_believe(address, now))
        };
        breaks("C4", !may_say(ip.source) || !may_say(message.client))?;
        let is_last = matches!(self.believed_at(now), Believed::Expired(last) if last == ip.source);
        breaks("C10", own.is_none() && is_last && message.client != ip.source)?;

        breaks("C5", message.has(dhcp::OPTION_RELAY))?;
        let hides = |value: &&[u8]| matches!(value, [1..=3]);
        breaks("C5", message.all(dhcp::OPTION_OVERLOAD).iter().any(hides))?;
        let ids = message.all(dhcp::OPTION_CLIENT_ID);
        breaks("C5", ids.len() > 1)?;
        if let [id] = ids[..] {
            let is_foreign = dhcp::client_id_names(id, self.own_mac()) == Names::Foreign;
            breaks("C5", is_foreign && !self.config.server_files_by_mac)?;
            let may_be_new = self.over_ids.tokens(now) >= 1.0 || is_end_of_time(now);
            breaks("C5", !self.knows(id) && !may_be_new)?;
        }
        let is_server = |value: &&[u8]| octets(value, 0) == Some(self.server().octets()) && value.len() == 4;
        breaks("C8", !message.all(dhcp::OPTION_SERVER).iter().all(is_server))?;
        breaks("C9", !message.all(dhcp::OPTION_HOST_NAME).into_iter().all(dhcp::is_host_name))?;
        breaks("C9", !message.all(dhcp::OPTION_FQDN).into_iter().all(dhcp::is_fqdn))?;
        if !boots && matches!(kind, dhcp::DISCOVER | dhcp::REQUEST | dhcp::INFORM) {
            breaks("B7", !self.may_ask(&message, &wish(&message, kind), now))?;
        }
        if kind == dhcp::RELEASE {
            breaks("C6", own.is_none() || Some(message.client) != own)?;
        }
        if kind == dhcp::DECLINE {
            let declined = message.address_once(dhcp::OPTION_REQUESTED).ok_or("C6")?;
            breaks("C6", Some(declined) != own && Some(declined) != self.offered())?;
        }
        breaks("C7", self.over.tokens(now) < 1.0 && !is_end_of_time(now))
    }

    fn knows(&self, id: &[u8]) -> bool {
        self.client_ids.iter().any(|used| used == id)
    }

    /// B7: whether the number is free for what the message asks.
    fn may_ask(&self, message: &Message, wish: &Wish, now: Timestamp) -> bool {
        let Some(open) = self.transactions.iter().find(|open| open.xid == message.xid) else { return true };
        let is_next = open.wish.kind == dhcp::DISCOVER
            && (!open.wish.at_once || open.unanswered == 0 || open.wish.seconds == wish.seconds)
            && wish.kind == dhcp::REQUEST
            && open.wish.client_id == wish.client_id;
        open.void || open.is_old(now) || open.wish == *wish || is_next
    }

    /// Liveness: whether the frame is so plainly legitimate that it must leave. Asked only where no rule forbids it.
    pub fn must_leave(&self, frame: &[u8], now: Timestamp) -> bool {
        let Some(ethernet) = Ethernet::read(frame) else { return false };
        match ethernet.ether_type {
            ARP => self.is_plain_arp(&ethernet, now),
            IPV4 => Ipv4::read(ethernet.body).is_some_and(|ip| {
                is_plain_padding(&ethernet, ip.trailer)
                    && match ip.udp_ports() {
                        Some((68, 67)) => self.is_plain_client_message(&ip, now),
                        Some((68, _)) if self.is_to_boot_server(&ip) => {
                            self.is_plain_client_message(&ip, now)
                        }
                        Some((68, _) | (_, 67)) => false,
                        _ => self.is_plain_ipv4(&ip, now),
                    }
            }),
            _ => false,
        }
    }

    fn is_plain_arp(&self, ethernet: &Ethernet<'_>, now: Timestamp) -> bool {
        let Some(arp) = Arp::read(ethernet.body) else { return false };
        if !is_plain_padding(ethernet, &ethernet.body[Arp::LENGTH..]) {
            return false;
        }
        if arp.sender.is_unspecified() && self.lease_at(now).is_none_or(|own| own.address != arp.target) {
            return ethernet.is_broadcast() && self.offered_lately(arp.target, now);
        }
        // One that may ask only because of a flow, which may be over.
        let own = self.lease_at(now).map(|lease| lease.address);
        let is_doubtful = arp.operation == 1
            && self.fate_of_peer(arp.target, now) == Fate::Perhaps
            && own.is_some_and(|own| !self.is_allowed_neighbour(arp.target, own));
        !is_doubtful && (ethernet.is_broadcast() || ethernet.destination == self.gateway_mac())
    }

    /// A later fragment of the plainest: with data, to the world or to the open host.
    fn is_plain_fragment(&self, ip: &Ipv4<'_>, now: Timestamp) -> bool {
        let to = ip.destination;
        let is_plain = !self.is_resolver(to, now) && !ip.dont_fragment && !ip.payload.is_empty();
        if self.is_host(to) {
            return is_plain && to == self.gateway() && ip.offset > 0;
        }
        is_plain && world::is_globally_reachable(to) && (ip.offset > 0 || ip.protocol == TCP)
    }

    fn is_plain_ipv4(&self, ip: &Ipv4<'_>, now: Timestamp) -> bool {
        let to = ip.destination;
        let rule = self.rule_for(&To::of(ip));
        let is_timestamp = ip.protocol == ICMP && ip.offset == 0 && ip.payload[0] == 14;
        let fate = if self.is_stateful() && !world::is_multicast(to) {
            if ip.is_fragment() {
                return false;
            }
            self.fate(Origin::Vm, ip, now)
        } else {
            let own = self.lease_at(now).map_or(to, |lease| lease.address);
            match self.check_destination(&To::of(ip), own, now) {
                Ok(()) => Fate::Stranger,
                Err(_) => self.answers_published(ip, now),
            }
        };
        match fate {
            Fate::Member => return !is_timestamp,
            Fate::Perhaps => return false,
            Fate::Stranger => {}
        }
        if ip.is_fragment() {
            return self.is_plain_fragment(ip, now);
        }
        if world::is_multicast(to) {
            return !self.is_host_only() && matches!(ip.protocol, IGMP | UDP);
        }
        if is_timestamp {
            return false;
        }
        if to == self.gateway() && rule == Some(Action::Allow) {
            return matches!(ip.protocol, ICMP | TCP | UDP);
        }
        // A resolver in the world of a VM that has none of it, or a private network opened by a flag.
        !self.is_host_only() || self.is_on_link(to)
    }

    fn is_plain_client_message(&self, ip: &Ipv4<'_>, now: Timestamp) -> bool {
        let Some(message) = Message::read(&ip.payload[8..]) else { return false };
        let own = self.lease_at(now).map(|lease| lease.address);
        let Some(kind) = message.kind() else { return false };
        let id_is_plain = match message.once(dhcp::OPTION_CLIENT_ID) {
            None => true,
            Some(id) => id.len() <= 32 && dhcp::client_id_names(id, self.own_mac()) != Names::Unclear,
        };
        let four = |code| !message.has(code) || message.address_once(code).is_some();
        let lengths = [dhcp::OPTION_REQUESTED, dhcp::OPTION_SERVER, dhcp::OPTION_LEASE_TIME];
        if message.repeats()
            || !message.ended
            || message.has(dhcp::OPTION_OVERLOAD)
            || !id_is_plain
            || !lengths.into_iter().all(four)
            || message.has(dhcp::OPTION_RESOLVERS)
            || self.under.tokens(now) < 1.0
            || !message.once(dhcp::OPTION_CLIENT_ID).is_none_or(|id| self.may_come_with(id, now))
        {
            return false;
        }
        let is_own = |address| Some(address) == own;
        // C10
        let is_last = |address| own.is_none() && self.may_believe(address, now);
        let unicast = ip.destination == self.server();
        let by_server = message.address_once(dhcp::OPTION_SERVER) == Some(self.server());
        if self.is_to_boot_server(ip) {
            return matches!(kind, dhcp::REQUEST | dhcp::INFORM)
                && is_own(ip.source)
                && is_own(message.client);
        }
        match kind {
            dhcp::DISCOVER => !unicast && message.client.is_unspecified(),
            dhcp::REQUEST if own.is_none() && is_last(message.client) => {
                ip.source == message.client || (ip.source.is_unspecified() && !unicast)
            }
            dhcp::REQUEST if unicast => is_own(ip.source) && is_own(message.client),
            dhcp::REQUEST => ip.source.is_unspecified() || is_own(message.client),
            dhcp::RELEASE => unicast && is_own(ip.source) && by_server,
            dhcp::DECLINE => {
                let declined = message.address_once(dhcp::OPTION_REQUESTED);
                let offered = declined.is_some_and(|address| self.offered_lately(address, now));
                let is_early = self.declines < 8;
                let is_plain = !unicast && message.client.is_unspecified() && by_server;
                is_plain && is_early && (declined == own || offered)
            }
            dhcp::INFORM => is_own(ip.source) && is_own(message.client),
            _ => false,
        }
    }

    /// Takes note of a frame of the VM and of its verdict; returns what the lease may be now.
    pub(super) fn after_vm(&mut self, frame: &[u8], now: Timestamp, forwarded: bool) -> Vec<Outcome> {
        let lease = self.lease_at(now).copied();
        let unchanged = vec![Outcome::exactly(lease)];
        let Some(ip) = Ethernet::read(frame)
            .filter(|ethernet| ethernet.ether_type == IPV4)
            .and_then(|ethernet| Ipv4::read(ethernet.body))
        else {
            return unchanged;
        };
        let Some((from, to)) = ip.udp_ports() else { return unchanged };
        if from == 68 || to == 67 {
            self.under.take(now);
        }
        let boots = from == 68 && self.is_to_boot_server(&ip);
        if !forwarded || ((from, to) != (68, 67) && !boots) {
            return unchanged;
        }
        self.over.take(now);
        let Some(message) = Message::read(&ip.payload[8..]) else { return unchanged };
        let Some(kind) = message.kind() else { return unchanged };
        if let Some(id) = message.once(dhcp::OPTION_CLIENT_ID) {
            self.note_client_id(id, now);
        }
        if boots {
            self.boots.retain(|(xid, _)| *xid != message.xid);
            self.boots.push((message.xid, now));
            return unchanged;
        }
        self.newest = Some((message.xid, kind, now));
        if matches!(kind, dhcp::RELEASE | dhcp::DECLINE) {
            self.transactions.retain(|open| open.wish.binds());
            self.transactions.iter_mut().for_each(|open| open.void = true);
            self.offer_may_be_over = true;
            self.after = Some(Believed::Nothing);
        }
        match kind {
            dhcp::RELEASE => vec![Outcome::Unbound],
            dhcp::DECLINE => {
                self.declines += 1;
                let declined = message.address_once(dhcp::OPTION_REQUESTED);
                if declined.is_some() && declined == lease.map(|lease| lease.address) {
                    vec![Outcome::Unbound]
                } else {
                    vec![Outcome::Unbound, Outcome::exactly(lease)]
                }
            }
            _ => {
                let wish = wish(&message, kind);
                self.open(message.xid, &wish, now);
                vec![self.after_wish(&wish, lease, now)]
            }
        }
    }

    /// B7, B9: what a wish that has reached the server leaves of the lease.
    fn after_wish(&mut self, wish: &Wish, lease: Option<Lease>, now: Timestamp) -> Outcome {
        let names = wish.names();
        let is_for =
            |address| !wish.at_once && !names.is_empty() && names.iter().all(|&name| name == address);
        let Some(lease) = lease else {
            // C10: it wants another than its last.
            if let Believed::Expired(last) = self.believed_at(now)
                && wish.binds()
                && !is_for(last)
            {
                self.after = Some(Believed::Nothing);
            }
            return Outcome::Unbound;
        };
        if !wish.binds() {
            return Outcome::exactly(Some(lease));
        }
        if !is_for(lease.address) {
            self.after = Some(Believed::Nothing);
            return Outcome::Unbound;
        }
        if self.given.is_some() {
            return Outcome::exactly(Some(lease));
        }
        Outcome::exactly(Some(match wish.seconds {
            Some(u32::MAX) => lease,
            Some(seconds) => capped(lease, now, Duration::from_secs(seconds.into())),
            None if self.is_time_asked => {
                capped(lease, now, self.default_time.unwrap_or(Duration::from_secs(60)))
            }
            None => lease,
        }))
    }

    /// C5: whether an identifier is known, or may be new now.
    fn may_come_with(&self, id: &[u8], now: Timestamp) -> bool {
        self.knows(id) || self.under_ids.tokens(now) >= 1.0 - 1e-6
    }

    fn note_client_id(&mut self, id: &[u8], now: Timestamp) {
        match self.client_ids.iter().position(|used| used == id) {
            Some(at) => drop(self.client_ids.remove(at)),
            None => {
                self.over_ids.take(now);
                self.under_ids.take(now);
            }
        }
        self.client_ids.push(id.to_vec());
        if self.client_ids.len() > 4 {
            let forgotten = self.client_ids.remove(0);
            for open in &mut self.transactions {
                if open.wish.client_id.as_ref() == Some(&forgotten) {
                    // Nothing is the same as what has been forgotten.
                    open.wish.client_id = Some(vec![]);
                    open.void |= open.wish.binds();
                }
            }
        }
    }

    fn open(&mut self, xid: u32, wish: &Wish, now: Timestamp) {
        if wish.binds() {
            for open in &mut self.transactions {
                open.void |= open.xid != xid && open.wish.binds() && (wish.at_once || open.wish != *wish);
            }
        }
        self.messages += 1;
        let used = self.messages;
        let wish = wish.clone();
        let fresh =
            Transaction { xid, wish, since: now, last: now, unanswered: 1, void: false, reused: false, used };
        match self.transactions.iter_mut().find(|open| open.xid == xid) {
            Some(open) if (open.void && !open.is_old(now)) || (!open.void && open.wish == fresh.wish) => {
                open.unanswered += 1;
                (open.last, open.used) = (now, used);
            }
            Some(open) => {
                let binds = open.wish.binds();
                let before = if binds && !open.is_old(now) { open.unanswered } else { 0 };
                let since = if before > 0 { open.since } else { now };
                *open = Transaction { unanswered: before + 1, reused: binds, since, ..fresh };
            }
            None => {
                if self.transactions.len() == 16 {
                    let oldest = self.transactions.iter().map(|open| open.used).min();
                    self.transactions.retain(|open| Some(open.used) != oldest);
                }
                self.transactions.push(fresh);
            }
        }
    }
}

/// What a DISCOVER, REQUEST or INFORM asks for.
fn wish(message: &Message, kind: u8) -> Wish {
    Wish {
        kind,
        // RFC 4039: an ACK may answer a DISCOVER that asks for it.
        at_once: kind == dhcp::DISCOVER && message.has(dhcp::OPTION_RAPID_COMMIT),
        requested: message.address_once(dhcp::OPTION_REQUESTED),
        client: Some(message.client).filter(|address| !address.is_unspecified()),
        seconds: message.number_once(dhcp::OPTION_LEASE_TIME),
        client_id: message.once(dhcp::OPTION_CLIENT_ID).map(<[u8]>::to_vec),
    }
}

/// S4, but for what it says of destinations.
fn check_fragment(ip: &Ipv4<'_>) -> Result<(), Rule> {
    breaks("S4", ip.offset * 8 + ip.total_length > 65_535)?;
    breaks("S4", ip.dont_fragment && ip.more_fragments)?;
    breaks("S4", ip.more_fragments && !ip.payload.len().is_multiple_of(8))?;
    breaks("S4", ip.protocol == TCP && ip.offset == 1)?;
    if ip.offset > 0 {
        return Ok(());
    }
    breaks("S4", ip.protocol == TCP && !has_tcp_header(ip.payload))?;
    breaks("S4", ip.protocol == UDP && ip.payload.len() < 8)
}

/// S5. A later fragment has no header to look at.
pub(super) fn check_transport(ip: &Ipv4<'_>) -> Result<(), Rule> {
    if ip.offset > 0 {
        return Ok(());
    }
    match ip.protocol {
        TCP => breaks("S5", !has_tcp_header(ip.payload)),
        ICMP => breaks("S5", ip.payload.len() < 8),
        UDP => {
            let length = packet::number16(ip.payload, 4).ok_or("S5")?;
            breaks("S5", ip.payload.len() < 8 || length < 8)?;
            breaks("S5", !ip.is_fragment() && usize::from(length) != ip.payload.len())
        }
        _ => Ok(()),
    }
}

fn has_tcp_header(payload: &[u8]) -> bool {
    let length = payload.get(12).map_or(0, |byte| usize::from(byte >> 4) * 4);
    length >= 20 && length <= payload.len()
}

/// D6. An error (unreachable, time exceeded, parameter problem) holds the header of the packet that it is about.
fn is_proper_icmp(payload: &[u8], own: Ipv4Addr) -> bool {
    match payload[0] {
        0 | 8 | 14 => true,
        3 | 11 | 12 => {
            let quoted = &payload[8..];
            quoted.len() >= 20
                && (0x45..=0x4f).contains(&quoted[0])
                && octets(quoted, 16) == Some(own.octets())
        }
        _ => false,
    }
}

/// S3: whether a packet to a group tells what a host tells of its groups, where that belongs.
fn is_report(ip: &Ipv4<'_>) -> bool {
    let message = ip.payload;
    if ip.is_fragment() || ip.time_to_live != 1 || message.len() < 8 || packet::sum16(message) != 0xffff {
        return false;
    }
    let group = Ipv4Addr::from(octets::<4>(message, 4).expect("eight bytes"));
    let is_group = message.len() == 8 && world::is_multicast(group);
    match message[0] {
        0x12 | 0x16 => is_group && ip.destination == group,
        0x17 => is_group && (ip.destination == group || ip.destination == Ipv4Addr::new(224, 0, 0, 2)),
        0x22 => ip.destination == Ipv4Addr::new(224, 0, 0, 22) && has_records(message),
        _ => false,
    }
}

/// Whether a report of version 3 holds the group records that it counts, without auxiliary data, and nothing else.
fn has_records(message: &[u8]) -> bool {
    let mut at = 8;
    for _ in 0..packet::number16(message, 6).expect("eight bytes") {
        let Some([_, auxiliary, high, low, group @ ..]) = octets::<8>(message, at) else { return false };
        if auxiliary != 0 || !world::is_multicast(group.into()) {
            return false;
        }
        at += 8 + 4 * usize::from(u16::from_be_bytes([high, low]));
    }
    at == message.len()
}

/// L4: nothing behind the packet, or zeros up to the shortest frame.
pub(super) fn is_plain_padding(ethernet: &Ethernet<'_>, trailer: &[u8]) -> bool {
    trailer.is_empty() || (ethernet.length == SHORTEST_FRAME && trailer.iter().all(|&byte| byte == 0))
}
