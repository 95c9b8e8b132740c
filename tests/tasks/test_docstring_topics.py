"""Texts about Python's modules: their words, their parts, the encoder, and the training of it."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edgeopt.errors import DataError
from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import analyse
from edgeopt.task import load_task
from edgeopt.tasks.networks.text_encoder import TextEncoder
from edgeopt.tasks.ready import docstrings
from edgeopt.tasks.ready.docstring_topics import DocstringTopics, pad_texts, read_texts

TOOLS = Path(__file__).parents[2] / "tools"


def train_teacher():
    spec = importlib.util.spec_from_file_location("train_teacher_for_texts", TOOLS / "train_teacher.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_words_are_split_as_a_reader_would_and_have_ids_without_a_list():
    words = docstrings.split_words("Call readLine() or read_line, not HTTPServer2.")
    assert words == ["call", "read", "line", "(", ")", "or", "read", "line", ",", "not", "http", "server", "2", "."]
    ids = docstrings.word_ids(words)
    assert (ids[1], ids[2]) == (ids[6], ids[7])
    assert docstrings.word_ids(["call", "."]).tolist() == [1080, 3354]
    assert ids.min() > docstrings.HIDDEN
    assert ids.max() < docstrings.TABLE_ROWS


def test_there_are_enough_texts_of_each_topic_and_none_is_in_two_parts():
    parts = {part: docstrings.load_texts(part) for part in ("train", "selection", "test")}
    assert sum(map(len, parts.values())) > 5000
    for texts in parts.values():
        counts = np.bincount([text.label for text in texts], minlength=len(docstrings.TOPICS))
        assert counts.min() > 40
        assert max(len(text.words) for text in texts) == docstrings.MAX_WORDS
    whole = [[text for text in texts if len(text.words) < docstrings.MAX_WORDS] for texts in parts.values()]
    seen = [{text.words.tobytes() for text in texts} for texts in whole]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]


def test_paragraphs_and_comments_are_texts(tmp_path, monkeypatch):
    package = tmp_path / "lib" / "asyncio"
    (package / "tests").mkdir(parents=True)
    (package / "tests" / "a.py").write_text('"""Not a text of the package, but of its tests."""')
    docstring = '"""First paragraph of the module.\n\nSecond paragraph."""'
    (package / "a.py").write_text(f"{docstring}\nx = 1  # behind code\n\n# A comment\n# of two lines\n")
    texts = [text for path in docstrings._sources(tmp_path / "lib", "asyncio") for text in docstrings._texts(path)]
    assert texts == ["First paragraph of the module.", "Second paragraph.", "A comment of two lines"]
    monkeypatch.setattr(docstrings.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path / "lib")})
    docstrings._load_all.cache_clear()
    with pytest.raises(DataError, match=r"has only 0 texts about asynchronous.*not there as source files"):
        docstrings.load_texts("train")
    docstrings._load_all.cache_clear()


def test_an_epoch_has_every_text_once_with_few_padded_places_and_some_hidden_words():
    task = DocstringTopics(lambda: None)
    first = list(task.draw_epoch(3))
    same, other = (next(task.draw_epoch(seed)) for seed in (3, 4))
    assert torch.equal(first[0][0]["input_ids"], same[0]["input_ids"])
    assert not torch.equal(same[1], other[1])
    masks = [inputs["attention_mask"] for inputs, _ in first]
    assert sum(map(len, masks)) == len(docstrings.load_texts("train"))
    words = sum(int(mask.sum()) for mask in masks)
    assert words == sum(len(text.words) for text in read_texts("train"))
    assert words > 0.9 * sum(mask.numel() for mask in masks)
    hidden = sum(int((inputs["input_ids"] == docstrings.HIDDEN).sum()) for inputs, _ in first)
    assert 0.12 < hidden / words < 0.18


def test_padding_does_not_change_an_answer():
    torch.manual_seed(0)
    network = TextEncoder(3, docstrings.TABLE_ROWS, docstrings.MAX_WORDS, width=16, layers=2).eval()
    texts = read_texts("selection")
    alone, both = pad_texts(texts[:1])[0], pad_texts([texts[0], texts[-1]])[0]
    assert both["input_ids"].shape == (2, docstrings.MAX_WORDS)
    torch.testing.assert_close(network(**alone), network(**both)[:1])


def test_widths_of_heads_and_wide_layers_can_be_pruned():
    network = TextEncoder(3, 50, 12, width=16, layers=2, heads=2).eval()
    inputs = (torch.randint(2, 50, (2, 7)), torch.ones(2, 7, dtype=torch.int64))
    free = set(analyse(Network.trace(network, inputs)).free)
    inside = ("wide", "attention.query", "attention.value")
    assert {f"layers.{layer}.{name}" for layer in (0, 1) for name in inside} <= free
    assert "tokens:1" in free


def test_a_narrow_encoder_learns_more_than_the_most_frequent_topic(monkeypatch):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    module = train_teacher()
    some, selection = read_texts("train")[::8], read_texts("selection")[::4]
    parts = {"train": some, "selection": selection}
    monkeypatch.setattr("edgeopt.tasks.ready.docstring_topics.read_texts", parts.__getitem__)
    model = TextEncoder(len(docstrings.TOPICS), docstrings.TABLE_ROWS, docstrings.MAX_WORDS, width=32, layers=1)
    task = DocstringTopics(lambda: model)
    best = module.train(task, epochs=4, rate=1e-2, seed=0, device="cpu")
    assert best > 1.5 * max(np.bincount([text.label for text in selection])) / len(selection)


def test_the_ready_task_takes_texts_of_any_length(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEOPT_DATA", str(tmp_path))
    with pytest.raises(Exception, match=r"train the network .* `python tools/train_teacher\.py docstring_topics`"):
        _ = load_task("docstring_topics").model
    (tmp_path / "teachers").mkdir()
    save_file(DocstringTopics.make_network().state_dict(), tmp_path / "teachers" / "docstring_topics.safetensors")
    task = load_task("docstring_topics")
    assert task.input_names == ("input_ids", "attention_mask")
    assert task.example_inputs[0].shape == (8, docstrings.MAX_WORDS)
    lengths = {inputs[0].shape[1] for inputs, _ in task.eval_batches()}
    assert len(lengths) > 10
    assert task.score_kind.parts[0].metric == "accuracy"
    assert task.notes == []
