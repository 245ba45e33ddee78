"""Small configurations, models and folders of images that the tests of training share."""

import torch
from helpers import TEXTS, noise_pairs, picture

from cibr import DualEncoder
from cibr.train import configure, fit

PAIRS, HELD_OUT = noise_pairs(24, n_captions=3), noise_pairs(10, n_captions=2, split="validation")


def settings(folder, **options):
    """Six epochs of three steps on `PAIRS`, or as the options say."""
    run = dict(dropout=0.2, beta=0.1, epochs=6, batch_size=8, learning_rate=1e-3, learn_temperature=True)
    return configure(output_dir=str(folder), **(run | options))


def small_model(config, pairs=PAIRS):
    """A narrow tiny model with the weights of the configuration's seed."""
    torch.manual_seed(config.seed)
    model = DualEncoder.tiny(pairs.texts(), dim=16, width=4, dropout=config.dropout)
    model.set_temperature(config.temperature, config.learn_temperature)
    return model


def train(folder, pairs=PAIRS, held_out=HELD_OUT, prepare=lambda model: None, **options):
    """A small run: its model, its history and its folder."""
    config = settings(folder, **options)
    model = small_model(config, pairs)
    prepare(model)
    return model, fit(model, pairs, held_out, config), folder


def write_folder(folder, **splits):
    """A folder of noise images with metadata, by the number of rows of each split."""
    for split, n in splits.items():
        (folder / split).mkdir(parents=True)
        rows = [f"{i}.png,{TEXTS[i % len(TEXTS)]}" for i in range(n)]
        (folder / split / "metadata.csv").write_text("file_name,text\n" + "\n".join(rows) + "\n")
        for i in range(n):
            picture(i).save(folder / split / f"{i}.png")
    return folder
