//! The records that pass through a mailbox, and their payloads.
//!
//! | kind | direction | payload |
//! |---:|---|---|
//! | 1 TASK | down | `Conditions` (tickets), digest[32], u32 settings (1 when a `CallConfig` follows, 0 for the usual one), `TaskArgsWire` (mailbox carrier) |
//! | 2 INSTALL | down | u32 inner, digest[32], u32 callable kind, str name, blob payload |
//! | 3 REMOVE | down | u32 inner, digest[32] |
//! | 4 DROP_REGION | down | u64 region id |
//! | 5 COLLECT_TRACE | down | empty |
//! | 6 PART | down | the next bytes of a payload that is larger than a ring takes; the record itself brings the last ones |
//! | 16 READY | up | u32 process id |
//! | 17 DONE | up | u32 flags (1 failed, 2 views of the arguments are still alive, 4 skipped: a condition is not met), u64 start_ns, u64 end_ns, str message |
//! | 18 ANSWER | up | u32 failed, str message, blob result |
//! | 19 PART | up | as downwards |
//! | 20 RELEASED | up | empty; the last view of the arguments of a task is gone |
//!
//! Encoded with the primitives of the wire crate, so that bounds are checked in one place. Both directions carry the ticket of
//! the request in the record's head.

use std::borrow::Cow;

use echelon_wire::call_config::CallConfig;
use echelon_wire::callable::{CallableKind, Digest};
use echelon_wire::codec::{Decode, Encode, Reader, Writer};
use echelon_wire::error::{DecodeError, EncodeError};
use echelon_wire::limits::{MAX_ERROR_MESSAGE_BYTES, MAX_STRING_BYTES};
use echelon_wire::task::{Carrier, TaskArgsWire};

use crate::text::cut;

pub(crate) const TASK: u32 = 1;
pub(crate) const INSTALL: u32 = 2;
pub(crate) const REMOVE: u32 = 3;
pub(crate) const DROP_REGION: u32 = 4;
pub(crate) const COLLECT_TRACE: u32 = 5;
pub(crate) const PART_DOWN: u32 = 6;
pub(crate) const READY: u32 = 16;
pub(crate) const DONE: u32 = 17;
pub(crate) const ANSWER: u32 = 18;
pub(crate) const PART_UP: u32 = 19;
pub(crate) const RELEASED: u32 = 20;

/// Most bytes of a callable's payload, and of an answer's result.
const BLOB_LIMIT: u32 = 128 << 20;
/// Payloads beyond this many bytes travel in parts: well under half of the smaller ring.
const PART_BYTES: usize = 64 << 10;

/// A payload in the parts that precede its record, and what the record itself carries.
pub(crate) fn parts(payload: &[u8]) -> (std::slice::Chunks<'_, u8>, &[u8]) {
    let whole_parts = payload.len().saturating_sub(1) / PART_BYTES;
    let (first, last) = payload.split_at(whole_parts * PART_BYTES);
    (first.chunks(PART_BYTES), last)
}

/// Puts payloads together again that came in parts. A ring is ordered, so the parts of one record come in a row.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    bytes: Vec<u8>,
}

impl Parts {
    /// Takes one part. The sender keeps to the limit, so more is a fault of the other side.
    ///
    /// # Errors
    /// The text of the fault.
    pub(crate) fn push(&mut self, part: &[u8]) -> Result<(), String> {
        let limit = BLOB_LIMIT as usize + 2 * PART_BYTES;
        if self.bytes.len() + part.len() > limit {
            self.bytes = Vec::new();
            return Err(format!("a record of more than {limit} bytes in parts"));
        }
        self.bytes.extend_from_slice(part);
        Ok(())
    }

    /// The whole payload, given the part that came with the record: in place when there were no others.
    pub(crate) fn complete(&mut self, last: &mut Vec<u8>) {
        if !self.bytes.is_empty() {
            let mut whole = std::mem::take(&mut self.bytes);
            whole.extend_from_slice(last);
            *last = whole;
        }
    }
}

/// TASK, behind its conditions: the parts of the TASK frame's payload. The settings that nearly every task has are left out.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Task<'a> {
    pub(crate) digest: Digest,
    pub(crate) config: Cow<'a, CallConfig>,
    pub(crate) args: TaskArgsWire<'a>,
}

