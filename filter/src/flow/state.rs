//! The flows of one VM: what packets that belong together have begun, what they do to it, and when it ends (rules F).

use core::net::Ipv4Addr;

use softnet_wire::transport::flag;

use crate::flow::fragments::{Fragments, Identity};
use crate::flow::packet::{Kind, Seen};
use crate::flow::table::{Flow, Key, Review, Share, State, Table};
use crate::ipv4::Tcp;
use crate::policy::entry::Origin;
use crate::time::Timestamp;
use crate::verdict::DropReason;

/// To which flow a packet belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Membership {
    /// To one that lives: it passes.
    Live,
    /// To a TCP connection that a new policy has ended.
    Ended(Ended),
    /// To none.
    None,
}

/// A TCP connection that a new policy has ended (F6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) key: Key,
    pub(crate) origin: Origin,
    /// The sequence number behind the last byte that the VM was given.
    pub(crate) given: u32,
}

/// The flows.
#[derive(Debug)]
pub(crate) struct Flows {
    table: Table,
    fragments: Fragments,
    /// The number of the lease that they belong to.
    lease: u32,
    /// The connection of the last packet that found it ended, until it is answered.
    ended: Option<Ended>,
}

impl Flows {
    /// No flows. `seed` is a random number.
    pub(crate) fn new(seed: u64) -> Self {
        Self { table: Table::new(seed), fragments: Fragments::EMPTY, lease: 0, ended: None }
    }

    /// Forgets the flows of an earlier lease: who is given an address inherits nothing (H3).
    #[inline(always)]
    pub(crate) fn belong_to(&mut self, lease: u32) {
        if self.lease != lease {
            self.forget(lease);
        }
    }

    #[cold]
    fn forget(&mut self, lease: u32) {
        self.table.clear();
        self.fragments = Fragments::EMPTY;
        self.lease = lease;
    }

    /// The flow, if packets that neither begin nor end anything change nothing of it now.
    #[inline(always)]
    pub(crate) fn settled(&mut self, key: Key, lease: u32, now: Timestamp) -> Option<&mut Flow> {
        if self.lease != lease { None } else { self.table.find_quiet(key, now) }
    }

    /// F2, F3: finds the flow of a packet that `sender` sent, and notes what the packet does to it.
    pub(crate) fn note(&mut self, sender: Origin, packet: Seen<'_>, now: Timestamp) -> Membership {
        let Some(at) = self.table.find_live(packet.key, now) else { return Membership::None };
        let Some(flow) = self.table.get_mut(at) else { return Membership::None };
        if matches!(flow.state, State::TcpClosing | State::Ended) && packet.can_begin() {
            // The ports are used again (RFC 9293, section 3.6.1): it has to be allowed anew.
            self.table.remove(at);
            return Membership::None;
        }
        if flow.state == State::Ended {
            let (origin, given) = (flow.origin, flow.given.unwrap_or(0));
            return Membership::Ended(Ended { key: packet.key, origin, given });
        }
        let state = next_state(flow, sender, packet.kind);
        note_given(flow, sender, packet.kind);
        self.table.touch(at, state, now);
        Membership::Live
    }

    /// F1, F4: begins a flow with an allowed packet of `origin`, if there is room in this share of the table.
    pub(crate) fn begin(
        &mut self,
        origin: Origin,
        packet: Seen<'_>,
        share: Share,
        now: Timestamp,
    ) -> Result<(), DropReason> {
        let state = packet.first_state().ok_or(DropReason::NoFlow)?;
        let at = self.table.insert(packet.key, origin, state, share, now).ok_or(DropReason::FlowsFull)?;
        if let Some(flow) = self.table.get_mut(at) {
            note_given(flow, origin, packet.kind);
        }
        Ok(())
    }

    /// Whether a flow lives.
    pub(crate) fn has(&self, key: Key, now: Timestamp) -> bool {
        self.table.has(key, now)
    }

    /// Whether a peer has a flow that lives, belongs to this lease, and `counts`.
    pub(crate) fn has_peer(
        &mut self,
        peer: Ipv4Addr,
        lease: u32,
        now: Timestamp,
        counts: impl Fn(Origin, Key) -> bool,
    ) -> bool {
        self.lease == lease && self.table.has_peer(peer, now, |flow| counts(flow.origin, flow.key))
    }

