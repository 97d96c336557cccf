//! The buffer tables without a session around them; real segments, no sockets.

use echelon_wire::buffer::AccessFlags;
use echelon_wire::frame::control::buffer::{AllocResult, CopyHeader, FreeCommand};
use echelon_wire::frame::control::transfer::{
    ExportRequest, ExportResult, ImportRequest, ReleaseImport,
};
use echelon_wire::id::{BufferId, Generation, WorkerId};

use super::*;
use crate::segments::Owner;

const LIMIT: u64 = 1 << 20;
const ME: WorkerId = WorkerId(3);

fn buffers() -> Buffers {
    Buffers::new(
        ME,
        LIMIT,
        Owner::this_process().expect("proc is mounted").prefix(),
        Arc::default(),
    )
}

/// Copies as the session makes them.
impl Buffers {
    pub(crate) fn copy_to(&self, header: &CopyHeader, data: &[u8]) -> Result<(), BufferError> {
        let target = self.target(header, data.len() as u64)?;
        target.copy_in(0, data).expect("inside");
        Ok(())
    }

    pub(crate) fn copy_from(&self, header: &CopyHeader) -> Result<Vec<u8>, BufferError> {
        self.source(header).map(|source| source.to_vec())
    }
}

fn header(buffer: &AllocResult, offset: u64, size: u64) -> CopyHeader {
    CopyHeader {
        worker_id: ME,
        buffer_id: buffer.buffer_id,
        generation: buffer.generation,
        offset,
        size,
    }
}

fn free(buffer: &AllocResult) -> FreeCommand {
    FreeCommand {
        worker_id: ME,
        buffer_id: buffer.buffer_id,
        generation: buffer.generation,
    }
}

fn request(
    buffer: &AllocResult,
    offset: u64,
    nbytes: u64,
    access_flags: AccessFlags,
) -> ExportRequest<'static> {
    ExportRequest {
        owner_worker_id: ME,
        buffer_id: buffer.buffer_id,
        generation: buffer.generation,
        offset,
        nbytes,
        access_flags,
        transport_profile: "".into(),
    }
}

