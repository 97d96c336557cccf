"""`Tensor`: views of shared memory through every protocol, and who keeps the memory."""

from __future__ import annotations

import gc
import pickle

import echelon as ec
import numpy as np
import pytest


@pytest.fixture
def alloc():
    """Allocates a tensor in the memory of a worker without children."""
    worker = ec.Worker()
    worker.init()

    def make(shape, dtype):
        made = []
        worker.run(lambda orch, args, config: made.append(orch.alloc(shape, dtype)))
        return made[0]

    yield make
    worker.close()


def test_views_share_the_bytes(alloc):
    t = alloc((2, 3), "float32")
    a, m = t.numpy(), memoryview(t)
    b = np.asarray(t)
    assert a.shape == b.shape == m.shape == (2, 3)
    assert (a.dtype, m.format, m.itemsize, m.strides) == (np.float32, "f", 4, (12, 4))
    a[1, 2] = 7
    assert b[1, 2] == 7 and m[1, 2] == 7 and np.from_dlpack(t)[1, 2] == 7
    assert a.flags.writeable and not m.readonly and m.c_contiguous


@pytest.mark.parametrize("member", list(ec.DataType), ids=lambda m: m.name)
def test_every_element_type_has_a_view(member, alloc):
    t = alloc(5, member)
    assert t.numpy().dtype == member.numpy
    assert memoryview(t).itemsize == member.itemsize
    if member is not ec.DataType.BFLOAT16:
        assert np.from_dlpack(t).dtype == member.numpy


def test_bfloat16_keeps_its_type_in_dlpack(alloc):
    capsule = alloc(4, "bfloat16").__dlpack__(max_version=(1, 0))
    assert "dltensor_versioned" in repr(capsule)
    with pytest.raises((BufferError, RuntimeError)):
        np.from_dlpack(alloc(4, "bfloat16"))  # numpy has no bfloat16 and says so


def test_array_converts_and_copies_as_numpy_asks(alloc):
    t = alloc(3, "float32")
    t.numpy()[...] = 1.5
    assert np.asarray(t, dtype=np.float64).tolist() == [1.5] * 3
    copied = np.array(t, copy=True)
    t.numpy()[0] = 9
    assert copied[0] == 1.5
    with pytest.raises(ValueError, match="copy"):
        np.array(t, dtype=np.int8, copy=False)


def test_dlpack_honours_its_arguments(alloc):
    t = alloc(3, "int32")
    assert t.__dlpack_device__() == (1, 0)
    with pytest.raises(BufferError, match="stream"):
        t.__dlpack__(stream=1)
    with pytest.raises(BufferError, match="device"):
        t.__dlpack__(dl_device=(2, 0))
    copied = np.from_dlpack(t, copy=True)
    t.numpy()[...] = 5
    assert not np.shares_memory(copied, t.numpy())
    assert "dltensor" in repr(t.__dlpack__())  # never consumed: its destructor frees it


def test_views_outlive_the_tensor_the_run_and_the_worker(alloc):
    t = alloc((256, 256), "float64")
    view = t.numpy()
    view[...] = 3
    del t
    gc.collect()
    other = alloc((256, 256), "float64").numpy()
    other[...] = 8
    assert (view == 3).all()  # the block was not reused under a live view


def test_memory_is_reused_when_no_view_is_left():
    """R-5: with a limit of four blocks, a hundred rounds only fit when each gives its block back."""
    with ec.Worker(memory_limit=1 << 20) as worker:

        def graph(orch, args, config):
            for _ in range(100):
                view = orch.alloc(1 << 18, "uint8").numpy()
                view[0] = 1
                del view

        worker.run(graph)


def test_empty_tensors_are_tensors(alloc):
    t = alloc((0, 3), "float32")
    assert (t.shape, t.nbytes, len(t)) == ((0, 3), 0, 0)
    assert t.numpy().shape == (0, 3)


def test_a_tensor_says_what_it_is_and_no_more(alloc):
    t = alloc((2,), "int8")
    assert repr(t) == "<Tensor shape=(2,) dtype=int8>"
    assert not t.readonly
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(t)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((-1,), "int8"), ((1.5,), "int8"), ((1,) * 6, "int8"), (3, "int7"), (3, None)]
)
def test_a_wrong_shape_or_dtype_is_refused(shape, dtype, alloc):
    with pytest.raises((TypeError, ValueError)):
        alloc(shape, dtype)
