//! What a super-frame is cut into, and that nothing malformed is cut.

mod common;

use common::{ACK, Body, CWR, FIN, PSH, Spec, cut, is_valid};
use proptest::prelude::*;
use softnet_offload::vnet::{Checksum, Gso, GsoKind, VNET_HEADER_LEN};
use softnet_offload::{
    MAX_HEADER_LEN, Malformed, Segments, VnetHeader, finish_checksum, finish_open_checksum,
};

fn flags(frames: &[Vec<u8>]) -> Vec<u8> {
    frames.iter().map(|frame| frame[47]).collect()
}

#[test]
fn tcp_byte_by_byte() {
    let mut spec = Spec::tcp(b"abcde");
    spec.id = 0xffff;
    spec.body = Body::Tcp {
        sequence: 0xffff_fffe,
        ack: 77,
        flags: ACK | PSH | FIN | CWR,
        window: 501,
        options: vec![],
    };
    let (vnet, frame) = spec.super_frame(4);
    #[rustfmt::skip]
    let expected = [
        [
            &[0x02, 0, 0, 0, 0, 0x01, 0x02, 0, 0, 0, 0, 0x02, 0x08, 0x00][..],
            &[0x45, 0, 0, 44, 0xff, 0xff, 0x40, 0, 64, 6, 0x26, 0xca, 10, 0, 0, 1, 10, 0, 0, 2],
            &[0x9c, 0x40, 0, 80, 0xff, 0xff, 0xff, 0xfe, 0, 0, 0, 77, 0x50, 0x90, 0x01, 0xf5, 0x37, 0xb6, 0, 0],
            b"abcd",
        ].concat(),
        [
            &[0x02, 0, 0, 0, 0, 0x01, 0x02, 0, 0, 0, 0, 0x02, 0x08, 0x00][..],
            &[0x45, 0, 0, 41, 0, 0, 0x40, 0, 64, 6, 0x26, 0xcd, 10, 0, 0, 1, 10, 0, 0, 2],
            &[0x9c, 0x40, 0, 80, 0, 0, 0, 2, 0, 0, 0, 77, 0x50, 0x19, 0x01, 0xf5, 0x97, 0xf3, 0, 0],
            b"e",
        ].concat(),
    ];
    assert_eq!(cut(&vnet, &frame), expected);
}

#[test]
fn psh_and_fin_stay_with_the_last_and_cwr_with_the_first() {
    let mut spec = Spec::tcp(&[9; 350]);
    if let Body::Tcp { flags, .. } = &mut spec.body {
        *flags = ACK | PSH | FIN | CWR;
    }
    let (vnet, frame) = spec.super_frame(100);
    assert!(vnet.gso.is_some_and(|gso| gso.ecn));
    let frames = cut(&vnet, &frame);
    assert_eq!(flags(&frames), [ACK | CWR, ACK, ACK, ACK | PSH | FIN]);
    assert!(frames.iter().all(|frame| is_valid(frame)));
    // One segment is both.
    let (vnet, frame) = spec.super_frame(350);
    assert_eq!(flags(&cut(&vnet, &frame)), [ACK | PSH | FIN | CWR]);
}

#[test]
fn ip_options_are_repeated() {
    let (vnet, frame) = Spec::tcp(&[3; 205]).super_frame(100);
    let mut with_options = frame[..34].to_vec();
    with_options[14] = 0x46;
    with_options.extend([1, 1, 1, 0]);
    with_options.extend(&frame[34..]);
    let total = (with_options.len() as u16 - 14).to_be_bytes();
    with_options[16..18].copy_from_slice(&total);
    let vnet = VnetHeader { checksum: Checksum::Partial { start: 38, offset: 16 }, ..vnet };
    let frames = cut(&vnet, &with_options);
    assert_eq!(frames.len(), 3);
    assert!(frames.iter().all(|frame| is_valid(frame) && frame[34..38] == [1, 1, 1, 0]));
}

#[test]
fn the_largest_super_frame() {
    let payload = vec![0xff; 65_535 - 52];
    let (vnet, frame) = Spec::tcp(&payload).super_frame(1448);
    let frames = cut(&vnet, &frame);
    assert_eq!(frames.len(), 46);
    assert!(frames.iter().all(|frame| is_valid(frame)));
    assert_eq!(frames.iter().flat_map(|frame| &frame[66..]).copied().collect::<Vec<_>>(), payload);
}

