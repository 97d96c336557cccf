//! What the vector tests share: finding vectors, and decoding a message by the name of its kind.

// Each test binary uses its part of this module.
#![allow(dead_code)]

pub(crate) mod fields;
pub(crate) mod layouts;
pub(crate) mod samples;

use std::path::PathBuf;

use echelon_wire::callable::sha256;
use echelon_wire::frame::control::buffer::{
    AllocCommand, AllocResult, CopyHeader, CopyTo, FreeCommand,
};
use echelon_wire::frame::control::chip::ChipCallablePayload;
use echelon_wire::frame::control::register::{DigestCommand, RegisterCommand};
use echelon_wire::frame::control::stage::{StageAppend, StageBegin, StageToken};
use echelon_wire::frame::control::transfer::{
    ExportRequest, ExportResult, ImportRequest, ImportResult, PeerFence, ReleaseImport,
    TcpDescriptor,
};
use echelon_wire::frame::peer::{PeerRange, PeerRefused};
use echelon_wire::{
    callable, frame, CallConfig, Carrier, Completion, Control, ControlReply, Decode, DecodeError,
    Encode, Features, Hello, Reader, RemoteTensorDesc, TaskArgsWire, TaskPayload, TensorMeta,
    TimedCompletion, Writer,
};
use serde_json::{json, Map, Value};

/// All kinds that [`recode`] knows.
pub(crate) const KINDS: [&str; 43] = [
    "hello",
    "hello_pipelined",
    "call_config",
    "tensor",
    "remote_tensor_desc",
    "remote_task_args",
    "remote_task_args_extended",
    "remote_task_args_tagged",
    "remote_task_args_mailbox",
    "task",
    "task_extended",
    "task_tagged",
    "task_mailbox",
    "completion",
    "control",
    "control_extended",
    "control_reply",
    "control_reply_extended",
    "register_callable",
    "digest_callable",
    "chip_callable_payload",
    "export_request",
    "export_result",
    "import_request",
    "import_result",
    "release_import",
    "alloc_command",
    "alloc_result",
    "free_command",
    "copy_from",
    "copy_to",
    "timed_completion",
    "serialized",
    "frame",
    "frame_extended",
    "peer_range",
    "peer_write",
    "peer_refused",
    "tcp_descriptor",
    "stage_begin",
    "stage_token",
    "stage_append",
    "peer_fence",
];

/// Features under which the extension kinds are decoded.
pub(crate) const EXTENDED: Features = Features::TIMED_COMPLETION
    .union(Features::PEER_FETCH)
    .union(Features::STAGED_BLOBS)
    .union(Features::PEER_FENCE);
/// TASK frames of a session with `float64`.
pub(crate) const WITH_FLOAT64: Carrier = Carrier::Wire(Features::FLOAT64);
/// TASK frames of a session with `float64` and `task_tags`.
pub(crate) const TAGGED: Carrier = Carrier::Wire(Features::FLOAT64.union(Features::TASK_TAGS));

/// A decoded message: its fields as in the vector files, and what our encoder makes of it.
#[derive(Debug)]
pub(crate) struct Recoded {
    pub(crate) fields: Value,
    pub(crate) bytes: Vec<u8>,
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn unhex(text: &str) -> Vec<u8> {
    assert!(text.len() % 2 == 0, "odd number of hexadecimal characters");
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal"))
        .collect()
}

/// The folder of vectors that come with the contract; `None` where it is not installed. A folder that the environment
/// names has to be there.
pub(crate) fn shared_folder() -> Option<PathBuf> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let known = |folder: &PathBuf| folder.join("slr3_v1.json").is_file();
    if let Some(named) = std::env::var_os("ECHELON_VECTORS").map(PathBuf::from) {
        assert!(
            known(&named),
            "ECHELON_VECTORS names a folder without slr3_v1.json"
        );
        return Some(named);
    }
    [
        "shared/vectors",
        "../shared/vectors",
        "../../shared/vectors",
    ]
    .map(|folder| root.join(folder))
    .into_iter()
    .find(known)
}

/// Reads a vector file, or says why it was not read.
#[allow(clippy::print_stdout)] // A skipped test has to say so.
pub(crate) fn shared_file(name: &str) -> Option<Value> {
    let Some(folder) = shared_folder() else {
        println!("SKIPPED: vectors folder not found");
        return None;
    };
    let text = std::fs::read_to_string(folder.join(name)).expect("a file of the vectors folder");
    Some(serde_json::from_str(&text).expect("JSON"))
}

/// Bytes of a vector, rebuilt from parts where it has no `hex`.
pub(crate) fn vector_bytes(vector: &Value) -> Vec<u8> {
    let bytes = match &vector["hex"] {
        Value::String(text) => unhex(text),
        _ => list(&vector["hex_parts"])
            .iter()
            .flat_map(|part| {
                let count = part[1].as_u64().expect("count") as usize;
                unhex(text(&part[0])).repeat(count)
            })
            .collect(),
    };
    if let Some(expected) = vector.get("sha256").and_then(Value::as_str) {
        assert_eq!(hex(&sha256(&bytes)), expected, "{}", vector["name"]);
    }
    assert_eq!(
        bytes.len() as u64,
        vector["length"].as_u64().expect("length"),
        "{}",
        vector["name"]
    );
    bytes
}

pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

pub(crate) fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

/// Demands that `got`, which has every byte string as `key_hex`, says what `expected` says; long byte strings stand
/// there as `key_len` and `key_sha256`.
pub(crate) fn assert_fields(name: &str, expected: &Value, got: &Value) {
    match (expected, got) {
        (Value::Object(expected), Value::Object(got)) => {
            for (key, value) in expected {
                assert_field(name, key, value, got);
            }
            for key in got.keys() {
                let stem = key.strip_suffix("_hex").unwrap_or(key);
                let known =
                    expected.contains_key(key) || expected.contains_key(&format!("{stem}_len"));
                assert!(known, "{name}: `{key}` is not in the vector");
            }
        }
        (Value::Array(expected), Value::Array(got)) => {
            assert_eq!(expected.len(), got.len(), "{name}");
            expected
                .iter()
                .zip(got)
                .for_each(|(expected, got)| assert_fields(name, expected, got));
        }
        _ => assert_eq!(expected, got, "{name}"),
    }
}

fn assert_field(name: &str, key: &str, expected: &Value, got: &Map<String, Value>) {
    if let Some(value) = got.get(key) {
        return assert_fields(&format!("{name}.{key}"), expected, value);
    }
    let bytes = |stem: &str| {
        let value = got.get(&format!("{stem}_hex"));
        unhex(text(value.unwrap_or_else(|| panic!("{name}: no `{key}`"))))
    };
    if let Some(stem) = key.strip_suffix("_len") {
        assert_eq!(Value::from(bytes(stem).len()), *expected, "{name}.{key}");
    } else if let Some(stem) = key.strip_suffix("_sha256") {
        assert_eq!(hex(&sha256(&bytes(stem))), text(expected), "{name}.{key}");
    } else {
        panic!("{name}: our message has no `{key}`");
    }
}

/// Decodes a message of a kind and encodes it again.
///
/// # Errors
/// What the decoder says.
pub(crate) fn recode(kind: &str, bytes: &[u8]) -> Result<Recoded, DecodeError> {
    Ok(match kind {
        "hello" => both(Hello::decode(bytes)?, fields::hello),
        "hello_pipelined" => hello_pipelined_of(bytes)?,
        "peer_range" => both(PeerRange::decode(bytes)?, fields::peer_range),
        "peer_write" => peer_write_of(bytes)?,
        "peer_refused" => both(PeerRefused::decode(bytes)?, fields::peer_refused),
        "tcp_descriptor" => both(TcpDescriptor::decode(bytes)?, fields::tcp_descriptor),
        "peer_fence" => both(PeerFence::decode(bytes)?, fields::peer_fence),
        "stage_begin" => both(StageBegin::decode(bytes)?, fields::stage_begin),
        "stage_token" => both(StageToken::decode(bytes)?, fields::stage_token),
        "stage_append" => both(StageAppend::decode(bytes)?, fields::stage_append),
        "call_config" => both(CallConfig::decode(bytes)?, fields::call_config),
        "tensor" => both(TensorMeta::decode(bytes)?, fields::tensor),
        "remote_tensor_desc" => both(RemoteTensorDesc::decode(bytes)?, fields::desc),
        "remote_task_args" => args_of(bytes, Carrier::V1)?,
        "remote_task_args_extended" => args_of(bytes, WITH_FLOAT64)?,
        "remote_task_args_tagged" => args_of(bytes, TAGGED)?,
        "remote_task_args_mailbox" => args_of(bytes, Carrier::Mailbox)?,
        "task" => task_of(bytes, Carrier::V1)?,
        "task_extended" => task_of(bytes, WITH_FLOAT64)?,
        "task_tagged" => task_of(bytes, TAGGED)?,
        "task_mailbox" => task_of(bytes, Carrier::Mailbox)?,
        "completion" => both(Completion::decode(bytes)?, fields::completion),
        "control" => both(Control::decode(bytes)?, fields::control),
        "control_extended" => both(Control::decode_with(bytes, EXTENDED)?, fields::control),
        "control_reply" => both(ControlReply::decode(bytes)?, fields::control_reply),
        "control_reply_extended" => both(
            ControlReply::decode_with(bytes, EXTENDED)?,
            fields::control_reply,
        ),
        "register_callable" => both(RegisterCommand::decode(bytes)?, fields::register),
        "digest_callable" => both(DigestCommand::decode(bytes)?, fields::digest_command),
        "chip_callable_payload" => both(ChipCallablePayload::decode(bytes)?, fields::chip),
        "export_request" => both(ExportRequest::decode(bytes)?, fields::export_request),
        "export_result" => both(ExportResult::decode(bytes)?, fields::export_result),
        "import_request" => both(ImportRequest::decode(bytes)?, fields::import_request),
        "import_result" => import_result_of(bytes)?,
        "release_import" => both(ReleaseImport::decode(bytes)?, fields::release_import),
        "alloc_command" => both(
            AllocCommand::decode(bytes)?,
            |m| json!({"nbytes": m.nbytes}),
        ),
        "alloc_result" => both(AllocResult::decode(bytes)?, fields::alloc_result),
        "free_command" => both(FreeCommand::decode(bytes)?, fields::free_command),
        "copy_from" => both(CopyHeader::decode(bytes)?, fields::copy_header),
        "copy_to" => copy_to_of(bytes)?,
        "timed_completion" => both(TimedCompletion::decode(bytes)?, fields::timed_completion),
        "serialized" => serialized_of(bytes)?,
        "frame" => frame_of(bytes, Features::NONE)?,
        "frame_extended" => frame_of(bytes, EXTENDED)?,
        other => panic!("unknown kind {other}"),
    })
}

