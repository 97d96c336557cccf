//! Element types and the 44-byte tensor record.

use crate::codec::{Decode, Encode, Reader, Writer};
use crate::error::{DecodeError, EncodeError, RuleViolation};
use crate::frame::Features;
use crate::limits::MAX_TENSOR_DIMS;
use crate::task::Carrier;

/// Element type of a tensor. The numbers are those of the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum DataType {
    /// 4-byte IEEE float.
    Float32 = 0,
    /// 2-byte IEEE float.
    Float16 = 1,
    /// 4-byte signed integer.
    Int32 = 2,
    /// 2-byte signed integer.
    Int16 = 3,
    /// 1-byte signed integer.
    Int8 = 4,
    /// 1-byte unsigned integer.
    Uint8 = 5,
    /// 2-byte float with the exponent of float32.
    Bfloat16 = 6,
    /// 8-byte signed integer.
    Int64 = 7,
    /// 8-byte unsigned integer.
    Uint64 = 8,
    /// 2-byte unsigned integer.
    Uint16 = 9,
    /// 4-byte unsigned integer.
    Uint32 = 10,
    /// 1-byte truth value. Some v1 sessions refuse it; accepted here on both ends.
    Bool = 11,
    /// 8-byte IEEE float. Not in version 1: legal in a mailbox, and on the wire with the extension `float64`.
    Float64 = 12,
}

impl DataType {
    /// All element types in the order of their codes.
    pub const ALL: [Self; 13] = [
        Self::Float32,
        Self::Float16,
        Self::Int32,
        Self::Int16,
        Self::Int8,
        Self::Uint8,
        Self::Bfloat16,
        Self::Int64,
        Self::Uint64,
        Self::Uint16,
        Self::Uint32,
        Self::Bool,
        Self::Float64,
    ];

    /// Code on the wire: 0..=11 in version 1, 12 with the extension `float64`.
    pub const fn code(self) -> u32 {
        self as u32
    }

    /// The type of a code, `None` for an unknown one.
    pub fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.code() == code)
    }

    /// True when `carrier` can name it.
    pub const fn fits(self, carrier: Carrier) -> bool {
        !matches!(self, Self::Float64) || carrier.has(Features::FLOAT64)
    }

    /// Bytes of one element.
    pub const fn element_bytes(self) -> u64 {
        match self {
            Self::Int8 | Self::Uint8 | Self::Bool => 1,
            Self::Float16 | Self::Int16 | Self::Bfloat16 | Self::Uint16 => 2,
            Self::Float32 | Self::Int32 | Self::Uint32 => 4,
            Self::Int64 | Self::Uint64 | Self::Float64 => 8,
        }
    }

    /// Name in lower case, as in messages and in Python.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Float16 => "float16",
            Self::Int32 => "int32",
            Self::Int16 => "int16",
            Self::Int8 => "int8",
            Self::Uint8 => "uint8",
            Self::Bfloat16 => "bfloat16",
            Self::Int64 => "int64",
            Self::Uint64 => "uint64",
            Self::Uint16 => "uint16",
            Self::Uint32 => "uint32",
            Self::Bool => "bool",
            Self::Float64 => "float64",
        }
    }

    /// The type of a [`DataType::name`].
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }
}

impl std::fmt::Display for DataType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Shape and element type of a contiguous row-major tensor; where its bytes are is said elsewhere.
///
/// | offset | type | field | rule |
/// |---:|---|---|---|
/// | 0 | u64 | data | 0: a pointer never crosses a process |
/// | 8 | 5 × u32 | shape | words from `ndims` on: written as 0, ignored on receipt (R-245) |
/// | 28 | u32 | ndims | 1..=5 |
/// | 32 | u32 | dtype | 0..=11; 12 in a mailbox and with the extension `float64` |
/// | 36 | u8 | child_memory | 0 or 1 |
/// | 37 | 7 × u8 | reserved | 0 |
///
/// The record alone admits shapes whose size overflows; a task refuses them by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TensorMeta {
    shape: [u32; MAX_TENSOR_DIMS],
    ndims: u32,
    dtype: DataType,
    child_memory: bool,
}

