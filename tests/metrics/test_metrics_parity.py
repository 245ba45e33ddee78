"""Other implementations of the same scores find the same numbers on the same embeddings."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from clip_benchmark.metrics import zeroshot_retrieval
from sklearn import metrics as sklearn_metrics

from cibr.metrics import class_ranks, predictions, query_scores, recall_at_k, zeroshot_accuracy

with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # it would like ujson
    from eccv_caption import Metrics


def captioned(n, n_captions, d, noise, seed=0):
    """Unit vectors of images and of as many captions for each, in order."""
    generator = torch.Generator().manual_seed(seed)
    images = F.normalize(torch.randn(n, d, generator=generator), dim=1)
    text_to_image = torch.arange(n).repeat_interleave(n_captions)
    noise = noise * torch.randn(n * n_captions, d, generator=generator) / d**0.5
    return images, F.normalize(images[text_to_image] + noise, dim=1), text_to_image


class Lookup:
    """A model whose embeddings are its inputs."""

    encode_image = encode_text = staticmethod(lambda rows: rows)


def test_recalls_equal_those_of_clip_benchmarks_evaluation():
    images, texts, text_to_image = captioned(400, 5, 32, 2.0)
    captions = [[5 * i + c for c in range(5)] for i in range(400)]
    batches = [(images[rows], [captions[i] for i in rows]) for rows in torch.arange(400).split(64)]
    theirs = zeroshot_retrieval.evaluate(Lookup, batches, lambda rows: texts[rows], "cpu", False, [1, 5, 10])
    ours = recall_at_k(images, texts, text_to_image)
    for k in (1, 5, 10):  # they name the retrieved side, and average in float32
        assert ours[f"text_to_image_recall@{k}"] == pytest.approx(theirs[f"image_retrieval_recall@{k}"], rel=1e-6)
        assert ours[f"image_to_text_recall@{k}"] == pytest.approx(theirs[f"text_retrieval_recall@{k}"], rel=1e-6)
    assert 0.1 < ours["text_to_image_recall@1"] < ours["image_to_text_recall@10"] < 1


def ten_nearest(images, texts, image_ids, text_ids):
    """The lists that eccv-caption reads: for each id the ids of the ten nearest, in order."""
    similarity = images @ texts.T
    sides = {"i2t": (similarity, image_ids, text_ids), "t2i": (similarity.T.contiguous(), text_ids, image_ids)}
    return {
        name: dict(zip(queries.tolist(), gallery[scores.topk(10).indices].tolist(), strict=True))
        for name, (scores, queries, gallery) in sides.items()
    }


def test_recalls_equal_those_of_eccv_caption_on_the_five_thousand_images_of_coco():
    reference, ks = Metrics(), (1, 5, 10)
    image_ids = torch.tensor(sorted(reference.coco_gts["i2t"]))
    text_ids = torch.from_numpy(reference.coco_ids)
    own_ids = torch.tensor([reference.coco_gts["t2i"][text][0] for text in text_ids.tolist()])
    text_to_image = torch.searchsorted(image_ids, own_ids)
    images, texts, _ = captioned(5000, 5, 24, 1.6)
    texts = texts[5 * text_to_image + torch.arange(len(texts)) % 5]
    lists, ours = ten_nearest(images, texts, image_ids, text_ids), recall_at_k(images, texts, text_to_image, ks)
    for k in ks:
        theirs = reference.coco_5k_recalls(lists, "all", k)
        for side, name in (("i2t", f"image_to_text_recall@{k}"), ("t2i", f"text_to_image_recall@{k}")):
            assert ours[name] == pytest.approx(theirs[side], abs=1e-12)
            assert 0.02 < ours[name] < 0.98


def test_average_precisions_equal_those_of_scikit_learn():
    images, texts, text_to_image = captioned(60, 4, 16, 2.0)
    found = query_scores(images, texts, torch.arange(60), text_to_image)
    right = (text_to_image == torch.arange(60)[:, None]).numpy()
    similarity = (images @ texts.T).numpy()
    for precisions, truth, score in (
        (found.image_average_precisions, right, similarity),
        (found.text_average_precisions, right.T, similarity.T),
    ):
        pairs = zip(truth, score, strict=True)
        theirs = [sklearn_metrics.average_precision_score(t, s) for t, s in pairs]
        assert precisions.tolist() == pytest.approx(theirs, rel=1e-6)


def test_accuracies_equal_those_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    classes = F.normalize(torch.randn(12, 16, generator=generator), dim=1)
    labels = torch.randint(11, (500,), generator=generator) ** 2 // 10  # uneven, and some classes never occur
    images = F.normalize(classes[labels] + 0.6 * torch.randn(500, 16, generator=generator), dim=1)
    found, scores = zeroshot_accuracy(images, classes, labels), (images @ classes.T).numpy()
    for k in (1, 5):
        theirs = sklearn_metrics.top_k_accuracy_score(labels, scores, k=k, labels=range(12))
        assert found[f"accuracy@{k}"] == pytest.approx(theirs)
    predicted = predictions(images, classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a predicted class may never occur
        balanced = sklearn_metrics.balanced_accuracy_score(labels, predicted)
    assert found["mean_per_class_accuracy"] == pytest.approx(balanced)
    assert 0.2 < found["accuracy@1"] < found["accuracy@5"] < 1
    assert torch.equal(predicted, torch.from_numpy(scores.argmax(1)))
    assert torch.equal(class_ranks(images, classes, labels) == 0, predicted == labels)
