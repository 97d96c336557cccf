//! Controls into CONTROL frames (slr3-v1 §5). Pure, but for the one copy of a payload out of pinned memory.

use echelon_wire::buffer::AccessFlags;
use echelon_wire::callable::{encode_serialized, RegistryTarget};
use echelon_wire::codec::{Encode, Writer};
use echelon_wire::error::EncodeError;
use echelon_wire::frame::control::buffer::{AllocCommand, CopyHeader, FreeCommand};
use echelon_wire::frame::control::register::{DigestCommand, RegisterCommand};
use echelon_wire::frame::control::transfer::{
    ExportRequest, ExportResult, ImportRequest, PeerFence, ReleaseImport,
};
use echelon_wire::frame::{Control, ControlName, Features, FrameType};
use echelon_wire::id::{ImportId, SessionId, WorkerId};
use echelon_wire::limits::{MAX_COPY_FROM_BYTES, MAX_COPY_TO_BYTES};
use echelon_wire::order::Scope;

use super::replies::{ReplyKind, Window};
use super::transport::Side;
use crate::callable::{Callable, CallableSource};
use crate::endpoint::{BufferKey, ControlFailure, ControlRequest, RegisterStep};
use crate::memory::HostMemory;

/// What to do when a session takes import paths only.
const SERIALIZED_HINT: &str = "start its daemon with --allow-serialized, or put the function into a module that can be imported \
     there and register RemoteCallable(\"module:qualname\")";

/// A control as it is sent.
pub(crate) struct Outgoing {
    pub(crate) name: ControlName,
    pub(crate) payload: Vec<u8>,
    pub(crate) reply: ReplyKind,
}

impl Outgoing {
    /// What it may overtake.
    pub(crate) fn scope(&self, features: Features) -> Scope {
        Scope::of_command(FrameType::Control, &self.payload, features)
    }
}

/// Encodes a control for the session of `worker`.
pub(crate) fn encode(
    worker: WorkerId,
    side: Side,
    request: ControlRequest,
) -> Result<Outgoing, ControlFailure> {
    match request {
        ControlRequest::Register {
            step,
            callable,
            registry,
        } => register(step, &callable, registry, side.features),
        ControlRequest::Unregister {
            digest,
            kind,
            registry,
        } => {
            let command = DigestCommand {
                target_registry: registry,
                callable_kind: kind,
                digest,
            };
            control(ControlName::UnregisterCallable, &command, ReplyKind::Empty).map_err(refused)
        }
        ControlRequest::CopyTo {
            buffer,
            offset,
            source,
        } => copy_to(worker, buffer, offset, &source),
        ControlRequest::CopyFrom {
            buffer,
            offset,
            destination,
        } => copy_from(worker, buffer, offset, destination),
        ControlRequest::CollectTrace if side.features.contains(Features::TIMED_COMPLETION) => {
            control(ControlName::CollectTrace, &Nothing, ReplyKind::Trace).map_err(refused)
        }
        ControlRequest::CollectTrace => Err(unsupported(
            "a timeline",
            "the session knows version 1 only",
        )),
        ControlRequest::DropRegion { .. } => Err(unsupported(
            "a region of shared memory",
            "use a remote buffer",
        )),
        ControlRequest::Alloc { nbytes } => alloc(nbytes).map_err(refused),
        ControlRequest::Free { buffer } => free(worker, buffer).map_err(refused),
        ControlRequest::Export {
            buffer,
            offset,
            nbytes,
            access,
        } => export((worker, side), buffer, (offset, nbytes), access).map_err(refused),
        ControlRequest::Import { export, access } => {
            let export = side.import_of(*export).map_err(ControlFailure::Refused)?;
            import(worker, export, access).map_err(refused)
        }
        ControlRequest::Fence {
            buffer,
            importer,
            lasting,
        } => fence((worker, side), buffer, SessionId(importer), lasting),
        ControlRequest::ReleaseImport {
            owner,
            buffer,
            import,
        } => release_import(worker, owner, buffer, import).map_err(refused),
    }
}

