//! A bounded map that forgets what was used least recently.

use super::slots::{Slot, Slots};
use std::collections::HashMap;
use std::hash::Hash;

/// Values by key, in the order of their last use.
#[derive(Debug)]
pub struct Recent<K, V> {
    len_max: usize,
    slots: HashMap<K, Slot>,
    /// The least recently used first.
    order: Slots<(K, V), 1>,
}

impl<K: Copy + Eq + Hash, V> Recent<K, V> {
    /// Remembers so many; 0 counts as 1.
    pub fn new(len_max: usize) -> Recent<K, V> {
        Recent { len_max: len_max.max(1), slots: HashMap::new(), order: Slots::default() }
    }

    /// How many are remembered.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// The value of a key, without using it.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.slots.get(key).and_then(|slot| self.order.get(*slot)).map(|(_, value)| value)
    }

    /// As above, to be changed.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.slots.get(key).and_then(|slot| self.order.get_mut(*slot)).map(|(_, value)| value)
    }

    /// Uses the value of a key, which `make` makes if there is none; then the one that was used least
    /// recently is forgotten, if there are as many as may be. Never `None`.
    pub fn use_or_make(&mut self, key: K, make: impl FnOnce() -> V) -> Option<&mut V> {
        let slot = if let Some(slot) = self.slots.get(&key) {
            *slot
        } else {
            if self.order.len() >= self.len_max {
                self.forget_first();
            }
            let slot = self.order.push(0, (key, make()));
            self.slots.insert(key, slot);
            slot
        };
        self.order.move_to_back(slot, 0);
        self.order.get_mut(slot).map(|(_, value)| value)
    }

    /// Forgets those used least recently for as long as `is_over`.
    pub fn forget_while(&mut self, is_over: impl Fn(&V) -> bool) {
        while self.order.front(0).is_some_and(|(_, (_, value))| is_over(value)) {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        let first = self.order.front(0).map(|(slot, _)| slot);
        if let Some((key, _)) = first.and_then(|slot| self.order.remove(slot)) {
            self.slots.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_is_forgotten() {
        let mut recent = Recent::new(2);
        assert!(recent.is_empty());
        for (key, value) in [(1, "one"), (2, "two"), (1, "another"), (3, "three")] {
            recent.use_or_make(key, || value);
        }
        assert_eq!(
            [1, 2, 3].map(|key| recent.get(&key).copied()),
            [Some("one"), None, Some("three")]
        );
        *recent.get_mut(&1).unwrap() = "changed";
        // Looking is no use.
        recent.use_or_make(4, || "four");
        assert_eq!([1, 3, 4].map(|key| recent.get(&key).is_some()), [false, true, true]);
        assert_eq!((recent.len(), recent.slots.len()), (2, 2));
        recent.forget_while(|value| *value == "three");
        assert_eq!((recent.len(), recent.get(&3)), (1, None));
        recent.forget_while(|_| true);
        assert!(recent.is_empty() && recent.slots.is_empty());
        assert_eq!(Recent::new(0).use_or_make('a', || 1), Some(&mut 1));
    }

    #[test]
    fn a_million_keys_take_no_more_room_than_a_few() {
        let mut recent = Recent::new(1000);
        for key in 0..1_000_000_u32 {
            recent.use_or_make(key, || key);
        }
        assert_eq!(recent.len(), 1000);
        // std's tables grow by powers of two, at 7/8 of their room.
        assert!(recent.slots.capacity() < 4096, "{}", recent.slots.capacity());
    }
}