    /// Whether a new policy has ended a connection, which waits for a packet to answer.
    pub(crate) fn is_ended(&self, key: Key) -> bool {
        self.table.find(key).and_then(|at| self.table.get(at)).is_some_and(|flow| flow.state == State::Ended)
    }

    /// Forgets a flow.
    pub(crate) fn remove(&mut self, key: Key) {
        if let Some(at) = self.table.find(key) {
            self.table.remove(at);
        }
    }

    /// Who began the flow.
    pub(crate) fn origin(&self, key: Key) -> Option<Origin> {
        self.table.find(key).and_then(|at| self.table.get(at)).map(|flow| flow.origin)
    }

    /// F6: a packet is dropped because its connection has ended, which is answered.
    pub(crate) fn note_ended(&mut self, ended: Ended) -> DropReason {
        self.ended = Some(ended);
        DropReason::FlowEnded
    }

    /// What was noted last.
    pub(crate) fn take_ended(&mut self) -> Option<Ended> {
        self.ended.take()
    }

    /// F5: a first fragment of a flow passes.
    pub(crate) fn note_fragment(&mut self, sender: Origin, identity: Identity, now: Timestamp) {
        self.fragments.note(sender, identity, now);
    }

    /// F5: whether a later fragment belongs to a first one that has passed.
    pub(crate) fn has_fragment(&self, sender: Origin, identity: Identity, now: Timestamp) -> bool {
        self.fragments.has(sender, identity, now)
    }

    /// F6: ends the flows that `is_allowed` does not know as allowed.
    pub(crate) fn end_forbidden(&mut self, now: Timestamp, is_allowed: impl Fn(Origin, Key) -> bool) {
        self.fragments = Fragments::EMPTY;
        self.table.review(
            now,
            |flow| {
                if is_allowed(flow.origin, flow.key) { Review::Keep } else { Review::End }
            },
        );
    }
}

impl Seen<'_> {
    /// F1: whether the packet can begin a flow.
    pub(crate) fn can_begin(&self) -> bool {
        self.first_state().is_some()
    }

    /// The state of the flow that the packet begins.
    fn first_state(&self) -> Option<State> {
        match self.kind {
            Kind::Tcp(tcp) => {
                let flags = tcp.flags() & (flag::SYN | flag::ACK | flag::FIN | flag::RST);
                (flags == flag::SYN).then_some(State::TcpOpening)
            }
            Kind::Udp => Some(State::UdpOpening),
            Kind::EchoRequest => Some(State::EchoOpening),
            Kind::Other => Some(State::Other),
            Kind::EchoReply => None,
        }
    }
}

/// F3: the state of a flow after a packet.
fn next_state(flow: &mut Flow, sender: Origin, kind: Kind<'_>) -> State {
    let is_answer = sender != flow.origin;
    match (flow.state, kind) {
        (State::TcpOpening, Kind::Tcp(tcp)) => state_after_opening(flow, is_answer, tcp),
        (State::TcpEstablished, Kind::Tcp(tcp)) if tcp.flags() & (flag::FIN | flag::RST) != 0 => {
            State::TcpClosing
        }
        (State::UdpOpening, _) if is_answer => State::UdpAnswered,
        (State::EchoOpening, _) if is_answer => State::EchoAnswered,
        (state, _) => state,
    }
}

/// The handshake (RFC 9293, section 3.5): a SYN, its answer, and an acknowledgement of that very answer, which nobody can
/// send who has not seen it.
fn state_after_opening(flow: &mut Flow, is_answer: bool, tcp: Tcp<'_>) -> State {
    let flags = tcp.flags();
    let is_synchronized = flags & (flag::SYN | flag::RST) == 0 && flags & flag::ACK != 0;
    if is_answer && flags & (flag::SYN | flag::ACK | flag::RST) == flag::SYN | flag::ACK {
        flow.awaited = Some(tcp.sequence().wrapping_add(1));
        State::TcpOpening
    } else if !is_answer && is_synchronized && flow.awaited == Some(tcp.acknowledgement()) {
        if flags & flag::FIN == 0 { State::TcpEstablished } else { State::TcpClosing }
    } else {
        State::TcpOpening
    }
}

/// Notes what the VM is given of a TCP connection.
fn note_given(flow: &mut Flow, sender: Origin, kind: Kind<'_>) {
    if let (Origin::Outside, Kind::Tcp(tcp)) = (sender, kind) {
        flow.note_given(tcp);
    }
}
