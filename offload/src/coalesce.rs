//! Coalescing (GRO): the frames of one batch from the VM become a few large ones for the host.
//!
//! The rules are the kernel's own (`tcp_gro_receive`, `udp_gro_receive_segment`, `inet_gro_receive`), made a
//! little stricter: the host's segmentation must reproduce exactly the frames that are merged here. Frames join when
//! they follow each other within one flow, every header field that segmentation copies is equal, and the checksum
//! of each of them has been **verified**: a merged packet is passed on with its checksum still to be computed, which
//! would turn a damaged segment into a valid one. A frame with a wrong checksum passes as it is, and its receiver
//! drops it.
//!
//! Within a flow nothing is reordered: a frame that cannot join ends its flow's packet first. Nothing is held back
//! beyond the batch either, so there is no timer and no added latency.

use crate::vnet::{Checksum, Gso, GsoKind, VNET_HEADER_LEN, VnetHeader};
use crate::wire::{ETHERNET, IPV4, MAX_DATAGRAM, Transport, UDP, double_word, ipv4, put, tcp, udp, word};
use softnet_wire::checksum::Sum;

/// The most frames in one batch.
pub const MAX_FRAMES: usize = 64;

/// The most parts of one [`Packet`]: its head and one part for each frame.
pub const MAX_PARTS: usize = MAX_FRAMES + 1;

/// The most flows whose packets are open at a time; a further flow ends the one that opened first.
const MAX_FLOWS: usize = 16;

/// Room for the virtio-net header and the longest headers that are merged (IP options never are).
const HEAD: usize = VNET_HEADER_LEN + ETHERNET + IPV4 + 60;

/// Access to the frames of a batch.
pub trait Frames {
    /// Their number.
    fn count(&self) -> usize;
    /// The Ethernet frame at `index`, which is below [`count`](Frames::count).
    fn frame(&self, index: usize) -> &[u8];
}

impl Frames for [&[u8]] {
    fn count(&self) -> usize {
        self.len()
    }

    fn frame(&self, index: usize) -> &[u8] {
        self[index]
    }
}

/// What the receiver of the packets accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// TCP super-frames (`TUN_F_TSO4`).
    pub tcp: bool,
    /// UDP super-frames (`TUN_F_USO4`).
    pub udp: bool,
}

/// Merges the frames of a batch. Keeps only its storage from one batch to the next.
#[derive(Debug)]
pub struct Coalescer {
    features: Features,
    /// The IPv4 address to which datagrams pass one by one.
    singly_to: Option<[u8; 4]>,
    /// The packets of this batch, in the order of their first frames; never more than [`MAX_FRAMES`].
    packets: Vec<Plan>,
    /// For each frame the next one of its packet.
    next: [u8; MAX_FRAMES],
    /// The packets that may still grow, as indices, oldest first.
    open: Open,
}

/// One packet while it is being merged.
#[derive(Debug)]
struct Plan {
    first: u8,
    last: u8,
    count: u8,
    /// What its frames have in common; set only if more may join.
    segment: Segment,
    /// Payload bytes of all its frames.
    payload: usize,
    /// The difference between the identifications of neighbours, known from the second frame on.
    id_step: u16,
    head: [u8; HEAD],
    head_len: u8,
}

/// A flow in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flow {
    transport: Transport,
    addresses: [u8; 8],
    ports: [u8; 4],
}

/// A frame that may be merged if its neighbours agree.
#[derive(Clone, Copy, Debug)]
struct Segment {
    flow: Flow,
    /// Length in bytes of all headers.
    header_len: usize,
    /// Payload bytes, at least 1.
    payload: usize,
    /// The sender requests delivery now (PSH): nothing joins after it.
    push: bool,
}

/// What the coalescer may do with a frame.
enum Class {
    /// May be merged.
    Segment(Segment),
    /// Belongs to a flow but passes alone.
    Alone(Flow),
    /// Belongs to some flow between these addresses, unknown which: a fragment or a cut header.
    Unclear([u8; 8]),
    /// Not part of a flow that can be merged.
    Other,
}

impl Coalescer {
    /// Allocates everything that the coalescer will ever need.
    #[must_use]
    pub fn new(features: Features) -> Coalescer {
        let packets = Vec::with_capacity(MAX_FRAMES);
        Coalescer { features, singly_to: None, packets, next: [0; MAX_FRAMES], open: Open::default() }
    }

    /// Datagrams to this IPv4 address pass one by one from now on, so that a counter of packets there counts each of
    /// them.
    pub fn set_single_datagrams_to(&mut self, address: [u8; 4]) {
        self.singly_to = Some(address);
    }

