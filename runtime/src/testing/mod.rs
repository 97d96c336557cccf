//! What the tests of this workspace are built from: endpoints that do what a test says, and one suite that every
//! endpoint passes.
//!
//! Not part of the stable API.

pub mod conformance;
pub mod extensions;
pub mod fake;
pub mod harness;
pub mod sessions;

use std::sync::Arc;

use crate::callable::Callable;
use crate::endpoint::Endpoint;
use crate::engine::EndpointRole;
use crate::error::{Error, Interrupt};
use crate::graph::EndpointId;
use crate::mailbox::Bell;
use crate::registration::Key;
use crate::worker::{Worker, WorkerBuilder};

/// What an endpoint is to the worker that a test builds over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs sub callables.
    Sub,
    /// A local child; takes the next NEXT_LEVEL id.
    LocalNextLevel,
    /// A remote session; takes the next NEXT_LEVEL id.
    RemoteNextLevel,
}

/// A READY worker over the given endpoints, in the order of their ids. They must ring `bell`.
///
/// # Errors
/// What `builder` refuses, and what the operating system says to the arena and the driver thread.
pub fn worker_over(
    builder: WorkerBuilder,
    interrupt: Arc<dyn Interrupt>,
    bell: Arc<Bell>,
    endpoints: Vec<(Box<dyn Endpoint>, Role)>,
) -> Result<Worker, Error> {
    let worker = builder.build()?;
    worker.set_interrupt(interrupt);
    let mut next = 0;
    let mut id = || {
        next += 1;
        next - 1
    };
    let endpoints = endpoints
        .into_iter()
        .map(|(endpoint, role)| {
            let role = match role {
                Role::Sub => EndpointRole::Sub,
                Role::LocalNextLevel => EndpointRole::LocalNextLevel { worker: id() },
                Role::RemoteNextLevel => EndpointRole::RemoteNextLevel {
                    worker: id(),
                    host: "127.0.0.1:1".into(),
                },
            };
            (endpoint, role)
        })
        .collect();
    worker.start_over(bell, endpoints)?;
    Ok(worker)
}

/// From now on `recipe` makes the endpoint that follows when the one at position `index` has ended.
///
/// # Errors
/// [`Error::Lifecycle`] when the worker is not READY.
pub fn give_successors(
    worker: &Worker,
    index: u32,
    recipe: impl Fn() -> Result<Box<dyn Endpoint>, Error> + Send + Sync + 'static,
) -> Result<(), Error> {
    let engine = worker.engine("change")?;
    let mut core = engine.core.lock();
    core.give_successors(EndpointId(index), Arc::new(recipe));
    Ok(())
}

/// A fresh session takes the place of the one that the remote worker `id` has lost.
///
/// # Errors
/// [`Error::Lifecycle`] when the worker is not READY, [`Error::Argument`] for an unknown id.
pub fn reopen_over(worker: &Worker, id: i32, endpoint: Box<dyn Endpoint>) -> Result<(), Error> {
    let engine = worker.engine("change")?;
    let mut core = engine.core.lock();
    let place = core.endpoint_of(id)?;
    core.follow(place, endpoint);
    Ok(())
}

/// Takes a fresh session of the remote worker `id` into service: `came` is what its manifest brought; the rest of what is
/// registered is installed by control. Returns what failed.
///
/// # Errors
/// [`Error::Lifecycle`] when the worker is not READY or closes, [`Error::Interrupted`].
pub fn bring_up(
    worker: &Worker,
    id: i32,
    endpoint: Box<dyn Endpoint>,
    came: &[Callable],
) -> Result<Vec<Error>, Error> {
    let engine = worker.engine("change")?;
    let role = EndpointRole::RemoteNextLevel {
        worker: id,
        host: "127.0.0.1:1".into(),
    };
    let fresh = {
        let mut core = engine.core.lock();
        let fresh = core.add_endpoint(endpoint, role);
        for callable in came {
            if let Some(slot) = core.slot_mut(fresh) {
                slot.pairs.brought(Key::new(callable, false), callable);
            }
        }
        fresh
    };
    worker.install_registrations(&engine, fresh, None)
}
