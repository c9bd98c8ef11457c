//! Finds the longest prefix of an address in a few loads, however many prefixes there are.
//!
//! A trie with strides of 16 bits, then 8 bits each, over addresses of any length. An entry is either the number of the
//! decision about every address below it or the number of a block that distinguishes them. The caller knows what
//! a decision's number means.

/// No decision. No trie contains it, but the compiler cannot know that.
const NONE: u16 = u16::MAX;

type Block = [u16; 256];

/// More blocks are needed than can be numbered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

/// Decisions by prefix. 128 KiB, and half a KiB for each block.
///
/// Numbers of decisions are below `DECISIONS`; entries from there on, less that, are the number of a block.
pub(crate) struct Trie<const DECISIONS: u16> {
    /// By the first 16 bits of the address.
    root: Box<[u16; 1 << 16]>,
    /// By 8 further bits each.
    blocks: Vec<Block>,
}

impl<const DECISIONS: u16> Trie<DECISIONS> {
    /// One decision about every address.
    pub(crate) fn new(decision: u16) -> Self {
        Self { root: Box::new([decision; 1 << 16]), blocks: Vec::new() }
    }

    /// The decision about an address.
    #[inline(always)]
    pub(crate) fn decide<const N: usize>(&self, address: [u8; N]) -> u16 {
        let Some((high, rest)) = address.split_first_chunk() else { return NONE };
        let mut entry = self.root.get(usize::from(u16::from_be_bytes(*high))).copied().unwrap_or(NONE);
        for byte in rest {
            if entry < DECISIONS {
                return entry;
            }
            let block = self.blocks.get(usize::from(entry.wrapping_sub(DECISIONS)));
            entry = block.and_then(|block| block.get(usize::from(*byte))).copied().unwrap_or(NONE);
        }
        entry
    }

    /// Changes the decision about every address of a prefix. Prefixes are painted over each other, so the longest must
    /// come last.
    pub(crate) fn paint<const N: usize>(
        &mut self,
        address: [u8; N],
        prefix: u8,
        mut change: impl FnMut(u16) -> u16,
    ) -> Result<(), Full> {
        let (high, rest) = address.split_first_chunk().ok_or(Full)?;
        let index = usize::from(u16::from_be_bytes(*high));
        let Some(mut bits) = prefix.checked_sub(17) else {
            let range = below(&mut self.root[..], index, 16_u8.saturating_sub(prefix));
            range.for_each(|entry| change_all::<DECISIONS>(entry, &mut self.blocks, &mut change));
            return Ok(());
        };
        let mut block = open::<DECISIONS>(self.root.get_mut(index), &mut self.blocks)?;
        for byte in rest {
            // What is left of the prefix, less one.
            let Some(left) = bits.checked_sub(8) else {
                let free = 7_u8.saturating_sub(bits);
                return self.paint_block(block, usize::from(*byte), free, &mut change);
            };
            bits = left;
            block = self.open_in(block, usize::from(*byte))?;
        }
        Ok(())
    }

    /// Changes 2^`free` entries of a block around `index`, with all below them.
    fn paint_block(
        &mut self,
        block: usize,
        index: usize,
        free: u8,
        change: &mut impl FnMut(u16) -> u16,
    ) -> Result<(), Full> {
        let mut entries = *self.blocks.get(block).ok_or(Full)?;
        below(&mut entries, index, free)
            .for_each(|entry| change_all::<DECISIONS>(entry, &mut self.blocks, change));
        *self.blocks.get_mut(block).ok_or(Full)? = entries;
        Ok(())
    }

    /// The block after an entry of a block. The entry is written back because the new block may have moved it.
    fn open_in(&mut self, block: usize, index: usize) -> Result<usize, Full> {
        let mut entry = self.blocks.get(block).and_then(|block| block.get(index)).copied();
        let opened = open::<DECISIONS>(entry.as_mut(), &mut self.blocks)?;
        let slot = self.blocks.get_mut(block).and_then(|block| block.get_mut(index)).ok_or(Full)?;
        *slot = entry.ok_or(Full)?;
        Ok(opened)
    }

    /// Frees the unused room for blocks.
    pub(crate) fn shrink_to_fit(&mut self) {
        self.blocks.shrink_to_fit();
    }

    /// How many blocks there are.
    pub(crate) fn block_count(&self) -> usize {
        self.blocks.len()
    }
}

