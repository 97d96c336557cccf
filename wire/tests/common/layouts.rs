//! Which kind of message each frame and each control carries. A new one does not compile until it has its line here, and its kind
//! belongs into `KINDS`, the samples, the vectors, and the second codec.

use echelon_wire::{ControlName, Features, FrameType};

/// Every feature, those of tomorrow included.
const ALL: Features = Features::from_bits(u64::MAX);
/// Above every code that is given out.
const CODES: u32 = 1024;

/// All frame types, also those of extensions.
pub(crate) fn frame_types() -> Vec<FrameType> {
    (0..CODES)
        .filter_map(|code| FrameType::from_code(code, ALL))
        .collect()
}

/// All controls, also those of extensions.
pub(crate) fn control_names() -> Vec<ControlName> {
    (0..CODES)
        .filter_map(|code| ControlName::from_code(code, ALL))
        .collect()
}

/// Kinds of the payload, by what was negotiated; none where it is empty or bytes without a layout.
pub(crate) fn payload_kinds(frame_type: FrameType) -> &'static [&'static str] {
    match frame_type {
        FrameType::Hello => &["hello", "hello_pipelined"],
        FrameType::Task => &["task", "task_extended", "task_tagged"],
        FrameType::Control => &["control", "control_extended"],
        FrameType::ControlReply => &["control_reply", "control_reply_extended"],
        FrameType::Completion => &["completion"],
        FrameType::TimedCompletion => &["timed_completion"],
        FrameType::PeerRead => &["peer_range"],
        FrameType::PeerWrite => &["peer_write"],
        FrameType::PeerRefused => &["peer_refused"],
        FrameType::PeerData | FrameType::PeerDone | FrameType::Health | FrameType::Shutdown => &[],
    }
}

/// Kinds of the command and of the result, likewise.
pub(crate) fn control_kinds(name: ControlName) -> &'static [&'static str] {
    match name {
        ControlName::PrepareRegisterCallable => &["register_callable", "chip_callable_payload"],
        ControlName::UnregisterCallable
        | ControlName::CommitRegisterCallable
        | ControlName::AbortRegisterCallable
        | ControlName::PrepareCallable => &["digest_callable"],
        ControlName::AllocRemoteBuffer => &["alloc_command", "alloc_result"],
        ControlName::FreeRemoteBuffer => &["free_command"],
        ControlName::CopyToRemote => &["copy_to"],
        ControlName::CopyFromRemote => &["copy_from"],
        ControlName::ExportBuffer => &["export_request", "export_result", "tcp_descriptor"],
        ControlName::ImportBuffer => &["import_request", "import_result"],
        ControlName::ReleaseImport => &["release_import"],
        ControlName::StageBegin => &["stage_begin", "stage_token"],
        ControlName::StageAppend => &["stage_append"],
        ControlName::StageSeal | ControlName::StageDrop => &["stage_token"],
        ControlName::PeerFence => &["peer_fence"],
        ControlName::CommInit
        | ControlName::AllocDomain
        | ControlName::ReleaseDomain
        | ControlName::CollectTrace => &[],
    }
}
