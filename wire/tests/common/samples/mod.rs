//! Random valid messages of every kind, with their fields and our encoding.

mod controls;
mod extensions;

use echelon_wire::callable::encode_serialized;
use echelon_wire::{
    encode_frame, AccessFlags, AddressSpace, BufferId, CallConfig, Carrier, Completion, DataType,
    Digest, Encode, FailureKind, Generation, Hello, ReadyState, RemoteTensorDesc, Sequence,
    SessionId, TaskArgsWire, TaskPayload, TensorFlags, TensorMeta, TimedCompletion, WorkerId,
    Writer,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{json, Value};

use super::layouts::frame_types;
use super::{fields, hex, TAGGED, WITH_FLOAT64};

/// A valid message.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) kind: &'static str,
    pub(crate) fields: Value,
    pub(crate) bytes: Vec<u8>,
}

fn sample<T: Encode>(kind: &'static str, message: &T, fields: fn(&T) -> Value) -> Sample {
    Sample {
        kind,
        fields: fields(message),
        bytes: message.to_bytes().expect("a valid message"),
    }
}

/// Any message of any kind.
pub(crate) fn any_sample() -> BoxedStrategy<Sample> {
    prop_oneof![
        payloads(),
        tasks(Carrier::V1),
        tasks(WITH_FLOAT64),
        tasks(TAGGED),
        tasks(Carrier::Mailbox),
        controls::controls(),
        controls::buffers(),
        controls::transfers(),
        extensions::extensions(),
        frames(),
    ]
    .boxed()
}

fn some_bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..40)
}

/// Text with characters of 1 to 4 bytes, and NUL.
fn some_text() -> impl Strategy<Value = String> {
    vec(
        prop_oneof![any::<char>(), Just('\0'), Just('é'), Just('𝄞')],
        0..20,
    )
    .prop_map(|characters| characters.into_iter().collect())
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![any::<u64>(), 0..4_u64, Just(u64::MAX)]
}

fn id() -> impl Strategy<Value = u64> {
    prop_oneof![1..4_u64, 1..=u64::MAX]
}

fn worker() -> impl Strategy<Value = WorkerId> {
    prop_oneof![0..4, 0..=i32::MAX].prop_map(WorkerId)
}

fn digest() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest)
}

fn access() -> impl Strategy<Value = AccessFlags> {
    select(vec![
        AccessFlags::READ,
        AccessFlags::WRITE,
        AccessFlags::READ_WRITE,
    ])
}

fn window() -> impl Strategy<Value = AddressSpace> {
    select(vec![AddressSpace::RemoteWindow, AddressSpace::UbLdst])
}

fn call_config() -> impl Strategy<Value = CallConfig> {
    (any::<[i32; 7]>(), some_text()).prop_map(|(n, text)| CallConfig {
        block_dim: n[0],
        aicpu_thread_num: n[1],
        enable_l2_swimlane: n[2],
        enable_dump_tensor: n[3],
        enable_pmu: n[4],
        enable_dep_gen: n[5],
        enable_scope_stats: n[6],
        output_prefix: format!("/{text}"),
    })
}

fn tensor(carrier: Carrier) -> impl Strategy<Value = TensorMeta> {
    let types: Vec<_> = DataType::ALL
        .into_iter()
        .filter(|dtype| dtype.fits(carrier))
        .collect();
    let shape = vec(prop_oneof![0..5_u32, 0..1_000_000_u32], 1..=3);
    let deep = vec(0..4096_u32, 4..=5);
    (prop_oneof![shape, deep], select(types), any::<bool>()).prop_map(|(shape, dtype, child)| {
        TensorMeta::new(&shape, dtype)
            .expect("it fits")
            .with_child_memory(child)
    })
}

fn remote_desc() -> impl Strategy<Value = RemoteTensorDesc> {
    let space = select(vec![
        AddressSpace::RemoteDevice,
        AddressSpace::RemoteWindow,
        AddressSpace::UbLdst,
    ]);
    (
        space,
        worker(),
        (id(), id()),
        (0..=u64::MAX / 2, 0..=u64::MAX / 2),
        any::<[u64; 2]>(),
    )
        .prop_map(
            |(space, owner, (buffer, generation), (offset, nbytes), [addr, rkey])| {
                let desc = RemoteTensorDesc::remote_device(
                    owner,
                    BufferId(buffer),
                    Generation(generation),
                    offset,
                    nbytes,
                );
                RemoteTensorDesc {
                    address_space: space,
                    remote_addr: addr,
                    rkey_or_token: rkey,
                    ..desc
                }
            },
        )
}

fn tensor_flags() -> impl Strategy<Value = TensorFlags> {
    (option::of(0..=4_u8), any::<bool>())
        .prop_map(|(tag, read_only)| TensorFlags { tag, read_only })
}

fn local_desc() -> impl Strategy<Value = RemoteTensorDesc> {
    (
        any::<u64>(),
        0..=u64::MAX / 2,
        0..=u64::MAX / 2,
        tensor_flags(),
    )
        .prop_map(|(region, offset, nbytes, flags)| {
            RemoteTensorDesc::local_shared(region, offset, nbytes, flags).expect("a valid tag")
        })
}