fn alloc(nbytes: u64) -> Result<Outgoing, EncodeError> {
    let reply = ReplyKind::Allocated { nbytes };
    control(
        ControlName::AllocRemoteBuffer,
        &AllocCommand { nbytes },
        reply,
    )
}

fn free(worker: WorkerId, buffer: BufferKey) -> Result<Outgoing, EncodeError> {
    let command = FreeCommand {
        worker_id: worker,
        buffer_id: buffer.buffer,
        generation: buffer.generation,
    };
    control(ControlName::FreeRemoteBuffer, &command, ReplyKind::Empty)
}

fn export(
    (worker, side): (WorkerId, Side),
    buffer: BufferKey,
    (offset, nbytes): (u64, u64),
    access: AccessFlags,
) -> Result<Outgoing, EncodeError> {
    let command = ExportRequest {
        owner_worker_id: worker,
        buffer_id: buffer.buffer,
        generation: buffer.generation,
        offset,
        nbytes,
        access_flags: access,
        transport_profile: side.profile().into(),
    };
    let asked = Window {
        owner: worker,
        buffer,
        offset,
        nbytes,
        access,
    };
    control(
        ControlName::ExportBuffer,
        &command,
        ReplyKind::Exported { asked, side },
    )
}

fn import(
    worker: WorkerId,
    export: ExportResult<'static>,
    access: AccessFlags,
) -> Result<Outgoing, EncodeError> {
    let asked = Window {
        access,
        ..Window::from(&export)
    };
    let command = ImportRequest {
        importer_worker_id: worker,
        requested_access_flags: access,
        export,
    };
    let reply = ReplyKind::Imported { asked };
    control(ControlName::ImportBuffer, &command, reply)
}

fn fence(
    (worker, side): (WorkerId, Side),
    buffer: BufferKey,
    importer: SessionId,
    lasting: bool,
) -> Result<Outgoing, ControlFailure> {
    if !side.features.contains(Features::PEER_FENCE) {
        return Err(unsupported("a fence", "the session has no peer_fence"));
    }
    let command = PeerFence {
        worker_id: worker,
        buffer_id: buffer.buffer,
        generation: buffer.generation,
        importer,
        lasting,
    };
    control(ControlName::PeerFence, &command, ReplyKind::Empty).map_err(refused)
}

fn refused(error: EncodeError) -> ControlFailure {
    ControlFailure::Refused(error.to_string())
}

fn register(
    step: RegisterStep,
    callable: &Callable,
    registry: RegistryTarget,
    features: Features,
) -> Result<Outgoing, ControlFailure> {
    let (digest, kind) = (callable.digest, callable.kind);
    let command = DigestCommand {
        target_registry: registry,
        callable_kind: kind,
        digest,
    };
    let name = match step {
        RegisterStep::Commit => ControlName::CommitRegisterCallable,
        RegisterStep::Abort => ControlName::AbortRegisterCallable,
        RegisterStep::Prepare => return encode_prepare(features, callable, registry),
    };
    control(name, &command, ReplyKind::Empty).map_err(refused)
}

/// PREPARE_REGISTER of what can travel.
pub(super) fn encode_prepare(
    features: Features,
    callable: &Callable,
    registry: RegistryTarget,
) -> Result<Outgoing, ControlFailure> {
    let payload = match &callable.source {
        CallableSource::Import(target) => target.to_string().into_bytes(),
        CallableSource::Serialized(bytes) => {
            if !features.contains(Features::SERIALIZED_CALLABLES) {
                return Err(unsupported("a serialized callable", SERIALIZED_HINT));
            }
            encode_serialized(bytes).map_err(refused)?
        }
        CallableSource::Chip(code) => code
            .payload()
            .map_err(|error| ControlFailure::Refused(error.to_string()))?,
        CallableSource::Native(_) => {
            return Err(unsupported(
                "a closure of this process",
                "register an import path",
            ))
        }
    };
    let command = RegisterCommand::new(registry, callable.kind, callable.digest, payload);
    let name = ControlName::PrepareRegisterCallable;
    control(name, &command, ReplyKind::Empty).map_err(refused)
}

