//! A batch of frames in one arena, allocated once.

use std::ops::Range;

use softnet_offload::{Frames, Malformed, Segments, VnetHeader, finish_checksum};

use super::Losses;

/// The maximum number of frames in a batch: one turn's work for one direction (rule R2).
pub const BATCH_FRAMES: usize = 64;

/// The arena of a batch of super-frames in bytes: room for four of the longest. That fits in a core's cache,
/// and cuts into fewer frames than a VM's socket queues.
pub(super) const SUPER_FRAME_ARENA: usize = 264 << 10;

/// Up to [`BATCH_FRAMES`] frames of one direction, in order.
///
/// Frames lie in one arena that is allocated once; small frames pack tightly. Removing frames moves indices,
/// never bytes. A frame may be a super-frame, which counts as one here and is cut when it is sent (see
/// [`super::cut`]).
#[derive(Debug)]
pub struct FrameBatch {
    arena: Box<[u8]>,
    /// The kept frames, oldest first. Never grows beyond its first capacity.
    frames: Vec<Stored>,
    /// How many frames the links may store, at most [`BATCH_FRAMES`].
    most: usize,
    /// Frames before this index have been sent.
    sent: usize,
    /// First free byte of the arena.
    tail: usize,
    /// The longest frame that a link may store.
    max_frame: usize,
    /// Frames that the transport truncated since [`FrameBatch::take_truncated`] was last called.
    truncated: usize,
    /// Frames that the transport did not accept since [`FrameBatch::take_losses`] was last called.
    losses: Losses,
}

/// One frame of a batch.
#[derive(Debug)]
struct Stored {
    /// Its bytes in the arena.
    bytes: Range<usize>,
    /// Which checksum and cuts are still to be made.
    vnet: VnetHeader,
    /// How many frames on the wire it is cut into.
    pieces: usize,
    /// How many of them have been sent.
    cut: usize,
    /// The frame, or a piece of it, was lost and has been counted.
    is_lost: bool,
}

impl FrameBatch {
    /// A batch whose slots hold frames of up to `max_frame` bytes.
    pub fn new(max_frame: usize) -> Self {
        // With room for the lengths that a stream puts between the frames.
        let arena = (BATCH_FRAMES * (max_frame + 4)).min(SUPER_FRAME_ARENA.max(max_frame));
        FrameBatch {
            arena: vec![0; arena].into_boxed_slice(),
            frames: Vec::with_capacity(BATCH_FRAMES),
            most: BATCH_FRAMES,
            sent: 0,
            tail: 0,
            max_frame,
            truncated: 0,
            losses: Losses::default(),
        }
    }

    /// Removes all frames. The arena's bytes stay.
    pub fn clear(&mut self) {
        self.frames.clear();
        self.sent = 0;
        self.tail = 0;
    }

    /// The longest frame in bytes that a link may store.
    pub fn max_frame(&self) -> usize {
        self.max_frame
    }

    /// From now on, links store at most so many frames, one to [`BATCH_FRAMES`].
    pub fn set_most(&mut self, frames: usize) {
        self.most = frames.clamp(1, BATCH_FRAMES);
    }

    /// Bytes of the frames left to send as they are on the wire, where each frame that a super-frame is cut into has
    /// headers of its own.
    pub fn bytes_on_wire(&self) -> u64 {
        let bytes = |frame: &Stored| {
            let headers = match frame.vnet.gso {
                None => 0,
                Some(_) => Segments::new(&self.arena[frame.bytes.clone()], &frame.vnet)
                    .map_or(0, |segments| segments.header_len()),
            };
            (frame.bytes.len() + frame.pieces.saturating_sub(1) * headers) as u64
        };
        self.frames[self.sent..].iter().map(bytes).sum()
    }

    /// Whether nothing is left to send.
    pub fn is_empty(&self) -> bool {
        self.sent == self.frames.len()
    }

    /// Frames left to send; a super-frame is one.
    pub fn len(&self) -> usize {
        self.frames.len() - self.sent
    }

    /// Frames left to send as they are on the wire: a super-frame counts as all the frames that it is cut
    /// into.
    pub fn len_on_wire(&self) -> usize {
        self.frames[self.sent..].iter().map(Stored::left).sum()
    }

    /// Whether a link can store no further frame.
    pub fn is_full(&self) -> bool {
        self.has_all_frames() || self.arena.len() - self.tail < self.max_frame
    }

