//! The bounded table of unfinished tasks.

use super::id::TaskId;

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

/// Values under ids that are never used twice. The number of values is bounded; a slot is used again, with the next
/// generation, as soon as its value was taken out.
#[derive(Debug)]
pub(super) struct SlotTable<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    live: usize,
    limit: u32,
}

impl<T> SlotTable<T> {
    pub(super) fn new(limit: u32) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            live: 0,
            limit,
        }
    }

    pub(super) fn limit(&self) -> u32 {
        self.limit
    }

    pub(super) fn len(&self) -> usize {
        self.live
    }

    pub(super) fn is_full(&self) -> bool {
        self.live >= self.limit as usize
    }

    /// Slots ever made: the memory that the table holds.
    pub(super) fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Puts a value in; `None` when the table is full.
    pub(super) fn insert(&mut self, value: T) -> Option<TaskId> {
        if self.is_full() {
            return None;
        }
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                let slot = u32::try_from(self.slots.len()).ok()?;
                self.slots.push(Slot {
                    generation: 0,
                    value: None,
                });
                slot
            }
        };
        let place = &mut self.slots[slot as usize];
        place.value = Some(value);
        self.live += 1;
        Some(TaskId {
            slot,
            generation: place.generation,
        })
    }

    pub(super) fn get(&self, id: TaskId) -> Option<&T> {
        let slot = self.slots.get(id.slot as usize)?;
        slot.value
            .as_ref()
            .filter(|_| slot.generation == id.generation)
    }

    pub(super) fn get_mut(&mut self, id: TaskId) -> Option<&mut T> {
        let slot = self.slots.get_mut(id.slot as usize)?;
        slot.value
            .as_mut()
            .filter(|_| slot.generation == id.generation)
    }

    /// Drops a value where it is; its id is not valid any more. False when there is none.
    pub(super) fn remove(&mut self, id: TaskId) -> bool {
        let slot = self.slots.get_mut(id.slot as usize);
        let Some(slot) = slot.filter(|s| s.generation == id.generation && s.value.is_some()) else {
            return false;
        };
        slot.value = None;
        self.live -= 1;
        // A slot whose generations are used up is left out for good: an id never comes back.
        if let Some(next) = slot.generation.checked_add(1) {
            slot.generation = next;
            self.free.push(id.slot);
        }
        true
    }

    /// All values, by slot.
    pub(super) fn iter(&self) -> impl Iterator<Item = (TaskId, &T)> {
        self.slots.iter().enumerate().filter_map(|(slot, place)| {
            let id = TaskId {
                slot: slot as u32,
                generation: place.generation,
            };
            Some((id, place.value.as_ref()?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_never_names_a_later_value() {
        let mut table = SlotTable::new(1);
        let first = table.insert('a').unwrap();
        assert_eq!(table.insert('b'), None);
        assert!(table.remove(first));
        let second = table.insert('b').unwrap();
        assert_eq!((second.slot, second.generation), (0, 1));
        assert_eq!(table.get(first), None);
        assert!(!table.remove(first));
        assert_eq!(table.get(second), Some(&'b'));
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn a_slot_without_generations_left_is_not_used_again() {
        let mut table = SlotTable::new(1);
        let id = table.insert('a').unwrap();
        table.slots[0].generation = u32::MAX;
        let last = TaskId {
            generation: u32::MAX,
            ..id
        };
        assert!(table.remove(last));
        let next = table.insert('b').unwrap();
        assert_eq!((next.slot, next.generation), (1, 0));
        assert!(table.is_full());
    }
}