fn release_import(
    worker: WorkerId,
    owner: WorkerId,
    buffer: BufferKey,
    import: ImportId,
) -> Result<Outgoing, EncodeError> {
    let command = ReleaseImport {
        importer_worker_id: worker,
        owner_worker_id: owner,
        buffer_id: buffer.buffer,
        generation: buffer.generation,
        import_id: import,
    };
    control(ControlName::ReleaseImport, &command, ReplyKind::Empty)
}

/// A command without bytes.
struct Nothing;

impl Encode for Nothing {
    fn encode(&self, _writer: &mut Writer) -> Result<(), EncodeError> {
        Ok(())
    }
}

fn copy_to(
    worker: WorkerId,
    buffer: BufferKey,
    offset: u64,
    source: &HostMemory,
) -> Result<Outgoing, ControlFailure> {
    let size = source.len() as u64;
    if size > MAX_COPY_TO_BYTES {
        return Err(too_large(size, MAX_COPY_TO_BYTES));
    }
    let header = CopyHeader {
        worker_id: worker,
        buffer_id: buffer.buffer,
        generation: buffer.generation,
        offset,
        size,
    };
    let mut writer = Writer::with_capacity(64 + source.len());
    // The head of the whole CONTROL payload: the data follows without another copy.
    header
        .encode_copy_to_head(&mut writer)
        .map_err(|error| ControlFailure::Refused(error.to_string()))?;
    let mut payload = writer.into_bytes();
    source.append_to(&mut payload);
    Ok(Outgoing {
        name: ControlName::CopyToRemote,
        payload,
        reply: ReplyKind::Empty,
    })
}

/// The payload of a copy without its bytes, for what it may overtake.
pub(super) fn copy_scope_payload(
    worker: WorkerId,
    to_remote: bool,
    buffer: BufferKey,
) -> Result<Vec<u8>, EncodeError> {
    let header = CopyHeader {
        worker_id: worker,
        buffer_id: buffer.buffer,
        generation: buffer.generation,
        offset: 0,
        size: 0,
    };
    let name = if to_remote {
        ControlName::CopyToRemote
    } else {
        ControlName::CopyFromRemote
    };
    Ok(control(name, &header, ReplyKind::Empty)?.payload)
}

fn copy_from(
    worker: WorkerId,
    buffer: BufferKey,
    offset: u64,
    into: HostMemory,
) -> Result<Outgoing, ControlFailure> {
    let size = into.len() as u64;
    if size > MAX_COPY_FROM_BYTES {
        return Err(too_large(size, MAX_COPY_FROM_BYTES));
    }
    let header = CopyHeader {
        worker_id: worker,
        buffer_id: buffer.buffer,
        generation: buffer.generation,
        offset,
        size,
    };
    control(
        ControlName::CopyFromRemote,
        &header,
        ReplyKind::Copied { into },
    )
    .map_err(|error| ControlFailure::Refused(error.to_string()))
}

pub(super) fn control(
    name: ControlName,
    command: &dyn Encode,
    reply: ReplyKind,
) -> Result<Outgoing, EncodeError> {
    let mut bytes = Writer::with_capacity(64);
    command.encode(&mut bytes)?;
    Ok(Outgoing {
        name,
        payload: wrap(name, bytes.as_bytes())?,
        reply,
    })
}

fn wrap(name: ControlName, command: &[u8]) -> Result<Vec<u8>, EncodeError> {
    let mut writer = Writer::with_capacity(16 + command.len());
    Control::new(name, command).encode(&mut writer)?;
    Ok(writer.into_bytes())
}

fn too_large(size: u64, limit: u64) -> ControlFailure {
    ControlFailure::Refused(format!(
        "a copy of {size} bytes in one command, limit {limit}; split it"
    ))
}

fn unsupported(what: &'static str, hint: &'static str) -> ControlFailure {
    ControlFailure::Unsupported {
        what,
        worker: "the session".into(),
        hint,
    }
}
