//! Random programs over handles against a reference: a buffer is there exactly as long as its handle, a task or an import needs
//! it, whatever fails on the way. The fakes report every use after a free and every free in use.

use std::time::Instant;

use echelon_runtime::endpoint::ControlRequest;
use echelon_runtime::memory::HostMemory;
use echelon_runtime::testing::fake::{ControlVerdict, TaskVerdict, PATIENCE};
use echelon_runtime::{
    CallableHandle, CopySide, Error, Orchestrator, RemoteBuffer, Tag, TaskArgs, Worker,
};
use echelon_wire::buffer::AccessFlags;
use proptest::prelude::*;

use crate::bed::{submit, u8s, Bed};

const SESSIONS: usize = 3;

#[derive(Clone, Debug)]
enum Op {
    Malloc(usize),
    Free(usize),
    Import(usize, usize),
    Release(usize),
    Task(Vec<usize>, usize),
    Copy(usize, usize),
    Complete(usize),
    Fail(usize),
    /// The next free or release at this session is refused.
    Refuse(usize),
    Lose(usize),
    /// Everything ends; then what is there is compared.
    Drain,
}

fn op() -> impl Strategy<Value = Op> {
    let any = 0..64_usize;
    let session = 0..SESSIONS;
    prop_oneof![
        4 => session.clone().prop_map(Op::Malloc),
        3 => any.clone().prop_map(Op::Free),
        3 => (any.clone(), session.clone()).prop_map(|(h, s)| Op::Import(h, s)),
        3 => any.clone().prop_map(Op::Release),
        6 => (prop::collection::vec(any.clone(), 1..4), 0..5_usize).prop_map(|(h, t)| Op::Task(h, t)),
        2 => (any.clone(), any).prop_map(|(a, b)| Op::Copy(a, b)),
        4 => session.clone().prop_map(Op::Complete),
        1 => session.clone().prop_map(Op::Fail),
        1 => session.clone().prop_map(Op::Refuse),
        1 => session.prop_map(Op::Lose),
        1 => Just(Op::Drain),
    ]
}

/// A handle as the reference knows it.
struct Entry {
    handle: RemoteBuffer,
    session: usize,
    /// Index of the owner, for imports.
    owner: Option<usize>,
    released: bool,
}

struct Reference<'a> {
    bed: &'a Bed,
    task: &'a CallableHandle,
    entries: Vec<Entry>,
    lost: [bool; SESSIONS],
}

