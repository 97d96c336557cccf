//! The fields of every message, as the vector files name them.

use echelon_wire::frame::control::buffer::{AllocResult, CopyHeader, CopyTo, FreeCommand};
use echelon_wire::frame::control::chip::{ChipBlob, ChipCallablePayload};
use echelon_wire::frame::control::register::{DigestCommand, RegisterCommand};
use echelon_wire::frame::control::stage::{StageAppend, StageBegin, StageToken};
use echelon_wire::frame::control::transfer::{
    ExportRequest, ExportResult, ImportRequest, ImportResult, PeerFence, ReleaseImport,
    TcpDescriptor,
};
use echelon_wire::frame::peer::{PeerRange, PeerRefused};
use echelon_wire::{
    CallConfig, Completion, Control, ControlReply, Credits, Hello, RemoteTensorDesc, TaskArgsWire,
    TaskPayload, TensorMeta, TimedCompletion,
};
use serde_json::{json, Value};

use super::hex;

pub(crate) fn task(m: &TaskPayload<'_>) -> Value {
    json!({
        "callable_digest_hex": m.digest.to_string(),
        "config": call_config(&m.config),
        "args": args(&m.args),
    })
}

pub(crate) fn hello(m: &Hello<'_>) -> Value {
    json!({
        "session_id": m.session_id.0,
        "worker_id": m.worker_id.0,
        "protocol_version": echelon_wire::limits::PROTOCOL_VERSION,
        "comm_profile": m.comm_profile,
        "feature_flags": m.feature_flags,
        "ready_state": m.ready_state as u32,
    })
}

pub(crate) fn hello_pipelined(m: &Hello<'_>, credits: Option<&Credits>) -> Value {
    let mut fields = hello(m);
    if let Some(credits) = credits {
        fields["max_commands"] = credits.max_commands.into();
        fields["max_bytes"] = credits.max_bytes.into();
        fields["max_frame_bytes"] = credits.max_frame_bytes.into();
    }
    fields
}

pub(crate) fn peer_range(m: &PeerRange) -> Value {
    json!({
        "ticket_hex": hex(&m.ticket.0),
        "buffer_id": m.buffer_id.0,
        "generation": m.generation.0,
        "offset": m.offset,
        "nbytes": m.nbytes,
    })
}

pub(crate) fn peer_refused(m: &PeerRefused<'_>) -> Value {
    json!({ "reason": m.reason.code(), "message": m.message })
}

pub(crate) fn tcp_descriptor(m: &TcpDescriptor<'_>) -> Value {
    json!({
        "session_id": m.session_id.0,
        "ticket_hex": hex(&m.ticket.0),
        "host": m.host,
        "port": m.port,
        "segment": m.segment,
    })
}

pub(crate) fn peer_fence(m: &PeerFence) -> Value {
    json!({
        "worker_id": m.worker_id.0,
        "buffer_id": m.buffer_id.0,
        "generation": m.generation.0,
        "importer_session_id": m.importer.0,
        "lasting": u32::from(m.lasting),
    })
}

pub(crate) fn stage_begin(m: &StageBegin) -> Value {
    json!({ "blob_size": m.blob_size, "blob_sha256_hex": hex(&m.blob_sha256) })
}

pub(crate) fn stage_token(m: &StageToken<'_>) -> Value {
    json!({ "token_hex": hex(&m.token) })
}

pub(crate) fn stage_append(m: &StageAppend<'_>) -> Value {
    json!({ "token_hex": hex(&m.token), "offset": m.offset, "part_hex": hex(&m.part) })
}

pub(crate) fn call_config(m: &CallConfig) -> Value {
    json!({
        "block_dim": m.block_dim,
        "aicpu_thread_num": m.aicpu_thread_num,
        "enable_l2_swimlane": m.enable_l2_swimlane,
        "enable_dump_tensor": m.enable_dump_tensor,
        "enable_pmu": m.enable_pmu,
        "enable_dep_gen": m.enable_dep_gen,
        "enable_scope_stats": m.enable_scope_stats,
        "output_prefix": m.output_prefix,
    })
}

pub(crate) fn tensor(m: &TensorMeta) -> Value {
    json!({
        "shape": m.shape(),
        "ndims": m.ndims(),
        "dtype": m.dtype().code(),
        "child_memory": u32::from(m.child_memory()),
        "nbytes": m.nbytes(),
    })
}

pub(crate) fn desc(m: &RemoteTensorDesc) -> Value {
    json!({
        "address_space": m.address_space.code(),
        "owner_worker_id": m.owner_worker_id.0,
        "buffer_id": m.buffer_id.0,
        "offset": m.offset,
        "nbytes": m.nbytes,
        "remote_addr": m.remote_addr,
        "rkey_or_token": m.rkey_or_token,
        "generation": m.generation.0,
        "inline_payload_offset": m.inline_payload_offset,
        "inline_payload_len": m.inline_payload_len,
        "flags": m.flags,
    })
}

pub(crate) fn args(m: &TaskArgsWire<'_>) -> Value {
    json!({
        "tensors": m.tensors.iter().map(tensor).collect::<Vec<_>>(),
        "sidecars": m.sidecars.iter().map(|sidecar| sidecar.as_ref().map(desc)).collect::<Vec<_>>(),
        "scalars": m.scalars,
        "inline_payload_hex": hex(&m.inline),
    })
}

pub(crate) fn completion(m: &Completion<'_>) -> Value {
    json!({
        "sequence": m.sequence.0,
        "error_code": m.error_code,
        "error_message": m.error_message,
    })
}

