//! CONTROL: decoded, carried out, answered (contract §4.7, §5, §11).

use echelon_runtime::trace::TraceReport;
use echelon_wire::codec::{Decode, Encode};
use echelon_wire::error::EncodeError;
use echelon_wire::frame::control::domain::reserved_control_message;
use echelon_wire::frame::control::register::{DigestCommand, RegisterCommand};
use echelon_wire::frame::control::CONTROL_VERSION;
use echelon_wire::frame::control_reply::failure_prefix;
use echelon_wire::frame::{Control, ControlName, ControlReply, Features, FrameType};
use echelon_wire::id::{Sequence, WorkerId};
use echelon_wire::limits::MAX_COPY_FROM_BYTES;

use super::command::{Reply, Session};
use echelon_runtime::text::cut;

/// What a control comes to: result bytes, or the text of its failure.
pub(super) type Outcome = Result<Vec<u8>, String>;

pub(super) fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// The reply to a control, which `carry_out` carries out.
pub(super) fn reply_to(
    worker_id: WorkerId,
    features: Features,
    sequence: Sequence,
    payload: &[u8],
    carry_out: impl FnOnce(ControlName, &[u8]) -> Outcome,
) -> Result<Reply, EncodeError> {
    let (name, version, outcome) = match Control::decode_with(payload, features) {
        Ok(control) => (
            control.name,
            control.version,
            carry_out(control.name, &control.command),
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
        Err(reason) => cut(format!("{}{reason}", failure_prefix(worker_id, sequence))),
    };
    let reply = match outcome {
        Ok(result) => ControlReply::success(sequence, name, version, result),
        Err(_) => ControlReply::failure(sequence, name, version, &message),
    };
    // A result that no frame holds is a failure like any other (S-4).
    Reply::of(FrameType::ControlReply, &reply).or_else(|error| {
        let message = cut(format!("{}{error}", failure_prefix(worker_id, sequence)));
        let reply = ControlReply::failure(sequence, name, version, &message);
        Reply::of(FrameType::ControlReply, &reply)
    })
}

impl Session {
    pub(super) fn control(
        &mut self,
        sequence: Sequence,
        payload: &[u8],
    ) -> Result<Reply, EncodeError> {
        let (worker_id, features) = (self.memory.worker_id, self.features);
        reply_to(worker_id, features, sequence, payload, |name, command| {
            self.carry_out(name, command)
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
            ControlName::CollectTrace if command.is_empty() => self.collect_trace(),
            ControlName::CollectTrace => Err(format!(
                "COLLECT_TRACE with a command of {} bytes, and it has none",
                command.len()
            )),
            ControlName::StageBegin
            | ControlName::StageAppend
            | ControlName::StageSeal
            | ControlName::StageDrop => self.stage(name, command),
            other => self.memory.carry_out(self.features, other, command),
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
}

pub(super) fn encoded(value: &impl Encode) -> Outcome {
    value.to_bytes().map_err(text)
}
