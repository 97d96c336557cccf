//! Task arguments: what a submit takes a snapshot of.

use std::sync::Arc;

use bytes::Bytes;
use echelon_wire::tensor::TensorMeta;
use smallvec::SmallVec;

use crate::buffer::RemoteBuffer;
use crate::error::Error;
use crate::memory::HostMemory;
use crate::tensor::{Tag, Tensor};

/// Where the bytes of an argument come from.
#[derive(Clone, Debug)]
pub enum ArgSource {
    /// Shared memory: `Orchestrator::alloc`, or an argument that is forwarded.
    Tensor(Tensor),
    /// Memory of this process, such as a numpy array: pinned, staged in and out (design §15.2).
    Host(HostMemory),
    /// Bytes that travel with the task.
    Inline(Bytes),
    /// A range of a remote buffer.
    Remote {
        /// The handle.
        buffer: RemoteBuffer,
        /// First byte in it.
        offset: u64,
    },
}

/// One tensor argument.
#[derive(Clone, Debug)]
pub struct TensorArg {
    /// Shape and element type.
    pub meta: TensorMeta,
    /// The bytes.
    pub source: ArgSource,
    /// How the task uses them.
    pub tag: Tag,
}

impl TensorArg {
    /// Size in bytes. Constructors checked that it does not overflow.
    #[must_use]
    pub fn nbytes(&self) -> u64 {
        self.meta.nbytes().unwrap_or(0)
    }
}

/// The arguments of one task. Every field is checked when it is added, so that a mistake is reported where it is made.
///
/// A clone is a snapshot and costs a counter: the fields are copied only when one of two clones is changed.
#[derive(Clone, Debug, Default)]
pub struct TaskArgs(Option<Arc<Fields>>);

/// One allocation holds what most tasks have.
#[derive(Clone, Debug, Default)]
struct Fields {
    tensors: SmallVec<[TensorArg; 1]>,
    scalars: SmallVec<[u64; 2]>,
}

impl TaskArgs {
    /// No arguments.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Tensor arguments in order.
    #[must_use]
    pub fn tensors(&self) -> &[TensorArg] {
        self.0.as_ref().map_or(&[], |fields| &fields.tensors)
    }

    /// Scalar arguments in order.
    #[must_use]
    pub fn scalars(&self) -> &[u64] {
        self.0.as_ref().map_or(&[], |fields| &fields.scalars)
    }

    /// Adds a tensor in shared memory.
    ///
    /// # Errors
    /// [`Error::Argument`] when the tag writes and the tensor is read-only, or beyond 4,096 tensors.
    pub fn add_tensor(&mut self, tensor: &Tensor, tag: Tag) -> Result<&mut Self, Error> {
        if tag.writes() && tensor.is_read_only() {
            return Err(Error::argument(
                "tag",
                format!(
                    "{} writes, and the tensor is read-only here; use INPUT or another tensor",
                    tag.name()
                ),
            ));
        }
        self.push(TensorArg {
            meta: *tensor.meta(),
            source: ArgSource::Tensor(tensor.clone()),
            tag,
        })
    }

    /// Adds memory of this process; `memory` must be exactly the tensor's size.
    ///
    /// # Errors
    /// [`Error::Argument`] for a wrong size, for a written tag on read-only memory, or beyond 4,096 tensors.
    pub fn add_host(
        &mut self,
        memory: HostMemory,
        meta: TensorMeta,
        tag: Tag,
    ) -> Result<&mut Self, Error> {
        check_size("array", &meta, memory.len() as u64)?;
        if tag.writes() && !memory.is_writable() {
            return Err(Error::argument(
                "tag",
                format!(
                    "{} writes, and the array is read-only; use INPUT or a writable copy",
                    tag.name()
                ),
            ));
        }
        self.push(TensorArg {
            meta,
            source: ArgSource::Host(memory),
            tag,
        })
    }

    /// Adds bytes that travel with the task; INPUT only (design §15.3).
    ///
    /// # Errors
    /// [`Error::Type`] for another tag, [`Error::Argument`] for a wrong size.
    pub fn add_inline(
        &mut self,
        bytes: Bytes,
        meta: TensorMeta,
        tag: Tag,
    ) -> Result<&mut Self, Error> {
        check_size("host_inline", &meta, bytes.len() as u64)?;
        if tag != Tag::Input {
            return Err(Error::wrong_type(
                "tag",
                format!(
                    "{} on host_inline bytes: what a task writes there is thrown away; use remote_malloc and a \
                     RemoteTensorRef, and orch.copy to bring the result back",
                    tag.name()
                ),
            ));
        }
        self.push(TensorArg {
            meta,
            source: ArgSource::Inline(bytes),
            tag,
        })
    }

