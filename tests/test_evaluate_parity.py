"""The same numbers as CLIP_benchmark finds with its own reader, classifier and metrics on the same shards."""

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score
from small_suite import make_small_suite
from torch.utils.data import DataLoader

from cibr.evaluate import evaluate

pytest.importorskip("clip_benchmark")

from clip_benchmark.datasets.builder import build_wds_dataset, image_captions_collate_fn
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval


class Peer:
    """A model as CLIP_benchmark wants it: token ids and their mask travel as one tensor."""

    def __init__(self, model):
        self.model = model.eval()

    def tokenize(self, texts):
        return torch.stack(self.model.tokenize(texts))

    def encode_text(self, tokens):
        return self.model.encode_texts(*tokens).features

    def encode_image(self, pixels):
        return self.model.encode_images(self.model.normalise(pixels)).features

    def transform(self, image):
        return self.model.preprocess([image])[0]


def loader(peer, folder, collate_fn=None):
    dataset = build_wds_dataset("wds", peer.transform, "test", str(folder))
    return dataset, DataLoader(dataset, batch_size=5, collate_fn=collate_fn)


# webdataset warns of a setting that CLIP_benchmark leaves out, and leaves its files to be closed by chance.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:WebDataset\\(shardshuffle")
@pytest.mark.parametrize("kind", ["tiny", "clip"])
def test_scores_equal_those_of_clip_benchmark(build, tmp_path, monkeypatch, kind):
    root = make_small_suite(tmp_path, monkeypatch)
    model = build(kind)
    found = evaluate(model, "small", name="m").rows.set_index(["dataset", "metric"])["value"]
    peer = Peer(model)
    for name, ks in (("one", (1, 5)), ("left", (1,)), ("right", (1,))):
        dataset, batches = loader(peer, root / f"wds_{name}")
        parts = dataset.classes, dataset.templates, "cpu", False
        classifier = zeroshot_classification.zero_shot_classifier(peer, peer.tokenize, *parts)
        logits, labels = zeroshot_classification.run_classification(peer, classifier, batches, "cpu", amp=False)
        for k in ks:  # their own count of hits fails with NumPy 2.4
            hits = top_k_accuracy_score(labels, logits, k=k, labels=range(logits.shape[1]))
            assert found[name, f"accuracy@{k}"] == pytest.approx(hits)
        per_class = balanced_accuracy_score(labels, logits.argmax(1))
        assert found[name, "mean_per_class_accuracy"] == pytest.approx(per_class)
    _, batches = loader(peer, root / "wds_captions", collate_fn=image_captions_collate_fn)
    ks = [1, 5, 10]
    expected = zeroshot_retrieval.evaluate(peer, batches, peer.tokenize, "cpu", amp=False, recall_k_list=ks)
    for ours, theirs in (("text_to_image", "image_retrieval"), ("image_to_text", "text_retrieval")):
        recalls = [found["captions", f"{ours}_recall@{k}"] for k in ks]
        assert recalls == pytest.approx([expected[f"{theirs}_recall@{k}"] for k in ks])
