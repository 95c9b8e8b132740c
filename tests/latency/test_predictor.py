import msgspec
import numpy as np
import pytest
from width_tables import BLOCK, FULL, PROBES, a_latency_table, network_ns

from edgeopt.latency.predictor import BlockSizes, Predictor, expand_terms, fit_layer, leave_one_out_errors
from edgeopt.records.groups import Dimension
from edgeopt.records.latency import Layer, LayerTime

EXACT = 1e-6
CLOSE = 0.03
NEW = [{"a": a, "b": b, "c": 5} for a in (8, 24, 40, 64) for b in (8, 32, 48, 64)]


def test_the_network_s_latency_is_predicted_at_widths_that_were_not_measured():
    predictor = Predictor(a_latency_table())
    errors = [predictor.ns(widths) / network_ns(widths) - 1 for widths in NEW]
    assert np.max(np.abs(errors)) < CLOSE


def test_the_block_size_of_the_outputs_is_found():
    blocks = Predictor(a_latency_table()).block_sizes
    assert blocks["Conv/2"].output == BLOCK
    assert blocks["Conv/1"].output == BLOCK


def test_a_device_without_blocks_gets_a_block_size_of_one():
    table = a_latency_table()
    two = table.layers[1]
    linear = tuple(LayerTime(sizes=time.sizes, ns=1_000.0 + 3.0 * time.sizes[0] * time.sizes[1]) for time in two.times)
    table = msgspec.structs.replace(table, layers=(table.layers[0], msgspec.structs.replace(two, times=linear)))
    assert Predictor(table).block_sizes["Conv/2"] == BlockSizes(1, 1)


def test_time_outside_the_layers_is_part_of_the_network_s_latency():
    predictor = Predictor(a_latency_table())
    assert predictor.constant_ns == pytest.approx(5_000, rel=0.2)
    slow = msgspec.structs.replace(
        a_latency_table(), wholes=tuple(msgspec.structs.replace(w, ns=2 * w.ns) for w in a_latency_table().wholes)
    )
    assert Predictor(slow).ns(FULL) == pytest.approx(2 * predictor.ns(FULL), rel=CLOSE)


def test_one_measured_network_gives_only_a_factor():
    table = a_latency_table()
    predictor = Predictor(msgspec.structs.replace(table, wholes=table.wholes[:1]))
    assert predictor.constant_ns == 0
    assert predictor.ns(FULL) == pytest.approx(network_ns(FULL), rel=EXACT)


def test_a_layer_that_depends_on_no_width_takes_its_usual_time():
    layer = Layer(name="softmax", operator="Softmax", shape="s", dimensions=(),
                  times=tuple(LayerTime(sizes=(), ns=ns) for ns in (990.0, 1000.0, 1010.0)))  # fmt: skip
    table = a_latency_table()
    predictor = Predictor(msgspec.structs.replace(table, layers=(*table.layers, layer), wholes=table.wholes[:1]))
    ratio = predictor.layer_ns(2, ()) / predictor.layer_ns(0, (64,))
    assert ratio == pytest.approx(1000 / (2_000 + 3_000 * 4), rel=CLOSE)


def test_a_layer_of_many_groups_is_linear_in_each():
    dims = tuple(Dimension(fixed=0, per_channel={name: 1}) for name in "abc")
    rng = np.random.default_rng(0)
    rows = [tuple(int(size) for size in rng.integers(1, 64, 3)) for _ in range(10)]
    times = tuple(LayerTime(sizes=row, ns=float(np.dot(row, (10, 20, 30)) + 500)) for row in rows)
    table = a_latency_table()
    layer = Layer(name="cat", operator="Concat", shape="c", dimensions=dims, times=times)
    predictor = Predictor(msgspec.structs.replace(table, layers=(*table.layers, layer), wholes=table.wholes[:1]))
    assert predictor.slopes_ns(2) == pytest.approx(np.array([10, 20, 30]) * predictor._scale[0], rel=0.01)


def test_a_fit_has_no_negative_slope_and_accepts_negative_times():
    rows = np.array([expand_terms((width,), BlockSizes(1, 1)) for width in (8, 16, 32, 64)])
    coefficients = fit_layer(rows, np.array([40.0, 30.0, 20.0, -10.0]))
    assert (coefficients[1:] >= 0).all()
    assert np.abs(leave_one_out_errors(rows, np.array([40.0, 30.0, 20.0, -10.0]))).max() < 0.1


def test_the_first_probe_has_the_full_widths():
    assert PROBES[0] == FULL