impl Reference<'_> {
    fn worker(&self) -> &Worker {
        &self.bed.worker
    }

    /// An entry of the wanted kind, if there is any.
    fn pick(&self, index: usize, import: bool) -> Option<usize> {
        let kind: Vec<usize> = (0..self.entries.len())
            .filter(|i| self.entries[*i].owner.is_some() == import)
            .collect();
        (!kind.is_empty()).then(|| kind[index % kind.len()])
    }

    fn add(&mut self, handle: RemoteBuffer, session: usize, owner: Option<usize>) {
        self.entries.push(Entry {
            handle,
            session,
            owner,
            released: false,
        });
    }

    fn apply(&mut self, o: &Orchestrator, op: &Op) {
        match op {
            Op::Malloc(session) => match self.worker().remote_malloc(*session as i32, 8) {
                Ok(handle) => self.add(handle, *session, None),
                Err(error) => self.expect_lost(&error, *session),
            },
            Op::Free(index) => self.release(*index, false),
            Op::Release(index) => self.release(*index, true),
            Op::Import(index, session) => self.import(*index, *session),
            Op::Task(handles, tag) => self.submit(o, handles, Tag::ALL[*tag]),
            Op::Copy(to, from) => self.copy(o, *to, *from),
            Op::Complete(session) => drop(self.bed.remotes[*session].complete_next()),
            Op::Fail(session) => {
                let remote = &self.bed.remotes[*session];
                if let Some(task) = remote.in_flight().first() {
                    remote.fail(task.ticket, "as asked");
                }
            }
            Op::Refuse(session) => self.refuse_next(*session),
            Op::Lose(session) => {
                // One session always lives.
                if self.lost.iter().filter(|lost| **lost).count() + 1 < SESSIONS {
                    self.lost[*session] = true;
                    self.bed.remotes[*session].lose("as asked");
                }
            }
            Op::Drain => self.drain(),
        }
    }

    fn expect_lost(&self, error: &Error, session: usize) {
        assert!(self.lost[session], "{error}");
        assert!(matches!(error, Error::EndpointLost { .. }), "{error:?}");
    }

    fn refuse_next(&self, session: usize) {
        let mut armed = true;
        self.bed.remotes[session].on_control(move |control| match control {
            ControlRequest::Free { .. } | ControlRequest::ReleaseImport { .. }
                if std::mem::take(&mut armed) =>
            {
                ControlVerdict::Refuse("as asked".into())
            }
            _ => ControlVerdict::Carry,
        });
    }

    fn release(&mut self, index: usize, import: bool) {
        let Some(index) = self.pick(index, import) else {
            return;
        };
        let handle = self.entries[index].handle.clone();
        let result = match import {
            true => self.worker().remote_release_import(&handle),
            false => self.worker().remote_free(&handle),
        };
        let entry = &mut self.entries[index];
        match result {
            Err(Error::Handle { .. }) => assert!(entry.released),
            // Done, deferred, or refused and tried again: released it is.
            Ok(()) | Err(Error::Remote { .. }) => {
                assert!(!entry.released);
                entry.released = true;
            }
            Err(error) => panic!("{error:?}"),
        }
        assert!(handle.released());
    }

    fn import(&mut self, index: usize, session: usize) {
        let Some(index) = self.pick(index, false) else {
            return;
        };
        let owner = &self.entries[index];
        if owner.session == session {
            return;
        }
        let (owner_session, released) = (owner.session, owner.released);
        let w = self.worker();
        let export = w.remote_export(&owner.handle, 0, None, AccessFlags::READ_WRITE);
        let import = export.and_then(|export| w.remote_import(&export, session as i32, None));
        match import {
            Ok(handle) => {
                assert!(!released);
                self.add(handle, session, Some(index));
            }
            Err(Error::Handle { .. }) => assert!(released),
            Err(Error::EndpointLost { .. }) => {
                assert!(self.lost[session] || self.lost[owner_session]);
            }
            // The owner's buffers went with it, and the importer was asked before that was known.
            Err(Error::Remote { .. }) => assert!(self.lost[owner_session]),
            Err(error) => panic!("{error:?}"),
        }
    }

    fn submit(&mut self, o: &Orchestrator, handles: &[usize], tag: Tag) {
        if self.entries.is_empty() {
            return;
        }
        let chosen: Vec<&Entry> = handles
            .iter()
            .map(|index| &self.entries[index % self.entries.len()])
            .collect();
        let session = chosen[0].session;
        let mut args = TaskArgs::new();
        let added = chosen
            .iter()
            .try_for_each(|e| args.add_remote(&e.handle, 0, u8s(8), tag).map(drop));
        let result = added.and_then(|()| submit(o, self.task, args));
        let released = chosen.iter().any(|entry| entry.released);
        let apart = chosen.iter().any(|entry| entry.session != session);
        match result {
            Ok(_) => assert!(!released && !apart),
            Err(Error::Handle { .. }) => assert!(released),
            Err(Error::NotEligible { .. } | Error::EndpointLost { .. }) => {
                assert!(apart || self.lost[session]);
            }
            Err(error) => panic!("{error:?}"),
        }
    }

    fn copy(&mut self, o: &Orchestrator, to: usize, from: usize) {
        if self.entries.is_empty() {
            return;
        }
        let side = |index: usize| {
            let entry = &self.entries[index % self.entries.len()];
            let side = CopySide::Remote {
                buffer: entry.handle.clone(),
                offset: 0,
                meta: u8s(8),
            };
            (side, entry.released)
        };
        let (dst, dst_released) = side(to);
        // Every other source is local.
        let (src, src_released) = match from % 2 {
            0 => side(from),
            _ => {
                let memory = HostMemory::from_vec(vec![7; 8]);
                let meta = u8s(8);
                (CopySide::Host { memory, meta }, false)
            }
        };
        match o.copy(dst, src) {
            Ok(_) => assert!(!dst_released && !src_released),
            Err(Error::Handle { .. }) => assert!(dst_released || src_released),
            Err(error) => panic!("{error:?}"),
        }
    }

    /// Ends every task, sends again what was refused, and compares.
    fn drain(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        for remote in &self.bed.remotes {
            remote.carry_controls();
        }
        let unfinished = || {
            let progress = self.worker().progress();
            progress.submitted != progress.finished
        };
        while unfinished() {
            assert!(Instant::now() < deadline, "tasks do not end");
            for remote in &self.bed.remotes {
                while remote.complete_next() {}
            }
            std::thread::yield_now();
        }
        let alive = self.lost.iter().position(|lost| !lost).unwrap();
        while !self.agrees() {
            assert!(Instant::now() < deadline, "{}", self.difference());
            // Every call flushes what is owed.
            let probe = self.worker().remote_malloc(alive as i32, 1).unwrap();
            self.worker().remote_free(&probe).unwrap();
        }
    }

    /// How many buffers and imports the reference says are at a session.
    fn expected(&self, session: usize) -> usize {
        let there = |(index, entry): (usize, &Entry)| {
            let imported = |other: &Entry| other.owner == Some(index) && !other.released;
            entry.session == session && (!entry.released || self.entries.iter().any(imported))
        };
        self.entries
            .iter()
            .enumerate()
            .filter(|e| there(*e))
            .count()
    }

    fn agrees(&self) -> bool {
        (0..SESSIONS)
            .filter(|session| !self.lost[*session])
            .all(|s| self.bed.remotes[s].live_buffers() == self.expected(s))
    }

    fn difference(&self) -> String {
        let at = |s: usize| (self.bed.remotes[s].live_buffers(), self.expected(s));
        format!("(there, expected) by session: {:?}", [at(0), at(1), at(2)])
    }

    fn finish(&mut self) {
        for import in [true, false] {
            for index in 0..self.entries.len() {
                let entry = &mut self.entries[index];
                if entry.owner.is_some() == import && !entry.released {
                    entry.released = true;
                    let handle = entry.handle.clone();
                    let result = match import {
                        true => self.worker().remote_release_import(&handle),
                        false => self.worker().remote_free(&handle),
                    };
                    result.unwrap();
                }
            }
        }
        self.drain();
        for session in (0..SESSIONS).filter(|session| !self.lost[*session]) {
            assert_eq!(self.bed.remotes[session].live_buffers(), 0);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn r_113_r_117_buffers_live_exactly_as_long_as_they_are_needed(
        ops in prop::collection::vec(op(), 1..60)
    ) {
        let bed = Bed::new(0, SESSIONS);
        let task = bed.remote_task();
        bed.remotes.iter().for_each(|remote| remote.hold_tasks());
        // Tasks fail and are lost in most programs: how the run ends is not what is judged here.
        let _ = bed.worker.run_simple(|o| {
            let mut reference = Reference {
                bed: &bed,
                task: &task,
                entries: Vec::new(),
                lost: [false; SESSIONS],
            };
            for op in &ops {
                reference.apply(o, op);
            }
            reference.drain();
            reference.finish();
            bed.remotes.iter().for_each(|remote| remote.on_task(|_| TaskVerdict::Done));
            Ok(())
        });
        prop_assert_eq!(bed.world.violations(), Vec::<String>::new());
    }
}
