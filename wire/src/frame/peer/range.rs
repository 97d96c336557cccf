//! Which bytes of which buffer, and by what right: all of PEER_READ, and the head of PEER_WRITE.

use super::Ticket;
use crate::codec::{Decode, Encode, Reader, Writer};
use crate::error::{must_not_be_zero, DecodeError, EncodeError, RuleViolation};
use crate::id::{BufferId, Generation};
use crate::limits::{MAX_PEER_CHUNK_BYTES, PEER_HEAD_BYTES};

/// A range of an exported buffer, 64 bytes.
///
/// | type | field | rule |
/// |---|---|---|
/// | 32 bytes | ticket | |
/// | u64 | buffer_id | not 0 |
/// | u64 | generation | not 0 |
/// | u64 | offset | absolute in the owner's buffer; offset + nbytes within `u64` |
/// | u32 | nbytes | 1..=1,048,576 |
/// | u32 | reserved | 0 |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PeerRange {
    /// By what right.
    pub ticket: Ticket,
    /// Number of the buffer.
    pub buffer_id: BufferId,
    /// Its generation.
    pub generation: Generation,
    /// First byte, absolute in the owner's buffer.
    pub offset: u64,
    /// Bytes.
    pub nbytes: u32,
}

impl PeerRange {
    fn check(&self) -> Result<(), RuleViolation> {
        must_not_be_zero("PEER.buffer_id", self.buffer_id.0)?;
        must_not_be_zero("PEER.generation", self.generation.0)?;
        must_not_be_zero("PEER.nbytes", self.nbytes.into())?;
        if self.nbytes > MAX_PEER_CHUNK_BYTES {
            return Err(RuleViolation::new(
                "PEER.nbytes",
                self.nbytes,
                "one request moves at most 1,048,576 bytes",
            ));
        }
        if self.offset.checked_add(self.nbytes.into()).is_none() {
            return Err(RuleViolation::new(
                "PEER.offset",
                self.offset,
                "offset + nbytes must not exceed 2^64-1",
            ));
        }
        Ok(())
    }

    /// Bytes of the payload of a PEER_WRITE: this head and the data.
    #[must_use]
    pub const fn write_payload_bytes(&self) -> usize {
        PEER_HEAD_BYTES + self.nbytes as usize
    }
}

impl Encode for PeerRange {
    fn encode(&self, writer: &mut Writer) -> Result<(), EncodeError> {
        self.check()?;
        writer.raw(&self.ticket.0);
        writer.u64(self.buffer_id.0);
        writer.u64(self.generation.0);
        writer.u64(self.offset);
        writer.u32(self.nbytes);
        writer.u32(0);
        Ok(())
    }
}

impl<'a> Decode<'a> for PeerRange {
    const NAME: &'static str = "PEER";

    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let range = Self {
            ticket: Ticket(reader.array("PEER.ticket")?),
            buffer_id: BufferId(reader.u64("PEER.buffer_id")?),
            generation: Generation(reader.u64("PEER.generation")?),
            offset: reader.u64("PEER.offset")?,
            nbytes: reader.u32("PEER.nbytes")?,
        };
        reader.reserved_u32("PEER.reserved")?;
        range.check()?;
        Ok(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range() -> PeerRange {
        PeerRange {
            ticket: Ticket(std::array::from_fn(|at| at as u8)),
            buffer_id: BufferId(0x0102),
            generation: Generation(3),
            offset: 0x0405,
            nbytes: MAX_PEER_CHUNK_BYTES,
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_document() {
        let bytes = range().to_bytes().expect("encodes");
        assert_eq!(bytes.len(), PEER_HEAD_BYTES);
        assert_eq!(bytes[..32], std::array::from_fn::<u8, 32, _>(|at| at as u8));
        assert_eq!(
            bytes[32..48],
            [2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(
            bytes[48..],
            [5, 4, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0]
        );
        assert_eq!(PeerRange::decode(&bytes), Ok(range()));
    }

    /// Every field has its rule, on both sides; nothing more and nothing less than 64 bytes is a range.
    #[test]
    fn each_rule_is_checked_both_ways() {
        let mut wrong = vec![
            PeerRange {
                buffer_id: BufferId(0),
                ..range()
            },
            PeerRange {
                generation: Generation(0),
                ..range()
            },
            PeerRange {
                nbytes: 0,
                ..range()
            },
            PeerRange {
                nbytes: MAX_PEER_CHUNK_BYTES + 1,
                ..range()
            },
            PeerRange {
                offset: u64::MAX,
                nbytes: 1,
                ..range()
            },
        ];
        for range in wrong.drain(..) {
            assert!(
                matches!(range.to_bytes(), Err(EncodeError::Rule(_))),
                "{range:?}"
            );
            let mut bytes = [0; PEER_HEAD_BYTES];
            bytes[32..40].copy_from_slice(&range.buffer_id.0.to_le_bytes());
            bytes[40..48].copy_from_slice(&range.generation.0.to_le_bytes());
            bytes[48..56].copy_from_slice(&range.offset.to_le_bytes());
            bytes[56..60].copy_from_slice(&range.nbytes.to_le_bytes());
            assert!(
                matches!(PeerRange::decode(&bytes), Err(DecodeError::Rule(_))),
                "{range:?}"
            );
        }
        let mut bytes = range().to_bytes().expect("encodes");
        for length in 0..bytes.len() {
            assert!(PeerRange::decode(&bytes[..length]).is_err(), "{length}");
        }
        bytes[63] = 1;
        assert!(matches!(
            PeerRange::decode(&bytes),
            Err(DecodeError::NonZeroReserved { .. })
        ));
        bytes[63] = 0;
        bytes.push(0);
        assert!(matches!(
            PeerRange::decode(&bytes),
            Err(DecodeError::Trailing { .. })
        ));
    }
}
