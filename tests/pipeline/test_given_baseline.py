"""How a build begins with a given ``.onnx``: what runs of its baseline."""

import numpy as np
from tiny_models import a_network, a_quick_profile

from edgeopt.pipeline.artifacts import evaluator as evaluator_module
from edgeopt.pipeline.build import BuildRequest, open_build, start
from edgeopt.pipeline.score_checks import check_score
from edgeopt.store.workspace import Workspace


def test_the_selection_set_runs_once_through_a_given_file(tmp_path, monkeypatch):
    model = a_network(tmp_path / "given.onnx", width=4, inputs=("N", 8))
    inputs = np.random.default_rng(0).standard_normal((160, 8)).astype(np.float32)
    np.savez(tmp_path / "in.npz", x=inputs)
    request = BuildRequest(
        task=str(model), data=str(tmp_path / "in.npz"), profile=a_quick_profile(), devices=("local:",),
        out=str(tmp_path / "out"), workspace=str(tmp_path / "work"), allow_fallback=(), workers=1,
        time_limit_seconds=None, quick=True, command=(),
    )  # fmt: skip
    ran = []
    run_model = evaluator_module.run_model

    def counted(model, inputs, *others):
        ran.append(inputs)
        run_model(model, inputs, *others)

    monkeypatch.setattr(evaluator_module, "run_model", counted)
    with (
        Workspace(tmp_path / "work").open() as workspace,
        open_build(request, workspace, lambda *_: request.profile.limits, lambda *_: None) as build,
    ):
        evaluator = start(build).runner.evaluator
        check_score(build, evaluator, go_on=True)
        evaluator.score(evaluator.baseline)
        assert ran == [build.data.eval_file]
