//! The rule of order by cases.

use super::*;
use crate::buffer::AccessFlags;
use crate::codec::Encode;
use crate::frame::control::buffer::AllocCommand;
use crate::id::{Generation, ImportId};

const ME: WorkerId = WorkerId(3);
const OTHER: WorkerId = WorkerId(4);

fn own(buffer: u64) -> RemoteTensorDesc {
    RemoteTensorDesc::remote_device(ME, BufferId(buffer), Generation(1), 0, 8)
}

fn window(owner: WorkerId, buffer: u64) -> RemoteTensorDesc {
    RemoteTensorDesc {
        address_space: AddressSpace::RemoteWindow,
        rkey_or_token: 7,
        ..RemoteTensorDesc::remote_device(owner, BufferId(buffer), Generation(1), 0, 8)
    }
}

fn control(name: ControlName, command: &impl Encode) -> Scope {
    Scope::of_control(name, &command.to_bytes().expect("valid"))
}

fn header(buffer: u64) -> CopyHeader {
    CopyHeader {
        worker_id: ME,
        buffer_id: BufferId(buffer),
        generation: Generation(1),
        offset: 0,
        size: 0,
    }
}

fn alloc() -> Scope {
    control(ControlName::AllocRemoteBuffer, &AllocCommand { nbytes: 8 })
}

fn write(buffer: u64) -> Scope {
    control(ControlName::CopyToRemote, &header(buffer))
}

fn read(buffer: u64) -> Scope {
    control(ControlName::CopyFromRemote, &header(buffer))
}

fn free(buffer: u64) -> Scope {
    let command = FreeCommand {
        worker_id: ME,
        buffer_id: BufferId(buffer),
        generation: Generation(1),
    };
    control(ControlName::FreeRemoteBuffer, &command)
}

fn export(buffer: u64) -> Scope {
    let command = ExportRequest {
        owner_worker_id: ME,
        buffer_id: BufferId(buffer),
        generation: Generation(1),
        offset: 0,
        nbytes: 8,
        access_flags: AccessFlags::READ,
        transport_profile: "".into(),
    };
    control(ControlName::ExportBuffer, &command)
}

fn release(owner: WorkerId, buffer: u64) -> Scope {
    let command = ReleaseImport {
        importer_worker_id: ME,
        owner_worker_id: owner,
        buffer_id: BufferId(buffer),
        generation: Generation(1),
        import_id: ImportId(7),
    };
    control(ControlName::ReleaseImport, &command)
}

/// what has nothing to do with a running task does not wait for it.
#[test]
fn r_241_unrelated_controls_overtake_a_task() {
    let task = Scope::of_task([&own(1), &window(OTHER, 9)]);
    for free_to_go in [
        alloc(),
        write(2),
        read(2),
        free(2),
        export(2),
        release(OTHER, 8),
    ] {
        assert!(free_to_go.may_overtake(&task), "{free_to_go:?}");
    }
    for bound in [write(1), read(1), free(1), export(1), release(OTHER, 9)] {
        assert!(!bound.may_overtake(&task), "{bound:?}");
        assert!(!task.may_overtake(&bound), "{bound:?}");
    }
    // The same number of another worker is another buffer.
    assert!(write(9).may_overtake(&task));
    // A window into a buffer of the session's own is that buffer.
    assert!(!write(5).may_overtake(&Scope::of_task([&window(ME, 5)])));
}

#[test]
fn tasks_and_registrations_keep_their_order() {
    let (task, other) = (Scope::of_task([]), Scope::of_task([&own(1)]));
    assert!(!other.may_overtake(&task));
    for name in [
        ControlName::UnregisterCallable,
        ControlName::PrepareRegisterCallable,
        ControlName::CommitRegisterCallable,
        ControlName::AbortRegisterCallable,
        ControlName::PrepareCallable,
    ] {
        let registration = Scope::of_control(name, &[]);
        assert!(!registration.may_overtake(&task), "{name:?}");
        assert!(!task.may_overtake(&registration), "{name:?}");
        assert!(!registration.may_overtake(&registration), "{name:?}");
        assert!(write(1).may_overtake(&registration), "{name:?}");
        assert!(alloc().may_overtake(&registration), "{name:?}");
    }
}

#[test]
fn controls_of_one_buffer_keep_their_order_and_reads_of_it_need_not() {
    let of_one = [write(1), read(1), free(1), export(1)];
    for earlier in &of_one {
        for later in &of_one {
            let reads = [read(1), export(1)];
            let both_read = reads.contains(earlier) && reads.contains(later);
            assert_eq!(
                later.may_overtake(earlier),
                both_read,
                "{later:?} {earlier:?}"
            );
        }
        assert!(write(2).may_overtake(earlier));
    }
}

/// What was freed is there for whoever asks after it, and not for whoever asked before.
#[test]
fn room_is_given_and_taken_in_order() {
    assert!(!alloc().may_overtake(&alloc()));
    assert!(!alloc().may_overtake(&free(1)));
    assert!(!free(1).may_overtake(&alloc()));
    assert!(free(1).may_overtake(&free(2)));
    assert!(!alloc().may_overtake(&release(OTHER, 1)));
}

