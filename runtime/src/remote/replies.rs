//! What is to come back for a request, and the check that it is what was asked for (slr3-v1 §5).

use echelon_wire::buffer::AccessFlags;
use echelon_wire::codec::Decode;
use echelon_wire::frame::control::buffer::AllocResult;
use echelon_wire::frame::control::stage::StageToken;
use echelon_wire::frame::control::transfer::{ExportResult, ImportResult};
use echelon_wire::frame::ControlName;
use echelon_wire::id::{BufferId, Generation, WorkerId};

use super::transport::Side;
use crate::endpoint::{
    BufferKey, ControlFailure, ControlReply, EndpointEvent, TaskFailure, TaskReport, Ticket,
};
use crate::memory::HostMemory;

/// What is to come back for a request.
pub(crate) enum Expected {
    /// A completion.
    Task,
    /// A reply with this name.
    Control { name: ControlName, reply: ReplyKind },
}

impl Expected {
    pub(crate) fn is_control(&self) -> bool {
        matches!(self, Self::Control { .. })
    }

    /// The event of a request that was never sent.
    pub(crate) fn refused(&self, ticket: Ticket, message: String) -> EndpointEvent {
        match self {
            Self::Task => {
                let report = TaskReport {
                    failure: Some(TaskFailure::raised(message)),
                    ..TaskReport::default()
                };
                EndpointEvent::Done { ticket, report }
            }
            Self::Control { .. } => EndpointEvent::ControlDone {
                ticket,
                result: Err(ControlFailure::Refused(message)),
            },
        }
    }
}

/// How the bytes of a successful reply are read.
pub(crate) enum ReplyKind {
    Empty,
    Allocated { nbytes: u64 },
    Copied { into: HostMemory },
    Exported { asked: Window, side: Side },
    Imported { asked: Window },
    Trace,
    Staged,
}

/// A range of a buffer in its owner: what an export or import must describe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) owner: WorkerId,
    pub(crate) buffer: BufferKey,
    pub(crate) offset: u64,
    pub(crate) nbytes: u64,
    pub(crate) access: AccessFlags,
}

impl Window {
    /// What an answer describes, field by field in the order of the wire.
    fn of(
        owner: WorkerId,
        (buffer, generation): (BufferId, Generation),
        (offset, nbytes): (u64, u64),
        access: AccessFlags,
    ) -> Self {
        Self {
            owner,
            buffer: BufferKey { buffer, generation },
            offset,
            nbytes,
            access,
        }
    }

    fn expect(self, made: Self) -> Result<(), String> {
        if self == made {
            return Ok(());
        }
        Err(format!("it describes {made:?}, and {self:?} was asked for"))
    }
}

impl ReplyKind {
    /// Reads and checks a result: whatever the parent relies on must be what it asked for (slr3-v1 §5).
    pub(crate) fn decode(self, worker: WorkerId, result: &[u8]) -> Result<ControlReply, String> {
        let text = |error: echelon_wire::error::DecodeError| error.to_string();
        match self {
            Self::Empty if result.is_empty() => Ok(ControlReply::Done),
            Self::Empty => Err(format!(
                "{} bytes of result where none belong",
                result.len()
            )),
            Self::Allocated { nbytes } => {
                let made = AllocResult::decode(result).map_err(text)?;
                made.expect(worker, nbytes).map_err(text)?;
                Ok(ControlReply::Allocated {
                    buffer: BufferKey {
                        buffer: made.buffer_id,
                        generation: made.generation,
                    },
                    remote_addr: made.remote_addr,
                    rkey: made.rkey_or_token,
                })
            }
            Self::Copied { into } if into.len() == result.len() => {
                into.copy_in(0, result).map_err(|error| error.to_string())?;
                Ok(ControlReply::Done)
            }
            Self::Copied { into } => Err(format!(
                "{} bytes came and {} were asked for",
                result.len(),
                into.len()
            )),
            Self::Exported { asked, side } => {
                let made = ExportResult::decode(result).map_err(text)?;
                asked.expect(Window::from(&made))?;
                let kept = side.exported(made.into_owned())?;
                Ok(ControlReply::Exported(Box::new(kept)))
            }
            Self::Imported { asked } => {
                let made = ImportResult::decode(result).map_err(text)?;
                if made.importer_worker_id != worker {
                    return Err(format!(
                        "the import names worker {}",
                        made.importer_worker_id
                    ));
                }
                asked.expect(Window::from(&made))?;
                Ok(ControlReply::Imported(Box::new(made.into_owned())))
            }
            Self::Trace => Ok(ControlReply::Trace(result.to_vec())),
            Self::Staged => {
                let staged = StageToken::decode(result).map_err(text)?;
                Ok(ControlReply::Staged(staged.token.into_owned()))
            }
        }
    }
}

impl From<&ExportResult<'_>> for Window {
    fn from(made: &ExportResult<'_>) -> Self {
        let buffer = (made.buffer_id, made.generation);
        let range = (made.offset, made.nbytes);
        Self::of(made.owner_worker_id, buffer, range, made.access_flags)
    }
}

impl From<&ImportResult<'_>> for Window {
    fn from(made: &ImportResult<'_>) -> Self {
        let buffer = (made.buffer_id, made.generation);
        let range = (made.offset, made.nbytes);
        Self::of(made.owner_worker_id, buffer, range, made.access_flags)
    }
}
