"""How many bits the weights of a static int8 variant get: as few as keep the score, and when that is tried at all."""

from types import SimpleNamespace

import msgspec
import numpy as np
import onnx
import pytest
from builders import A_QUANTIZE, a_budget, a_profile, a_recipe, an_artifact
from onnx import helper, numpy_helper
from stub_builds import a_stub_build
from tiny_models import a_convolution, a_network

from edgeopt.pipeline.artifacts.onnx_files import CALIBRATION_SAMPLES, with_weight_bits
from edgeopt.pipeline.search.candidate import ORIGINAL, ScoredArtifact, Variant
from edgeopt.pipeline.search.trial_runner import VariantMaker
from edgeopt.pipeline.search.variants.weight_bits import fewer_weight_bits, stored_in_fewer_bits
from edgeopt.records.recipe import BitsStep, Compact, PackWeights, QuantizeDynamic, Simplify, StoreWeights
from edgeopt.records.trial import Failed, Score

KEEPS, MISSES = 0.005, 0.1
"""Score drops; the limit allows 0.01."""
CPU = msgspec.structs.replace(a_profile(), precisions=("int8", "fp32"))


def a_variant(recipe, drop, size_bytes=1000):
    score = Score(value=0.9 - drop, drop=drop, drop_ci95=None, samples=512)
    return Variant(recipe, ScoredArtifact(an_artifact(number=1, size_bytes=size_bytes), score), {})


def bits_of(steps):
    return next(step.weight_bits for step in steps if isinstance(step, BitsStep))


class Runner:
    """Makes variants whose scores are given by bits, and counts them."""

    def __init__(self, build, keeping, fails=()):
        self.build, self.keeping, self.fails, self.tried = build, keeping, fails, []

    def make_variant(self, candidate, network, exported, steps, spent, reasons=()):
        bits = bits_of(steps)
        self.tried.append(bits)
        recipe = msgspec.structs.replace(a_recipe(), graph_steps=steps)
        if bits in self.fails:
            return Variant(recipe, Failed(stage="quantize", reason="it crashed", trace=""), {})
        return a_variant(recipe, KEEPS if bits in self.keeping else MISSES, 100 * bits)


def found_by(
    tmp_path, keeping, *, int8=KEEPS, fp32=KEEPS, fails=(), profile=CPU, path=None,
    find=fewer_weight_bits, more=(), **changes,
):  # fmt: skip
    path = path or a_convolution(tmp_path / "model.onnx")
    build = a_stub_build(
        budget=a_budget(max_score_drop=0.01), profile=profile,
        workspace=SimpleNamespace(artifact=lambda sha256: path), **changes,
    )  # fmt: skip
    runner = Runner(build, keeping, fails)
    variants = [a_variant(a_recipe(int8=True), int8), a_variant(a_recipe(), fp32, 4000), *more]
    exported = SimpleNamespace(sha256="a")
    return runner.tried, find(VariantMaker(runner, ORIGINAL, None, exported), variants)


@pytest.mark.parametrize(
    ("keeping", "int8", "tried", "bits"),
    [
        ((3, 4, 5, 6), KEEPS, [4, 3], 3),
        ((4, 5, 6), KEEPS, [4, 3], 4),
        ((5, 6), KEEPS, [4, 5], 5),
        ((6,), KEEPS, [4, 5, 6], 6),
        ((), KEEPS, [4, 5, 6], None),
        ((8,), MISSES, [4, 5, 6, 8], 8),
        ((), MISSES, [4, 5, 6, 8], None),
    ],
)
def test_the_fewest_bits_that_keep_the_score_are_found(tmp_path, keeping, int8, tried, bits):
    done, found = found_by(tmp_path, keeping, int8=int8)
    assert done == tried
    assert [bits_of(one.recipe.graph_steps) for one in found] == ([bits] if bits else [])


def test_a_variant_that_cannot_be_made_is_a_failed_trial_and_the_last(tmp_path):
    tried, (found,) = found_by(tmp_path, (5,), fails=(4,))
    assert tried == [4]
    assert isinstance(found.made, Failed)


def test_other_providers_get_no_packed_weights_but_better_rounding(tmp_path):
    profile = msgspec.structs.replace(CPU, providers=("CUDAExecutionProvider", "CPUExecutionProvider"))
    assert found_by(tmp_path, (4, 8), profile=profile, int8=KEEPS)[0] == []
    assert found_by(tmp_path, (4, 8), profile=profile, int8=MISSES)[0] == [8]


def test_without_constant_folding_weights_are_not_packed(tmp_path):
    assert found_by(tmp_path, (4,), profile=msgspec.structs.replace(CPU, graph_level="disabled"))[0] == []


@pytest.mark.parametrize("changes", [{"fp32": MISSES}, {"is_out_of_time": True}])
def test_nothing_is_tried_if_float_misses_the_score_or_time_is_over(tmp_path, changes):
    assert found_by(tmp_path, (4,), **changes) == ([], [])


def test_nothing_is_tried_without_weights_to_round(tmp_path):
    model = onnx.load(a_convolution(tmp_path / "model.onnx"))
    del model.graph.initializer[:]
    onnx.save(model, tmp_path / "empty.onnx")
    assert found_by(tmp_path, (4,), path=tmp_path / "empty.onnx") == ([], [])


def test_packing_comes_before_compacting_and_only_for_few_bits():
    steps = (Simplify(), A_QUANTIZE, Compact())
    assert with_weight_bits(steps, 5)[2:] == (PackWeights(), Compact())
    assert with_weight_bits(steps, 8)[1:] == (msgspec.structs.replace(A_QUANTIZE, weight_bits=8), Compact())


