//! Cuts the super-frames of a batch into frames for the wire when a link sends them.

use softnet_offload::{MAX_HEADER_LEN, Segments};

use super::{BATCH_FRAMES, FrameBatch};

/// One frame on the wire: its headers, if they are not in the batch, and the rest of its bytes.
pub type Pieces<'a> = [&'a [u8]; 2];

/// Space for the headers of all frames that one system call sends, allocated once.
#[derive(Debug)]
pub struct Cutter {
    headers: Box<[[u8; MAX_HEADER_LEN]]>,
}

impl Cutter {
    /// Space for [`BATCH_FRAMES`] frames.
    pub fn new() -> Self {
        Cutter { headers: vec![[0; MAX_HEADER_LEN]; BATCH_FRAMES].into_boxed_slice() }
    }

    /// Passes the next frames of `batch` to `each` as they will be on the wire, at most [`BATCH_FRAMES`].
    /// Returns how many there were, counted as [`FrameBatch::advance`] counts.
    ///
    /// Whole frames and payload stay where they are in the batch; only the headers of cut frames are made
    /// here.
    pub fn cut<'a>(&'a mut self, batch: &'a FrameBatch, mut each: impl FnMut(usize, Pieces<'a>)) -> usize {
        let mut count = 0;
        let mut headers = self.headers.iter_mut();
        for (frame, vnet, sent) in batch.uncut() {
            if vnet.gso.is_none() {
                if count == BATCH_FRAMES {
                    break;
                }
                each(count, [&[], frame]);
                count += 1;
                continue;
            }
            // The batch accepts no super-frame that cannot be cut.
            let Ok(mut segments) = Segments::new(frame, vnet) else { break };
            segments.skip(sent);
            while count < BATCH_FRAMES
                && segments.remaining() > 0
                && let Some(header) = headers.next()
            {
                let len = segments.header_len();
                let Some(payload) = segments.next_into(header) else { break };
                each(count, [&header[..len], payload]);
                count += 1;
            }
        }
        count
    }
}

impl Default for Cutter {
    fn default() -> Self {
        Cutter::new()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use softnet_offload::VnetHeader;
    use softnet_offload::vnet::{Checksum, Gso, GsoKind};

    /// Headers of a TCP frame without options.
    const HEADERS: usize = 54;

    /// A TCP super-frame of `payload`, and its header from the TAP.
    pub(crate) fn super_frame(payload: &[u8], segment_size: u16) -> (Vec<u8>, VnetHeader) {
        let mut frame = vec![0; HEADERS];
        frame[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
        frame[16..18].copy_from_slice(&(40 + payload.len() as u16).to_be_bytes());
        frame[23] = 6;
        frame[46] = 0x50;
        frame.extend(payload);
        let checksum = Checksum::Partial { start: 34, offset: 16 };
        let gso = Gso { kind: GsoKind::TcpV4, ecn: false, header_len: HEADERS as u16, segment_size };
        (frame, VnetHeader { checksum, gso: Some(gso) })
    }

    fn wire(cutter: &mut Cutter, batch: &FrameBatch) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let count = cutter.cut(batch, |index, pieces| {
            assert_eq!(index, frames.len());
            frames.push(pieces.concat());
        });
        assert_eq!(count, frames.len());
        frames
    }

    #[test]
    fn a_cut_continues_where_it_stopped() {
        let payload: Vec<u8> = (0..=255).cycle().take(20_000).collect();
        let (frame, vnet) = super_frame(&payload, 100);
        let mut batch = FrameBatch::new(70_000);
        for _ in 0..2 {
            batch.free_space()[..frame.len()].copy_from_slice(&frame);
            batch.push_offloaded(frame.len(), vnet).unwrap();
            batch.free_space()[..3].copy_from_slice(b"abc");
            batch.push(3);
        }
        assert_eq!((batch.len(), batch.len_on_wire()), (4, 402));
        assert_eq!(batch.bytes_on_wire(), 2 * (20_000 + 200 * HEADERS as u64 + 3));

        let mut cutter = Cutter::new();
        let mut sent = Vec::new();
        // The peer accepts any number of frames.
        for takes in [1, 64, 0, 30].into_iter().cycle() {
            let frames = wire(&mut cutter, &batch);
            let takes = takes.min(frames.len());
            sent.extend(frames.into_iter().take(takes));
            batch.advance(takes);
            assert_eq!(batch.len_on_wire(), 402 - sent.len());
            if batch.is_empty() {
                break;
            }
        }
        for half in sent.chunks(201) {
            assert_eq!(half[200], b"abc");
            assert_eq!(
                half[..200].iter().flat_map(|frame| &frame[HEADERS..]).copied().collect::<Vec<_>>(),
                payload
            );
        }
    }

    #[test]
    fn what_cannot_be_cut_does_not_enter_the_batch() {
        let (mut frame, vnet) = super_frame(&[1; 300], 100);
        frame[16] ^= 1;
        let mut batch = FrameBatch::new(1000);
        batch.free_space()[..frame.len()].copy_from_slice(&frame);
        assert!(batch.push_offloaded(frame.len(), vnet).is_err());
        assert!(batch.is_empty());
    }

    #[test]
    fn a_super_frame_that_loses_pieces_is_lost_once() {
        let (frame, vnet) = super_frame(&[1; 300], 100);
        let mut batch = FrameBatch::new(1000);
        batch.free_space()[..frame.len()].copy_from_slice(&frame);
        batch.push_offloaded(frame.len(), vnet).unwrap();
        batch.push(3);
        batch.discard_one();
        batch.discard_one();
        assert_eq!((batch.len(), batch.len_on_wire()), (2, 2));
        batch.discard();
        let lost = batch.take_losses();
        assert_eq!((lost.refused.frames, lost.refused.bytes), (1, frame.len() as u64));
        assert_eq!((lost.queue_full.frames, lost.queue_full.bytes), (1, 3));
    }
}
