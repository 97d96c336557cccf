//! Controls of buffers: made, filled, read, exported, imported, freed. They need no user code, so that a thread of their own may
//! carry them out while a task runs (extension `concurrent_control`).

use std::sync::Arc;

use echelon_runtime::memory::SharedRegion;
use echelon_runtime::Worker;
use echelon_wire::codec::Decode as _;
use echelon_wire::error::EncodeError;
use echelon_wire::frame::control::buffer::{AllocCommand, CopyHeader, CopyTo, FreeCommand};
use echelon_wire::frame::control::domain::reserved_control_message;
use echelon_wire::frame::control::transfer::{
    ExportRequest, ImportRequest, PeerFence, ReleaseImport, TcpDescriptor,
};
use echelon_wire::frame::{ControlName, Features};
use echelon_wire::id::{Sequence, WorkerId};
use parking_lot::Mutex;

use super::command::Reply;
use super::control::{encoded, reply_to, text, Outcome};
use crate::buffers::{BufferError, Buffers};
use crate::peer::{Peers, Reachable};

/// The session's buffers and who has them mapped.
pub(crate) struct Memory {
    pub(super) worker_id: WorkerId,
    /// Sessions on other hosts, whose buffers are imported here or which import from here. They end before the buffers do.
    pub(super) peers: Peers,
    /// Held for a look into the tables, never while bytes are copied or user code runs.
    pub(super) buffers: Mutex<Buffers>,
    /// Its children map buffers.
    worker: Worker,
}

impl Memory {
    pub(super) fn new(
        worker_id: WorkerId,
        buffers: Buffers,
        peers: Peers,
        worker: Worker,
    ) -> Arc<Self> {
        Arc::new(Self {
            worker_id,
            buffers: Mutex::new(buffers),
            peers,
            worker,
        })
    }

    /// Answers a control that needs nothing but buffers.
    pub(super) fn control(
        &self,
        features: Features,
        sequence: Sequence,
        payload: &[u8],
    ) -> Result<Reply, EncodeError> {
        reply_to(
            self.worker_id,
            features,
            sequence,
            payload,
            |name, command| self.carry_out(features, name, command),
        )
    }

    pub(super) fn carry_out(
        &self,
        features: Features,
        name: ControlName,
        command: &[u8],
    ) -> Outcome {
        match name {
            ControlName::AllocRemoteBuffer => {
                let command = AllocCommand::decode(command).map_err(text)?;
                encoded(&self.buffers.lock().alloc(command.nbytes).map_err(text)?)
            }
            ControlName::FreeRemoteBuffer => {
                let command = FreeCommand::decode(command).map_err(text)?;
                let region = self.buffers.lock().free(&command).map_err(text)?;
                self.forget(region.as_deref());
                Ok(Vec::new())
            }
            ControlName::CopyToRemote => {
                let command = CopyTo::decode(command).map_err(text)?;
                let (header, data) = (&command.header, &command.data);
                let target = self.buffers.lock().target(header, data.len() as u64);
                let copied = target.map_err(text)?.copy_in(0, data);
                copied.map_err(|source| {
                    text(BufferError::Memory {
                        control: name,
                        source,
                    })
                })?;
                Ok(Vec::new())
            }
            ControlName::CopyFromRemote => {
                let command = CopyHeader::decode(command).map_err(text)?;
                let source = self.buffers.lock().source(&command);
                Ok(source.map_err(text)?.to_vec())
            }
            ControlName::ExportBuffer => {
                let request = ExportRequest::decode(command).map_err(text)?;
                let reachable = self.reachable_for(features, &request).map_err(text)?;
                let export = self.buffers.lock().export(&request, reachable);
                encoded(&export.map_err(text)?)
            }
            ControlName::ImportBuffer => {
                let request = ImportRequest::decode(command).map_err(text)?;
                let fetches = features.contains(Features::PEER_FETCH);
                let import = self.buffers.lock().import(&request, fetches);
                encoded(&import.map_err(text)?)
            }
            ControlName::ReleaseImport => {
                let release = ReleaseImport::decode(command).map_err(text)?;
                let released = self.buffers.lock().release(&release).map_err(text)?;
                if let Some(released) = released {
                    self.forget(Some(&released.region));
                    if let Some(fetched) = released.fetched {
                        self.peers.forget(&fetched.source);
                    }
                }
                Ok(Vec::new())
            }
            ControlName::PeerFence => self.keep_away(command),
            // The main thread has what others need.
            other => Err(reserved_control_message(other)
                .unwrap_or_else(|| format!("{} is not supported", other.name()))),
        }
    }

    fn keep_away(&self, command: &[u8]) -> Outcome {
        let fence = PeerFence::decode(command).map_err(text)?;
        if fence.worker_id != self.worker_id {
            return Err(text(BufferError::WorkerMismatch {
                control: ControlName::PeerFence,
                got: fence.worker_id,
                own: self.worker_id,
            }));
        }
        // The buffer may be freed by now; whose it was says who waits for the answer.
        self.peers.keep_away(fence.importer, fence.lasting)?;
        Ok(Vec::new())
    }

    /// Where importers on other hosts would find what is exported; set when they are asked for and were negotiated.
    fn reachable_for(
        &self,
        features: Features,
        request: &ExportRequest<'_>,
    ) -> Result<Option<Reachable>, BufferError> {
        let asked = request.transport_profile == TcpDescriptor::PROFILE;
        if !asked || !features.contains(Features::PEER_FETCH) {
            return Ok(None);
        }
        self.peers
            .reachable()
            .map(Some)
            .map_err(BufferError::Listen)
    }

    /// The inner workers drop their mappings of a region that is gone.
    fn forget(&self, region: Option<&SharedRegion>) {
        if let Some(region) = region {
            self.worker.drop_region(region.id());
        }
    }
}
