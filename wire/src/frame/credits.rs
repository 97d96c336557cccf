//! Credits: how much a parent may have unanswered on a command lane (extension `pipelining`).

use crate::codec::{Decode, Encode, Reader, Writer};
use crate::error::{DecodeError, EncodeError, RuleViolation};
use crate::limits::{MAX_PAYLOAD_BYTES, MIN_FRAME_LIMIT_BYTES};

/// What follows the fields of version 1 in HELLO when `pipelining` was accepted.
///
/// | type | field | rule |
/// |---|---|---|
/// | u32 | max_commands | commands unanswered at one time, not 0 |
/// | u64 | max_bytes | payload bytes of unanswered commands, at least max_frame_bytes |
/// | u32 | max_frame_bytes | payload bytes of one frame, 64 KiB to 16 MiB, in both directions |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Credits {
    /// TASK and CONTROL frames that may be unanswered at one time.
    pub max_commands: u32,
    /// Payload bytes that these frames may have together.
    pub max_bytes: u64,
    /// Payload bytes of one frame of this lane, in both directions.
    pub max_frame_bytes: u32,
}

impl Credits {
    /// Version 1: a command, then its answer.
    pub const ONE: Self = Self {
        max_commands: 1,
        max_bytes: MAX_PAYLOAD_BYTES as u64,
        max_frame_bytes: MAX_PAYLOAD_BYTES,
    };

    fn check(self) -> Result<(), RuleViolation> {
        if self.max_commands == 0 {
            return Err(RuleViolation::new(
                "HELLO.max_commands",
                0,
                "at least one command must be allowed",
            ));
        }
        if self.max_frame_bytes > MAX_PAYLOAD_BYTES {
            return Err(RuleViolation::new(
                "HELLO.max_frame_bytes",
                self.max_frame_bytes,
                "no frame of this protocol has more than 16 MiB",
            ));
        }
        if self.max_frame_bytes < MIN_FRAME_LIMIT_BYTES {
            return Err(RuleViolation::new(
                "HELLO.max_frame_bytes",
                self.max_frame_bytes,
                "a control with its texts takes up to 64 KiB",
            ));
        }
        if self.max_bytes < u64::from(self.max_frame_bytes) {
            return Err(RuleViolation::new(
                "HELLO.max_bytes",
                self.max_bytes,
                "it must hold one frame of max_frame_bytes",
            ));
        }
        Ok(())
    }
}

impl Encode for Credits {
    fn encode(&self, writer: &mut Writer) -> Result<(), EncodeError> {
        self.check()?;
        writer.u32(self.max_commands);
        writer.u64(self.max_bytes);
        writer.u32(self.max_frame_bytes);
        Ok(())
    }
}

impl<'a> Decode<'a> for Credits {
    const NAME: &'static str = "HELLO.credits";

    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let credits = Self {
            max_commands: reader.u32("HELLO.max_commands")?,
            max_bytes: reader.u64("HELLO.max_bytes")?,
            max_frame_bytes: reader.u32("HELLO.max_frame_bytes")?,
        };
        credits.check()?;
        Ok(credits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: Credits = Credits {
        max_commands: 64,
        max_bytes: 64 << 20,
        max_frame_bytes: MAX_PAYLOAD_BYTES,
    };

    /// Without the encoder's checks.
    fn bytes(credits: Credits) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u32(credits.max_commands);
        writer.u64(credits.max_bytes);
        writer.u32(credits.max_frame_bytes);
        writer.into_bytes()
    }

    /// what both can keep is taken, what nobody could keep is refused by name, on both sides.
    #[test]
    fn r_081_a_limit_is_kept_or_refused_by_name() {
        let least = Credits {
            max_commands: 1,
            max_bytes: MIN_FRAME_LIMIT_BYTES.into(),
            max_frame_bytes: MIN_FRAME_LIMIT_BYTES,
        };
        for good in [USUAL, Credits::ONE, least] {
            assert_eq!(good.to_bytes().expect("written"), bytes(good));
            assert_eq!(Credits::decode(&bytes(good)), Ok(good));
        }
        let too_large = MAX_PAYLOAD_BYTES + 1;
        let bad = [
            (
                Credits {
                    max_commands: 0,
                    ..USUAL
                },
                "HELLO.max_commands",
            ),
            (
                Credits {
                    max_frame_bytes: too_large,
                    ..USUAL
                },
                "HELLO.max_frame_bytes",
            ),
            (
                Credits {
                    max_frame_bytes: 0,
                    ..USUAL
                },
                "HELLO.max_frame_bytes",
            ),
            (
                Credits {
                    max_frame_bytes: MIN_FRAME_LIMIT_BYTES - 1,
                    ..USUAL
                },
                "HELLO.max_frame_bytes",
            ),
            (
                Credits {
                    max_bytes: (16 << 20) - 1,
                    ..USUAL
                },
                "HELLO.max_bytes",
            ),
        ];
        for (bad, field) in bad {
            let read = Credits::decode(&bytes(bad))
                .expect_err("refused")
                .to_string();
            assert!(read.contains(field), "{read}");
            let written = bad.to_bytes().expect_err("refused").to_string();
            assert!(written.contains(field), "{written}");
        }
    }

    #[test]
    fn credits_cut_anywhere_or_too_long_are_refused() {
        let whole = bytes(USUAL);
        for cut in 0..whole.len() {
            assert!(Credits::decode(&whole[..cut]).is_err());
        }
        assert!(Credits::decode(&[whole, vec![0]].concat()).is_err());
    }
}
