"""`cibr train` over frozen towers: heads + CCA, measured on held-out photos, trained on all."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from helpers import noise_pairs, same, write_photos
from small_runs import write_folder
from torch.nn.functional import normalize

from cibr import DualEncoder
from cibr.cli import main
from cibr.data import load_pairs
from cibr.metrics import retrieval_recalls
from cibr.models import NamesHead, RegularisedCCA, SummedHead
from cibr.models.cca import choose_ridges
from cibr.models.inputs import embed_pairs, prepare
from cibr.train import configure, fit
from cibr.train.config import _MOST_PHOTOS

N = 40


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of noise with captions."""
    return str(write_photos(tmp_path_factory.mktemp("photos") / "mine", N))


def train(photos, clip_folder, folder, *options):
    few = ["--epochs", "2", "--learning-rate", "0.001", "--towers", clip_folder]
    return main(["train", "--dataset", photos, "--output-dir", str(folder), *few, *options])


def test_one_command_measures_on_the_held_out_and_trains_on_all(
    photos, clip_folder, tmp_path, capsys
):
    folder = tmp_path / "run"
    assert train(photos, clip_folder, folder) == 0
    held_out = load_pairs(photos, "validation")
    n = len(held_out)
    printed, errors = capsys.readouterr()
    assert f"{n} held-out images, {n} texts: recall in per cent" in printed
    assert f"trained on {N} images: {folder}" in printed and "few-photos" in errors
    whole, part = (DualEncoder.from_pretrained(f) for f in (folder, folder / "held_out"))
    assert len(whole.trained_on) == N and len(part.trained_on) == N - n
    recalls = retrieval_recalls(
        *embed_pairs(part, prepare(part, held_out)), *held_out.retrieval_targets()
    )
    saved = pd.read_csv(folder / "held_out" / "recall.csv").set_index("metric")["value"]
    assert saved.to_dict() == pytest.approx(recalls)
    for metric, value in recalls.items():
        line = next(line for line in printed.splitlines() if line.startswith(metric))
        assert f"{100 * value:5.1f} [" in line
    files = {file: file.read_bytes() for file in folder.rglob("*.safetensors")}
    assert train(photos, clip_folder, folder) == 0  # both runs are loaded
    assert files == {file: file.read_bytes() for file in folder.rglob("*.safetensors")}
    assert "finished" in capsys.readouterr().err


def test_all_photos_decide_the_preset_and_not_those_that_are_left_to_train_on(
    photos, clip_folder, tmp_path, monkeypatch, capsys
):
    # The photos that are left are fewer.
    monkeypatch.setitem(_MOST_PHOTOS, "few-photos", N - 1)
    assert train(photos, clip_folder, tmp_path / "run", "--batch-size", "16") == 0
    assert "settings: some-photos" in capsys.readouterr().err


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_towers_as_they_are_are_recommended_if_they_recall_more(
    photos, clip_folder, tmp_path, capsys, seed
):
    assert train(photos, clip_folder, tmp_path / "run", "--seed", str(seed)) == 0
    held_out = load_pairs(photos, "validation")
    means = []
    for folder in (tmp_path / "run" / "held_out", clip_folder):
        model = DualEncoder.from_pretrained(folder)
        images, texts = embed_pairs(model, prepare(model, held_out))
        recalls = retrieval_recalls(images, texts, *held_out.retrieval_targets())
        means.append(sum(recalls.values()) / len(recalls))
    is_recommended = f"{clip_folder} as it is recalls more" in capsys.readouterr().out
    assert is_recommended == (means[1] > means[0])


