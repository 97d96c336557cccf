//! Random programs over handles against a reference: a buffer is there exactly as long as its handle, a task or an import needs
//! it, whatever fails on the way. The fakes report every use after a free and every free in use.

use std::time::Instant;

use echelon_runtime::endpoint::ControlRequest;
use echelon_runtime::memory::HostMemory;
use echelon_runtime::testing::fake::{ControlVerdict, TaskVerdict, PATIENCE};
use echelon_runtime::{
    CallableHandle, CopySide, Error, Orchestrator, RemoteBuffer, RemoteExport, Tag, TaskArgs,
    Worker,
};
use echelon_wire::buffer::AccessFlags;
use proptest::prelude::*;

use crate::bed::{submit, u8s, Bed};

const SESSIONS: usize = 3;

#[derive(Clone, Debug)]
enum Op {
    Malloc(usize),
    Free(usize),
    /// Exports outlive the handle, its release and its session; what is importable is decided at the import.
    Export(usize),
    Import(usize, usize),
    Release(usize),
    Task(Vec<usize>, usize),
    Copy(usize, usize),
    Complete(usize),
    Fail(usize),
    /// The next control of this kind at this session goes wrong in this way.
    Spoil(usize, Step, Fault),
    /// The next task at this session is refused, or takes it down.
    SpoilTask(usize, Fault),
    Lose(usize),
    /// Everything ends; then what is there is compared.
    Drain,
}

/// The kinds of control.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    Alloc,
    Export,
    Import,
    Copy,
    /// A free, or the release of an import.
    Release,
}

