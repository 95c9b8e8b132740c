"""Widths by mixed-integer programming: least importance lost for so many parameters and so much time, with its gap.

A weight, and a layer's time, depend on the widths of two groups at once. Each width of a group is a binary choice
``z``, each pair of widths of two groups that meet in a layer is a share ``u``, tied to the choices by

    sum over l of u[gk, hl] = z[gk]        sum over k of u[gk, hl] = z[hl]

which is exact where every ``z`` is 0 or 1, so parameters and times are linear in ``z`` and ``u`` whatever the tables
hold. A layer that meets more than two groups (it reads a concatenation) is replaced by its plane through the corners.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from edgeopt.latency.predictor import Predictor
from edgeopt.records.groups import ChannelGroup, Dimension, GroupTable, WeightShape

_Floats = NDArray[np.float64]

MAX_OPTIONS = 16
"""Widths of a group to choose from."""
GAP_RATIO = 0.005
"""The search ends when no choice can be better than the one found by more than this share."""
MAX_NODES = 20_000
"""Branches that the search looks at; a bound on work, unlike one on time, ends at the same choice everywhere."""
MAX_SOLVER_SECONDS = 30.0


class Solution(NamedTuple):
    """A choice of widths."""

    widths: dict[str, int]
    gap_ratio: float


@dataclass
class Costs:
    """A sum over the choices: a constant, a table for each group, a table for each pair of groups."""

    options: Mapping[str, Sequence[int]]
    constant: float = 0.0
    unary: dict[str, _Floats] = field(default_factory=dict)
    pairs: dict[tuple[str, str], _Floats] = field(default_factory=dict)

    def add(self, group: str, values: _Floats) -> None:
        """Add a cost for each width of a group."""
        self.unary[group] = self.unary.get(group, 0.0) + values

    def add_pair(self, first: str, second: str, values: _Floats) -> None:
        """Add a cost for each pair of widths; ``values`` has a row for each width of ``first``."""
        key, table = ((first, second), values) if first < second else ((second, first), values.T)
        self.pairs[key] = self.pairs.get(key, 0.0) + table

    def add_product(self, factor: float, first: Dimension, second: Dimension) -> None:
        """Add ``factor`` times the product of two sizes."""
        parts = [
            [(None, float(one.fixed)), *((name, float(count)) for name, count in one.per_channel.items())]
            for one in (first, second)
        ]
        for (left, a), (right, b) in product(*parts):
            scale = factor * a * b
            if not scale:
                continue
            if left is None and right is None:
                self.constant += scale
            elif left is None or right is None:
                name = left or right
                assert name is not None
                self.add(name, scale * self.widths(name))
            elif left == right:
                self.add(left, scale * self.widths(left) ** 2)
            else:
                self.add_pair(left, right, scale * np.outer(self.widths(left), self.widths(right)))

    def widths(self, group: str) -> _Floats:
        """Return a group's widths to choose from."""
        return np.asarray(self.options[group], dtype=np.float64)

    def sizes(self, dimension: Dimension, group: str) -> list[int]:
        """Return the sizes of a dimension that follows one group, for each of its widths."""
        return [dimension.size({group: width}) for width in self.options[group]]


ONE = Dimension(fixed=1, per_channel={})


def _one_each(_tensor: WeightShape) -> float:
    return 1.0


def weight_costs(
    table: GroupTable, options: Mapping[str, Sequence[int]], each: Callable[[WeightShape], float] = _one_each
) -> Costs | None:
    """Return a cost that is a sum over all weights, by default their number.

    Args:
        table: Of the network.
        options: For every group its widths to choose from.
        each: What each number of a tensor costs, such as ``macs_per_weight``.

    Returns:
        None where a tensor has more than two dimensions that follow widths.
    """
    costs = Costs(options)
    for tensor in table.tensors:
        moving = [dimension for dimension in tensor.dims if dimension.per_channel]
        if len(moving) > 2:
            return None
        fixed = float(np.prod([dimension.fixed for dimension in tensor.dims if not dimension.per_channel]))
        first, second = [*moving, ONE, ONE][:2]
        costs.add_product(each(tensor) * fixed, first, second)
    return costs


