//! When buffers are really freed: after the last task and import, and again when it did not work.

use echelon_runtime::endpoint::{ControlReply, ControlRequest};
use echelon_runtime::testing::fake::{ControlVerdict, TaskVerdict};
use echelon_runtime::{Error, Tag, TaskArgs, Worker, WorkerState};
use echelon_wire::buffer::AccessFlags;

use crate::bed::{bounded, frees, releases, start, submit, u8s, whole, Bed};

/// How the task that holds the buffers ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ending {
    Completed,
    Failed,
    Refused,
    OtherLost,
}

#[test]
fn r_113_a_free_waits_for_the_last_task_however_it_ends() {
    for ending in [
        Ending::Completed,
        Ending::Failed,
        Ending::Refused,
        Ending::OtherLost,
    ] {
        let bed = Bed::new(0, 2);
        let task = bed.remote_task();
        let owner = bed.malloc(0, 8);
        let export = bed
            .worker
            .remote_export(&owner, 0, None, AccessFlags::READ_WRITE)
            .unwrap();
        let import = bed.worker.remote_import(&export, 1, None).unwrap();
        let importer = &bed.remotes[1];
        importer.hold_tasks();
        if ending == Ending::Refused {
            importer.on_task(|_| TaskVerdict::Refuse("too large".into()));
        }
        let run = bed.worker.run_simple(|o| {
            submit(o, &task, whole(&import, Tag::InOut))?;
            bed.worker.remote_release_import(&import)?;
            bed.worker.remote_free(&owner)?;
            if ending != Ending::Refused {
                let early = (
                    releases(&importer.controls()),
                    frees(&bed.remotes[0].controls()),
                );
                assert_eq!(early, (0, 0), "{ending:?}");
                let ticket = importer.in_flight()[0].ticket;
                match ending {
                    Ending::Failed => importer.fail(ticket, "boom"),
                    Ending::OtherLost => importer.lose("gone"),
                    _ => importer.complete(ticket),
                }
            }
            Ok(())
        });
        assert_eq!(
            run.is_ok(),
            ending == Ending::Completed,
            "{ending:?}: {run:?}"
        );
        bed.remotes[0].wait_for("the free", |_, controls| frees(controls) == 1);
        assert_eq!(bed.remotes[0].live_buffers(), 0);
        assert_eq!(importer.live_buffers(), 0);
    }
}

#[test]
fn r_113_the_owner_stays_while_it_is_imported() {
    let bed = Bed::new(0, 3);
    let w = &bed.worker;
    let owner = bed.malloc(0, 8);
    let export = w.remote_export(&owner, 0, None, AccessFlags::READ).unwrap();
    let imports = [1, 2].map(|id| w.remote_import(&export, id, None).unwrap());
    w.remote_free(&owner).unwrap();
    // Freed by name, still there; importing it once more is too late.
    assert!(matches!(
        w.remote_import(&export, 1, None),
        Err(Error::Handle { .. })
    ));
    w.remote_release_import(&imports[0]).unwrap();
    assert_eq!(frees(&bed.remotes[0].controls()), 0);
    w.remote_release_import(&imports[1]).unwrap();
    bed.remotes[0].wait_for("the free", |_, controls| frees(controls) == 1);
}

#[test]
fn r_113_a_lost_importer_lets_the_owner_go_also_when_its_release_was_under_way() {
    for under_way in [false, true] {
        let bed = Bed::new(0, 2);
        let w = bed.worker.clone();
        let owner = bed.malloc(0, 8);
        let export = w.remote_export(&owner, 0, None, AccessFlags::READ).unwrap();
        let import = w.remote_import(&export, 1, None).unwrap();
        w.remote_free(&owner).unwrap();
        if under_way {
            bed.remotes[1].on_control(|_| ControlVerdict::Lose("died".into()));
        } else {
            bed.remotes[1].lose("died");
        }
        bounded("release", move || w.remote_release_import(&import)).unwrap();
        bed.remotes[0].wait_for("the free", |_, controls| frees(controls) == 1);
    }
}

#[test]
fn r_111_the_owner_is_held_during_an_import_and_let_go_when_it_fails() {
    for verdict in [
        ControlVerdict::Refuse("does not open".into()),
        ControlVerdict::Unsupported,
        ControlVerdict::Lose("died".into()),
    ] {
        let bed = Bed::new(0, 2);
        let w = &bed.worker;
        let owner = bed.malloc(0, 8);
        let export = w.remote_export(&owner, 0, None, AccessFlags::READ).unwrap();
        let says = verdict.clone();
        bed.remotes[1].on_control(move |_| says.clone());
        let error = w.remote_import(&export, 1, None).unwrap_err();
        match verdict {
            ControlVerdict::Lose(_) => assert!(matches!(error, Error::EndpointLost { .. })),
            _ => assert!(matches!(error, Error::Remote { .. }), "{error:?}"),
        }
        w.remote_free(&owner).unwrap();
        assert_eq!(frees(&bed.remotes[0].controls()), 1, "{verdict:?}");
        assert_eq!(bed.remotes[0].live_buffers(), 0);
    }
}

