//! The descriptor of transport profile `tcp`: how an importer on any host reaches the owner's bytes (extension `peer_fetch`).

use std::borrow::Cow;

use crate::codec::{Decode, Encode, Reader, Writer};
use crate::error::{must_not_be_zero, DecodeError, EncodeError, RuleViolation};
use crate::frame::peer::Ticket;
use crate::id::SessionId;
use crate::limits::{MAX_PEER_HOST_BYTES, MAX_SEGMENT_NAME_BYTES};

/// Where the owner listens for importers, what admits them, and the segment that those on the owner's host map instead.
///
/// | type | field | rule |
/// |---|---|---|
/// | u64 | session_id | the owner's; not 0 |
/// | 32 bytes | ticket | |
/// | str(255) | host | not empty |
/// | u32 | port | 1..=65535 |
/// | str(255) | segment | name of a POSIX segment, or empty: there is none |
/// | u32 | reserved | 0 |
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TcpDescriptor<'a> {
    /// The owner's session, which every frame of the peer lane names.
    pub session_id: SessionId,
    /// What admits an importer to the exported range.
    pub ticket: Ticket,
    /// Numeric address of the owner's host, or `localhost`.
    pub host: Cow<'a, str>,
    /// Port on which the owner's session listens for importers.
    pub port: u16,
    /// The segment with the buffer's bytes, for importers that can open it.
    pub segment: Cow<'a, str>,
}

impl TcpDescriptor<'_> {
    /// Name of the profile.
    pub const PROFILE: &'static str = "tcp";

    fn check(&self) -> Result<(), RuleViolation> {
        must_not_be_zero("TcpDescriptor.session_id", self.session_id.0)?;
        must_not_be_zero("TcpDescriptor.port", self.port.into())?;
        if self.host.is_empty() {
            return Err(RuleViolation::new(
                "TcpDescriptor.host",
                0,
                "its length must not be 0",
            ));
        }
        Ok(())
    }

    /// The same descriptor with texts of its own.
    #[must_use]
    pub fn into_owned(self) -> TcpDescriptor<'static> {
        TcpDescriptor {
            session_id: self.session_id,
            ticket: self.ticket,
            host: Cow::Owned(self.host.into_owned()),
            port: self.port,
            segment: Cow::Owned(self.segment.into_owned()),
        }
    }
}

impl Encode for TcpDescriptor<'_> {
    fn encode(&self, writer: &mut Writer) -> Result<(), EncodeError> {
        self.check()?;
        writer.u64(self.session_id.0);
        writer.raw(&self.ticket.0);
        writer.str("TcpDescriptor.host", &self.host, MAX_PEER_HOST_BYTES)?;
        writer.u32(self.port.into());
        writer.str(
            "TcpDescriptor.segment",
            &self.segment,
            MAX_SEGMENT_NAME_BYTES,
        )?;
        writer.u32(0);
        Ok(())
    }
}

impl<'a> Decode<'a> for TcpDescriptor<'a> {
    const NAME: &'static str = "TcpDescriptor";

    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let session_id = SessionId(reader.u64("TcpDescriptor.session_id")?);
        let ticket = Ticket(reader.array("TcpDescriptor.ticket")?);
        let host = Cow::Borrowed(reader.str("TcpDescriptor.host", MAX_PEER_HOST_BYTES)?);
        let port = reader.u32("TcpDescriptor.port")?;
        let port = u16::try_from(port).map_err(|_| DecodeError::OutOfRange {
            field: "TcpDescriptor.port",
            got: port.into(),
            min: 1,
            max: u16::MAX.into(),
        })?;
        let segment = Cow::Borrowed(reader.str("TcpDescriptor.segment", MAX_SEGMENT_NAME_BYTES)?);
        reader.reserved_u32("TcpDescriptor.reserved")?;
        let descriptor = Self {
            session_id,
            ticket,
            host,
            port,
            segment,
        };
        descriptor.check()?;
        Ok(descriptor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::PEER_TICKET_BYTES;

    fn descriptor() -> TcpDescriptor<'static> {
        TcpDescriptor {
            session_id: SessionId(9),
            ticket: Ticket([7; PEER_TICKET_BYTES]),
            host: "127.0.0.1".into(),
            port: 0x1234,
            segment: "psm_x".into(),
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_document() {
        let bytes = descriptor().to_bytes().expect("encodes");
        let mut expected = vec![9, 0, 0, 0, 0, 0, 0, 0];
        expected.extend([7; 32]);
        expected.extend(b"\x09\0\0\x00127.0.0.1\x34\x12\0\0\x05\0\0\0psm_x\0\0\0\0");
        assert_eq!(bytes, expected);
        assert_eq!(TcpDescriptor::decode(&bytes), Ok(descriptor()));
        for length in 0..bytes.len() {
            assert!(TcpDescriptor::decode(&bytes[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn each_rule_is_checked_both_ways() {
        let good = descriptor().to_bytes().expect("encodes");
        for (at, byte) in [(0, 0_u8), (54, 1), (good.len() - 1, 1)] {
            let mut bytes = good.clone();
            bytes[at] = byte;
            if at == 54 {
                // Port 0x10000 and more does not fit.
                bytes[53..57].copy_from_slice(&[0, 0, 1, 0]);
            }
            assert!(TcpDescriptor::decode(&bytes).is_err(), "{at}");
        }
        for wrong in [
            TcpDescriptor {
                session_id: SessionId(0),
                ..descriptor()
            },
            TcpDescriptor {
                port: 0,
                ..descriptor()
            },
            TcpDescriptor {
                host: "".into(),
                ..descriptor()
            },
            TcpDescriptor {
                host: "h".repeat(256).into(),
                ..descriptor()
            },
            TcpDescriptor {
                segment: "s".repeat(256).into(),
                ..descriptor()
            },
        ] {
            assert!(wrong.to_bytes().is_err(), "{wrong:?}");
        }
        let longest = TcpDescriptor {
            host: "h".repeat(255).into(),
            segment: "s".repeat(255).into(),
            ..descriptor()
        };
        let bytes = longest.to_bytes().expect("encodes");
        assert!(bytes.len() < 4096);
        assert_eq!(TcpDescriptor::decode(&bytes), Ok(longest));
    }
}