fn both<T: Encode>(message: T, fields: impl Fn(&T) -> Value) -> Recoded {
    let bytes = message.to_bytes().expect("what was decoded can be encoded");
    Recoded {
        fields: fields(&message),
        bytes,
    }
}

fn hello_pipelined_of(bytes: &[u8]) -> Result<Recoded, DecodeError> {
    let (hello, credits) = Hello::decode_with(bytes, Features::PIPELINING)?;
    let mut writer = Writer::new();
    hello
        .encode_with(credits.as_ref(), &mut writer)
        .expect("what was decoded can be encoded");
    Ok(Recoded {
        fields: fields::hello_pipelined(&hello, credits.as_ref()),
        bytes: writer.into_bytes(),
    })
}

/// The head says how many bytes follow it.
fn peer_write_of(bytes: &[u8]) -> Result<Recoded, DecodeError> {
    let mut reader = Reader::new(bytes);
    let range = PeerRange::read(&mut reader)?;
    let data = reader.take("PEER_WRITE.data", range.nbytes as usize)?;
    reader.finish("PEER_WRITE")?;
    let mut written = range.to_bytes().expect("what was decoded can be encoded");
    written.extend(data);
    assert_eq!(written.len(), range.write_payload_bytes());
    Ok(Recoded {
        fields: json!({"range": fields::peer_range(&range), "data_hex": hex(data)}),
        bytes: written,
    })
}

fn args_of(bytes: &[u8], carrier: Carrier) -> Result<Recoded, DecodeError> {
    let message = TaskArgsWire::decode(bytes, carrier)?;
    let mut writer = Writer::new();
    message
        .encode(carrier, &mut writer)
        .expect("what was decoded can be encoded");
    Ok(Recoded {
        fields: fields::args(&message),
        bytes: writer.into_bytes(),
    })
}

fn task_of(bytes: &[u8], carrier: Carrier) -> Result<Recoded, DecodeError> {
    let message = TaskPayload::decode(bytes, carrier)?;
    let fields = fields::task(&message);
    let bytes = message
        .to_bytes(carrier)
        .expect("what was decoded can be encoded");
    Ok(Recoded { fields, bytes })
}

/// One of 0 bytes is read, as the contract says, and never written.
fn import_result_of(bytes: &[u8]) -> Result<Recoded, DecodeError> {
    let message = ImportResult::decode(bytes)?;
    if message.nbytes == 0 {
        assert!(message.to_bytes().is_err());
        return Ok(Recoded {
            fields: fields::import_result(&message),
            bytes: bytes.to_vec(),
        });
    }
    Ok(both(message, fields::import_result))
}

/// One whose size is not that of its data is read, so that the session can look for the buffer first, and never written.
fn copy_to_of(bytes: &[u8]) -> Result<Recoded, DecodeError> {
    let message = CopyTo::decode(bytes)?;
    if message.check_size().is_err() {
        assert!(message.to_bytes().is_err());
        return Ok(Recoded {
            fields: fields::copy_to(&message),
            bytes: bytes.to_vec(),
        });
    }
    Ok(both(message, fields::copy_to))
}

fn serialized_of(bytes: &[u8]) -> Result<Recoded, DecodeError> {
    let payload = callable::decode_serialized(bytes)?;
    let bytes = callable::encode_serialized(payload).expect("what was decoded can be encoded");
    Ok(Recoded {
        fields: json!({ "payload_hex": hex(payload) }),
        bytes,
    })
}

fn frame_of(bytes: &[u8], features: Features) -> Result<Recoded, DecodeError> {
    let message = frame::decode_frame_with(bytes, features)?;
    let header = message.header;
    let fields = json!({
        "frame_type": header.frame_type.code(),
        "session_id": header.session_id.0,
        "worker_id": header.worker_id.0,
        "sequence": header.sequence.0,
        "payload_bytes": header.payload_bytes,
        "flags": header.flags,
        "payload_hex": hex(message.payload),
    });
    let bytes = frame::encode_frame(
        header.frame_type,
        header.session_id,
        header.worker_id,
        header.sequence,
        message.payload,
    );
    Ok(Recoded {
        fields,
        bytes: bytes.expect("what was decoded can be encoded"),
    })
}