def importance_costs(table: GroupTable, options: Mapping[str, Sequence[int]]) -> Costs:
    """Return what is lost of each group's importance; see ``losses``."""
    costs = Costs(options)
    for group in table.free:
        lost = losses(group)
        costs.add(group.name, np.array([lost[group.channels - width] for width in options[group.name]]))
    return costs


def losses(group: ChannelGroup) -> _Floats:
    """Return what is lost with 0, 1, 2, ... of a group's channels, the least important first; never with all.

    Importance is a linear estimate at the trained weights: right for the first channels, too low for the last ones,
    which do the work of those that went. So what goes is divided by the share of the importance that stays.
    """
    gone = np.concatenate([[0.0], np.cumsum(np.sort(group.importance))])[:-1]
    whole = float(np.sum(group.importance))
    found: _Floats = gone * whole / (whole - gone) if whole > 0 else gone  # the most important channel always stays
    return found


def latency_costs(predictor: Predictor, options: Mapping[str, Sequence[int]]) -> Costs:
    """Return the predicted nanoseconds of the whole; ``options`` has every group that the table's layers follow."""
    costs = Costs(options, constant=predictor.constant_ns)
    for index, layer in enumerate(predictor.table.layers):
        dims = layer.dimensions
        names = sorted({name for dimension in dims for name in dimension.per_channel})
        if len(dims) > 2:
            base = [dimension.size({name: options[name][0] for name in names}) for dimension in dims]
            slopes = predictor.slopes_ns(index)
            costs.constant += predictor.layer_ns(index, base) - float(np.dot(slopes, base))
            for slope, dimension in zip(slopes, dims, strict=True):
                costs.add_product(slope, dimension, ONE)
        elif len(names) > 2:
            _add_plane(costs, predictor, index, dims)
        elif not names:
            costs.constant += predictor.layer_ns(index, [dimension.fixed for dimension in dims])
        elif len(names) == 1:
            name = names[0]
            sizes = zip(*(costs.sizes(dimension, name) for dimension in dims), strict=True)
            costs.add(name, np.array([predictor.layer_ns(index, one) for one in sizes]))
        else:
            first, second = names
            costs.add_pair(
                first,
                second,
                np.array(
                    [
                        [predictor.layer_ns(index, [one.size({first: a, second: b}) for one in dims])
                         for b in options[second]]
                        for a in options[first]
                    ]
                ),
            )  # fmt: skip
    return costs


def _add_plane(costs: Costs, predictor: Predictor, index: int, dims: Sequence[Dimension]) -> None:
    """Add a layer of many groups as ``a + b x + c y + d x y`` through its times at the least and the largest sizes."""
    ends = [
        [dimension.fixed + sum(n * choose(costs.options[g]) for g, n in dimension.per_channel.items())
         for choose in (min, max)]
        for dimension in dims
    ]  # fmt: skip
    corners = list(product(*ends))
    rows = np.array([_plane(corner) for corner in corners])
    times = np.array([predictor.layer_ns(index, corner) for corner in corners])
    found = np.linalg.lstsq(rows, times, rcond=None)[0]
    first, second = [*dims, ONE][:2]
    costs.constant += float(found[0])
    costs.add_product(float(found[1]), first, ONE)
    if len(dims) > 1:
        costs.add_product(float(found[2]), second, ONE)
        costs.add_product(float(found[3]), first, second)


def _plane(sizes: Sequence[int]) -> list[float]:
    return [1.0, float(sizes[0])] if len(sizes) == 1 else [1.0, float(sizes[0]), float(sizes[1]), float(np.prod(sizes))]


