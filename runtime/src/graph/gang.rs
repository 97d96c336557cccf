//! Gangs: all members of a node at once on distinct endpoints.
//!
//! A gang that cannot start waits in the line of its shape (which classes, how many members of each). The head of a line
//! is *active* unless the head of another line that shares an endpoint has waited longer. Active gangs share no endpoint;
//! each claims a place on every endpoint that comes free and helps, when its ticket is the lowest there, and starts when
//! it has all. Claimed places take nothing else, so singles that keep arriving cannot starve it; only active gangs hold
//! places and they never want each other's, so gangs cannot deadlock.

use std::collections::{BTreeMap, VecDeque};

use super::classes::{ClassId, Ticket};
use super::endpoint::EndpointIndex;
use super::error::SubmitError;
use super::id::TaskId;
use super::matching::Matching;
use super::placement::Placement;

/// How many members of which class a gang has, by class, each class once.
pub(super) type Shape = Vec<(ClassId, u32)>;

/// The shape of a gang with these members.
pub(super) fn shape_of(members: &[ClassId]) -> Shape {
    let mut counts = BTreeMap::new();
    for &class in members {
        *counts.entry(class).or_insert(0) += 1;
    }
    counts.into_iter().collect()
}

#[derive(Debug)]
pub(super) struct Gang {
    pub(super) ticket: Ticket,
    pub(super) task: TaskId,
    pub(super) members: Box<[ClassId]>,
}

#[derive(Debug)]
pub(super) struct Line {
    pub(super) shape: Shape,
    /// Oldest first; never empty while the line is kept.
    pub(super) queue: VecDeque<Gang>,
    /// What the head has claimed, while it is active.
    pub(super) claims: Option<Matching>,
}

/// All lines with a waiting gang.
#[derive(Debug, Default)]
pub(super) struct Lines {
    pub(super) table: BTreeMap<u32, Line>,
    pub(super) by_shape: BTreeMap<Shape, u32>,
    next: u32,
    /// A gang came or left since the last `promote`.
    pub(super) changed: bool,
}

impl Lines {
    /// The longest waiting gang of a line.
    pub(super) fn head(&self, line: u32) -> Option<Ticket> {
        Some(self.table.get(&line)?.queue.front()?.ticket)
    }

    /// Whether `task` is an active gang that claimed a place on `endpoint`.
    pub(super) fn claims(&self, task: TaskId, endpoint: EndpointIndex) -> bool {
        let active = self
            .table
            .values()
            .filter(|line| line.queue.front().is_some_and(|g| g.task == task));
        active
            .filter_map(|line| line.claims.as_ref())
            .any(|c| c.seats().any(|seat| seat == endpoint))
    }

    fn push(&mut self, shape: &Shape, gang: Gang) {
        self.changed = true;
        let line = *self.by_shape.entry(shape.clone()).or_insert_with(|| {
            self.next = self.next.wrapping_add(1);
            self.next
        });
        let new = || Line {
            shape: shape.clone(),
            queue: VecDeque::new(),
            claims: None,
        };
        self.table
            .entry(line)
            .or_insert_with(new)
            .queue
            .push_back(gang);
    }

    pub(super) fn drop_if_empty(&mut self, line: u32) {
        if self.table.get(&line).is_some_and(|l| l.queue.is_empty()) {
            if let Some(line) = self.table.remove(&line) {
                self.by_shape.remove(&line.shape);
            }
        }
    }
}

impl Placement {
    /// Starts a gang now or puts it in line, under the returned ticket.
    pub(super) fn start_gang(
        &mut self,
        task: TaskId,
        members: &[ClassId],
        shape: &Shape,
    ) -> Option<Ticket> {
        if self.servable(shape) < members.len() {
            self.decisions.stranded.push(task);
            return None;
        }
        let ticket = self.draw_ticket();
        let members = members.into();
        self.lines.push(
            shape,
            Gang {
                ticket,
                task,
                members,
            },
        );
        self.promote();
        Some(ticket)
    }

    /// Most members of a shape that can be on distinct live endpoints.
    pub(super) fn servable(&self, shape: &Shape) -> usize {
        let members: usize = shape.iter().map(|&(_, count)| count as usize).sum();
        // With as many endpoints in every class as there are members, any choice works out.
        if shape
            .iter()
            .all(|&(class, _)| self.classes.get(class).live >= members)
        {
            return members;
        }
        let mut matching = Matching::new(shape);
        let mut tried: Vec<EndpointIndex> = Vec::new();
        for &(class, _) in shape {
            tried.extend(
                self.classes
                    .get(class)
                    .members
                    .iter()
                    .filter(|&&i| !self.endpoints[i as usize].is_lost()),
            );
        }
        tried.sort_unstable();
        tried.dedup();
        for index in tried {
            if matching.missing() == 0 {
                break;
            }
            matching.add(index, |class, index| {
                self.classes.get(class).contains(index)
            });
        }
        members - matching.missing()
    }

    /// Why a gang can never be placed, if so.
    pub(super) fn lacking_gang(&self, members: usize, shape: &Shape) -> Option<SubmitError> {
        let available = self.servable(shape);
        (available < members).then_some(SubmitError::GangTooLarge { members, available })
    }

    /// Takes a waiting gang out of its line; the places it claimed come free.
    pub(super) fn withdraw_gang(&mut self, ticket: Ticket, shape: &Shape) {
        let Some(&id) = self.lines.by_shape.get(shape) else {
            return;
        };
        if self.lines.head(id) == Some(ticket) {
            self.deactivate(id);
        }
        if let Some(line) = self.lines.table.get_mut(&id) {
            if let Ok(at) = line.queue.binary_search_by_key(&ticket, |gang| gang.ticket) {
                line.queue.remove(at);
            }
        }
        self.lines.changed = true;
        self.lines.drop_if_empty(id);
    }

    /// Activates every line that may be, oldest head first, and lets it claim what is free.
    pub(super) fn promote(&mut self) {
        while std::mem::take(&mut self.lines.changed) {
            let mut heads: Vec<(Ticket, u32)> = self
                .lines
                .table
                .keys()
                .filter_map(|&id| Some((self.lines.head(id)?, id)))
                .collect();
            heads.sort_unstable();
            for at in 0..heads.len() {
                let (_, id) = heads[at];
                let shape = &self.lines.table[&id].shape;
                let blocked = heads[..at]
                    .iter()
                    .any(|(_, older)| self.share(shape, &self.lines.table[older].shape));
                if !blocked && self.lines.table[&id].claims.is_none() {
                    self.activate(id);
                    // A gang that started at once has left its line, so the heads are others now.
                    if self.lines.changed {
                        break;
                    }
                }
            }
        }
    }

    pub(super) fn share(&self, a: &Shape, b: &Shape) -> bool {
        a.iter()
            .any(|&(a, _)| b.iter().any(|&(b, _)| self.classes.intersect(a, b)))
    }
}
