//! What must hold for any input; the fuzz targets and the test that replays their findings share it.

use softnet_offload::vnet::VNET_HEADER_LEN;
use softnet_offload::{MAX_FRAMES, MAX_HEADER_LEN, Segments, VnetHeader, finish_checksum};

use super::{BOTH, Body, Spec, Written, coalesce, fix_checksums, is_valid};

/// A batch made of `program`, four bytes a step, is merged; no frame may be lost or changed, none made valid, and what
/// is cut again must be what was merged.
pub fn batch(program: &[u8]) {
    let frames = frames(program);
    let packets = coalesce(BOTH, &frames);
    assert_eq!(packets.iter().map(|packet| packet.count).sum::<usize>(), frames.len());
    for packet in &packets {
        if packet.count > 1 {
            assert!(packet.frames().iter().all(|frame| is_valid(frame)));
        }
    }
    let mut sent: Vec<Vec<u8>> = frames.iter().map(|frame| normal(frame)).collect();
    let mut arrived: Vec<Vec<u8>> =
        packets.iter().flat_map(Written::frames).map(|frame| normal(&frame)).collect();
    sent.sort();
    arrived.sort();
    assert_eq!(sent, arrived);
}

/// A virtio-net header and a frame: either an error, or frames that are all valid and hold all of the payload.
pub fn super_frame(bytes: &[u8]) {
    let Some((head, frame)) = bytes.split_first_chunk::<VNET_HEADER_LEN>() else { return };
    let Ok(vnet) = VnetHeader::parse(head) else { return };
    assert_eq!(VnetHeader::parse(&vnet.to_bytes()), Ok(vnet));
    if let Ok(mut segments) = Segments::new(frame, &vnet) {
        let mut header = [0; MAX_HEADER_LEN];
        let (header_len, count) = (segments.header_len(), segments.remaining());
        let mut payload = Vec::new();
        for left in (0..count).rev() {
            let Some(piece) = segments.next_into(&mut header) else { panic!("fewer frames than announced") };
            assert_eq!(segments.remaining(), left);
            assert!(is_valid(&[&header[..header_len], piece].concat()));
            payload.extend_from_slice(piece);
        }
        assert!(segments.next_into(&mut header).is_none());
        assert_eq!(payload, frame[header_len..]);
    }
    let mut completed = frame.to_vec();
    if finish_checksum(&mut completed, &vnet).is_err() {
        assert_eq!(completed, frame);
    }
}

/// Under "don't fragment" identifications mean nothing, and equal ones come out counted up.
fn normal(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if frame.len() > 34 && frame[20] & 0x40 != 0 && is_valid(&frame) {
        frame[18..20].fill(0);
        fix_checksums(&mut frame);
    }
    frame
}

fn frames(program: &[u8]) -> Vec<Vec<u8>> {
    let mut frames: Vec<Vec<u8>> = Vec::new();
    let mut flows = [(0_u16, 0xffff_ff00_u32); 4];
    let (steps, _) = program.as_chunks::<4>();
    for &[step, a, b, c] in steps {
        let (count, room) = (frames.len(), frames.len() < MAX_FRAMES);
        match (step % 8, frames.last_mut()) {
            // The next bytes of a flow.
            (0..4, _) if room => {
                let (id, sequence) = &mut flows[usize::from(step % 4)];
                let payload: Vec<u8> = (0..b).map(|at| at ^ a).collect();
                let mut spec = if step % 4 == 3 { Spec::udp(&payload) } else { Spec::tcp(&payload) };
                spec.ports.0 += u16::from(step % 4);
                spec.id = *id;
                if let Body::Tcp { sequence: place, flags, .. } = &mut spec.body {
                    *place = *sequence;
                    *flags |= if c > 250 { super::PSH } else { 0 };
                }
                *id = id.wrapping_add(u16::from(step % 4 != 2));
                *sequence = sequence.wrapping_add(u32::from(b));
                frames.push(spec.frame());
            }
            // A changed byte, its checksums made right or not.
            (4 | 5, Some(frame)) => {
                let at = usize::from(a) % frame.len().max(1);
                if let Some(byte) = frame.get_mut(at) {
                    *byte ^= b;
                }
                if step % 8 == 5 && frame.len() >= 42 {
                    fix_checksums(frame);
                }
            }
            (6, Some(frame)) => frame.resize(usize::from(a), b),
            (7, Some(_)) if room => {
                frames.push(frames[usize::from(a) % count].clone());
            }
            _ => {}
        }
    }
    frames
}