class Program:
    """The choices of one network, and what they cost.

    Args:
        options: For every group that can lose channels its widths to choose from.
        pairs: Groups that meet in a layer or a weight.
    """

    def __init__(self, options: Mapping[str, Sequence[int]], pairs: Sequence[tuple[str, str]]) -> None:
        self.options = options
        self.start: dict[str, int] = {}
        self.pair_start: dict[tuple[str, str], int] = {}
        count = 0
        for name, widths in options.items():
            self.start[name] = count
            count += len(widths)
        self.choices = count
        for first, second in pairs:
            self.pair_start[first, second] = count
            count += len(options[first]) * len(options[second])
        self.count = count

    def row(self, costs: Costs) -> _Floats:
        """Return costs as a row of coefficients; the constant is left out."""
        row = np.zeros(self.count)
        for name, values in costs.unary.items():
            row[self.start[name] : self.start[name] + len(values)] += values
        for pair, table in costs.pairs.items():
            row[self.pair_start[pair] : self.pair_start[pair] + table.size] += table.ravel()
        return row

    def _ties(self) -> LinearConstraint:
        """Each group has one width, and pairs agree with the widths chosen."""
        entries: list[tuple[int, int, float]] = []
        right: list[float] = []
        for name, widths in self.options.items():
            entries += [(len(right), self.start[name] + k, 1.0) for k in range(len(widths))]
            right.append(1.0)
        for (first, second), start in self.pair_start.items():
            rows, columns = len(self.options[first]), len(self.options[second])
            for k in range(rows):
                entries += [(len(right), start + k * columns + l, 1.0) for l in range(columns)]  # noqa: E741
                entries.append((len(right), self.start[first] + k, -1.0))
                right.append(0.0)
            for l in range(columns):  # noqa: E741
                entries += [(len(right), start + k * columns + l, 1.0) for k in range(rows)]
                entries.append((len(right), self.start[second] + l, -1.0))
                right.append(0.0)
        places, columns_, values = zip(*entries, strict=True)
        matrix = coo_array((values, (places, columns_)), shape=(len(right), self.count)).tocsr()
        return LinearConstraint(matrix, right, right)

    def solve(self, objective: Costs, limits: Sequence[tuple[Costs, float]]) -> Solution | None:
        """Return the widths with the least ``objective`` whose costs keep their limits, or None where none is found."""
        rows = [self._ties()]
        for costs, limit in limits:
            scale = max(abs(limit), 1e-12)
            rows.append(LinearConstraint(self.row(costs)[None] / scale, -np.inf, (limit - costs.constant) / scale))
        goal = self.row(objective)
        scale = float(np.abs(goal).max()) or 1.0
        integral = np.zeros(self.count, dtype=np.int64)
        integral[: self.choices] = 1
        found = milp(
            goal / scale,
            integrality=integral,
            bounds=Bounds(0, 1),
            constraints=rows,
            options={"mip_rel_gap": GAP_RATIO, "node_limit": MAX_NODES, "time_limit": MAX_SOLVER_SECONDS},
        )
        if found.x is None:
            return None
        widths = {
            name: self.options[name][int(np.argmax(found.x[self.start[name] : self.start[name] + len(values)]))]
            for name, values in self.options.items()
        }
        return Solution(widths, float(found.mip_gap or 0.0))


def options_of(channels: int, floor: int, step: int) -> list[int]:
    """Return the widths a group can choose from: multiples of ``step`` from ``floor`` on, and all its channels.

    Where these are more than ``MAX_OPTIONS``, some that lie evenly on a logarithmic scale.
    """
    widths = [width for width in range(-(-floor // step) * step, channels, step) if width >= 1]
    if len(widths) >= MAX_OPTIONS:
        wanted = np.geomspace(widths[0], channels, MAX_OPTIONS)[:-1]
        widths = sorted({min(widths, key=lambda width: abs(width - one)) for one in wanted.tolist()})
    return [*widths, channels]