impl<'a> Task<'a> {
    pub(crate) fn encode(
        digest: &Digest,
        config: &CallConfig,
        args: &TaskArgsWire<'_>,
        writer: &mut Writer,
    ) -> Result<(), EncodeError> {
        writer.raw(&digest.0);
        let usual = config == CallConfig::usual();
        writer.u32(u32::from(!usual));
        if !usual {
            config.encode(writer)?;
        }
        args.encode(Carrier::Mailbox, writer)
    }

    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let digest = Digest(reader.array("TASK.digest")?);
        let config = match reader.u32("TASK.settings")? {
            0 => Cow::Borrowed(CallConfig::usual()),
            1 => Cow::Owned(CallConfig::read(&mut reader)?),
            got => {
                let (field, got) = ("TASK.settings", got.into());
                return Err(DecodeError::Unknown { field, got });
            }
        };
        let args = TaskArgsWire::decode(reader.rest(), Carrier::Mailbox)?;
        Ok(Self {
            digest,
            config,
            args,
        })
    }
}

/// INSTALL.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Install<'a> {
    /// For the sub workers of the child's own runtime, not for the child itself.
    pub(crate) inner: bool,
    pub(crate) digest: Digest,
    pub(crate) kind: CallableKind,
    pub(crate) name: &'a str,
    pub(crate) payload: &'a [u8],
}

impl<'a> Install<'a> {
    pub(crate) fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        let mut writer = Writer::with_capacity(64 + self.payload.len());
        writer.u32(u32::from(self.inner));
        writer.raw(&self.digest.0);
        writer.u32(self.kind as u32);
        let name = echelon_wire::frame::truncate_utf8(self.name, MAX_STRING_BYTES as usize);
        writer.str("INSTALL.name", name, MAX_STRING_BYTES)?;
        writer.blob("INSTALL.payload", self.payload, BLOB_LIMIT)?;
        Ok(writer.into_bytes())
    }

    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let inner = reader.u32("INSTALL.inner")? != 0;
        let digest = Digest(reader.array("INSTALL.digest")?);
        let kind = {
            let code = reader.u32("INSTALL.kind")?;
            CallableKind::from_code(code).ok_or_else(|| DecodeError::Unknown {
                field: "INSTALL.kind",
                got: u64::from(code),
            })?
        };
        let name = reader.str("INSTALL.name", MAX_STRING_BYTES)?;
        let payload = reader.blob("INSTALL.payload", BLOB_LIMIT)?;
        reader.finish("INSTALL")?;
        Ok(Self {
            inner,
            digest,
            kind,
            name,
            payload,
        })
    }
}

/// REMOVE.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Remove {
    pub(crate) inner: bool,
    pub(crate) digest: Digest,
}

impl Remove {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::with_capacity(36);
        writer.u32(u32::from(self.inner));
        writer.raw(&self.digest.0);
        writer.into_bytes()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let inner = reader.u32("REMOVE.inner")? != 0;
        let digest = Digest(reader.array("REMOVE.digest")?);
        reader.finish("REMOVE")?;
        Ok(Self { inner, digest })
    }
}

/// DONE.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Done<'a> {
    pub(crate) start_ns: u64,
    pub(crate) end_ns: u64,
    /// The text of the failure; `None` when the task completed.
    pub(crate) failure: Option<&'a str>,
    /// Views of the arguments are still alive in the child; RELEASED follows.
    pub(crate) retained: bool,
    /// It was not carried out: something that it was to come after did not complete.
    pub(crate) skipped: bool,
}

impl<'a> Done<'a> {
    /// Replaces the contents of `bytes`, whose memory is used again.
    pub(crate) fn encode_into(&self, bytes: &mut Vec<u8>) -> Result<(), EncodeError> {
        let mut writer = Writer::from_vec(std::mem::take(bytes));
        writer.clear();
        writer.u32(
            u32::from(self.failure.is_some())
                | u32::from(self.retained) << 1
                | u32::from(self.skipped) << 2,
        );
        writer.u64(self.start_ns);
        writer.u64(self.end_ns);
        let text = cut(self.failure.unwrap_or("").to_owned());
        writer.str("DONE.message", &text, MAX_ERROR_MESSAGE_BYTES)?;
        *bytes = writer.into_bytes();
        Ok(())
    }

    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let flags = reader.u32("DONE.flags")?;
        // What was skipped neither failed nor left views.
        if flags > 4 {
            return Err(DecodeError::Unknown {
                field: "DONE.flags",
                got: flags.into(),
            });
        }
        let start_ns = reader.u64("DONE.start_ns")?;
        let end_ns = reader.u64("DONE.end_ns")?;
        let text = reader.str("DONE.message", MAX_ERROR_MESSAGE_BYTES)?;
        reader.finish("DONE")?;
        Ok(Self {
            start_ns,
            end_ns,
            failure: (flags & 1 != 0).then_some(text),
            retained: flags & 2 != 0,
            skipped: flags & 4 != 0,
        })
    }
}

/// ANSWER: the result, or the text of the failure.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer<'a>(pub(crate) Result<&'a [u8], &'a str>);

