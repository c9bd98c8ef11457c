//! The flows of one VM in a fixed amount of memory (F4), found by their addresses and ports, by their peer, and by how long
//! they have been idle.
//!
//! A flow is in three lists: that of its bucket in the hash table, that of its peer, and that of its state, in which the
//! flow that has been idle longest comes first. All flows of a state have the same limit, so the first of a list expires
//! first, and nothing ever has to look at all flows to find the expired ones.

use core::net::Ipv4Addr;
use core::time::Duration;

use crate::flow::peers::{Hash, NIL, Peers};
use crate::ipv4::Tcp;
use crate::policy::entry::Origin;
use crate::time::Timestamp;

/// The most flows (F4).
pub(crate) const FLOWS: usize = 16_384;
/// The most flows that others began.
const FLOWS_OF_OTHERS: usize = FLOWS / 2;
/// The most half-open flows that others began.
const HALF_OPEN_OF_OTHERS: usize = 1_024;
/// The most of them that one peer began.
const HALF_OPEN_OF_A_PEER: usize = 256;

/// How precisely it is noted when a flow last had a packet. A flow never ends before its limit, and at most this much later.
const PRECISION: Duration = Duration::from_secs(1);

/// The most expired flows that end at once, and the most flows of a peer that are looked at.
const STEPS: usize = 1_024;

/// What identifies a flow (F1), beside the VM's own address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    /// The VM's port, the peer's port and the peer's address, each with its bytes in the order of transmission: so none has
    /// to be turned round for each packet.
    ends: u64,
    pub(crate) protocol: u8,
}

impl Key {
    /// Protocols without ports have 0 for both. The two ends of an ICMP echo have its identifier as the VM's port.
    #[inline(always)]
    pub(crate) fn new(peer: Ipv4Addr, protocol: u8, own_port: u16, peer_port: u16) -> Self {
        let peer = u32::from_ne_bytes(peer.octets());
        let ends = u64::from(own_port.to_be()) << 48 | u64::from(peer_port.to_be()) << 32 | u64::from(peer);
        Self { ends, protocol }
    }

    pub(crate) fn peer(self) -> Ipv4Addr {
        (self.ends as u32).to_ne_bytes().into()
    }

    pub(crate) fn own_port(self) -> u16 {
        u16::from_be((self.ends >> 48) as u16)
    }

    pub(crate) fn peer_port(self) -> u16 {
        u16::from_be((self.ends >> 32) as u16)
    }
}

/// How far a flow is (F3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum State {
    /// TCP after its handshake.
    TcpEstablished,
    /// UDP after the first answer.
    UdpAnswered,
    /// ICMP echo after the first reply.
    EchoAnswered,
    /// Another protocol.
    Other,
    /// TCP before its handshake.
    TcpOpening,
    /// TCP after the first FIN or RST.
    TcpClosing,
    /// UDP before the first answer.
    UdpOpening,
    /// ICMP echo before the first reply.
    EchoOpening,
    /// TCP that a new policy has ended (F6); it waits for the packet that is answered.
    Ended,
}

impl State {
    const COUNT: usize = 9;

    /// How long a flow in this state may be idle (F3: RFC 5382, section 5; RFC 4787, section 4.3).
    fn limit(self) -> Duration {
        Duration::from_secs(match self {
            Self::TcpOpening | Self::EchoOpening | Self::EchoAnswered => 60,
            Self::TcpEstablished => 7_440,
            Self::TcpClosing | Self::Ended => 240,
            Self::UdpOpening => 30,
            Self::UdpAnswered | Self::Other => 300,
        })
    }

    /// Whether nothing has answered yet (F4).
    pub(crate) fn is_half_open(self) -> bool {
        matches!(self, Self::TcpOpening | Self::UdpOpening | Self::EchoOpening)
    }

    /// Whether packets of the flow change nothing, except those with which TCP begins or ends.
    fn is_settled(self) -> bool {
        matches!(self, Self::TcpEstablished | Self::UdpAnswered | Self::EchoAnswered | Self::Other)
    }

