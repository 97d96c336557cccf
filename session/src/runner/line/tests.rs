//! The line of commands by itself.

use std::collections::BTreeMap;

use echelon_wire::buffer::{AccessFlags, RemoteTensorDesc};
use echelon_wire::call_config::CallConfig;
use echelon_wire::callable::Digest;
use echelon_wire::codec::Encode as _;
use echelon_wire::frame::control::buffer::{AllocCommand, CopyHeader, FreeCommand};
use echelon_wire::frame::control::transfer::ExportRequest;
use echelon_wire::frame::{Control, ControlName, Features, FrameHeader, FrameType};
use echelon_wire::id::{BufferId, Generation, SessionId, WorkerId};
use echelon_wire::task::{Carrier, TaskArgsWire, TaskPayload};
use echelon_wire::tensor::{DataType, TensorMeta};
use proptest::prelude::*;

use super::*;

fn command(sequence: u64, payload_bytes: usize) -> Command {
    let (session, worker, sequence) = (SessionId(1), WorkerId(2), Sequence(sequence));
    let kind = FrameType::Control;
    let header = FrameHeader::new(kind, session, worker, sequence, payload_bytes);
    Command {
        header: header.expect("a length"),
        payload: vec![0; payload_bytes],
    }
}

fn push(line: &mut Line, sequence: u64, bytes: usize) -> Result<(), String> {
    line.push(command(sequence, bytes), Scope::IN_ORDER, Hand::Main)
}

const FEW: Credits = Credits {
    max_commands: 3,
    max_bytes: 100,
    max_frame_bytes: 100,
};

#[test]
fn without_the_extension_sequences_say_nothing_and_order_is_kept() {
    let mut line = Line::new(None);
    for sequence in [5, 5, 0] {
        push(&mut line, sequence, 1).expect("taken");
    }
    for sequence in [5, 5, 0] {
        let (number, command) = line.take(Hand::Main).expect("a command");
        assert_eq!(command.header.sequence, Sequence(sequence));
        assert!(line.take(Hand::Main).is_none(), "one at a time");
        line.answering(number);
        line.done(number);
    }
    assert!(!line.waits_for(Hand::Main));
}

/// With pipelining a sequence counts on by one, whatever became of the earlier ones.
#[test]
fn a_repeated_lower_or_missing_sequence_is_refused_where_pipelining_was_accepted() {
    for wrong in [0, 1, 2, 4, u64::MAX] {
        let mut line = Line::new(Some(FEW));
        for sequence in [1, 2] {
            push(&mut line, sequence, 1).expect("taken");
            let (number, _) = line.take(Hand::Main).expect("a command");
            line.answering(number);
            line.done(number);
        }
        let error = push(&mut line, wrong, 1).expect_err("refused");
        assert!(error.contains("where 3 belongs"), "{error}");
    }
    let mut line = Line::new(Some(FEW));
    push(&mut line, 2, 1).expect_err("the first is 1");
}

#[test]
fn more_than_the_credits_is_refused_and_an_answer_gives_credit_back() {
    let ready = || {
        let mut line = Line::new(Some(FEW));
        for sequence in 1..=3 {
            push(&mut line, sequence, 30).expect("within credits");
        }
        let (number, _) = line.take(Hand::Main).expect("a command");
        (line, number)
    };
    // Being carried out is not being answered.
    let (mut line, _) = ready();
    let error = push(&mut line, 4, 0).expect_err("a command too many");
    assert!(error.contains("4 commands"), "{error}");
    let (mut line, number) = ready();
    line.answering(number);
    let error = push(&mut line, 4, 41).expect_err("a byte too many");
    assert!(error.contains("101 bytes"), "{error}");
    let (mut line, number) = ready();
    line.answering(number);
    push(&mut line, 4, 40).expect("all of them");
    line.done(number);
    assert_eq!(
        line.take(Hand::Main)
            .map(|(_, command)| command.header.sequence),
        Some(Sequence(2))
    );
}