impl TensorMeta {
    /// A tensor of `shape` (1 to 5 extents in elements, zero allowed).
    ///
    /// # Errors
    /// [`EncodeError`] when the rank is not 1..=5 or the size in bytes exceeds `u64`.
    pub fn new(shape: &[u32], dtype: DataType) -> Result<Self, EncodeError> {
        let mut words = [0; MAX_TENSOR_DIMS];
        for (word, extent) in words.iter_mut().zip(shape) {
            *word = *extent;
        }
        let ndims = u32::try_from(shape.len()).unwrap_or(u32::MAX);
        check_ndims(ndims)?;
        let meta = Self {
            shape: words,
            ndims,
            dtype,
            child_memory: false,
        };
        meta.check_extent()?;
        Ok(meta)
    }

    /// The same tensor, marked as living in memory of the child that runs the task.
    #[must_use]
    pub const fn with_child_memory(mut self, child_memory: bool) -> Self {
        self.child_memory = child_memory;
        self
    }

    /// Extents in elements, outermost first.
    pub fn shape(&self) -> &[u32] {
        let (used, _) = self
            .shape
            .split_at_checked(self.ndims as usize)
            .unwrap_or((&self.shape, &[]));
        used
    }

    /// Number of dimensions, 1..=5.
    pub const fn ndims(&self) -> u32 {
        self.ndims
    }

    /// Element type.
    pub const fn dtype(&self) -> DataType {
        self.dtype
    }

    /// True when the bytes live in memory of the child that runs the task.
    pub const fn child_memory(&self) -> bool {
        self.child_memory
    }

    /// Size in bytes; `None` when it exceeds `u64`. A zero extent makes it 0 whatever the others are.
    pub fn nbytes(&self) -> Option<u64> {
        if self.shape().contains(&0) {
            return Some(0);
        }
        self.shape()
            .iter()
            .try_fold(self.dtype.element_bytes(), |bytes, extent| {
                bytes.checked_mul(u64::from(*extent))
            })
    }

    /// Refuses an element type that `carrier` cannot name.
    pub(crate) fn check_dtype(&self, carrier: Carrier) -> Result<(), RuleViolation> {
        if self.dtype.fits(carrier) {
            return Ok(());
        }
        Err(RuleViolation::new(
            "Tensor.dtype",
            self.dtype.code(),
            "version 1 has no float64; send it as int64 and view it as float64 there",
        ))
    }

    /// Refuses a size that exceeds `u64`.
    pub(crate) fn check_extent(&self) -> Result<u64, RuleViolation> {
        self.nbytes().ok_or_else(|| RuleViolation {
            field: "Tensor.nbytes",
            got: self
                .shape()
                .iter()
                .fold(i128::from(self.dtype.element_bytes()), |bytes, extent| {
                    bytes.saturating_mul(i128::from(*extent))
                }),
            rule: "shape and element size together exceed 2^64-1 bytes",
        })
    }
}

fn check_ndims(ndims: u32) -> Result<(), RuleViolation> {
    if (1..=MAX_TENSOR_DIMS as u32).contains(&ndims) {
        return Ok(());
    }
    Err(RuleViolation::new(
        "Tensor.ndims",
        ndims,
        "a tensor has 1 to 5 dimensions",
    ))
}

impl Encode for TensorMeta {
    fn encode(&self, writer: &mut Writer) -> Result<(), EncodeError> {
        writer.u64(0);
        for (index, word) in self.shape.iter().enumerate() {
            writer.u32(if index < self.ndims as usize {
                *word
            } else {
                0
            });
        }
        writer.u32(self.ndims);
        writer.u32(self.dtype.code());
        writer.u8(u8::from(self.child_memory));
        writer.raw(&[0; 7]);
        Ok(())
    }
}

impl<'a> Decode<'a> for TensorMeta {
    const NAME: &'static str = "Tensor";

    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Self::read_for(reader, Carrier::V1)
    }
}

