"""`DataType` and the other enumerations."""

from __future__ import annotations

import echelon as ec
import numpy as np
import pytest


def test_the_codes_are_those_of_the_protocol():
    names = "FLOAT32 FLOAT16 INT32 INT16 INT8 UINT8 BFLOAT16 INT64 UINT64 UINT16 UINT32 BOOL FLOAT64".split()
    assert [member.name for member in ec.DataType] == names
    assert [int(member) for member in ec.DataType] == list(range(13))


@pytest.mark.parametrize("member", list(ec.DataType), ids=lambda m: m.name)
def test_every_way_to_name_a_type_finds_it(member):
    for value in (member, int(member), member.name, member.name.lower()):
        assert ec.DataType.of(value) is member
    if member is not ec.DataType.BFLOAT16:
        assert ec.DataType.of(member.numpy) is member
        assert ec.DataType.of(member.numpy.type) is member
    assert member.numpy.itemsize == member.itemsize
    assert (
        memoryview(bytearray(8)).cast(member.format if member.format != "e" else "H").itemsize
        == member.itemsize
    )


@pytest.mark.parametrize("member", list(ec.DataType), ids=lambda m: m.name)
def test_rust_and_python_agree_on_every_type(member):
    ref = ec.RemoteTensorRef.host_inline(bytes(3 * member.itemsize), shape=(3,), dtype=member)
    assert ref.dtype is member
    assert ref.nbytes == 3 * member.itemsize


@pytest.mark.parametrize("value", [13, -1, "float128", np.dtype(complex), "", np.dtype(">f4")])
def test_an_unknown_type_is_a_value_error(value):
    with pytest.raises(ValueError):
        ec.DataType.of(value)


def test_python_types_have_no_width():
    with pytest.raises(ValueError, match="int"):
        ec.DataType.of(int)


def test_tags_and_access_have_the_codes_of_the_protocol():
    tags = {tag.name: int(tag) for tag in ec.TensorArgType}
    assert tags == {"INPUT": 0, "OUTPUT": 1, "INOUT": 2, "OUTPUT_EXISTING": 3, "NO_DEP": 4}
    assert (ec.AccessFlags.READ, ec.AccessFlags.WRITE) == (1, 2)
    assert [int(space) for space in ec.AddressSpace] == [1, 2, 3, 4]
