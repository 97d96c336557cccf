//! Which member goes to which endpoint, and in which order what found no room waits.
//!
//! Everything that waits draws a ticket; a place that comes free goes to the lowest ticket that can use it, over all
//! classes of its endpoint, so a task that waits for its explicit endpoint blocks nobody else. No step looks at
//! all tasks or all endpoints.

use smallvec::SmallVec;

use super::classes::{ClassId, Classes, Ticket, Waiting};
use super::depth::Depth;
use super::endpoint::{Endpoint, EndpointIndex, Standing};
use super::error::SubmitError;
use super::gang::Lines;
use super::id::{Eligible, EndpointId, TaskId};
use super::task::Work;
use crate::fast::NumberMap;

/// What a step of the placement decided; its owner turns it into actions and empties it.
#[derive(Debug, Default)]
pub(super) struct Decisions {
    /// Members to send, in order.
    pub(super) dispatched: Vec<(TaskId, u32, EndpointIndex)>,
    /// Waiting tasks, all of whose endpoints are lost; they wait no more.
    pub(super) stranded: Vec<TaskId>,
    /// Endpoints where a place came free and was not offered yet.
    pub(super) vacant: Vec<EndpointIndex>,
    /// Endpoints that may have a place left for what follows.
    pub(super) leading: Vec<EndpointIndex>,
}

impl Decisions {
    pub(super) fn is_empty(&self) -> bool {
        self.dispatched.is_empty()
            && self.stranded.is_empty()
            && self.vacant.is_empty()
            && self.leading.is_empty()
    }
}

/// Nothing leans to where one member has run for so long; beyond what answers of a session that come together take.
const LEAN_NS: u64 = 500_000;

/// All endpoints, classes and queues.
#[derive(Debug, Default)]
pub(super) struct Placement {
    pub(super) endpoints: Vec<Endpoint>,
    index: NumberMap<EndpointId, EndpointIndex>,
    pub(super) classes: Classes,
    pub(super) lines: Lines,
    next_ticket: Ticket,
    pub(super) decisions: Decisions,
    now_ns: u64,
    /// How long a member ran, and where, that is about to be vacated.
    ran: Option<(EndpointId, u64)>,
    /// Where the task that is being submitted had best go.
    lean: Option<EndpointId>,
}

impl Placement {
    pub(super) fn advance(&mut self, now_ns: u64) {
        self.now_ns = self.now_ns.max(now_ns);
    }

    pub(super) fn ran(&mut self, endpoint: EndpointId, took_ns: u64) {
        self.ran = Some((endpoint, took_ns));
    }

    pub(super) fn lean(&mut self, endpoint: Option<EndpointId>) {
        self.lean = endpoint;
    }

    /// The endpoint that the task being submitted leans to, if it may run it.
    fn leaning(&mut self, class: ClassId) -> Option<EndpointIndex> {
        let endpoint = self.lean.take()?;
        let index = self.find(endpoint)?;
        // What runs there was taken to be short, and is not.
        if self.endpoints[index as usize].running_ns(self.now_ns) > LEAN_NS {
            return None;
        }
        self.classes.get(class).contains(index).then_some(index)
    }

    /// Position of a known endpoint.
    pub(super) fn find(&self, id: EndpointId) -> Option<EndpointIndex> {
        // Ids that were given out from 0 on are the positions.
        match self.endpoints.get(id.0 as usize) {
            Some(endpoint) if endpoint.id == id => Some(id.0),
            _ => self.index.get(&id).copied(),
        }
    }

    /// Interns a set: the class, with one more reference, that must be released.
    pub(super) fn intern(&mut self, set: &Eligible) -> Result<ClassId, SubmitError> {
        if let Some(class) = self.classes.find(set) {
            return Ok(class);
        }
        let position = |&endpoint| {
            self.find(endpoint)
                .ok_or(SubmitError::NoSuchEndpoint { endpoint })
        };
        let mut members = set
            .ids()
            .iter()
            .map(position)
            .collect::<Result<Box<[_]>, _>>()?;
        members.sort_unstable();
        Ok(self.classes.add(set.clone(), members, &mut self.endpoints))
    }

    /// Gives back the references that a task's work holds.
    pub(super) fn release(&mut self, work: &Work) {
        match work {
            Work::Slots { class, .. } => self.release_class(*class),
            Work::Gang { shape, .. } => shape
                .iter()
                .for_each(|&(class, _)| self.release_class(class)),
            Work::Copy => {}
        }
    }

    /// Gives back one reference on a class.
    pub(super) fn release_class(&mut self, class: ClassId) {
        self.classes.release(class, &mut self.endpoints);
    }

    /// Why no member of a class can ever be placed, if so.
    pub(super) fn lacking_single(&self, class: ClassId) -> Option<SubmitError> {
        let class = self.classes.get(class);
        let eligible = class.members.len();
        (class.live == 0).then_some(SubmitError::AllLost { eligible })
    }