/// The block after an entry; an entry that was a decision becomes a block of that decision.
fn open<const DECISIONS: u16>(entry: Option<&mut u16>, blocks: &mut Vec<Block>) -> Result<usize, Full> {
    let entry = entry.ok_or(Full)?;
    if *entry < DECISIONS {
        let number = blocks.len().saturating_add(usize::from(DECISIONS));
        let number = u16::try_from(number).ok().filter(|number| *number != NONE).ok_or(Full)?;
        blocks.push([*entry; 256]);
        *entry = number;
    }
    Ok(usize::from(entry.saturating_sub(DECISIONS)))
}

/// Changes the decision of an entry, or all those in the blocks after it.
fn change_all<const DECISIONS: u16>(
    entry: &mut u16,
    blocks: &mut [Block],
    change: &mut impl FnMut(u16) -> u16,
) {
    if *entry < DECISIONS {
        *entry = change(*entry);
        return;
    }
    let number = usize::from(entry.saturating_sub(DECISIONS));
    let Some(mut block) = blocks.get(number).copied() else { return };
    block.iter_mut().for_each(|entry| change_all::<DECISIONS>(entry, blocks, change));
    if let Some(slot) = blocks.get_mut(number) {
        *slot = block;
    }
}

/// The 2^`free` entries around `index` that have the upper bits of `index` in common.
fn below(entries: &mut [u16], index: usize, free: u8) -> impl Iterator<Item = &mut u16> {
    let count = 1_usize << free.min(16);
    let start = index & !count.wrapping_sub(1);
    entries.iter_mut().skip(start).take(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Addresses of four and of sixteen bytes are looked up in the same way.
    #[test]
    fn longest_prefix_of_any_length() {
        let mut trie = Trie::<32>::new(0);
        let address = |bytes: &[u8]| {
            let mut address = [0; 16];
            address[..bytes.len()].copy_from_slice(bytes);
            address
        };
        for (bytes, prefix, decision) in [
            (&[0x20, 1][..], 16, 1),
            (&[0x20, 1, 0x0d], 23, 2),
            (&[0x20, 1, 0x0d, 0xb8], 32, 3),
            (&[0x20, 1, 0x0d, 0xb8, 0, 7], 47, 4),
            (&[0x20, 1, 0x0d, 0xb8, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], 128, 5),
        ] {
            trie.paint(address(bytes), prefix, |_| decision).unwrap();
        }
        for (bytes, expected) in [
            (&[0x20, 0][..], 0),
            (&[0x20, 1, 0xff], 1),
            (&[0x20, 1, 0x0c], 2),
            (&[0x20, 1, 0x0d, 0xb7], 2),
            (&[0x20, 1, 0x0d, 0xb8, 0, 5], 3),
            (&[0x20, 1, 0x0d, 0xb8, 0, 6], 4),
            (&[0x20, 1, 0x0d, 0xb8, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 4),
            (&[0x20, 1, 0x0d, 0xb8, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], 5),
        ] {
            assert_eq!(trie.decide(address(bytes)), expected, "{bytes:x?}");
        }
        let mut trie = Trie::<32>::new(9);
        trie.paint([10, 1, 2, 3], 32, |_| 1).unwrap();
        assert_eq!((trie.decide([10, 1, 2, 3]), trie.decide([10, 1, 2, 4])), (1, 9));
    }

    /// A change also reaches addresses that longer prefixes have distinguished.
    #[test]
    fn changes_keep_what_is_told_apart() {
        let mut trie = Trie::<32>::new(1);
        trie.paint([10, 0, 0, 1], 32, |_| 2).unwrap();
        trie.paint([10, 0, 1, 0], 24, |_| 3).unwrap();
        for prefix in [0, 8, 16, 17, 24] {
            trie.paint([10, 0, 0, 0], prefix, |old| old + 4).unwrap();
            assert_eq!(trie.block_count(), 2);
        }
        assert_eq!(trie.decide([10, 0, 0, 1]), 22);
        assert_eq!(trie.decide([10, 0, 0, 2]), 21);
        assert_eq!(trie.decide([10, 0, 1, 9]), 19);
        assert_eq!(trie.decide([10, 1, 0, 0]), 9);
        assert_eq!(trie.decide([11, 0, 0, 0]), 5);
    }
}
