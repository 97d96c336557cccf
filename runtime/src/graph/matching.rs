//! Which endpoint serves which member of a gang: a bipartite matching that grows by one endpoint at a time.

use super::classes::ClassId;
use super::endpoint::EndpointIndex;

/// Members of a gang that share an eligible set, and the endpoints kept for them.
#[derive(Clone, Debug)]
struct Group {
    class: ClassId,
    needed: usize,
    seats: Vec<EndpointIndex>,
}

/// A partial assignment of distinct endpoints to the members of a gang.
///
/// The sets of endpoints that can be assigned together form a matroid. So taking whatever endpoint comes free, if it
/// makes the assignment larger, always ends in a full one when there is a full one, and an endpoint that once did not
/// make it larger never will; no claim has to be given back for another.
#[derive(Clone, Debug)]
pub(super) struct Matching {
    groups: Vec<Group>,
    missing: usize,
}

impl Matching {
    /// An empty assignment for so many members of each class; a class occurs once.
    pub(super) fn new(shape: &[(ClassId, u32)]) -> Self {
        let group = |&(class, count): &(ClassId, u32)| Group {
            class,
            needed: count as usize,
            seats: Vec::with_capacity(count as usize),
        };
        Self {
            groups: shape.iter().map(group).collect(),
            missing: shape.iter().map(|&(_, count)| count as usize).sum(),
        }
    }

    /// Members without an endpoint.
    pub(super) fn missing(&self) -> usize {
        self.missing
    }

    /// The endpoints in use.
    pub(super) fn seats(&self) -> impl Iterator<Item = EndpointIndex> + '_ {
        self.groups
            .iter()
            .flat_map(|group| group.seats.iter().copied())
    }

    /// Uses `endpoint`, moving others between groups if that makes the assignment larger; says whether it did.
    /// `contains` says whether an endpoint is in a class.
    pub(super) fn add(
        &mut self,
        endpoint: EndpointIndex,
        contains: impl Fn(ClassId, EndpointIndex) -> bool,
    ) -> bool {
        // Breadth first from the new endpoint: a group that could use it, then groups that could use an endpoint which
        // that group would give up. `from[g]` is how `g` was reached: from which group, giving up which seat.
        let mut from: Vec<Option<Option<(usize, usize)>>> = vec![None; self.groups.len()];
        let mut reached = Vec::new();
        for (g, group) in self.groups.iter().enumerate() {
            if contains(group.class, endpoint) {
                from[g] = Some(None);
                reached.push(g);
            }
        }
        let mut next = 0;
        while let Some(&g) = reached.get(next) {
            next += 1;
            if self.groups[g].seats.len() < self.groups[g].needed {
                self.shift(endpoint, g, &from);
                return true;
            }
            for (seat, &taken) in self.groups[g].seats.iter().enumerate() {
                for (h, group) in self.groups.iter().enumerate() {
                    if from[h].is_none() && contains(group.class, taken) {
                        from[h] = Some(Some((g, seat)));
                        reached.push(h);
                    }
                }
            }
        }
        false
    }

    /// Gives up `endpoint`; says whether it was in use.
    pub(super) fn remove(&mut self, endpoint: EndpointIndex) -> bool {
        for group in &mut self.groups {
            if let Some(at) = group.seats.iter().position(|&e| e == endpoint) {
                group.seats.swap_remove(at);
                self.missing += 1;
                return true;
            }
        }
        false
    }

    /// Takes one endpoint of a class out of a full assignment.
    pub(super) fn take(&mut self, class: ClassId) -> Option<EndpointIndex> {
        let group = self.groups.iter_mut().find(|group| group.class == class)?;
        group.seats.pop()
    }

    /// Moves endpoints along the path that ends in `last`, which has a seat to fill.
    fn shift(
        &mut self,
        endpoint: EndpointIndex,
        last: usize,
        from: &[Option<Option<(usize, usize)>>],
    ) {
        let mut g = last;
        let mut open = None;
        while let Some(Some((before, seat))) = from[g] {
            let moved = self.groups[before].seats[seat];
            self.fill(g, open, moved);
            open = Some(seat);
            g = before;
        }
        self.fill(g, open, endpoint);
        self.missing -= 1;
    }

    fn fill(&mut self, group: usize, open: Option<usize>, endpoint: EndpointIndex) {
        let seats = &mut self.groups[group].seats;
        match open {
            Some(seat) => seats[seat] = endpoint,
            None => seats.push(endpoint),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Most members that can be served, by trying everything.
    fn best(members: &[u32], free: u32) -> usize {
        let Some((&set, rest)) = members.split_first() else {
            return 0;
        };
        let with = (0..8)
            .filter(|e| set & free & (1 << e) != 0)
            .map(|e| 1 + best(rest, free & !(1 << e)));
        with.chain([best(rest, free)]).max().unwrap_or(0)
    }

    proptest! {
        /// Whatever the order in which endpoints come free, the assignment is as large as it can be.
        #[test]
        fn growing_by_one_endpoint_reaches_the_largest_assignment(
            groups in prop::collection::vec((1u32..256, 1u32..3), 1..4),
            order in Just((0u32..8).collect::<Vec<_>>()).prop_shuffle(),
            dropped in prop::option::of(0u32..8),
        ) {
            let shape: Vec<_> = groups.iter().enumerate().map(|(g, &(_, n))| (g as u32, n)).collect();
            let contains = |class: ClassId, e: EndpointIndex| groups[class as usize].0 & (1 << e) != 0;
            let members: Vec<u32> = groups.iter().flat_map(|&(set, n)| (0..n).map(move |_| set)).collect();
            let mut matching = Matching::new(&shape);
            let mut free = 0;
            for e in order {
                free |= 1 << e;
                matching.add(e, contains);
                prop_assert_eq!(members.len() - matching.missing(), best(&members, free));
            }
            if let Some(e) = dropped.filter(|&e| matching.remove(e)) {
                free &= !(1 << e);
                for e in (0..8).filter(|e| free & (1 << e) != 0) {
                    if matching.seats().all(|used| used != e) {
                        matching.add(e, contains);
                    }
                }
                prop_assert_eq!(members.len() - matching.missing(), best(&members, free));
            }
            let mut used: Vec<_> = matching.seats().collect();
            used.sort_unstable();
            used.dedup();
            prop_assert_eq!(used.len(), members.len() - matching.missing());
            for (g, _) in &shape {
                while let Some(e) = matching.take(*g) {
                    prop_assert!(contains(*g, e));
                }
            }
        }
    }
}
