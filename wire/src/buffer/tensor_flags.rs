//! What a carrier adds to a descriptor: the tensor's tag, and in the mailbox how to map it.

use crate::error::RuleViolation;

/// What a descriptor's flags say where the carrier has them: in the mailbox, and without the mapping on a connection with
/// `task_tags`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct TensorFlags {
    /// The tensor tag, 0..=4, when the submitter knows it.
    pub tag: Option<u8>,
    /// The child must map the range read-only; in the mailbox only.
    pub read_only: bool,
}

impl TensorFlags {
    const TAG_MASK: u64 = 0b111;
    const TAG_KNOWN: u64 = 1 << 3;
    const READ_ONLY: u64 = 1 << 4;
    const TAG_MAX: u8 = 4;

    /// The flags word: bits 0..=2 tag, bit 3 tag known, bit 4 read-only.
    ///
    /// # Errors
    /// [`RuleViolation`] when the tag is over 4.
    pub fn bits(self) -> Result<u64, RuleViolation> {
        let tag = match self.tag {
            None => 0,
            Some(tag) if tag <= Self::TAG_MAX => u64::from(tag) | Self::TAG_KNOWN,
            Some(tag) => {
                return Err(RuleViolation::new(
                    "RemoteTensorDesc.flags.tag",
                    tag,
                    "a tag is 0 to 4",
                ))
            }
        };
        Ok(tag | if self.read_only { Self::READ_ONLY } else { 0 })
    }

    /// The flags of a word.
    ///
    /// # Errors
    /// [`RuleViolation`] for unknown bits, a tag over 4, or a tag that is not marked as known.
    pub fn from_bits(bits: u64) -> Result<Self, RuleViolation> {
        let bad = |rule| Err(RuleViolation::new("RemoteTensorDesc.flags", bits, rule));
        if bits & !(Self::TAG_MASK | Self::TAG_KNOWN | Self::READ_ONLY) != 0 {
            return bad("only bits 0 to 4 are defined");
        }
        let tag = (bits & Self::TAG_MASK) as u8;
        let known = bits & Self::TAG_KNOWN != 0;
        if tag > Self::TAG_MAX {
            return bad("a tag is 0 to 4");
        }
        if tag != 0 && !known {
            return bad("a tag needs bit 3");
        }
        Ok(Self {
            tag: known.then_some(tag),
            read_only: bits & Self::READ_ONLY != 0,
        })
    }

    /// The rules of a connection: without `tagged` there are no flags; with it each descriptor has its tag and no more.
    pub(crate) fn check_wire(bits: u64, tagged: bool) -> Result<(), RuleViolation> {
        let bad = |rule| Err(RuleViolation::new("RemoteTensorDesc.flags", bits, rule));
        if !tagged {
            return match bits {
                0 => Ok(()),
                _ => bad("flags are reserved in version 1, and tags travel with task_tags only"),
            };
        }
        let flags = Self::from_bits(bits)?;
        if flags.tag.is_none() {
            return bad("with task_tags a descriptor needs its tag");
        }
        if flags.read_only {
            return bad("bit 4 exists in the mailbox only");
        }
        Ok(())
    }
}
