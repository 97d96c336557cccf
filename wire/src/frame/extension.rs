//! What is negotiated beyond version 1: feature bits, the timed completion.

use std::borrow::Cow;

use crate::codec::{Decode, Encode, Reader, Writer};
use crate::error::{DecodeError, EncodeError, RuleViolation};
use crate::id::Sequence;
use crate::limits::{MAX_ERROR_MESSAGE_BYTES, MAX_RESULT_BYTES};

/// Names of the extensions in the order of their HELLO bits.
const NAMES: [&str; 18] = [
    "pipelining",
    "task_tags",
    "conditions",
    "timed_completion",
    "results",
    "concurrent_control",
    "data_lane",
    "same_host",
    "peer_fetch",
    "logs",
    "traceparent",
    "capabilities",
    "artifacts",
    "serialized_callables",
    "health_echo",
    "float64",
    "staged_blobs",
    "peer_fence",
];

/// A set of extensions: what a parent offers by name in the manifest and a session accepts by bit in HELLO.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Features(u64);

impl Features {
    /// Plain version 1.
    pub const NONE: Self = Self(0);
    /// Many commands in flight.
    pub const PIPELINING: Self = Self(1 << 0);
    /// Tensor tags travel with tasks.
    pub const TASK_TAGS: Self = Self(1 << 1);
    /// Tasks may wait for earlier ones of their lane.
    pub const CONDITIONS: Self = Self(1 << 2);
    /// TIMED_COMPLETION frames and the COLLECT_TRACE control.
    pub const TIMED_COMPLETION: Self = Self(1 << 3);
    /// Tasks return a value.
    pub const RESULTS: Self = Self(1 << 4);
    /// Controls are served while a task runs.
    pub const CONCURRENT_CONTROL: Self = Self(1 << 5);
    /// Bulk copies have their own connections.
    pub const DATA_LANE: Self = Self(1 << 6);
    /// Copies through memory shared on one host.
    pub const SAME_HOST: Self = Self(1 << 7);
    /// An import reaches its owner directly.
    pub const PEER_FETCH: Self = Self(1 << 8);
    /// Log lines of the session.
    pub const LOGS: Self = Self(1 << 9);
    /// Trace context of the caller.
    pub const TRACEPARENT: Self = Self(1 << 10);
    /// Capability reports.
    pub const CAPABILITIES: Self = Self(1 << 11);
    /// Artifact transfer.
    pub const ARTIFACTS: Self = Self(1 << 12);
    /// Serialized Python callables.
    pub const SERIALIZED_CALLABLES: Self = Self(1 << 13);
    /// Health frames are answered.
    pub const HEALTH_ECHO: Self = Self(1 << 14);
    /// Tensors of 8-byte floats, element type 12.
    pub const FLOAT64: Self = Self(1 << 15);
    /// Machine code that no single control holds comes in parts before it is registered.
    pub const STAGED_BLOBS: Self = Self(1 << 16);
    /// An importer that failed is kept away from the buffers that it wrote to.
    pub const PEER_FENCE: Self = Self(1 << 17);

    /// The bits as in HELLO.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The set of `bits`; unknown bits are kept, so that [`Features::accept`] can refuse them.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The set of the names; unknown names are ignored, as the manifest demands.
    pub fn from_names<I>(names: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        names.into_iter().fold(Self::NONE, |set, name| {
            match NAMES.iter().position(|known| *known == name.as_ref()) {
                Some(bit) => Self(set.0 | 1 << bit),
                None => set,
            }
        })
    }

