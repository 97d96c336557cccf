//! Which transport profile an export and its importers use: one host's shared memory, or the owner's peer lane. Pure.
//!
//! An owner that knows `peer_fetch` is asked for profile `tcp`, whose descriptor serves importers on its host as well. An importer that
//! does not know it gets the same export as `sim`. A worker that is declared to be on a host of its own never gets a segment's name,
//! and none of its own is handed on.

use echelon_wire::codec::{Decode as _, Encode as _};
use echelon_wire::frame::control::transfer::{ExportResult, TcpDescriptor};
use echelon_wire::frame::Features;

/// Profile of version 1: shared memory of one host.
pub(crate) const SIM: &str = "sim";

/// What decides about the profile on one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Side {
    pub(crate) features: Features,
    /// False: declared to share memory with no other worker.
    pub(crate) same_host: bool,
}

impl Side {
    fn fetches(self) -> bool {
        self.features.contains(Features::PEER_FETCH)
    }

    /// The profile that an owner is asked for.
    pub(crate) fn profile(self) -> &'static str {
        if self.fetches() {
            TcpDescriptor::PROFILE
        } else {
            SIM
        }
    }

    /// What an owner answered, as it is kept.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(crate) fn exported(
        self,
        export: ExportResult<'static>,
    ) -> Result<ExportResult<'static>, String> {
        let profile = &*export.transport_profile;
        if profile != self.profile() {
            return Err(format!(
                "it has profile {profile:?}, and {:?} was asked for",
                self.profile()
            ));
        }
        if profile == SIM {
            return Ok(export);
        }
        if self.same_host {
            descriptor(&export)?;
            return Ok(export);
        }
        without_segment(export)
    }

    /// An export as this importer is to see it.
    ///
    /// # Errors
    /// Why it cannot be imported here, and what to do.
    pub(crate) fn import_of(
        self,
        export: ExportResult<'static>,
    ) -> Result<ExportResult<'static>, String> {
        match (export.transport_profile == TcpDescriptor::PROFILE, self.fetches()) {
            (true, true) if self.same_host => Ok(export),
            (true, true) => without_segment(export),
            (true, false) => self.as_segment(export),
            (false, _) if self.same_host => Ok(export),
            (false, _) => Err(
                "it is declared same_host=False, and the owner knows shared memory of one host only (it has no peer_fetch); \
                 copy the bytes with orch.copy"
                    .into(),
            ),
        }
    }

    fn as_segment(
        self,
        mut export: ExportResult<'static>,
    ) -> Result<ExportResult<'static>, String> {
        let segment = descriptor(&export)?.segment.into_owned();
        if segment.is_empty() || !self.same_host {
            return Err(
                "it has no peer_fetch, so it can map shared memory of the owner's host only, and there is none for it; copy the \
                 bytes with orch.copy"
                    .into(),
            );
        }
        export.transport_profile = SIM.into();
        export.transport_descriptor = segment.into_bytes().into();
        Ok(export)
    }
}

fn descriptor<'a>(export: &'a ExportResult<'_>) -> Result<TcpDescriptor<'a>, String> {
    TcpDescriptor::decode(&export.transport_descriptor).map_err(|error| error.to_string())
}

fn without_segment(mut export: ExportResult<'static>) -> Result<ExportResult<'static>, String> {
    let stripped = TcpDescriptor {
        segment: "".into(),
        ..descriptor(&export)?
    };
    let bytes = stripped.to_bytes().map_err(|error| error.to_string())?;
    export.transport_descriptor = bytes.into();
    Ok(export)
}

#[cfg(test)]
mod tests {
    use super::*;
    use echelon_wire::buffer::{AccessFlags, AddressSpace};
    use echelon_wire::frame::peer::Ticket;
    use echelon_wire::id::{BufferId, ExportId, Generation, SessionId, WorkerId};

    const KNOWS: Side = Side {
        features: Features::PEER_FETCH,
        same_host: true,
    };
    const AWAY: Side = Side {
        same_host: false,
        ..KNOWS
    };
    const V1: Side = Side {
        features: Features::NONE,
        same_host: true,
    };
    const V1_AWAY: Side = Side {
        same_host: false,
        ..V1
    };

    fn tcp(segment: &'static str) -> ExportResult<'static> {
        let descriptor = TcpDescriptor {
            session_id: SessionId(7),
            ticket: Ticket([5; 32]),
            host: "127.0.0.1".into(),
            port: 99,
            segment: segment.into(),
        };
        ExportResult {
            transport_profile: "tcp".into(),
            transport_descriptor: descriptor.to_bytes().unwrap().into(),
            ..sim()
        }
    }

    fn sim() -> ExportResult<'static> {
        ExportResult {
            owner_worker_id: WorkerId(1),
            buffer_id: BufferId(2),
            generation: Generation(1),
            address_space: AddressSpace::RemoteWindow,
            offset: 8,
            nbytes: 16,
            export_id: ExportId(1),
            remote_addr: 1,
            rkey_or_token: 1,
            ub_ldst_va: 0,
            access_flags: AccessFlags::READ,
            transport_profile: "sim".into(),
            transport_descriptor: b"psm_a".to_vec().into(),
        }
    }

    #[test]
    fn an_owner_is_asked_for_what_it_knows_and_answers_with_it() {
        assert_eq!((KNOWS.profile(), V1.profile()), ("tcp", "sim"));
        assert_eq!(KNOWS.exported(tcp("psm_a")), Ok(tcp("psm_a")));
        assert_eq!(AWAY.exported(tcp("psm_a")), Ok(tcp("")));
        assert_eq!(V1.exported(sim()), Ok(sim()));
        assert!(V1.exported(tcp("psm_a")).is_err());
        assert!(KNOWS.exported(sim()).is_err());
    }

    #[test]
    fn an_importer_gets_what_it_can_use() {
        assert_eq!(KNOWS.import_of(tcp("psm_a")), Ok(tcp("psm_a")));
        assert_eq!(KNOWS.import_of(sim()), Ok(sim()));
        assert_eq!(AWAY.import_of(tcp("psm_a")), Ok(tcp("")));
        assert_eq!(V1.import_of(tcp("psm_a")), Ok(sim()));
        assert_eq!(V1.import_of(sim()), Ok(sim()));
        for (side, export) in [
            (V1, tcp("")),
            (V1_AWAY, tcp("psm_a")),
            (V1_AWAY, sim()),
            (AWAY, sim()),
        ] {
            let text = side.import_of(export).unwrap_err();
            assert!(text.contains("orch.copy"), "{text}");
        }
    }

    #[test]
    fn a_descriptor_that_does_not_decode_is_refused() {
        let mut export = tcp("psm_a");
        export.transport_descriptor.to_mut().pop();
        for side in [KNOWS, AWAY] {
            assert!(side.exported(export.clone()).is_err());
        }
        assert!(V1.import_of(export).is_err());
    }
}