fn import_of(export: ExportResult<'static>, access: AccessFlags) -> ImportRequest<'static> {
    ImportRequest {
        importer_worker_id: ME,
        requested_access_flags: access,
        export,
    }
}

fn segment(export: &ExportResult<'_>) -> std::path::PathBuf {
    let name = std::str::from_utf8(&export.transport_descriptor).expect("text");
    std::path::Path::new("/dev/shm").join(name)
}

#[test]
fn ids_count_from_one_and_memory_is_zero_r_127() {
    let mut buffers = buffers();
    let first = buffers.alloc(10).expect("room");
    let second = buffers.alloc(20).expect("room");
    assert_eq!(
        (first.buffer_id, first.generation, second.buffer_id),
        (BufferId(1), Generation(1), BufferId(2))
    );
    assert_eq!(
        buffers.copy_from(&header(&first, 0, 10)).expect("inside"),
        [0; 10]
    );
    assert!(buffers.free(&free(&first)).expect("own").is_some());
    assert!(buffers.free(&free(&first)).expect("idempotent").is_none());
    assert_eq!(buffers.alloc(1).expect("room").buffer_id, BufferId(3));
}

#[test]
fn absurd_sizes_name_the_limit_and_leave_nothing_r_126_r_242() {
    let mut buffers = buffers();
    for nbytes in [LIMIT + 1, 1 << 45, 1 << 63, u64::MAX] {
        let text = buffers.alloc(nbytes).expect_err("too large").to_string();
        assert!(
            text.contains("RESOURCE_EXHAUSTED") && text.contains(&LIMIT.to_string()),
            "{text}"
        );
    }
    let whole = buffers.alloc(LIMIT).expect("everything is still free");
    assert!(buffers.alloc(1).is_err());
    buffers.free(&free(&whole)).expect("own");
    assert!(buffers.alloc(LIMIT).is_ok());
}

#[test]
fn handles_are_bounded_whatever_they_are_r_126() {
    let mut buffers = buffers();
    buffers.handles_max = 3;
    let first = buffers.alloc(1).expect("room");
    let export = buffers.export(&request(&first, 0, 1, AccessFlags::READ), None);
    let import = import_of(export.expect("inside"), AccessFlags::READ);
    let imported = buffers.import(&import, false).expect("room");
    let last = buffers.alloc(1).expect("room");
    for text in [
        buffers.alloc(1).expect_err("full").to_string(),
        buffers
            .import(&import, false)
            .expect_err("full")
            .to_string(),
    ] {
        assert!(
            text.contains("RESOURCE_EXHAUSTED") && text.contains("limit 3"),
            "{text}"
        );
    }
    // A place that comes free, of either kind, is there for either kind.
    buffers.free(&free(&last)).expect("own");
    let second = buffers.import(&import, false).expect("room");
    for id in [imported.import_id, second.import_id] {
        let release = ReleaseImport {
            importer_worker_id: ME,
            owner_worker_id: ME,
            buffer_id: first.buffer_id,
            generation: first.generation,
            import_id: id,
        };
        buffers.release(&release).expect("own");
    }
    assert!(buffers.alloc(1).is_ok() && buffers.alloc(1).is_ok());
    assert!(handles_max() <= HANDLES_MAX && handles_max() > 0);
}

#[test]
fn copies_check_worker_then_buffer_then_length_then_range() {
    let mut buffers = buffers();
    let buffer = buffers.alloc(8).expect("room");
    buffers
        .copy_to(&header(&buffer, 6, 2), b"ab")
        .expect("inside");
    assert_eq!(
        buffers.copy_from(&header(&buffer, 5, 3)).expect("inside"),
        b"\0ab"
    );
    assert_eq!(
        buffers
            .copy_from(&header(&buffer, 8, 0))
            .expect("empty at the end"),
        b""
    );
    let wrong = CopyHeader {
        worker_id: WorkerId(4),
        buffer_id: BufferId(9),
        ..header(&buffer, 9, 9)
    };
    assert!(matches!(
        buffers.copy_to(&wrong, b""),
        Err(BufferError::WorkerMismatch { .. })
    ));
    let stale = CopyHeader {
        generation: Generation(2),
        ..header(&buffer, 0, 1)
    };
    assert!(matches!(
        buffers.copy_to(&stale, b""),
        Err(BufferError::UnknownBuffer { .. })
    ));
    assert!(matches!(
        buffers.copy_to(&header(&buffer, 9, 1), b""),
        Err(BufferError::DataLength { .. })
    ));
    for (offset, size) in [(8, 1), (9, 0), (u64::MAX, 2)] {
        assert!(matches!(
            buffers.copy_from(&header(&buffer, offset, size)),
            Err(BufferError::Range { .. })
        ));
    }
}

#[test]
fn an_export_with_an_offset_shows_exactly_its_bytes_r_234() {
    let mut buffers = buffers();
    let buffer = buffers.alloc(100).expect("room");
    buffers
        .copy_to(&header(&buffer, 40, 3), b"abc")
        .expect("inside");
    let export = buffers
        .export(&request(&buffer, 40, 10, AccessFlags::READ), None)
        .expect("inside");
    let import = buffers
        .import(&import_of(export, AccessFlags::READ), false)
        .expect("opens");
    let desc = RemoteTensorDesc {
        address_space: AddressSpace::RemoteWindow,
        rkey_or_token: import.import_id.0,
        ..RemoteTensorDesc::remote_device(ME, buffer.buffer_id, buffer.generation, 40, 3)
    };
    let place = buffers.locate(&desc).expect("inside");
    let memory = place.region.host(place.offset, 3).expect("inside");
    assert_eq!(memory.to_vec(), b"abc");
    // a read-only import cannot be written through.
    assert!(!memory.is_writable());
    for outside in [
        RemoteTensorDesc { offset: 39, ..desc },
        RemoteTensorDesc { offset: 48, ..desc },
    ] {
        assert!(matches!(
            buffers.locate(&outside),
            Err(BufferError::TensorRange)
        ));
    }
    let other = RemoteTensorDesc {
        rkey_or_token: import.import_id.0 + 1,
        ..desc
    };
    assert!(matches!(
        buffers.locate(&other),
        Err(BufferError::UnknownTensor)
    ));
}

#[test]
fn a_name_lives_from_the_first_export_to_the_free() {
    let mut buffers = buffers();
    let buffer = buffers.alloc(16).expect("room");
    let first = buffers
        .export(&request(&buffer, 0, 16, AccessFlags::READ_WRITE), None)
        .expect("inside");
    let second = buffers
        .export(&request(&buffer, 8, 8, AccessFlags::READ), None)
        .expect("inside");
    assert_eq!((first.export_id.0, second.export_id.0), (1, 2));
    assert_eq!(first.transport_descriptor, second.transport_descriptor);
    let path = segment(&first);
    assert!(path.exists());
    // A view of the memory keeps it, not its name (contract §5, FREE).
    let view = buffers.free(&free(&buffer)).expect("own").expect("known");
    assert!(!path.exists());
    drop(view);
    assert!(matches!(
        buffers.import(&import_of(first, AccessFlags::READ), false),
        Err(BufferError::NotOnThisHost)
    ));
}

/// Two sessions may be in one process: what one has is nothing to the other.
#[test]
fn tables_in_one_process_share_nothing_r_052() {
    let (mut one, mut two) = (buffers(), buffers());
    let first = one.alloc(LIMIT).expect("room");
    let own = two.alloc(LIMIT).expect("a limit of its own");
    assert_eq!(first.buffer_id, own.buffer_id, "each counts from one");
    one.copy_to(&header(&first, 0, 1), b"a").expect("inside");
    assert_eq!(two.copy_from(&header(&own, 0, 1)).expect("inside"), [0]);
    let export = one.export(&request(&first, 0, 16, AccessFlags::READ), None);
    let path = segment(&export.expect("inside"));
    let other = two.export(&request(&own, 0, 16, AccessFlags::READ), None);
    let other = other.expect("inside");
    assert_ne!(path, segment(&other));
    drop(one);
    assert!(!path.exists() && segment(&other).exists());
    two.free(&free(&own)).expect("own");
    assert!(two.alloc(LIMIT).is_ok());
}

#[test]
fn everything_goes_with_the_table_r_126() {
    let mut buffers = buffers();
    let buffer = buffers.alloc(16).expect("room");
    let export = buffers
        .export(&request(&buffer, 0, 16, AccessFlags::READ), None)
        .expect("inside");
    let path = segment(&export);
    drop(buffers);
    assert!(!path.exists());
}

#[test]
fn an_import_is_checked_and_released_by_all_its_ids_r_114_r_115_r_120() {
    let mut buffers = buffers();
    let buffer = buffers.alloc(16).expect("room");
    let export = buffers
        .export(&request(&buffer, 0, 16, AccessFlags::READ), None)
        .expect("inside");
    let more = import_of(export.clone(), AccessFlags::READ_WRITE);
    assert!(matches!(
        buffers.import(&more, false),
        Err(BufferError::Access { .. })
    ));
    let elsewhere = ImportRequest {
        importer_worker_id: WorkerId(9),
        ..import_of(export.clone(), AccessFlags::READ)
    };
    assert!(matches!(
        buffers.import(&elsewhere, false),
        Err(BufferError::WorkerMismatch { .. })
    ));
    for (profile, name) in [
        ("", "psm_x"),
        ("rdma", "psm_x"),
        ("sim", "passwd"),
        ("sim", "psm_/../x"),
    ] {
        let forged = ExportResult {
            transport_profile: profile.into(),
            transport_descriptor: name.as_bytes().to_vec().into(),
            ..export.clone()
        };
        assert!(
            buffers
                .import(&import_of(forged, AccessFlags::READ), false)
                .is_err(),
            "{profile} {name}"
        );
    }
    let mut longer = export.clone(); // more than the segment has
    longer.nbytes = 1 << 30;
    assert!(buffers
        .import(&import_of(longer, AccessFlags::READ), false)
        .is_err());
    let import = buffers
        .import(&import_of(export, AccessFlags::READ), false)
        .expect("opens");
    let release = ReleaseImport {
        importer_worker_id: ME,
        owner_worker_id: ME,
        buffer_id: buffer.buffer_id,
        generation: buffer.generation,
        import_id: import.import_id,
    };
    let stale = ReleaseImport {
        generation: Generation(2),
        ..release
    };
    assert!(matches!(
        buffers.release(&stale),
        Err(BufferError::UnknownImport { .. })
    ));
    assert!(buffers.release(&release).expect("its own").is_some());
    // the same once more is harmless; any other is still wrong.
    assert!(buffers.release(&release).expect("again").is_none());
    assert!(matches!(
        buffers.release(&stale),
        Err(BufferError::UnknownImport { .. })
    ));
}

#[test]
fn a_release_that_is_repeated_takes_no_later_import_away_r_115() {
    let mut buffers = buffers();
    let buffer = buffers.alloc(16).expect("room");
    let export = buffers.export(&request(&buffer, 0, 16, AccessFlags::READ), None);
    let import = import_of(export.expect("inside"), AccessFlags::READ);
    let release_of = |import_id| ReleaseImport {
        importer_worker_id: ME,
        owner_worker_id: ME,
        buffer_id: buffer.buffer_id,
        generation: buffer.generation,
        import_id,
    };
    let first = buffers.import(&import, false).expect("opens");
    let second = buffers.import(&import, false).expect("opens");
    assert_ne!(first.import_id, second.import_id);
    for _ in 0..3 {
        let again = buffers.release(&release_of(first.import_id));
        drop(again.expect("its own, or idempotent"));
    }
    assert!(buffers
        .release(&release_of(second.import_id))
        .expect("still there")
        .is_some());
    // What is remembered is bounded: a session that lives long does not grow.
    for _ in 0..3000 {
        let next = buffers.import(&import, false).expect("opens").import_id;
        buffers.release(&release_of(next)).expect("its own");
    }
    assert!(matches!(
        buffers.release(&release_of(first.import_id)),
        Err(BufferError::UnknownImport { .. })
    ));
}

#[test]
fn a_freed_buffer_counts_until_its_name_is_gone_r_118() {
    let mut buffers = buffers();
    let buffer = buffers.alloc(LIMIT).expect("room");
    let export = buffers.export(&request(&buffer, 0, 16, AccessFlags::READ), None);
    let path = segment(&export.expect("inside"));
    let aside = path.with_extension("aside");
    // A folder in the name's place: unlink fails as it would with any other error of the system.
    std::fs::rename(&path, &aside).expect("moved");
    std::fs::create_dir(&path).expect("made");
    assert!(buffers.free(&free(&buffer)).expect("own").is_some());
    let early = buffers.alloc(1);
    std::fs::remove_dir(&path).expect("removed");
    std::fs::rename(&aside, &path).expect("moved back");
    assert!(matches!(early, Err(BufferError::Resource { .. })));
    // Freed it is, whatever became of the name; the next call gets rid of that, too.
    let stale = buffers.copy_from(&header(&buffer, 0, 1));
    assert!(matches!(stale, Err(BufferError::UnknownBuffer { .. })));
    assert!(buffers.alloc(LIMIT).is_ok());
    assert!(!path.exists());
}

/// What is not exactly the name of a segment is refused before any file is looked for.
#[test]
fn malformed_descriptors_are_refused_r_075() {
    let mut buffers = buffers();
    let buffer = buffers.alloc(16).expect("room");
    let export = buffers.export(&request(&buffer, 0, 16, AccessFlags::READ), None);
    let export = export.expect("inside");
    let name = export.transport_descriptor.to_vec();
    let with = |tail: &[u8]| [&name[..], tail].concat();
    let malformed = [
        Vec::new(),
        b"psm_".to_vec(),
        [b"/", &name[..]].concat(),
        b"psm_../passwd".to_vec(),
        b"psm_a/b".to_vec(),
        with(b"\0"),
        with(&[0; 100]),
        with(b"\n"),
        with(b" "),
        with(b"\x1b[2J"),
        with("\u{e9}".as_bytes()),
        with(b"\xff"),
        with(&[b'x'; 256]),
        with(&[b'x'; 4000]),
        name[1..].to_vec(),
        name.to_ascii_uppercase(),
    ];
    for descriptor in malformed {
        let forged = ExportResult {
            transport_descriptor: descriptor.clone().into(),
            ..export.clone()
        };
        let error = buffers.import(&import_of(forged, AccessFlags::READ), false);
        let text = error.expect_err("malformed").to_string();
        // Nothing of it is repeated: it may be long, and not for terminals.
        assert!(
            text.len() < 200 && text.is_ascii(),
            "{descriptor:?}: {text}"
        );
        assert!(!text.contains(|c: char| c.is_control()), "{text}");
    }
    let import = import_of(export, AccessFlags::READ);
    assert_eq!(
        buffers.import(&import, false).expect("opens").import_id.0,
        1
    );
}

#[test]
fn a_device_tensor_of_another_worker_needs_an_import() {
    let mut buffers = buffers();
    let buffer = buffers.alloc(8).expect("room");
    let desc =
        RemoteTensorDesc::remote_device(WorkerId(4), buffer.buffer_id, buffer.generation, 0, 8);
    assert!(matches!(
        buffers.locate(&desc),
        Err(BufferError::ForeignDevice)
    ));
    let own = RemoteTensorDesc {
        owner_worker_id: ME,
        ..desc
    };
    assert!(buffers.locate(&own).is_ok());
    assert!(matches!(
        buffers.locate(&RemoteTensorDesc {
            generation: Generation(2),
            ..own
        }),
        Err(BufferError::UnknownTensor)
    ));
}
