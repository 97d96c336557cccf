//! PEER_REFUSED: why the owner does not do what an importer asks.

use std::borrow::Cow;

use crate::codec::{Decode, Encode, Reader, Writer};
use crate::error::{DecodeError, EncodeError};
use crate::limits::MAX_PEER_MESSAGE_BYTES;

/// Which check failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Refusal {
    /// The ticket is unknown: never given, or its buffer was freed.
    Ticket = 1,
    /// The ticket is for another buffer or generation.
    Buffer = 2,
    /// The range reaches outside what was exported.
    Range = 3,
    /// The ticket does not allow it.
    Access = 4,
    /// The frame names another session or worker: the owner is gone, and another listens where it did.
    Identity = 5,
    /// The owner serves as many importers as it can.
    Busy = 6,
}

impl Refusal {
    /// Code on the wire.
    #[must_use]
    pub const fn code(self) -> u32 {
        self as u32
    }

    /// The refusal of a code.
    #[must_use]
    pub const fn from_code(code: u32) -> Option<Self> {
        match code {
            1 => Some(Self::Ticket),
            2 => Some(Self::Buffer),
            3 => Some(Self::Range),
            4 => Some(Self::Access),
            5 => Some(Self::Identity),
            6 => Some(Self::Busy),
            _ => None,
        }
    }
}

/// Answer to a request that is not carried out. The lane goes on, except after `Identity` and `Busy`.
///
/// | type | field | rule |
/// |---|---|---|
/// | u32 | reason | 1 ticket, 2 buffer, 3 range, 4 access, 5 identity, 6 busy |
/// | str(1024) | message | |
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PeerRefused<'a> {
    /// Which check failed.
    pub reason: Refusal,
    /// The same in words, with values and limits.
    pub message: Cow<'a, str>,
}

impl Encode for PeerRefused<'_> {
    fn encode(&self, writer: &mut Writer) -> Result<(), EncodeError> {
        writer.u32(self.reason.code());
        writer.str(
            "PEER_REFUSED.message",
            &self.message,
            MAX_PEER_MESSAGE_BYTES,
        )
    }
}

impl<'a> Decode<'a> for PeerRefused<'a> {
    const NAME: &'static str = "PEER_REFUSED";

    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let code = reader.u32("PEER_REFUSED.reason")?;
        Ok(Self {
            reason: DecodeError::known(Refusal::from_code(code), "PEER_REFUSED.reason", code)?,
            message: Cow::Borrowed(reader.str("PEER_REFUSED.message", MAX_PEER_MESSAGE_BYTES)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_code_and_no_other() {
        for code in 1..=6 {
            let refused = PeerRefused {
                reason: Refusal::from_code(code).expect("known"),
                message: "why".into(),
            };
            let bytes = refused.to_bytes().expect("encodes");
            assert_eq!(bytes[..8], [code as u8, 0, 0, 0, 3, 0, 0, 0]);
            assert_eq!(PeerRefused::decode(&bytes), Ok(refused));
        }
        for code in [0_u8, 7, 255] {
            let bytes = [code, 0, 0, 0, 0, 0, 0, 0];
            assert!(matches!(
                PeerRefused::decode(&bytes),
                Err(DecodeError::Unknown { .. })
            ));
        }
    }

    #[test]
    fn a_text_over_its_limit_is_refused_before_it_is_read() {
        let bytes = [1, 0, 0, 0, 1, 4, 0, 0];
        assert!(matches!(
            PeerRefused::decode(&bytes),
            Err(DecodeError::TooLong {
                got: 1025,
                limit: 1024,
                ..
            })
        ));
    }
}