#[test]
fn malformed_super_frames_are_refused() {
    type Change = fn(&mut VnetHeader, &mut Vec<u8>);
    let changes: [(Malformed, Change); 17] = [
        (Malformed::NotSuper, |vnet, _| vnet.gso = None),
        (Malformed::SegmentSize, |vnet, _| vnet.gso.as_mut().unwrap().segment_size = 0),
        (Malformed::Protocol, |vnet, _| vnet.gso.as_mut().unwrap().kind = GsoKind::TcpV6),
        (Malformed::Protocol, |vnet, _| vnet.gso.as_mut().unwrap().kind = GsoKind::UdpL4),
        (Malformed::Protocol, |_, frame| frame[12] = 0x86),
        (Malformed::Protocol, |_, frame| frame[14] = 0x65),
        (Malformed::Protocol, |_, frame| frame[23] = 1),
        (Malformed::Fragment, |_, frame| frame[20] = 0x20),
        (Malformed::Fragment, |_, frame| frame[21] = 1),
        (Malformed::Length, |_, frame| frame[14] = 0x44),
        (Malformed::Length, |_, frame| frame.truncate(33)),
        (Malformed::Length, |_, frame| frame.truncate(100)),
        (Malformed::Length, |_, frame| frame.push(0)),
        (Malformed::Length, |_, frame| frame[46] = 0x40),
        (Malformed::ChecksumPlace, |vnet, _| vnet.checksum = Checksum::Whole),
        (Malformed::ChecksumPlace, |vnet, _| vnet.checksum = Checksum::Partial { start: 35, offset: 16 }),
        (Malformed::ChecksumPlace, |vnet, _| vnet.checksum = Checksum::Partial { start: 34, offset: 6 }),
    ];
    for (index, (expected, change)) in changes.into_iter().enumerate() {
        let (mut vnet, mut frame) = Spec::tcp(&[1; 300]).super_frame(100);
        change(&mut vnet, &mut frame);
        assert_eq!(Segments::new(&frame, &vnet).map(|_| ()), Err(expected), "change {index}");
    }
    let (vnet, mut frame) = Spec::udp(&[1; 300]).super_frame(100);
    frame[39] ^= 1;
    assert_eq!(Segments::new(&frame, &vnet).map(|_| ()), Err(Malformed::Length));
    // A TCP header that reaches beyond the frame.
    let (vnet, mut frame) = Spec::tcp(&[]).super_frame(100);
    frame[46] = 0xf0;
    assert_eq!(Segments::new(&frame, &vnet).map(|_| ()), Err(Malformed::Length));
}

#[test]
fn a_partial_checksum_is_completed_in_place() {
    for spec in [Spec::tcp(b"odd"), Spec::udp(b"even")] {
        let (vnet, mut frame) = spec.super_frame(100);
        finish_checksum(&mut frame, &VnetHeader { gso: None, ..vnet }).unwrap();
        assert_eq!(frame, spec.frame());
    }
    let mut frame = Spec::tcp(b"whole").frame();
    finish_checksum(&mut frame, &VnetHeader::default()).unwrap();
    assert_eq!(frame, Spec::tcp(b"whole").frame());
}

#[test]
fn an_open_checksum_is_completed_without_a_header_that_says_so() {
    for spec in [Spec::tcp(b"odd"), Spec::udp(b"even"), Spec::tcp(b""), Spec::udp(b"")] {
        let (_, open) = spec.super_frame(100);
        assert_ne!(open, spec.frame());
        // Padding of the Ethernet frame belongs to no sum.
        for padding in [0, 7] {
            let mut frame = [&open[..], &vec![0xff; padding]].concat();
            finish_open_checksum(&mut frame);
            assert_eq!(frame[..open.len()], spec.frame());
            assert_eq!(frame[open.len()..], vec![0xff; padding]);
        }
        let mut frame = spec.frame();
        finish_open_checksum(&mut frame);
        assert_eq!(frame, spec.frame(), "a right checksum stays");
        // Every other value is not open, so a wrong one stays wrong.
        let at = if open[23] == 6 { 50 } else { 40 };
        for bit in 0..16 {
            let mut wrong = open.clone();
            wrong[at + bit / 8] ^= 1 << (bit % 8);
            let before = wrong.clone();
            finish_open_checksum(&mut wrong);
            assert_eq!(wrong, before, "bit {bit}");
        }
        let changes: [fn(&mut Vec<u8>); 6] = [
            |frame| frame[12] = 0x86,
            |frame| frame[14] = 0x65,
            |frame| frame[14] = 0x44,
            |frame| frame[20] |= 0x20,
            |frame| frame[23] = 47,
            |frame| frame.truncate(frame.len() - 1),
        ];
        for (index, change) in changes.into_iter().enumerate() {
            let mut frame = open.clone();
            change(&mut frame);
            let before = frame.clone();
            finish_open_checksum(&mut frame);
            assert_eq!(frame, before, "change {index}");
        }
    }
}

