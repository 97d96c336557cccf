//! Machine code that no single control holds: staged in parts, then registered under the session's name of it (extension
//! `staged_blobs`). To the engine it is one registration step with one answer. Pure.
//!
//! ```text
//! begin ─► append … append ─► seal ─► PREPARE_REGISTER ─► answer
//!   │ refused   │ refused       │
//!   ▼           ▼               ▼
//! answer       drop ─────────► answer with the refusal
//! ```

use bytes::Bytes;
use echelon_wire::callable::{Digest, RegistryTarget};
use echelon_wire::frame::control::stage::{StageAppend, StageBegin, StageToken};
use echelon_wire::frame::{ControlName, Features};
use echelon_wire::limits::{MAX_PAYLOAD_BYTES, MAX_STAGE_PART_BYTES};

use super::replies::ReplyKind;
use super::requests::{control, encode_prepare, Outgoing};
use crate::callable::Callable;
use crate::chip::ChipCode;
use crate::endpoint::{ControlFailure, ControlReply, ControlRequest, RegisterStep};

/// What a frame holds besides a part.
const PART_ROOM: u32 = MAX_PAYLOAD_BYTES - MAX_STAGE_PART_BYTES;

enum Phase {
    Begin,
    Append { sent: usize },
    Seal,
    Prepare,
    Drop { failure: ControlFailure },
}

/// One registration on its way.
pub(super) struct Staging {
    callable: Callable,
    code: ChipCode,
    registry: RegistryTarget,
    token: Bytes,
    phase: Phase,
    /// Bytes of one part.
    part_bytes: usize,
    called_off: bool,
}

/// What comes after an answer.
pub(super) enum Next {
    /// Another control, whose answer is to be handed in again.
    Send(Outgoing),
    /// The registration step has this answer.
    Answer(Result<ControlReply, ControlFailure>),
}

impl Staging {
    /// The registration that `request` is, if its machine code has to be staged; and its first control.
    pub(super) fn of(
        request: &ControlRequest,
        features: Features,
        frame_bytes: u32,
    ) -> Option<Result<(Self, Outgoing), ControlFailure>> {
        let ControlRequest::Register {
            step: RegisterStep::Prepare,
            callable,
            registry,
        } = request
        else {
            return None;
        };
        let code = callable
            .chip_code()
            .filter(|code| !code.fits_inline(frame_bytes))?;
        if !features.contains(Features::STAGED_BLOBS) {
            return Some(Err(ControlFailure::Unsupported {
                what: "machine code of more than one control",
                worker: "the session".into(),
                hint: "it does not take staged blobs; keep the code under 16 MiB, as with cc -Os and strip",
            }));
        }
        let begin = StageBegin {
            blob_size: code.blob().len() as u64,
            blob_sha256: *code.blob_sha256(),
        };
        let staging = Self {
            callable: callable.clone(),
            code: code.clone(),
            registry: *registry,
            token: Bytes::new(),
            phase: Phase::Begin,
            part_bytes: frame_bytes.saturating_sub(PART_ROOM).max(1) as usize,
            called_off: false,
        };
        let first = control(ControlName::StageBegin, &begin, ReplyKind::Staged);
        Some(
            first
                .map(|outgoing| (staging, outgoing))
                .map_err(|error| ControlFailure::Refused(error.to_string())),
        )
    }

    /// Whoever asked has given up: what was staged is dropped at the next answer.
    pub(super) fn call_off(&mut self, digest: &Digest) {
        self.called_off |= self.callable.digest == *digest;
    }

    /// Takes the answer to what was sent last.
    pub(super) fn next(&mut self, answer: Result<ControlReply, ControlFailure>) -> Next {
        let answer = match (&self.phase, answer) {
            (Phase::Begin, Ok(ControlReply::Staged(token))) => {
                self.token = token.into();
                self.phase = Phase::Append { sent: 0 };
                Ok(())
            }
            (Phase::Begin, Err(failure)) => return Next::Answer(Err(failure)),
            (Phase::Begin, Ok(other)) => {
                return Next::Answer(Err(ControlFailure::Refused(format!(
                    "unexpected answer to STAGE_BEGIN: {other:?}"
                ))))
            }
            (Phase::Prepare, answer) => return Next::Answer(answer),
            (Phase::Drop { failure }, _) => return Next::Answer(Err(failure.clone())),
            (_, answer) => answer.map(drop),
        };
        if self.called_off && answer.is_ok() {
            return self.drop_it(ControlFailure::Refused(
                "the registration was called off".into(),
            ));
        }
        match answer {
            Ok(()) => self.go_on(),
            Err(failure) => self.drop_it(failure),
        }
    }