# -- weights alone ---------------------------------------------------------------------------------------------------


def with_steps(*steps, drop):
    return a_variant(msgspec.structs.replace(a_recipe(), graph_steps=steps), drop)


@pytest.mark.parametrize(
    ("more", "int8", "tried"),
    [
        ((), KEEPS, [4, 5, 6]),  # plain int8 keeps the score, but in no fewer bits
        ((), MISSES, [4, 5, 6, 8]),
        ((with_steps(msgspec.structs.replace(A_QUANTIZE, weight_bits=5), drop=KEEPS),), KEEPS, []),
        ((with_steps(msgspec.structs.replace(A_QUANTIZE, weight_bits=5), drop=MISSES),), KEEPS, [4, 5, 6]),
        ((with_steps(StoreWeights(), drop=MISSES),), KEEPS, []),
        ((with_steps(StoreWeights(), drop=MISSES),), MISSES, [8]),
        ((with_steps(StoreWeights(), drop=KEEPS),), MISSES, [4, 5, 6]),
    ],
)
def test_weights_alone_get_fewer_bits_unless_static_int8_does(tmp_path, monkeypatch, more, int8, tried):
    monkeypatch.setattr("edgeopt.pipeline.search.variants.weight_bits.is_pair", lambda build, exported: False)
    more_bits = []
    monkeypatch.setattr("edgeopt.pipeline.search.variants.weight_bits.enough_bits", more_bits.append)
    done, found = found_by(tmp_path, (), int8=int8, find=stored_in_fewer_bits, more=more)
    assert (done, found) == (tried, [])
    assert len(more_bits) == (8 in tried)  # some weights get more than 8 bits if nothing else keeps the score
    if 4 in tried:
        done, (one,) = found_by(tmp_path, (3, 4), int8=int8, find=stored_in_fewer_bits, more=more)
        assert (done, one.recipe.graph_steps[-2:]) == ([4, 3], (PackWeights(), Compact()))


@pytest.mark.parametrize(("ratio", "tried"), [(0.25, []), (0.9, [8])])
def test_an_int8_file_that_left_most_weights_in_float_is_not_enough(tmp_path, monkeypatch, ratio, tried):
    monkeypatch.setattr("edgeopt.pipeline.search.variants.weight_bits.is_pair", lambda build, exported: False)
    path = a_convolution(tmp_path / "model.onnx")
    mixed = a_variant(a_recipe(int8=True), KEEPS, int(ratio * path.stat().st_size))
    more = (with_steps(StoreWeights(), drop=MISSES), mixed)
    done, found = found_by(tmp_path, (8,), int8=MISSES, find=stored_in_fewer_bits, more=more, path=path)
    assert (done, [bits_of(one.recipe.graph_steps) for one in found]) == (tried, tried)


@pytest.mark.parametrize(("ratio", "tried"), [(0.25, []), (0.9, [4, 5, 6, 8])])
def test_a_static_file_in_few_bits_that_is_nearly_all_float_does_not_end_the_search(
    tmp_path, monkeypatch, ratio, tried
):
    monkeypatch.setattr("edgeopt.pipeline.search.variants.weight_bits.is_pair", lambda build, exported: False)
    monkeypatch.setattr("edgeopt.pipeline.search.variants.weight_bits.enough_bits", lambda maker: None)
    path = a_convolution(tmp_path / "model.onnx")
    steps = (msgspec.structs.replace(A_QUANTIZE, weight_bits=3), PackWeights())
    recipe = msgspec.structs.replace(a_recipe(), graph_steps=steps)
    more = (a_variant(recipe, KEEPS, int(ratio * path.stat().st_size)),)
    done, _ = found_by(tmp_path, (), int8=MISSES, find=stored_in_fewer_bits, more=more, path=path)
    assert done == tried


@pytest.mark.parametrize(("drop", "has_others"), [(KEEPS, False), (MISSES, False), (KEEPS, True)])
def test_dynamic_int8_gets_the_bits_that_weights_alone_can_have_if_all_weights_are_of_products(
    tmp_path, monkeypatch, drop, has_others
):
    monkeypatch.setattr("edgeopt.pipeline.search.variants.weight_bits.is_pair", lambda build, exported: False)
    path = tmp_path / "model.onnx"
    a_network(path)
    model = onnx.load(path)
    if has_others:
        model.graph.initializer.append(numpy_helper.from_array(np.ones((64, 64), np.float32), "cell"))
        model.graph.node.append(helper.make_node("Identity", ["cell"], ["states"]))
        onnx.save(model, path)
    more = (with_steps(QuantizeDynamic(reduce_range=True), Compact(), drop=drop),)
    done, found = found_by(tmp_path, (4, 5, 6), int8=KEEPS, find=stored_in_fewer_bits, more=more, path=path)
    dynamic = [one.recipe.graph_steps[2:] for one in found if isinstance(one.recipe.graph_steps[2], QuantizeDynamic)]
    if drop == MISSES or has_others:
        assert (done, dynamic) == ([4, 3], [])
    else:
        samples = CALIBRATION_SAMPLES
        few = QuantizeDynamic(reduce_range=True, weight_bits=4, samples=samples)
        assert dynamic == [(few, StoreWeights(weight_bits=4, samples=samples), PackWeights(), Compact())]


def test_a_target_without_int8_gets_no_integers(tmp_path):
    profile = msgspec.structs.replace(CPU, precisions=("fp32",))
    assert found_by(tmp_path, (4,), profile=profile, find=stored_in_fewer_bits) == ([], [])