def test_scores_are_means_of_those_of_the_heads_and_of_cca(build, tmp_path):
    pairs = noise_pairs(24, n_captions=2)

    def fitted(cca):
        folder = str(tmp_path / f"{cca}")
        ridges = dict(cca_ridge_image=7.0, cca_ridge_text=0.2)
        config = configure(
            "few-photos", model="frozen", epochs=2, cca=cca, output_dir=folder, seed=1, **ridges
        )
        torch.manual_seed(1)
        model = build("frozen", dropout=config.dropout)
        fit(model, pairs, None, config)
        return model

    heads = fitted(cca=False)
    both = fitted(cca=True)
    inputs = prepare(heads, pairs)
    repeated = inputs.images[pairs.text_to_image()]
    cca = RegularisedCCA.fit(repeated, inputs.texts[0], 16, ridge_image=7.0, ridge_text=0.2)
    cca_images = normalize(cca.project_images(inputs.images), dim=1)
    cca_texts = normalize(cca.project_texts(inputs.texts[0]), dim=1)
    images, texts = embed_pairs(heads, inputs)
    expected = (images @ texts.T + cca_images @ cca_texts.T) / 2
    images, texts = embed_pairs(both, inputs)
    torch.testing.assert_close(images @ texts.T, expected)
    assert images.shape[1] == 32 and same(DualEncoder.from_pretrained(tmp_path / "True"), both)


def test_ridges_that_are_not_given_are_chosen_from_the_training_pairs(build, tmp_path):
    pairs = noise_pairs(40, n_captions=3)
    config = configure(
        "few-photos", model="frozen", epochs=1, batch_size=20, output_dir=str(tmp_path)
    )
    fit(model := build("frozen"), pairs, None, config)
    inputs = prepare(model, pairs)
    repeated = inputs.images[pairs.text_to_image()]
    ridges = choose_ridges(repeated, inputs.texts[0], pairs.text_to_image())
    expected = RegularisedCCA.fit(repeated, inputs.texts[0], 16, *ridges)
    assert same(model.head.heads[1], expected)
    config = replace(config, cca_ridge_image=0.5, output_dir=str(tmp_path / "given"))
    fit(other := build("frozen"), pairs, None, config)
    best_with_it = choose_ridges(
        repeated, inputs.texts[0], pairs.text_to_image(), ridges_image=[0.5]
    )
    given = RegularisedCCA.fit(repeated, inputs.texts[0], 16, *best_with_it)
    assert best_with_it[0] == 0.5 and same(other.head.heads[1], given)


def test_too_few_photos_to_choose_ridges_from_are_refused_before_training(build, tmp_path):
    config = configure("few-photos", model="frozen", output_dir=str(tmp_path))
    with pytest.raises(ValueError, match="ridges cannot be chosen from 9 images: give 10 or more"):
        fit(build("frozen"), noise_pairs(9), None, config)
    assert not (tmp_path / "run.json").exists()


@pytest.mark.parametrize("weight", [0.25, 1.0])
def test_the_start_is_fine_tuned_and_summed_with_cca_at_its_weight(build, tmp_path, weight):
    pairs = noise_pairs(40, n_captions=2)
    options = dict(model="names", dataset="some/folder", epochs=2, batch_size=20)
    config = configure(**options, cca_weight=weight, output_dir=str(tmp_path))
    fit(model := build("names"), pairs, None, config)
    names, cca = model.head.heads
    assert isinstance(names, NamesHead) and isinstance(cca, RegularisedCCA)
    assert model.head.cosine_weights == [1.0, weight] and cca.dim == names.dim
    assert not same(names, build("names").head)
    assert same(DualEncoder.from_pretrained(tmp_path), model)


def test_a_set_with_its_own_validation_is_trained_once_and_no_cca_leaves_heads(
    clip_folder, tmp_path, capsys
):
    data, folder = write_folder(tmp_path / "mine", train=20, validation=10), tmp_path / "run"
    assert train(data, clip_folder, folder, "--no-cca", "--penalty", "vmf") == 0
    printed, said = capsys.readouterr()
    assert "the penalty vmf changes nothing at beta 0" in said
    assert "10 held-out images" in printed
    assert "trained on 20 images" in printed and not (folder / "held_out").exists()
    assert not isinstance(DualEncoder.from_pretrained(folder).head, SummedHead)


def test_towers_are_copied_if_asked(photos, clip_folder, tmp_path):
    assert train(photos, clip_folder, tmp_path / "run", "--copy-towers") == 0
    assert (tmp_path / "run" / "towers" / "config.json").exists()