#[test]
fn r_111_an_import_that_its_caller_gave_up_is_released_before_its_owner_is_freed() {
    let bed = Bed::new(0, 2);
    let w = bed.worker.clone();
    let owner = bed.malloc(0, 8);
    let export = w.remote_export(&owner, 0, None, AccessFlags::READ).unwrap();
    bed.remotes[1].on_control(|_| ControlVerdict::Hold);
    let importing = start(move || w.remote_import(&export, 1, None).map(drop));
    bed.remotes[1].wait_for("the import", |_, controls| controls.len() == 1);
    bed.interrupt.set(true);
    assert!(matches!(importing.join("import"), Err(Error::Interrupted)));
    bed.interrupt.set(false);
    bed.worker.remote_free(&owner).unwrap();
    assert_eq!(frees(&bed.remotes[0].controls()), 0);
    bed.remotes[1].carry_controls();
    assert!(bed.remotes[1].answer_held());
    bed.remotes[0].wait_for("the free", |_, controls| frees(controls) == 1);
    assert_eq!(releases(&bed.remotes[1].controls()), 1);
    assert_eq!(bed.remotes[1].live_buffers(), 0);
}

#[test]
fn a_buffer_that_its_caller_gave_up_is_freed() {
    let bed = Bed::new(0, 1);
    let w = bed.worker.clone();
    bed.remotes[0].on_control(|_| ControlVerdict::Hold);
    let allocating = start(move || w.remote_malloc(0, 8).map(drop));
    bed.remotes[0].wait_for("the alloc", |_, controls| controls.len() == 1);
    bed.interrupt.set(true);
    assert!(matches!(allocating.join("malloc"), Err(Error::Interrupted)));
    bed.interrupt.set(false);
    bed.remotes[0].carry_controls();
    assert!(bed.remotes[0].answer_held());
    bed.remotes[0].wait_for("the free", |_, controls| frees(controls) == 1);
    assert_eq!(bed.remotes[0].live_buffers(), 0);
}

#[test]
fn a_release_that_its_caller_gave_up_is_sent_once() {
    let bed = Bed::new(0, 2);
    let w = bed.worker.clone();
    let owner = bed.malloc(0, 8);
    let export = w.remote_export(&owner, 0, None, AccessFlags::READ).unwrap();
    let import = w.remote_import(&export, 1, None).unwrap();
    bed.remotes[1].on_control(|_| ControlVerdict::Hold);
    let releasing = start(move || w.remote_release_import(&import));
    bed.remotes[1].wait_for("the release", |_, controls| releases(controls) == 1);
    bed.interrupt.set(true);
    assert!(matches!(releasing.join("release"), Err(Error::Interrupted)));
    bed.interrupt.set(false);
    bed.remotes[1].carry_controls();
    assert!(bed.remotes[1].answer_held());
    bed.worker.remote_free(&owner).unwrap();
    bed.worker.run_simple(|_| Ok(())).unwrap();
    bed.remotes[0].wait_for("the free", |_, controls| frees(controls) == 1);
    // A session refuses the release of an import that it does not know: a second one would be refused for ever.
    assert_eq!(releases(&bed.remotes[1].controls()), 1);
}

#[test]
fn r_112_the_kth_of_many_deferred_frees_fails_and_is_tried_again() {
    const BUFFERS: usize = 5;
    for k in 0..BUFFERS {
        let bed = Bed::new(0, 1);
        let task = bed.remote_task();
        let session = &bed.remotes[0];
        let buffers: Vec<_> = (0..BUFFERS).map(|_| bed.malloc(0, 8)).collect();
        session.hold_tasks();
        let mut seen = 0;
        session.on_control(move |control| {
            let fails = matches!(control, ControlRequest::Free { .. }) && {
                seen += 1;
                seen == k + 1
            };
            if fails {
                return ControlVerdict::Refuse("busy".into());
            }
            ControlVerdict::Carry
        });
        bed.worker
            .run_simple(|o| {
                let mut args = TaskArgs::new();
                for buffer in &buffers {
                    args.add_remote(buffer, 0, u8s(8), Tag::Input)?;
                }
                submit(o, &task, args)?;
                for buffer in &buffers {
                    bed.worker.remote_free(buffer)?;
                }
                assert!(session.complete_next());
                Ok(())
            })
            .unwrap();
        session.wait_for("every free", |_, c| frees(c) == BUFFERS);
        // Every free was tried; the refused one is still owed, and only that one is sent again.
        bed.worker.run_simple(|_| Ok(())).unwrap();
        let last = bed.malloc(0, 1);
        session.wait_for("one more free", |_, c| frees(c) == BUFFERS + 1);
        bed.worker.remote_free(&last).unwrap();
        assert_eq!(session.live_buffers(), 0, "k = {k}");
        assert_eq!(frees(&session.controls()), BUFFERS + 2);
    }
}

