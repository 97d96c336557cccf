//! Tags that travel with tasks (`task_tags`): what a session checks although its parent did, and what a callable sees of them.

use echelon_runtime::{Orchestrator, Tag, TaskView};
use echelon_wire::buffer::{AccessFlags, RemoteTensorDesc};
use echelon_wire::codec::Decode as _;
use echelon_wire::frame::control::buffer::{AllocCommand, AllocResult};
use echelon_wire::frame::control::transfer::{
    ExportRequest, ExportResult, ImportRequest, ImportResult,
};
use echelon_wire::frame::control::ControlName;
use echelon_wire::task::TaskArgsWire;
use echelon_wire::tensor::{DataType, TensorMeta};

use crate::bed::{manifest, Case, Daemon, Parent};

pub(crate) const CASES: &[Case] = &[
    (
        "a_tag_that_asks_for_too_much_fails_its_task_r_109",
        a_tag_that_asks_for_too_much_fails_its_task_r_109,
    ),
    (
        "what_is_no_tag_fails_its_task_r_109",
        what_is_no_tag_fails_its_task_r_109,
    ),
    ("version_1_knows_no_tags", version_1_knows_no_tags),
];

/// The name of a callable that tells what it was given.
pub(crate) const DESCRIBES: &str = "m:describes";

/// Ends as a failure with the tags of the tensors, and for each whether it can be written.
pub(crate) fn describes(_: &Orchestrator, view: TaskView) -> Result<(), String> {
    let mut text = String::from("seen:");
    for (tensor, tag) in view.tensors.iter().zip(&view.tags) {
        let memory = tensor.memory().map_err(|error| error.to_string())?;
        let tag = tag.map_or("none", Tag::name);
        let written = memory.copy_in(0, &memory.to_vec()).is_ok();
        text += &format!(" {tag}/{}", if written { "written" } else { "read-only" });
    }
    Err(text)
}

const MASKS: [(AccessFlags, &str); 3] = [
    (AccessFlags::READ, "read"),
    (AccessFlags::WRITE, "write"),
    (AccessFlags::READ_WRITE, "readwrite"),
];

fn tagging(daemon: &Daemon) -> Parent {
    let mut manifest = manifest();
    manifest.feature_flags = vec!["task_tags".to_owned()];
    daemon.session_of(manifest)
}

fn alloc(parent: &mut Parent) -> AllocResult {
    let result = parent.control(ControlName::AllocRemoteBuffer, &AllocCommand { nbytes: 8 });
    AllocResult::decode(&result).unwrap()
}

fn own(buffer: &AllocResult) -> RemoteTensorDesc {
    RemoteTensorDesc::remote_device(
        buffer.worker_id,
        buffer.buffer_id,
        buffer.generation,
        0,
        buffer.nbytes,
    )
}

/// The session imports its own export: a window like any other.
fn window(parent: &mut Parent, buffer: &AllocResult, access: AccessFlags) -> RemoteTensorDesc {
    let request = ExportRequest {
        owner_worker_id: buffer.worker_id,
        buffer_id: buffer.buffer_id,
        generation: buffer.generation,
        offset: 0,
        nbytes: buffer.nbytes,
        access_flags: AccessFlags::READ_WRITE,
        transport_profile: "".into(),
    };
    let export = parent.control(ControlName::ExportBuffer, &request);
    let request = ImportRequest {
        importer_worker_id: buffer.worker_id,
        requested_access_flags: access,
        export: ExportResult::decode(&export).unwrap(),
    };
    let import = parent.control(ControlName::ImportBuffer, &request);
    let import = ImportResult::decode(&import).unwrap();
    RemoteTensorDesc {
        address_space: import.address_space,
        rkey_or_token: import.import_id.0,
        ..own(buffer)
    }
}

