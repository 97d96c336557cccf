//! What every endpoint must do, whatever carries it: one suite over the fake, threads, children and sessions.
//!
//! A property is a function over a [`Fixture`]; it panics when it does not hold. Nothing sleeps: whoever waits, waits for the
//! bell.

mod ends;
mod probe;
mod work;

use std::sync::Arc;

use echelon_wire::callable::ImportTarget;

use crate::callable::Callable;
use crate::endpoint::{ControlRequest, Endpoint};
use crate::mailbox::Bell;

/// What [`Fixture::failing`] must put into its failure.
pub const FAILURE_TEXT: &str = "ValueError: as asked";

/// A kind of endpoint.
pub trait Fixture {
    /// A fresh endpoint, which rings the bell.
    fn start(&self) -> (Box<dyn Endpoint>, Arc<Bell>);

    /// A callable that completes: `m:completes`, unless the fixture has another.
    fn completing(&self) -> Callable {
        import("m:completes")
    }

    /// A callable that fails with [`FAILURE_TEXT`]: `m:fails`.
    fn failing(&self) -> Callable {
        import("m:fails")
    }

    /// A callable that never ends by itself: `m:endless`; `None` when what runs it cannot be ended by force (a thread).
    fn endless(&self) -> Option<Callable> {
        Some(import("m:endless"))
    }

    /// A callable that cannot be prepared there, as a module that does not import: `m:missing`; `None` when there is none.
    fn unpreparable(&self) -> Option<Callable> {
        Some(import("m:missing"))
    }

    /// A control that this kind of endpoint cannot do.
    fn unsupported(&self) -> ControlRequest;
}

/// A callable by its import path.
///
/// # Panics
/// When it is none.
#[must_use]
pub fn import(target: &str) -> Callable {
    let target = ImportTarget::parse(target);
    target.map_or_else(|error| panic!("{error}"), Callable::import)
}

/// A property over a fixture.
pub type Property = fn(&dyn Fixture);

/// Every property with its name.
pub const PROPERTIES: [(&str, Property); 17] = [
    ("describes_itself", work::describes_itself),
    ("idle_polls_are_empty", work::idle_polls_are_empty),
    ("tasks_end_once", work::tasks_end_once),
    ("failures_have_their_text", work::failures_have_their_text),
    ("conditions_are_kept", work::conditions_are_kept),
    ("unknown_callables_fail", work::unknown_callables_fail),
    ("registering_twice_is_once", work::registering_twice_is_once),
    ("aborted_is_unknown", work::aborted_is_unknown),
    ("removed_is_unknown", work::removed_is_unknown),
    ("unpreparable_is_refused", work::unpreparable_is_refused),
    (
        "controls_are_answered_once",
        work::controls_are_answered_once,
    ),
    ("unsupported_is_said", work::unsupported_is_said),
    ("foreign_memory_is_refused", work::foreign_memory_is_refused),
    ("a_kill_is_one_loss", ends::a_kill_is_one_loss),
    ("a_close_is_quiet", ends::a_close_is_quiet),
    (
        "a_close_in_a_task_is_bounded",
        ends::a_close_in_a_task_is_bounded,
    ),
    ("dropping_is_enough", ends::dropping_is_enough),
];

/// Checks every property; the name of the one in work is on stderr when it does not hold.
///
/// # Panics
/// When one does not hold.
pub fn check(fixture: &dyn Fixture) {
    for (name, property) in PROPERTIES {
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| property(fixture)));
        assert!(caught.is_ok(), "the property {name} does not hold");
    }
}