/// Without the extension, and for frames that are not known here, nothing changes places.
#[test]
fn in_order_is_in_order() {
    let others = [ControlName::CommInit, ControlName::CollectTrace];
    let [reserved, trace] = others.map(|name| Scope::of_control(name, &[]));
    for scope in [
        alloc(),
        Scope::of_task([]),
        reserved,
        trace,
        Scope::IN_ORDER,
    ] {
        assert!(!scope.may_overtake(&Scope::IN_ORDER));
        assert!(!Scope::IN_ORDER.may_overtake(&scope));
    }
}

/// A command that does not decode is refused, whenever that is.
#[test]
fn what_has_no_effect_overtakes_everything() {
    let scope = Scope::of_control(ControlName::FreeRemoteBuffer, &[1]);
    assert!(scope.may_overtake(&Scope::of_task([&own(1)])));
    assert!(alloc().may_overtake(&scope));
}

/// with tags, what a task only reads can be read beside it.
#[test]
fn r_241_reads_go_beside_reads() {
    let tagged = |buffer, tag| own(buffer).with_tag(tag).expect("a tag");
    let reads = Scope::of_task([&tagged(1, INPUT)]);
    assert!(read(1).may_overtake(&reads) && export(1).may_overtake(&reads));
    assert!(!write(1).may_overtake(&reads) && !free(1).may_overtake(&reads));
    for tag in 1..=4 {
        let writes = Scope::of_task([&tagged(1, INPUT), &tagged(1, tag), &tagged(1, INPUT)]);
        assert!(!read(1).may_overtake(&writes), "tag {tag}");
    }
}

/// Both ends take the scope from the bytes; without the extension all is in order.
#[test]
fn the_scope_of_a_command_comes_from_its_bytes() {
    let both = Features::PIPELINING.union(Features::CONCURRENT_CONTROL);
    let of = |kind, bytes: &[u8], features| Scope::of_command(kind, bytes, features);
    let name = ControlName::AllocRemoteBuffer;
    let command = AllocCommand { nbytes: 8 }.to_bytes().expect("valid");
    let bytes = Control::new(name, &command[..]).to_bytes().expect("valid");
    assert_eq!(of(FrameType::Control, &bytes, both), alloc());
    assert!(alloc().is_beside_tasks());
    assert_eq!(
        of(FrameType::Control, &bytes, Features::PIPELINING),
        Scope::IN_ORDER
    );
    // What is no task still takes its turn among tasks, and what is no control among all.
    assert_eq!(of(FrameType::Task, &[1], both), Scope::of_task([]));
    assert_eq!(of(FrameType::Control, &[1], both), Scope::IN_ORDER);
    assert_eq!(of(FrameType::Health, &[], both), Scope::IN_ORDER);
    assert!(!Scope::IN_ORDER.is_beside_tasks() && !Scope::of_task([]).is_beside_tasks());
    let commit = Scope::of_control(ControlName::CommitRegisterCallable, &[]);
    assert!(!commit.is_beside_tasks());
}

/// The sender knows the descriptors, the receiver has the bytes: both come to the same, also where a shortcut is taken.
#[test]
fn descriptors_and_bytes_give_one_scope() {
    use crate::call_config::CallConfig;
    use crate::callable::Digest;
    use crate::task::TaskArgsWire;
    use crate::tensor::{DataType, TensorMeta};

    let both = Features::PIPELINING.union(Features::CONCURRENT_CONTROL);
    for (prefix, buffers) in [
        ("", vec![]),
        ("", vec![5]),
        ("a/b", vec![]),
        ("a/b", vec![7, 5, 7]),
    ] {
        let mut args = TaskArgsWire::default();
        for buffer in &buffers {
            let meta = TensorMeta::new(&[8], DataType::Uint8).expect("valid");
            args.tensors.push(meta);
            args.sidecars.push(Some(own(*buffer)));
        }
        let descriptors = args.sidecars.clone();
        let config = CallConfig {
            output_prefix: prefix.into(),
            ..CallConfig::default()
        };
        let task = TaskPayload {
            digest: Digest([0; 32]),
            config,
            args,
        };
        let bytes = task.to_bytes(Carrier::V1).expect("valid");
        assert_eq!(TaskPayload::names_no_tensor(&bytes), buffers.is_empty());
        for features in [both, Features::PIPELINING] {
            assert_eq!(
                Scope::of_descriptors(descriptors.iter().flatten(), features),
                Scope::of_command(FrameType::Task, &bytes, features)
            );
        }
        for end in 0..bytes.len() {
            // Whatever is cut off, it is no task that names a buffer.
            let cut = Scope::of_command(FrameType::Task, &bytes[..end], both);
            assert_eq!(cut, Scope::of_task([]));
        }
    }
}
