"""`TaskArgs`: what may be an argument, and what is said about what may not."""

from __future__ import annotations

import array
import ctypes
import gc
import pickle
import weakref

import echelon as ec
import numpy as np
import pytest

INPUT, OUTPUT, INOUT = ec.TensorArgType.INPUT, ec.TensorArgType.OUTPUT, ec.TensorArgType.INOUT


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((2, 3), np.float32),
        np.zeros(()),
        np.zeros((0, 4)),
        np.arange(12).reshape(3, 4)[1:],
        bytearray(8),
        memoryview(bytearray(8)),
        array.array("d", [1, 2]),
        (ctypes.c_int * 3)(),
        ctypes.c_double(),
        np.array([True]),
        np.zeros(2, np.float16),
    ],
    ids=lambda x: f"{type(x).__name__}-{getattr(x, 'dtype', '')}",
)
def test_anything_contiguous_with_a_buffer_may_be_written(x):
    args = ec.TaskArgs().add_tensor(x, INOUT)
    assert args.tensor(0) is x
    assert args.tag(0) is INOUT
    assert (len(args), args.num_tensors, args.num_scalars) == (1, 1, 0)


def test_immutable_bytes_may_be_read_but_not_written():
    ec.TaskArgs().add_tensor(b"abc", INPUT)
    with pytest.raises(ValueError, match=r"OUTPUT writes.*read-only"):
        ec.TaskArgs().add_tensor(b"abc", OUTPUT)
    frozen = np.zeros(3)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        ec.TaskArgs().add_tensor(frozen, INOUT)


def test_strided_memory_is_refused_with_its_strides_and_the_remedy():
    with pytest.raises(ValueError, match=r"strides \[16, 8\].*numpy.ascontiguousarray"):
        ec.TaskArgs().add_tensor(np.zeros((3, 4), np.float32)[:, ::2], INPUT)
    with pytest.raises(ValueError, match="C-contiguous"):
        ec.TaskArgs().add_tensor(np.zeros((3, 4), order="F"), INPUT)


@pytest.mark.parametrize("dtype", [complex, "S3", "V5", "M8[s]", ">f8"])
def test_an_element_type_that_the_protocol_lacks_is_refused_by_name(dtype):
    with pytest.raises((ValueError, TypeError)):
        ec.TaskArgs().add_tensor(np.zeros(3, dtype), INPUT)


def test_a_refused_tensor_leaves_the_arguments_and_the_object_as_they_were():
    args, data = ec.TaskArgs(), bytearray(8)
    with pytest.raises(ValueError):
        args.add_tensor(data, INPUT, dtype="float16")  # 1-byte elements
    data.append(1)  # a pinned bytearray could not be resized
    assert len(args) == 0


@pytest.mark.parametrize("x", [3, None, "text", [1, 2], object()])
def test_an_object_without_memory_is_a_type_error(x):
    with pytest.raises(TypeError, match="buffer protocol"):
        ec.TaskArgs().add_tensor(x, INPUT)


def test_ranks_and_extents_have_limits():
    with pytest.raises(ValueError, match="1 to 5 dimensions"):
        ec.TaskArgs().add_tensor(np.zeros((1,) * 6), INPUT)


@pytest.mark.parametrize("tag", [7, -1, "READ", 2.0, None, True])
def test_a_wrong_tag_is_refused(tag):
    with pytest.raises((TypeError, ValueError), match="tag"):
        ec.TaskArgs().add_tensor(np.zeros(1), tag)


def test_bfloat16_is_given_as_uint16_with_its_dtype():
    args = ec.TaskArgs().add_tensor(np.zeros(4, np.uint16), INPUT, dtype=ec.DataType.BFLOAT16)
    assert args.num_tensors == 1
    with pytest.raises(ValueError, match="bfloat16 has 2"):
        ec.TaskArgs().add_tensor(np.zeros(4), INPUT, dtype="bfloat16")


