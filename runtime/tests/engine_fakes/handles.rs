//! What a handle may be used for: access masks, ranges, owners, kinds.

use echelon_runtime::memory::HostMemory;
use echelon_runtime::{CopySide, Error, Tag, TaskArgs};
use echelon_wire::buffer::AccessFlags;

use crate::bed::{frees, submit, u8s, whole, Bed};

const MASKS: [AccessFlags; 3] = [
    AccessFlags::READ,
    AccessFlags::WRITE,
    AccessFlags::READ_WRITE,
];

#[test]
fn r_109_the_mask_must_cover_the_tag() {
    let bed = Bed::new(0, 2);
    let task = bed.remote_task();
    for mask in MASKS {
        let owner = bed.malloc(0, 8);
        let export = bed.worker.remote_export(&owner, 0, None, mask).unwrap();
        let import = bed.worker.remote_import(&export, 1, None).unwrap();
        assert_eq!(import.access(), mask);
        for tag in Tag::ALL {
            let (reads, writes) = match tag {
                Tag::Input => (true, false),
                Tag::Output | Tag::OutputExisting => (false, true),
                Tag::InOut | Tag::NoDep => (true, true),
            };
            let allowed = (!reads || mask.contains(AccessFlags::READ))
                && (!writes || mask.contains(AccessFlags::WRITE));
            let mut args = TaskArgs::new();
            let added = args.add_remote(&import, 0, u8s(8), tag).map(drop);
            match added {
                Ok(()) => {
                    assert!(allowed, "{tag:?} was let through with {mask:?}");
                    let run = bed.worker.run_simple(|o| submit(o, &task, args).map(drop));
                    run.unwrap();
                }
                Err(error) => {
                    assert!(!allowed, "{tag:?} was refused with {mask:?}: {error}");
                    assert!(matches!(error, Error::Handle { .. }), "{error:?}");
                    assert!(error.to_string().contains(tag.name()), "{error}");
                }
            }
        }
    }
}

#[test]
fn r_109_a_copy_needs_the_access_of_its_side() {
    let bed = Bed::new(0, 2);
    let owner = bed.malloc(0, 8);
    for (mask, as_dst) in [(AccessFlags::READ, true), (AccessFlags::WRITE, false)] {
        let export = bed.worker.remote_export(&owner, 0, None, mask).unwrap();
        let import = bed.worker.remote_import(&export, 1, None).unwrap();
        let remote = CopySide::Remote {
            buffer: import,
            offset: 0,
            meta: u8s(8),
        };
        let local = CopySide::Host {
            memory: HostMemory::from_vec(vec![0; 8]),
            meta: u8s(8),
        };
        let (dst, src) = if as_dst {
            (remote, local)
        } else {
            (local, remote)
        };
        let error = bed.worker.run_simple(|o| o.copy(dst, src).map(drop));
        assert!(matches!(error, Err(Error::Handle { .. })), "{error:?}");
    }
}

#[test]
fn more_access_than_exported_is_refused_before_the_session_is_asked() {
    let bed = Bed::new(0, 2);
    let owner = bed.malloc(0, 8);
    let export = bed
        .worker
        .remote_export(&owner, 0, None, AccessFlags::READ)
        .unwrap();
    let asked = bed.remotes[1].controls().len();
    for wanted in [AccessFlags::WRITE, AccessFlags::READ_WRITE] {
        let error = bed.worker.remote_import(&export, 1, Some(wanted));
        assert!(matches!(error, Err(Error::Handle { .. })), "{error:?}");
    }
    assert_eq!(bed.remotes[1].controls().len(), asked);
}

#[test]
fn r_110_nothing_of_an_address_shows() {
    let bed = Bed::new(0, 2);
    let owner = bed.malloc(0, 8);
    let export = bed
        .worker
        .remote_export(&owner, 0, None, AccessFlags::READ)
        .unwrap();
    let import = bed.worker.remote_import(&export, 1, None).unwrap();
    let shown = format!("{owner:?} {owner:#?} {export:?} {export:#?} {import:?} {import:#?}");
    // The fake's addresses are 0xface00, its descriptors "fake".
    for secret in ["16436736", "face00", "fake", "addr", "rkey", "descriptor"] {
        assert!(
            !shown.to_lowercase().contains(secret),
            "{secret} in {shown}"
        );
    }
}

