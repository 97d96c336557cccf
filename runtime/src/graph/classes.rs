//! Interned eligible sets. All tasks with one set share a class: its queue, and its endpoints with room in order.

use std::collections::{BTreeSet, VecDeque};

use smallvec::SmallVec;

use super::endpoint::{Endpoint, EndpointIndex, RoomKey};
use super::id::{Eligible, TaskId};
use crate::fast::NumberMap;

/// Classes kept for sets that no unfinished task uses, so that a set that comes back costs nothing.
const IDLE_CLASSES_MAX: usize = 64;

/// Up to this size a class looks at each member; above it keeps those with room in order. Small sets are the many
/// overlapping ones, and every ordered set costs an update at each dispatch to a member.
const SCANNED_MEMBERS_MAX: usize = 8;

/// Position of a class in the table.
pub(super) type ClassId = u32;

/// Position in the one order of all that waits: lower waits longer.
pub(super) type Ticket = u64;

/// Members of one task that wait for places: those that came back, and `next..members`.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) ticket: Ticket,
    pub(super) task: TaskId,
    pub(super) next: u32,
    pub(super) members: u32,
    pub(super) returned: SmallVec<[u32; 1]>,
}

impl Waiting {
    /// The member that is to be seated next; the last one ends the waiting.
    pub(super) fn take(&mut self) -> u32 {
        self.returned.pop().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.next == self.members && self.returned.is_empty()
    }
}

/// One interned set.
#[derive(Debug)]
pub(super) struct Class {
    set: Eligible,
    /// Sorted positions of the set's endpoints, lost ones included.
    pub(super) members: Box<[EndpointIndex]>,
    /// Members that are not lost: up, or down for a while.
    pub(super) live: usize,
    room: Option<BTreeSet<RoomKey>>,
    /// Singles and waves that found no room, oldest first.
    pub(super) queue: VecDeque<Waiting>,
    /// The line of gangs that may claim members of this class now; at most one, as active lines are disjoint.
    pub(super) line: Option<u32>,
    refs: usize,
    listed_idle: bool,
}

impl Class {
    pub(super) fn contains(&self, index: EndpointIndex) -> bool {
        self.members.binary_search(&index).is_ok()
    }

    /// The member with room that is least loaded, then least used, and not in `skip`.
    pub(super) fn best(
        &self,
        endpoints: &[Endpoint],
        skip: impl Fn(&Endpoint) -> bool,
    ) -> Option<EndpointIndex> {
        let accept = |index: &EndpointIndex| !skip(&endpoints[*index as usize]);
        match &self.room {
            Some(room) => room.iter().map(|key| key.2).find(accept),
            None => {
                let members = self.members.iter().filter(|i| accept(i));
                members
                    .filter_map(|&i| endpoints[i as usize].room_key())
                    .min()
                    .map(|key| key.2)
            }
        }
    }

    /// Follows a change of one member's place in the order.
    pub(super) fn rekey(&mut self, before: Option<RoomKey>, after: Option<RoomKey>) {
        if let Some(room) = &mut self.room {
            if let Some(key) = before {
                room.remove(&key);
            }
            room.extend(after);
        }
    }

    /// Puts a member that came back into the queue, where its task's ticket has it.
    pub(super) fn wait_again(&mut self, ticket: Ticket, task: TaskId, member: u32, members: u32) {
        match self.queue.binary_search_by_key(&ticket, |w| w.ticket) {
            Ok(at) => self.queue[at].returned.push(member),
            Err(at) => self.queue.insert(
                at,
                Waiting {
                    ticket,
                    task,
                    next: members,
                    members,
                    returned: [member].into_iter().collect(),
                },
            ),
        }
    }

    /// Takes a waiting task out of the queue.
    pub(super) fn withdraw(&mut self, ticket: Ticket) {
        if let Ok(at) = self.queue.binary_search_by_key(&ticket, |w| w.ticket) {
            self.queue.remove(at);
        }
    }

    /// Compares what is kept with what the endpoints say.
    pub(super) fn check(&self, endpoints: &[Endpoint]) -> Result<(), String> {
        let set = &self.set;
        let members = || self.members.iter().map(|&i| &endpoints[i as usize]);
        if members().filter(|e| !e.is_lost()).count() != self.live {
            return Err(format!("class {set:?} counts {} live members", self.live));
        }
        let keys: BTreeSet<RoomKey> = members().filter_map(Endpoint::room_key).collect();
        if self.room.as_ref().is_some_and(|room| *room != keys) {
            return Err(format!("class {set:?} keeps a wrong order of rooms"));
        }
        if !self.queue.is_empty() && (!keys.is_empty() || self.live == 0) {
            return Err(format!(
                "tasks of class {set:?} wait with room, or with all members lost"
            ));
        }
        let tickets = self.queue.iter().map(|w| w.ticket);
        if tickets.clone().zip(tickets.skip(1)).any(|(a, b)| a >= b) {
            return Err(format!("the queue of class {set:?} is out of order"));
        }
        Ok(())
    }
}

