//! What is merged, what is not, and that nothing is lost, reordered or made valid on the way.

mod common;

use common::{
    ACK, BOTH, Body, ECE, FIN, PSH, RST, SYN, Spec, Written, coalesce, cut, fix_checksums, is_valid,
};
use proptest::prelude::*;
use softnet_offload::vnet::{Checksum, Gso, GsoKind};
use softnet_offload::{Coalescer, Features, VnetHeader};

/// The frames of one TCP stream, cut every `size` bytes.
fn stream(length: usize, size: u16) -> Vec<Vec<u8>> {
    let payload: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
    let (vnet, frame) = Spec::tcp(&payload).super_frame(size);
    cut(&vnet, &frame)
}

fn counts(packets: &[Written]) -> Vec<usize> {
    packets.iter().map(|packet| packet.count).collect()
}

/// Applies `change` to the frame at `index` and makes its checksums right again.
fn with(mut frames: Vec<Vec<u8>>, index: usize, change: impl FnOnce(&mut Vec<u8>)) -> Vec<Vec<u8>> {
    change(&mut frames[index]);
    fix_checksums(&mut frames[index]);
    frames
}

#[test]
fn three_segments_become_one_super_frame() {
    let packets = coalesce(BOTH, &stream(250, 100));
    let payload: Vec<u8> = (0..250).collect();
    let (vnet, frame) = Spec::tcp(&payload).super_frame(100);
    assert_eq!(packets, [Written { vnet, frame, count: 3 }]);
    assert_eq!(vnet.checksum, Checksum::Partial { start: 34, offset: 16 });
    assert_eq!(vnet.gso, Some(Gso { kind: GsoKind::TcpV4, ecn: false, header_len: 66, segment_size: 100 }));
}

/// The bytes of a merged packet, one by one, as the kernel will see them.
#[test]
fn two_segments_byte_by_byte() {
    let mut first = Spec::tcp(b"abcd");
    first.body = Body::Tcp { sequence: 0xffff_fffe, ack: 77, flags: ACK, window: 501, options: vec![] };
    let mut second = Spec::tcp(b"ef");
    second.id = 8;
    second.body = Body::Tcp { sequence: 2, ack: 77, flags: ACK | PSH, window: 501, options: vec![] };
    let frames = [first.frame(), second.frame()];
    let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
    let mut coalescer = softnet_offload::Coalescer::new(BOTH);
    let packets: Vec<Vec<u8>> = coalescer
        .coalesce(frames.as_slice())
        .map(|packet| packet.parts().collect::<Vec<_>>().concat())
        .collect();
    #[rustfmt::skip]
    let expected = [
        // NEEDS_CSUM, TCPV4, hdr_len 54, gso_size 4, csum_start 34, csum_offset 16
        0x01, 0x01, 54, 0, 4, 0, 34, 0, 16, 0,
        0x02, 0, 0, 0, 0, 0x01, 0x02, 0, 0, 0, 0, 0x02, 0x08, 0x00,
        // total length 46, identification 7, DF, TTL 64, TCP
        0x45, 0, 0, 46, 0, 7, 0x40, 0, 64, 6, 0x26, 0xc1, 10, 0, 0, 1, 10, 0, 0, 2,
        // ports, sequence, ack, ACK|PSH, window, sum of the pseudo-header: 0x0a00+1+0x0a00+2+6+26
        0x9c, 0x40, 0, 80, 0xff, 0xff, 0xff, 0xfe, 0, 0, 0, 77, 0x50, 0x18, 0x01, 0xf5, 0x14, 0x23, 0, 0,
        b'a', b'b', b'c', b'd', b'e', b'f',
    ];
    assert_eq!(packets, [expected.to_vec()]);
}

#[test]
fn a_lone_frame_passes_as_it_is() {
    let frames = stream(100, 100);
    let packets = coalesce(BOTH, &frames);
    assert_eq!(packets, [Written { vnet: VnetHeader::default(), frame: frames[0].clone(), count: 1 }]);
}

