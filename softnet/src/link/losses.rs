//! What a link has lost.

/// Frames that a transport did not take, by why (rule L6). A super-frame counts as one, as soon as any of it is lost.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Losses {
    /// Its queue stayed full.
    pub queue_full: Loss,
    /// It refused the frame.
    pub refused: Loss,
}

/// How much was lost.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Loss {
    /// How many frames.
    pub frames: u64,
    /// How many bytes they have together.
    pub bytes: u64,
}

impl Loss {
    /// Adds a frame of `len` bytes.
    pub fn add(&mut self, len: usize) {
        self.frames = self.frames.saturating_add(1);
        self.bytes = self.bytes.saturating_add(len as u64);
    }
}
