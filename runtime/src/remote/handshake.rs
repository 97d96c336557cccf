//! HELLO: the session speaks first, and only a READY one of the right identity is used (slr3-v1 §4.1, R-013). Pure.

use echelon_wire::bootstrap::Manifest;
use echelon_wire::error::DecodeError;
use echelon_wire::frame::{Credits, Features, Frame, FrameType, Hello};

/// Why a session is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// Something else came first.
    #[error("the first frame is {0:?} and not HELLO; is a session listening there?")]
    NotHello(FrameType),
    /// The HELLO does not decode, or is another session's.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// The extensions in use after a HELLO that fits the manifest, and how much may be unanswered. A peer that knows only version 1
/// accepts none, and takes one command at a time.
pub(crate) fn accept(
    manifest: &Manifest,
    frame: &Frame<'_>,
) -> Result<(Features, Credits), HandshakeError> {
    if frame.header.frame_type != FrameType::Hello {
        return Err(HandshakeError::NotHello(frame.header.frame_type));
    }
    let offered = Features::from_names(manifest.feature_flags.iter().map(String::as_str));
    let (hello, credits) = Hello::decode_with(frame.payload, offered)?;
    hello.expect(manifest.session(), manifest.worker(), &manifest.transport)?;
    let features = offered.accept(hello.feature_flags)?;
    Ok((features, credits.unwrap_or(Credits::ONE)))
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use echelon_wire::codec::{Encode, Writer};
    use echelon_wire::frame::{decode_frame, encode_frame, ReadyState};
    use echelon_wire::id::{Sequence, SessionId, WorkerId};

    use super::*;

    fn manifest() -> Manifest {
        let feature_flags = ["timed_completion", "pipelining", "concurrent_control"];
        let feature_flags = feature_flags.map(str::to_owned).to_vec();
        Manifest {
            session_id: 7,
            worker_id: 3,
            platform: "cpu".into(),
            feature_flags,
            ..Manifest::default()
        }
    }

    fn hello() -> Hello<'static> {
        Hello {
            session_id: SessionId(7),
            worker_id: WorkerId(3),
            comm_profile: Cow::Borrowed("sim"),
            feature_flags: 0,
            ready_state: ReadyState::Ready,
        }
    }

    fn check(hello: &Hello<'_>) -> Result<Features, HandshakeError> {
        check_with(hello, None).map(|(features, _)| features)
    }

    fn check_with(
        hello: &Hello<'_>,
        credits: Option<&[u8]>,
    ) -> Result<(Features, Credits), HandshakeError> {
        let mut writer = Writer::with_capacity(64);
        hello.encode(&mut writer).unwrap();
        writer.raw(credits.unwrap_or_default());
        let bytes = encode_frame(
            FrameType::Hello,
            SessionId(7),
            WorkerId(3),
            Sequence(0),
            writer.as_bytes(),
        )
        .unwrap();
        accept(&manifest(), &decode_frame(&bytes).unwrap())
    }

    #[test]
    fn r_013_only_a_ready_session_of_the_right_identity() {
        assert_eq!(check(&hello()).unwrap(), Features::NONE);
        assert!(check(&Hello {
            session_id: SessionId(8),
            ..hello()
        })
        .is_err());
        assert!(check(&Hello {
            worker_id: WorkerId(4),
            ..hello()
        })
        .is_err());
        assert!(check(&Hello {
            ready_state: ReadyState::NotReady,
            ..hello()
        })
        .is_err());
        assert!(check(&Hello {
            comm_profile: Cow::Borrowed("tcp"),
            ..hello()
        })
        .is_err());
    }

    #[test]
    fn an_extension_that_was_not_offered_is_an_error() {
        let offered = Features::TIMED_COMPLETION.bits();
        assert_eq!(
            check(&Hello {
                feature_flags: offered,
                ..hello()
            })
            .unwrap(),
            Features::TIMED_COMPLETION
        );
        assert!(check(&Hello {
            feature_flags: Features::LOGS.bits(),
            ..hello()
        })
        .is_err());
        assert!(check(&Hello {
            feature_flags: 1 << 63,
            ..hello()
        })
        .is_err());
    }

    /// the frame limit of a session is kept, or the session is refused with the field's name; `concurrent_control` does not
    /// come alone.
    #[test]
    fn r_081_credits_come_with_pipelining() {
        let pipelining = Hello {
            feature_flags: Features::PIPELINING.bits(),
            ..hello()
        };
        let both = Features::PIPELINING.union(Features::CONCURRENT_CONTROL);
        let credits = Credits {
            max_commands: 5,
            max_bytes: 1 << 20,
            max_frame_bytes: 1 << 18,
        };
        let bytes = credits.to_bytes().unwrap();
        let accepted = check_with(&pipelining, Some(&bytes)).unwrap();
        assert_eq!(accepted, (Features::PIPELINING, credits));
        let concurrent = Hello {
            feature_flags: both.bits(),
            ..hello()
        };
        assert_eq!(
            check_with(&concurrent, Some(&bytes)).unwrap(),
            (both, credits)
        );
        assert_eq!(
            check_with(&hello(), None).unwrap(),
            (Features::NONE, Credits::ONE)
        );
        let alone = Hello {
            feature_flags: Features::CONCURRENT_CONTROL.bits(),
            ..hello()
        };
        let refused = |hello: &Hello<'_>, credits: Option<&[u8]>| {
            check_with(hello, credits).unwrap_err().to_string()
        };
        assert!(refused(&alone, None).contains("needs pipelining"));
        assert!(refused(&pipelining, None).contains("HELLO.max_commands"));
        let mut impossible = bytes.clone();
        impossible[12..].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(refused(&pipelining, Some(&impossible)).contains("HELLO.max_frame_bytes"));
    }
}
