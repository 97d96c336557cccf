//! `TaskArgs`: what a task is given, on both ends.

use std::mem;

use echelon_runtime::args::TaskArgs;
use echelon_runtime::error::Error;
use echelon_runtime::memory::HostMemory;
use echelon_runtime::tensor::{Tag, TaskView, Tensor};
use echelon_wire::tensor::{DataType, TensorMeta};
use parking_lot::Mutex;
use pyo3::exceptions::{PyIndexError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use smallvec::SmallVec;

use crate::buffer::DrainOnDrop;
use crate::remote_tensor_ref::{Backing, PyRemoteTensorRef};
use crate::tensor::PyTensor;
use crate::{buffer, convert};

/// The two lives of arguments.
enum Side {
    /// Being put together, with the Python objects in order.
    Building(Building),
    /// Received by a callable.
    Received(TaskView),
}

impl Side {
    fn scalars(&self) -> &[u64] {
        match self {
            Self::Building(building) => building.args.scalars(),
            Self::Received(view) => &view.scalars,
        }
    }
}

#[derive(Default)]
struct Building {
    args: TaskArgs,
    objects: SmallVec<[Py<PyAny>; 2]>,
}

/// A tensor that was looked at and may be added.
enum Checked<'a> {
    Tensor(&'a Tensor),
    Reference(&'a PyRemoteTensorRef),
    Host(HostMemory, TensorMeta),
}

impl<'a> Checked<'a> {
    fn new(x: &'a Bound<'_, PyAny>, dtype: Option<DataType>) -> PyResult<Self> {
        if let Ok(tensor) = x.cast::<PyTensor>() {
            refuse_dtype(dtype)?;
            return Ok(Self::Tensor(tensor.get().inner()));
        }
        if let Ok(reference) = x.cast::<PyRemoteTensorRef>() {
            refuse_dtype(dtype)?;
            return Ok(Self::Reference(reference.get()));
        }
        let host = buffer::pin_any("tensor", x)?;
        let meta = host.meta("tensor", dtype)?;
        Ok(Self::Host(host.memory, meta))
    }
}

impl Building {
    /// Adds a tensor. Does not call into Python.
    fn add(&mut self, tensor: Checked<'_>, tag: Tag, object: Py<PyAny>) -> Result<(), Error> {
        match tensor {
            Checked::Tensor(tensor) => self.args.add_tensor(tensor, tag)?,
            Checked::Host(memory, meta) => self.args.add_host(memory, meta, tag)?,
            Checked::Reference(reference) => match &reference.backing {
                Backing::Remote { buffer, offset } => {
                    self.args.add_remote(buffer, *offset, reference.meta, tag)?
                }
                Backing::Inline(bytes) => {
                    self.args.add_inline(bytes.clone(), reference.meta, tag)?
                }
            },
        };
        self.objects.push(object);
        Ok(())
    }
}

/// The arguments of one task: tensors with tags, and scalars.
///
/// A submit takes a snapshot: the object may be changed and submitted again. A callable receives one too, as `args`, and may
/// hand it on to tasks of its own.
#[pyclass(frozen, module = "echelon._core", name = "TaskArgs")]
pub(crate) struct PyTaskArgs(Mutex<Side>, DrainOnDrop);

impl PyTaskArgs {
    fn building(building: Building) -> Self {
        Self(Mutex::new(Side::Building(building)), DrainOnDrop)
    }

    /// What a callable receives.
    pub(crate) fn received(view: TaskView) -> Self {
        Self(Mutex::new(Side::Received(view)), DrainOnDrop)
    }

    /// The arguments to submit.
    pub(crate) fn snapshot(&self, py: Python<'_>) -> PyResult<TaskArgs> {
        self.look(py, TaskArgs::clone)
    }

    /// Looks at the arguments to submit. `look` runs under the lock: it must neither call into Python nor wait.
    pub(crate) fn look<R>(&self, py: Python<'_>, look: impl FnOnce(&TaskArgs) -> R) -> PyResult<R> {
        let view = match &*self.0.lock() {
            Side::Building(building) => return Ok(look(&building.args)),
            Side::Received(view) => view.clone(),
        };
        // Without the lock: what goes wrong here becomes a Python exception (P-2).
        forward(py, &view).map(|args| look(&args))
    }

    fn tensor_count(&self) -> usize {
        match &*self.0.lock() {
            Side::Building(building) => building.args.tensors().len(),
            Side::Received(view) => view.tensors.len(),
        }
    }

    fn tag_at(&self, index: usize) -> Option<Tag> {
        match &*self.0.lock() {
            Side::Building(building) => building.args.tensors().get(index).map(|arg| arg.tag),
            Side::Received(view) => view.tags.get(index).copied().flatten(),
        }
    }

    /// Changes the arguments. `change` runs under the lock and must not call into Python.
    fn edit<R>(
        &self,
        py: Python<'_>,
        change: impl FnOnce(&mut Building) -> Result<R, Error>,
    ) -> PyResult<R> {
        let result = {
            let mut side = self.0.lock();
            match &mut *side {
                Side::Building(building) => Some(change(building)),
                Side::Received(_) => None,
            }
        };
        match result {
            Some(result) => result.map_err(convert::raise(py)),
            None => Err(PyTypeError::new_err(
                "these arguments were received by a callable and cannot be changed; make a new TaskArgs",
            )),
        }
    }
}

#[pymethods]
impl PyTaskArgs {
    #[new]
    fn new() -> Self {
        Self::building(Building::default())
    }

    /// Arguments in one call: `TaskArgs.of((a, INPUT), (b, OUTPUT), scalars=(3, 4))`. The quickest way to make them.
    ///
    /// Args:
    ///     tensors: pairs of a tensor and its `TensorArgType`, given as a member or by its name (`"inout"`), each as for `add_tensor`: a `Tensor` or a `RemoteTensorRef` of 1
    ///         to 5 dimensions, or anything C-contiguous with the buffer protocol; at most 4,096.
    ///     scalars: ints of 64 bits, each as for `add_scalar`; at most 4,096.
    ///
    /// Raises as `add_tensor` and `add_scalar`; TypeError for an argument that is no pair.
    #[staticmethod]
    #[pyo3(signature = (*tensors, scalars=None))]
    fn of(tensors: &Bound<'_, PyTuple>, scalars: Option<&Bound<'_, PyAny>>) -> PyResult<Self> {
        let py = tensors.py();
        let mut building = Building::default();
        match fill(&mut building, tensors, scalars) {
            Ok(()) => Ok(Self::building(building)),
            Err(refused) => {
                // What was refused is pinned no longer.
                drop(building);
                buffer::drain(py);
                Err(refused)
            }
        }
    }

    /// Adds a tensor; returns the object itself.
    ///
    /// Args:
    ///     x: a `Tensor`, a `RemoteTensorRef`, or anything C-contiguous with the buffer protocol, such as a numpy array. An
    ///         array is read when the task becomes ready, and written back before tasks that depend on it start.
    ///     tag: a `TensorArgType`: how the task uses it.
    ///     dtype: another element type of the same size for an array, such as BFLOAT16 for uint16.
    ///
    /// Raises TypeError for another kind of object, ValueError for memory that is not contiguous or is read-only and
    /// written by the task, HandleError for a released handle or one without the access.
    #[pyo3(signature = (x, tag, *, dtype=None))]
    fn add_tensor<'py>(
        slf: &Bound<'py, Self>,
        x: &Bound<'py, PyAny>,
        tag: &Bound<'py, PyAny>,
        dtype: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, Self>> {
        let py = slf.py();
        let tag = convert::tag_from_py(tag)?;
        let dtype = dtype.map(convert::dtype_from_py).transpose()?;
        let checked = Checked::new(x, dtype);
        let object = x.clone().unbind();
        let added = checked.and_then(|tensor| {
            slf.get()
                .edit(py, |building| building.add(tensor, tag, object))
        });
        if added.is_err() {
            // A refused array is pinned no longer.
            buffer::drain(py);
        }
        added.map(|()| slf.clone())
    }

    /// Adds a scalar of 64 bits; returns the object itself.
    ///
    /// Args:
    ///     value: an int from 0 to 2^64-1. A negative one down to -2^63 is sent as its two's complement, and a worker's
    ///         `args.scalar(i)` gives the unsigned number.
    ///
    /// Raises TypeError for another type, ValueError outside the range.
    fn add_scalar<'py>(
        slf: &Bound<'py, Self>,
        value: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, Self>> {
        let value = convert::scalar_from_py(value)?;
        slf.get().edit(slf.py(), |building| {
            building.args.add_scalar(value).map(|_| ())
        })?;
        Ok(slf.clone())
    }

    /// Tensor argument `index`: in a callable a `Tensor`, where arguments are put together the object that was added.
    ///
    /// Raises IndexError.
    fn tensor<'py>(&self, py: Python<'py>, index: isize) -> PyResult<Bound<'py, PyAny>> {
        let count = self.tensor_count();
        let index = position("tensor", index, count)?;
        enum Found {
            Object(Py<PyAny>),
            Tensor(Tensor),
        }
        let found = match &*self.0.lock() {
            Side::Building(building) => building
                .objects
                .get(index)
                .map(|object| Found::Object(object.clone_ref(py))),
            Side::Received(view) => view.tensors.get(index).cloned().map(Found::Tensor),
        };
        match found {
            Some(Found::Object(object)) => Ok(object.into_bound(py)),
            Some(Found::Tensor(tensor)) => Ok(Bound::new(py, PyTensor::new(tensor))?.into_any()),
            None => Err(out_of_range("tensor", index as isize, count)),
        }
    }

    /// Scalar argument `index`, 0 to 2^64-1.
    ///
    /// Raises IndexError.
    fn scalar(&self, index: isize) -> PyResult<u64> {
        let (found, count) = {
            let side = self.0.lock();
            let scalars = side.scalars();
            let at = usize::try_from(index).ok();
            (at.and_then(|at| scalars.get(at).copied()), scalars.len())
        };
        found.ok_or_else(|| out_of_range("scalar", index, count))
    }

    /// `TensorArgType` of tensor `index`; `None` when the parent's protocol did not transmit it.
    ///
    /// Raises IndexError.
    fn tag<'py>(&self, py: Python<'py>, index: isize) -> PyResult<Option<Bound<'py, PyAny>>> {
        let index = position("tensor", index, self.tensor_count())?;
        self.tag_at(index)
            .map(|tag| convert::tag_to_py(py, tag))
            .transpose()
    }

    /// Number of tensors.
    #[getter]
    fn num_tensors(&self) -> usize {
        self.tensor_count()
    }

    /// Number of scalars.
    #[getter]
    fn num_scalars(&self) -> usize {
        self.0.lock().scalars().len()
    }

    /// All scalars.
    #[getter]
    fn scalars<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let scalars = self.0.lock().scalars().to_vec();
        PyTuple::new(py, scalars)
    }

    /// All tensors, as `tensor(i)` gives them.
    #[getter]
    fn tensors<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let count = self.tensor_count() as isize;
        let all = (0..count)
            .map(|index| self.tensor(py, index))
            .collect::<PyResult<Vec<_>>>()?;
        PyTuple::new(py, all)
    }

    /// Number of tensors and scalars together.
    fn __len__(&self) -> usize {
        self.tensor_count() + self.num_scalars()
    }

    /// True, also when empty.
    fn __bool__(&self) -> bool {
        true
    }

    fn __repr__(&self) -> String {
        format!(
            "<TaskArgs {} tensors, {} scalars>",
            self.tensor_count(),
            self.num_scalars()
        )
    }

    fn __reduce_ex__(&self, _protocol: &Bound<'_, PyAny>) -> PyResult<()> {
        Err(PyTypeError::new_err(
            "TaskArgs cannot be pickled: they name memory of this process; submit them",
        ))
    }

    fn __clear__(&self) {
        let objects = match &mut *self.0.lock() {
            Side::Building(building) => mem::take(&mut building.objects),
            Side::Received(_) => SmallVec::new(),
        };
        drop(objects);
    }

    fn __traverse__(&self, visit: pyo3::PyVisit<'_>) -> Result<(), pyo3::PyTraverseError> {
        // The collector must not wait; a lock that is taken just hides the references this time.
        if let Some(side) = self.0.try_lock() {
            if let Side::Building(building) = &*side {
                for object in &building.objects {
                    visit.call(object)?;
                }
            }
        }
        Ok(())
    }
}

