//! The pure parts, each alone: codec, dependency map, scheduler, ring. `make bench-micro`.
#![allow(missing_docs)] // The macros of criterion make functions without.

use std::hint::black_box;

use criterion::{criterion_group, criterion_main, Criterion};
use echelon_runtime::graph::{
    Access, AccessMode, Action, Eligible, EndpointId, Event, MemberResult, NodeKind, NodeSpec,
    RunId, Scheduler, Space,
};
use echelon_runtime::mailbox::{Bell, ChildSide, Mailbox, RecordHead};
use echelon_wire::call_config::CallConfig;
use echelon_wire::callable::Digest;
use echelon_wire::task::{Carrier, TaskArgsWire, TaskPayload};

/// Pieces of memory that tasks of the dependency map touch.
const CELLS: u64 = 64;
const RING_BYTES: u64 = 1 << 16;

fn codec(criterion: &mut Criterion) {
    let payload = TaskPayload {
        digest: Digest([7; 32]),
        config: CallConfig::default(),
        args: TaskArgsWire {
            scalars: vec![1, 2],
            ..TaskArgsWire::default()
        },
    };
    let Ok(bytes) = payload.to_bytes(Carrier::V1) else {
        return;
    };
    let mut group = criterion.benchmark_group("codec");
    group.bench_function("encode a task", |bencher| {
        bencher.iter(|| black_box(&payload).to_bytes(Carrier::V1));
    });
    group.bench_function("decode a task", |bencher| {
        bencher.iter(|| TaskPayload::decode(black_box(&bytes), Carrier::V1).is_ok());
    });
    group.finish();
}

fn task(endpoint: EndpointId, accesses: Vec<Access>) -> NodeSpec {
    NodeSpec {
        run: RunId(1),
        kind: NodeKind::Single {
            eligible: Eligible::one(endpoint),
        },
        accesses,
        prefer: None,
    }
}

/// A scheduler with one endpoint that ends what it is given at once.
struct AtOnce {
    scheduler: Scheduler,
    out: Vec<Action>,
}

impl AtOnce {
    const ENDPOINT: EndpointId = EndpointId(0);

    fn new() -> Self {
        Self::with_places(2)
    }

    fn with_places(places: u32) -> Self {
        let mut scheduler = Scheduler::new(1 << 16);
        let mut out = Vec::new();
        let added = Event::EndpointAdded {
            endpoint: Self::ENDPOINT,
            capacity: places,
            depth: places,
        };
        scheduler.handle(added, &mut out);
        Self { scheduler, out }
    }

    fn run(&mut self, accesses: Vec<Access>) {
        let submitted = self
            .scheduler
            .submit(task(Self::ENDPOINT, accesses), &mut self.out);
        assert!(submitted.is_ok(), "{submitted:?}");
        while let Some(action) = self.out.pop() {
            if let Action::Dispatch {
                task,
                member,
                endpoint,
                ..
            } = action
            {
                let result = MemberResult::Completed;
                let done = Event::MemberDone {
                    task,
                    member,
                    endpoint,
                    result,
                };
                self.scheduler.handle(done, &mut self.out);
            }
        }
    }
}

fn scheduler(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("scheduler");
    let mut free = AtOnce::new();
    group.bench_function("submit and end, no memory", |bencher| {
        bencher.iter(|| free.run(Vec::new()));
    });
    let (mut ordered, mut cell) = (AtOnce::new(), 0);
    group.bench_function("submit and end, one cell written", |bencher| {
        bencher.iter(|| {
            cell = (cell + 1) % CELLS;
            ordered.run(vec![write(cell)]);
        });
    });
    group.finish();
}

fn write(cell: u64) -> Access {
    Access {
        space: Space::Region(1),
        start: cell * 64,
        end: cell * 64 + 64,
        mode: AccessMode::Write,
    }
}

/// Tasks that cannot start, so that nothing but the map is at work: a chain in each cell, then all cancelled. The one place of the one
/// endpoint is taken.
fn dependency_map(criterion: &mut Criterion) {
    const CHAIN: u64 = 64;
    let mut group = criterion.benchmark_group("dependency map");
    group.bench_function("4,096 submits behind each other in 64 cells", |bencher| {
        bencher.iter(|| {
            let AtOnce {
                mut scheduler,
                mut out,
            } = AtOnce::with_places(1);
            let first = scheduler.submit(task(AtOnce::ENDPOINT, Vec::new()), &mut out);
            assert!(first.is_ok(), "{first:?}");
            for n in 0..CELLS * CHAIN {
                let spec = task(AtOnce::ENDPOINT, vec![write(n % CELLS)]);
                let submitted = scheduler.submit(spec, &mut out);
                assert!(submitted.is_ok(), "{submitted:?}");
            }
            scheduler.handle(Event::CancelRun { run: RunId(1) }, &mut out);
            out.len()
        });
    });
    group.finish();
}

fn ring(criterion: &mut Criterion) {
    let sides = || {
        let parent = Mailbox::create(RING_BYTES, RING_BYTES)
            .ok()?
            .into_parent_side()
            .ok()?;
        let fd = parent.fd().try_clone_to_owned().ok()?;
        Some((parent, ChildSide::attach(fd, Bell::create().ok()?).ok()?))
    };
    let Some((mut parent, mut child)) = sides() else {
        return;
    };
    let head = RecordHead { kind: 1, ticket: 1 };
    let (record, mut payload) = ([0_u8; 100], Vec::new());
    let mut group = criterion.benchmark_group("ring");
    group.bench_function("100 bytes down, in one thread", |bencher| {
        bencher.iter(|| {
            black_box(parent.send(head, &record).is_ok());
            black_box(child.receive(&mut payload).is_ok())
        });
    });
    group.finish();
}

criterion_group!(benches, codec, dependency_map, scheduler, ring);
criterion_main!(benches);
