//! Random controls, their replies and their commands.

use echelon_wire::callable::sha256;
use echelon_wire::frame::control::buffer::{
    AllocCommand, AllocResult, CopyHeader, CopyTo, FreeCommand,
};
use echelon_wire::frame::control::chip::{ChipBlob, ChipCallablePayload};
use echelon_wire::frame::control::register::{DigestCommand, RegisterCommand};
use echelon_wire::frame::control::transfer::{
    ExportRequest, ExportResult, ImportRequest, ImportResult, ReleaseImport,
};
use echelon_wire::{
    BufferId, CallableKind, Control, ControlName, ControlReply, ExportId, Generation, ImportId,
    RegistryTarget, Sequence, WorkerId,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::json;

use super::{access, digest, id, number, sample, some_bytes, some_text, window, worker, Sample};
use crate::common::fields;
use crate::common::layouts::control_names;

fn names() -> impl Strategy<Value = ControlName> {
    select(control_names())
}

pub(super) fn controls() -> BoxedStrategy<Sample> {
    let control = (names(), 1..=u32::MAX, some_bytes()).prop_map(|(name, version, command)| {
        let kind = if name.code() >= 64 {
            "control_extended"
        } else {
            "control"
        };
        sample(
            kind,
            &Control {
                name,
                version,
                command: command.into(),
            },
            fields::control,
        )
    });
    let reply = (
        number(),
        names(),
        any::<u32>(),
        any::<i32>(),
        some_text(),
        some_bytes(),
    )
        .prop_map(|(sequence, name, version, error_code, text, result)| {
            let extended = name.code() >= 64;
            let kind = if extended {
                "control_reply_extended"
            } else {
                "control_reply"
            };
            let reply = ControlReply {
                sequence: Sequence(sequence),
                name,
                version,
                error_code,
                error_message: text.into(),
                result: result.into(),
            };
            sample(kind, &reply, fields::control_reply)
        });
    prop_oneof![control, reply, registrations(), chips()].boxed()
}

fn registrations() -> BoxedStrategy<Sample> {
    let registry = || {
        select(vec![
            RegistryTarget::RemoteTaskDispatcher,
            RegistryTarget::InnerL3Worker,
        ])
    };
    let kind = || {
        select(vec![
            CallableKind::ChipCallable,
            CallableKind::PythonSerialized,
            CallableKind::PythonImport,
        ])
    };
    let digests =
        (registry(), kind(), digest()).prop_map(|(target_registry, callable_kind, digest)| {
            let command = DigestCommand {
                target_registry,
                callable_kind,
                digest,
            };
            sample("digest_callable", &command, fields::digest_command)
        });
    let register = (registry(), kind(), digest(), 1..=u32::MAX, some_bytes()).prop_map(
        |(target_registry, callable_kind, digest, payload_version, payload)| {
            let payload = payload.into();
            let command = RegisterCommand {
                target_registry,
                callable_kind,
                digest,
                payload_version,
                payload,
            };
            sample("register_callable", &command, fields::register)
        },
    );
    prop_oneof![digests, register].boxed()
}

fn chips() -> BoxedStrategy<Sample> {
    let non_empty = || vec(any::<u8>(), 1..40);
    let inline = non_empty().prop_map(|blob| ChipBlob::Inline(blob.into()));
    let staged = (id(), non_empty()).prop_map(|(blob_size, token)| ChipBlob::Staged {
        blob_size,
        token: token.into(),
    });
    (some_bytes(), any::<bool>(), prop_oneof![inline, staged])
        .prop_map(|(descriptor, zero, blob)| {
            let blob_sha256 = if zero { [0; 32] } else { sha256(&descriptor) };
            let payload = ChipCallablePayload {
                descriptor: descriptor.into(),
                blob_sha256,
                blob,
            };
            sample("chip_callable_payload", &payload, fields::chip)
        })
        .boxed()
}

pub(super) fn buffers() -> BoxedStrategy<Sample> {
    let alloc = id().prop_map(|nbytes| {
        sample(
            "alloc_command",
            &AllocCommand { nbytes },
            |m| json!({ "nbytes": m.nbytes }),
        )
    });
    let result = (any::<i32>(), [id(), id(), id()], any::<[u64; 3]>()).prop_map(
        |(worker, [buffer, generation, nbytes], [remote_addr, rkey_or_token, ub_ldst_va])| {
            let result = AllocResult {
                worker_id: WorkerId(worker),
                buffer_id: BufferId(buffer),
                generation: Generation(generation),
                nbytes,
                remote_addr,
                rkey_or_token,
                ub_ldst_va,
            };
            sample("alloc_result", &result, fields::alloc_result)
        },
    );
    let free =
        (any::<i32>(), any::<u64>(), any::<u64>()).prop_map(|(worker, buffer, generation)| {
            let command = FreeCommand {
                worker_id: WorkerId(worker),
                buffer_id: BufferId(buffer),
                generation: Generation(generation),
            };
            sample("free_command", &command, fields::free_command)
        });
    let header = |(worker, [buffer, generation, offset, size]): (i32, [u64; 4])| CopyHeader {
        worker_id: WorkerId(worker),
        buffer_id: BufferId(buffer),
        generation: Generation(generation),
        offset,
        size,
    };
    let from = (any::<i32>(), any::<[u64; 4]>())
        .prop_map(move |parts| sample("copy_from", &header(parts), fields::copy_header));
    let to = (any::<i32>(), any::<[u64; 3]>(), some_bytes()).prop_map(
        move |(worker, [a, b, c], data)| {
            let header = header((worker, [a, b, c, data.len() as u64]));
            sample(
                "copy_to",
                &CopyTo {
                    header,
                    data: data.into(),
                },
                fields::copy_to,
            )
        },
    );
    prop_oneof![alloc, result, free, from, to].boxed()
}

fn export() -> impl Strategy<Value = ExportResult<'static>> {
    let ids = (worker(), [id(), id(), id(), id()]);
    (
        ids,
        any::<[u64; 4]>(),
        window(),
        access(),
        some_text(),
        some_bytes(),
    )
        .prop_map(
            |(
                (owner, [buffer, generation, nbytes, export]),
                n,
                space,
                access,
                text,
                descriptor,
            )| {
                ExportResult {
                    owner_worker_id: owner,
                    buffer_id: BufferId(buffer),
                    generation: Generation(generation),
                    address_space: space,
                    offset: n[0],
                    nbytes,
                    export_id: ExportId(export),
                    remote_addr: n[1],
                    rkey_or_token: n[2],
                    ub_ldst_va: n[3],
                    access_flags: access,
                    transport_profile: text.into(),
                    transport_descriptor: descriptor.into(),
                }
            },
        )
}