/// Adds what `TaskArgs.of` was given.
fn fill(
    building: &mut Building,
    tensors: &Bound<'_, PyTuple>,
    scalars: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    let py = tensors.py();
    for (index, pair) in tensors.iter_borrowed().enumerate() {
        let (x, tag) = pair_of(&pair).ok_or_else(|| {
            PyTypeError::new_err(format!(
                "argument {index} must be a pair (tensor, TensorArgType), not {}",
                convert::type_name(&pair)
            ))
        })?;
        let tag = convert::tag_from_py(&tag)?;
        let added = building.add(Checked::new(&x, None)?, tag, x.clone().unbind());
        added.map_err(convert::raise(py))?;
    }
    let Some(scalars) = scalars else {
        return Ok(());
    };
    // Nearly always a tuple, for which no iterator is made.
    if let Ok(scalars) = scalars.cast_exact::<PyTuple>() {
        let mut values: SmallVec<[u64; 4]> = SmallVec::new();
        for scalar in scalars.iter_borrowed() {
            values.push(convert::scalar_from_py(&scalar)?);
        }
        let added = building.args.add_scalars(&values);
        return added.map(|_| ()).map_err(convert::raise(py));
    }
    let items = scalars.try_iter().map_err(|_| {
        PyTypeError::new_err(format!(
            "scalars must be a sequence of ints, not {}",
            convert::type_name(scalars)
        ))
    })?;
    for scalar in items {
        let added = building.args.add_scalar(convert::scalar_from_py(&scalar?)?);
        added.map_err(convert::raise(py))?;
    }
    Ok(())
}