    /// Names of the known bits, in the order of the bits.
    pub fn names(self) -> Vec<&'static str> {
        NAMES
            .iter()
            .enumerate()
            .filter(|(bit, _)| self.0 & 1 << bit != 0)
            .map(|(_, name)| *name)
            .collect()
    }

    /// True when all of `other` are in `self`.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The extensions in both sets.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The extensions in either set.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The set without extensions that need one which is not in it.
    #[must_use]
    pub const fn usable(self) -> Self {
        let mut set = self.0;
        if !self.contains(Self::PIPELINING) {
            set &= !Self::CONCURRENT_CONTROL.0;
        }
        if !self.contains(Self::PEER_FETCH) {
            set &= !(Self::PEER_FENCE.0 | Self::DATA_LANE.0 | Self::SAME_HOST.0);
        }
        if !self.contains(Self::PIPELINING.union(Self::TIMED_COMPLETION)) {
            set &= !Self::CONDITIONS.0;
        }
        Self(set)
    }

    /// True when no bit is set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// What a parent that offered `self` may use after a HELLO with `hello_bits`. A parent that offers nothing speaks
    /// version 1, where the bits have no meaning and are ignored.
    ///
    /// # Errors
    /// [`DecodeError::Rule`] when the session claims an extension that was not offered, or one without what it needs.
    pub fn accept(self, hello_bits: u64) -> Result<Self, DecodeError> {
        if self.is_empty() {
            return Ok(Self::NONE);
        }
        if hello_bits & !self.0 != 0 {
            return Err(RuleViolation::new(
                "HELLO.feature_flags",
                hello_bits,
                "it has bits of extensions that were not offered",
            )
            .into());
        }
        let accepted = Self(hello_bits);
        if accepted.usable() != accepted {
            return Err(RuleViolation::new(
                "HELLO.feature_flags",
                hello_bits,
                "it has an extension without the one that this needs: concurrent_control needs pipelining; conditions need pipelining \
                 and timed_completion; peer_fence, data_lane and same_host need peer_fetch",
            )
            .into());
        }
        Ok(accepted)
    }
}

/// Who failed, for the scheduler of the parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum FailureKind {
    /// Nobody: the task succeeded.
    None = 0,
    /// The callable.
    Task = 1,
    /// The worker or its connection.
    Endpoint = 2,
    /// A task this one depends on.
    Skipped = 3,
    /// The caller, who withdrew it.
    Cancelled = 4,
}

impl FailureKind {
    /// Code on the wire.
    pub const fn code(self) -> u32 {
        self as u32
    }

    /// The kind of a code.
    pub const fn from_code(code: u32) -> Option<Self> {
        match code {
            0 => Some(Self::None),
            1 => Some(Self::Task),
            2 => Some(Self::Endpoint),
            3 => Some(Self::Skipped),
            4 => Some(Self::Cancelled),
            _ => None,
        }
    }
}

/// Payload of frame type 64, which takes the place of COMPLETION when `timed_completion` was accepted.
///
/// | type | field | rule |
/// |---|---|---|
/// | u64 | sequence | that of the task |
/// | i32 | error_code | 0 exactly when failure_kind is 0 |
/// | u32 | failure_kind | 0 none, 1 task, 2 endpoint, 3 skipped, 4 cancelled |
/// | u64 | start_ns | monotonic clock of the session; 0 when it did not start |
/// | u64 | end_ns | same clock, not before start_ns |
/// | str(4096) | error_message | |
/// | blob(1 MiB) | result | |
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimedCompletion<'a> {
    /// Sequence of the task.
    pub sequence: Sequence,
    /// 0 for success.
    pub error_code: i32,
    /// Who failed.
    pub failure_kind: FailureKind,
    /// Start in nanoseconds of the session's monotonic clock.
    pub start_ns: u64,
    /// End in nanoseconds of the same clock.
    pub end_ns: u64,
    /// What failed, at most 4096 bytes; cut it with [`crate::frame::truncate_utf8`].
    pub error_message: Cow<'a, str>,
    /// What the task returned, at most 1 MiB.
    pub result: Cow<'a, [u8]>,
}