    /// Takes what waits under `ticket` out of its queue or line; places that it claimed come free.
    pub(super) fn withdraw(&mut self, ticket: Ticket, work: &Work) {
        match work {
            Work::Slots { class, .. } => self.classes.get_mut(*class).withdraw(ticket),
            Work::Gang { shape, .. } => self.withdraw_gang(ticket, shape),
            Work::Copy => {}
        }
    }

    /// Adds an endpoint, brings a lost one back, or changes a capacity.
    pub(super) fn add_endpoint(&mut self, id: EndpointId, depth: Depth) {
        let index = match self.find(id) {
            Some(index) => index,
            None => {
                // Endpoint ids are u32, so their number fits one.
                let index = self.endpoints.len() as EndpointIndex;
                self.endpoints.push(Endpoint::new(id, index, depth));
                self.index.insert(id, index);
                index
            }
        };
        self.count_as_live(index);
        let mut claim = None;
        let now_ns = self.now_ns;
        self.update(index, |endpoint| {
            endpoint.standing = Standing::Up;
            endpoint.depth = depth;
            endpoint.depth.begin(now_ns);
            endpoint.capacity = endpoint.places(now_ns);
            // A gang may not start on a place that is no more.
            if endpoint.used() > endpoint.capacity {
                claim = endpoint.claim.take();
            }
        });
        if claim.is_some() {
            self.revoke(index, claim);
        }
        self.decisions.vacant.push(index);
    }

    /// Before an endpoint stops being lost.
    fn count_as_live(&mut self, index: EndpointIndex) {
        if self.endpoints[index as usize].is_lost() {
            for &class in &self.endpoints[index as usize].classes {
                self.classes.get_mut(class).live += 1;
            }
        }
    }

    /// Takes nothing more to an endpoint until it is added again. What is in flight there stays until it is reported.
    pub(super) fn pause_endpoint(&mut self, index: EndpointIndex) {
        self.count_as_live(index);
        let mut claim = None;
        self.update(index, |endpoint| {
            endpoint.standing = Standing::Down;
            claim = endpoint.claim.take();
        });
        self.revoke(index, claim);
    }

    /// Takes an endpoint out for good and returns what was in flight there. Waiting tasks that are left without an
    /// endpoint become stranded.
    pub(super) fn lose_endpoint(&mut self, index: EndpointIndex) -> Vec<(TaskId, u32)> {
        if self.endpoints[index as usize].is_lost() {
            return Vec::new();
        }
        let mut in_flight = Default::default();
        let mut claim = None;
        self.update(index, |endpoint| {
            endpoint.standing = Standing::Lost;
            in_flight = std::mem::take(&mut endpoint.in_flight);
            claim = endpoint.claim.take();
        });
        for &class in &self.endpoints[index as usize].classes {
            let class = self.classes.get_mut(class);
            class.live -= 1;
            if class.live == 0 {
                self.decisions
                    .stranded
                    .extend(class.queue.drain(..).map(|w| w.task));
            }
        }
        self.revoke(index, claim);
        // Nothing is placed there; what followed something there is forgotten.
        self.decisions.vacant.push(index);
        in_flight.into_iter().collect()
    }

    /// Places `members` members, at most one a free place; true when some are left and wait under `ticket`, the newest.
    /// `prefer` is taken for the first while it has room.
    pub(super) fn start(
        &mut self,
        task: TaskId,
        ticket: Ticket,
        class: ClassId,
        members: u32,
        prefer: Option<EndpointIndex>,
    ) -> bool {
        let mut next = 0;
        let leaning = if prefer.is_none() && members == 1 {
            self.leaning(class)
        } else {
            None
        };
        let mut wanted = prefer
            .or(leaning)
            .filter(|&index| self.still_has_room(index));
        while next < members {
            let found = wanted.take().or_else(|| self.least_loaded(class));
            let Some(index) = found else {
                break;
            };
            self.seat(index, task, next);
            next += 1;
        }
        if next == members {
            return false;
        }
        let class = self.classes.get_mut(class);
        if class.live == 0 {
            self.decisions.stranded.push(task);
            return false;
        }
        class.queue.push_back(Waiting {
            ticket,
            task,
            next,
            members,
            returned: SmallVec::new(),
        });
        true
    }

    /// Places a member that came back, or lets it wait under its task's ticket; true when it waits.
    pub(super) fn start_again(
        &mut self,
        task: TaskId,
        ticket: Ticket,
        class: ClassId,
        (member, members): (u32, u32),
    ) -> bool {
        if let Some(index) = self.least_loaded(class) {
            self.seat(index, task, member);
            return false;
        }
        let class = self.classes.get_mut(class);
        if class.live == 0 {
            self.decisions.stranded.push(task);
            return false;
        }
        class.wait_again(ticket, task, member, members);
        true
    }