pub(super) fn transfers() -> BoxedStrategy<Sample> {
    let request = (
        worker(),
        [id(), id()],
        (0..=u64::MAX / 2, 1..=u64::MAX / 2),
        access(),
        some_text(),
    )
        .prop_map(
            |(owner, [buffer, generation], (offset, nbytes), access, text)| {
                let request = ExportRequest {
                    owner_worker_id: owner,
                    buffer_id: BufferId(buffer),
                    generation: Generation(generation),
                    offset,
                    nbytes,
                    access_flags: access,
                    transport_profile: text.into(),
                };
                sample("export_request", &request, fields::export_request)
            },
        );
    let import_request = (worker(), export()).prop_map(|(importer, export)| {
        let request = ImportRequest {
            importer_worker_id: importer,
            requested_access_flags: export.access_flags,
            export,
        };
        sample("import_request", &request, fields::import_request)
    });
    let import_result = (worker(), id(), export()).prop_map(|(importer, import, export)| {
        let result = ImportResult {
            importer_worker_id: importer,
            owner_worker_id: export.owner_worker_id,
            buffer_id: export.buffer_id,
            generation: export.generation,
            import_id: ImportId(import),
            address_space: export.address_space,
            offset: export.offset,
            nbytes: export.nbytes,
            remote_addr: export.remote_addr,
            rkey_or_token: import,
            ub_ldst_va: export.ub_ldst_va,
            access_flags: export.access_flags,
            transport_profile: export.transport_profile,
            import_descriptor: export.transport_descriptor,
        };
        sample("import_result", &result, fields::import_result)
    });
    let release = (worker(), worker(), [id(), id(), id()]).prop_map(
        |(importer, owner, [buffer, generation, import])| {
            let release = ReleaseImport {
                importer_worker_id: importer,
                owner_worker_id: owner,
                buffer_id: BufferId(buffer),
                generation: Generation(generation),
                import_id: ImportId(import),
            };
            sample("release_import", &release, fields::release_import)
        },
    );
    prop_oneof![
        request,
        export().prop_map(|m| sample("export_result", &m, fields::export_result)),
        import_request,
        import_result,
        release,
    ]
    .boxed()
}
