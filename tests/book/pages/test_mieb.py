"""The wrapper of the page on `cibr.evaluate` runs in mteb, offline, and its recalls are ours."""

import re
from pathlib import Path

import pytest
import torch

import cibr

PAGE = Path(__file__).resolve().parents[3] / "book" / "api" / "evaluate.md"


@pytest.mark.extra
def test_recalls_of_a_small_task_in_mteb_are_ours(monkeypatch, tmp_path):
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path))
    mteb = pytest.importorskip("mteb")
    datasets = pytest.importorskip("datasets")
    section = PAGE.read_text("utf-8").split("## MIEB\n")[1]
    code = re.search(r"^```python\n(.*?)^```", section, re.M | re.S)[1]
    howto = {}
    exec(code, howto)
    pairs = cibr.load_pairs("glyphs", "test").subset(range(90))  # no name twice
    model = cibr.DualEncoder.from_pretrained("cibr-tiny")
    ids = [str(i) for i in range(90)]
    queries = datasets.Dataset.from_dict({"id": ids, "text": pairs.texts()})
    corpus = datasets.Dataset.from_dict({"id": ids, "image": list(pairs.images())})

    about = dict(name="Glyphs", description="Printed characters by their Unicode names.")
    about |= dict(type="Any2AnyRetrieval", category="t2i", modalities=["image", "text"])
    about |= dict(eval_langs=["eng-Latn"], main_score="recall_at_1")
    metadata = mteb.TaskMetadata(dataset={"path": "made on the spot", "revision": "1"}, **about)
    task = type("Glyphs", (mteb.abstasks.AbsTaskRetrieval,), {"metadata": metadata})()
    data = dict(queries=queries, corpus=corpus, relevant_docs={i: {i: 1} for i in ids})
    task.dataset = {"default": {"test": data | {"top_ranked": None}}}
    task.data_loaded = True
    encoder = howto["MIEBEncoder"](model, "cibr/cibr-tiny")
    result = mteb.evaluate(encoder, task, cache=None, show_progress_bar=False)
    scores = result.task_results[0].scores["test"][0]
    images = model.embed_images(pairs.images())
    own = cibr.recall_at_k(images, model.embed_texts(pairs.texts()), torch.arange(90))
    for k in (1, 5, 10):
        assert scores[f"recall_at_{k}"] == pytest.approx(own[f"text_to_image_recall@{k}"], abs=1e-4)
