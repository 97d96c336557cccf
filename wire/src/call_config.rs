//! Per-call settings of a task.

use crate::codec::{Decode, Encode, Reader, Writer};
use crate::error::{DecodeError, EncodeError, RuleViolation};
use crate::limits::{MAX_OUTPUT_PREFIX_BYTES, MAX_STRING_BYTES};

/// Seven numbers and a path prefix; 32 bytes when the prefix is empty.
///
/// | offset | type | field | default |
/// |---:|---|---|---|
/// | 0 | i32 | block_dim | 0 |
/// | 4 | i32 | aicpu_thread_num | 3 |
/// | 8 | i32 | enable_l2_swimlane | 0 |
/// | 12 | i32 | enable_dump_tensor | 0 |
/// | 16 | i32 | enable_pmu | 0 |
/// | 20 | i32 | enable_dep_gen | 0 |
/// | 24 | i32 | enable_scope_stats | 0 |
/// | 28 | str | output_prefix, 1023 bytes at most | "" |
///
/// Negative numbers are legal. Any `enable_*` that is not 0 needs a prefix.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CallConfig {
    /// Blocks to launch; 0 lets the callable decide.
    pub block_dim: i32,
    /// Scheduler threads on the device.
    pub aicpu_thread_num: i32,
    /// Non-zero records the timeline.
    pub enable_l2_swimlane: i32,
    /// Non-zero dumps tensors.
    pub enable_dump_tensor: i32,
    /// Performance counter group, 0 for none.
    pub enable_pmu: i32,
    /// Non-zero records dependencies.
    pub enable_dep_gen: i32,
    /// Non-zero records statistics by scope.
    pub enable_scope_stats: i32,
    /// Where diagnostics are written. A NUL inside ends the usable part, see [`CallConfig::effective_output_prefix`].
    pub output_prefix: String,
}

impl Default for CallConfig {
    fn default() -> Self {
        Self::usual().clone()
    }
}

impl CallConfig {
    /// The settings of a task that names none.
    pub fn usual() -> &'static Self {
        static USUAL: CallConfig = CallConfig {
            block_dim: 0,
            aicpu_thread_num: 3,
            enable_l2_swimlane: 0,
            enable_dump_tensor: 0,
            enable_pmu: 0,
            enable_dep_gen: 0,
            enable_scope_stats: 0,
            output_prefix: String::new(),
        };
        &USUAL
    }

    /// The prefix up to its first NUL: v1 peers store the bytes after it and never read them.
    pub fn effective_output_prefix(&self) -> &str {
        self.output_prefix.split('\0').next().unwrap_or_default()
    }

    /// The rules, the same on both ends.
    ///
    /// # Errors
    /// [`RuleViolation`] when the prefix is over 1023 bytes or a diagnostic is on without a prefix.
    pub fn check(&self) -> Result<(), RuleViolation> {
        if self.output_prefix.len() > MAX_OUTPUT_PREFIX_BYTES as usize {
            return Err(RuleViolation {
                field: "CallConfig.output_prefix",
                got: self.output_prefix.len() as i128,
                rule: "the prefix has at most 1023 bytes",
            });
        }
        let diagnostics = [
            ("CallConfig.enable_l2_swimlane", self.enable_l2_swimlane),
            ("CallConfig.enable_dump_tensor", self.enable_dump_tensor),
            ("CallConfig.enable_pmu", self.enable_pmu),
            ("CallConfig.enable_dep_gen", self.enable_dep_gen),
            ("CallConfig.enable_scope_stats", self.enable_scope_stats),
        ];
        if self.effective_output_prefix().is_empty() {
            for (field, value) in diagnostics {
                if value != 0 {
                    return Err(RuleViolation::new(
                        field,
                        value,
                        "it needs an output_prefix to write to",
                    ));
                }
            }
        }
        Ok(())
    }
}

impl Encode for CallConfig {
    fn encode(&self, writer: &mut Writer) -> Result<(), EncodeError> {
        self.check()?;
        writer.i32(self.block_dim);
        writer.i32(self.aicpu_thread_num);
        writer.i32(self.enable_l2_swimlane);
        writer.i32(self.enable_dump_tensor);
        writer.i32(self.enable_pmu);
        writer.i32(self.enable_dep_gen);
        writer.i32(self.enable_scope_stats);
        writer.str(
            "CallConfig.output_prefix",
            &self.output_prefix,
            MAX_OUTPUT_PREFIX_BYTES,
        )
    }
}

impl<'a> Decode<'a> for CallConfig {
    const NAME: &'static str = "CallConfig";

    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let config = Self {
            block_dim: reader.i32("CallConfig.block_dim")?,
            aicpu_thread_num: reader.i32("CallConfig.aicpu_thread_num")?,
            enable_l2_swimlane: reader.i32("CallConfig.enable_l2_swimlane")?,
            enable_dump_tensor: reader.i32("CallConfig.enable_dump_tensor")?,
            enable_pmu: reader.i32("CallConfig.enable_pmu")?,
            enable_dep_gen: reader.i32("CallConfig.enable_dep_gen")?,
            enable_scope_stats: reader.i32("CallConfig.enable_scope_stats")?,
            output_prefix: reader
                .str("CallConfig.output_prefix", MAX_STRING_BYTES)?
                .to_owned(),
        };
        config.check()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_is_32_bytes() {
        assert_eq!(CallConfig::default().to_bytes().expect("encodes").len(), 32);
    }

    #[test]
    fn a_prefix_has_1023_bytes() {
        let config = |n: usize| CallConfig {
            output_prefix: "p".repeat(n),
            ..CallConfig::default()
        };
        assert!(config(1023).to_bytes().is_ok());
        let error = config(1024).to_bytes().expect_err("too long");
        assert!(error.to_string().contains("1024"), "{error}");
    }

    #[test]
    fn a_diagnostic_needs_a_prefix_that_can_be_read() {
        let mut config = CallConfig {
            enable_pmu: -1,
            ..CallConfig::default()
        };
        assert!(config.to_bytes().is_err());
        config.output_prefix = "\0hidden".to_owned();
        assert!(config.to_bytes().is_err());
        config.output_prefix = "a\0b".to_owned();
        let bytes = config.to_bytes().expect("encodes");
        let read = CallConfig::decode(&bytes).expect("decodes");
        assert_eq!(read.effective_output_prefix(), "a");
        assert_eq!(read, config);
    }
}