/// All classes.
#[derive(Debug, Default)]
pub(super) struct Classes {
    table: Vec<Option<Class>>,
    by_set: NumberMap<Eligible, ClassId>,
    /// That of the last look-up.
    last: Option<(Eligible, ClassId)>,
    free: Vec<ClassId>,
    /// Classes that became unused, oldest first; some are in use again.
    idle: VecDeque<ClassId>,
}

impl Classes {
    pub(super) fn get(&self, id: ClassId) -> &Class {
        // A ClassId is handed out with a reference, and a class with references is never evicted.
        self.table[id as usize]
            .as_ref()
            .expect("a referenced class is kept")
    }

    pub(super) fn get_mut(&mut self, id: ClassId) -> &mut Class {
        // As in `get`.
        self.table[id as usize]
            .as_mut()
            .expect("a referenced class is kept")
    }

    pub(super) fn len(&self) -> usize {
        self.by_set.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Class> {
        self.table.iter().flatten()
    }

    /// The class of a known set, with one more reference.
    pub(super) fn find(&mut self, set: &Eligible) -> Option<ClassId> {
        let id = match &self.last {
            Some((known, id)) if known.is(set) => *id,
            _ => *self.by_set.get(set)?,
        };
        self.get_mut(id).refs += 1;
        if self.last.as_ref().is_none_or(|(_, last)| *last != id) {
            self.last = Some((set.clone(), id));
        }
        Some(id)
    }

    /// Makes a class for a new set, with one reference. `members` are the sorted positions of its endpoints.
    pub(super) fn add(
        &mut self,
        set: Eligible,
        members: Box<[EndpointIndex]>,
        endpoints: &mut [Endpoint],
    ) -> ClassId {
        let id = self.free.pop().unwrap_or_else(|| {
            self.table.push(None);
            // Classes are fewer than unfinished tasks' members and idle ones together, far below u32::MAX.
            (self.table.len() - 1) as ClassId
        });
        let mut room = (members.len() > SCANNED_MEMBERS_MAX).then(BTreeSet::new);
        let mut live = 0;
        for &index in &members {
            let endpoint = &mut endpoints[index as usize];
            endpoint.classes.push(id);
            live += usize::from(!endpoint.is_lost());
            if let Some(room) = &mut room {
                endpoint.ordered += 1;
                room.extend(endpoint.room_key());
            }
        }
        self.by_set.insert(set.clone(), id);
        self.table[id as usize] = Some(Class {
            set,
            members,
            live,
            room,
            queue: VecDeque::new(),
            line: None,
            refs: 1,
            listed_idle: false,
        });
        id
    }

    /// Gives one reference back. Sets that nobody has used for longest are forgotten when too many are unused.
    pub(super) fn release(&mut self, id: ClassId, endpoints: &mut [Endpoint]) {
        let class = self.get_mut(id);
        class.refs -= 1;
        if class.refs == 0 && !class.listed_idle {
            class.listed_idle = true;
            self.idle.push_back(id);
            self.evict(endpoints);
        }
    }

    /// Whether two classes share an endpoint.
    pub(super) fn intersect(&self, a: ClassId, b: ClassId) -> bool {
        if a == b {
            return true;
        }
        let (a, b) = (self.get(a), self.get(b));
        let (few, many) = if a.members.len() < b.members.len() {
            (a, b)
        } else {
            (b, a)
        };
        few.members.iter().any(|&index| many.contains(index))
    }

    fn evict(&mut self, endpoints: &mut [Endpoint]) {
        while self.idle.len() > IDLE_CLASSES_MAX {
            let Some(id) = self.idle.pop_front() else {
                return;
            };
            let class = self.get_mut(id);
            class.listed_idle = false;
            if class.refs > 0 {
                continue;
            }
            if let Some(class) = self.table[id as usize].take() {
                self.by_set.remove(&class.set);
                for &index in &class.members {
                    let endpoint = &mut endpoints[index as usize];
                    endpoint.classes.retain(|&c| c != id);
                    endpoint.ordered -= usize::from(class.room.is_some());
                }
                self.last = None;
                self.free.push(id);
            }
        }
    }
}