    /// Adds a range of a remote buffer, or of an import.
    ///
    /// # Errors
    /// [`Error::Handle`] when it was released or the access mask does not cover the tag, [`Error::Argument`] when the
    /// range is outside the buffer.
    pub fn add_remote(
        &mut self,
        buffer: &RemoteBuffer,
        offset: u64,
        meta: TensorMeta,
        tag: Tag,
    ) -> Result<&mut Self, Error> {
        let nbytes = size_of(&meta)?;
        buffer.check_live("tensor")?;
        buffer.check_tag(tag)?;
        buffer.check_range("tensor", offset, nbytes)?;
        self.push(TensorArg {
            meta,
            source: ArgSource::Remote {
                buffer: buffer.clone(),
                offset,
            },
            tag,
        })
    }

    /// Adds a scalar.
    ///
    /// # Errors
    /// [`Error::Argument`] beyond 4,096 scalars.
    pub fn add_scalar(&mut self, value: u64) -> Result<&mut Self, Error> {
        self.add_scalars(&[value])
    }

    /// Adds scalars; all or none.
    ///
    /// # Errors
    /// As [`TaskArgs::add_scalar`].
    pub fn add_scalars(&mut self, values: &[u64]) -> Result<&mut Self, Error> {
        if self.scalars().len() + values.len() > echelon_wire::limits::MAX_SCALARS as usize {
            return Err(too_many("scalars", echelon_wire::limits::MAX_SCALARS));
        }
        if !values.is_empty() {
            self.fields().scalars.extend_from_slice(values);
        }
        Ok(self)
    }

    /// The same tensor argument, at another place.
    pub(crate) fn move_tensor(&mut self, index: usize, source: ArgSource) {
        if let Some(arg) = self.fields().tensors.get_mut(index) {
            arg.source = source;
        }
    }

    fn push(&mut self, arg: TensorArg) -> Result<&mut Self, Error> {
        if self.tensors().len() >= echelon_wire::limits::MAX_TENSORS as usize {
            return Err(too_many("tensors", echelon_wire::limits::MAX_TENSORS));
        }
        self.fields().tensors.push(arg);
        Ok(self)
    }

    /// The fields to change; those of a snapshot stay as they are.
    fn fields(&mut self) -> &mut Fields {
        Arc::make_mut(self.0.get_or_insert_with(Arc::default))
    }
}

fn too_many(what: &'static str, limit: u32) -> Error {
    Error::argument(
        what,
        format!("a task takes at most {limit}; pack them into fewer"),
    )
}

fn size_of(meta: &TensorMeta) -> Result<u64, Error> {
    meta.nbytes()
        .ok_or_else(|| Error::argument("shape", "its size in bytes overflows 64 bits"))
}

fn check_size(what: &'static str, meta: &TensorMeta, got: u64) -> Result<(), Error> {
    let wanted = size_of(meta)?;
    if wanted == got {
        return Ok(());
    }
    Err(Error::argument(
        what,
        format!(
            "{got} bytes given, and shape {:?} of {} takes {wanted}; make them agree",
            meta.shape(),
            meta.dtype().name()
        ),
    ))
}

#[cfg(test)]
mod tests {
    use echelon_wire::tensor::DataType;

    use super::*;

    #[test]
    fn section_15_15_a_snapshot_does_not_change_with_its_origin() {
        let meta = TensorMeta::new(&[4], DataType::Uint8).unwrap();
        let memory = HostMemory::from_vec(vec![0; 4]);
        let mut args = TaskArgs::new();
        let empty = args.clone();
        args.add_host(memory.clone(), meta, Tag::Input).unwrap();
        args.add_scalar(7).unwrap();
        let first = args.clone();
        let shared = std::ptr::eq(first.tensors(), args.tensors());
        assert!(shared, "an unchanged snapshot is no copy");
        args.add_host(memory, meta, Tag::Output).unwrap();
        args.add_scalar(8).unwrap();
        let counts = |args: &TaskArgs| (args.tensors().len(), args.scalars().to_vec());
        assert_eq!(counts(&empty), (0, vec![]));
        assert_eq!(counts(&first), (1, vec![7]));
        assert_eq!(counts(&args), (2, vec![7, 8]));
    }
}