/// The answer to a task on these arguments, with a first one before them that is always right.
fn answer(parent: &mut Parent, first: &AllocResult, descs: &[RemoteTensorDesc]) -> String {
    let mut args = TaskArgsWire {
        inline: vec![7; 8].into(),
        ..TaskArgsWire::default()
    };
    let tag = |desc: RemoteTensorDesc| desc.with_tag(Tag::InOut as u8).unwrap();
    let first = if parent.features().is_empty() {
        own(first)
    } else {
        tag(own(first))
    };
    for desc in std::iter::once(first).chain(descs.iter().copied()) {
        args.tensors
            .push(TensorMeta::new(&[8], DataType::Uint8).unwrap());
        args.sidecars.push(Some(desc));
    }
    args.tensors
        .push(TensorMeta::new(&[0], DataType::Uint8).unwrap());
    args.sidecars.push(None);
    parent.task_with(DESCRIBES, args)
}

fn needs(tag: Tag) -> (AccessFlags, &'static str) {
    match tag {
        Tag::Input => MASKS[0],
        Tag::Output | Tag::OutputExisting => MASKS[1],
        Tag::InOut | Tag::NoDep => MASKS[2],
    }
}

/// All tags against all masks of an import, a buffer of its own and inline bytes: a peer that lies gets a failed completion which names
/// argument, tag and access, and the session goes on.
fn a_tag_that_asks_for_too_much_fails_its_task_r_109() {
    let daemon = Daemon::start("serve", &[]);
    let mut parent = tagging(&daemon);
    let buffer = alloc(&mut parent);
    let mut places: Vec<_> = MASKS
        .iter()
        .map(|&(mask, name)| (window(&mut parent, &buffer, mask), mask, name, "the import"))
        .collect();
    places.push((own(&buffer), MASKS[2].0, MASKS[2].1, "the buffer"));
    let inline = RemoteTensorDesc::host_inline(0, 8);
    places.push((inline, MASKS[0].0, MASKS[0].1, "what travels with the task"));
    for (place, mask, allowed, what) in places {
        for tag in Tag::ALL {
            let (needed, needed_name) = needs(tag);
            let desc = place.with_tag(tag as u8).unwrap();
            let text = answer(&mut parent, &buffer, &[desc]);
            let name = tag.name();
            if mask.contains(needed) {
                let write = if tag == Tag::Input {
                    "read-only"
                } else {
                    "written"
                };
                let seen = format!("seen: INOUT/written {name}/{write} none/written");
                assert!(text.ends_with(&seen), "{what}: {text}");
            } else {
                let refused = format!(
                    "argument 1: {name} needs {needed_name} access and {what} allows only {allowed}"
                );
                assert!(text.ends_with(&refused), "{what}: {text}");
            }
        }
    }
    assert_eq!(parent.task("m:noop"), "");
}

/// Bits that are no tag, no tag at all, and the mailbox's own bit: refused with the argument, and the session goes on.
fn what_is_no_tag_fails_its_task_r_109() {
    let daemon = Daemon::start("serve", &[]);
    let mut parent = tagging(&daemon);
    let buffer = alloc(&mut parent);
    for flags in [0, 1, 5, 13, 14, 15, 8 | 16, 8 | 32, 8 | 1 << 63, u64::MAX] {
        let desc = RemoteTensorDesc {
            flags,
            ..own(&buffer)
        };
        let text = answer(&mut parent, &buffer, &[desc]);
        let named = "entry 1 of `RemoteTaskArgs.sidecars`: `RemoteTensorDesc.flags";
        assert!(text.contains(named), "{flags}: {text}");
        assert!(!text.contains("seen:"), "{flags}: {text}");
    }
    assert_eq!(parent.task("m:noop"), "");
}

/// Without the extension no flag travels, nothing is checked, and everything may be written as before.
fn version_1_knows_no_tags() {
    let daemon = Daemon::start("serve", &[]);
    let mut parent = daemon.session();
    let buffer = alloc(&mut parent);
    let inline = RemoteTensorDesc::host_inline(0, 8);
    let text = answer(&mut parent, &buffer, &[inline]);
    let seen = "seen: none/written none/written none/written";
    assert!(text.ends_with(seen), "{text}");
    let text = answer(&mut parent, &buffer, &[inline.with_tag(0).unwrap()]);
    assert!(text.contains("flags are reserved in version 1"), "{text}");
}