#[test]
fn r_112_a_refused_free_is_an_error_once_and_is_retried_until_it_works() {
    let bed = Bed::new(0, 1);
    let session = &bed.remotes[0];
    let buffer = bed.malloc(0, 8);
    session.on_control(|control| match control {
        ControlRequest::Free { .. } => ControlVerdict::Refuse("busy".into()),
        _ => ControlVerdict::Carry,
    });
    let error = bed.worker.remote_free(&buffer).unwrap_err();
    assert!(matches!(error, Error::Remote { .. }), "{error:?}");
    assert!(buffer.released());
    for tries in 2..5 {
        bed.worker.run_simple(|_| Ok(())).unwrap();
        session.wait_for("a retry", |_, c| frees(c) >= tries);
    }
    session.carry_controls();
    bed.worker.run_simple(|_| Ok(())).unwrap();
    session.wait_for("the last try", |_, c| frees(c) >= 5);
    bed.worker.run_simple(|_| Ok(())).unwrap();
    assert_eq!(session.live_buffers(), 0);
    assert_eq!(frees(&session.controls()), 5);
}

/// A session of version 1 remembers no import that it let go.
#[test]
fn r_112_an_import_that_is_unknown_when_its_release_is_repeated_is_released() {
    const UNKNOWN: &str = "KeyError: 'RELEASE_IMPORT names unknown import'";
    for answers in [
        vec![ControlVerdict::CarryAndRefuse("busy".into())],
        // The first answer may mean anything, and is an error.
        vec![ControlVerdict::CarryAndRefuse(UNKNOWN.into())],
        vec![
            ControlVerdict::Refuse("busy".into()),
            ControlVerdict::CarryAndRefuse("busy".into()),
        ],
    ] {
        let bed = Bed::new(0, 2);
        let w = &bed.worker;
        let owner = bed.malloc(0, 8);
        let export = w.remote_export(&owner, 0, None, AccessFlags::READ).unwrap();
        let import = w.remote_import(&export, 1, None).unwrap();
        let tries = answers.len() + 1;
        let mut left = answers.into_iter();
        bed.remotes[1].on_control(move |control| match control {
            ControlRequest::ReleaseImport { .. } => {
                let last = || ControlVerdict::Refuse(UNKNOWN.into());
                left.next().unwrap_or_else(last)
            }
            _ => ControlVerdict::Carry,
        });
        w.remote_release_import(&import).unwrap_err();
        w.remote_free(&owner).unwrap();
        for done in 1..tries {
            let held = frees(&bed.remotes[0].controls());
            assert_eq!(held, 0, "the owner is held while it is not known");
            w.run_simple(|_| Ok(())).unwrap();
            bed.remotes[1].wait_for("the next try", |_, c| releases(c) == done + 1);
        }
        bed.remotes[0].wait_for("the free", |_, controls| frees(controls) == 1);
        w.run_simple(|_| Ok(())).unwrap();
        assert_eq!(
            releases(&bed.remotes[1].controls()),
            tries,
            "no further try"
        );
        w.close().unwrap();
    }
}

#[test]
fn r_112_what_is_owed_at_close_is_tried_once_more() {
    let bed = Bed::new(0, 1);
    let session = &bed.remotes[0];
    let buffer = bed.malloc(0, 8);
    session.on_control(|_| ControlVerdict::Refuse("busy".into()));
    bed.worker.remote_free(&buffer).unwrap_err();
    session.carry_controls();
    bed.worker.close().unwrap();
    assert_eq!(frees(&session.controls()), 2);
    assert_eq!(session.live_buffers(), 0);
}

