//! The places that active gangs keep free until they have all of them.

use super::classes::ClassId;
use super::endpoint::EndpointIndex;
use super::gang::Line;
use super::id::TaskId;
use super::matching::Matching;
use super::placement::Placement;

impl Placement {
    /// Offers a free place to the active head of a line; says whether it took it.
    pub(super) fn offer(&mut self, id: u32, index: EndpointIndex) -> bool {
        let Some(line) = self.lines.table.get_mut(&id) else {
            return false;
        };
        let (Some(claims), Some(head)) = (&mut line.claims, line.queue.front()) else {
            return false;
        };
        let classes = &self.classes;
        if !claims.add(index, |class, index| classes.get(class).contains(index)) {
            return false;
        }
        let (task, full) = (head.task, claims.missing() == 0);
        self.update(index, |endpoint| endpoint.claim = Some(task));
        if full {
            self.launch(id);
        }
        true
    }

    pub(super) fn activate(&mut self, id: u32) {
        let Some(line) = self.lines.table.get_mut(&id) else {
            return;
        };
        line.claims = Some(Matching::new(&line.shape));
        for &(class, _) in &line.shape {
            self.classes.get_mut(class).line = Some(id);
        }
        self.claim_free(id);
    }

    /// Claims free places for an active head. One endpoint a class tells whether more of that class would help.
    fn claim_free(&mut self, id: u32) {
        let classes: Vec<ClassId> = self.lines.table[&id]
            .shape
            .iter()
            .map(|&(class, _)| class)
            .collect();
        for class in classes {
            while self
                .lines
                .table
                .get(&id)
                .is_some_and(|line| line.claims.is_some())
            {
                let free = self
                    .classes
                    .get(class)
                    .best(&self.endpoints, |e| e.claim.is_some());
                if !free.is_some_and(|index| self.offer(id, index)) {
                    break;
                }
            }
        }
    }

    /// Dispatches the head, which has all its places.
    fn launch(&mut self, id: u32) {
        let Some(line) = self.lines.table.get_mut(&id) else {
            return;
        };
        let (Some(mut claims), Some(gang)) = (line.claims.take(), line.queue.pop_front()) else {
            return;
        };
        for &(class, _) in &line.shape {
            self.classes.get_mut(class).line = None;
        }
        self.lines.changed = true;
        self.lines.drop_if_empty(id);
        for (member, &class) in (0u32..).zip(&gang.members) {
            if let Some(index) = claims.take(class) {
                self.seat(index, gang.task, member);
            }
        }
    }

    /// Takes the active state from a line; the places its head claimed come free.
    pub(super) fn deactivate(&mut self, id: u32) {
        let Some(line) = self.lines.table.get_mut(&id) else {
            return;
        };
        let Some(claims) = line.claims.take() else {
            return;
        };
        for &(class, _) in &line.shape {
            self.classes.get_mut(class).line = None;
        }
        for index in claims.seats() {
            // The seat on a lost endpoint was given up when that was lost.
            self.update(index, |endpoint| endpoint.claim = None);
            self.decisions.vacant.push(index);
        }
    }

    /// The claim on an endpoint is gone, or all of the endpoint: the gang claims elsewhere, and gangs that can never be
    /// whole again are stranded.
    pub(super) fn revoke(&mut self, index: EndpointIndex, claim: Option<TaskId>) {
        let lines = self.lines.table.iter();
        let concerned = lines.filter(|(_, line)| {
            line.shape
                .iter()
                .any(|&(c, _)| self.classes.get(c).contains(index))
        });
        let concerned: Vec<u32> = concerned.map(|(&id, _)| id).collect();
        for id in concerned {
            let Some(line) = self.lines.table.get_mut(&id) else {
                continue;
            };
            let claimed = claim.is_some()
                && line
                    .claims
                    .as_mut()
                    .is_some_and(|claims| claims.remove(index));
            let shape = line.shape.clone();
            let members: usize = shape.iter().map(|&(_, count)| count as usize).sum();
            if self.servable(&shape) < members {
                self.deactivate(id);
                if let Some(line) = self.lines.table.get_mut(&id) {
                    self.decisions
                        .stranded
                        .extend(line.queue.drain(..).map(|gang| gang.task));
                }
                self.lines.changed = true;
                self.lines.drop_if_empty(id);
            } else if claimed {
                self.claim_free(id);
            }
        }
    }

    /// Checks that lines, claims and classes agree and that no active lines share an endpoint.
    pub(super) fn check_lines(&self) -> Result<(), String> {
        let mut active: Vec<&Line> = Vec::new();
        for (&id, line) in &self.lines.table {
            if line.queue.is_empty() || self.lines.by_shape.get(&line.shape) != Some(&id) {
                return Err(format!("line {id} is empty or not found by its shape"));
            }
            let Some(claims) = &line.claims else {
                continue;
            };
            if active
                .iter()
                .any(|other| self.share(&line.shape, &other.shape))
            {
                return Err(format!(
                    "line {id} is active beside one that shares an endpoint"
                ));
            }
            active.push(line);
            let held = |i: EndpointIndex| {
                self.endpoints[i as usize].claim == line.queue.front().map(|g| g.task)
            };
            if claims.missing() == 0 || !claims.seats().all(held) {
                return Err(format!(
                    "the head of line {id} waits with all its places, or without one it claimed"
                ));
            }
            for &(class, _) in &line.shape {
                let free = self
                    .classes
                    .get(class)
                    .best(&self.endpoints, |e| e.claim.is_some());
                let helps = |i| {
                    claims
                        .clone()
                        .add(i, |c, e| self.classes.get(c).contains(e))
                };
                if self.classes.get(class).line != Some(id) || free.is_some_and(helps) {
                    return Err(format!(
                        "the head of line {id} leaves a free place unclaimed"
                    ));
                }
            }
        }
        let oldest = self
            .lines
            .table
            .keys()
            .min_by_key(|&&id| self.lines.head(id));
        if oldest.is_some_and(|id| self.lines.table[id].claims.is_none()) {
            return Err("the longest waiting gang is not active".to_owned());
        }
        Ok(())
    }
}