impl TimedCompletion<'_> {
    fn check(&self) -> Result<(), RuleViolation> {
        if (self.error_code == 0) != (self.failure_kind == FailureKind::None) {
            return Err(RuleViolation::new(
                "TIMED_COMPLETION.failure_kind",
                self.failure_kind.code(),
                "it must be 0 for error code 0 and for no other",
            ));
        }
        if self.end_ns < self.start_ns {
            return Err(RuleViolation::new(
                "TIMED_COMPLETION.end_ns",
                self.end_ns,
                "it must not be before start_ns",
            ));
        }
        Ok(())
    }

    /// The same completion with text and result of its own.
    pub fn into_owned(self) -> TimedCompletion<'static> {
        TimedCompletion {
            sequence: self.sequence,
            error_code: self.error_code,
            failure_kind: self.failure_kind,
            start_ns: self.start_ns,
            end_ns: self.end_ns,
            error_message: Cow::Owned(self.error_message.into_owned()),
            result: Cow::Owned(self.result.into_owned()),
        }
    }
}

impl Encode for TimedCompletion<'_> {
    fn encode(&self, writer: &mut Writer) -> Result<(), EncodeError> {
        self.check()?;
        writer.u64(self.sequence.0);
        writer.i32(self.error_code);
        writer.u32(self.failure_kind.code());
        writer.u64(self.start_ns);
        writer.u64(self.end_ns);
        writer.str(
            "TIMED_COMPLETION.error_message",
            &self.error_message,
            MAX_ERROR_MESSAGE_BYTES,
        )?;
        writer.blob("TIMED_COMPLETION.result", &self.result, MAX_RESULT_BYTES)
    }
}

impl<'a> Decode<'a> for TimedCompletion<'a> {
    const NAME: &'static str = "TIMED_COMPLETION";

    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let sequence = Sequence(reader.u64("TIMED_COMPLETION.sequence")?);
        let error_code = reader.i32("TIMED_COMPLETION.error_code")?;
        let code = reader.u32("TIMED_COMPLETION.failure_kind")?;
        let failure_kind = DecodeError::known(
            FailureKind::from_code(code),
            "TIMED_COMPLETION.failure_kind",
            code,
        )?;
        let completion = Self {
            sequence,
            error_code,
            failure_kind,
            start_ns: reader.u64("TIMED_COMPLETION.start_ns")?,
            end_ns: reader.u64("TIMED_COMPLETION.end_ns")?,
            error_message: Cow::Borrowed(
                reader.str("TIMED_COMPLETION.error_message", MAX_ERROR_MESSAGE_BYTES)?,
            ),
            result: Cow::Borrowed(reader.blob("TIMED_COMPLETION.result", MAX_RESULT_BYTES)?),
        };
        completion.check()?;
        Ok(completion)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_bits_are_one_to_one() {
        for (bit, name) in NAMES.into_iter().enumerate() {
            assert_eq!(Features::from_names([name]), Features(1 << bit));
            assert_eq!(Features(1 << bit).names(), [name]);
        }
        assert_eq!(Features::from_names(["health_echo"]), Features::HEALTH_ECHO);
        assert_eq!(
            Features::from_names(["timed_completion"]),
            Features::TIMED_COMPLETION
        );
        assert_eq!(
            Features::from_names(["unknown", "", "PIPELINING"]),
            Features::NONE
        );
        assert_eq!(Features(u64::MAX).names(), NAMES);
    }

    /// A bit that was not offered is an error; a parent that offers nothing ignores the field, as version 1 does.
    #[test]
    fn only_what_was_offered_can_be_accepted() {
        let offered = Features::PIPELINING.union(Features::TIMED_COMPLETION);
        assert_eq!(offered.accept(0), Ok(Features::NONE));
        assert_eq!(offered.accept(8), Ok(Features::TIMED_COMPLETION));
        assert_eq!(offered.accept(9), Ok(offered));
        assert!(offered.accept(2).is_err());
        assert!(offered.accept(1 << 63).is_err());
        assert_eq!(Features::NONE.accept(u64::MAX), Ok(Features::NONE));
    }
}
