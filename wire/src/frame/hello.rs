//! HELLO: the session's first frame on the command lane.

use std::borrow::Cow;

use crate::codec::{Decode, Encode, Reader, Writer};
use crate::error::{must_not_be_negative, DecodeError, EncodeError, RuleViolation};
use crate::frame::{Credits, Features};
use crate::id::{SessionId, WorkerId};
use crate::limits::{MAX_STRING_BYTES, PROTOCOL_VERSION};

/// Whether the session takes commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum ReadyState {
    /// It does not; the parent gives it up.
    NotReady = 0,
    /// It does.
    Ready = 1,
}

/// Who the session is and what it speaks.
///
/// | type | field | rule |
/// |---|---|---|
/// | u64 | session_id | not 0 |
/// | i32 | worker_id | not negative |
/// | u32 | protocol_version | 1 |
/// | str(1024) | comm_profile | the manifest's transport |
/// | u64 | feature_flags | accepted extensions; ignored by a v1 parent |
/// | u32 | ready_state | 0 or 1 |
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Hello<'a> {
    /// The manifest's session.
    pub session_id: SessionId,
    /// The manifest's worker.
    pub worker_id: WorkerId,
    /// The manifest's transport.
    pub comm_profile: Cow<'a, str>,
    /// Bits of [`crate::frame::Features`].
    pub feature_flags: u64,
    /// Whether commands may follow.
    pub ready_state: ReadyState,
}

impl<'a> Hello<'a> {
    fn check(&self) -> Result<(), RuleViolation> {
        if self.session_id.0 == 0 {
            return Err(RuleViolation::new(
                "HELLO.session_id",
                0,
                "a session id must not be 0",
            ));
        }
        must_not_be_negative("HELLO.worker_id", self.worker_id)
    }

    /// What a parent demands beyond a well-formed HELLO.
    ///
    /// # Errors
    /// [`DecodeError::Mismatch`] for another session or worker, [`DecodeError::Rule`] for another transport or a session
    /// that is not ready.
    pub fn expect(
        &self,
        session_id: SessionId,
        worker_id: WorkerId,
        transport: &str,
    ) -> Result<(), DecodeError> {
        if self.session_id != session_id {
            return Err(DecodeError::Mismatch {
                field: "HELLO.session_id",
                got: self.session_id.0.into(),
                expected: session_id.0.into(),
            });
        }
        if self.worker_id != worker_id {
            return Err(DecodeError::Mismatch {
                field: "HELLO.worker_id",
                got: self.worker_id.0.into(),
                expected: worker_id.0.into(),
            });
        }
        if self.ready_state != ReadyState::Ready {
            return Err(
                RuleViolation::new("HELLO.ready_state", 0, "the session is not ready").into(),
            );
        }
        if self.comm_profile != transport {
            return Err(RuleViolation {
                field: "HELLO.comm_profile",
                got: self.comm_profile.len() as i128,
                rule: "a profile of that length is not the transport that was asked for",
            }
            .into());
        }
        Ok(())
    }

    /// Appends the HELLO of a session that accepted extensions: the fields of version 1, then the credits of `pipelining`.
    ///
    /// # Errors
    /// As [`Encode::encode`]; [`RuleViolation`] when the credits are there without the extension, or the extension without them.
    pub fn encode_with(
        &self,
        credits: Option<&Credits>,
        writer: &mut Writer,
    ) -> Result<(), EncodeError> {
        let accepted = Features::from_bits(self.feature_flags);
        if accepted.contains(Features::PIPELINING) != credits.is_some() {
            return Err(RuleViolation::new(
                "HELLO.feature_flags",
                self.feature_flags,
                "pipelining and its credits go together",
            )
            .into());
        }
        self.encode(writer)?;
        credits.map_or(Ok(()), |credits| credits.encode(writer))
    }

    /// The HELLO that answers a parent which offered `offered`, with the credits when `pipelining` is among what was accepted.
    ///
    /// # Errors
    /// As [`Decode::decode`].
    pub fn decode_with(
        bytes: &'a [u8],
        offered: Features,
    ) -> Result<(Self, Option<Credits>), DecodeError> {
        let mut reader = Reader::new(bytes);
        let hello = Self::read(&mut reader)?;
        let both = offered.intersection(Features::from_bits(hello.feature_flags));
        let credits = both
            .contains(Features::PIPELINING)
            .then(|| Credits::read(&mut reader))
            .transpose()?;
        reader.finish(Self::NAME)?;
        Ok((hello, credits))
    }

