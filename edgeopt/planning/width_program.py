"""Widths by mixed-integer programming: the least importance lost within limits on parameters and time.

In: tables of costs for each group's widths. Out: a ``Solution``, with the gap to the best bound. A weight's size and a
layer's time depend on the widths of two groups. Each width of a group is a binary choice ``z``. Each pair of widths of
two groups that meet in a layer has a variable ``u``, constrained by

    sum over l of u[gk, hl] = z[gk]        sum over k of u[gk, hl] = z[hl]

This is exact if every ``z`` is 0 or 1, so parameters and times are linear in ``z`` and ``u`` for any tables of costs. A
layer that meets more than two groups (it reads a concatenation) is approximated by a plane through its corners.
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
"""Most widths of a group to choose from."""
GAP_RATIO = 0.005
"""The solver ends when no choice can be better than the best one found by more than this ratio."""
MAX_NODES = 20_000
"""Most branches to explore: unlike a limit on time, one on work gives the same result on every machine."""
MAX_SOLVER_SECONDS = 30.0


class Solution(NamedTuple):
    """A choice of widths."""

    widths: dict[str, int]
    gap_ratio: float
    misses_latency: bool = False
    """Whether it is the quickest choice, because none keeps the limit on latency."""


@dataclass
class Costs:
    """A sum over the choices: a constant, a table for each group, and a table for each pair of groups."""

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
        terms = [
            [(None, float(size.fixed)), *((name, float(count)) for name, count in size.per_channel.items())]
            for size in (first, second)
        ]
        for (left, a), (right, b) in product(*terms):
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

    def add_gated(self, factor: float, dims: Sequence[Dimension], carrier: str) -> bool:
        """Add ``factor`` times a product of sizes for all widths of ``carrier`` but zero.

        Returns:
            False, and nothing is added, if the carrier's own channels are among the sizes (at zero they are nothing
            anyway), or if the sizes follow more than one other group.
        """
        constants = {name: widths[0] for name, widths in self.options.items() if len(widths) == 1}
        names = {name for dim in dims for name in dim.per_channel} - constants.keys()
        if 0 not in self.options[carrier] or carrier in names or len(names) > 1:
            return False
        there = (self.widths(carrier) > 0).astype(np.float64)
        if not names:
            self.add(carrier, factor * there * float(np.prod([dimension.size(constants) for dimension in dims])))
        else:
            (name,) = names
            sizes = [np.prod([one.size(constants | {name: width}) for one in dims]) for width in self.options[name]]
            self.add_pair(carrier, name, factor * np.outer(there, sizes))
        return True

    def widths(self, group: str) -> _Floats:
        """Return the widths that a group can choose from."""
        return np.asarray(self.options[group], dtype=np.float64)

    def sizes(self, dimension: Dimension, group: str) -> list[int]:
        """Return the size of a dimension that follows only this group, for each of the group's widths."""
        return [dimension.size({group: width}) for width in self.options[group]]


UNIT_DIMENSION = Dimension(fixed=1, per_channel={})


def _count_one(_tensor: WeightShape) -> float:
    return 1.0


def weight_costs(
    table: GroupTable,
    options: Mapping[str, Sequence[int]],
    cost_per_weight: Callable[[WeightShape], float] = _count_one,
) -> Costs | None:
    """Return a cost that is a sum over all weights, by default their number.

    Args:
        table: The network's groups and weights.
        options: The widths that every group can choose from.
        cost_per_weight: Cost of each weight of a tensor, such as ``macs_per_weight``.

    Returns:
        None if a tensor has more than two dimensions that follow widths.
    """
    costs = Costs(options)
    carriers = {name: branch.groups[0] for branch in table.branches for name in branch.tensors}
    for tensor in table.tensors:
        variable = [dimension for dimension in tensor.dims if dimension.per_channel]
        if len(variable) > 2:
            return None
        fixed = float(np.prod([dimension.fixed for dimension in tensor.dims if not dimension.per_channel]))
        first, second = [*variable, UNIT_DIMENSION, UNIT_DIMENSION][:2]
        factor, carrier = cost_per_weight(tensor) * fixed, carriers.get(tensor.name)
        if carrier is None or not costs.add_gated(factor, variable, carrier):
            costs.add_product(factor, first, second)
    return costs


