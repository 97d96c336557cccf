//! CONTROL: decoded, carried out, answered (contract §4.7, §5, §11).

use echelon_runtime::memory::SharedRegion;
use echelon_runtime::trace::TraceReport;
use echelon_wire::codec::{Decode, Encode};
use echelon_wire::error::EncodeError;
use echelon_wire::frame::control::buffer::{AllocCommand, CopyHeader, CopyTo, FreeCommand};
use echelon_wire::frame::control::domain::reserved_control_message;
use echelon_wire::frame::control::register::{DigestCommand, RegisterCommand};
use echelon_wire::frame::control::transfer::{
    ExportRequest, ImportRequest, ReleaseImport, TcpDescriptor,
};
use echelon_wire::frame::control::CONTROL_VERSION;
use echelon_wire::frame::control_reply::failure_prefix;
use echelon_wire::frame::{Control, ControlName, ControlReply, Features, FrameType};
use echelon_wire::id::Sequence;
use echelon_wire::limits::MAX_COPY_FROM_BYTES;

use super::command::{Reply, Session};
use crate::buffers::BufferError;
use crate::peer::Reachable;
use echelon_runtime::text::cut;

/// What a control comes to: result bytes, or the text of its failure.
pub(super) type Outcome = Result<Vec<u8>, String>;

pub(super) fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl Session {
    pub(super) fn control(
        &mut self,
        sequence: Sequence,
        payload: &[u8],
    ) -> Result<Reply, EncodeError> {
        let (name, version, outcome) = match Control::decode_with(payload, self.features) {
            Ok(control) => (
                control.name,
                control.version,
                self.carry_out(control.name, &control.command),
            ),
            // Not even a name to echo: the contract says which stands for it.
            Err(error) => (
                ControlName::PrepareCallable,
                CONTROL_VERSION,
                Err(text(error)),
            ),
        };
        let message = match &outcome {
            Ok(_) => String::new(),
            // The whole text of a reserved control belongs to the contract.
            Err(reason) if reserved_control_message(name).is_some() => reason.clone(),
            Err(reason) => cut(format!(
                "{}{reason}",
                failure_prefix(self.worker_id, sequence)
            )),
        };
        let reply = match outcome {
            Ok(result) => ControlReply::success(sequence, name, version, result),
            Err(_) => ControlReply::failure(sequence, name, version, &message),
        };
        // A result that no frame holds is a failure like any other (S-4).
        Reply::of(FrameType::ControlReply, &reply).or_else(|error| {
            let message = cut(format!(
                "{}{error}",
                failure_prefix(self.worker_id, sequence)
            ));
            let reply = ControlReply::failure(sequence, name, version, &message);
            Reply::of(FrameType::ControlReply, &reply)
        })
    }

    fn carry_out(&mut self, name: ControlName, command: &[u8]) -> Outcome {
        match name {
            ControlName::PrepareRegisterCallable => {
                self.prepare(&RegisterCommand::decode(command).map_err(text)?)
            }
            ControlName::CommitRegisterCallable => {
                self.commit(&DigestCommand::decode(command).map_err(text)?)
            }
            ControlName::AbortRegisterCallable => {
                self.abort(&DigestCommand::decode(command).map_err(text)?)
            }
            ControlName::UnregisterCallable => {
                self.unregister(&DigestCommand::decode(command).map_err(text)?)
            }
            ControlName::PrepareCallable => {
                self.prepare_callable(&DigestCommand::decode(command).map_err(text)?)
            }
            ControlName::AllocRemoteBuffer => {
                let command = AllocCommand::decode(command).map_err(text)?;
                encoded(&self.buffers.alloc(command.nbytes).map_err(text)?)
            }
            ControlName::FreeRemoteBuffer => {
                let command = FreeCommand::decode(command).map_err(text)?;
                let region = self.buffers.free(&command).map_err(text)?;
                self.forget(region.as_deref());
                Ok(Vec::new())
            }
            ControlName::CopyToRemote => {
                let command = CopyTo::decode(command).map_err(text)?;
                self.buffers
                    .copy_to(&command.header, &command.data)
                    .map_err(text)?;
                Ok(Vec::new())
            }
            ControlName::CopyFromRemote => {
                let command = CopyHeader::decode(command).map_err(text)?;
                self.buffers.copy_from(&command).map_err(text)
            }
            ControlName::ExportBuffer => {
                let request = ExportRequest::decode(command).map_err(text)?;
                let reachable = self.reachable_for(&request).map_err(text)?;
                encoded(&self.buffers.export(&request, reachable).map_err(text)?)
            }
            ControlName::ImportBuffer => {
                let request = ImportRequest::decode(command).map_err(text)?;
                let fetches = self.features.contains(Features::PEER_FETCH);
                encoded(&self.buffers.import(&request, fetches).map_err(text)?)
            }
            ControlName::ReleaseImport => {
                let release = ReleaseImport::decode(command).map_err(text)?;
                if let Some(released) = self.buffers.release(&release).map_err(text)? {
                    self.forget(Some(&released.region));
                    if let Some(fetched) = released.fetched {
                        self.peers.forget(&fetched.source);
                    }
                }
                Ok(Vec::new())
            }
            ControlName::CollectTrace => self.collect_trace(),
            ControlName::StageBegin
            | ControlName::StageAppend
            | ControlName::StageSeal
            | ControlName::StageDrop => self.stage(name, command),
            ControlName::CommInit | ControlName::AllocDomain | ControlName::ReleaseDomain => {
                Err(reserved_control_message(name)
                    .unwrap_or_else(|| format!("{} is not supported", name.name())))
            }
        }
    }

    /// The events of the inner worker, as many as a reply holds.
    fn collect_trace(&self) -> Outcome {
        let json = self.worker.trace_json().map_err(text)?;
        if json.len() as u64 <= MAX_COPY_FROM_BYTES {
            return Ok(json);
        }
        // Each event takes its share of the text, so the first of them fit in half of what a reply holds.
        let mut report: TraceReport = serde_json::from_slice(&json).map_err(text)?;
        let kept = report.events.len() * (MAX_COPY_FROM_BYTES as usize / 2) / json.len();
        report.dropped += (report.events.len() - kept) as u64;
        report.events.truncate(kept);
        let json = serde_json::to_vec(&report).map_err(text)?;
        if json.len() as u64 > MAX_COPY_FROM_BYTES {
            return Err(format!(
                "COLLECT_TRACE: {} bytes of events do not fit a reply",
                json.len()
            ));
        }
        Ok(json)
    }

    /// Where importers on other hosts would find what is exported; set when they are asked for and were negotiated.
    fn reachable_for(&self, request: &ExportRequest<'_>) -> Result<Option<Reachable>, BufferError> {
        let asked = request.transport_profile == TcpDescriptor::PROFILE;
        if !asked || !self.features.contains(Features::PEER_FETCH) {
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

fn encoded(value: &impl Encode) -> Outcome {
    value.to_bytes().map_err(text)
}
