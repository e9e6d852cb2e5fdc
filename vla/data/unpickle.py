"""Pickled numbers of other people's data sets, read without running anybody's code.

A pickle names functions and classes that it wants called. Here it gets stand-ins: for NumPy's arrays ones
that keep their bytes, for the classes that a caller names inert records. Whatever else it names is refused
before it is called.
"""

import codecs
import io
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla.data.episodes import DataError


class _Sealed(type):
    """A class that a pickle can't change."""

    def __setattr__(cls, name: str, value: object) -> None:
        raise TypeError(f"{cls.__name__} is sealed")


class Record(metaclass=_Sealed):
    """What stands in the place of an object: its attributes, and nothing that it could do."""


class Array(metaclass=_Sealed):
    """What stands in the place of an array of numbers; `np.asarray` makes one of it."""

    def __init__(self, *_: Any) -> None:
        self._values: NDArray = np.zeros(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, content = state
        self._values = _from_bytes(content, dtype, shape, "F" if fortran else "C")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray:  # noqa: FBT001 - NumPy's
        return np.array(self._values, dtype)


class _Dtype(metaclass=_Sealed):
    """A plain type of numbers or of text; structures and objects are refused."""

    def __init__(self, code: str, *_: Any) -> None:
        self.dtype = np.dtype(code)
        if self.dtype.kind not in "biufcSU":
            raise TypeError(f"arrays of {code} are not read")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if any(part is not None for part in state[2:5]):
            raise TypeError("arrays of structures are not read")
        self.dtype = self.dtype.newbyteorder(state[1])


def _from_bytes(content: Any, dtype: _Dtype, shape: tuple[int, ...], order: Any) -> NDArray:
    """Make an array of its bytes, uint8 or text that was made of them."""
    raw = content.encode("latin1") if isinstance(content, str) else bytes(content)
    return np.frombuffer(raw, dtype.dtype).reshape(shape, order=order)


def _scalar(dtype: _Dtype, content: Any) -> Any:
    return _from_bytes(content, dtype, (1,), "C")[0]


def _encoded(text: str, encoding: str) -> bytes:
    """Pickles of protocol 2 have bytes as text."""
    if encoding != "latin1":
        raise TypeError(f"text in {encoding} is not read")
    return codecs.latin_1_encode(text)[0]


def _empty() -> bytes:
    """Pickles of protocol 2 have no bytes as this call."""
    return b""


# What makes arrays and NumPy's numbers, by the names of NumPy 1 and 2; `encode` makes their bytes.
STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encoded,
    ("__builtin__", "bytes"): _empty,
} | {
    (f"numpy.{core}.{module}", name): stand_in
    for core in ("core", "_core")
    for module, name, stand_in in (
        ("multiarray", "_reconstruct", Array),
        ("multiarray", "scalar", _scalar),
        ("numeric", "_frombuffer", _from_bytes),
    )
}


def load(path: Path, classes: Iterable[tuple[str, str]] = ()) -> Any:
    """Read a pickle.

    Args:
        path: the file
        classes: module and name of the classes that become records

    Raises:
        DataError: the file is missing, malformed, or names anything else.
    """
    try:
        return _Unpickler(io.BytesIO(path.read_bytes()), frozenset(classes), path).load()
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except DataError:
        raise
    except Exception as error:  # a malformed pickle raises many types
        raise DataError(f"{path} is no readable pickle: {error}") from error


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, classes: frozenset[tuple[str, str]], path: Path) -> None:
        super().__init__(file)
        self._classes, self._path = classes, path

    def find_class(self, module: str, name: str) -> Any:
        """Return what a pickle names, if it may."""
        if (module, name) in self._classes:
            return Record
        if (module, name) in STAND_INS:
            return STAND_INS[module, name]
        raise DataError(f"{self._path} names {module}.{name}, which is not read")
