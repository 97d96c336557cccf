//! Copy nodes: in steps, in the order of the graph, through the parent between two sessions.

use std::time::Duration;

use echelon_runtime::endpoint::ControlRequest;
use echelon_runtime::memory::HostMemory;
use echelon_runtime::testing::fake::{ControlVerdict, PATIENCE};
use echelon_runtime::{CopySide, Error, FailureKind, RemoteBuffer, Tag, Worker};
use echelon_wire::buffer::AccessFlags;

use crate::bed::{count, start, submit, u8s, whole, Bed};

/// One full step and a bit.
const LARGE: u64 = echelon_wire::limits::MAX_COPY_FROM_BYTES + 5;

fn remote(buffer: &RemoteBuffer) -> CopySide {
    CopySide::Remote {
        buffer: buffer.clone(),
        offset: 0,
        meta: u8s(buffer.nbytes()),
    }
}

fn host(memory: &HostMemory) -> CopySide {
    CopySide::Host {
        memory: memory.clone(),
        meta: u8s(memory.len() as u64),
    }
}

fn pattern(len: u64) -> HostMemory {
    HostMemory::from_vec((0..len).map(|i| (i * 31 % 251) as u8).collect())
}

fn steps(controls: &[ControlRequest]) -> (usize, usize) {
    (
        count(controls, |c| matches!(c, ControlRequest::CopyTo { .. })),
        count(controls, |c| matches!(c, ControlRequest::CopyFrom { .. })),
    )
}

/// Back-pressure, so that a script which begins copies without end does not fill the memory.
#[test]
fn a_copy_that_is_begun_waits_while_many_are_on_their_way() {
    let bed = Bed::new(0, 1);
    let buffer = bed.malloc(0, 1);
    bed.remotes[0].on_control(|_| ControlVerdict::Hold);
    let (worker, to) = (bed.worker.clone(), buffer.clone());
    let (begun, begun_by) = std::sync::mpsc::channel();
    let beginner = start(move || {
        for _ in 0..300 {
            begun
                .send(worker.remote_copy_to_async(&to, &pattern(1), 0).unwrap())
                .unwrap();
        }
    });
    let first: Vec<_> = (0..256)
        .map(|_| begun_by.recv_timeout(PATIENCE).unwrap())
        .collect();
    assert!(begun_by.recv_timeout(Duration::from_millis(50)).is_err());
    bed.remotes[0].carry_controls();
    let mut answered = 0;
    while bed.remotes[0].answer_held() {
        answered += 1;
    }
    assert_eq!(answered, 256);
    beginner.join("copies beyond the first");
    let rest: Vec<_> = begun_by.iter().collect();
    assert_eq!(rest.len(), 44);
    for copy in first.iter().chain(&rest) {
        copy.wait(Some(PATIENCE)).unwrap();
    }
    bed.worker.remote_free(&buffer).unwrap();
}

#[test]
fn bytes_travel_from_here_over_two_sessions_and_back() {
    let bed = Bed::new(0, 2);
    for len in [1, LARGE] {
        let (a, b) = (bed.malloc(0, len), bed.malloc(1, len));
        let (source, back) = (pattern(len), HostMemory::from_vec(vec![0; len as usize]));
        let report = bed
            .worker
            .run_simple(|o| {
                o.copy(remote(&a), host(&source))?;
                o.copy(remote(&b), remote(&a))?;
                o.copy(host(&back), remote(&b)).map(drop)
            })
            .unwrap();
        assert_eq!(report.counts["completed"], 3);
        assert!(back.to_vec() == source.to_vec(), "{len} bytes differ");
        bed.worker.remote_free(&a).unwrap();
        bed.worker.remote_free(&b).unwrap();
    }
    assert_eq!(steps(&bed.remotes[0].controls()), (1 + 2, 1 + 2));
    assert_eq!(steps(&bed.remotes[1].controls()), (1 + 2, 1 + 2));
}

#[test]
fn direct_copies_are_split_too() {
    let bed = Bed::new(0, 1);
    let buffer = bed.malloc(0, LARGE);
    let source = pattern(LARGE);
    let back = HostMemory::from_vec(vec![0; LARGE as usize]);
    bed.worker.remote_copy_to(&buffer, &source, 0).unwrap();
    bed.worker.remote_copy_from(&buffer, &back, 0).unwrap();
    assert!(back.to_vec() == source.to_vec());
    assert_eq!(steps(&bed.remotes[0].controls()), (2, 2));
    let read_only = back.as_read_only();
    let error = bed.worker.remote_copy_from(&buffer, &read_only, 0);
    assert!(matches!(error, Err(Error::Argument { .. })), "{error:?}");
}