fn pair_of<'py>(pair: &Bound<'py, PyAny>) -> Option<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
    match pair.cast::<PyTuple>() {
        Ok(tuple) if tuple.len() == 2 => Some((tuple.get_item(0).ok()?, tuple.get_item(1).ok()?)),
        _ => None,
    }
}

fn refuse_dtype(dtype: Option<DataType>) -> PyResult<()> {
    if dtype.is_some() {
        return Err(PyTypeError::new_err(
            "dtype applies to arrays only: this object has one",
        ));
    }
    Ok(())
}

fn position(what: &str, index: isize, count: usize) -> PyResult<usize> {
    usize::try_from(index)
        .ok()
        .filter(|index| *index < count)
        .ok_or_else(|| out_of_range(what, index, count))
}

fn out_of_range(what: &str, index: isize, count: usize) -> PyErr {
    PyIndexError::new_err(format!(
        "{what} {index} does not exist: the task has {count} {what}s"
    ))
}

/// Received arguments as arguments of another task, with the tags they came with.
fn forward(py: Python<'_>, view: &TaskView) -> PyResult<TaskArgs> {
    let mut args = TaskArgs::new();
    for (index, tensor) in view.tensors.iter().enumerate() {
        let tag = view.tags.get(index).copied().flatten();
        // An empty tensor may come without a tag: there is nothing to order.
        let Some(tag) = tag.or_else(|| (tensor.nbytes() == 0).then_some(Tag::Input)) else {
            return Err(PyTypeError::new_err(format!(
                "the parent's protocol did not transmit the tag of tensor {index}; make a TaskArgs and add args.tensor({index}) with one"
            )));
        };
        args.add_tensor(tensor, tag).map_err(convert::raise(py))?;
    }
    for scalar in &view.scalars {
        args.add_scalar(*scalar).map_err(convert::raise(py))?;
    }
    Ok(args)
}