    /// The same HELLO with a profile of its own.
    pub fn into_owned(self) -> Hello<'static> {
        Hello {
            session_id: self.session_id,
            worker_id: self.worker_id,
            comm_profile: Cow::Owned(self.comm_profile.into_owned()),
            feature_flags: self.feature_flags,
            ready_state: self.ready_state,
        }
    }
}

impl Encode for Hello<'_> {
    fn encode(&self, writer: &mut Writer) -> Result<(), EncodeError> {
        self.check()?;
        writer.u64(self.session_id.0);
        writer.i32(self.worker_id.0);
        writer.u32(PROTOCOL_VERSION);
        writer.str("HELLO.comm_profile", &self.comm_profile, MAX_STRING_BYTES)?;
        writer.u64(self.feature_flags);
        writer.u32(self.ready_state as u32);
        Ok(())
    }
}

impl<'a> Decode<'a> for Hello<'a> {
    const NAME: &'static str = "HELLO";

    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let session_id = SessionId(reader.u64("HELLO.session_id")?);
        let worker_id = WorkerId(reader.i32("HELLO.worker_id")?);
        let version = reader.u32("HELLO.protocol_version")?;
        if version != PROTOCOL_VERSION {
            return Err(DecodeError::Mismatch {
                field: "HELLO.protocol_version",
                got: version.into(),
                expected: PROTOCOL_VERSION.into(),
            });
        }
        let comm_profile = Cow::Borrowed(reader.str("HELLO.comm_profile", MAX_STRING_BYTES)?);
        let feature_flags = reader.u64("HELLO.feature_flags")?;
        let ready_state = match reader.u32("HELLO.ready_state")? {
            0 => ReadyState::NotReady,
            1 => ReadyState::Ready,
            got => {
                return Err(DecodeError::Unknown {
                    field: "HELLO.ready_state",
                    got: got.into(),
                })
            }
        };
        let hello = Self {
            session_id,
            worker_id,
            comm_profile,
            feature_flags,
            ready_state,
        };
        hello.check()?;
        Ok(hello)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Credits follow exactly when `pipelining` was offered and accepted; everybody else reads and writes version 1.
    #[test]
    fn credits_follow_when_pipelining_was_accepted() {
        let plain = Hello {
            session_id: SessionId(5),
            worker_id: WorkerId(2),
            comm_profile: "sim".into(),
            feature_flags: 0,
            ready_state: ReadyState::Ready,
        };
        let pipelining = Hello {
            feature_flags: Features::PIPELINING.bits(),
            ..plain.clone()
        };
        let write = |hello: &Hello<'_>, credits: Option<&Credits>| {
            let mut writer = Writer::new();
            let written = hello.encode_with(credits, &mut writer);
            written.map(|()| writer.into_bytes())
        };
        let v1 = write(&plain, None).expect("written");
        assert_eq!(v1, plain.to_bytes().expect("written"));
        assert!(write(&plain, Some(&Credits::ONE)).is_err());
        assert!(write(&pipelining, None).is_err());
        let extended = write(&pipelining, Some(&Credits::ONE)).expect("written");
        assert_eq!(extended.len(), v1.len() + 16);

        let offered = Features::PIPELINING;
        let read = Hello::decode_with(&extended, offered).expect("read");
        assert_eq!(read, (pipelining.clone(), Some(Credits::ONE)));
        assert_eq!(Hello::decode_with(&v1, offered), Ok((plain, None)));
        assert!(Hello::decode_with(&extended, Features::NONE).is_err());
        assert!(Hello::decode_with(&extended[..v1.len()], offered).is_err());
        // A v1 session's bits mean nothing to a parent that offered nothing.
        let bits = pipelining.to_bytes().expect("written");
        assert_eq!(
            Hello::decode_with(&bits, Features::NONE),
            Ok((pipelining, None))
        );
    }

    #[test]
    fn a_parent_takes_only_its_own_ready_session() {
        let hello = Hello {
            session_id: SessionId(5),
            worker_id: WorkerId(2),
            comm_profile: "sim".into(),
            feature_flags: 0,
            ready_state: ReadyState::Ready,
        };
        let check = |hello: &Hello<'_>| hello.expect(SessionId(5), WorkerId(2), "sim");
        check(&hello).expect("its own");
        let others = [
            Hello {
                session_id: SessionId(6),
                ..hello.clone()
            },
            Hello {
                worker_id: WorkerId(1),
                ..hello.clone()
            },
            Hello {
                ready_state: ReadyState::NotReady,
                ..hello.clone()
            },
            Hello {
                comm_profile: "tcp".into(),
                ..hello.clone()
            },
        ];
        for other in others {
            assert!(check(&other).is_err(), "{other:?}");
        }
    }
}