    /// Frees the place of a dispatched member, without offering it yet; `None` when the member is not in flight there.
    pub(super) fn vacate(&mut self, endpoint: EndpointId, task: TaskId, member: u32) -> Option<()> {
        let ran = self.ran.take().filter(|(at, _)| *at == endpoint);
        let took_ns = ran.map(|(_, took_ns)| took_ns);
        let index = self.find(endpoint)?;
        if !self.endpoints[index as usize]
            .in_flight
            .contains(&(task, member))
        {
            return None;
        }
        let now_ns = self.now_ns;
        self.update(index, |endpoint| {
            endpoint.in_flight.remove(&(task, member));
            endpoint.depth.end(now_ns, took_ns);
            endpoint.capacity = endpoint.places(now_ns);
        });
        self.decisions.vacant.push(index);
        Some(())
    }

    /// No place came free, no gang came or left, and nothing was decided since the last look.
    pub(super) fn is_settled(&self) -> bool {
        self.decisions.is_empty() && !self.lines.changed
    }

    /// Offers every place that came free to what waits for it.
    pub(super) fn refill(&mut self) {
        while let Some(index) = self.decisions.vacant.pop() {
            self.fill(index);
            if !self.endpoints[index as usize].followers.is_empty() {
                self.decisions.leading.push(index);
            }
        }
        self.promote();
    }

    pub(super) fn draw_ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        self.next_ticket
    }

    /// Changes an endpoint and follows the change in the order of every class it is in.
    pub(super) fn update(&mut self, index: EndpointIndex, change: impl FnOnce(&mut Endpoint)) {
        let endpoint = &mut self.endpoints[index as usize];
        if endpoint.ordered == 0 {
            return change(endpoint);
        }
        let before = endpoint.room_key();
        change(endpoint);
        let after = endpoint.room_key();
        if before != after {
            for &class in &endpoint.classes {
                self.classes.get_mut(class).rekey(before, after);
            }
        }
    }

    /// Puts a member on an endpoint, using the place that its gang claimed there, if any.
    pub(super) fn seat(&mut self, index: EndpointIndex, task: TaskId, member: u32) {
        let now_ns = self.now_ns;
        self.update(index, |endpoint| {
            if endpoint.claim == Some(task) {
                endpoint.claim = None;
            }
            if endpoint.in_flight.is_empty() {
                endpoint.depth.begin(now_ns);
            }
            endpoint.in_flight.insert((task, member));
            endpoint.served += 1;
        });
        self.decisions.dispatched.push((task, member, index));
    }

    /// The member of a class with room that is least loaded.
    fn least_loaded(&mut self, class: ClassId) -> Option<EndpointIndex> {
        loop {
            let index = self.classes.get(class).best(&self.endpoints, |_| false)?;
            if self.still_has_room(index) {
                return Some(index);
            }
        }
    }

    /// Whether an endpoint has room now. Its places become fewer with time while a member runs there, which is looked at only
    /// when one is about to be taken.
    pub(super) fn still_has_room(&mut self, index: EndpointIndex) -> bool {
        let endpoint = &self.endpoints[index as usize];
        let capacity = endpoint.places(self.now_ns).min(endpoint.capacity);
        if capacity < endpoint.capacity {
            self.update(index, |endpoint| endpoint.capacity = capacity);
        }
        self.endpoints[index as usize].has_room()
    }

    /// Gives the free places of one endpoint to the lowest tickets that can use them.
    fn fill(&mut self, index: EndpointIndex) {
        let mut refused = false;
        while self.still_has_room(index) {
            let endpoint = &self.endpoints[index as usize];
            let mut oldest: Option<(Ticket, ClassId, Option<u32>)> = None;
            for &id in &endpoint.classes {
                let class = self.classes.get(id);
                if class.queue.is_empty() && class.line.is_none() {
                    continue;
                }
                let waiting = class.queue.front().map(|w| (w.ticket, id, None));
                let line = class.line.filter(|_| endpoint.claim.is_none() && !refused);
                let gang = line.and_then(|line| Some((self.lines.head(line)?, id, Some(line))));
                oldest = [oldest, waiting, gang].into_iter().flatten().min();
            }
            match oldest {
                None => break,
                // A place that does not help the gang now will not help it later either.
                Some((_, _, Some(line))) => refused = !self.offer(line, index),
                Some((_, class, None)) => self.seat_oldest(class, index),
            }
        }
    }

    fn seat_oldest(&mut self, class: ClassId, index: EndpointIndex) {
        let queue = &mut self.classes.get_mut(class).queue;
        let Some(waiting) = queue.front_mut() else {
            return;
        };
        let (task, member) = (waiting.task, waiting.take());
        if waiting.is_empty() {
            queue.pop_front();
        }
        self.seat(index, task, member);
    }

    /// Compares everything that is kept twice.
    pub(super) fn check(&self) -> Result<(), String> {
        for endpoint in &self.endpoints {
            let claimed = endpoint
                .claim
                .is_some_and(|task| !self.lines.claims(task, endpoint.index));
            if claimed || (endpoint.is_lost() && endpoint.used() > 0) {
                return Err(format!("{} holds a place for nobody", endpoint.id));
            }
        }
        self.classes
            .iter()
            .try_for_each(|class| class.check(&self.endpoints))?;
        self.check_lines()
    }
}
