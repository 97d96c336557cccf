//! Tables of the engine: records by task, and endpoints by id.

use std::ops::{Deref, Index, IndexMut};

use super::record::EndpointSlot;
use crate::graph::{EndpointId, TaskId};

/// Values by task. The place is the task's own in the scheduler's bounded table, so that nothing is searched.
pub(crate) struct TaskMap<T> {
    places: Vec<Place<T>>,
}

struct Place<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Default for TaskMap<T> {
    fn default() -> Self {
        Self { places: Vec::new() }
    }
}

impl<T> TaskMap<T> {
    /// Puts a value in. What an earlier task left in the same place is dropped: its task has ended.
    pub(crate) fn insert(&mut self, task: TaskId, value: T) {
        let at = task.slot as usize;
        if at >= self.places.len() {
            self.places.resize_with(at + 1, || Place {
                generation: 0,
                value: None,
            });
        }
        let place = &mut self.places[at];
        place.generation = task.generation;
        place.value = Some(value);
    }

    pub(crate) fn get(&self, task: &TaskId) -> Option<&T> {
        let place = self.places.get(task.slot as usize)?;
        let value = place.value.as_ref();
        value.filter(|_| place.generation == task.generation)
    }

    pub(crate) fn get_mut(&mut self, task: &TaskId) -> Option<&mut T> {
        self.place_mut(task)?.value.as_mut()
    }

    fn place_mut(&mut self, task: &TaskId) -> Option<&mut Place<T>> {
        let place = self.places.get_mut(task.slot as usize);
        place.filter(|place| place.generation == task.generation)
    }

    pub(crate) fn remove(&mut self, task: &TaskId) -> Option<T> {
        self.place_mut(task)?.value.take()
    }

    /// As [`TaskMap::remove`], of a value that is dropped where it is.
    pub(crate) fn discard(&mut self, task: &TaskId) {
        if let Some(place) = self.place_mut(task) {
            place.value = None;
        }
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &T> {
        self.places.iter().filter_map(|place| place.value.as_ref())
    }
}

/// The endpoints by id. What may run where is remembered between submits (`Known`), so every access that could change it counts.
#[derive(Default)]
pub(crate) struct Slots {
    list: Vec<EndpointSlot>,
    version: u64,
}

impl Slots {
    /// Changes whenever something may have changed that decides what an endpoint may run.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn push(&mut self, slot: EndpointSlot) {
        self.version += 1;
        self.list.push(slot);
    }

    pub(crate) fn get_mut(&mut self, index: usize) -> Option<&mut EndpointSlot> {
        self.version += 1;
        self.list.get_mut(index)
    }

    pub(crate) fn iter_mut(&mut self) -> std::slice::IterMut<'_, EndpointSlot> {
        self.version += 1;
        self.list.iter_mut()
    }

    /// For sending it work and taking answers from it: whether it is lost, what is registered there and what it is stays.
    pub(super) fn at_work(&mut self, id: EndpointId) -> Option<&mut EndpointSlot> {
        self.list.get_mut(id.0 as usize)
    }
}

impl Deref for Slots {
    type Target = [EndpointSlot];

    fn deref(&self) -> &[EndpointSlot] {
        &self.list
    }
}

impl Index<usize> for Slots {
    type Output = EndpointSlot;

    fn index(&self, index: usize) -> &EndpointSlot {
        &self.list[index]
    }
}

impl IndexMut<usize> for Slots {
    fn index_mut(&mut self, index: usize) -> &mut EndpointSlot {
        self.version += 1;
        &mut self.list[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_task_in_the_same_place_is_another() {
        let (first, second) = (
            TaskId {
                slot: 3,
                generation: 0,
            },
            TaskId {
                slot: 3,
                generation: 1,
            },
        );
        let mut map = TaskMap::default();
        map.insert(first, 'a');
        assert_eq!((map.get(&first), map.get(&second)), (Some(&'a'), None));
        assert_eq!(map.remove(&second), None);
        assert_eq!(map.remove(&first), Some('a'));
        map.insert(second, 'b');
        assert_eq!((map.get(&first), map.get(&second)), (None, Some(&'b')));
        assert_eq!(map.get_mut(&first), None);
        assert_eq!(map.values().count(), 1);
        map.discard(&first);
        assert_eq!(map.get(&second), Some(&'b'));
        map.discard(&second);
        assert_eq!(map.values().count(), 0);
    }
}