fn sidecar(carrier: Carrier, arena: usize) -> BoxedStrategy<Option<RemoteTensorDesc>> {
    let arena = arena as u64;
    let inline = (0..=arena, any::<u64>()).prop_flat_map(move |(start, offset)| {
        (0..=arena - start).prop_map(move |length| RemoteTensorDesc {
            // The contract leaves the offset of inline memory free, within the rule for sums.
            offset: offset.min(u64::MAX - length),
            ..RemoteTensorDesc::host_inline(start, length)
        })
    });
    match carrier {
        TAGGED => {
            let tagged = (prop_oneof![inline, remote_desc()], 0..=4_u8)
                .prop_map(|(desc, tag)| desc.with_tag(tag).expect("a valid tag"));
            option::of(tagged).boxed()
        }
        Carrier::Wire(_) => option::of(prop_oneof![inline, remote_desc()]).boxed(),
        Carrier::Mailbox => {
            let tagged =
                (prop_oneof![inline, remote_desc()], tensor_flags()).prop_map(|(desc, flags)| {
                    RemoteTensorDesc {
                        flags: flags.bits().expect("a valid tag"),
                        ..desc
                    }
                });
            option::of(prop_oneof![local_desc(), tagged]).boxed()
        }
    }
}

fn task_args(carrier: Carrier) -> impl Strategy<Value = TaskArgsWire<'static>> {
    some_bytes().prop_flat_map(move |arena| {
        let pairs = vec((tensor(carrier), sidecar(carrier, arena.len())), 0..6);
        (pairs, vec(number(), 0..6), Just(arena)).prop_map(|(pairs, scalars, arena)| {
            let (tensors, sidecars) = pairs.into_iter().unzip();
            TaskArgsWire {
                tensors,
                sidecars,
                scalars,
                inline: arena.into(),
            }
        })
    })
}

fn tasks(carrier: Carrier) -> BoxedStrategy<Sample> {
    let (args_kind, task_kind) = match carrier {
        TAGGED => ("remote_task_args_tagged", "task_tagged"),
        WITH_FLOAT64 => ("remote_task_args_extended", "task_extended"),
        Carrier::Wire(_) => ("remote_task_args", "task"),
        Carrier::Mailbox => ("remote_task_args_mailbox", "task_mailbox"),
    };
    prop_oneof![
        task_args(carrier).prop_map(move |args| {
            let mut writer = Writer::new();
            args.encode(carrier, &mut writer).expect("a valid message");
            Sample {
                kind: args_kind,
                fields: fields::args(&args),
                bytes: writer.into_bytes(),
            }
        }),
        (digest(), call_config(), task_args(carrier)).prop_map(move |(digest, config, args)| {
            let task = TaskPayload {
                digest,
                config,
                args,
            };
            let bytes = task.to_bytes(carrier).expect("a valid message");
            Sample {
                kind: task_kind,
                fields: fields::task(&task),
                bytes,
            }
        }),
    ]
    .boxed()
}

fn payloads() -> BoxedStrategy<Sample> {
    let hello = (id(), worker(), some_text(), any::<u64>(), any::<bool>()).prop_map(
        |(session, worker_id, profile, feature_flags, ready)| Hello {
            session_id: SessionId(session),
            worker_id,
            comm_profile: profile.into(),
            feature_flags,
            ready_state: if ready {
                ReadyState::Ready
            } else {
                ReadyState::NotReady
            },
        },
    );
    let completion =
        (number(), any::<i32>(), some_text()).prop_map(|(sequence, code, text)| Completion {
            sequence: Sequence(sequence),
            error_code: code,
            error_message: text.into(),
        });
    let timed = (
        number(),
        0..5_u32,
        (number(), number()),
        some_text(),
        some_bytes(),
    )
        .prop_map(|(sequence, kind, (a, b), text, result)| TimedCompletion {
            sequence: Sequence(sequence),
            error_code: i32::from(kind != 0),
            failure_kind: FailureKind::from_code(kind).expect("a kind"),
            start_ns: a.min(b),
            end_ns: a.max(b),
            error_message: text.into(),
            result: result.into(),
        });
    prop_oneof![
        hello.prop_map(|m| sample("hello", &m, fields::hello)),
        call_config().prop_map(|m| sample("call_config", &m, fields::call_config)),
        tensor(Carrier::V1).prop_map(|m| sample("tensor", &m, fields::tensor)),
        remote_desc().prop_map(|m| sample("remote_tensor_desc", &m, fields::desc)),
        completion.prop_map(|m| sample("completion", &m, fields::completion)),
        timed.prop_map(|m| sample("timed_completion", &m, fields::timed_completion)),
        some_bytes().prop_map(|payload| Sample {
            kind: "serialized",
            fields: json!({ "payload_hex": hex(&payload) }),
            bytes: encode_serialized(&payload).expect("short"),
        }),
    ]
    .boxed()
}

fn frames() -> BoxedStrategy<Sample> {
    let types = select(frame_types());
    (types, any::<u64>(), any::<i32>(), number(), some_bytes())
        .prop_map(|(frame_type, session, worker, sequence, payload)| {
            let extended = frame_type.code() >= 64;
            let bytes = encode_frame(
                frame_type,
                SessionId(session),
                WorkerId(worker),
                Sequence(sequence),
                &payload,
            );
            Sample {
                kind: if extended { "frame_extended" } else { "frame" },
                fields: json!({
                    "frame_type": frame_type.code(),
                    "session_id": session,
                    "worker_id": worker,
                    "sequence": sequence,
                    "payload_bytes": payload.len(),
                    "flags": 0,
                    "payload_hex": hex(&payload),
                }),
                bytes: bytes.expect("a short payload"),
            }
        })
        .boxed()
}