def importance_costs(table: GroupTable, options: Mapping[str, Sequence[int]]) -> Costs:
    """Return the importance that each group loses; see ``importance_losses`` and ``branch_losses``."""
    costs = Costs(options)
    without = branch_losses(table)
    carried = {branch.groups[0]: without[branch.name] for branch in table.branches if branch.name in without}
    for group in table.free:
        losses = [*importance_losses(group), carried.get(group.name, 0.0)]
        costs.add(group.name, np.array([losses[group.channels - width] for width in options[group.name]]))
    return costs


def branch_losses(table: GroupTable) -> dict[str, float]:
    """Return the importance lost with each branch that is left out, by its name.

    The loss without a branch is measured, that of its channels is an estimate with another scale. The scale is found
    from what both say of the less important half of the channels of all branches. Nothing is returned if that half
    costs nothing, as of an untrained network; a branch of which it costs less than nothing does not count.
    """
    groups = {group.name: group for group in table.free}
    measured = estimated = 0.0
    for branch in table.branches:
        measured += max(0.0, branch.half_loss)
        for name in branch.groups:
            group = groups[name]
            estimated += float(importance_losses(group)[group.channels - max(group.least, group.channels // 2)])
    if measured <= 0 or estimated <= 0:
        return {}
    return {branch.name: max(0.0, branch.loss) * estimated / measured for branch in table.branches}


def importance_losses(group: ChannelGroup) -> _Floats:
    """Return the importance lost when 0, 1, 2, ... of a group's channels are removed, the least important first.

    Importance is a linear estimate at the trained weights: right for the first channels, too low for the last ones,
    which take over the work of the removed ones. So the removed importance is divided by the ratio that remains. There
    is no entry for the removal of all channels.
    """
    removed = np.concatenate([[0.0], np.cumsum(np.sort(group.importance))])[:-1]
    total = float(np.sum(group.importance))
    losses: _Floats = removed * total / (total - removed) if total > 0 else removed
    return losses


def latency_costs(predictor: Predictor, options: Mapping[str, Sequence[int]]) -> Costs:
    """Return the network's predicted nanoseconds; ``options`` has every group that the table's layers follow.

    A layer with channels of a group that keeps none is gone.
    """
    costs = Costs(options, constant=predictor.constant_ns)
    for index, layer in enumerate(predictor.table.layers):
        dims = layer.dimensions
        names = sorted({name for dimension in dims for name in dimension.per_channel})
        if len(dims) > 2:
            base = [dimension.size({name: _least_width(options[name]) for name in names}) for dimension in dims]
            slopes = predictor.slopes_ns(index)
            costs.constant += predictor.layer_ns(index, base) - float(np.dot(slopes, base))
            for slope, dimension in zip(slopes, dims, strict=True):
                costs.add_product(slope, dimension, UNIT_DIMENSION)
        elif len(names) > 2:
            _add_plane(costs, predictor, index, dims)
        elif not names:
            costs.constant += predictor.layer_ns(index, [dimension.fixed for dimension in dims])
        elif len(names) == 1:
            name = names[0]
            sizes = zip(*(costs.sizes(dimension, name) for dimension in dims), strict=True)
            times = np.array([predictor.layer_ns(index, layer_sizes) for layer_sizes in sizes])
            costs.add(name, times * (costs.widths(name) > 0))
        else:
            first, second = names
            times = np.array(
                [
                    [predictor.layer_ns(index, [dimension.size({first: a, second: b}) for dimension in dims])
                     for b in options[second]]
                    for a in options[first]
                ]
            )  # fmt: skip
            costs.add_pair(first, second, times * np.outer(costs.widths(first) > 0, costs.widths(second) > 0))
    return costs


def _add_plane(costs: Costs, predictor: Predictor, index: int, dims: Sequence[Dimension]) -> None:
    """Add a layer of many groups as ``a + b x + c y + d x y``, fitted at its smallest and largest sizes."""
    ends = [
        [dimension.fixed + sum(n * choose(costs.options[g]) for g, n in dimension.per_channel.items())
         for choose in (_least_width, max)]
        for dimension in dims
    ]  # fmt: skip
    corners = list(product(*ends))
    rows = np.array([_plane(corner) for corner in corners])
    times = np.array([predictor.layer_ns(index, corner) for corner in corners])
    coefficients = np.linalg.lstsq(rows, times, rcond=None)[0]
    first, second = [*dims, UNIT_DIMENSION][:2]
    costs.constant += float(coefficients[0])
    costs.add_product(float(coefficients[1]), first, UNIT_DIMENSION)
    if len(dims) > 1:
        costs.add_product(float(coefficients[2]), second, UNIT_DIMENSION)
        costs.add_product(float(coefficients[3]), first, second)


def _least_width(widths: Sequence[int]) -> int:
    """Return the smallest width at which a layer is there; 0 if it was left out before."""
    return min((width for width in widths if width), default=0)


def _plane(sizes: Sequence[int]) -> list[float]:
    return [1.0, float(sizes[0])] if len(sizes) == 1 else [1.0, float(sizes[0]), float(sizes[1]), float(np.prod(sizes))]


class WidthProgram:
    """The mixed-integer program over one network's widths.

    Args:
        options: The widths that every group can choose from.
        pairs: Groups that meet in a layer or a weight.
        tied: Groups that keep no channel all together or not at all.
    """

    def __init__(
        self,
        options: Mapping[str, Sequence[int]],
        pairs: Sequence[tuple[str, str]],
        tied: Sequence[Sequence[str]] = (),
    ) -> None:
        self.options = options
        self.tied = tied
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
        """Return costs as a row of coefficients, without the constant."""
        row = np.zeros(self.count)
        for name, values in costs.unary.items():
            row[self.start[name] : self.start[name] + len(values)] += values
        for pair, table in costs.pairs.items():
            row[self.pair_start[pair] : self.pair_start[pair] + table.size] += table.ravel()
        return row

    def _consistency(self) -> LinearConstraint:
        """Return the constraint that each group has one width, and that pairs agree with the chosen widths."""
        entries: list[tuple[int, int, float]] = []
        right: list[float] = []
        for name, widths in self.options.items():
            entries += [(len(right), self.start[name] + k, 1.0) for k in range(len(widths))]
            right.append(1.0)
        for (first, second), start in self.pair_start.items():
            rows, columns = len(self.options[first]), len(self.options[second])
            for row in range(rows):
                entries += [(len(right), start + row * columns + column, 1.0) for column in range(columns)]
                entries.append((len(right), self.start[first] + row, -1.0))
                right.append(0.0)
            for column in range(columns):
                entries += [(len(right), start + row * columns + column, 1.0) for row in range(rows)]
                entries.append((len(right), self.start[second] + column, -1.0))
                right.append(0.0)
        for first, *others in self.tied:
            for other in others:
                entries += [
                    (len(right), self.start[name] + list(self.options[name]).index(0), sign)
                    for name, sign in ((first, 1.0), (other, -1.0))
                ]
                right.append(0.0)
        row_indices, column_indices, values = zip(*entries, strict=True)
        matrix = coo_array((values, (row_indices, column_indices)), shape=(len(right), self.count)).tocsr()
        return LinearConstraint(matrix, right, right)

    def solve(self, objective: Costs, limits: Sequence[tuple[Costs, float]]) -> Solution | None:
        """Return the widths with the least ``objective`` whose costs keep their limits, or None if none are found."""
        constraints = [self._consistency()]
        for costs, limit in limits:
            scale = max(abs(limit), 1e-12)
            upper = (limit - costs.constant) / scale
            constraints.append(LinearConstraint(self.row(costs)[None] / scale, -np.inf, upper))
        objective_row = self.row(objective)
        scale = float(np.abs(objective_row).max()) or 1.0
        integral = np.zeros(self.count, dtype=np.int64)
        integral[: self.choices] = 1
        result = milp(
            objective_row / scale,
            integrality=integral,
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": GAP_RATIO, "node_limit": MAX_NODES, "time_limit": MAX_SOLVER_SECONDS},
        )
        if result.x is None:
            return None
        widths = {
            name: self.options[name][int(np.argmax(result.x[self.start[name] : self.start[name] + len(values)]))]
            for name, values in self.options.items()
        }
        return Solution(widths, float(result.mip_gap or 0.0))


def list_widths(channels: int, min_width: int, step: int) -> list[int]:
    """Return the widths a group can choose from: multiples of ``step`` from ``min_width`` on, and all its channels.

    If there are more than ``MAX_OPTIONS``, some are picked evenly on a logarithmic scale.
    """
    widths = [width for width in range(-(-min_width // step) * step, channels, step) if width >= 1]
    if len(widths) >= MAX_OPTIONS:
        even = np.geomspace(widths[0], channels, MAX_OPTIONS)[:-1]
        widths = sorted({min(widths, key=lambda width: abs(width - value)) for value in even.tolist()})
    return [*widths, channels]