    /// Arranges `frames` into packets, in the order of their first frames.
    ///
    /// At most [`MAX_FRAMES`] frames are looked at; a longer batch is the caller's mistake, and the rest of it
    /// is not in any packet.
    pub fn coalesce<'a, F: Frames + ?Sized>(&'a mut self, frames: &'a F) -> Packets<'a, F> {
        self.packets.clear();
        self.open.clear();
        debug_assert!(frames.count() <= MAX_FRAMES, "batch of {} frames", frames.count());
        for index in 0..frames.count().min(MAX_FRAMES) {
            self.place(frames, index);
        }
        for plan in self.packets.iter_mut().filter(|plan| plan.count > 1) {
            plan.write_head(frames);
        }
        Packets { coalescer: self, frames, at: 0 }
    }

    /// Puts one frame into an open packet or into a new one.
    fn place<F: Frames + ?Sized>(&mut self, frames: &F, index: usize) {
        let frame = frames.frame(index);
        let class = classify(frame);
        let segment = match class {
            Class::Segment(segment) if self.takes(&segment.flow) => segment,
            Class::Segment(Segment { flow, .. }) | Class::Alone(flow) => {
                self.open.close_if(|packet| self.packets[packet].segment.flow == flow);
                return self.push(index, None);
            }
            Class::Unclear(addresses) => {
                self.open.close_if(|packet| self.packets[packet].segment.flow.addresses == addresses);
                return self.push(index, None);
            }
            Class::Other => return self.push(index, None),
        };
        if let Some(packet) = self.open.find(|packet| self.packets[packet].segment.flow == segment.flow) {
            let plan = &mut self.packets[packet];
            let before = usize::from(plan.last);
            let joined = plan.join(frames, index, &segment);
            if joined {
                self.next[before] = index as u8;
            }
            // PSH requests delivery now, and only the last of equal segments may be shorter.
            if !joined || segment.push || segment.payload < plan.segment.payload {
                self.open.close_if(|open| open == packet);
            }
            if joined {
                return;
            }
        }
        self.push(index, Some(segment));
    }

    /// Starts a packet with the frame at `index`; it stays open if more may join.
    fn push(&mut self, index: usize, segment: Option<Segment>) {
        if segment.is_some_and(|segment| !segment.push) {
            self.open.push(self.packets.len());
        }
        let index = index as u8;
        self.packets.push(Plan {
            first: index,
            last: index,
            count: 1,
            segment: segment.unwrap_or(Segment::NONE),
            payload: segment.map_or(0, |segment| segment.payload),
            id_step: 0,
            head: [0; HEAD],
            head_len: VNET_HEADER_LEN as u8,
        });
    }

    fn takes(&self, flow: &Flow) -> bool {
        match flow.transport {
            Transport::Tcp => self.features.tcp,
            Transport::Udp => {
                let [.., a, b, c, d] = flow.addresses;
                self.features.udp && self.singly_to != Some([a, b, c, d])
            }
        }
    }
}

impl Segment {
    const NONE: Segment = Segment {
        flow: Flow { transport: Transport::Udp, addresses: [0; 8], ports: [0; 4] },
        header_len: 0,
        payload: 0,
        push: false,
    };

    /// Whether both checksums of `frame`, which this describes, are right.
    fn is_whole(&self, frame: &[u8]) -> bool {
        let (ip, transport) = frame[ETHERNET..].split_at(IPV4);
        let pseudo = Sum::pseudo_header(
            self.flow.addresses,
            self.flow.transport.protocol(),
            // The frame is no longer than its IP total length says.
            transport.len() as u16,
        );
        Sum::of(ip).is_valid() && (pseudo + Sum::of(transport)).is_valid()
    }
}

impl Plan {
    /// Appends the frame at `index`, of the same flow, if it continues this packet and its checksums are right.
    fn join<F: Frames + ?Sized>(&mut self, frames: &F, index: usize, segment: &Segment) -> bool {
        let frame = frames.frame(index);
        let Some(id_step) = self.accepts(frames, frame, segment) else { return false };
        // The first frame is verified when the second one arrives: alone it passes as it is.
        let first_whole = self.count > 1 || self.segment.is_whole(frames.frame(usize::from(self.first)));
        if !first_whole || !segment.is_whole(frame) {
            return false;
        }
        self.last = index as u8;
        self.count += 1;
        self.payload += segment.payload;
        self.id_step = id_step;
        true
    }