    /// The number of the list of flows in this state that `origin` began.
    fn list(self, origin: Origin) -> usize {
        let first = match origin {
            Origin::Vm => 0,
            Origin::Outside => Self::COUNT,
        };
        first.wrapping_add(self as usize)
    }

    const HALF_OPEN: [Self; 3] = [Self::TcpOpening, Self::UdpOpening, Self::EchoOpening];
}

/// A flow, or a place for one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flow {
    pub(crate) key: Key,
    pub(crate) origin: Origin,
    pub(crate) state: State,
    /// Of TCP: what the acknowledgement that completes the handshake has to be, once the SYN has been answered.
    pub(crate) awaited: Option<u32>,
    /// Of TCP: the sequence number behind the last byte that was given to the VM.
    pub(crate) given: Option<u32>,
    /// When it last had a packet, to within a second.
    last: Timestamp,
    /// Before this time, packets change nothing of it, except those with which TCP begins or ends.
    quiet_until: Timestamp,
    /// The next of the bucket, or of the free places.
    next: u16,
    older: u16,
    newer: u16,
    peer: u16,
    before_of_peer: u16,
    next_of_peer: u16,
}

impl Flow {
    /// Whether its last packet is so recent that it keeps its place in the list of its state.
    fn is_recent(&self, now: Timestamp) -> bool {
        now.saturating_since(self.last) < PRECISION
    }

    /// Notes that it has a packet, and is in `state` now.
    fn note(&mut self, state: State, now: Timestamp) {
        (self.state, self.last) = (state, now);
        let is_settled = state.is_settled();
        self.quiet_until = if is_settled { now.saturating_add(PRECISION) } else { Timestamp::from_nanos(0) };
    }

    /// Notes a segment that is given to the VM.
    #[inline(always)]
    pub(crate) fn note_given(&mut self, tcp: Tcp<'_>) {
        let end = tcp.sequence_end();
        // Sequence numbers wrap (RFC 9293, section 3.4): the later of two is less than half a circle ahead.
        if self.given.is_none_or(|given| end.wrapping_sub(given) as i32 > 0) {
            self.given = Some(end);
        }
    }

    /// Whether it has been idle for too long (F3).
    fn is_expired(&self, now: Timestamp) -> bool {
        now.saturating_since(self.last) >= self.state.limit().saturating_add(PRECISION)
    }
}

/// A list of flows in one state, by age.
#[derive(Debug, Clone, Copy)]
struct List {
    oldest: u16,
    newest: u16,
}

/// How much of the table a new flow may fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    /// All of it.
    Whole,
    /// Three quarters of each budget: the rest is for flows that decide something.
    Part,
}

impl Share {
    fn of(self, budget: usize) -> usize {
        match self {
            Self::Whole => budget,
            Self::Part => budget.saturating_sub(budget / 4),
        }
    }
}

/// The flows. No method allocates after [`Table::new`].
pub(crate) struct Table {
    hash: Hash,
    buckets: Box<[u16; Hash::BUCKETS]>,
    flows: Vec<Flow>,
    free: u16,
    lists: [List; 2 * State::COUNT],
    peers: Peers,
    count: usize,
    of_others: usize,
    half_open_of_others: usize,
}

