//! Random messages that only extensions have: credits, the peer lane, staging.

use echelon_wire::frame::control::stage::{StageAppend, StageBegin, StageToken};
use echelon_wire::frame::control::transfer::{PeerFence, TcpDescriptor};
use echelon_wire::frame::peer::{PeerRange, PeerRefused, Refusal, Ticket};
use echelon_wire::{
    BufferId, Credits, Encode, Features, Generation, Hello, ReadyState, SessionId, Writer,
};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::json;

use super::{id, number, sample, some_bytes, some_text, worker, Sample};
use crate::common::{fields, hex};

fn ticket() -> impl Strategy<Value = Ticket> {
    any::<[u8; 32]>().prop_map(Ticket)
}

fn range(nbytes: impl Strategy<Value = u32>) -> impl Strategy<Value = PeerRange> {
    (ticket(), (id(), id()), 0..u64::MAX - (1 << 20), nbytes).prop_map(
        |(ticket, (buffer, generation), offset, nbytes)| PeerRange {
            ticket,
            buffer_id: BufferId(buffer),
            generation: Generation(generation),
            offset,
            nbytes,
        },
    )
}

fn hello() -> impl Strategy<Value = Sample> {
    let credits = (1..=u32::MAX, number(), 65_536..=16_777_216_u32);
    (id(), worker(), some_text(), any::<u64>(), credits).prop_map(
        |(session, worker_id, profile, flags, (commands, bytes, frame))| {
            let hello = Hello {
                session_id: SessionId(session),
                worker_id,
                comm_profile: profile.into(),
                feature_flags: flags | Features::PIPELINING.bits(),
                ready_state: ReadyState::Ready,
            };
            let credits = Credits {
                max_commands: commands,
                max_bytes: bytes.max(frame.into()),
                max_frame_bytes: frame,
            };
            let mut writer = Writer::new();
            let written = hello.encode_with(Some(&credits), &mut writer);
            written.expect("a valid message");
            Sample {
                kind: "hello_pipelined",
                fields: fields::hello_pipelined(&hello, Some(&credits)),
                bytes: writer.into_bytes(),
            }
        },
    )
}

fn peer_lane() -> BoxedStrategy<Sample> {
    let write = vec(any::<u8>(), 1..40).prop_flat_map(|data| {
        range(Just(data.len() as u32)).prop_map(move |range| {
            let mut bytes = range.to_bytes().expect("a valid message");
            bytes.extend(&data);
            Sample {
                kind: "peer_write",
                fields: json!({"range": fields::peer_range(&range), "data_hex": hex(&data)}),
                bytes,
            }
        })
    });
    let refused = (1..=6_u32, some_text()).prop_map(|(code, text)| PeerRefused {
        reason: Refusal::from_code(code).expect("a reason"),
        message: text.into(),
    });
    let texts = (some_text(), some_text());
    let descriptor = (id(), ticket(), texts, 1..=u16::MAX).prop_map(
        |(session, ticket, (host, segment), port)| TcpDescriptor {
            session_id: SessionId(session),
            ticket,
            host: format!("h{host}").into(),
            port,
            segment: segment.into(),
        },
    );
    let fence = (worker(), id(), id(), id(), any::<bool>()).prop_map(
        |(worker_id, buffer, generation, importer, lasting)| PeerFence {
            worker_id,
            buffer_id: BufferId(buffer),
            generation: Generation(generation),
            importer: SessionId(importer),
            lasting,
        },
    );
    prop_oneof![
        fence.prop_map(|m| sample("peer_fence", &m, fields::peer_fence)),
        range(1..=1_u32 << 20).prop_map(|m| sample("peer_range", &m, fields::peer_range)),
        write,
        refused.prop_map(|m| sample("peer_refused", &m, fields::peer_refused)),
        descriptor.prop_map(|m| sample("tcp_descriptor", &m, fields::tcp_descriptor)),
    ]
    .boxed()
}

fn staging() -> BoxedStrategy<Sample> {
    let token = || vec(any::<u8>(), 1..40);
    let begin = (1..=64_u64 << 20, any::<[u8; 32]>()).prop_map(|(blob_size, blob_sha256)| {
        let begin = StageBegin {
            blob_size,
            blob_sha256,
        };
        sample("stage_begin", &begin, fields::stage_begin)
    });
    let named = token().prop_map(|token| {
        let token = StageToken {
            token: token.into(),
        };
        sample("stage_token", &token, fields::stage_token)
    });
    let append = (token(), number(), any::<u8>(), some_bytes()).prop_map(
        |(token, offset, first, mut part)| {
            part.push(first);
            let append = StageAppend {
                token: token.into(),
                offset,
                part: part.into(),
            };
            sample("stage_append", &append, fields::stage_append)
        },
    );
    prop_oneof![begin, named, append].boxed()
}

pub(super) fn extensions() -> BoxedStrategy<Sample> {
    prop_oneof![hello(), peer_lane(), staging()].boxed()
}
