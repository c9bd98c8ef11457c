//! Lines out of a stream of bytes, in bounded memory.

/// Bytes of the longest line, without its newline.
pub const LONGEST_LINE: usize = 1 << 20;

/// What the stream holds next.
#[derive(Debug, Eq, PartialEq)]
pub enum Line<'a> {
    /// A whole line, without its newline.
    Whole(&'a [u8]),
    /// A line of more than [`LONGEST_LINE`] bytes, whose rest is skipped.
    TooLong,
}

/// Splits what arrives into lines. It holds one line that is not whole yet, or what was received after whole ones;
/// the caller takes all whole lines before it adds more than it read at once.
#[derive(Debug, Default)]
pub struct Lines {
    bytes: Vec<u8>,
    /// Where the next line begins.
    start: usize,
    /// Up to where no newline was found, so that each byte is looked at once.
    searched: usize,
    /// Whether the bytes up to the next newline belong to a line that was too long.
    skipping: bool,
}

impl Lines {
    /// Adds what has arrived.
    pub fn add(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.searched -= self.start;
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Takes the next line. `None` until one is whole or too long.
    pub fn take_line(&mut self) -> Option<Line<'_>> {
        loop {
            let newline = self.bytes.get(self.searched..)?.iter().position(|byte| *byte == b'\n');
            let end = match newline {
                Some(at) => self.searched + at,
                None => {
                    self.searched = self.bytes.len();
                    if self.skipping {
                        self.clear();
                    } else if self.searched - self.start > LONGEST_LINE {
                        self.skipping = true;
                        self.clear();
                        return Some(Line::TooLong);
                    }
                    return None;
                }
            };
            let begin = std::mem::replace(&mut self.start, end + 1);
            self.searched = self.start;
            if std::mem::take(&mut self.skipping) {
                continue;
            }
            if end - begin > LONGEST_LINE {
                return Some(Line::TooLong);
            }
            return self.bytes.get(begin..end).map(Line::Whole);
        }
    }

    /// Whether a line may be whole that nobody has taken.
    pub fn may_have_more(&self) -> bool {
        self.searched < self.bytes.len()
    }

    /// Forgets all bytes, and returns the memory of a long line.
    fn clear(&mut self) {
        *self = Lines { skipping: self.skipping, ..Lines::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes out when `bytes` arrive in pieces of `piece` bytes: the lengths of whole lines, or `None`.
    fn lines(bytes: &[u8], piece: usize) -> Vec<Option<Vec<u8>>> {
        let mut lines = Lines::default();
        let mut found = Vec::new();
        for part in bytes.chunks(piece) {
            lines.add(part);
            while let Some(line) = lines.take_line() {
                found.push(match line {
                    Line::Whole(line) => Some(line.to_vec()),
                    Line::TooLong => None,
                });
            }
            assert!(lines.bytes.len() <= LONGEST_LINE + piece + 1);
        }
        found
    }

    #[test]
    fn pieces_do_not_matter() {
        let expected = [Some(b"one".to_vec()), Some(vec![]), Some(b"two".to_vec())];
        for piece in 1..=12 {
            assert_eq!(lines(b"one\n\ntwo\nrest", piece), expected, "{piece}");
        }
    }

    #[test]
    fn a_line_is_bounded_and_the_next_one_lives() {
        let longest = [&vec![b'x'; LONGEST_LINE][..], b"\nnext\n"].concat();
        let longer = [&vec![b'x'; LONGEST_LINE + 1][..], b"\nnext\n"].concat();
        let endless = [&vec![b'x'; 3 * LONGEST_LINE][..], b"\nnext\n"].concat();
        for piece in [1 << 14, 1 << 16, LONGEST_LINE + 1, 4 * LONGEST_LINE] {
            let next = Some(b"next".to_vec());
            assert_eq!(lines(&longest, piece), [Some(vec![b'x'; LONGEST_LINE]), next.clone()], "{piece}");
            assert_eq!(lines(&longer, piece), [None, next.clone()], "{piece}");
            assert_eq!(lines(&endless, piece), [None, next], "{piece}");
        }
    }
}
