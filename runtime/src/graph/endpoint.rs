//! One endpoint as the scheduler sees it: places, and who holds them.

use std::collections::VecDeque;

use super::classes::ClassId;
use super::depth::Depth;
use super::flights::Flights;
use super::id::{EndpointId, TaskId};

/// Position of an endpoint in the scheduler's table.
pub(super) type EndpointIndex = u32;

/// Order in which endpoints with room are taken: places used, then members served so far (so that work rotates), then
/// position.
pub(super) type RoomKey = (u32, u64, EndpointIndex);

/// Whether an endpoint takes members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It does, while it has room.
    Up,
    /// Not now, but it will: what can run nowhere else waits for it.
    Down,
    /// Never again, unless it is declared down or added once more.
    Lost,
}

/// Places of one endpoint.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) id: EndpointId,
    pub(super) index: EndpointIndex,
    /// Places that there are now.
    pub(super) capacity: u32,
    /// Where their number comes from.
    pub(super) depth: Depth,
    /// Members in flight.
    pub(super) in_flight: Flights,
    /// The gang that keeps a place free here until it has all of them.
    pub(super) claim: Option<TaskId>,
    /// Members ever dispatched here.
    pub(super) served: u64,
    pub(super) standing: Standing,
    /// Tasks may be sent here before what they wait for has ended here.
    pub(super) chains: bool,
    /// Blocked tasks for which there was no place when everything that they wait for was in flight here; some are elsewhere now.
    pub(super) followers: VecDeque<TaskId>,
    /// The classes that this endpoint is a member of.
    pub(super) classes: Vec<ClassId>,
    /// How many of them keep their members in order.
    pub(super) ordered: usize,
}

impl Endpoint {
    pub(super) fn new(id: EndpointId, index: EndpointIndex, depth: Depth) -> Self {
        Self {
            id,
            index,
            capacity: depth.places(0, false),
            depth,
            in_flight: Flights::default(),
            claim: None,
            served: 0,
            standing: Standing::Up,
            chains: false,
            followers: VecDeque::new(),
            classes: Vec::new(),
            ordered: 0,
        }
    }

    pub(super) fn is_lost(&self) -> bool {
        self.standing == Standing::Lost
    }

    pub(super) fn used(&self) -> u32 {
        // A dispatch needs a free place, so the count never passes the greatest `capacity`, a u32.
        self.in_flight.len() as u32 + u32::from(self.claim.is_some())
    }

    pub(super) fn has_room(&self) -> bool {
        self.standing == Standing::Up && self.used() < self.capacity
    }

    /// The places that there are now, after a change of what runs or with time.
    pub(super) fn places(&self, now_ns: u64) -> u32 {
        self.depth.places(now_ns, !self.in_flight.is_empty())
    }

    /// How long what runs there has done so; 0 when nothing does.
    pub(super) fn running_ns(&self, now_ns: u64) -> u64 {
        match self.in_flight.is_empty() {
            true => 0,
            false => self.depth.running_ns(now_ns),
        }
    }

    /// Its place in the order of those with room.
    pub(super) fn room_key(&self) -> Option<RoomKey> {
        self.has_room()
            .then_some((self.used(), self.served, self.index))
    }
}
