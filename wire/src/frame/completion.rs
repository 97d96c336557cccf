//! COMPLETION: the answer to a TASK.

use std::borrow::Cow;

use crate::codec::{Decode, Encode, Reader, Writer};
use crate::error::{DecodeError, EncodeError};
use crate::id::Sequence;
use crate::limits::MAX_ERROR_MESSAGE_BYTES;

/// The longest beginning of `text` that has at most `max_bytes` bytes and ends between characters.
pub fn truncate_utf8(text: &str, max_bytes: usize) -> &str {
    if text.len() <= max_bytes {
        return text;
    }
    // A character has at most 4 bytes, so one of the four positions is a boundary; position 0 always is.
    let cut = (max_bytes.saturating_sub(3)..=max_bytes)
        .rev()
        .find(|at| text.is_char_boundary(*at));
    cut.and_then(|at| text.get(..at)).unwrap_or_default()
}

/// Outcome of a task.
///
/// | type | field |
/// |---|---|
/// | u64 | sequence of the task |
/// | i32 | error_code, 0 for success |
/// | str(4096) | error_message |
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Completion<'a> {
    /// Sequence of the task.
    pub sequence: Sequence,
    /// 0 for success; the message then has no meaning.
    pub error_code: i32,
    /// What failed, at most 4096 bytes.
    pub error_message: Cow<'a, str>,
}

impl<'a> Completion<'a> {
    /// The task succeeded.
    pub const fn success(sequence: Sequence) -> Self {
        Self {
            sequence,
            error_code: 0,
            error_message: Cow::Borrowed(""),
        }
    }

    /// The task failed with error code 1; the message is cut to its limit at a character boundary.
    pub fn failure(sequence: Sequence, message: &'a str) -> Self {
        let message = truncate_utf8(message, MAX_ERROR_MESSAGE_BYTES as usize);
        Self {
            sequence,
            error_code: 1,
            error_message: Cow::Borrowed(message),
        }
    }

    /// Demands that this is the answer to the command `sequence`.
    ///
    /// # Errors
    /// [`DecodeError::Mismatch`].
    pub fn expect(&self, sequence: Sequence) -> Result<(), DecodeError> {
        expect_sequence("COMPLETION.sequence", self.sequence, sequence)
    }

    /// The same completion with a message of its own.
    pub fn into_owned(self) -> Completion<'static> {
        Completion {
            sequence: self.sequence,
            error_code: self.error_code,
            error_message: Cow::Owned(self.error_message.into_owned()),
        }
    }
}

pub(crate) fn expect_sequence(
    field: &'static str,
    got: Sequence,
    expected: Sequence,
) -> Result<(), DecodeError> {
    if got != expected {
        return Err(DecodeError::Mismatch {
            field,
            got: got.0.into(),
            expected: expected.0.into(),
        });
    }
    Ok(())
}

impl Encode for Completion<'_> {
    fn encode(&self, writer: &mut Writer) -> Result<(), EncodeError> {
        writer.u64(self.sequence.0);
        writer.i32(self.error_code);
        writer.str(
            "COMPLETION.error_message",
            &self.error_message,
            MAX_ERROR_MESSAGE_BYTES,
        )
    }
}

impl<'a> Decode<'a> for Completion<'a> {
    const NAME: &'static str = "COMPLETION";

    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            sequence: Sequence(reader.u64("COMPLETION.sequence")?),
            error_code: reader.i32("COMPLETION.error_code")?,
            error_message: Cow::Borrowed(
                reader.str("COMPLETION.error_message", MAX_ERROR_MESSAGE_BYTES)?,
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// a message over the limit is cut in bytes, between characters, and still encodes.
    #[test]
    fn r_238_messages_are_cut_between_characters() {
        assert_eq!(truncate_utf8("abc", 3), "abc");
        assert_eq!(truncate_utf8("abcd", 3), "abc");
        assert_eq!(truncate_utf8("aüb", 2), "a");
        assert_eq!(truncate_utf8("𝄞𝄞", 7), "𝄞");
        assert_eq!(truncate_utf8("𝄞", 3), "");
        assert_eq!(truncate_utf8("é", 0), "");
        for filler in 0..4 {
            let text = "x".repeat(filler) + &"𝄞".repeat(2000);
            let completion = Completion::failure(Sequence(1), &text);
            assert!(completion.error_message.len() > 4092);
            let bytes = completion.to_bytes().expect("encodes");
            assert_eq!(Completion::decode(&bytes).expect("decodes"), completion);
        }
    }

    #[test]
    fn an_answer_to_another_command_is_refused() {
        let error = Completion::success(Sequence(7))
            .expect(Sequence(8))
            .expect_err("other");
        assert_eq!(error.to_string(), "`COMPLETION.sequence` is 7, expected 8");
    }
}
