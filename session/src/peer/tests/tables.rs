//! The tables of two sessions on hosts that do not share segments: the name is taken out of the descriptor.

use echelon_wire::buffer::{AddressSpace, RemoteTensorDesc};
use echelon_wire::frame::control::buffer::{CopyHeader, FreeCommand};
use echelon_wire::frame::control::transfer::{
    ExportRequest, ExportResult, ImportRequest, ImportResult, ReleaseImport, TcpDescriptor,
};

use super::*;
use crate::buffers::{BufferError, Buffers};

const LIMIT: u64 = 1 << 20;
const IMPORTER: WorkerId = WorkerId(9);

struct Side {
    peers: Peers,
    buffers: Buffers,
}

fn sides() -> (Side, Side) {
    (side(OWNER.1), side(IMPORTER))
}

fn side(worker: WorkerId) -> Side {
    let (peers, _) = peers(LONG);
    let prefix = crate::segments::Owner::this_process()
        .expect("proc")
        .prefix();
    let buffers = Buffers::new(worker, LIMIT, prefix, Arc::clone(peers.tickets()));
    Side { peers, buffers }
}

impl Side {
    fn export(&mut self, offset: u64, nbytes: u64) -> ExportResult<'static> {
        let made = self.buffers.alloc(4096).expect("room");
        let header = CopyHeader {
            worker_id: OWNER.1,
            buffer_id: made.buffer_id,
            generation: made.generation,
            offset: 0,
            size: 4096,
        };
        let bytes = pattern(0, 4096);
        self.buffers.copy_to(&header, &bytes).expect("inside");
        let request = ExportRequest {
            owner_worker_id: OWNER.1,
            buffer_id: made.buffer_id,
            generation: made.generation,
            offset,
            nbytes,
            access_flags: AccessFlags::READ_WRITE,
            transport_profile: "tcp".into(),
        };
        let reachable = self.peers.reachable().expect("listens");
        let export = self.buffers.export(&request, Some(reachable));
        export.expect("inside")
    }

    fn import(
        &mut self,
        export: ExportResult<'static>,
        access: AccessFlags,
    ) -> Result<ImportResult<'static>, BufferError> {
        let request = ImportRequest {
            importer_worker_id: IMPORTER,
            requested_access_flags: access,
            export,
        };
        self.buffers.import(&request, true)
    }

    /// What a task without tags does first with a range of an import.
    fn begin(&self, import: &ImportResult<'_>, offset: u64, nbytes: u64) -> (Vec<u8>, Transfers) {
        let place = self.buffers.locate(&desc(import, offset, nbytes));
        let place = place.expect("inside");
        let mut transfers = Transfers::default();
        if let Some(fetched) = &place.fetched {
            let usage = Use::of(None, place.access).expect("allowed");
            transfers.add(fetched, offset, nbytes, usage);
        }
        transfers.fetch(&self.peers).expect("reachable");
        let seen = place.region.host(place.offset, nbytes).expect("inside");
        (seen.to_vec(), transfers)
    }
}

/// The export as a host without the segment sees it, its descriptor changed by `change`.
fn changed(
    mut export: ExportResult<'static>,
    change: impl FnOnce(&mut TcpDescriptor<'_>),
) -> ExportResult<'static> {
    let mut descriptor = TcpDescriptor::decode(&export.transport_descriptor).expect("ours");
    descriptor.segment = "".into();
    change(&mut descriptor);
    export.transport_descriptor = descriptor.to_bytes().expect("encodes").into();
    export
}

