//! A batch of frames in one arena, allocated once.

use std::ops::Range;

/// The most frames in a batch: one turn's work for one direction (rule R2).
pub const BATCH_FRAMES: usize = 64;

/// Up to [`BATCH_FRAMES`] frames of one direction, in order.
///
/// Frames lie in one arena that is allocated once; small frames pack tightly, so the arena is also large enough for a
/// few super-frames. Removing frames moves indices, never bytes.
#[derive(Debug)]
pub struct FrameBatch {
    arena: Box<[u8]>,
    /// Where the kept frames lie in the arena, oldest first. Never grows beyond its first capacity.
    frames: Vec<Range<usize>>,
    /// Frames before this index have been sent.
    sent: usize,
    /// First free byte of the arena.
    tail: usize,
    /// The longest frame that a link may store.
    max_frame: usize,
    /// Frames that the transport cut, not yet asked for.
    truncated: usize,
}

impl FrameBatch {
    /// A batch whose slots hold frames of up to `max_frame` bytes.
    pub fn new(max_frame: usize) -> Self {
        FrameBatch {
            arena: vec![0; BATCH_FRAMES * max_frame].into_boxed_slice(),
            frames: Vec::with_capacity(BATCH_FRAMES),
            sent: 0,
            tail: 0,
            max_frame,
            truncated: 0,
        }
    }

    /// Forgets all frames.
    pub fn clear(&mut self) {
        self.frames.clear();
        self.sent = 0;
        self.tail = 0;
    }

    /// The longest frame in bytes that a link may store.
    pub fn max_frame(&self) -> usize {
        self.max_frame
    }

    /// Whether nothing is left to send.
    pub fn is_empty(&self) -> bool {
        self.sent == self.frames.len()
    }

    /// Frames left to send.
    pub fn len(&self) -> usize {
        self.frames.len() - self.sent
    }

    /// Whether a link can store no further frame.
    pub fn is_full(&self) -> bool {
        self.frames.len() == BATCH_FRAMES || self.arena.len() - self.tail < self.max_frame
    }

    /// The free rest of the arena, for a link to read into.
    pub fn free_space(&mut self) -> &mut [u8] {
        &mut self.arena[self.tail..]
    }

    /// Records `len` bytes at the start of [`FrameBatch::free_space`] as the next frame.
    pub fn push(&mut self, len: usize) {
        self.push_at(0, len);
    }

    /// Records the frame of `len` bytes that begins `skip` bytes into [`FrameBatch::free_space`]; what lies before it
    /// is given up.
    pub fn push_at(&mut self, skip: usize, len: usize) {
        debug_assert!(self.frames.len() < BATCH_FRAMES);
        let start = self.tail + skip;
        self.frames.push(start..start + len);
        self.tail = start + len;
    }

    /// Disjoint slots of [`FrameBatch::max_frame`] bytes each over the whole arena, for calls that fill many at once.
    /// Only for an empty batch; follow with [`FrameBatch::push_slot`].
    pub fn slots(&mut self) -> impl Iterator<Item = &mut [u8]> {
        debug_assert!(self.frames.is_empty());
        self.arena.chunks_exact_mut(self.max_frame)
    }

    /// Records that slot `index` of [`FrameBatch::slots`] holds a frame of `len` bytes.
    pub fn push_slot(&mut self, index: usize, len: usize) {
        debug_assert!(len <= self.max_frame && self.frames.len() < BATCH_FRAMES);
        let start = index * self.max_frame;
        self.frames.push(start..start + len);
        self.tail = start + self.max_frame;
    }

    /// Records that the transport cut a frame. Its bytes are not kept (rule L3).
    pub fn push_truncated(&mut self) {
        self.truncated += 1;
    }

    /// Frames that the transport cut since this was last asked.
    pub fn take_truncated(&mut self) -> usize {
        std::mem::take(&mut self.truncated)
    }

    /// Keeps the frames for which `keep` says so, in order.
    pub fn retain(&mut self, mut keep: impl FnMut(&[u8]) -> bool) {
        let arena = &self.arena;
        self.frames.retain(|frame| keep(&arena[frame.clone()]));
    }

    /// The frames left to send, oldest first.
    pub fn frames(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.frames[self.sent..].iter().map(|frame| &self.arena[frame.clone()])
    }

    /// Marks the `count` oldest frames as sent.
    pub fn advance(&mut self, count: usize) {
        self.sent = self.frames.len().min(self.sent + count);
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
    fn slots_are_disjoint_and_recorded_by_index() {
        let mut batch = FrameBatch::new(4);
        for (index, slot) in batch.slots().enumerate() {
            slot.fill(index as u8);
        }
        batch.push_slot(0, 4);
        batch.push_slot(3, 2);
        assert_eq!(batch.frames().collect::<Vec<_>>(), [&[0u8, 0, 0, 0][..], &[3u8, 3][..]]);
    }
}