#[test]
fn a_packet_ends_before_it_outgrows_ip() {
    let frames: Vec<Vec<u8>> = (0..64_u32)
        .map(|index| {
            let mut spec = Spec::tcp(&[index as u8; 1448]);
            spec.id = index as u16;
            let sequence = (u32::MAX - 5000).wrapping_add(index * 1448);
            spec.body = Body::Tcp { sequence, ack: 1, flags: ACK, window: 1, options: vec![] };
            spec.frame()
        })
        .collect();
    // 45 * 1448 + 40 = 65,200; one more would be 66,648.
    assert_eq!(counts(&coalesce(BOTH, &frames)), [45, 19]);
}

#[test]
fn psh_and_a_short_segment_end_a_packet() {
    assert_eq!(counts(&coalesce(BOTH, &with(stream(400, 100), 1, |frame| frame[47] |= PSH))), [2, 2]);
    let short_then_more: Vec<Vec<u8>> =
        stream(150, 100).into_iter().chain(stream(300, 100).into_iter().skip(2)).collect();
    assert_eq!(counts(&coalesce(BOTH, &short_then_more)), [2, 1]);
}

#[test]
fn a_difference_in_any_header_field_ends_a_packet() {
    type Change = fn(&mut Vec<u8>);
    let changes: [(&str, Change); 16] = [
        ("destination MAC", |frame| frame[5] ^= 1),
        ("source MAC", |frame| frame[11] ^= 1),
        ("type of service", |frame| frame[15] ^= 4),
        ("congestion experienced", |frame| frame[15] ^= 3),
        ("identification", |frame| frame[19] ^= 0x10),
        ("don't fragment", |frame| frame[20] ^= 0x40),
        ("time to live", |frame| frame[22] -= 1),
        ("sequence number behind", |frame| frame[41] -= 1),
        ("sequence number ahead", |frame| frame[41] += 1),
        ("acknowledgment", |frame| frame[45] += 1),
        ("reserved bits", |frame| frame[46] |= 1),
        ("window", |frame| frame[49] += 1),
        ("urgent pointer", |frame| frame[53] = 1),
        ("timestamp", |frame| frame[61] += 1),
        ("echoed timestamp", |frame| frame[65] += 1),
        ("option kind", |frame| frame[54] = 0),
    ];
    for (field, change) in changes {
        let packets = coalesce(BOTH, &with(stream(300, 100), 1, change));
        assert_eq!(counts(&packets), [1, 1, 1], "{field}");
    }
}

#[test]
fn flags_other_than_ack_and_psh_pass_alone() {
    for flags in [ACK | FIN, ACK | RST, ACK | SYN, ACK | ECE, 0, PSH, ACK | 0x20, ACK | 0x80] {
        let packets = coalesce(BOTH, &with(stream(300, 100), 1, |frame| frame[47] = flags));
        assert_eq!(counts(&packets), [1, 1, 1], "{flags:#x}");
    }
}

#[test]
fn a_wrong_checksum_is_never_made_right() {
    for (damaged, expected) in [(0, vec![1, 2]), (1, vec![1, 1, 1]), (2, vec![2, 1])] {
        for byte in [24, 50, 70, 165] {
            let mut frames = stream(300, 100);
            frames[damaged][byte] ^= 0x40;
            let packets = coalesce(BOTH, &frames);
            assert_eq!(counts(&packets), expected, "byte {byte} of frame {damaged}");
            assert!(packets.iter().any(|packet| packet.count == 1 && packet.frame == frames[damaged]));
        }
    }
}

#[test]
fn an_ack_passes_untouched_and_in_order() {
    let mut ack = Spec::tcp(b"");
    ack.id = 100;
    let mut frames = stream(400, 100);
    frames.insert(2, ack.frame());
    let packets = coalesce(BOTH, &frames);
    assert_eq!(counts(&packets), [2, 1, 2]);
    assert_eq!(packets[1].frame, ack.frame());
}