/// A task with these conditions, as it came.
fn conditional(sequence: u64, conditions: &[u64]) -> Command {
    let mut payload = (conditions.len() as u32).to_le_bytes().to_vec();
    payload.extend(conditions.iter().flat_map(|number| number.to_le_bytes()));
    let mut command = command(sequence, payload.len());
    command.header.frame_type = FrameType::Task;
    command.payload = payload;
    command
}

#[test]
fn a_task_names_tasks_that_came_before_it() {
    let roomy = Credits {
        max_bytes: 1 << 20,
        ..ANNOUNCED
    };
    let line = || {
        let mut line = Line::new(Some(roomy));
        line.take_conditions();
        for sequence in [1, 3] {
            let task = conditional(sequence, &[]);
            line.push(task, Scope::IN_ORDER, Hand::Main).expect("taken");
            push(&mut line, sequence + 1, 1).expect("a control");
        }
        line
    };
    for named in [&[][..], &[1], &[3], &[1, 3]] {
        let task = conditional(5, named);
        line()
            .push(task, Scope::IN_ORDER, Hand::Main)
            .expect("taken");
    }
    // None, a control, itself, a later one, a repeated one, out of order.
    for named in [&[0][..], &[2], &[5], &[6], &[1, 1], &[3, 1]] {
        let task = conditional(5, named);
        let refused = line().push(task, Scope::IN_ORDER, Hand::Main);
        refused.expect_err("it names what it may not");
    }
}

#[test]
fn a_task_that_came_too_long_ago_cannot_be_named() {
    let mut line = Line::new(Some(ANNOUNCED));
    line.take_conditions();
    for sequence in 1..=CONDITION_WINDOW as u64 {
        let task = conditional(sequence, &[]);
        line.push(task, Scope::IN_ORDER, Hand::Main).expect("taken");
        let (number, _) = line.take(Hand::Main).expect("a command");
        line.answering(number);
        line.done(number);
    }
    let next = CONDITION_WINDOW as u64 + 1;
    line.push(conditional(next, &[1]), Scope::IN_ORDER, Hand::Main)
        .expect("the oldest that is kept");
    let error = line
        .push(conditional(next + 1, &[1]), Scope::IN_ORDER, Hand::Main)
        .expect_err("it is not kept any more");
    assert!(error.contains("condition 1"), "{error}");
}

// --- any order that the line allows ------------------------------------------------------------------------

const BOTH: Features = Features::PIPELINING
    .union(Features::CONCURRENT_CONTROL)
    .union(Features::TASK_TAGS);
const ME: WorkerId = WorkerId(2);
const ROOM: usize = 4;

/// A command of a model session.
#[derive(Debug, Clone)]
enum Op {
    /// Buffers that it names, and whether it writes them.
    Task(Vec<(u64, bool)>),
    Alloc,
    Free(u64),
    Write(u64),
    Read(u64),
    Export(u64),
    Register,
}

fn ops() -> impl Strategy<Value = Op> {
    // Three are there from the start, one never. What an allocation made is not named: its id comes with its answer.
    let id = || prop_oneof![8 => 1_u64..4, 1 => Just(99_u64)];
    prop_oneof![
        3 => prop::collection::vec((id(), any::<bool>()), 0..3).prop_map(Op::Task),
        2 => Just(Op::Alloc),
        3 => id().prop_map(Op::Free),
        2 => id().prop_map(Op::Write),
        2 => id().prop_map(Op::Read),
        1 => id().prop_map(Op::Export),
        1 => Just(Op::Register),
    ]
}

