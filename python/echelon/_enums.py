"""Enumerations: element types, tags, access rights."""

from __future__ import annotations

import sys
from enum import IntEnum, IntFlag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["AccessFlags", "AddressSpace", "ChipArg", "DataType", "TensorArgType"]


class DataType(IntEnum):
    """Element type of a tensor; the values are the codes of the protocol."""

    FLOAT32 = 0
    FLOAT16 = 1
    INT32 = 2
    INT16 = 3
    INT8 = 4
    UINT8 = 5
    BFLOAT16 = 6
    INT64 = 7
    UINT64 = 8
    UINT16 = 9
    UINT32 = 10
    BOOL = 11
    FLOAT64 = 12

    @property
    def itemsize(self) -> int:
        """Bytes an element."""
        return _ITEMSIZE[self]

    @property
    def format(self) -> str:
        """Format character of the buffer protocol. BFLOAT16 has none there and shows as ``"H"`` (uint16)."""
        return _FORMAT[self]

    @property
    def numpy(self) -> Any:
        """The ``numpy.dtype``; BFLOAT16 shows as uint16. Imports numpy."""
        import numpy

        return numpy.dtype("uint16" if self is DataType.BFLOAT16 else self.name.lower())

    @classmethod
    def of(cls, value: object) -> DataType:
        """The element type that ``value`` names.

        Args:
            value: a :class:`DataType`, its code, its name in any case (``"float32"``), a ``numpy.dtype``, a numpy scalar
                type (``numpy.float32``), or a ``torch.dtype``.

        Raises:
            TypeError: nothing of that.
            ValueError: a name, code or dtype that the protocol does not have.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return cls(value)
        if isinstance(value, str):
            name = value
        else:
            numpy = sys.modules.get("numpy")
            if numpy is not None and isinstance(value, type) and issubclass(value, numpy.generic):
                value = numpy.dtype(value)
            # numpy.dtype has .name, ml_dtypes' types have __name__, torch.dtype prints as "torch.float32".
            name = getattr(value, "name", None) or getattr(value, "__name__", None) or str(value)
            if not isinstance(name, str):
                raise TypeError(
                    f"dtype must be a DataType, a name or a numpy dtype, not {type(value).__name__}"
                )
        key = name.rpartition(".")[2].rstrip("_").upper()
        member = cls.__members__.get("BOOL" if key == "BOOL8" else key)
        if member is None:
            known = ", ".join(m.name.lower() for m in cls)
            raise ValueError(f"dtype {name!r} is not one of the element types {known}")
        order = getattr(value, "byteorder", "=")
        if order == ">":
            raise ValueError(
                f"dtype {value!r} is big-endian; tensors are little-endian: use .astype('<{member.format}')"
            )
        return member


_FORMAT = dict(zip(DataType, "f e i h b B H q Q H I ? d".split(), strict=False))
_ITEMSIZE = dict(zip(DataType, (4, 2, 4, 2, 1, 1, 2, 8, 8, 2, 4, 1, 8), strict=False))


class TensorArgType(IntEnum):
    """How a task uses a tensor argument; the order of tasks follows from it."""

    INPUT = 0
    """The task reads it."""
    OUTPUT = 1
    """The task writes all of it; contents on entry are undefined."""
    INOUT = 2
    """The task reads and writes it."""
    OUTPUT_EXISTING = 3
    """The task writes parts of it; the rest keeps its value."""
    NO_DEP = 4
    """The task may read and write it; no order is inferred from it."""


class ChipArg(IntEnum):
    """What a parameter of a chip callable is; the values are those of ``echelon_chip.h``."""

    SCALAR = 0
    """A scalar."""
    IN = 1
    """A tensor that is read: tag INPUT."""
    OUT = 2
    """A tensor that is written: tag OUTPUT or OUTPUT_EXISTING."""
    INOUT = 3
    """A tensor that is read and written: tag INOUT."""


class AccessFlags(IntFlag):
    """What may be done through a handle or an export."""

    READ = 1
    WRITE = 2


class AddressSpace(IntEnum):
    """Where the memory behind a remote handle is."""

    HOST_INLINE = 1
    REMOTE_DEVICE = 2
    REMOTE_WINDOW = 3
    UB_LDST = 4