    /// The free part of the arena, for a link to read into.
    pub fn free_space(&mut self) -> &mut [u8] {
        &mut self.arena[self.tail..]
    }

    /// Records `len` bytes at the start of [`FrameBatch::free_space`] as the next frame.
    pub fn push(&mut self, len: usize) {
        self.push_at(self.tail..self.tail + len);
    }

    /// The whole arena, for a link that tracks positions itself; record the frames with
    /// [`FrameBatch::push_at`].
    pub fn arena(&mut self) -> &mut [u8] {
        &mut self.arena
    }

    /// Records those bytes of the arena as the next frame.
    pub fn push_at(&mut self, bytes: Range<usize>) {
        debug_assert!(self.frames.len() < BATCH_FRAMES);
        self.tail = bytes.end;
        self.frames.push(Stored { bytes, vnet: VnetHeader::default(), pieces: 1, cut: 0, is_lost: false });
    }

    /// Whether the batch has as many frames as links may store.
    pub fn has_all_frames(&self) -> bool {
        self.frames.len() >= self.most
    }

    /// Records `len` bytes at the start of [`FrameBatch::free_space`] as the next frame, with the offloads
    /// that `vnet` describes: a partial checksum is completed at once, a super-frame is cut when it is sent.
    ///
    /// # Errors
    /// Why the offloads cannot be applied; the frame is then not in the batch.
    pub fn push_offloaded(&mut self, len: usize, vnet: VnetHeader) -> Result<(), Malformed> {
        let frame = &mut self.arena[self.tail..self.tail + len];
        let pieces = if vnet.gso.is_some() {
            Segments::new(frame, &vnet)?.remaining()
        } else {
            finish_checksum(frame, &vnet)?;
            1
        };
        self.push(len);
        if let Some(stored) = self.frames.last_mut().filter(|_| vnet.gso.is_some()) {
            (stored.vnet, stored.pieces) = (vnet, pieces);
        }
        Ok(())
    }

    /// The whole arena as disjoint slots of [`FrameBatch::max_frame`] bytes each, for calls that fill many at
    /// once. Only for an empty batch; record the frames with [`FrameBatch::push_slot`].
    pub fn slots(&mut self) -> impl ExactSizeIterator<Item = &mut [u8]> {
        debug_assert!(self.frames.is_empty());
        self.arena.chunks_exact_mut(self.max_frame).take(self.most)
    }

    /// Records that slot `index` of [`FrameBatch::slots`] holds a frame of `len` bytes.
    pub fn push_slot(&mut self, index: usize, len: usize) {
        debug_assert!(len <= self.max_frame);
        let start = index * self.max_frame;
        self.push_at(start..start + len);
    }

    /// Counts a frame that the transport truncated, or that Softnet cannot cut. Its bytes are not kept (rule
    /// L3).
    pub fn push_truncated(&mut self) {
        self.truncated += 1;
    }

    /// Returns how many frames were truncated since the last call.
    pub fn take_truncated(&mut self) -> usize {
        std::mem::take(&mut self.truncated)
    }

    /// Drops all frames left to send, because the peer's queue stayed full.
    pub fn discard(&mut self) {
        for frame in self.frames[self.sent..].iter().filter(|frame| !frame.is_lost) {
            self.losses.queue_full.add(frame.bytes.len());
        }
        self.clear();
    }

    /// Drops the oldest frame left to send, or the next piece of it, because the peer refuses it.
    pub fn discard_one(&mut self) {
        if let Some(front) = self.frames.get_mut(self.sent)
            && !std::mem::replace(&mut front.is_lost, true)
        {
            self.losses.refused.add(front.bytes.len());
        }
        self.advance(1);
    }

    /// Counts as refused the frames left to send for whose index `refused` returns true. They stay in the
    /// batch.
    pub fn count_refused(&mut self, refused: impl Fn(usize) -> bool) {
        for (index, frame) in self.frames[self.sent..].iter().enumerate() {
            if refused(index) {
                self.losses.refused.add(frame.bytes.len());
            }
        }
    }

    /// Returns what was lost since the last call.
    pub fn take_losses(&mut self) -> Losses {
        std::mem::take(&mut self.losses)
    }

    /// Keeps the frames for which `keep` returns true, in order.
    pub fn retain(&mut self, mut keep: impl FnMut(&[u8]) -> bool) {
        let arena = &self.arena;
        self.frames.retain(|frame| keep(&arena[frame.bytes.clone()]));
    }