impl Op {
    /// The frame's bytes, from which the line takes all it knows.
    fn bytes(&self) -> (FrameType, Vec<u8>) {
        let header = |id: u64| CopyHeader {
            worker_id: ME,
            buffer_id: BufferId(id),
            generation: Generation(1),
            offset: 0,
            size: 0,
        };
        let (name, command) = match self {
            Self::Task(named) => return (FrameType::Task, task_bytes(named)),
            Self::Alloc => (
                ControlName::AllocRemoteBuffer,
                AllocCommand { nbytes: 8 }.to_bytes(),
            ),
            Self::Free(id) => {
                let command = FreeCommand {
                    worker_id: ME,
                    buffer_id: BufferId(*id),
                    generation: Generation(1),
                };
                (ControlName::FreeRemoteBuffer, command.to_bytes())
            }
            Self::Write(id) => (ControlName::CopyToRemote, header(*id).to_bytes()),
            Self::Read(id) => (ControlName::CopyFromRemote, header(*id).to_bytes()),
            Self::Export(id) => {
                let command = ExportRequest {
                    owner_worker_id: ME,
                    buffer_id: BufferId(*id),
                    generation: Generation(1),
                    offset: 0,
                    nbytes: 8,
                    access_flags: AccessFlags::READ,
                    transport_profile: "".into(),
                };
                (ControlName::ExportBuffer, command.to_bytes())
            }
            Self::Register => (ControlName::CommitRegisterCallable, Ok(Vec::new())),
        };
        let control = Control::new(name, command.expect("valid"));
        (FrameType::Control, control.to_bytes().expect("valid"))
    }
}

fn task_bytes(named: &[(u64, bool)]) -> Vec<u8> {
    let mut args = TaskArgsWire::default();
    for (id, writes) in named {
        let desc = RemoteTensorDesc::remote_device(ME, BufferId(*id), Generation(1), 0, 8);
        let desc = desc.with_tag(if *writes { 2 } else { 0 });
        let meta = TensorMeta::new(&[2], DataType::Float32).expect("a shape");
        args.tensors.push(meta);
        args.sidecars.push(Some(desc.expect("a tag")));
    }
    let task = TaskPayload {
        digest: Digest([0; 32]),
        config: CallConfig::default(),
        args,
    };
    task.to_bytes(Carrier::Wire(BOTH)).expect("valid")
}

/// What a session holds, a number in each buffer.
#[derive(Debug, Clone, PartialEq)]
struct Model {
    buffers: BTreeMap<u64, u64>,
    made: u64,
    callables: u64,
}

impl Model {
    fn new() -> Self {
        Self {
            buffers: (1..4).map(|id| (id, id)).collect(),
            made: 3,
            callables: 0,
        }
    }

    /// All that the outcome of `op` depends on.
    fn seen(&self, op: &Op) -> Vec<Option<u64>> {
        let value = |id: &u64| self.buffers.get(id).copied();
        match op {
            Op::Task(named) => {
                let callables = Some(self.callables);
                let values = named.iter().map(|(id, _)| value(id));
                [callables].into_iter().chain(values).collect()
            }
            Op::Alloc => vec![Some(self.buffers.len() as u64), Some(self.made)],
            Op::Read(id) => vec![value(id)],
            Op::Write(id) | Op::Export(id) | Op::Free(id) => vec![value(id).map(|_| 0)],
            Op::Register => vec![Some(self.callables)],
        }
    }