impl Step {
    fn of(control: &ControlRequest) -> Option<Self> {
        match control {
            ControlRequest::Alloc { .. } => Some(Self::Alloc),
            ControlRequest::Export { .. } => Some(Self::Export),
            ControlRequest::Import { .. } => Some(Self::Import),
            ControlRequest::CopyTo { .. } | ControlRequest::CopyFrom { .. } => Some(Self::Copy),
            ControlRequest::Free { .. } | ControlRequest::ReleaseImport { .. } => {
                Some(Self::Release)
            }
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Refuse,
    /// It is done and refused all the same: only releases can be tried again then.
    DoAndRefuse,
    Lose,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => Just(Step::Alloc),
        1 => Just(Step::Export),
        1 => Just(Step::Import),
        1 => Just(Step::Copy),
        3 => Just(Step::Release),
    ]
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        4 => Just(Fault::Refuse),
        3 => Just(Fault::DoAndRefuse),
        1 => Just(Fault::Lose),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let any = 0..64_usize;
    let session = 0..SESSIONS;
    prop_oneof![
        4 => session.clone().prop_map(Op::Malloc),
        3 => any.clone().prop_map(Op::Free),
        3 => any.clone().prop_map(Op::Export),
        4 => (any.clone(), session.clone()).prop_map(|(e, s)| Op::Import(e, s)),
        3 => any.clone().prop_map(Op::Release),
        6 => (prop::collection::vec(any.clone(), 1..4), 0..5_usize).prop_map(|(h, t)| Op::Task(h, t)),
        2 => (any.clone(), any).prop_map(|(a, b)| Op::Copy(a, b)),
        4 => session.clone().prop_map(Op::Complete),
        1 => session.clone().prop_map(Op::Fail),
        2 => (session.clone(), step(), fault()).prop_map(|(s, k, f)| Op::Spoil(s, k, f)),
        1 => (session.clone(), fault()).prop_map(|(s, f)| Op::SpoilTask(s, f)),
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
    /// With the index of the owner.
    exports: Vec<(RemoteExport, usize)>,
    lost: [bool; SESSIONS],
    /// What is about to go wrong at a session.
    spoilt: [Option<(Step, Fault)>; SESSIONS],
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
                Err(error) => self.expect(&error, &[*session]),
            },
            Op::Free(index) => self.release(*index, false),
            Op::Release(index) => self.release(*index, true),
            Op::Export(index) => self.export(*index),
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
            Op::Spoil(session, step, fault) => self.spoil(*session, *step, *fault),
            Op::SpoilTask(session, fault) => self.spoil_task(*session, *fault),
            Op::Lose(session) => {
                if self.may_lose(*session) {
                    self.bed.remotes[*session].lose("as asked");
                }
            }
            Op::Drain => self.drain(),
        }
    }

    /// A call may fail for want of a session that was lost, or because of what was spoilt on the way.
    fn expect(&self, error: &Error, sessions: &[usize]) {
        let lost = sessions.iter().any(|session| self.lost[*session]);
        let spoilt = sessions.iter().any(|s| self.spoilt[*s].is_some());
        match error {
            Error::EndpointLost { .. } => assert!(lost, "{error}"),
            // An importer is asked before it is known that the owner went with all its buffers.
            Error::Remote { .. } => assert!(spoilt || lost, "{error}"),
            error => panic!("{error:?}"),
        }
    }

    /// One session always lives. Notes that this one does not, from now on or from its next control on.
    fn may_lose(&mut self, session: usize) -> bool {
        let others = (0..SESSIONS).filter(|other| *other != session && self.lost[*other]);
        if others.count() + 1 >= SESSIONS {
            return false;
        }
        self.lost[session] = true;
        true
    }

    fn spoil(&mut self, session: usize, step: Step, fault: Fault) {
        if fault == Fault::Lose && !self.may_lose(session) {
            return;
        }
        // What was made and refused is known to nobody but its session: no parent can give that back.
        let makes = matches!(step, Step::Alloc | Step::Import);
        let verdict = match fault {
            Fault::Lose => ControlVerdict::Lose("as asked".into()),
            Fault::DoAndRefuse if !makes => ControlVerdict::CarryAndRefuse("as asked".into()),
            _ => ControlVerdict::Refuse("as asked".into()),
        };
        self.spoilt[session] = Some((step, fault));
        let mut armed = Some(verdict);
        self.bed.remotes[session].on_control(move |control| {
            if Step::of(control) == Some(step) {
                return armed.take().unwrap_or(ControlVerdict::Carry);
            }
            ControlVerdict::Carry
        });
    }

    fn spoil_task(&mut self, session: usize, fault: Fault) {
        if fault == Fault::Lose && !self.may_lose(session) {
            return;
        }
        let mut armed = Some(match fault {
            Fault::Lose => TaskVerdict::Lose("as asked".into()),
            Fault::DoAndRefuse => TaskVerdict::Fail("as asked".into()),
            Fault::Refuse => TaskVerdict::Refuse("as asked".into()),
        });
        self.bed.remotes[session].on_task(move |_| armed.take().unwrap_or(TaskVerdict::Hold));
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

    fn export(&mut self, index: usize) {
        let Some(index) = self.pick(index, false) else {
            return;
        };
        let owner = &self.entries[index];
        let access = AccessFlags::READ_WRITE;
        match self.worker().remote_export(&owner.handle, 0, None, access) {
            Ok(export) => {
                assert!(!owner.released);
                self.exports.push((export, index));
            }
            Err(Error::Handle { .. }) => assert!(owner.released),
            Err(error) => self.expect(&error, &[owner.session]),
        }
    }

    fn import(&mut self, index: usize, session: usize) {
        if self.exports.is_empty() {
            return;
        }
        let (export, owner) = &self.exports[index % self.exports.len()];
        let (owner, owner_session) = (*owner, self.entries[*owner].session);
        let released = self.entries[owner].released;
        match self.worker().remote_import(export, session as i32, None) {
            Ok(handle) => {
                assert!(!released && owner_session != session);
                self.add(handle, session, Some(owner));
            }
            // A session uses its own buffers by the owner's handle.
            Err(Error::Argument { .. }) => assert_eq!(owner_session, session),
            Err(Error::Handle { .. }) => assert!(released),
            Err(error) => self.expect(&error, &[session, owner_session]),
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
        let written = tag.writes() && tag != Tag::NoDep;
        let of_one_buffer = |e: &Entry, f: &Entry| e.owner.is_some() && e.owner == f.owner;
        let twice = chosen.iter().enumerate().any(|(n, e)| {
            let mut others = chosen[..n].iter();
            written && others.any(|f| of_one_buffer(e, f) && !std::ptr::eq(*e, *f))
        });
        match result {
            Ok(_) => assert!(!released && !apart && !twice),
            Err(Error::Handle { .. }) => assert!(released),
            Err(Error::Argument { .. }) => assert!(twice),
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
        for (session, remote) in self.bed.remotes.iter().enumerate() {
            // A loss that has not happened yet happens now.
            if self.lost[session] {
                remote.lose("as asked");
            }
            remote.carry_controls();
            remote.hold_tasks();
            self.spoilt[session] = None;
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
    #![proptest_config(ProptestConfig { cases: 256, max_shrink_iters: 64, ..ProptestConfig::default() })]

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
                exports: Vec::new(),
                lost: [false; SESSIONS],
                spoilt: [None; SESSIONS],
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
