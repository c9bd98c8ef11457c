//! Numbers that look random and are the same for the same seed (splitmix64), so that a run can be asked for again.

use lab::wire::Mac;

/// A source of numbers.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// The dice of one seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Dice for a part of the run, which is then the same however often the other parts throw theirs.
    pub fn split(&self, part: u64) -> Self {
        let mut dice = Self(self.0 ^ part.wrapping_mul(0xd1b5_4a32_d192_ed03));
        Self(dice.next())
    }

    /// Any number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not zero.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// True in so many of a hundred throws.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of `choices`, each as often as its weight says; `None` if all weigh nothing.
    pub fn pick<T: Copy>(&mut self, choices: &[(T, u64)]) -> Option<T> {
        let total = choices.iter().map(|(_, weight)| weight).sum::<u64>();
        let mut thrown = self.below(total);
        choices.iter().find_map(|&(choice, weight)| {
            let hit = thrown < weight;
            thrown = thrown.saturating_sub(weight);
            hit.then_some(choice)
        })
    }

    /// So many bytes.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        std::iter::repeat_with(|| self.next().to_be_bytes()).flatten().take(count).collect()
    }

    /// A unicast, locally administered hardware address.
    pub fn mac(&mut self) -> Mac {
        let [_, _, b, c, d, e, f, g] = self.next().to_be_bytes();
        Mac([b & 0xfc | 2, c, d, e, f, g])
    }
}