#[test]
fn a_copy_of_an_import_goes_to_the_owner_at_the_right_place() {
    let bed = Bed::new(0, 2);
    let owner = bed.malloc(0, 100);
    let w = &bed.worker;
    let export = w
        .remote_export(&owner, 30, Some(40), AccessFlags::READ_WRITE)
        .unwrap();
    let import = w.remote_import(&export, 1, None).unwrap();
    let asked = bed.remotes[1].controls().len();
    w.run_simple(|o| {
        let side = CopySide::Remote {
            buffer: import.clone(),
            offset: 10,
            meta: u8s(3),
        };
        o.copy(side, host(&HostMemory::from_vec(vec![7, 8, 9])))
            .map(drop)
    })
    .unwrap();
    assert_eq!(bed.remotes[1].controls().len(), asked);
    let back = HostMemory::from_vec(vec![0; 5]);
    w.remote_copy_from(&owner, &back, 39).unwrap();
    assert_eq!(back.to_vec(), [0, 7, 8, 9, 0]);
}

#[test]
fn copies_and_tasks_order_each_other() {
    let bed = Bed::new(0, 1);
    let task = bed.remote_task();
    let session = &bed.remotes[0];
    session.hold_tasks();
    let buffer = bed.malloc(0, 4);
    let out = HostMemory::from_vec(vec![0; 4]);
    bed.worker
        .run_simple(|o| {
            submit(o, &task, whole(&buffer, Tag::Output))?;
            o.copy(host(&out), remote(&buffer))?;
            submit(o, &task, whole(&buffer, Tag::InOut))?;
            assert_eq!(steps(&session.controls()), (0, 0));
            // The task writes; only then the copy reads, and only then the next one may write.
            let first = session.in_flight()[0].clone();
            let bytes = session.bytes(&first, 0).unwrap();
            bytes.copy_in(0, &[1, 2, 3, 4]).unwrap();
            session.complete(first.ticket);
            session.wait_tasks(2);
            assert_eq!(out.to_vec(), [1, 2, 3, 4]);
            assert!(session.complete_next());
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_copy_that_fails_at_any_step_poisons_its_readers_only() {
    for between_sessions in [false, true] {
        let all_steps = if between_sessions { 4 } else { 2 };
        for k in 0..all_steps {
            let bed = Bed::new(0, 2);
            let task = bed.remote_task();
            let (a, b, other) = (bed.malloc(0, LARGE), bed.malloc(1, LARGE), bed.malloc(1, 8));
            let source = pattern(LARGE);
            bed.worker.remote_copy_to(&a, &source, 0).unwrap();
            // Between sessions: read at 0, write at 1, read, write.
            let (fails_at, kth) = match between_sessions {
                true => (k % 2, k / 2),
                false => (1, k),
            };
            let mut seen = 0;
            bed.remotes[fails_at].on_control(move |control| {
                let copies = matches!(
                    control,
                    ControlRequest::CopyTo { .. } | ControlRequest::CopyFrom { .. }
                );
                seen += usize::from(copies);
                match copies && seen == kth + 1 {
                    true => ControlVerdict::Refuse("disk on fire".into()),
                    false => ControlVerdict::Carry,
                }
            });
            let result = bed.worker.run_simple(|o| {
                let src = match between_sessions {
                    true => remote(&a),
                    false => host(&source),
                };
                o.copy(remote(&b), src)?;
                submit(o, &task, whole(&b, Tag::Input))?;
                submit(o, &task, whole(&other, Tag::InOut))?;
                submit(o, &task, whole(&b, Tag::Output)).map(drop)
            });
            let Err(Error::Run(error)) = result else {
                panic!("{result:?}")
            };
            assert_eq!((error.failures.len(), error.skipped), (1, 1), "k = {k}");
            let failure = &error.failures[0];
            assert_eq!(failure.kind, FailureKind::Failed);
            assert_eq!(failure.worker, format!("remote{fails_at}"));
            assert!(failure.message.contains("disk on fire"), "{failure}");
            assert_eq!(bed.remotes[1].submitted().len(), 2);
            bed.worker.remote_free(&b).unwrap();
            assert_eq!(bed.remotes[1].live_buffers(), 1);
        }
    }
}

#[test]
fn an_endpoint_lost_in_the_middle_of_a_copy_ends_it() {
    for (lost, reading) in [(0, true), (1, false)] {
        let bed = Bed::new(0, 2);
        let task = bed.remote_task();
        let (a, b) = (bed.malloc(0, LARGE), bed.malloc(1, LARGE));
        let mut seen = 0;
        bed.remotes[lost].on_control(move |_| {
            seen += 1;
            match seen {
                2 => ControlVerdict::Lose("cable".into()),
                _ => ControlVerdict::Carry,
            }
        });
        let result = bed.worker.run_simple(|o| {
            o.copy(remote(&b), remote(&a))?;
            // Refused at once when the loss of its worker is known already.
            if let Err(error) = submit(o, &task, whole(&b, Tag::Input)) {
                assert!(matches!(error, Error::NotEligible { .. }), "{error:?}");
            }
            Ok(())
        });
        let Err(Error::Run(error)) = result else {
            panic!("{reading}: {result:?}")
        };
        assert_eq!(error.failures[0].kind, FailureKind::EndpointLost);
        assert_eq!(error.failures[0].worker, format!("remote{lost}"));
        // The side that lives is not pinned by the copy any more.
        let (live, buffer) = if lost == 0 { (1, &b) } else { (0, &a) };
        bed.worker.remote_free(buffer).unwrap();
        assert_eq!(bed.remotes[live].live_buffers(), 0);
    }
}

#[test]
fn sizes_must_agree_and_destinations_be_writable() {
    let bed = Bed::new(0, 1);
    let buffer = bed.malloc(0, 8);
    let seven = HostMemory::from_vec(vec![0; 7]);
    let constant = HostMemory::from_vec(vec![0; 8]).as_read_only();
    for (dst, src) in [
        (remote(&buffer), host(&seven)),
        (host(&constant), remote(&buffer)),
    ] {
        let error = bed.worker.run_simple(|o| o.copy(dst, src).map(drop));
        assert!(matches!(error, Err(Error::Argument { .. })), "{error:?}");
    }
}

#[test]
fn an_interrupted_copy_ends_with_the_step_that_is_on_its_way() {
    let builder = Worker::builder().interrupt_grace(Duration::from_secs(20));
    let bed = Bed::with(0, 1, 1, builder);
    let buffer = bed.malloc(0, LARGE);
    let session = bed.remotes[0].clone();
    session.on_control(|_| ControlVerdict::Hold);
    let back = HostMemory::from_vec(vec![0; LARGE as usize]);
    let (w, b, m) = (bed.worker.clone(), buffer.clone(), back.clone());
    let running = start(move || w.run_simple(|o| o.copy(host(&m), remote(&b)).map(drop)));
    session.wait_for("the first step", |_, controls| steps(controls).1 == 1);
    bed.interrupt.set(true);
    // Told twice: the first time ended the wait, the second time was in the grace.
    bed.interrupt.wait_told(2);
    assert!(session.answer_held());
    assert!(matches!(running.join("run"), Err(Error::Interrupted)));
    bed.interrupt.set(false);
    assert_eq!(steps(&session.controls()).1, 1);
    session.carry_controls();
}

#[test]
fn many_ready_copies_send_two_steps_at_a_time_and_take_turns() {
    let bed = Bed::new(0, 1);
    let large = bed.malloc(0, LARGE);
    let small: Vec<RemoteBuffer> = (0..20).map(|_| bed.malloc(0, 1)).collect();
    bed.remotes[0].on_control(|request| match request {
        ControlRequest::CopyTo { .. } => ControlVerdict::Hold,
        _ => ControlVerdict::Carry,
    });
    let source = pattern(LARGE);
    let (w, bytes) = (bed.worker.clone(), source.clone());
    let (to_large, to_small) = (large.clone(), small.clone());
    let (told, all_submitted) = std::sync::mpsc::channel();
    let running = start(move || {
        w.run_simple(|o| {
            o.copy(remote(&to_large), host(&bytes))?;
            for buffer in &to_small {
                o.copy(remote(buffer), host(&bytes.slice(0, 1)?))?;
            }
            told.send(()).unwrap();
            Ok(())
        })
    });
    all_submitted.recv().unwrap();
    let sent = || steps(&bed.remotes[0].controls()).0;
    let total = 2 + small.len();
    for answered in 0..total {
        let expected = (answered + 2).min(total);
        bed.remotes[0].wait_for("a step", |_, controls| steps(controls).0 >= expected);
        assert_eq!(sent(), expected, "after {answered} answers");
        assert!(bed.remotes[0].answer_held());
    }
    let report = running.join("run").unwrap();
    assert_eq!(report.counts["completed"], 1 + small.len() as u64);
    // The second step of the large copy waited for its turn behind the small ones.
    let controls = bed.remotes[0].controls();
    let last = controls.iter().rev().find_map(|control| match control {
        ControlRequest::CopyTo { buffer, .. } => Some(*buffer),
        _ => None,
    });
    let first = controls.iter().find_map(|control| match control {
        ControlRequest::CopyTo { buffer, .. } => Some(*buffer),
        _ => None,
    });
    assert_eq!(first, last);
}