#[test]
fn r_114_ranges_are_checked_without_overflow() {
    let bed = Bed::new(0, 2);
    let buffer = bed.malloc(0, 100);
    let w = &bed.worker;
    for (offset, nbytes) in [
        (0, 101),
        (100, 1),
        (101, 1),
        (u64::MAX, 1),
        (u64::MAX - 3, 4),
        (u64::MAX, 2),
        (1 << 63, 8),
    ] {
        let host = HostMemory::from_vec(vec![0; nbytes as usize]);
        let mut args = TaskArgs::new();
        let side = CopySide::Remote {
            buffer: buffer.clone(),
            offset,
            meta: u8s(nbytes),
        };
        let other = CopySide::Host {
            memory: host.clone(),
            meta: u8s(nbytes),
        };
        let access = AccessFlags::READ;
        let results = [
            args.add_remote(&buffer, offset, u8s(nbytes), Tag::Input)
                .map(drop),
            w.remote_copy_to(&buffer, &host, offset),
            w.remote_copy_from(&buffer, &host, offset),
            w.remote_export(&buffer, offset, Some(nbytes), access)
                .map(drop),
            w.run_simple(|o| o.copy(side, other).map(drop)).map(drop),
        ];
        for (index, result) in results.into_iter().enumerate() {
            let refused = matches!(result, Err(Error::Argument { .. }));
            assert!(refused, "{index}: {offset}+{nbytes}: {result:?}");
        }
    }
    // An empty export is refused, an empty copy at the very end is a copy of nothing.
    let empty = w.remote_export(&buffer, 100, None, AccessFlags::READ);
    assert!(matches!(empty, Err(Error::Argument { .. })), "{empty:?}");
    let nothing = HostMemory::from_vec(Vec::new());
    w.remote_copy_to(&buffer, &nothing, 100).unwrap();
}

#[test]
fn r_114_a_window_is_bounded_by_its_export() {
    let bed = Bed::new(0, 2);
    let task = bed.remote_task();
    let owner = bed.malloc(0, 100);
    let export = bed
        .worker
        .remote_export(&owner, 40, Some(20), AccessFlags::READ_WRITE)
        .unwrap();
    let import = bed.worker.remote_import(&export, 1, None).unwrap();
    assert_eq!((import.nbytes(), import.owner_worker_id()), (20, 0));
    let mut args = TaskArgs::new();
    let beyond = args.add_remote(&import, 1, u8s(20), Tag::Input);
    assert!(matches!(beyond, Err(Error::Argument { .. })));
    // the task sees exactly the exported bytes.
    let bytes = HostMemory::from_vec((0..100).collect());
    bed.worker.remote_copy_to(&owner, &bytes, 0).unwrap();
    let mut args = TaskArgs::new();
    args.add_remote(&import, 5, u8s(3), Tag::Input).unwrap();
    bed.worker
        .run_simple(|o| submit(o, &task, args).map(drop))
        .unwrap();
    let seen = &bed.remotes[1].submitted()[0];
    assert_eq!(
        bed.remotes[1].bytes(seen, 0).unwrap().to_vec(),
        [45, 46, 47]
    );
}

#[test]
fn r_114_handles_of_another_worker_are_refused_everywhere() {
    let (bed, other) = (Bed::new(0, 2), Bed::new(0, 2));
    let task = bed.remote_task();
    let foreign = other.malloc(0, 8);
    let export = other
        .worker
        .remote_export(&foreign, 0, None, AccessFlags::READ)
        .unwrap();
    let import = other.worker.remote_import(&export, 1, None).unwrap();
    let host = HostMemory::from_vec(vec![0; 8]);
    let asked: Vec<usize> = bed.remotes.iter().map(|r| r.controls().len()).collect();
    let w = &bed.worker;
    let side = CopySide::Remote {
        buffer: foreign.clone(),
        offset: 0,
        meta: u8s(8),
    };
    let local = CopySide::Host {
        memory: host.clone(),
        meta: u8s(8),
    };
    let results = [
        w.remote_free(&foreign),
        w.remote_release_import(&import),
        w.remote_copy_to(&foreign, &host, 0),
        w.remote_copy_from(&foreign, &host, 0),
        w.remote_export(&foreign, 0, None, AccessFlags::READ)
            .map(drop),
        w.remote_import(&export, 1, None).map(drop),
        w.run_simple(|o| submit(o, &task, whole(&foreign, Tag::Input)).map(drop))
            .map(drop),
        w.run_simple(|o| o.copy(local, side).map(drop)).map(drop),
    ];
    for (index, result) in results.into_iter().enumerate() {
        assert!(
            matches!(result, Err(Error::Handle { .. })),
            "{index}: {result:?}"
        );
    }
    let now: Vec<usize> = bed.remotes.iter().map(|r| r.controls().len()).collect();
    assert_eq!(asked, now, "a session was asked");
    assert!(!foreign.released() && !import.released());
}

