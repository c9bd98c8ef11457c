//! Counts of the frames that a link has lost.

/// Frames that a transport did not accept, by cause (rule L6). A super-frame counts once, as soon as any of
/// it is lost.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Losses {
    /// The queue stayed full.
    pub queue_full: Loss,
    /// The transport refused the frame.
    pub refused: Loss,
}

/// The amount that was lost.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Loss {
    /// The number of frames.
    pub frames: u64,
    /// Their total length in bytes.
    pub bytes: u64,
}

impl Loss {
    /// Adds a frame of `len` bytes.
    pub fn add(&mut self, len: usize) {
        self.frames = self.frames.saturating_add(1);
        self.bytes = self.bytes.saturating_add(len as u64);
    }
}