    fn carry_out(&mut self, op: &Op, seen: &[Option<u64>], number: u64) {
        match op {
            Op::Task(named) => {
                let sum = seen.iter().flatten().fold(number, |sum, value| {
                    sum.wrapping_mul(31).wrapping_add(*value)
                });
                for (id, _) in named.iter().filter(|(_, writes)| *writes) {
                    self.buffers.entry(*id).and_modify(|value| *value = sum);
                }
            }
            Op::Alloc if self.buffers.len() < ROOM => {
                self.made += 1;
                self.buffers.insert(self.made, 0);
            }
            Op::Alloc | Op::Read(_) | Op::Export(_) => {}
            Op::Free(id) => drop(self.buffers.remove(id)),
            Op::Write(id) => drop(self.buffers.entry(*id).and_modify(|v| *v = number)),
            Op::Register => self.callables += 1,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// whoever carries commands out when, as the line allows it: each one sees, from its beginning to its end, what it
    /// would have seen had they run one after the other, and all of them leave the same behind.
    #[test]
    fn r_241_every_order_that_is_allowed_has_the_results_of_the_one_sent(
        ops in prop::collection::vec(ops(), 1..25),
        choices in prop::collection::vec(any::<u8>(), 0..120),
    ) {
        let mut reference = Model::new();
        let mut wanted = Vec::new();
        for (number, op) in (1..).zip(&ops) {
            let seen = reference.seen(op);
            reference.carry_out(op, &seen, number);
            wanted.push(seen);
        }
        let mut model = Model::new();
        let mut line = Line::new(Some(ANNOUNCED));
        // One of each hand at a time, as in a session; what a command saw when it began.
        let mut busy = [None, None];
        let hands = [Hand::Main, Hand::Controls];
        let (mut sent, mut done) = (0, 0);
        // When the choices have run out, all goes on in turns.
        for choice in choices.into_iter().chain((0..).map(|i| (i % 7) as u8)) {
            // Tasks take longer than controls, and a parent does not wait for either.
            let who = [0, 1, 1, 2, 2, 2, 2][usize::from(choice % 7)];
            if who == 2 && sent < ops.len() {
                let (kind, payload) = ops[sent].bytes();
                sent += 1;
                let mut command = command(sent as u64, 0);
                command.header.frame_type = kind;
                let scope = Scope::of_command(kind, &payload, BOTH);
                let hand = if scope.is_beside_tasks() { Hand::Controls } else { Hand::Main };
                line.push(command, scope, hand).expect("within credits");
            } else if let Some(slot) = busy.get_mut(who) {
                if let Some((number, at, began)) = slot.take() {
                    let at: usize = at;
                    let op = &ops[at];
                    let seen = model.seen(op);
                    prop_assert_eq!(&seen, &began, "{:?} saw a change", op);
                    prop_assert_eq!(&seen, &wanted[at], "{:?} came too early or late", op);
                    model.carry_out(op, &seen, at as u64 + 1);
                    line.answering(number);
                    line.done(number);
                    done += 1;
                } else if let Some((number, command)) = line.take(hands[who]) {
                    let at = command.header.sequence.0 as usize - 1;
                    *slot = Some((number, at, model.seen(&ops[at])));
                }
            }
            if done == ops.len() {
                break;
            }
        }
        prop_assert_eq!(model, reference);
    }
}

/// an allocation, and copies of a buffer of its own, do not wait for the task that runs; what concerns the task does.
#[test]
fn r_241_what_is_unrelated_is_carried_out_while_a_task_runs() {
    let mut line = Line::new(Some(ANNOUNCED));
    let ops = [
        Op::Task(vec![(1, true)]),
        Op::Free(1),
        Op::Write(2),
        Op::Task(vec![(2, false)]),
        Op::Read(2),
        Op::Register,
        Op::Export(3),
    ];
    for (sequence, op) in (1..).zip(&ops) {
        let (kind, payload) = op.bytes();
        let mut command = command(sequence, 0);
        command.header.frame_type = kind;
        let scope = Scope::of_command(kind, &payload, BOTH);
        let hand = if scope.is_beside_tasks() {
            Hand::Controls
        } else {
            Hand::Main
        };
        line.push(command, scope, hand).expect("within credits");
    }
    let next = |line: &mut Line, hand| {
        line.take(hand)
            .map(|(number, command)| (number, command.header.sequence.0))
    };
    let (task, sequence) = next(&mut line, Hand::Main).expect("the task");
    assert_eq!(sequence, 1);
    let mut beside = Vec::new();
    while let Some((number, sequence)) = next(&mut line, Hand::Controls) {
        line.done(number);
        beside.push(sequence);
    }
    // Not the free of what the task uses; the second task only reads what the copy reads.
    assert_eq!(beside, [3, 5, 7]);
    assert!(next(&mut line, Hand::Main).is_none(), "one task at a time");
    line.done(task);
    assert_eq!(next(&mut line, Hand::Controls).map(|n| n.1), Some(2));
    let (second, sequence) = next(&mut line, Hand::Main).expect("the second task");
    assert_eq!(sequence, 4);
    assert!(
        next(&mut line, Hand::Main).is_none(),
        "registration is last"
    );
    line.done(second);
    assert_eq!(next(&mut line, Hand::Main).map(|n| n.1), Some(6));
}