pub(crate) fn timed_completion(m: &TimedCompletion<'_>) -> Value {
    json!({
        "sequence": m.sequence.0,
        "error_code": m.error_code,
        "failure_kind": m.failure_kind.code(),
        "start_ns": m.start_ns,
        "end_ns": m.end_ns,
        "error_message": m.error_message,
        "result_hex": hex(&m.result),
    })
}

pub(crate) fn control(m: &Control<'_>) -> Value {
    json!({
        "control_name": m.name.code(),
        "control_version": m.version,
        "command_bytes_hex": hex(&m.command),
    })
}

pub(crate) fn control_reply(m: &ControlReply<'_>) -> Value {
    json!({
        "sequence": m.sequence.0,
        "control_name": m.name.code(),
        "control_version": m.version,
        "error_code": m.error_code,
        "error_message": m.error_message,
        "result_bytes_hex": hex(&m.result),
    })
}

pub(crate) fn register(m: &RegisterCommand<'_>) -> Value {
    json!({
        "target_registry": m.target_registry.code(),
        "callable_kind": m.callable_kind.code(),
        "digest_hex": m.digest.to_string(),
        "payload_version": m.payload_version,
        "payload_hex": hex(&m.payload),
    })
}

pub(crate) fn digest_command(m: &DigestCommand) -> Value {
    json!({
        "target_registry": m.target_registry.code(),
        "callable_kind": m.callable_kind.code(),
        "digest_hex": m.digest.to_string(),
    })
}

pub(crate) fn chip(m: &ChipCallablePayload<'_>) -> Value {
    let (location, inline, token): (u32, &[u8], &[u8]) = match &m.blob {
        ChipBlob::Inline(blob) => (1, blob, &[]),
        ChipBlob::Staged { token, .. } => (2, &[], token),
    };
    json!({
        "descriptor_bytes_hex": hex(&m.descriptor),
        "blob_location": location,
        "blob_size": m.blob_size(),
        "blob_sha256_hex": hex(&m.blob_sha256),
        "inline_blob_hex": hex(inline),
        "staged_blob_token_hex": hex(token),
    })
}

pub(crate) fn export_request(m: &ExportRequest<'_>) -> Value {
    json!({
        "owner_worker_id": m.owner_worker_id.0,
        "buffer_id": m.buffer_id.0,
        "generation": m.generation.0,
        "offset": m.offset,
        "nbytes": m.nbytes,
        "access_flags": m.access_flags.bits(),
        "transport_profile": m.transport_profile,
    })
}

pub(crate) fn export_result(m: &ExportResult<'_>) -> Value {
    json!({
        "owner_worker_id": m.owner_worker_id.0,
        "buffer_id": m.buffer_id.0,
        "generation": m.generation.0,
        "address_space": m.address_space.code(),
        "offset": m.offset,
        "nbytes": m.nbytes,
        "export_id": m.export_id.0,
        "remote_addr": m.remote_addr,
        "rkey_or_token": m.rkey_or_token,
        "ub_ldst_va": m.ub_ldst_va,
        "access_flags": m.access_flags.bits(),
        "transport_profile": m.transport_profile,
        "transport_descriptor_hex": hex(&m.transport_descriptor),
    })
}

pub(crate) fn import_request(m: &ImportRequest<'_>) -> Value {
    json!({
        "importer_worker_id": m.importer_worker_id.0,
        "requested_access_flags": m.requested_access_flags.bits(),
        "export_desc": export_result(&m.export),
    })
}

pub(crate) fn import_result(m: &ImportResult<'_>) -> Value {
    json!({
        "importer_worker_id": m.importer_worker_id.0,
        "owner_worker_id": m.owner_worker_id.0,
        "buffer_id": m.buffer_id.0,
        "generation": m.generation.0,
        "import_id": m.import_id.0,
        "address_space": m.address_space.code(),
        "offset": m.offset,
        "nbytes": m.nbytes,
        "remote_addr": m.remote_addr,
        "rkey_or_token": m.rkey_or_token,
        "ub_ldst_va": m.ub_ldst_va,
        "access_flags": m.access_flags.bits(),
        "transport_profile": m.transport_profile,
        "import_descriptor_hex": hex(&m.import_descriptor),
    })
}

pub(crate) fn release_import(m: &ReleaseImport) -> Value {
    json!({
        "importer_worker_id": m.importer_worker_id.0,
        "owner_worker_id": m.owner_worker_id.0,
        "buffer_id": m.buffer_id.0,
        "generation": m.generation.0,
        "import_id": m.import_id.0,
    })
}

pub(crate) fn alloc_result(m: &AllocResult) -> Value {
    json!({
        "worker_id": m.worker_id.0,
        "buffer_id": m.buffer_id.0,
        "generation": m.generation.0,
        "nbytes": m.nbytes,
        "remote_addr": m.remote_addr,
        "rkey_or_token": m.rkey_or_token,
        "ub_ldst_va": m.ub_ldst_va,
    })
}

pub(crate) fn free_command(m: &FreeCommand) -> Value {
    json!({
        "worker_id": m.worker_id.0,
        "buffer_id": m.buffer_id.0,
        "generation": m.generation.0,
    })
}

pub(crate) fn copy_header(m: &CopyHeader) -> Value {
    json!({
        "worker_id": m.worker_id.0,
        "buffer_id": m.buffer_id.0,
        "generation": m.generation.0,
        "offset": m.offset,
        "size": m.size,
    })
}

pub(crate) fn copy_to(m: &CopyTo<'_>) -> Value {
    json!({ "header": copy_header(&m.header), "data_hex": hex(&m.data) })
}