impl TensorMeta {
    /// Reads the record as `carrier` allows it.
    ///
    /// # Errors
    /// [`DecodeError`] for the first field that is wrong.
    pub fn read_for(reader: &mut Reader<'_>, carrier: Carrier) -> Result<Self, DecodeError> {
        let data = reader.u64("Tensor.data")?;
        if data != 0 {
            return Err(RuleViolation::new(
                "Tensor.data",
                data,
                "a pointer must not be sent, it must be 0",
            )
            .into());
        }
        let mut shape = [0; MAX_TENSOR_DIMS];
        for word in &mut shape {
            *word = reader.u32("Tensor.shape")?;
        }
        let ndims = reader.u32("Tensor.ndims")?;
        check_ndims(ndims)?;
        for word in shape.iter_mut().skip(ndims as usize) {
            *word = 0;
        }
        let code = reader.u32("Tensor.dtype")?;
        let dtype = DataType::from_code(code).filter(|dtype| dtype.fits(carrier));
        let dtype = DecodeError::known(dtype, "Tensor.dtype", code)?;
        let child_memory = match reader.u8("Tensor.child_memory")? {
            0 => false,
            1 => true,
            got => {
                return Err(
                    RuleViolation::new("Tensor.child_memory", got, "it must be 0 or 1").into(),
                )
            }
        };
        if reader.array::<7>("Tensor.reserved")? != [0; 7] {
            return Err(DecodeError::NonZeroReserved {
                field: "Tensor.reserved",
            });
        }
        Ok(Self {
            shape,
            ndims,
            dtype,
            child_memory,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// words beyond the rank are zero on our wire and ignored on receipt.
    #[test]
    fn r_245_words_beyond_the_rank() {
        let meta = TensorMeta::new(&[2, 3], DataType::Int16).expect("valid");
        let bytes = meta.to_bytes().expect("encodes");
        let mut dirty = bytes.clone();
        dirty[16..28].fill(0xa5);
        let read = TensorMeta::decode(&dirty).expect("ignored");
        assert_eq!(read, meta);
        assert_eq!(read.to_bytes().expect("encodes"), bytes);
    }

    /// an extent that overflows is refused by name.
    #[test]
    fn r_074_overflow_is_refused_by_name() {
        let error = TensorMeta::new(&[u32::MAX; 5], DataType::Float32).expect_err("overflows");
        assert!(error.to_string().contains("Tensor.nbytes"), "{error}");
        let edge = TensorMeta::new(&[u32::MAX, u32::MAX], DataType::Uint8).expect("fits");
        assert_eq!(
            edge.nbytes(),
            Some(u64::from(u32::MAX) * u64::from(u32::MAX))
        );
        assert!(TensorMeta::new(&[u32::MAX, u32::MAX], DataType::Int16).is_err());
        let empty = TensorMeta::new(&[u32::MAX, u32::MAX, u32::MAX, 0], DataType::Int64)
            .expect("zero extent");
        assert_eq!(empty.nbytes(), Some(0));
    }

    #[test]
    fn rank_is_one_to_five() {
        assert!(TensorMeta::new(&[], DataType::Int8).is_err());
        assert!(TensorMeta::new(&[1; 6], DataType::Int8).is_err());
        assert_eq!(
            TensorMeta::new(&[1; 5], DataType::Int8)
                .expect("valid")
                .shape(),
            &[1; 5]
        );
    }

    #[test]
    fn codes_and_names_are_one_to_one() {
        for (code, dtype) in DataType::ALL.into_iter().enumerate() {
            assert_eq!(dtype.code() as usize, code);
            assert_eq!(DataType::from_code(dtype.code()), Some(dtype));
            assert_eq!(DataType::from_name(dtype.name()), Some(dtype));
        }
        assert_eq!(DataType::from_code(13), None);
    }

    /// Version 1 has no code for float64: neither end of a v1 lane accepts it, a mailbox and the extension do.
    #[test]
    fn float64_needs_a_mailbox_or_the_extension() {
        let meta = TensorMeta::new(&[4], DataType::Float64).expect("valid");
        assert_eq!(meta.nbytes(), Some(32));
        let bytes = meta.to_bytes().expect("encodes");
        assert!(TensorMeta::decode(&bytes).is_err());
        for carrier in [Carrier::Mailbox, Carrier::Wire(Features::FLOAT64)] {
            assert!(meta.check_dtype(carrier).is_ok());
            let read = TensorMeta::read_for(&mut Reader::new(&bytes), carrier).expect("accepted");
            assert_eq!(read, meta);
        }
        for carrier in [Carrier::V1, Carrier::Wire(Features::TASK_TAGS)] {
            let error = meta.check_dtype(carrier).expect_err("refused");
            assert!(error.to_string().contains("float64"), "{error}");
        }
    }
}
