"""Sums and products whose bits depend neither on other rows, nor on padding, nor on the number of threads.

Pure tensors, CPU and GPU. The reductions of torch and the matrix products of BLAS add in an order that follows the
shape of the whole tensor, so that the last bit of a row can depend on the rows around it. Here every sum is a tree
whose shape padding with zeros does not change, and a matrix product is made of numbers with so few bits that none of
its sums is rounded, in any order.

A CPU works through a batch piece by piece, in its cache. A GPU works on all of it at once and lags behind the program;
every number that the program reads back makes the program wait, so a batch may do so only where `tests.waits` lists it.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch

_AS_ON_GPU = False  # set by tests: a CPU works as a GPU would, so that waits can be counted on any machine
_MANTISSA_BITS = 53  # of float64: whole numbers up to 2^53 are exact
_MATRIX_BITS = 24  # most of them that numbers of a matrix get: those of float32
_SUMMED_BITS = 34  # of a number that is added as a whole one: 2^28 of them fit into an int64
_EXPONENT = 0x7FF0000000000000  # its place in the bits of a float64


def works_at_once(device: torch.device) -> bool:
    """Whether a device works on a whole batch at once, without reading back what could be left out (a GPU)."""
    return device.type != "cpu" or _AS_ON_GPU


@functools.lru_cache(maxsize=256)
def constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Numbers on a device, copied there once, because a copy makes a GPU wait. Never change the result."""
    with torch.inference_mode(False):  # or nothing that learns could use it
        return torch.tensor(values, dtype=dtype, device=device)


def fold_sum(values: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """Sum along an axis: the upper half is added to the lower one until one entry is left; 0 of an empty axis.

    Zeros appended along the axis change nothing, and neither do the other axes.
    """
    count = values.shape[dim]
    if count == 0:
        return values.sum(dim)
    half = 1 << max(count - 1, 0).bit_length() >> 1  # of the next power of two
    if half == 0:
        return values.select(dim, 0) + 0.0  # as with padding: no negative zero
    folded = values.narrow(dim, 0, half) + 0.0
    folded.narrow(dim, 0, count - half).add_(values.narrow(dim, half, count - half))
    while half > 1:
        half //= 2
        folded.narrow(dim, 0, half).add_(folded.narrow(dim, half, half))
    return folded.select(dim, 0)


def fold_logsumexp(values: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """Logarithm of the sum of exponentials along an axis; -inf where all are -inf."""
    peak = values.amax(dim, keepdim=True)
    peak = torch.where(peak.isfinite(), peak, 0)
    return fold_sum((values - peak).exp_(), dim).log_() + peak.squeeze(dim)


def fold_softmax(values: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """Exponentials along an axis, divided by their sum."""
    share = (values - values.amax(dim, keepdim=True)).exp_()
    return share.div_(fold_sum(share, dim).unsqueeze(dim))


def add_logarithms(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """log(exp(left) + exp(right)), elementwise; `torch.logaddexp` differs between the middle and the end of a row."""
    peak = torch.maximum(left, right)
    return ((left - peak).exp_() + (right - peak).exp_()).log_() + peak


class Segments:
    """Sums over the segments that n values belong to.

    On a CPU values are added one after the other in the order of the list. A GPU adds in any order: there the list must
    be sorted by segment, and a sum is the difference of a running sum of whole numbers, which is never rounded.
    """

    def __init__(self, index: torch.Tensor, count: int) -> None:
        """`index` (n,) int64: the segment of each value, in 0 .. count - 1; not decreasing where `works_at_once`."""
        self.index, self.count = index, count
        self._ends: torch.Tensor | None = None
        if works_at_once(index.device):
            numbers = torch.arange(count + 1, device=index.device)
            self._ends = torch.searchsorted(index, numbers)  # (count + 1,): where each begins, and the last ends

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """(count,) int64 sums of whole numbers (n,), or how many of some flags are True."""
        whole = values.to(torch.int64)
        if self._ends is None:
            return whole.new_zeros(self.count).index_add_(0, self.index, whole)
        return torch.nn.functional.pad(whole.cumsum(0), (1, 0))[self._ends].diff()

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """(count,) float64 sums of values (n,)."""
        values = values.to(torch.float64)
        if self._ends is None:
            return values.new_zeros(self.count).index_add_(0, self.index, values)
        # each value in two whole numbers of 34 bits, relative to its segment's largest
        largest = torch.segment_reduce(values.abs(), "max", offsets=self._ends, unsafe=True, initial=0)
        unit = _power_above(largest)
        rest, total = values / self.spread(unit), torch.zeros_like(unit)
        for place in (1, 2):
            rest = rest * 2.0**_SUMMED_BITS
            whole = rest.round()
            rest = rest - whole
            total = total + self.total(whole).to(torch.float64) * 2.0 ** (-_SUMMED_BITS * place)
        return total * unit

    def mean(self, values: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
        """(count,) float64 sums over `number` (count,) of values; 0 where there is none."""
        return self.sum(values) / number.clamp(min=1)

    def spread(self, of_segment: torch.Tensor) -> torch.Tensor:
        """(n,) the entry of `of_segment` (count,) for each value."""
        return of_segment.index_select(0, self.index)


class ExactMatrix(NamedTuple):
    """A matrix (K, V) whose rows are held as multiples of 2^-bits of a power of two each."""

    values: torch.Tensor  # (K, V) float64 in -1 .. 1
    scale: torch.Tensor  # (K,) float64 powers of two
    bits: int


def make_exact(matrix: torch.Tensor) -> ExactMatrix:
    """A matrix (K, V) for `exact_product`: each row rounded to 2^-bits of its largest entry (23 or 24 bits)."""
    bits = min(_MATRIX_BITS, (_room(len(matrix)) + 1) // 2)
    matrix = matrix.to(torch.float64)
    scale = _power_above(matrix.abs().amax(1))
    return ExactMatrix(_rounded(matrix / scale[:, None], bits), scale, bits)


def exact_product(factors: torch.Tensor, matrix: ExactMatrix, parts: int = 1) -> torch.Tensor:
    """(M, V) float64 product of factors (M, K) and a matrix, every row as if it were alone.

    Factors are rounded to a power of two per row: to 22 bits or more below the row's largest term with `parts` = 1, to
    twice as many with 2. What is then multiplied and added are multiples of one number that need no more than the 53
    bits of float64, so BLAS may go through them in any order and on any number of threads.
    """
    bits = _room(len(matrix.values)) - matrix.bits
    rest = factors.to(torch.float64) * matrix.scale
    unit = _power_above(rest.abs().amax(1, keepdim=True))
    rest = rest / unit
    pieces = []
    for _ in range(parts):
        pieces.append(_rounded(rest, bits))
        rest = (rest - pieces[-1]) * 2.0**bits
    scaled = [piece * (unit * 2.0 ** (-bits * place)) for place, piece in enumerate(pieces)]
    lead, *others = (torch.cat(scaled) @ matrix.values).split(len(factors))
    for part in others:
        lead = lead + part
    return lead


def _room(terms: int) -> int:
    """Bits that two factors may have together so that sums of so many products are exact."""
    return _MANTISSA_BITS - math.ceil(math.log2(max(terms, 1)))


def _rounded(values: torch.Tensor, bits: int) -> torch.Tensor:
    return (values * 2.0**bits).round_().mul_(2.0**-bits)


def _power_above(values: torch.Tensor) -> torch.Tensor:
    """The power of two above each positive float64; 1 for zero."""
    power = (values.contiguous().view(torch.int64) & _EXPONENT).view(torch.float64) * 2
    return torch.where(power > 0, power, 1.0)
