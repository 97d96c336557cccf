//! A worker over endpoints that exist already: what tests build the engine on (`testing::worker_over`).

use std::sync::Arc;

use super::{Child, Live, Worker, WorkerState};
use crate::endpoint::Endpoint;
use crate::engine::{Driver, EndpointRole, Engine};
use crate::error::Error;
use crate::mailbox::Bell;
use crate::memory::Arena;
use crate::process::Keeper;
use crate::remote::RemoteWorkerSpec;

impl Worker {
    /// Makes a NEW worker READY with these endpoints; nothing is started but the driver thread and the keeper.
    pub(crate) fn start_over(
        &self,
        bell: Arc<Bell>,
        endpoints: Vec<(Box<dyn Endpoint>, EndpointRole)>,
    ) -> Result<(), Error> {
        let settings = &self.0.settings;
        let mut life = self.0.life.lock();
        self.expect_new(&life, "start")?;
        let engine = Engine::new(
            Arena::create(settings.memory_limit)?,
            settings.inherited_regions.clone(),
            bell,
            settings.max_tasks,
            Arc::clone(&*self.0.interrupt.read()),
            self.0.uid,
        );
        engine.core.lock().max_attempts = settings.max_attempts;
        for (endpoint, role) in endpoints {
            match &role {
                // Chips come from the settings.
                EndpointRole::Sub | EndpointRole::Chip { .. } => {}
                EndpointRole::LocalNextLevel { .. } => {
                    let plan = Self::builder()
                        .level(3)
                        .memory_limit(Some(1 << 20))
                        .build()?;
                    life.children.push(Child::Local(plan.give_away()?));
                }
                EndpointRole::RemoteNextLevel { host, .. } => {
                    let spec = RemoteWorkerSpec {
                        endpoint: host.clone(),
                        ..RemoteWorkerSpec::default()
                    };
                    life.children.push(Child::Remote(spec));
                }
            }
            engine.core.lock().add_endpoint(endpoint, role);
        }
        let keeper = Arc::new(Keeper::start()?);
        let driver = Driver::start(Arc::clone(&engine)).map_err(|error| Error::Startup {
            worker: "the driver thread".into(),
            message: error.to_string(),
        })?;
        *self.0.live.write() = Some(Live {
            engine,
            driver: Some(driver),
            keeper,
        });
        life.state = WorkerState::Ready;
        Ok(())
    }
}
