//! The client identifiers (option 61) that a VM uses (C5).

use core::fmt;

/// An identifier as the VM sends it: its type and its value, at most 255 bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClientId {
    bytes: [u8; 255],
    len: u8,
}

impl ClientId {
    /// `None` for an identifier that no option can hold.
    pub(crate) fn new(id: &[u8]) -> Option<Self> {
        let mut bytes = [0; 255];
        bytes.get_mut(..id.len())?.copy_from_slice(id);
        Some(Self { bytes, len: u8::try_from(id.len()).ok()? })
    }

    /// The bytes of the option.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or(&[])
    }
}

impl fmt::Debug for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientId({:02x?})", self.as_bytes())
    }
}

/// The number of an identifier while it is remembered; no two identifiers of a VM ever have the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IdNumber(u32);

/// The identifiers that the VM used last: firmware, installer, system, and one to spare.
#[derive(Debug, Default)]
pub(crate) struct ClientIds {
    slots: [Option<Slot>; ClientIds::CAPACITY],
    /// How many different ones the VM has used.
    added: u32,
    /// Grows with each use; shows which one was used longest ago.
    clock: u64,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    number: IdNumber,
    used: u64,
    id: ClientId,
}

/// What adding an identifier changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Added {
    /// The new one.
    pub(crate) number: IdNumber,
    /// The one that was forgotten for it.
    pub(crate) forgotten: Option<IdNumber>,
}

impl ClientIds {
    /// How many are remembered.
    pub(crate) const CAPACITY: usize = 4;

    /// How many different ones the VM has used so far. One that was forgotten counts again.
    pub(crate) fn added(&self) -> usize {
        usize::try_from(self.added).unwrap_or(usize::MAX)
    }

    /// The identifier of that number, if it is still remembered.
    pub(crate) fn get(&self, number: IdNumber) -> Option<&ClientId> {
        self.slots.iter().flatten().find(|slot| slot.number == number).map(|slot| &slot.id)
    }

    /// The number of an identifier that is remembered.
    pub(crate) fn find(&self, id: &[u8]) -> Option<IdNumber> {
        self.slots.iter().flatten().find(|slot| slot.id.as_bytes() == id).map(|slot| slot.number)
    }

    /// Notes that a remembered identifier was used again.
    pub(crate) fn touch(&mut self, number: IdNumber) {
        self.clock = self.clock.wrapping_add(1);
        if let Some(slot) = self.slots.iter_mut().flatten().find(|slot| slot.number == number) {
            slot.used = self.clock;
        }
    }

    /// Adds an identifier in the place of the one that was used longest ago; `None` if no option can hold it.
    pub(crate) fn add(&mut self, id: &[u8]) -> Option<Added> {
        let id = ClientId::new(id)?;
        self.clock = self.clock.wrapping_add(1);
        self.added = self.added.wrapping_add(1);
        let number = IdNumber(self.added);
        let slot = self.slots.iter_mut().min_by_key(|slot| slot.map_or(0, |slot| slot.used))?;
        let forgotten = slot.replace(Slot { number, used: self.clock, id });
        Some(Added { number, forgotten: forgotten.map(|slot| slot.number) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_ids_are_found_until_others_take_their_place() {
        let mut ids = ClientIds::default();
        assert_eq!((ids.find(b""), ids.added()), (None, 0));
        let mut numbers = Vec::new();
        for id in [&b"one"[..], b"two", &[7; 255], b"on"] {
            let added = ids.add(id).unwrap();
            assert_eq!(added.forgotten, None);
            assert_eq!(ids.find(id), Some(added.number));
            assert_eq!(ids.get(added.number).map(ClientId::as_bytes), Some(id));
            numbers.push(added.number);
        }
        assert_eq!(ids.find(b"thr"), None);
        ids.touch(numbers[0]);
        let fifth = ids.add(b"five").unwrap();
        assert_eq!(fifth.forgotten, Some(numbers[1]), "the one that was used longest ago");
        assert_eq!((ids.find(b"two"), ids.get(numbers[1])), (None, None));
        assert_eq!(ids.find(b"one"), Some(numbers[0]));
        assert_eq!(ids.added(), 5);
        assert!(!numbers.contains(&fifth.number));
        assert_eq!(ids.add(&[0; 256]), None);
        assert_eq!(ids.added(), 5);
        assert_eq!(format!("{:?}", ClientId::new(b"on").unwrap()), "ClientId([6f, 6e])");
    }
}
