//! What a failed member may still be writing to another host is kept away before anything goes on.

use std::sync::atomic::{AtomicBool, Ordering};

use echelon_runtime::endpoint::ControlRequest;
use echelon_runtime::testing::fake::{ControlVerdict, TaskVerdict};
use echelon_runtime::{Error, RunReport, Tag, TaskArgs, TaskOptions};
use echelon_wire::buffer::AccessFlags;
use echelon_wire::call_config::CallConfig;

use crate::bed::{start, whole, Bed, Started};

/// Two importers on hosts of their own write the same bytes, one after the other; the first one breaks once. The owner holds fences.
struct Broken {
    bed: Bed,
    ended: Started<Result<RunReport, Error>>,
}

fn is_fence(request: &ControlRequest) -> bool {
    matches!(request, ControlRequest::Fence { .. })
}

impl Broken {
    fn new(options: TaskOptions, how: impl Fn(&Bed) + Send + 'static) -> Self {
        let bed = Bed::new(0, 3);
        let task = bed.remote_task();
        bed.world.put_apart();
        let buffer = bed.malloc(0, 8);
        let w = &bed.worker;
        let export = w
            .remote_export(&buffer, 0, None, AccessFlags::READ_WRITE)
            .unwrap();
        let imports = [1, 2].map(|id| w.remote_import(&export, id, None).unwrap());
        bed.remotes[0].on_control(|request| match is_fence(request) {
            true => ControlVerdict::Hold,
            false => ControlVerdict::Carry,
        });
        let broken = AtomicBool::new(false);
        bed.remotes[1].on_task(move |_| match broken.swap(true, Ordering::SeqCst) {
            false => TaskVerdict::FailByInfrastructure("the write-back broke".into()),
            true => TaskVerdict::Done,
        });
        how(&bed);
        let worker = bed.worker.clone();
        let ended = start(move || {
            worker.run_simple(|o| {
                for (import, id) in imports.iter().zip([1, 2]) {
                    let args: TaskArgs = whole(import, Tag::Output);
                    let o = o.with(options)?;
                    o.submit_next_level(&task, args, CallConfig::default(), Some(id))?;
                }
                Ok(())
            })
        });
        Self { bed, ended }
    }

    /// Waits for the fence, and until what was decided with it was carried out.
    fn wait_for_fence(&self) {
        let fence = |controls: &[ControlRequest]| controls.iter().any(is_fence);
        self.bed.remotes[0].wait_for("the fence", |_, controls| fence(controls));
        let _ = self.bed.worker.progress();
    }
}

#[test]
fn r_239_who_writes_the_same_bytes_next_waits_for_the_owners_answer() {
    let broken = Broken::new(TaskOptions::default(), |_| {});
    broken.wait_for_fence();
    let Broken { bed, ended } = broken;
    assert!(bed.remotes[2].submitted().is_empty());
    assert_eq!(bed.worker.progress().finished, 0);
    assert!(bed.remotes[0].answer_held());
    let Err(Error::Run(error)) = ended.join("the run") else {
        panic!("the first task was not lost");
    };
    let lost: Vec<u64> = error.failures.iter().map(|f| f.sequence).collect();
    assert_eq!((lost, error.skipped), (vec![1], 0));
    assert_eq!(bed.remotes[2].submitted().len(), 1);
}

#[test]
fn r_239_another_attempt_waits_for_the_owners_answer() {
    let options = TaskOptions {
        idempotent: true,
        ..TaskOptions::default()
    };
    let broken = Broken::new(options, |_| {});
    broken.wait_for_fence();
    // Longer than the pause before a second attempt.
    let Broken { bed, ended } = broken;
    let (told, never) = std::sync::mpsc::channel::<()>();
    assert!(never
        .recv_timeout(std::time::Duration::from_millis(300))
        .is_err());
    drop(told);
    assert_eq!(bed.remotes[1].submitted().len(), 1);
    assert!(bed.remotes[0].answer_held());
    let report = ended.join("the run").unwrap();
    assert_eq!((report.counts["completed"], report.retried), (2, 1));
    assert_eq!(bed.remotes[1].submitted().len(), 2);
}

/// Its buffers can be trusted no more.
#[test]
fn r_239_an_owner_that_keeps_nothing_away_is_lost() {
    let broken = Broken::new(TaskOptions::default(), |bed| {
        bed.remotes[0].on_control(|request| match is_fence(request) {
            true => ControlVerdict::Refuse("a lane did not end".into()),
            false => ControlVerdict::Carry,
        });
    });
    let Broken { bed, ended } = broken;
    assert!(ended.join("the run").is_err());
    bed.remotes[0].wait_until_gone();
}

/// With the owner its buffers are gone: nothing is left to wait for.
#[test]
fn r_239_an_owner_that_is_lost_meanwhile_ends_the_wait() {
    let broken = Broken::new(TaskOptions::default(), |_| {});
    broken.wait_for_fence();
    let Broken { bed, ended } = broken;
    bed.remotes[0].lose("gone");
    assert!(ended.join("the run").is_err());
    assert_eq!(bed.worker.progress().finished, 2);
}