@pytest.mark.parametrize(
    ("value", "stored"),
    [(0, 0), (2**64 - 1, 2**64 - 1), (-1, 2**64 - 1), (-(2**63), 2**63), (np.int32(-2), 2**64 - 2)],
)
def test_scalars_are_64_bits(value, stored):
    args = ec.TaskArgs().add_scalar(value)
    assert args.scalar(0) == stored
    assert args.scalars == (stored,)


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1])
def test_a_scalar_outside_64_bits_is_a_value_error(value):
    with pytest.raises(ValueError, match="outside"):
        ec.TaskArgs().add_scalar(value)


@pytest.mark.parametrize("value", [1.5, "3", None, np.float64(1)])
def test_a_scalar_that_is_no_int_is_a_type_error(value):
    with pytest.raises(TypeError, match="scalar"):
        ec.TaskArgs().add_scalar(value)


def test_indices_out_of_range_are_index_errors():
    args = ec.TaskArgs().add_scalar(1)
    for call in (args.tensor, args.tag):
        with pytest.raises(IndexError, match="the task has 0 tensors"):
            call(0)
    for index in (1, -1):
        with pytest.raises(IndexError, match="the task has 1 scalars"):
            args.scalar(index)


def test_of_builds_in_one_expression():
    x, y = np.zeros(2), np.ones(2)
    args = ec.TaskArgs.of((x, INPUT), (y, OUTPUT), scalars=(3, 4))
    assert args.tensors == (x, y) or (args.tensors[0] is x and args.tensors[1] is y)
    assert args.scalars == (3, 4)
    with pytest.raises(TypeError, match="argument 1 must be a pair"):
        ec.TaskArgs.of((x, INPUT), x)


def test_arguments_release_what_they_held():
    """R-107: pins end when the arguments are gone, without another call having to wait for anything."""
    x = np.zeros(4)
    gone = weakref.ref(x)
    args = ec.TaskArgs().add_tensor(x, INOUT)
    del x
    assert gone() is not None
    del args
    ec.TaskArgs().add_tensor(b"1", INPUT)  # the next call with the GIL drains the release queue
    gc.collect()
    assert gone() is None


def test_arguments_cannot_be_pickled():
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(ec.TaskArgs())


def test_inline_bytes_are_checked_against_shape_and_dtype():
    """R-076 at the end that constructs."""
    ref = ec.RemoteTensorRef.host_inline(b"\x01\x02", shape=(2,), dtype=ec.DataType.UINT8)
    assert (ref.shape, ref.dtype, ref.nbytes, ref.is_inline, ref.handle) == (
        (2,),
        ec.DataType.UINT8,
        2,
        True,
        None,
    )
    with pytest.raises(ValueError, match=r"3 bytes.*takes 2"):
        ec.RemoteTensorRef.host_inline(b"abc", shape=2, dtype="uint8")
    with pytest.raises(ValueError, match="takes 8"):
        ec.RemoteTensorRef.host_inline(b"abc", shape=(2,), dtype="float32")


@pytest.mark.parametrize("tag", [OUTPUT, INOUT, ec.TensorArgType.OUTPUT_EXISTING, ec.TensorArgType.NO_DEP])
def test_inline_bytes_are_input_only(tag):
    ref = ec.RemoteTensorRef.host_inline(b"\x01", shape=(1,), dtype="uint8")
    with pytest.raises(TypeError, match="remote_malloc"):
        ec.TaskArgs().add_tensor(ref, tag)


@pytest.mark.parametrize("shape", [(1.5,), "ab", None, (True,)])
def test_a_shape_consists_of_ints(shape):
    with pytest.raises(TypeError, match="shape"):
        ec.RemoteTensorRef.host_inline(b"", shape=shape, dtype="uint8")


@pytest.mark.parametrize("shape", [(-1,), (2**32,), (), (1,) * 6, (2**31, 2**31, 2**31)])
def test_a_shape_has_limits(shape):
    """R-074: sizes that overflow are refused by name."""
    with pytest.raises(ValueError):
        ec.RemoteTensorRef.host_inline(b"", shape=shape, dtype="uint8")
