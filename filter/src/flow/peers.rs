//! The peers that have flows, in a fixed amount of memory: each with its newest flow and how many half-open ones it began (F4).

use core::net::Ipv4Addr;

/// No place.
pub(crate) const NIL: u16 = u16::MAX;

/// Multiply-shift hashing (Dietzfelbinger and others, 1997).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hash {
    multiplier: u64,
}

impl Hash {
    /// The buckets of a hash table.
    pub(crate) const BUCKETS: usize = 1 << Self::BITS;
    const BITS: u32 = 14;

    /// With a random `seed` nobody can choose ports that collide.
    pub(crate) fn new(seed: u64) -> Self {
        // Any odd number will do.
        Self { multiplier: seed | 1 }
    }

    #[inline(always)]
    pub(crate) fn bucket(self, bits: u64) -> usize {
        (bits.wrapping_mul(self.multiplier) >> (u64::BITS - Self::BITS)) as usize
    }
}

/// A peer with flows, or a place for one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer {
    address: Ipv4Addr,
    /// Its newest flow.
    pub(crate) newest: u16,
    /// The half-open flows that it began.
    pub(crate) half_open: u16,
    /// The next of the bucket, or of the free places.
    next: u16,
}

/// The peers. No method allocates after [`Peers::new`].
pub(crate) struct Peers {
    hash: Hash,
    buckets: Box<[u16; Hash::BUCKETS]>,
    places: Vec<Peer>,
    most: usize,
    free: u16,
}

impl Peers {
    /// No peers, and room for `most`.
    pub(crate) fn new(hash: Hash, most: usize) -> Self {
        let buckets = Box::new([NIL; Hash::BUCKETS]);
        Self { hash, buckets, places: Vec::with_capacity(most), most, free: NIL }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.buckets.fill(NIL);
        self.places.clear();
        self.free = NIL;
    }

    pub(crate) fn get(&self, at: u16) -> Option<&Peer> {
        self.places.get(usize::from(at))
    }

    pub(crate) fn get_mut(&mut self, at: u16) -> Option<&mut Peer> {
        self.places.get_mut(usize::from(at))
    }

    pub(crate) fn find(&self, address: Ipv4Addr) -> Option<&Peer> {
        self.get(self.place_of(address)?)
    }

    fn bucket(&self, address: Ipv4Addr) -> usize {
        self.hash.bucket(address.to_bits().into())
    }

    fn place_of(&self, address: Ipv4Addr) -> Option<u16> {
        let mut at = *self.buckets.get(self.bucket(address))?;
        loop {
            let peer = self.get(at)?;
            if peer.address == address {
                return Some(at);
            }
            at = peer.next;
        }
    }

    /// The place of a peer, which is added if it is new. `None` if there is no room.
    pub(crate) fn find_or_add(&mut self, address: Ipv4Addr) -> Option<u16> {
        if let Some(at) = self.place_of(address) {
            return Some(at);
        }
        let bucket = self.bucket(address);
        let next = self.buckets.get(bucket).copied().unwrap_or(NIL);
        let peer = Peer { address, newest: NIL, half_open: 0, next };
        let mut at = self.free;
        if let Some(place) = self.places.get_mut(usize::from(at)) {
            self.free = place.next;
            *place = peer;
        } else {
            at = u16::try_from(self.places.len()).ok().filter(|_| self.places.len() < self.most)?;
            self.places.push(peer);
        }
        *self.buckets.get_mut(bucket)? = at;
        Some(at)
    }

    /// Takes out a peer that has no flows any more.
    pub(crate) fn remove(&mut self, at: u16) {
        let Some(peer) = self.get(at).copied() else { return };
        let bucket = self.bucket(peer.address);
        let Some(first) = self.buckets.get_mut(bucket) else { return };
        if *first == at {
            *first = peer.next;
        } else {
            let mut before = *first;
            while let Some(other) = self.places.get_mut(usize::from(before)) {
                if other.next == at {
                    other.next = peer.next;
                    break;
                }
                before = other.next;
            }
        }
        if let Some(place) = self.places.get_mut(usize::from(at)) {
            place.next = self.free;
        }
        self.free = at;
    }
}
