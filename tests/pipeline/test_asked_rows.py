"""What a user asks of rows that are never read: in the task, in edgeopt.toml and on the command line."""

import numpy as np
import pytest
import torch
from torch import nn

import edgeopt
from edgeopt.errors import ConfigError, InputError, TaskError
from edgeopt.export.to_onnx import export
from edgeopt.pipeline.search.variants.unseen_rows import settle_unseen_rows
from edgeopt.records.unseen_rows import UnseenRows
from edgeopt.task import CheckedTask
from edgeopt.tasks.given.onnx_file import OnnxTask


def a_task(**options):
    net = nn.Sequential(nn.Embedding(50, 8), nn.Flatten(), nn.Linear(24, 2))
    batch = (torch.arange(12).reshape(4, 3), torch.tensor([0, 1, 0, 1]))
    return CheckedTask(edgeopt.classification(net, [batch], [batch], input_names=("tokens",), **options), "a_task")


def test_task_and_command_line_add_up():
    task = a_task(drop_unseen_rows=True, unknown_ids={"tokens": 3})
    assert settle_unseen_rows(UnseenRows(), task) == UnseenRows(drop=True, unknown_ids={"tokens": 3})
    assert settle_unseen_rows(UnseenRows(unknown_ids={"tokens": 4}), task).unknown_ids == {"tokens": 4}
    assert settle_unseen_rows(UnseenRows(), a_task()) == UnseenRows()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (UnseenRows(unknown_ids={"tokens": 1}), "unknown ids are for --drop-unseen-rows. Add it, or leave them out."),
        (UnseenRows(drop=True, unknown_ids={"token": 1}), "the inputs of the model are tokens, not 'token'."),
        (UnseenRows(drop=True, unknown_ids={"tokens": -1}), "the unknown id -1 of 'tokens' is below 0."),
    ],
)
def test_unknown_ids_are_checked(asked, message):
    with pytest.raises(ConfigError, match=message):
        settle_unseen_rows(asked, a_task())


@pytest.mark.parametrize("options", [{"drop_unseen_rows": "yes"}, {"unknown_ids": {"tokens": "1"}}, {"unknown_ids": 3}])
def test_members_of_a_task_have_a_form(options):
    with pytest.raises(TaskError, match="drop_unseen_rows has to be True or False, and unknown_ids a dict"):
        a_task(**options)


def test_made_up_inputs_say_nothing_about_rows(tmp_path):
    export(
        nn.Linear(3, 2).eval(),
        (torch.zeros(2, 3),),
        tmp_path / "net.onnx",
        input_names=["x"],
        output_names=["y"],
        max_opset=18,
        max_ir=10,
    )
    asked = UnseenRows(drop=True)
    with pytest.raises(InputError, match="keeps the rows that real inputs read: give them with --data"):
        settle_unseen_rows(asked, OnnxTask(tmp_path / "net.onnx", None))
    np.savez(tmp_path / "data.npz", x=np.zeros((40, 3), np.float32))
    assert settle_unseen_rows(asked, OnnxTask(tmp_path / "net.onnx", tmp_path / "data.npz")) == asked
