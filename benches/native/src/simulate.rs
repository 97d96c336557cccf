//! The scheduler alone, as pure code: `simulate ENDPOINTS TASKS` prints the nanoseconds and the bytes that each task costs.
//!
//! Tasks read or write one of so many pieces of memory as there are endpoints, every fourth writes; any endpoint may run any task.
//! Each endpoint has two places. Whatever is dispatched ends in the order of dispatch, as soon as every place is taken or so many
//! tasks are in the table as a run may have: one submit and one end for each task, which are the decisions that are counted.

use std::collections::VecDeque;
use std::time::Instant;

use echelon_runtime::graph::{
    Access, AccessMode, Action, Eligible, EndpointId, Event, MemberResult, NodeKind, NodeSpec,
    RunId, Scheduler, Space,
};

type Fault = Box<dyn std::error::Error>;

/// Unfinished tasks at a time.
const TABLE: u32 = 1 << 16;
const PLACES: u32 = 2;
/// Every so many tasks one writes.
const WRITES: u64 = 4;

#[allow(clippy::print_stdout, clippy::print_stderr)] // A command says what it found, or why not.
fn main() {
    let numbers: Vec<u64> = std::env::args()
        .skip(1)
        .filter_map(|text| text.parse().ok())
        .collect();
    let [endpoints @ 1..=100_000, tasks @ 1..=1_000_000_000] = numbers[..] else {
        eprintln!("simulate ENDPOINTS TASKS: 1 to 100000 endpoints, 1 to 1000000000 tasks");
        std::process::exit(2);
    };
    match simulate(endpoints as u32, tasks) {
        Ok((ns, bytes)) => println!("{{\"ns\": {ns:.1}, \"peak_kib\": {bytes}}}"),
        Err(error) => {
            eprintln!("simulate: {error}");
            std::process::exit(1);
        }
    }
}

fn simulate(endpoints: u32, tasks: u64) -> Result<(f64, u64), Fault> {
    let mut scheduler = Scheduler::new(TABLE);
    let mut out = Vec::new();
    for id in 0..endpoints {
        let event = Event::EndpointAdded {
            endpoint: EndpointId(id),
            capacity: PLACES,
            depth: PLACES,
        };
        scheduler.handle(event, &mut out);
    }
    let eligible =
        Eligible::new((0..endpoints).map(EndpointId)).ok_or("there is no endpoint to choose")?;
    let mut running = VecDeque::new();
    let mut state = 1_u64;
    let start = Instant::now();
    for task in 0..tasks {
        // A linear congruential generator: the same tasks in every run.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let cell = (state >> 33) % u64::from(endpoints);
        let spec = NodeSpec {
            run: RunId(1),
            kind: NodeKind::Single {
                eligible: eligible.clone(),
            },
            accesses: vec![Access {
                space: Space::Region(1),
                start: cell * 64,
                end: cell * 64 + 64,
                mode: if task % WRITES == 0 {
                    AccessMode::Write
                } else {
                    AccessMode::Read
                },
            }],
            prefer: None,
        };
        scheduler.submit(spec, &mut out)?;
        take(&mut out, &mut running);
        while running.len() >= (endpoints * PLACES) as usize || !scheduler.has_room() {
            end_one(&mut scheduler, &mut out, &mut running)?;
        }
    }
    while scheduler.live() > 0 {
        end_one(&mut scheduler, &mut out, &mut running)?;
    }
    Ok((
        start.elapsed().as_nanos() as f64 / tasks as f64,
        peak_kib()?,
    ))
}

fn take(out: &mut Vec<Action>, running: &mut VecDeque<Event>) {
    running.extend(out.drain(..).filter_map(|action| match action {
        Action::Dispatch {
            task,
            member,
            endpoint,
            ..
        } => Some(Event::MemberDone {
            task,
            member,
            endpoint,
            result: MemberResult::Completed,
        }),
        _ => None,
    }));
}

fn end_one(
    scheduler: &mut Scheduler,
    out: &mut Vec<Action>,
    running: &mut VecDeque<Event>,
) -> Result<(), Fault> {
    let event = running.pop_front().ok_or("tasks wait and none runs")?;
    scheduler.handle(event, out);
    take(out, running);
    Ok(())
}

/// The most memory that was ever resident.
fn peak_kib() -> Result<u64, Fault> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(number.ok_or("no VmHWM")?.parse()?)
}