#[test]
fn r_089_a_submit_that_fails_at_the_kth_handle_lets_all_go() {
    const HANDLES: usize = 4;
    for k in 0..HANDLES {
        let bed = Bed::new(0, 1);
        let task = bed.remote_task();
        let buffers: Vec<_> = (0..HANDLES).map(|_| bed.malloc(0, 8)).collect();
        let mut args = TaskArgs::new();
        for buffer in &buffers {
            args.add_remote(buffer, 0, u8s(8), Tag::Input).unwrap();
        }
        bed.worker.remote_free(&buffers[k]).unwrap();
        let error = bed
            .worker
            .run_simple(|o| submit(o, &task, args).map(drop))
            .unwrap_err();
        assert!(matches!(error, Error::Handle { .. }), "{error:?}");
        for buffer in buffers.iter().filter(|buffer| !buffer.released()) {
            bed.worker.remote_free(buffer).unwrap();
        }
        // Nothing is pinned any more: each free went out at once.
        assert_eq!(bed.remotes[0].live_buffers(), 0, "k = {k}");
        assert!(bed.remotes[0].submitted().is_empty());
    }
}

#[test]
fn r_089_a_free_during_a_submit_that_fails_afterwards_is_sent() {
    let bed = Bed::with(0, 1, 1, Worker::builder().max_tasks(1));
    let task = bed.remote_task();
    let session = &bed.remotes[0];
    session.hold_tasks();
    let buffer = bed.malloc(0, 8);
    let mut blocked = None;
    bed.worker
        .run_simple(|o| {
            submit(o, &task, TaskArgs::new())?;
            let (o, task, args) = (o.clone(), task.clone(), whole(&buffer, Tag::Input));
            let (told, submitting) = std::sync::mpsc::channel();
            blocked = Some(start(move || {
                told.send(()).unwrap();
                // The table is full: this waits with its buffer pinned, and is refused when its run is over.
                submit(&o, &task, args).map(drop)
            }));
            submitting.recv().unwrap();
            // Time for the other thread to pin; whichever is first, the buffer is freed in the end.
            bed.worker.remote_free(&bed.malloc(0, 1))?;
            bed.worker.remote_free(&buffer)?;
            let task = session.in_flight()[0].ticket;
            session.on_task(|_| TaskVerdict::Done);
            drop(start({
                let session = session.clone();
                move || session.complete(task)
            }));
            Ok(())
        })
        .unwrap();
    let error = blocked.unwrap().join("the blocked submit");
    match error {
        // It may still have found room before its run was over.
        Ok(()) => {}
        Err(Error::Lifecycle { .. } | Error::Handle { .. }) => {}
        Err(error) => panic!("{error:?}"),
    }
    session.wait_for("the free", |_, controls| frees(controls) == 2);
    assert_eq!(session.live_buffers(), 0);
}

#[test]
fn r_114_an_answer_that_does_not_fit_the_question_is_an_error_and_holds_nothing() {
    let bed = Bed::new(0, 2);
    let w = &bed.worker;
    let owner = bed.malloc(0, 8);
    let export = w.remote_export(&owner, 0, None, AccessFlags::READ).unwrap();
    bed.remotes.iter().for_each(|remote| {
        remote.on_control(|_| ControlVerdict::Answer(Box::new(ControlReply::Done)));
    });
    let results = [
        w.remote_malloc(0, 8).map(drop),
        w.remote_export(&owner, 0, None, AccessFlags::READ)
            .map(drop),
        w.remote_import(&export, 1, None).map(drop),
    ];
    for result in results {
        assert!(matches!(result, Err(Error::Remote { .. })), "{result:?}");
    }
    bed.remotes[0].carry_controls();
    let half = w.remote_export(&owner, 4, None, AccessFlags::READ).unwrap();
    assert_eq!((half.offset(), half.nbytes()), (4, 4));
    bed.remotes[1].carry_controls();
    w.remote_free(&owner).unwrap();
    assert_eq!(bed.remotes[0].live_buffers(), 0);
}

#[test]
fn r_112_what_was_never_confirmed_is_named_at_close() {
    let bed = Bed::new(0, 3);
    let refuse = |control: &ControlRequest| match control {
        ControlRequest::Free { .. } => ControlVerdict::Refuse("busy".into()),
        _ => ControlVerdict::Carry,
    };
    for (session, count) in [(0, 2), (1, 0), (2, 1)] {
        for _ in 0..count {
            let buffer = bed.malloc(session, 8);
            bed.remotes[session as usize].on_control(refuse);
            bed.worker.remote_free(&buffer).unwrap_err();
        }
    }
    let Err(Error::Close { survivors }) = bed.worker.close() else {
        panic!("nobody confirmed them")
    };
    let named = |session: &str| survivors.iter().filter(|s| s.contains(session)).count();
    assert_eq!(
        (named("remote0"), named("remote1"), named("remote2")),
        (2, 0, 1)
    );
    assert!(
        survivors.iter().all(|s| s.contains("(8 bytes)")),
        "{survivors:?}"
    );
    // Told once: nothing is left that a later close() could end.
    assert_eq!(bed.worker.state(), WorkerState::Closed);
    bed.worker.close().unwrap();
}
