//! CONTROL_REPLY: the answer to a CONTROL.

use std::borrow::Cow;

use crate::codec::{Decode, Encode, Reader, Writer};
use crate::error::{DecodeError, EncodeError};
use crate::frame::completion::{expect_sequence, truncate_utf8};
use crate::frame::control::ControlName;
use crate::frame::extension::Features;
use crate::id::{Sequence, WorkerId};
use crate::limits::{MAX_ERROR_MESSAGE_BYTES, MAX_PAYLOAD_BYTES};

/// Outcome of a control.
///
/// | type | field |
/// |---|---|
/// | u64 | sequence of the control |
/// | u32 | control_name, a copy |
/// | u32 | control_version, a copy |
/// | i32 | error_code, 0 for success |
/// | str(4096) | error_message |
/// | blob(16 MiB) | result_bytes |
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ControlReply<'a> {
    /// Sequence of the control.
    pub sequence: Sequence,
    /// Its name.
    pub name: ControlName,
    /// Its version. Not checked here, as in version 1; [`ControlReply::expect`] compares it.
    pub version: u32,
    /// 0 for success.
    pub error_code: i32,
    /// What failed, at most 4096 bytes.
    pub error_message: Cow<'a, str>,
    /// The result; without meaning after an error.
    pub result: Cow<'a, [u8]>,
}

impl<'a> ControlReply<'a> {
    /// The control succeeded.
    pub fn success(
        sequence: Sequence,
        name: ControlName,
        version: u32,
        result: impl Into<Cow<'a, [u8]>>,
    ) -> Self {
        Self {
            sequence,
            name,
            version,
            error_code: 0,
            error_message: Cow::Borrowed(""),
            result: result.into(),
        }
    }

    /// The control failed with error code 1; the message is cut to its limit at a character boundary.
    pub fn failure(sequence: Sequence, name: ControlName, version: u32, message: &'a str) -> Self {
        let message = truncate_utf8(message, MAX_ERROR_MESSAGE_BYTES as usize);
        Self {
            sequence,
            name,
            version,
            error_code: 1,
            error_message: Cow::Borrowed(message),
            result: Cow::Borrowed(&[]),
        }
    }

    /// Demands that this is the answer to that command.
    ///
    /// # Errors
    /// [`DecodeError::Mismatch`] for the first that differs of sequence, name, version.
    pub fn expect(
        &self,
        sequence: Sequence,
        name: ControlName,
        version: u32,
    ) -> Result<(), DecodeError> {
        expect_sequence("CONTROL_REPLY.sequence", self.sequence, sequence)?;
        for (field, got, expected) in [
            ("CONTROL_REPLY.control_name", self.name.code(), name.code()),
            ("CONTROL_REPLY.control_version", self.version, version),
        ] {
            if got != expected {
                return Err(DecodeError::Mismatch {
                    field,
                    got: got.into(),
                    expected: expected.into(),
                });
            }
        }
        Ok(())
    }

    /// Reads a reply that fills `bytes` exactly; `features` are the accepted extensions.
    ///
    /// # Errors
    /// [`DecodeError`] for the first field that is wrong.
    pub fn decode_with(bytes: &'a [u8], features: Features) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let reply = Self::read_with(&mut reader, features)?;
        reader.finish(Self::NAME)?;
        Ok(reply)
    }

    /// Everything before the result's bytes, for a result of `result_bytes` bytes that is written separately.
    ///
    /// # Errors
    /// [`EncodeError::TooLong`].
    pub fn encode_head(&self, result_bytes: usize, writer: &mut Writer) -> Result<(), EncodeError> {
        writer.u64(self.sequence.0);
        writer.u32(self.name.code());
        writer.u32(self.version);
        writer.i32(self.error_code);
        writer.str(
            "CONTROL_REPLY.error_message",
            &self.error_message,
            MAX_ERROR_MESSAGE_BYTES,
        )?;
        writer.length("CONTROL_REPLY.result", result_bytes, MAX_PAYLOAD_BYTES)
    }

    /// The same reply with text and result of its own.
    pub fn into_owned(self) -> ControlReply<'static> {
        ControlReply {
            sequence: self.sequence,
            name: self.name,
            version: self.version,
            error_code: self.error_code,
            error_message: Cow::Owned(self.error_message.into_owned()),
            result: Cow::Owned(self.result.into_owned()),
        }
    }

    fn read_with(reader: &mut Reader<'a>, features: Features) -> Result<Self, DecodeError> {
        Ok(Self {
            sequence: Sequence(reader.u64("CONTROL_REPLY.sequence")?),
            name: ControlName::read(reader, "CONTROL_REPLY.control_name", features)?,
            version: reader.u32("CONTROL_REPLY.control_version")?,
            error_code: reader.i32("CONTROL_REPLY.error_code")?,
            error_message: Cow::Borrowed(
                reader.str("CONTROL_REPLY.error_message", MAX_ERROR_MESSAGE_BYTES)?,
            ),
            result: Cow::Borrowed(reader.blob("CONTROL_REPLY.result", MAX_PAYLOAD_BYTES)?),
        })
    }
}

/// How the message of a failed control begins.
pub fn failure_prefix(worker_id: WorkerId, sequence: Sequence) -> String {
    format!("remote worker_id={worker_id} control sequence={sequence}: ")
}

impl Encode for ControlReply<'_> {
    fn encode(&self, writer: &mut Writer) -> Result<(), EncodeError> {
        self.encode_head(self.result.len(), writer)?;
        writer.raw(&self.result);
        Ok(())
    }
}

impl<'a> Decode<'a> for ControlReply<'a> {
    const NAME: &'static str = "CONTROL_REPLY";

    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Self::read_with(reader, Features::NONE)
    }
}
