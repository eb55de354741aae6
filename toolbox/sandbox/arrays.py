"""What EvalPlus' tests use of NumPy, for a judge that has only the standard library (`import numpy` in a test).

Those tests ask whether numbers are close, and whether a value is an array, which none is that comes from a candidate.
"""

import math
import types
from typing import Any


class ndarray:  # NumPy's own name
    """The type of which nothing here is."""


def allclose(found: Any, wanted: Any, rtol: float = 1e-5, atol: float = 1e-8) -> bool:
    """|found - wanted| <= atol + rtol · |wanted| of all numbers, in lists of lists too, as numpy.allclose has it."""
    if isinstance(found, (list, tuple)) or isinstance(wanted, (list, tuple)):
        pairs = zip(_spread(found, wanted), _spread(wanted, found), strict=True)
        return all(allclose(one, other, rtol, atol) for one, other in pairs)
    if math.isinf(found) or math.isinf(wanted):
        return bool(found == wanted)
    return bool(abs(found - wanted) <= atol + rtol * abs(wanted))


def assert_allclose(found: Any, wanted: Any, rtol: float = 1e-7, atol: float = 0.0) -> None:
    """numpy.testing's. Raises AssertionError."""
    if not allclose(found, wanted, rtol, atol):
        raise AssertionError(f"{found!r} is not close to {wanted!r}")


def _spread(value: Any, other: Any) -> Any:
    """A number beside a list counts for each of its items."""
    return value if isinstance(value, (list, tuple)) else [value] * len(other)


def module() -> types.ModuleType:
    made = types.ModuleType("numpy")
    made.__dict__.update(
        ndarray=ndarray, allclose=allclose, float32=float, float64=float,
        testing=types.SimpleNamespace(assert_allclose=assert_allclose),
    )  # fmt: skip
    return made
