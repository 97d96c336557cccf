//! An importer that failed is kept away from a buffer (extension `peer_fence`).

use crate::codec::{Decode, Encode, Reader, Writer};
use crate::error::{
    must_not_be_negative, must_not_be_zero, DecodeError, EncodeError, RuleViolation,
};
use crate::id::{BufferId, Generation, SessionId, WorkerId};

/// PEER_FENCE, 32 bytes. It is answered when nothing that the importer sent before is being written into the owner's buffers any
/// more.
///
/// | type | field | rule |
/// |---|---|---|
/// | i32 | worker_id | the owner's; not negative |
/// | u64 | buffer_id | not 0 |
/// | u64 | generation | not 0 |
/// | u64 | importer_session_id | not 0 |
/// | u32 | lasting | 1: the importer is lost, and nothing of it is served again; 0: it may dial again |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PeerFence {
    /// Owner, which has to be the session's worker.
    pub worker_id: WorkerId,
    /// The buffer whose commands wait for the answer.
    pub buffer_id: BufferId,
    /// Its generation.
    pub generation: Generation,
    /// Session of the importer.
    pub importer: SessionId,
    /// The importer is lost.
    pub lasting: bool,
}

impl PeerFence {
    fn check(&self) -> Result<(), RuleViolation> {
        must_not_be_negative("PEER_FENCE.worker_id", self.worker_id)?;
        must_not_be_zero("PEER_FENCE.buffer_id", self.buffer_id.0)?;
        must_not_be_zero("PEER_FENCE.generation", self.generation.0)?;
        must_not_be_zero("PEER_FENCE.importer_session_id", self.importer.0)
    }
}

impl Encode for PeerFence {
    fn encode(&self, writer: &mut Writer) -> Result<(), EncodeError> {
        self.check()?;
        writer.i32(self.worker_id.0);
        writer.u64(self.buffer_id.0);
        writer.u64(self.generation.0);
        writer.u64(self.importer.0);
        writer.u32(self.lasting.into());
        Ok(())
    }
}

impl<'a> Decode<'a> for PeerFence {
    const NAME: &'static str = "PEER_FENCE";

    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let worker_id = WorkerId(reader.i32("PEER_FENCE.worker_id")?);
        let buffer_id = BufferId(reader.u64("PEER_FENCE.buffer_id")?);
        let generation = Generation(reader.u64("PEER_FENCE.generation")?);
        let importer = SessionId(reader.u64("PEER_FENCE.importer_session_id")?);
        let code = reader.u32("PEER_FENCE.lasting")?;
        let lasting = match code {
            0 | 1 => code == 1,
            _ => {
                let rule = "it must be 0 or 1";
                return Err(RuleViolation::new("PEER_FENCE.lasting", code, rule).into());
            }
        };
        let fence = Self {
            worker_id,
            buffer_id,
            generation,
            importer,
            lasting,
        };
        fence.check()?;
        Ok(fence)
    }
}
