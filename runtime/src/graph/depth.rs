//! How many members are kept in flight at one endpoint.
//!
//! A queue at the endpoint hides the way there and back. It also holds what no other endpoint can take any more: so it is deep
//! only where members have been short lately, and what stands in it is about [`QUEUE_NS`] of work.

/// Work that a queue may hold: what a member waits at most behind others that take as long as those before, while another
/// endpoint may be idle.
const QUEUE_NS: u64 = 1_000_000;

/// With each member that ends, what was learnt from those before loses this part. A long one among short ones keeps the queue
/// flat for dozens of members; from one second to a few µs it takes some two hundred.
const FADING: u64 = 16;

/// The longest that members have taken lately, after one more that took `took_ns`.
pub(crate) fn fading_max(recent_ns: u64, took_ns: u64) -> u64 {
    took_ns.max(recent_ns - recent_ns.div_ceil(FADING))
}

/// The depth of one endpoint's queue, from what its members took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Depth {
    least: u32,
    most: u32,
    /// What a member may take: a maximum that fades.
    recent_ns: u64,
    /// Places while members take that.
    recent_places: u32,
    /// When the member that runs now began, as far as it can be told here: when the queue was last empty, or a member ended.
    since_ns: u64,
}

impl Depth {
    /// Between `least`, however long members take, and `most`. Nothing is known yet: it begins with `least`.
    pub(super) fn new(least: u32, most: u32) -> Self {
        let least = least.max(1);
        Self {
            least,
            most: most.max(least),
            recent_ns: QUEUE_NS,
            recent_places: least,
            since_ns: 0,
        }
    }

    /// A member comes to an empty queue.
    pub(super) fn begin(&mut self, now_ns: u64) {
        self.since_ns = now_ns;
    }

    /// A member ended, after `took_ns` where the endpoint says so.
    pub(super) fn end(&mut self, now_ns: u64, took_ns: Option<u64>) {
        let took_ns = took_ns.unwrap_or_else(|| now_ns.saturating_sub(self.since_ns));
        let recent_ns = fading_max(self.recent_ns, took_ns);
        if recent_ns != self.recent_ns {
            self.recent_ns = recent_ns;
            self.recent_places = self.places_for(recent_ns);
        }
        self.since_ns = now_ns;
    }

    /// Members that may be in flight now. A member that runs for long counts before it has ended.
    pub(super) fn places(&self, now_ns: u64, busy: bool) -> u32 {
        let running_ns = if busy { self.running_ns(now_ns) } else { 0 };
        if running_ns > self.recent_ns {
            self.places_for(running_ns)
        } else {
            self.recent_places
        }
    }

    /// How long the member that runs has done so.
    pub(super) fn running_ns(&self, now_ns: u64) -> u64 {
        now_ns.saturating_sub(self.since_ns)
    }

    fn places_for(&self, each_ns: u64) -> u32 {
        let places = u32::try_from(QUEUE_NS / each_ns.max(1)).unwrap_or(u32::MAX);
        places.clamp(self.least, self.most)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_known_is_taken_for_long() {
        assert_eq!(Depth::new(2, 64).places(0, false), 2);
        assert_eq!(Depth::new(0, 0).places(0, false), 1);
    }

    #[test]
    fn short_members_make_it_deep_and_one_long_one_flat() {
        let mut depth = Depth::new(2, 64);
        for now in 0..100 {
            depth.end(now, Some(1_000));
        }
        assert_eq!(depth.places(100, true), 64);
        depth.end(200, Some(QUEUE_NS));
        assert_eq!(depth.places(200, true), 2);
    }

    #[test]
    fn a_member_that_runs_for_long_counts_before_it_ends() {
        let mut depth = Depth::new(2, 64);
        for now in 0..100 {
            depth.end(now, Some(1_000));
        }
        depth.begin(100);
        assert_eq!(depth.places(100 + QUEUE_NS, true), 2);
        assert_eq!(depth.places(100 + QUEUE_NS, false), 64, "nothing runs");
    }

    proptest! {
        /// The queue holds no more work than it may, if members take what the last ones took.
        #[test]
        fn the_work_in_a_queue_is_bounded(
            least in 0_u32..4,
            most in 0_u32..100,
            took in prop::collection::vec(prop_oneof![0..100_u64, 0..3 * QUEUE_NS], 1..100),
        ) {
            let mut depth = Depth::new(least, most);
            let mut now = 0;
            for &took_ns in &took {
                now += took_ns;
                depth.end(now, Some(took_ns));
                let places = depth.places(now, true);
                let floor = least.max(1);
                prop_assert!((floor..=most.max(floor)).contains(&places));
                prop_assert!(places == floor || u64::from(places) * took_ns <= QUEUE_NS);
            }
        }
    }
}
