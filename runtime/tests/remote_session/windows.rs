//! Exports and imports: what comes back must describe what was asked for.

use echelon_runtime::endpoint::{BufferKey, ControlReply, ControlRequest, Endpoint, Ticket};
use echelon_wire::buffer::{AccessFlags, AddressSpace};
use echelon_wire::codec::Encode;
use echelon_wire::frame::control::transfer::{ExportResult, ImportResult};
use echelon_wire::frame::ControlName;
use echelon_wire::id::{BufferId, ExportId, Generation, ImportId, WorkerId};

use crate::commands::BUFFER;
use crate::peer::{Parent, PATIENCE, WORKER};

fn made() -> ExportResult<'static> {
    ExportResult {
        owner_worker_id: WORKER,
        buffer_id: BUFFER.buffer,
        generation: BUFFER.generation,
        address_space: AddressSpace::RemoteWindow,
        offset: 16,
        nbytes: 32,
        export_id: ExportId(1),
        remote_addr: 1,
        rkey_or_token: 1,
        ub_ldst_va: 0,
        access_flags: AccessFlags::READ,
        transport_profile: "sim".into(),
        transport_descriptor: b"psm_1".to_vec().into(),
    }
}

fn export() -> ControlRequest {
    ControlRequest::Export {
        buffer: BUFFER,
        offset: 16,
        nbytes: 32,
        access: AccessFlags::READ,
    }
}

/// Another worker's export, read and write.
fn foreign() -> ExportResult<'static> {
    ExportResult {
        owner_worker_id: WorkerId(1),
        access_flags: AccessFlags::READ_WRITE,
        ..made()
    }
}

fn granted() -> ImportResult<'static> {
    ImportResult {
        importer_worker_id: WORKER,
        owner_worker_id: WorkerId(1),
        buffer_id: BUFFER.buffer,
        generation: BUFFER.generation,
        import_id: ImportId(4),
        address_space: AddressSpace::RemoteWindow,
        offset: 16,
        nbytes: 32,
        remote_addr: 1,
        rkey_or_token: 4,
        ub_ldst_va: 0,
        access_flags: AccessFlags::READ,
        transport_profile: "sim".into(),
        import_descriptor: Vec::new().into(),
    }
}

fn import() -> ControlRequest {
    ControlRequest::Import {
        export: Box::new(foreign()),
        access: AccessFlags::READ,
    }
}

/// A session that answers its first request with this result.
fn resulting(name: ControlName, result: Vec<u8>) -> Parent {
    Parent::of(PATIENCE, move |mut session| {
        let _beats = session.beat();
        let got = session.receive().unwrap();
        session.reply(got.header.sequence, name, &result);
        session.drain();
    })
}

#[test]
fn what_was_asked_for_comes_back() {
    let mut parent = resulting(ControlName::ExportBuffer, made().to_bytes().unwrap());
    match parent.control(export()).unwrap() {
        ControlReply::Exported(export) => assert_eq!(*export, made()),
        other => panic!("{other:?}"),
    }
    let mut parent = resulting(ControlName::ImportBuffer, granted().to_bytes().unwrap());
    match parent.control(import()).unwrap() {
        ControlReply::Imported(import) => assert_eq!(*import, granted()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn r_234_an_export_of_something_else() {
    let key = BufferKey {
        buffer: BufferId(6),
        generation: Generation(2),
    };
    for wrong in [
        ExportResult {
            owner_worker_id: WorkerId(4),
            ..made()
        },
        ExportResult {
            buffer_id: key.buffer,
            ..made()
        },
        ExportResult {
            generation: key.generation,
            ..made()
        },
        ExportResult {
            offset: 0,
            ..made()
        },
        ExportResult {
            nbytes: 64,
            ..made()
        },
        ExportResult {
            access_flags: AccessFlags::READ_WRITE,
            ..made()
        },
    ] {
        let mut parent = resulting(ControlName::ExportBuffer, wrong.to_bytes().unwrap());
        parent.endpoint.control(Ticket(1), export()).unwrap();
        parent.lost_for_good("was asked for");
    }
}

#[test]
fn r_234_an_import_of_something_else() {
    for wrong in [
        ImportResult {
            importer_worker_id: WorkerId(1),
            ..granted()
        },
        ImportResult {
            owner_worker_id: WorkerId(2),
            ..granted()
        },
        ImportResult {
            buffer_id: BufferId(6),
            ..granted()
        },
        ImportResult {
            generation: Generation(2),
            ..granted()
        },
        ImportResult {
            offset: 0,
            ..granted()
        },
        ImportResult {
            nbytes: 64,
            ..granted()
        },
        ImportResult {
            access_flags: AccessFlags::READ_WRITE,
            ..granted()
        },
    ] {
        let mut parent = resulting(ControlName::ImportBuffer, wrong.to_bytes().unwrap());
        parent.endpoint.control(Ticket(1), import()).unwrap();
        parent.lost_for_good("the session's answer does not fit");
    }
}
