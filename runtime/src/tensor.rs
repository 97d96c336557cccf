//! Local tensors: a shape over memory that this process has mapped.
//!
//! One type serves both ends of a task: `Orchestrator::alloc` returns a [`Tensor`], and a callable sees its
//! arguments as [`Tensor`]s which it may forward to tasks of its own.

use std::any::Any;
use std::sync::Arc;

use echelon_wire::buffer::AccessFlags;
use echelon_wire::tensor::TensorMeta;

use crate::error::Error;
use crate::graph::Space;
use crate::memory::{HostMemory, SharedRegion};

/// How a task uses an argument (design §4). The discriminants are the codes of the mailbox and of `task_tags`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Tag {
    /// The task reads it.
    Input = 0,
    /// The task writes it; what was there before is undefined for the task.
    Output = 1,
    /// The task reads and writes it.
    InOut = 2,
    /// The task writes parts of it; the rest keeps its value, but the task is not ordered as a reader.
    OutputExisting = 3,
    /// The task orders its accesses by itself; no dependency is inferred.
    NoDep = 4,
}

impl Tag {
    /// All tags, in the order of their codes.
    pub const ALL: [Self; 5] = [
        Self::Input,
        Self::Output,
        Self::InOut,
        Self::OutputExisting,
        Self::NoDep,
    ];

    /// The tag of a code, `None` when there is no such tag.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }

    /// True when a task may write through this tag.
    #[must_use]
    pub fn writes(self) -> bool {
        self != Self::Input
    }

    /// The access to a remote buffer that the tag asks for (design §7, R-109).
    #[must_use]
    pub fn needs(self) -> AccessFlags {
        match self {
            Self::Input => AccessFlags::READ,
            Self::Output | Self::OutputExisting => AccessFlags::WRITE,
            Self::InOut | Self::NoDep => AccessFlags::READ_WRITE,
        }
    }

    /// The name that users write.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Input => "INPUT",
            Self::Output => "OUTPUT",
            Self::InOut => "INOUT",
            Self::OutputExisting => "OUTPUT_EXISTING",
            Self::NoDep => "NO_DEP",
        }
    }
}

/// Keeps something alive as long as a tensor that needs it: an arena block, a mapped buffer.
pub type Lease = Arc<dyn Any + Send + Sync>;

/// A C-contiguous tensor in shared memory of this process.
#[derive(Clone)]
pub struct Tensor {
    meta: TensorMeta,
    region: Arc<SharedRegion>,
    offset: u64,
    lease: Option<Lease>,
    read_only: bool,
}

impl Tensor {
    /// A tensor at `offset` bytes into `region`. `lease` is held as long as the tensor.
    ///
    /// # Errors
    /// [`Error::Argument`] when the tensor does not lie inside the region, or its size overflows.
    pub fn new(
        meta: TensorMeta,
        region: Arc<SharedRegion>,
        offset: u64,
        lease: Option<Lease>,
        read_only: bool,
    ) -> Result<Self, Error> {
        let nbytes = meta
            .nbytes()
            .ok_or_else(|| Error::argument("tensor", "its size in bytes overflows 64 bits"))?;
        let end = offset.checked_add(nbytes);
        if end.is_none_or(|end| end > region.len()) {
            return Err(Error::argument(
                "tensor",
                format!(
                    "{nbytes} bytes at offset {offset} do not fit a region of {} bytes",
                    region.len()
                ),
            ));
        }
        let read_only = read_only || !region.is_writable();
        Ok(Self {
            meta,
            region,
            offset,
            lease,
            read_only,
        })
    }

    /// Shape and element type.
    #[must_use]
    pub fn meta(&self) -> &TensorMeta {
        &self.meta
    }

    /// Size in bytes.
    #[must_use]
    pub fn nbytes(&self) -> u64 {
        // `new` refused a size that overflows.
        self.meta.nbytes().unwrap_or(0)
    }

    /// The region that holds the bytes.
    #[must_use]
    pub fn region(&self) -> &Arc<SharedRegion> {
        &self.region
    }

    /// Offset of the first byte in the region.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// True when views of it must not be written.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// `count` rows from row `first`: a tensor over a part of the same bytes.
    ///
    /// # Errors
    /// [`Error::Argument`] when there are fewer rows.
    pub fn rows(&self, first: u32, count: u32) -> Result<Self, Error> {
        let shape = self.meta.shape();
        let rows = shape.first().copied().unwrap_or(0);
        if first.checked_add(count).is_none_or(|end| end > rows) {
            return Err(Error::argument(
                "rows",
                format!("{count} rows from row {first}, and there are {rows}"),
            ));
        }
        let row_bytes = if rows == 0 {
            0
        } else {
            self.nbytes() / u64::from(rows)
        };
        let mut part = shape.to_vec();
        if let Some(leading) = part.first_mut() {
            *leading = count;
        }
        let meta = TensorMeta::new(&part, self.meta.dtype())
            .map_err(|error| Error::argument("rows", error.to_string()))?;
        Ok(Self {
            meta,
            offset: self.offset + u64::from(first) * row_bytes,
            ..self.clone()
        })
    }

    /// The same bytes, read-only.
    #[must_use]
    pub fn as_read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// The memory identity of the tensor for the dependency map.
    #[must_use]
    pub fn space(&self) -> Space {
        Space::Region(self.region.id())
    }

    /// The bytes, pinned: the returned value keeps region and lease alive.
    ///
    /// # Errors
    /// [`Error::Memory`] when the region does not cover the tensor; `new` rules that out.
    pub fn memory(&self) -> Result<HostMemory, Error> {
        let mut memory = self.region.host(self.offset, self.nbytes())?;
        if self.read_only {
            memory = memory.as_read_only();
        }
        Ok(match &self.lease {
            Some(lease) => {
                memory.with_owner(Arc::new((Arc::clone(&self.region), Arc::clone(lease))))
            }
            None => memory,
        })
    }

    /// What keeps the bytes alive besides the region.
    #[must_use]
    pub fn lease(&self) -> Option<&Lease> {
        self.lease.as_ref()
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tensor")
            .field("shape", &self.meta.shape())
            .field("dtype", &self.meta.dtype())
            .field("read_only", &self.read_only)
            .finish_non_exhaustive()
    }
}

/// What a callable sees of one task: its tensors, scalars and configuration.
#[derive(Clone, Debug)]
pub struct TaskView {
    /// Tensor arguments in the order of `add_tensor`.
    pub tensors: Vec<Tensor>,
    /// Tags where the carrier transmits them; `None` on a command lane without `task_tags` (slr3-v1 §4.2), and for an empty
    /// tensor that came without a descriptor.
    pub tags: Vec<Option<Tag>>,
    /// Scalar arguments.
    pub scalars: Vec<u64>,
    /// The call configuration.
    pub config: echelon_wire::call_config::CallConfig,
}