#[test]
fn an_open_checksum_behind_options_is_completed() {
    let (_, open) = Spec::udp(b"data").super_frame(100);
    let mut frame = [&open[..34], &[1, 1, 1, 0], &open[34..]].concat();
    frame[14] = 0x46;
    frame[17] += 4;
    finish_open_checksum(&mut frame);
    assert_eq!(frame[44..46], Spec::udp(b"data").frame()[40..42]);
}

#[test]
fn a_checksum_beyond_the_frame_is_refused() {
    for (start, offset) in [(34, 31), (64, 0), (65, 0), (65_535, 65_535), (33, 16), (0, 0)] {
        let mut frame = vec![0; 34 + 31];
        let vnet = VnetHeader { checksum: Checksum::Partial { start, offset }, gso: None };
        assert_eq!(finish_checksum(&mut frame, &vnet), Err(Malformed::ChecksumPlace), "{start} {offset}");
    }
    let mut frame = vec![0; 34 + 31];
    let vnet = VnetHeader { checksum: Checksum::Partial { start: 34, offset: 29 }, gso: None };
    finish_checksum(&mut frame, &vnet).unwrap();
}

proptest! {
    #[test]
    fn every_frame_is_valid_and_no_byte_is_lost(
        payload in prop::collection::vec(any::<u8>(), 0..6000), size in 1..3000_u16, udp: bool, flags: u8,
        sequence: u32, id: u16,
    ) {
        let mut spec = if udp { Spec::udp(&payload) } else { Spec::tcp(&payload) };
        spec.id = id;
        if let Body::Tcp { sequence: place, flags: place_flags, .. } = &mut spec.body {
            *place = sequence;
            *place_flags = flags;
        }
        let (vnet, frame) = spec.super_frame(size);
        let frames = cut(&vnet, &frame);
        let header = spec.header_len();
        let mut at = 0;
        for (index, frame) in frames.iter().enumerate() {
            prop_assert!(is_valid(frame));
            prop_assert_eq!(&frame[header..], &payload[at..payload.len().min(at + usize::from(size))]);
            prop_assert_eq!(u16::from_be_bytes([frame[18], frame[19]]), id.wrapping_add(index as u16));
            if !udp {
                let place = u32::from_be_bytes([frame[38], frame[39], frame[40], frame[41]]);
                prop_assert_eq!(place, sequence.wrapping_add(at as u32));
            }
            at += frame.len() - header;
        }
        prop_assert_eq!(at, payload.len());
    }

    /// Whatever the virtio-net header and the frame say, the answer is an error or right frames.
    #[test]
    fn nothing_panics(
        vnet: [u8; VNET_HEADER_LEN], good_vnet: bool, size in 1..200_u16, udp: bool,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4), length in 0..400_usize,
    ) {
        let spec = if udp { Spec::udp(&[1; 200]) } else { Spec::tcp(&[1; 200]) };
        let (right, mut frame) = spec.super_frame(size);
        for (at, value) in changes {
            let at = at.index(frame.len());
            frame[at] = value;
        }
        if length < 300 {
            frame.truncate(length);
        }
        let vnet = if good_vnet { Ok(right) } else { VnetHeader::parse(&vnet) };
        if let Ok(vnet) = vnet {
            if let Ok(mut segments) = Segments::new(&frame, &vnet) {
                let mut header = [0; MAX_HEADER_LEN];
                while let Some(payload) = segments.next_into(&mut header) {
                    prop_assert!(is_valid(&[&header[..segments.header_len()], payload].concat()));
                }
            }
            let _ = finish_checksum(&mut frame, &vnet);
        }
        finish_open_checksum(&mut frame);
    }

    #[test]
    fn random_bytes_do_not_panic(vnet: [u8; VNET_HEADER_LEN], mut frame in prop::collection::vec(any::<u8>(), 0..100)) {
        if let Ok(vnet) = VnetHeader::parse(&vnet) {
            let gso = vnet.gso.or(Some(Gso { kind: GsoKind::TcpV4, ecn: false, header_len: 0, segment_size: 9 }));
            let _ = Segments::new(&frame, &VnetHeader { gso, ..vnet });
            let _ = finish_checksum(&mut frame, &vnet);
        }
        finish_open_checksum(&mut frame);
    }
}