fn from_elsewhere(export: ExportResult<'static>) -> ExportResult<'static> {
    changed(export, |_| ())
}

fn desc(import: &ImportResult<'_>, offset: u64, nbytes: u64) -> RemoteTensorDesc {
    RemoteTensorDesc {
        address_space: AddressSpace::RemoteWindow,
        owner_worker_id: import.owner_worker_id,
        buffer_id: import.buffer_id,
        offset,
        nbytes,
        remote_addr: 0,
        rkey_or_token: import.import_id.0,
        generation: import.generation,
        inline_payload_offset: 0,
        inline_payload_len: 0,
        flags: 0,
    }
}

fn release(import: &ImportResult<'_>) -> ReleaseImport {
    ReleaseImport {
        importer_worker_id: import.importer_worker_id,
        owner_worker_id: import.owner_worker_id,
        buffer_id: import.buffer_id,
        generation: import.generation,
        import_id: import.import_id,
    }
}

#[test]
fn who_can_open_the_segment_maps_it_and_others_fetch_r_234() {
    let (mut owner, mut importer) = sides();
    let export = owner.export(1_000, 96);
    assert_eq!(export.transport_profile, "tcp");
    let all = AccessFlags::READ_WRITE;
    let mapped = importer.import(export.clone(), all).expect("here");
    assert_eq!(mapped.transport_profile, "sim");
    let fetched = importer
        .import(from_elsewhere(export), all)
        .expect("reachable");
    assert_eq!(fetched.transport_profile, "tcp");
    for import in [&mapped, &fetched] {
        let (seen, _) = importer.begin(import, 1_010, 20);
        assert_eq!(seen, pattern(1_010, 20));
        for (offset, nbytes) in [(999, 2), (1_095, 2), (0, 1)] {
            let place = importer.buffers.locate(&desc(import, offset, nbytes));
            assert!(place.is_err(), "{offset} {nbytes}");
        }
    }
}

/// A name that nobody on this host gave to a segment is a name of another host.
#[test]
fn a_segment_that_cannot_be_opened_is_elsewhere() {
    let (mut owner, mut importer) = sides();
    let export = changed(owner.export(0, 64), |descriptor| {
        descriptor.segment = "psm_0123456789abcdef".into();
    });
    let import = importer
        .import(export, AccessFlags::READ)
        .expect("reachable");
    assert_eq!(import.transport_profile, "tcp");
    assert_eq!(importer.begin(&import, 0, 64).0, pattern(0, 64));
}

#[test]
fn what_is_fetched_counts_as_memory_until_it_is_released_r_115_r_126() {
    let (mut owner, mut importer) = sides();
    let export = from_elsewhere(owner.export(0, 4096));
    importer.buffers.alloc(LIMIT - 4096).expect("room");
    let first = importer
        .import(export.clone(), AccessFlags::READ)
        .expect("room");
    let full = importer.import(export.clone(), AccessFlags::READ);
    let text = full.expect_err("full").to_string();
    assert!(
        text.contains("RESOURCE_EXHAUSTED") && text.contains(&LIMIT.to_string()),
        "{text}"
    );
    let released = importer.buffers.release(&release(&first)).expect("known");
    assert!(released.is_some_and(|released| released.fetched.is_some()));
    let again = importer
        .buffers
        .release(&release(&first))
        .expect("repeated");
    assert!(again.is_none(), "counted down once");
    importer
        .import(export.clone(), AccessFlags::READ)
        .expect("room again");
    assert!(importer.import(export, AccessFlags::READ).is_err());
}

#[test]
fn a_read_only_import_from_elsewhere_is_mapped_read_only_r_123() {
    let (mut owner, mut importer) = sides();
    let export = from_elsewhere(owner.export(0, 64));
    let import = importer
        .import(export, AccessFlags::READ)
        .expect("reachable");
    let (seen, mut transfers) = importer.begin(&import, 0, 64);
    assert_eq!(seen, pattern(0, 64));
    transfers
        .write_back(&importer.peers)
        .expect("nothing to write");
    let place = importer
        .buffers
        .locate(&desc(&import, 0, 64))
        .expect("inside");
    assert!(!place.region.is_writable());
    let text = place.region.host(0, 1).expect("inside").copy_in(0, &[1]);
    assert!(text.is_err());
}

#[test]
fn a_freed_buffer_takes_its_tickets_along_r_119() {
    let (mut owner, mut importer) = sides();
    let export = from_elsewhere(owner.export(0, 64));
    let import = importer.import(export.clone(), AccessFlags::READ_WRITE);
    let import = import.expect("reachable");
    let (_, mut transfers) = importer.begin(&import, 0, 64);
    let command = FreeCommand {
        worker_id: OWNER.1,
        buffer_id: export.buffer_id,
        generation: export.generation,
    };
    assert!(owner.buffers.free(&command).expect("own").is_some());
    let text = transfers.write_back(&importer.peers).expect_err("freed");
    assert!(text.contains("freed"), "{text}");
}

#[test]
fn descriptors_that_cannot_be_are_refused_r_114() {
    let (mut owner, mut importer) = sides();
    let good = from_elsewhere(owner.export(0, 64));
    let mut cut = good.clone();
    cut.transport_descriptor.to_mut().pop();
    let mut wide = good.clone();
    wide.offset = u64::MAX - 3;
    let dials = |host: &'static str| changed(good.clone(), |it| it.host = host.into());
    let file = changed(good.clone(), |it| it.segment = "../etc/passwd".into());
    for export in [cut, wide, file, dials("10.1.2.3"), dials("example.org")] {
        assert!(importer.import(export, AccessFlags::READ).is_err());
    }
    let request = ImportRequest {
        importer_worker_id: IMPORTER,
        requested_access_flags: AccessFlags::READ,
        export: good,
    };
    let refused = importer.buffers.import(&request, false);
    let text = refused.expect_err("not negotiated").to_string();
    assert!(
        text.contains("transport_profile is not supported"),
        "{text}"
    );
    // Whatever was refused was not kept, and not counted.
    assert!(importer.buffers.alloc(LIMIT).is_ok());
}
