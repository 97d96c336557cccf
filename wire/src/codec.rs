//! [`Reader`] and [`Writer`]: the only places that touch positions in byte strings.
//!
//! Integers are little-endian and packed. A string or blob is a `u32` length and that many bytes; its length is compared
//! with the limit and with the bytes that are left before anything is allocated.

use crate::error::{DecodeError, EncodeError};

/// A value that can be appended to a message.
pub trait Encode {
    /// Appends the value.
    ///
    /// # Errors
    /// [`EncodeError`] when the value breaks a limit or a rule; the writer may then hold a partial message and has to
    /// be dropped or cleared.
    fn encode(&self, writer: &mut Writer) -> Result<(), EncodeError>;

    /// The encoding in a buffer of its own.
    ///
    /// # Errors
    /// As [`Encode::encode`].
    fn to_bytes(&self) -> Result<Vec<u8>, EncodeError> {
        let mut writer = Writer::new();
        self.encode(&mut writer)?;
        Ok(writer.into_bytes())
    }
}

/// A value that can be read from a message; blobs may borrow from the input.
pub trait Decode<'a>: Sized {
    /// Name of the message in errors.
    const NAME: &'static str;

    /// Reads the value and leaves the reader after it.
    ///
    /// # Errors
    /// [`DecodeError`] for the first field that is wrong.
    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError>;

    /// Reads the value from `bytes` and demands that nothing is left over.
    ///
    /// # Errors
    /// [`DecodeError`] for the first field that is wrong, or [`DecodeError::Trailing`].
    fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let value = Self::read(&mut reader)?;
        reader.finish(Self::NAME)?;
        Ok(value)
    }
}

/// A cursor over bytes from a peer. No method panics; none allocates.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A cursor at the start of `bytes`.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Bytes not read yet.
    pub const fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Checks that `needed` more bytes are there, without reading them. Lists call it before they allocate.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn require(&self, field: &'static str, needed: u64) -> Result<(), DecodeError> {
        let available = self.rest.len() as u64;
        if needed > available {
            return Err(DecodeError::Truncated {
                field,
                needed,
                available,
            });
        }
        Ok(())
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn take(&mut self, field: &'static str, count: usize) -> Result<&'a [u8], DecodeError> {
        let Some((head, tail)) = self.rest.split_at_checked(count) else {
            return Err(DecodeError::Truncated {
                field,
                needed: count as u64,
                available: self.rest.len() as u64,
            });
        };
        self.rest = tail;
        Ok(head)
    }

    /// The next `N` bytes as an array.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let Some((head, tail)) = self.rest.split_first_chunk::<N>() else {
            return Err(DecodeError::Truncated {
                field,
                needed: N as u64,
                available: self.rest.len() as u64,
            });
        };
        self.rest = tail;
        Ok(*head)
    }

    /// The next byte.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        Ok(u8::from_le_bytes(self.array(field)?))
    }

    /// The next 2 bytes as an unsigned number.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        Ok(u16::from_le_bytes(self.array(field)?))
    }

    /// The next 4 bytes as an unsigned number.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    /// The next 4 bytes as a signed number.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn i32(&mut self, field: &'static str) -> Result<i32, DecodeError> {
        Ok(i32::from_le_bytes(self.array(field)?))
    }

    /// The next 8 bytes as an unsigned number.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    /// A reserved `u32`, which has to be zero.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`], [`DecodeError::NonZeroReserved`].
    pub fn reserved_u32(&mut self, field: &'static str) -> Result<(), DecodeError> {
        match self.u32(field)? {
            0 => Ok(()),
            _ => Err(DecodeError::NonZeroReserved { field }),
        }
    }

    /// `u32` length and that many bytes, at most `limit`.
    ///
    /// # Errors
    /// [`DecodeError::TooLong`], [`DecodeError::Truncated`].
    pub fn blob(&mut self, field: &'static str, limit: u32) -> Result<&'a [u8], DecodeError> {
        let length = self.u32(field)?;
        if length > limit {
            return Err(DecodeError::TooLong {
                field,
                got: length.into(),
                limit: limit.into(),
            });
        }
        self.take(field, length as usize)
    }

    /// `u32` length and that many bytes of UTF-8, at most `limit` bytes.
    ///
    /// # Errors
    /// [`DecodeError::TooLong`], [`DecodeError::Truncated`], [`DecodeError::NotUtf8`].
    pub fn str(&mut self, field: &'static str, limit: u32) -> Result<&'a str, DecodeError> {
        let bytes = self.blob(field, limit)?;
        std::str::from_utf8(bytes).map_err(|error| DecodeError::NotUtf8 {
            field,
            valid_up_to: error.valid_up_to() as u64,
        })
    }

    /// Everything that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// Everything but the last `count` bytes, which stay in the reader.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] when fewer than `count` bytes are left.
    pub fn take_all_but(
        &mut self,
        field: &'static str,
        count: usize,
    ) -> Result<&'a [u8], DecodeError> {
        self.require(field, count as u64)?;
        self.take(field, self.rest.len().saturating_sub(count))
    }

    /// Demands that nothing is left of the message `what`.
    ///
    /// # Errors
    /// [`DecodeError::Trailing`].
    pub const fn finish(&self, what: &'static str) -> Result<(), DecodeError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::Trailing {
                what,
                count: self.rest.len() as u64,
            })
        }
    }
}

