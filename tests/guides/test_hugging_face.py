"""The guide to Hugging Face models: its code runs with a tokenizer, a collator and a saved checkpoint."""

import pytest
from guide_code import guide_project
from walking import score_of, trace, train_step, walk

from edgeopt.task import load_task

pytest.importorskip("transformers")


def test_the_model_of_a_trainer_is_taken_as_it_is(tmp_path):
    with guide_project("hugging-face", tmp_path, my_training="hugging_face"):
        import my_training

        my_training.train()
        task = load_task(f"{tmp_path / 'my_task.py'}:task")
        assert task.input_names == ("input_ids", "attention_mask", "token_type_ids")
        assert task.output_names == ("logits",)
        assert task.notes == []
        assert walk(task, tmp_path) > 0.8
        own = load_task(f"{tmp_path / 'my_metric_task.py'}:task")
        assert score_of(own)[0] == pytest.approx(score_of(task)[0])
        loss, distance = train_step(own, trace(own))
        assert distance.item() < loss.item()
