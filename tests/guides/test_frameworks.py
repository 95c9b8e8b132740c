"""The guides to Lightning, timm and training scripts: their code runs with stand-ins for what it imports."""

import torch
from guide_code import guide_project
from walking import walk

from edgeopt.task import load_task


def test_a_lightning_module_is_taken_as_it_is(tmp_path):
    with guide_project("lightning", tmp_path, lightning="lightning_stand_in", my_data="images"):
        import my_data
        import my_project

        module = my_data.fit(my_project.Classifier(width=8))
        torch.save({"state_dict": module.state_dict(), "hyper_parameters": module.hparams}, "last.ckpt")
        task = load_task(f"{tmp_path / 'my_task.py'}:task")
        assert isinstance(task.model, my_project.Classifier)
        assert task.input_names == ("input",)
        assert len(list(task.test_batches())) == 2
        assert walk(task, tmp_path, exporter="torchscript") > 0.8


def test_a_classifier_of_timm_is_one_call(tmp_path):
    with guide_project("torchvision", tmp_path, timm="timm_stand_in", my_data="images"):
        import my_data
        import timm

        model = my_data.fit(timm.create_model("mobilenetv3_small_100", num_classes=4))
        torch.save({"state_dict": model.state_dict(), "epoch": 3}, "model_best.pth.tar")
        task = load_task(f"{tmp_path / 'my_task.py'}:task")
        assert task.preprocessing.text.startswith("RGB")
        assert walk(task, tmp_path, exporter="torchscript") > 0.8


def test_a_training_script_becomes_a_task(tmp_path):
    with guide_project("training-script", tmp_path, train="script", images="images"):
        import train

        train.main()
        task = load_task(f"{tmp_path / 'my_task.py'}:task")
        assert (task.input_names, task.output_names) == (("image",), ("logits",))
        assert walk(task, tmp_path, exporter="torchscript") > 0.8