    /// Whether `frame` may be the next of this packet, whose flow is the same; if so, the difference between the
    /// two identifications.
    fn accepts<F: Frames + ?Sized>(&self, frames: &F, frame: &[u8], segment: &Segment) -> Option<u16> {
        let first = frames.frame(usize::from(self.first));
        let (first_ip, ip) = (&first[ETHERNET..], &frame[ETHERNET..]);
        let transport_len = segment.header_len - ETHERNET - IPV4;
        let same = segment.header_len == self.segment.header_len
            && segment.payload <= self.segment.payload
            && IPV4 + transport_len + self.payload + segment.payload <= MAX_DATAGRAM
            && first[..ETHERNET] == frame[..ETHERNET]
            // Type of service with ECN; "don't fragment", time to live and protocol.
            && first_ip[1] == ip[1]
            && first_ip[ipv4::FRAGMENT..ipv4::CHECKSUM] == ip[ipv4::FRAGMENT..ipv4::CHECKSUM];
        if !same {
            return None;
        }
        if segment.flow.transport == Transport::Tcp {
            let (first, this) = (&first_ip[IPV4..], &ip[IPV4..]);
            let expected = double_word(first, tcp::SEQUENCE).wrapping_add(self.payload as u32);
            let same = double_word(this, tcp::SEQUENCE) == expected
                && first[tcp::ACKNOWLEDGMENT..tcp::DATA_OFFSET]
                    == this[tcp::ACKNOWLEDGMENT..tcp::DATA_OFFSET]
                && first[tcp::WINDOW..tcp::CHECKSUM] == this[tcp::WINDOW..tcp::CHECKSUM]
                && first[tcp::URGENT..transport_len] == this[tcp::URGENT..transport_len];
            if !same {
                return None;
            }
        }
        self.id_step(frames, first_ip, ip)
    }

    /// The identifications must count up, as segmentation will make them, or all be equal under "don't
    /// fragment", where they mean nothing (RFC 6864 §4.1).
    fn id_step<F: Frames + ?Sized>(&self, frames: &F, first_ip: &[u8], ip: &[u8]) -> Option<u16> {
        let last = &frames.frame(usize::from(self.last))[ETHERNET..];
        let step = word(ip, ipv4::IDENTIFICATION).wrapping_sub(word(last, ipv4::IDENTIFICATION));
        let atomic = word(first_ip, ipv4::FRAGMENT) & ipv4::DF != 0;
        let known = self.count > 1;
        match step {
            1 if !known || self.id_step == 1 => Some(1),
            0 if atomic && (!known || self.id_step == 0) => Some(0),
            _ => None,
        }
    }

    /// Writes the virtio-net header and the headers of the super-frame: those of the first frame with the lengths
    /// of all, PSH if the last one had it, and the pseudo-header's sum in place of the transport checksum.
    fn write_head<F: Frames + ?Sized>(&mut self, frames: &F) {
        let Segment { flow, header_len, payload: segment_size, .. } = self.segment;
        let first = frames.frame(usize::from(self.first));
        let transport_at = ETHERNET + IPV4;
        let transport_len = header_len - transport_at + self.payload;
        let vnet = VnetHeader {
            checksum: Checksum::Partial {
                start: transport_at as u16,
                offset: flow.transport.checksum_offset() as u16,
            },
            gso: Some(Gso {
                kind: match flow.transport {
                    Transport::Tcp => GsoKind::TcpV4,
                    Transport::Udp => GsoKind::UdpL4,
                },
                ecn: false,
                header_len: header_len as u16,
                segment_size: segment_size as u16,
            }),
        };
        let (virtio, headers) = self.head.split_at_mut(VNET_HEADER_LEN);
        virtio.copy_from_slice(&vnet.to_bytes());
        headers[..header_len].copy_from_slice(&first[..header_len]);
        self.head_len = (VNET_HEADER_LEN + header_len) as u8;

        let (ip, transport) = headers[ETHERNET..].split_at_mut(IPV4);
        put(ip, ipv4::TOTAL_LENGTH, ((IPV4 + transport_len) as u16).to_be_bytes());
        put(ip, ipv4::CHECKSUM, [0, 0]);
        let checksum = Sum::of(ip).finish();
        put(ip, ipv4::CHECKSUM, checksum.to_be_bytes());

        match flow.transport {
            Transport::Tcp => {
                let last = frames.frame(usize::from(self.last));
                transport[tcp::FLAGS] |= last[transport_at + tcp::FLAGS] & tcp::PSH;
            }
            Transport::Udp => put(transport, udp::LENGTH, (transport_len as u16).to_be_bytes()),
        }
        let pseudo = Sum::pseudo_header(flow.addresses, flow.transport.protocol(), transport_len as u16);
        put(transport, flow.transport.checksum_offset(), pseudo.partial().to_be_bytes());
    }
}

