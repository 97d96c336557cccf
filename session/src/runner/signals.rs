//! SIGTERM and SIGINT as a verdict.

use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::signal::unix::{signal, SignalKind};
use tokio::sync::oneshot;

use super::lifeline::{Lifeline, Verdict};

/// The thread that waits for signals; joined when it is dropped.
pub(crate) struct Signals {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Signals {
    pub(crate) fn watch(lifeline: Arc<Lifeline>) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()?;
        let (stop, stopped) = oneshot::channel::<()>();
        let (mut terminate, mut interrupt) = {
            let _entered = runtime.enter();
            (
                signal(SignalKind::terminate())?,
                signal(SignalKind::interrupt())?,
            )
        };
        let thread = std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                let signalled = runtime.block_on(async {
                    tokio::select! {
                        _ = terminate.recv() => true,
                        _ = interrupt.recv() => true,
                        _ = stopped => false,
                    }
                });
                if signalled {
                    lifeline.end(Verdict::Signal);
                }
            })?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there was already reported by the panic hook.
            let _ = thread.join();
        }
    }
}
