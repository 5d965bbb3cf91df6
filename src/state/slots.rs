//! Things in numbered slots, each standing in one of a few queues: insertion, removal and moving
//! to the back of a queue take constant time, and only growth takes memory.

/// Where a thing stands. Its number is used again once the thing is removed.
pub type Slot = u32;

/// No slot: one end of a queue.
const NONE: Slot = Slot::MAX;

/// Things of one kind in `QUEUES` queues.
#[derive(Debug)]
pub struct Slots<T, const QUEUES: usize> {
    places: Vec<Place<T>>,
    free: Vec<Slot>,
    ends: [Ends; QUEUES],
}

#[derive(Debug)]
struct Place<T> {
    thing: Option<T>,
    queue: usize,
    before: Slot,
    after: Slot,
}

#[derive(Debug, Clone, Copy)]
struct Ends {
    front: Slot,
    back: Slot,
}

impl<T, const QUEUES: usize> Default for Slots<T, QUEUES> {
    fn default() -> Self {
        let ends = [Ends { front: NONE, back: NONE }; QUEUES];
        Slots { places: Vec::new(), free: Vec::new(), ends }
    }
}

impl<T, const QUEUES: usize> Slots<T, QUEUES> {
    /// How many things there are.
    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a thing at the back of a queue, of which there must be one of that number, as below.
    pub fn push(&mut self, queue: usize, thing: T) -> Slot {
        let place = Place { thing: Some(thing), queue, before: NONE, after: NONE };
        let slot = if let Some(slot) = self.free.pop() {
            self.places[slot as usize] = place;
            slot
        } else {
            // So many things do not fit into memory.
            let slot = Slot::try_from(self.places.len()).unwrap_or(NONE);
            self.places.push(place);
            slot
        };
        self.link(slot);
        slot
    }

    /// The thing there, if there is one.
    pub fn get(&self, slot: Slot) -> Option<&T> {
        self.places.get(slot as usize)?.thing.as_ref()
    }

    /// The thing there, if there is one.
    pub fn get_mut(&mut self, slot: Slot) -> Option<&mut T> {
        self.places.get_mut(slot as usize)?.thing.as_mut()
    }

    /// Takes the thing out of its slot.
    pub fn remove(&mut self, slot: Slot) -> Option<T> {
        let thing = self.places.get_mut(slot as usize)?.thing.take()?;
        self.unlink(slot);
        self.free.push(slot);
        Some(thing)
    }

    /// Moves the thing there, if there is one, to the back of a queue: its own or another.
    pub fn move_to_back(&mut self, slot: Slot, queue: usize) {
        if self.get(slot).is_some() {
            self.unlink(slot);
            self.places[slot as usize].queue = queue;
            self.link(slot);
        }
    }

    /// What stands at the front of a queue.
    pub fn front(&self, queue: usize) -> Option<(Slot, &T)> {
        let slot = self.ends[queue].front;
        self.get(slot).map(|thing| (slot, thing))
    }

    /// What stands in a queue, from its front.
    pub fn iter(&self, queue: usize) -> impl Iterator<Item = &T> {
        let mut next = self.ends[queue].front;
        std::iter::from_fn(move || {
            let place = self.places.get(next as usize)?;
            next = place.after;
            place.thing.as_ref()
        })
    }

    fn link(&mut self, slot: Slot) {
        let ends = &mut self.ends[self.places[slot as usize].queue];
        let before = std::mem::replace(&mut ends.back, slot);
        if before == NONE {
            ends.front = slot;
        } else {
            self.places[before as usize].after = slot;
        }
        let place = &mut self.places[slot as usize];
        (place.before, place.after) = (before, NONE);
    }

    fn unlink(&mut self, slot: Slot) {
        let Place { queue, before, after, .. } = self.places[slot as usize];
        if before == NONE {
            self.ends[queue].front = after;
        } else {
            self.places[before as usize].after = after;
        }
        if after == NONE {
            self.ends[queue].back = before;
        } else {
            self.places[after as usize].before = before;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn slots_are_used_again() {
        let mut slots: Slots<&str, 1> = Slots::default();
        let first = slots.push(0, "first");
        let second = slots.push(0, "second");
        assert_eq!(slots.front(0), Some((first, &"first")));
        assert_eq!(slots.remove(first), Some("first"));
        assert_eq!(slots.remove(first), None);
        assert_eq!(slots.front(0), Some((second, &"second")));
        assert_eq!(slots.push(0, "third"), first);
        assert_eq!(slots.len(), 2);
        assert_eq!(slots.get(7), None);
        slots.move_to_back(7, 0);
    }

    fn without(lists: &mut [Vec<Slot>], slot: Slot) {
        for list in lists {
            list.retain(|other| *other != slot);
        }
    }

    proptest! {
        /// Against plain lists.
        #[test]
        fn behaves_as_plain_lists(steps in proptest::collection::vec((0u8..3, 0usize..2, 0usize..8), 0..200)) {
            let mut slots: Slots<usize, 2> = Slots::default();
            let mut lists: [Vec<Slot>; 2] = Default::default();
            for (step, (kind, queue, which)) in steps.into_iter().enumerate() {
                let all: Vec<Slot> = lists.iter().flatten().copied().collect();
                let chosen = all.get(which % all.len().max(1)).copied();
                match (kind, chosen) {
                    (1, Some(slot)) => {
                        prop_assert!(slots.remove(slot).is_some());
                        without(&mut lists, slot);
                    }
                    (2, Some(slot)) => {
                        slots.move_to_back(slot, queue);
                        without(&mut lists, slot);
                        lists[queue].push(slot);
                    }
                    _ => {
                        let slot = slots.push(queue, step);
                        lists[queue].push(slot);
                    }
                }
                prop_assert_eq!(slots.len(), lists.iter().map(Vec::len).sum::<usize>());
                for (queue, list) in lists.iter().enumerate() {
                    let mut found = Vec::new();
                    let mut next = slots.ends[queue].front;
                    while next != NONE {
                        found.push(next);
                        next = slots.places[next as usize].after;
                    }
                    prop_assert_eq!(&found, list);
                    let things: Vec<_> = found.iter().map(|slot| slots.get(*slot)).collect();
                    prop_assert_eq!(slots.iter(queue).map(Some).collect::<Vec<_>>(), things);
                }
            }
        }
    }
}
