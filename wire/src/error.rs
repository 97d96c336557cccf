//! What can be wrong with bytes from a peer ([`DecodeError`]) and with values we were asked to write
//! ([`EncodeError`]).
//!
//! Every message names the field, the value and the bound. Bytes of the payload are never echoed: a message may end
//! in a log of somebody who must not see the payload.

use crate::id::WorkerId;

/// A rule of the contract that a value breaks, the same on both ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` is {got}: {rule}")]
pub struct RuleViolation {
    /// Field name, `Message.field`.
    pub field: &'static str,
    /// The offending number; `i128` holds every integer type of the protocol.
    pub got: i128,
    /// What the contract asks for instead, a lower-case fragment.
    pub rule: &'static str,
}

impl RuleViolation {
    /// A violation of `rule` by the value `got` of `field`.
    pub fn new(field: &'static str, got: impl Into<i128>, rule: &'static str) -> Self {
        Self {
            field,
            got: got.into(),
            rule,
        }
    }
}

/// Why bytes are not a valid message. Never caused by the local side.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The input ends before the field does.
    #[error("`{field}` is truncated: it needs {needed} bytes, {available} are left")]
    Truncated {
        /// Field name.
        field: &'static str,
        /// Bytes the field needs.
        needed: u64,
        /// Bytes that are left.
        available: u64,
    },
    /// A length or count is over its limit; refused before anything is allocated.
    #[error("`{field}` is {got}, limit {limit}")]
    TooLong {
        /// Field name.
        field: &'static str,
        /// Announced length (bytes) or count (elements).
        got: u64,
        /// The limit, in the same unit.
        limit: u64,
    },
    /// A code that the protocol version and the accepted extensions do not define.
    #[error("`{field}` is {got}, which is not a known code")]
    Unknown {
        /// Field name.
        field: &'static str,
        /// The code received.
        got: u64,
    },
    /// A number outside its range.
    #[error("`{field}` is {got}, allowed are {min} to {max}")]
    OutOfRange {
        /// Field name.
        field: &'static str,
        /// The number received.
        got: i128,
        /// Smallest allowed value.
        min: i128,
        /// Largest allowed value.
        max: i128,
    },
    /// A value that has to equal another one and does not.
    #[error("`{field}` is {got}, expected {expected}")]
    Mismatch {
        /// Field name.
        field: &'static str,
        /// The value received.
        got: i128,
        /// The only acceptable value.
        expected: i128,
    },
    /// Bytes are left after the last field.
    #[error("{count} bytes are left after `{what}`")]
    Trailing {
        /// Message name.
        what: &'static str,
        /// Bytes left over.
        count: u64,
    },
    /// A reserved field is not zero.
    #[error("`{field}` is reserved and must be zero")]
    NonZeroReserved {
        /// Field name.
        field: &'static str,
    },
    /// A string is not UTF-8.
    #[error("`{field}` is not UTF-8 from byte {valid_up_to} on")]
    NotUtf8 {
        /// Field name.
        field: &'static str,
        /// Length in bytes of the valid beginning.
        valid_up_to: u64,
    },
    /// The frame does not begin with `SLR3`.
    #[error("`{field}` is wrong: the peer does not speak SLR3 on this connection")]
    BadMagic {
        /// Field name.
        field: &'static str,
    },
    /// A semantic rule is broken.
    #[error(transparent)]
    Rule(#[from] RuleViolation),
    /// The error lies in one element of a list.
    #[error("entry {index} of `{list}`: {source}")]
    At {
        /// List name.
        list: &'static str,
        /// Index in the list, from 0.
        index: u32,
        /// What is wrong with that element.
        source: Box<Self>,
    },
}

/// Why a value cannot be written. Always a fault of the local side.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// A string, blob or list is over its limit.
    #[error("`{field}` is {got}, limit {limit}; send less")]
    TooLong {
        /// Field name.
        field: &'static str,
        /// Length (bytes) or count (elements).
        got: u64,
        /// The limit, in the same unit.
        limit: u64,
    },
    /// A semantic rule is broken.
    #[error(transparent)]
    Rule(#[from] RuleViolation),
    /// The error lies in one element of a list.
    #[error("entry {index} of `{list}`: {source}")]
    At {
        /// List name.
        list: &'static str,
        /// Index in the list, from 0.
        index: u32,
        /// What is wrong with that element.
        source: Box<Self>,
    },
}

impl DecodeError {
    /// The meaning of a code, or the error that it has none.
    pub(crate) fn known<T>(meaning: Option<T>, field: &'static str, code: u32) -> Result<T, Self> {
        meaning.ok_or_else(|| Self::Unknown {
            field,
            got: code.into(),
        })
    }

    /// Wraps the error of one element of a list.
    pub(crate) fn at(self, list: &'static str, index: u32) -> Self {
        Self::At {
            list,
            index,
            source: Box::new(self),
        }
    }
}

impl EncodeError {
    /// Wraps the error of one element of a list.
    pub(crate) fn at(self, list: &'static str, index: u32) -> Self {
        Self::At {
            list,
            index,
            source: Box::new(self),
        }
    }
}

/// A violation in one element of a list; each end turns it into its own error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListViolation {
    pub(crate) list: &'static str,
    pub(crate) index: u32,
    pub(crate) violation: RuleViolation,
}

impl From<ListViolation> for DecodeError {
    fn from(fault: ListViolation) -> Self {
        Self::from(fault.violation).at(fault.list, fault.index)
    }
}

impl From<ListViolation> for EncodeError {
    fn from(fault: ListViolation) -> Self {
        Self::from(fault.violation).at(fault.list, fault.index)
    }
}

pub(crate) fn must_be_zero(
    field: &'static str,
    got: impl Into<i128>,
    rule: &'static str,
) -> Result<(), RuleViolation> {
    match got.into() {
        0 => Ok(()),
        got => Err(RuleViolation { field, got, rule }),
    }
}

pub(crate) fn must_not_be_zero(field: &'static str, got: u64) -> Result<(), RuleViolation> {
    if got == 0 {
        return Err(RuleViolation::new(field, got, "it must not be 0"));
    }
    Ok(())
}

pub(crate) fn must_not_be_negative(
    field: &'static str,
    worker: WorkerId,
) -> Result<(), RuleViolation> {
    if worker.0 < 0 {
        return Err(RuleViolation::new(
            field,
            worker.0,
            "a worker id must not be negative",
        ));
    }
    Ok(())
}