impl<'a> Answer<'a> {
    pub(crate) fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        let mut writer = Writer::with_capacity(32);
        let (text, result) = match self.0 {
            Ok(result) => ("", result),
            Err(text) => (text, &[][..]),
        };
        writer.u32(u32::from(self.0.is_err()));
        writer.str(
            "ANSWER.message",
            &cut(text.to_owned()),
            MAX_ERROR_MESSAGE_BYTES,
        )?;
        writer.blob("ANSWER.result", result, BLOB_LIMIT)?;
        Ok(writer.into_bytes())
    }

    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let failed = reader.u32("ANSWER.failed")? != 0;
        let text = reader.str("ANSWER.message", MAX_ERROR_MESSAGE_BYTES)?;
        let result = reader.blob("ANSWER.result", BLOB_LIMIT)?;
        reader.finish("ANSWER")?;
        Ok(Self(if failed { Err(text) } else { Ok(result) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(done: &Done<'_>) -> Vec<u8> {
        let mut bytes = b"of the last one".to_vec();
        done.encode_into(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn records_round_trip() {
        let install = Install {
            inner: false,
            digest: Digest([7; 32]),
            kind: CallableKind::PythonImport,
            name: "m:f",
            payload: b"m:f",
        };
        assert_eq!(
            Install::decode(&install.encode().unwrap()).unwrap(),
            install
        );
        for failure in [None, Some("Traceback …")] {
            let done = Done {
                start_ns: 1,
                end_ns: 2,
                failure,
                retained: failure.is_none(),
                skipped: false,
            };
            assert_eq!(Done::decode(&encoded(&done)).unwrap(), done);
        }
        for answer in [Answer(Ok(b"json")), Answer(Err("no"))] {
            assert_eq!(Answer::decode(&answer.encode().unwrap()).unwrap(), answer);
        }
    }

    fn task(config: &CallConfig) -> Vec<u8> {
        let args = TaskArgsWire {
            scalars: vec![1, u64::MAX],
            ..TaskArgsWire::default()
        };
        let mut writer = Writer::new();
        Task::encode(&Digest([7; 32]), config, &args, &mut writer).unwrap();
        writer.into_bytes()
    }

    #[test]
    fn a_task_travels_without_the_usual_settings_and_with_others() {
        let other = CallConfig {
            block_dim: 7,
            ..CallConfig::default()
        };
        for config in [CallConfig::usual(), &other] {
            let bytes = task(config);
            let read = Task::decode(&bytes).unwrap();
            assert_eq!(
                (&*read.config, &*read.args.scalars),
                (config, &[1, u64::MAX][..])
            );
            for len in 0..bytes.len() {
                assert!(Task::decode(&bytes[..len]).is_err());
            }
        }
        assert!(task(CallConfig::usual()).len() < task(&other).len());
        let mut unknown = task(CallConfig::usual());
        unknown[32] = 2;
        assert!(Task::decode(&unknown).is_err());
    }

    #[test]
    fn every_prefix_is_refused() {
        let whole = encoded(&Done {
            start_ns: 1,
            end_ns: 2,
            failure: Some("x"),
            retained: true,
            skipped: false,
        });
        for len in 0..whole.len() {
            assert!(Done::decode(&whole[..len]).is_err());
        }
        let whole = Answer(Ok(b"json")).encode().unwrap();
        for len in 0..whole.len() {
            assert!(Answer::decode(&whole[..len]).is_err());
        }
    }

    #[test]
    fn r_238_a_long_text_is_cut_at_a_character_and_keeps_its_last_line() {
        let long = format!("{}\nValueError: ü", "ä".repeat(5000));
        let done = encoded(&Done {
            start_ns: 0,
            end_ns: 0,
            failure: Some(&long),
            retained: false,
            skipped: false,
        });
        let text = Done::decode(&done).unwrap().failure.unwrap().to_owned();
        assert!(text.len() <= 4096 && text.ends_with("ValueError: ü"));
    }

    #[test]
    fn payloads_of_any_size_come_together_again() {
        for len in [
            0,
            1,
            PART_BYTES - 1,
            PART_BYTES,
            PART_BYTES + 1,
            5 * PART_BYTES,
        ] {
            let payload: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
            let (first, last) = parts(&payload);
            let mut collected = Parts::default();
            for part in first {
                assert_eq!(part.len(), PART_BYTES);
                collected.push(part).unwrap();
            }
            assert!(last.len() <= PART_BYTES);
            let mut whole = last.to_vec();
            collected.complete(&mut whole);
            assert_eq!(whole, payload);
        }
    }

    #[test]
    fn parts_without_end_are_refused() {
        let mut collected = Parts::default();
        let part = vec![0; 16 << 20];
        assert!((0..9).any(|_| collected.push(&part).is_err()));
    }
}