#[test]
fn r_114_a_released_handle_is_refused_everywhere() {
    let bed = Bed::new(0, 2);
    let task = bed.remote_task();
    let buffer = bed.malloc(0, 8);
    let w = &bed.worker;
    let export = w
        .remote_export(&buffer, 0, None, AccessFlags::READ)
        .unwrap();
    let before = whole(&buffer, Tag::Input);
    w.remote_free(&buffer).unwrap();
    assert!(buffer.released());
    let host = HostMemory::from_vec(vec![0; 8]);
    let mut args = TaskArgs::new();
    let results = [
        w.remote_free(&buffer),
        w.remote_copy_to(&buffer, &host, 0),
        w.remote_copy_from(&buffer, &host, 0),
        w.remote_export(&buffer, 0, None, AccessFlags::READ)
            .map(drop),
        w.remote_import(&export, 1, None).map(drop),
        args.add_remote(&buffer, 0, u8s(8), Tag::Input).map(drop),
        w.run_simple(|o| submit(o, &task, before).map(drop))
            .map(drop),
    ];
    for (index, result) in results.into_iter().enumerate() {
        assert!(
            matches!(result, Err(Error::Handle { .. })),
            "{index}: {result:?}"
        );
    }
    assert_eq!(frees(&bed.remotes[0].controls()), 1);
}

#[test]
fn owners_and_imports_are_different_kinds() {
    let bed = Bed::new(0, 2);
    let w = &bed.worker;
    let owner = bed.malloc(0, 8);
    let export = w.remote_export(&owner, 0, None, AccessFlags::READ).unwrap();
    let import = w.remote_import(&export, 1, None).unwrap();
    let host = HostMemory::from_vec(vec![0; 8]);
    let results = [
        w.remote_free(&import),
        w.remote_release_import(&owner),
        w.remote_copy_to(&import, &host, 0),
        w.remote_copy_from(&import, &host, 0),
        w.remote_export(&import, 0, None, AccessFlags::READ)
            .map(drop),
    ];
    for (index, result) in results.into_iter().enumerate() {
        assert!(
            matches!(result, Err(Error::Handle { .. })),
            "{index}: {result:?}"
        );
    }
    let own = w.remote_import(&export, 0, None);
    assert!(matches!(own, Err(Error::Argument { .. })), "{own:?}");
    let none = w.remote_malloc(0, 0);
    assert!(matches!(none, Err(Error::Argument { .. })), "{none:?}");
    let nobody = w.remote_malloc(7, 1).unwrap_err().to_string();
    assert!(nobody.contains("known ids are [0, 1]"), "{nobody}");
}

/// In the importing session two imports are two pieces of memory: its tasks would not be ordered by them (invariant 2).
#[test]
fn two_imports_of_bytes_that_a_task_writes_are_refused() {
    let bed = Bed::new(0, 2);
    let task = bed.remote_task();
    let owner = bed.malloc(0, 8);
    let all = AccessFlags::READ_WRITE;
    let export = bed.worker.remote_export(&owner, 0, None, all).unwrap();
    let imports = [0, 1].map(|_| bed.worker.remote_import(&export, 1, None).unwrap());
    let cases = [
        ((0, 0, 8, Tag::InOut), (1, 0, 8, Tag::InOut), false),
        ((0, 0, 8, Tag::Input), (1, 7, 1, Tag::Output), false),
        ((0, 0, 8, Tag::Input), (1, 0, 8, Tag::Input), true),
        ((0, 0, 4, Tag::InOut), (1, 4, 4, Tag::InOut), true),
        ((0, 0, 8, Tag::InOut), (0, 0, 8, Tag::InOut), true),
        ((0, 0, 8, Tag::NoDep), (1, 0, 8, Tag::NoDep), true),
    ];
    for (one, other, allowed) in cases {
        let mut args = TaskArgs::new();
        for (import, offset, nbytes, tag) in [one, other] {
            let import: &echelon_runtime::RemoteBuffer = &imports[import];
            args.add_remote(import, offset, u8s(nbytes), tag).unwrap();
        }
        let ran = bed.worker.run_simple(|o| submit(o, &task, args).map(drop));
        assert_eq!(ran.is_ok(), allowed, "{one:?} {other:?}: {ran:?}");
        if let Err(error) = ran {
            let text = error.to_string();
            assert!(text.contains("arguments 0 and 1 are two imports"), "{text}");
        }
    }
}