    fn go_on(&mut self) -> Next {
        let token = || self.token.as_ref().into();
        let outgoing = match self.phase {
            Phase::Append { sent } if sent < self.code.blob().len() => {
                let end = self.code.blob().len().min(sent + self.part_bytes);
                let append = StageAppend {
                    token: token(),
                    offset: sent as u64,
                    part: (&self.code.blob()[sent..end]).into(),
                };
                let outgoing = control(ControlName::StageAppend, &append, ReplyKind::Empty);
                self.phase = Phase::Append { sent: end };
                outgoing.map_err(|error| ControlFailure::Refused(error.to_string()))
            }
            Phase::Append { .. } => {
                let seal = StageToken { token: token() };
                let outgoing = control(ControlName::StageSeal, &seal, ReplyKind::Empty);
                self.phase = Phase::Seal;
                outgoing.map_err(|error| ControlFailure::Refused(error.to_string()))
            }
            _ => {
                self.phase = Phase::Prepare;
                let code = self.code.staged_as(self.token.clone());
                let callable = Callable::chip(&self.callable.name, code);
                encode_prepare(Features::NONE, &callable, self.registry)
            }
        };
        match outgoing {
            Ok(outgoing) => Next::Send(outgoing),
            Err(failure) => self.drop_it(failure),
        }
    }

    fn drop_it(&mut self, failure: ControlFailure) -> Next {
        let token = self.token.as_ref().into();
        let outgoing = control(
            ControlName::StageDrop,
            &StageToken { token },
            ReplyKind::Empty,
        );
        match outgoing {
            Ok(outgoing) => {
                self.phase = Phase::Drop { failure };
                Next::Send(outgoing)
            }
            Err(_) => Next::Answer(Err(failure)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use echelon_wire::callable::Direction;

    fn registration(bytes: usize) -> ControlRequest {
        let blob = Bytes::from(vec![7; bytes]);
        let code = ChipCode::new("cpu", "r", &[Direction::Scalar], blob).unwrap();
        ControlRequest::Register {
            step: RegisterStep::Prepare,
            callable: Callable::chip("large", code),
            registry: RegistryTarget::InnerL3Worker,
        }
    }

    fn of(
        request: &ControlRequest,
        features: Features,
    ) -> Option<Result<(Staging, Outgoing), ControlFailure>> {
        Staging::of(request, features, MAX_PAYLOAD_BYTES)
    }

    fn begun(bytes: usize) -> Staging {
        let request = registration(bytes);
        let (mut staging, first) = of(&request, Features::STAGED_BLOBS).unwrap().unwrap();
        assert_eq!(first.name, ControlName::StageBegin);
        let next = staging.next(Ok(ControlReply::Staged(vec![1, 2])));
        assert_eq!(name(&next), "STAGE_APPEND");
        staging
    }

    fn name(next: &Next) -> &'static str {
        match next {
            Next::Send(outgoing) => outgoing.name.name(),
            Next::Answer(Ok(_)) => "ok",
            Next::Answer(Err(_)) => "error",
        }
    }

    #[test]
    fn what_fits_a_control_is_not_staged() {
        assert!(of(&registration(1 << 20), Features::STAGED_BLOBS).is_none());
        assert!(of(&ControlRequest::CollectTrace, Features::STAGED_BLOBS).is_none());
    }

    #[test]
    fn a_session_of_version_1_is_not_asked() {
        let refused = of(&registration(17 << 20), Features::NONE).unwrap();
        let text = refused.map(drop).unwrap_err().to_string();
        assert!(text.contains("16 MiB"), "{text}");
    }

    #[test]
    fn parts_then_seal_then_prepare() {
        let mut staging = begun(33 << 20);
        let mut names = Vec::new();
        loop {
            let next = staging.next(Ok(ControlReply::Done));
            names.push(name(&next));
            if matches!(next, Next::Answer(_)) {
                break;
            }
        }
        let expected = [
            "STAGE_APPEND",
            "STAGE_APPEND",
            "STAGE_SEAL",
            "PREPARE_REGISTER_CALLABLE",
            "ok",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn parts_fit_the_frames_that_the_session_takes() {
        let request = registration(1 << 20);
        let frame_bytes = 1 << 18;
        let (mut staging, _) = Staging::of(&request, Features::STAGED_BLOBS, frame_bytes)
            .unwrap()
            .unwrap();
        let mut next = staging.next(Ok(ControlReply::Staged(vec![1; 1024])));
        let mut parts = 0;
        while let Next::Send(outgoing) = next {
            if outgoing.name == ControlName::StageAppend {
                parts += 1;
                assert!(outgoing.payload.len() <= frame_bytes as usize);
            }
            next = staging.next(Ok(ControlReply::Done));
        }
        assert_eq!(parts, 5);
    }

    #[test]
    fn a_refusal_on_the_way_drops_what_is_there_and_is_the_answer() {
        let mut staging = begun(17 << 20);
        let refused = ControlFailure::Refused("no room".into());
        assert_eq!(name(&staging.next(Err(refused))), "STAGE_DROP");
        let Next::Answer(Err(failure)) = staging.next(Ok(ControlReply::Done)) else {
            panic!("it must end");
        };
        assert_eq!(failure.to_string(), "no room");
    }

    #[test]
    fn what_is_called_off_is_dropped_before_it_is_registered() {
        let mut staging = begun(17 << 20);
        staging.call_off(&Digest([0; 32]));
        assert_eq!(name(&staging.next(Ok(ControlReply::Done))), "STAGE_APPEND");
        let digest = staging.callable.digest;
        staging.call_off(&digest);
        assert_eq!(name(&staging.next(Ok(ControlReply::Done))), "STAGE_DROP");
        assert_eq!(name(&staging.next(Ok(ControlReply::Done))), "error");
    }
}