/// An output buffer for messages. Reuse one with [`Writer::clear`] to encode without allocating.
#[derive(Debug, Default, Clone)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// An empty writer.
    pub const fn new() -> Self {
        Self { bytes: Vec::new() }
    }

    /// An empty writer with room for `bytes` bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(bytes),
        }
    }

    /// Appends to an existing buffer.
    pub const fn from_vec(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }

    /// Forgets what was written and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
    }

    /// Bytes written.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// True when nothing was written.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// What was written.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What was written, as an owned buffer.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Appends bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Appends a byte.
    pub fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    /// Appends 2 bytes.
    pub fn u16(&mut self, value: u16) {
        self.raw(&value.to_le_bytes());
    }

    /// Appends 4 bytes.
    pub fn u32(&mut self, value: u32) {
        self.raw(&value.to_le_bytes());
    }

    /// Appends 4 bytes.
    pub fn i32(&mut self, value: i32) {
        self.raw(&value.to_le_bytes());
    }

    /// Appends 8 bytes.
    pub fn u64(&mut self, value: u64) {
        self.raw(&value.to_le_bytes());
    }

    /// Appends the length of `bytes` and the bytes.
    ///
    /// # Errors
    /// [`EncodeError::TooLong`] over `limit` bytes.
    pub fn blob(
        &mut self,
        field: &'static str,
        bytes: &[u8],
        limit: u32,
    ) -> Result<(), EncodeError> {
        self.length(field, bytes.len(), limit)?;
        self.raw(bytes);
        Ok(())
    }

    /// Appends the length in bytes of `text` and the text.
    ///
    /// # Errors
    /// [`EncodeError::TooLong`] over `limit` bytes.
    pub fn str(&mut self, field: &'static str, text: &str, limit: u32) -> Result<(), EncodeError> {
        self.blob(field, text.as_bytes(), limit)
    }

    /// Appends a length or count as `u32`.
    ///
    /// # Errors
    /// [`EncodeError::TooLong`] over `limit`.
    pub fn length(
        &mut self,
        field: &'static str,
        length: usize,
        limit: u32,
    ) -> Result<(), EncodeError> {
        match u32::try_from(length) {
            Ok(value) if value <= limit => {
                self.u32(value);
                Ok(())
            }
            _ => Err(EncodeError::TooLong {
                field,
                got: length as u64,
                limit: limit.into(),
            }),
        }
    }

    /// Overwrites 4 bytes at `at`, which a length took when it was not known yet. Outside of what was written it does
    /// nothing.
    pub(crate) fn patch_u32(&mut self, at: usize, value: u32) {
        if let Some(slot) = self
            .bytes
            .get_mut(at..)
            .and_then(|tail| tail.first_chunk_mut::<4>())
        {
            *slot = value.to_le_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_checked_before_the_bytes_are_taken() {
        let mut reader = Reader::new(&[0xff, 0xff, 0xff, 0xff]);
        assert_eq!(
            reader.blob("x", 16),
            Err(DecodeError::TooLong {
                field: "x",
                got: u64::from(u32::MAX),
                limit: 16
            })
        );
        let mut reader = Reader::new(&[5, 0, 0, 0, 1, 2]);
        assert_eq!(
            reader.blob("x", 16),
            Err(DecodeError::Truncated {
                field: "x",
                needed: 5,
                available: 2
            })
        );
    }

    #[test]
    fn a_failed_read_leaves_the_rest() {
        let mut reader = Reader::new(&[1, 2, 3]);
        assert!(reader.u64("x").is_err());
        assert_eq!(reader.rest(), &[1, 2, 3]);
        assert_eq!(reader.remaining(), 0);
    }

    #[test]
    fn text_has_to_be_utf8() {
        let mut reader = Reader::new(&[3, 0, 0, 0, b'a', 0xff, b'b']);
        assert_eq!(
            reader.str("x", 8),
            Err(DecodeError::NotUtf8 {
                field: "x",
                valid_up_to: 1
            })
        );
    }

    #[test]
    fn a_patch_outside_does_nothing() {
        let mut writer = Writer::from_vec(vec![1, 2, 3]);
        writer.patch_u32(0, 7);
        writer.patch_u32(9, 7);
        assert_eq!(writer.as_bytes(), &[1, 2, 3]);
        writer.u8(4);
        writer.patch_u32(0, 7);
        assert_eq!(writer.into_bytes(), [7, 0, 0, 0]);
    }
}