    /// Passes each frame left to send to `each`, which may change its bytes.
    pub fn edit(&mut self, mut each: impl FnMut(&mut [u8])) {
        for frame in &self.frames[self.sent..] {
            each(&mut self.arena[frame.bytes.clone()]);
        }
    }

    /// Removes the frames left to send for whose index `sent` returns true: they have been sent, in any
    /// order.
    pub fn remove_sent(&mut self, sent: impl Fn(usize) -> bool) {
        let mut index = 0;
        let first = std::mem::take(&mut self.sent);
        self.frames.retain(|_| {
            let gone = index < first || sent(index - first);
            index += 1;
            !gone
        });
    }

    /// The frames left to send, oldest first.
    pub fn frames(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.frames[self.sent..].iter().map(|frame| &self.arena[frame.bytes.clone()])
    }

    /// The frames left to send, each with its offload header and with how many frames of it have been sent
    /// already.
    pub(super) fn uncut(&self) -> impl Iterator<Item = (&[u8], &VnetHeader, usize)> {
        self.frames[self.sent..]
            .iter()
            .map(|frame| (&self.arena[frame.bytes.clone()], &frame.vnet, frame.cut))
    }

    /// Marks the `count` oldest frames as sent; a super-frame counts as all the frames that it is cut into.
    pub fn advance(&mut self, mut count: usize) {
        while let Some(front) = self.frames.get_mut(self.sent).filter(|_| count > 0) {
            if count < front.left() {
                front.cut += count;
                return;
            }
            count -= front.left();
            self.sent += 1;
        }
    }
}

impl Frames for FrameBatch {
    fn count(&self) -> usize {
        self.len()
    }

    fn frame(&self, index: usize) -> &[u8] {
        &self.arena[self.frames[self.sent + index].bytes.clone()]
    }
}

impl Stored {
    /// How many of its frames on the wire are left to send.
    fn left(&self) -> usize {
        self.pieces - self.cut
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_keep_their_order_through_retain_and_advance() {
        let mut batch = FrameBatch::new(8);
        for byte in 0..5u8 {
            batch.free_space()[0] = byte;
            batch.push(1);
        }
        batch.retain(|frame| frame[0] != 1);
        batch.advance(1);
        assert_eq!(batch.frames().map(|frame| frame[0]).collect::<Vec<_>>(), [2, 3, 4]);
        batch.advance(3);
        assert!(batch.is_empty());
    }

    #[test]
    fn a_batch_is_full_when_no_frame_of_the_largest_size_fits() {
        let mut batch = FrameBatch::new(100);
        while !batch.is_full() {
            batch.push(100);
        }
        assert_eq!(batch.len(), BATCH_FRAMES);
        batch.clear();
        assert!(!batch.is_full() && batch.is_empty());
    }

    #[test]
    fn links_store_no_more_frames_than_they_may() {
        let mut batch = FrameBatch::new(100);
        batch.set_most(3);
        assert_eq!(batch.slots().len(), 3);
        while !batch.is_full() {
            batch.push(60);
        }
        assert_eq!((batch.len(), batch.bytes_on_wire()), (3, 180));
        batch.clear();
        batch.set_most(0);
        assert_eq!(batch.slots().len(), 1);
        batch.set_most(usize::MAX);
        assert_eq!(batch.slots().len(), BATCH_FRAMES);
    }

    #[test]
    fn slots_are_disjoint_and_recorded_by_index() {
        let mut batch = FrameBatch::new(4);
        for (index, slot) in batch.slots().enumerate() {
            slot.fill(index as u8);
        }
        batch.push_slot(0, 4);
        batch.push_slot(3, 2);
        assert_eq!(batch.frames().collect::<Vec<_>>(), [&[0u8, 0, 0, 0][..], &[3u8, 3][..]]);
    }

    #[test]
    fn frames_leave_in_any_order() {
        let mut batch = FrameBatch::new(8);
        for byte in 0..6u8 {
            batch.free_space()[0] = byte;
            batch.push(1);
        }
        batch.advance(1);
        batch.remove_sent(|index| index == 0 || index == 2);
        assert_eq!(batch.frames().map(|frame| frame[0]).collect::<Vec<_>>(), [2, 4, 5]);
    }
}