#[test]
fn a_fragment_ends_the_packets_between_its_addresses() {
    let mut fragment = Spec::udp(&[0; 64]);
    fragment.fragment = 0x2000;
    let mut frames = stream(400, 100);
    frames.insert(2, fragment.frame());
    assert_eq!(counts(&coalesce(BOTH, &frames)), [2, 1, 2]);
}

#[test]
fn identifications_may_be_fixed_only_under_dont_fragment() {
    let fixed = |fragment: u8| {
        let mut frames = stream(400, 100);
        for frame in &mut frames {
            frame[18..21].copy_from_slice(&[0, 0, fragment]);
            fix_checksums(frame);
        }
        counts(&coalesce(BOTH, &frames))
    };
    assert_eq!(fixed(0x40), [4]);
    assert_eq!(fixed(0x00), [1, 1, 1, 1]);
}

#[test]
fn interleaved_flows_merge_each_for_itself() {
    let mut flows: Vec<_> = (0..4_u16)
        .map(|flow| {
            let mut spec = Spec::tcp(&[flow as u8; 400]);
            spec.ports.0 += flow;
            let (vnet, frame) = spec.super_frame(100);
            cut(&vnet, &frame).into_iter()
        })
        .collect();
    let frames: Vec<Vec<u8>> = (0..16).filter_map(|index| flows[index % 4].next()).collect();
    assert_eq!(counts(&coalesce(BOTH, &frames)), [4, 4, 4, 4]);
}

#[test]
fn more_flows_than_the_table_holds_still_pass_in_order() {
    let frames: Vec<Vec<u8>> = (0..64_u16)
        .map(|index| {
            let mut spec = Spec::udp(&[index as u8; 100]);
            spec.ports.0 += index % 20;
            spec.id = index / 20;
            spec.frame()
        })
        .collect();
    // Every flow is forgotten before its next datagram comes.
    let packets = coalesce(BOTH, &frames);
    assert_eq!(packets.iter().map(|packet| packet.frame.clone()).collect::<Vec<_>>(), frames);
}

#[test]
fn datagrams_to_one_address_stay_single_and_streams_to_it_do_not() {
    let mut spec = Spec::udp(&[5; 250]);
    spec.fragment = 0;
    let (vnet, frame) = spec.super_frame(100);
    let frames = cut(&vnet, &frame);
    let destination = *frames[0][30..].first_chunk().expect("an IPv4 header");
    let count = |frames: &[Vec<u8>], address| {
        let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
        let mut coalescer = Coalescer::new(BOTH);
        coalescer.set_single_datagrams_to(address);
        coalescer.coalesce(&frames[..]).count()
    };
    assert_eq!(count(&frames, destination), 3);
    assert_eq!(count(&frames, [192, 0, 2, 99]), 1);
    assert_eq!(count(&stream(300, 100), destination), 1);
}

#[test]
fn datagrams_of_one_size_merge_where_the_receiver_takes_them() {
    let mut spec = Spec::udp(&[5; 250]);
    spec.fragment = 0;
    let (vnet, frame) = spec.super_frame(100);
    let frames = cut(&vnet, &frame);
    assert_eq!(coalesce(BOTH, &frames), [Written { vnet, frame, count: 3 }]);
    assert_eq!(counts(&coalesce(Features { tcp: true, udp: false }, &frames)), [1, 1, 1]);
    assert_eq!(counts(&coalesce(Features::default(), &stream(300, 100))), [1, 1, 1]);
    // Checksum 0 is "none", and segmentation would invent one.
    let mut none = frames.clone();
    none[1][40..42].fill(0);
    assert_eq!(counts(&coalesce(BOTH, &none)), [1, 1, 1]);
    // A UDP length that disagrees with IP's.
    let lying = with(frames, 1, |frame| frame[39] -= 1);
    assert_eq!(counts(&coalesce(BOTH, &lying)), [1, 1, 1]);
}