impl Table {
    /// An empty table. `seed` is a random number.
    pub(crate) fn new(seed: u64) -> Self {
        let hash = Hash::new(seed);
        Self {
            hash,
            buckets: Box::new([NIL; Hash::BUCKETS]),
            flows: Vec::with_capacity(FLOWS),
            free: NIL,
            lists: [List { oldest: NIL, newest: NIL }; 2 * State::COUNT],
            peers: Peers::new(hash, FLOWS),
            count: 0,
            of_others: 0,
            half_open_of_others: 0,
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.buckets.fill(NIL);
        self.flows.clear();
        self.free = NIL;
        self.lists = [List { oldest: NIL, newest: NIL }; 2 * State::COUNT];
        self.peers.clear();
        self.count = 0;
        self.of_others = 0;
        self.half_open_of_others = 0;
    }

    /// The place of the flow, which may have expired.
    #[inline(always)]
    pub(crate) fn find(&self, key: Key) -> Option<u16> {
        let mut at = *self.buckets.get(self.hash.bucket(key.ends))?;
        loop {
            let flow = self.flows.get(usize::from(at))?;
            if flow.key == key {
                return Some(at);
            }
            at = flow.next;
        }
    }

    /// The flow, if no packet changes anything of it now but one with which TCP begins or ends.
    #[inline(always)]
    pub(crate) fn find_quiet(&mut self, key: Key, now: Timestamp) -> Option<&mut Flow> {
        let at = self.find(key)?;
        self.get_mut(at).filter(|flow| now < flow.quiet_until)
    }

    #[inline(always)]
    pub(crate) fn get(&self, at: u16) -> Option<&Flow> {
        self.flows.get(usize::from(at))
    }

    #[inline(always)]
    pub(crate) fn get_mut(&mut self, at: u16) -> Option<&mut Flow> {
        self.flows.get_mut(usize::from(at))
    }

    /// The place of the flow, unless it has expired: then it ends now.
    pub(crate) fn find_live(&mut self, key: Key, now: Timestamp) -> Option<u16> {
        let at = self.find(key)?;
        if self.get(at)?.is_expired(now) {
            self.remove(at);
            return None;
        }
        Some(at)
    }

    /// Whether the flow exists and has not expired.
    pub(crate) fn has(&self, key: Key, now: Timestamp) -> bool {
        let flow = self.find(key).and_then(|at| self.get(at));
        flow.is_some_and(|flow| flow.state != State::Ended && !flow.is_expired(now))
    }

    /// Whether a peer has a flow that has not expired and that `counts`. Those that have expired end here.
    pub(crate) fn has_peer(
        &mut self,
        address: Ipv4Addr,
        now: Timestamp,
        counts: impl Fn(&Flow) -> bool,
    ) -> bool {
        let mut at = self.peers.find(address).map_or(NIL, |peer| peer.newest);
        for _ in 0..STEPS {
            let Some(flow) = self.get(at).copied() else { return false };
            if flow.is_expired(now) {
                self.remove(at);
            } else if flow.state != State::Ended && counts(&flow) {
                return true;
            }
            at = flow.next_of_peer;
        }
        false
    }

    /// Notes that a flow had a packet, and is in `state` now.
    pub(crate) fn touch(&mut self, at: u16, state: State, now: Timestamp) {
        let Some(flow) = self.get(at).copied() else { return };
        if flow.state == state && flow.is_recent(now) {
            return;
        }
        self.leave_list(at);
        if flow.origin == Origin::Outside && flow.state.is_half_open() && !state.is_half_open() {
            self.count_half_open(flow.peer, false);
        }
        if let Some(flow) = self.get_mut(at) {
            flow.note(state, now);
        }
        self.join_list(at);
    }

    /// Adds a flow, if that share of the budgets allows it (F4).
    pub(crate) fn insert(
        &mut self,
        key: Key,
        origin: Origin,
        state: State,
        share: Share,
        now: Timestamp,
    ) -> Option<u16> {
        if origin == Origin::Outside {
            self.make_room_for_others(key.peer(), state, share, now)?;
        }
        let has_room = |table: &Self| table.count < share.of(FLOWS);
        self.make_room(has_room, &[Origin::Vm, Origin::Outside], now)?;
        // There are no more peers than flows.
        let peer = self.peers.find_or_add(key.peer())?;
        let bucket = self.hash.bucket(key.ends);
        let next = self.buckets.get(bucket).copied().unwrap_or(NIL);
        let first = self.peers.get(peer)?.newest;
        let mut flow = Flow {
            key,
            origin,
            state,
            awaited: None,
            given: None,
            last: now,
            quiet_until: now,
            next,
            older: NIL,
            newer: NIL,
            peer,
            before_of_peer: NIL,
            next_of_peer: first,
        };
        flow.note(state, now);
        let at = self.place(flow)?;
        *self.buckets.get_mut(bucket)? = at;
        if let Some(first) = self.get_mut(first) {
            first.before_of_peer = at;
        }
        self.peers.get_mut(peer)?.newest = at;
        self.join_list(at);
        self.count = self.count.saturating_add(1);
        if origin == Origin::Outside {
            self.of_others = self.of_others.saturating_add(1);
            if state.is_half_open() {
                self.count_half_open(peer, true);
            }
        }
        Some(at)
    }

    /// The budgets of flows that others begin. Expired flows count no more.
    fn make_room_for_others(
        &mut self,
        peer: Ipv4Addr,
        state: State,
        share: Share,
        now: Timestamp,
    ) -> Option<()> {
        if state.is_half_open() && !self.has_room_for_half_open(peer, share) {
            for state in State::HALF_OPEN {
                while self.end_first_if_expired(state, Origin::Outside, now) {}
            }
            self.has_room_for_half_open(peer, share).then_some(())?;
        }
        let has_room = |table: &Self| table.of_others < share.of(FLOWS_OF_OTHERS);
        self.make_room(has_room, &[Origin::Outside], now)
    }

    fn has_room_for_half_open(&self, peer: Ipv4Addr, share: Share) -> bool {
        let of_peer = self.peers.find(peer).map_or(0, |peer| peer.half_open);
        self.half_open_of_others < share.of(HALF_OPEN_OF_OTHERS)
            && usize::from(of_peer) < share.of(HALF_OPEN_OF_A_PEER)
    }

    /// Ends expired flows until there is room.
    fn make_room(
        &mut self,
        has_room: impl Fn(&Self) -> bool,
        origins: &[Origin],
        now: Timestamp,
    ) -> Option<()> {
        for _ in 0..STEPS {
            if has_room(self) {
                return Some(());
            }
            if !self.end_an_expired(origins, now) {
                return None;
            }
        }
        None
    }

    /// Ends one expired flow, if there is one.
    fn end_an_expired(&mut self, origins: &[Origin], now: Timestamp) -> bool {
        const STATES: [State; State::COUNT] = [
            State::TcpOpening,
            State::TcpEstablished,
            State::TcpClosing,
            State::UdpOpening,
            State::UdpAnswered,
            State::EchoOpening,
            State::EchoAnswered,
            State::Other,
            State::Ended,
        ];
        let mut lists = origins.iter().flat_map(|origin| STATES.map(|state| (state, *origin)));
        lists.any(|(state, origin)| self.end_first_if_expired(state, origin, now))
    }

    /// Ends the flow of a list that has been idle longest, if that is too long.
    fn end_first_if_expired(&mut self, state: State, origin: Origin, now: Timestamp) -> bool {
        let first = self.lists.get(state.list(origin)).map_or(NIL, |list| list.oldest);
        let is_expired = self.get(first).is_some_and(|flow| flow.is_expired(now));
        if is_expired {
            self.remove(first);
        }
        is_expired
    }

    /// Ends a flow.
    pub(crate) fn remove(&mut self, at: u16) {
        let Some(flow) = self.get(at).copied() else { return };
        self.leave_list(at);
        self.leave_bucket(at, flow);
        if flow.origin == Origin::Outside {
            self.of_others = self.of_others.saturating_sub(1);
            if flow.state.is_half_open() {
                self.count_half_open(flow.peer, false);
            }
        }
        self.leave_peer(flow);
        self.count = self.count.saturating_sub(1);
        // A free place has no key that a packet could have: no flow is of this protocol and of these ports.
        let free = self.free;
        if let Some(flow) = self.get_mut(at) {
            flow.key = Key { ends: u64::MAX, protocol: 0 };
            flow.next = free;
            flow.peer = NIL;
        }
        self.free = at;
    }

    /// Looks at each flow that has not expired, and lets `judge` say what becomes of it. The others end.
    pub(crate) fn review(&mut self, now: Timestamp, mut judge: impl FnMut(&Flow) -> Review) {
        for at in 0..self.flows.len() {
            let at = u16::try_from(at).unwrap_or(NIL);
            let Some(flow) = self.get(at).copied().filter(|flow| flow.peer != NIL) else { continue };
            if flow.is_expired(now) {
                self.remove(at);
                continue;
            }
            match judge(&flow) {
                Review::Keep => {}
                Review::End if flow.state == State::Ended => {}
                Review::End if flow.given.is_some() => self.touch(at, State::Ended, now),
                Review::End => self.remove(at),
            }
        }
    }

    /// Takes a free place.
    fn place(&mut self, flow: Flow) -> Option<u16> {
        let at = self.free;
        if let Some(place) = self.flows.get_mut(usize::from(at)) {
            self.free = place.next;
            *place = flow;
            return Some(at);
        }
        if self.flows.len() >= FLOWS {
            return None;
        }
        self.flows.push(flow);
        u16::try_from(self.flows.len().saturating_sub(1)).ok()
    }

    fn leave_bucket(&mut self, at: u16, flow: Flow) {
        let bucket = self.hash.bucket(flow.key.ends);
        let Some(first) = self.buckets.get_mut(bucket) else { return };
        if *first == at {
            *first = flow.next;
            return;
        }
        let mut before = *first;
        while let Some(other) = self.flows.get_mut(usize::from(before)) {
            if other.next == at {
                other.next = flow.next;
                return;
            }
            before = other.next;
        }
    }

    /// Puts a flow behind all others of its state.
    fn join_list(&mut self, at: u16) {
        let Some(flow) = self.get(at).copied() else { return };
        let Some(list) = self.lists.get_mut(flow.state.list(flow.origin)) else { return };
        let newest = list.newest;
        list.newest = at;
        if newest == NIL {
            list.oldest = at;
        }
        if let Some(other) = self.get_mut(newest) {
            other.newer = at;
        }
        if let Some(flow) = self.get_mut(at) {
            (flow.older, flow.newer) = (newest, NIL);
        }
    }

    fn leave_list(&mut self, at: u16) {
        let Some(flow) = self.get(at).copied() else { return };
        if let Some(older) = self.get_mut(flow.older) {
            older.newer = flow.newer;
        }
        if let Some(newer) = self.get_mut(flow.newer) {
            newer.older = flow.older;
        }
        let Some(list) = self.lists.get_mut(flow.state.list(flow.origin)) else { return };
        if list.oldest == at {
            list.oldest = flow.newer;
        }
        if list.newest == at {
            list.newest = flow.older;
        }
    }

    /// Takes a flow out of its peer's list, and the peer out of the table if it was the last.
    fn leave_peer(&mut self, flow: Flow) {
        if let Some(next) = self.get_mut(flow.next_of_peer) {
            next.before_of_peer = flow.before_of_peer;
        }
        if let Some(before) = self.get_mut(flow.before_of_peer) {
            before.next_of_peer = flow.next_of_peer;
            return;
        }
        let Some(peer) = self.peers.get_mut(flow.peer) else { return };
        peer.newest = flow.next_of_peer;
        if peer.newest == NIL {
            self.peers.remove(flow.peer);
        }
    }

    fn count_half_open(&mut self, peer: u16, is_more: bool) {
        let change = |count: u16| if is_more { count.saturating_add(1) } else { count.saturating_sub(1) };
        if let Some(peer) = self.peers.get_mut(peer) {
            peer.half_open = change(peer.half_open);
        }
        self.half_open_of_others = if is_more {
            self.half_open_of_others.saturating_add(1)
        } else {
            self.half_open_of_others.saturating_sub(1)
        };
    }
}

/// What becomes of a flow under a new policy (F6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Review {
    Keep,
    End,
}

impl core::fmt::Debug for Table {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Table").field("count", &self.count).finish_non_exhaustive()
    }
}