/// Reads as much of the headers as decides whether a frame may be merged.
fn classify(frame: &[u8]) -> Class {
    let Some(ip) = frame.get(ETHERNET..).filter(|ip| ip.len() >= IPV4) else { return Class::Other };
    let Some(transport) = Transport::from_protocol(ip[ipv4::PROTOCOL]) else { return Class::Other };
    if frame[12..ETHERNET] != [0x08, 0x00] || ip[0] >> 4 != 4 {
        return Class::Other;
    }
    let Some(&addresses) = ip[ipv4::ADDRESSES..].first_chunk() else { return Class::Other };
    // With options, cut short, padded, or a fragment: the ports are not where they are expected, or the payload
    // does not end with the frame.
    if ip[0] != 0x45
        || usize::from(word(ip, ipv4::TOTAL_LENGTH)) != ip.len()
        || word(ip, ipv4::FRAGMENT) & ipv4::FRAGMENT_MASK != 0
    {
        return Class::Unclear(addresses);
    }
    let Some(header_len) = transport.header_len(frame, ETHERNET + IPV4) else {
        return Class::Unclear(addresses);
    };
    let (header, payload) = ip[IPV4..].split_at(header_len);
    let Some(&ports) = header.first_chunk() else { return Class::Unclear(addresses) };
    let flow = Flow { transport, addresses, ports };
    let (eligible, push) = match transport {
        Transport::Tcp => {
            let flags = header[tcp::FLAGS];
            (flags & !tcp::PSH == tcp::ACK && header[tcp::DATA_OFFSET] & 0x0f == 0, flags & tcp::PSH != 0)
        }
        // Checksum 0 is "none" (RFC 768): nothing to verify, and segmentation would add one. A datagram to a group is
        // no bulk transfer, and its readers (DHCP servers above all) often sit on packet sockets, where two messages
        // in one packet are one message.
        Transport::Udp => {
            let length = usize::from(word(header, udp::LENGTH));
            let group = frame[0] & 1 != 0;
            (word(header, udp::CHECKSUM) != 0 && length == UDP + payload.len() && !group, false)
        }
    };
    if !eligible || payload.is_empty() {
        return Class::Alone(flow);
    }
    let header_len = ETHERNET + IPV4 + header_len;
    Class::Segment(Segment { flow, header_len, payload: payload.len(), push })
}

/// The indices of the packets that may still grow, oldest first.
#[derive(Debug, Default)]
struct Open {
    packets: [u8; MAX_FLOWS],
    count: usize,
}

impl Open {
    fn clear(&mut self) {
        self.count = 0;
    }

    fn find(&self, mut is: impl FnMut(usize) -> bool) -> Option<usize> {
        self.packets[..self.count].iter().map(|packet| usize::from(*packet)).find(|packet| is(*packet))
    }

    /// Adds a packet; if the table is full, the oldest one is closed.
    fn push(&mut self, packet: usize) {
        if self.count == MAX_FLOWS {
            self.packets.copy_within(1.., 0);
            self.count -= 1;
        }
        self.packets[self.count] = packet as u8;
        self.count += 1;
    }

    fn close_if(&mut self, mut is: impl FnMut(usize) -> bool) {
        let mut kept = 0;
        for at in 0..self.count {
            let packet = self.packets[at];
            if !is(usize::from(packet)) {
                self.packets[kept] = packet;
                kept += 1;
            }
        }
        self.count = kept;
    }
}

/// The packets of one batch, in order.
#[derive(Debug)]
pub struct Packets<'a, F: ?Sized> {
    coalescer: &'a Coalescer,
    frames: &'a F,
    at: usize,
}

impl<'a, F: Frames + ?Sized> Iterator for Packets<'a, F> {
    type Item = Packet<'a, F>;

    fn next(&mut self) -> Option<Packet<'a, F>> {
        let plan = self.coalescer.packets.get(self.at)?;
        self.at += 1;
        Some(Packet { plan, next: &self.coalescer.next, frames: self.frames })
    }
}

/// One packet for a TAP, to be written as the concatenation of its [`parts`](Packet::parts).
#[derive(Debug)]
pub struct Packet<'a, F: ?Sized> {
    plan: &'a Plan,
    next: &'a [u8; MAX_FRAMES],
    frames: &'a F,
}

impl<'a, F: Frames + ?Sized> Packet<'a, F> {
    /// Which of the VM's frames are in it, as indices into the batch, in order.
    pub fn frames(&self) -> impl Iterator<Item = usize> + use<'a, F> {
        let next = self.next;
        let mut frame = usize::from(self.plan.first);
        (0..self.plan.count).map(move |_| {
            let this = frame;
            frame = usize::from(next[frame]);
            this
        })
    }

    /// The virtio-net header with, in a merged packet, its headers; then what each frame adds. At most
    /// [`MAX_PARTS`].
    pub fn parts(&self) -> impl Iterator<Item = &'a [u8]> + use<'a, F> {
        let (plan, frames) = (self.plan, self.frames);
        let skip = if plan.count > 1 { plan.segment.header_len } else { 0 };
        let payloads = self.frames().map(move |frame| &frames.frame(frame)[skip..]);
        std::iter::once(&plan.head[..usize::from(plan.head_len)]).chain(payloads)
    }
}