#[test]
fn datagrams_to_a_group_pass_as_they_are() {
    let (vnet, frame) = Spec::udp(&[5; 250]).super_frame(100);
    for first_byte in [0xff, 0x01] {
        let mut frames = cut(&vnet, &frame);
        frames.iter_mut().for_each(|frame| frame[0] = first_byte);
        assert_eq!(counts(&coalesce(BOTH, &frames)), [1, 1, 1]);
    }
}

#[test]
fn padding_after_the_datagram_is_left_alone() {
    let mut frames = stream(300, 100);
    frames[1].push(0);
    assert_eq!(counts(&coalesce(BOTH, &frames)), [1, 1, 1]);
}

/// One step of an adversarial sender.
#[derive(Clone, Debug)]
enum Step {
    /// The flow's next bytes.
    Next { flow: u16, length: usize, push: bool },
    /// An earlier frame again.
    Repeat(prop::sample::Index),
    /// The last frame, with a byte changed, and its checksums made right or not.
    Damage { byte: prop::sample::Index, bit: u8, fix: bool },
    /// The last frame, cut or padded.
    Resize(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let length = prop_oneof![8 => Just(100_usize), 1 => 1..100_usize, 1 => Just(101), 1 => Just(0)];
    let step = prop_oneof![
        20 => (0..3_u16, length, prop::bool::weighted(0.1))
            .prop_map(|(flow, length, push)| Step::Next { flow, length, push }),
        1 => any::<prop::sample::Index>().prop_map(Step::Repeat),
        2 => (any::<prop::sample::Index>(), 0..8_u8, any::<bool>())
            .prop_map(|(byte, bit, fix)| Step::Damage { byte, bit, fix }),
        1 => (0..200_usize).prop_map(Step::Resize),
    ];
    prop::collection::vec(step, 0..64)
}

/// The batch that `steps` make. Flow 2 is UDP; flow 1's identifications are fixed if `fixed`; the sequence numbers
/// wrap.
fn batch(steps: &[Step], fixed: bool) -> Vec<Vec<u8>> {
    let mut frames: Vec<Vec<u8>> = Vec::new();
    let mut state = [(0_u16, u32::MAX - 150); 3];
    for (count, step) in steps.iter().enumerate() {
        match step {
            Step::Next { flow, length, push } => {
                let (id, sequence) = &mut state[usize::from(*flow)];
                let payload: Vec<u8> = (0..*length).map(|at| (at * 7 + count) as u8).collect();
                let mut spec = if *flow == 2 { Spec::udp(&payload) } else { Spec::tcp(&payload) };
                spec.ports.0 += flow;
                spec.id = *id;
                if let Body::Tcp { sequence: place, flags, .. } = &mut spec.body {
                    *place = *sequence;
                    *flags |= if *push { PSH } else { 0 };
                }
                if !(fixed && *flow == 1) {
                    *id = id.wrapping_add(1);
                }
                *sequence = sequence.wrapping_add(*length as u32);
                frames.push(spec.frame());
            }
            Step::Repeat(index) if !frames.is_empty() => {
                let again = index.get(&frames).clone();
                frames.push(again);
            }
            Step::Damage { byte, bit, fix } => {
                if let Some(frame) = frames.last_mut().filter(|frame| frame.len() >= 42) {
                    let at = byte.index(frame.len());
                    frame[at] ^= 1 << bit;
                    if *fix {
                        fix_checksums(frame);
                    }
                }
            }
            Step::Resize(length) => {
                if let Some(frame) = frames.last_mut() {
                    frame.resize(*length, 0);
                }
            }
            Step::Repeat(_) => {}
        }
    }
    frames
}

/// The addresses, and the flow if the ports can be known.
fn flow(frame: &[u8]) -> Option<(Vec<u8>, Option<Vec<u8>>)> {
    let addresses = frame.get(26..34)?.to_vec();
    if frame[12..14] != [8, 0] || frame[14] >> 4 != 4 || ![6, 17].contains(&frame[23]) {
        return None;
    }
    let clear = frame[14] == 0x45
        && frame[20] & 0x3f == 0
        && frame[21] == 0
        && usize::from(u16::from_be_bytes([frame[16], frame[17]])) == frame.len() - 14;
    let ports = frame.get(34..38).filter(|_| clear).map(|ports| [ports, &frame[23..24]].concat());
    Some((addresses, ports))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Cut after coalescing, every batch is what it was: no byte is lost, changed or, within a flow, reordered.
    #[test]
    fn what_is_merged_comes_apart_as_it_was(steps in steps()) {
        let frames = batch(&steps, false);
        let packets = coalesce(BOTH, &frames);
        prop_assert_eq!(packets.iter().map(|packet| packet.count).sum::<usize>(), frames.len());
        let arrived: Vec<Vec<u8>> = packets.iter().flat_map(Written::frames).collect();
        // Under "don't fragment" equal identifications come out counted up, where no receiver uses them.
        let normal = |frame: &Vec<u8>| {
            let mut frame = frame.clone();
            if frame.len() > 34 && frame[20] & 0x40 != 0 && is_valid(&frame) {
                frame[18..20].fill(0);
                fix_checksums(&mut frame);
            }
            frame
        };
        let frames: Vec<_> = frames.iter().map(normal).collect();
        let arrived: Vec<_> = arrived.iter().map(normal).collect();
        let mut sent_sorted = frames.clone();
        let mut arrived_sorted = arrived.clone();
        sent_sorted.sort();
        arrived_sorted.sort();
        prop_assert_eq!(sent_sorted, arrived_sorted);
        // Each flow's order, together with that of the frames whose flow between the same addresses is unclear.
        for of in frames.iter().filter_map(|frame| flow(frame)) {
            let related = |frame: &&Vec<u8>| {
                flow(frame).is_some_and(|it| it.0 == of.0 && (it.1 == of.1 || it.1.is_none()))
            };
            prop_assert_eq!(
                frames.iter().filter(related).collect::<Vec<_>>(),
                arrived.iter().filter(related).collect::<Vec<_>>()
            );
        }
    }

    /// A frame that its receiver would refuse is alone and untouched.
    #[test]
    fn nothing_invalid_is_merged(steps in steps(), fixed in any::<bool>()) {
        let frames = batch(&steps, fixed);
        for packet in coalesce(BOTH, &frames) {
            if packet.count > 1 {
                prop_assert!(packet.vnet.gso.is_some());
                prop_assert!(packet.frames().iter().all(|frame| is_valid(frame)));
                prop_assert_eq!(packet.frames().len(), packet.count);
            } else {
                prop_assert_eq!(packet.vnet, VnetHeader::default());
                prop_assert!(frames.contains(&packet.frame));
            }
        }
    }

    /// An undisturbed stream becomes the super-frame that it was cut from.
    #[test]
    fn coalescing_undoes_segmentation(
        payload in prop::collection::vec(any::<u8>(), 2..8000), size in 130..4000_u16, udp: bool, push: bool,
        sequence: u32, id: u16,
    ) {
        prop_assume!(payload.len() > usize::from(size));
        let mut spec = if udp { Spec::udp(&payload) } else { Spec::tcp(&payload) };
        spec.id = id;
        if let Body::Tcp { sequence: place, flags, .. } = &mut spec.body {
            *place = sequence;
            *flags |= if push { PSH } else { 0 };
        }
        let (vnet, frame) = spec.super_frame(size);
        let frames = cut(&vnet, &frame);
        prop_assert!(frames.iter().all(|frame| is_valid(frame)));
        let count = frames.len();
        prop_assert_eq!(coalesce(BOTH, &frames), [Written { vnet, frame, count }]);
    }

    /// Bytes that are no frames at all.
    #[test]
    fn noise_passes(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..64)) {
        let packets = coalesce(BOTH, &frames);
        prop_assert_eq!(packets.into_iter().map(|packet| packet.frame).collect::<Vec<_>>(), frames);
    }
}
