"""Small configurations, models and folders of images that the tests of training share."""

import pytest
import torch
from data_files import write_images, write_metadata
from helpers import TEXTS, noise_pairs

from cibr import DualEncoder, fit
from cibr.train import configure
from cibr.train.loop import Training

PAIRS = noise_pairs(24, n_captions=3)
HELD_OUT = noise_pairs(10, n_captions=2, split="validation")
# From Python 3.12 on, of every fork beside threads; the workers only decode images.
forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def settings(folder="out", **options):
    """Two epochs of three steps on `PAIRS`, or as the options say."""
    run = dict(output_dir=str(folder), epochs=2, batch_size=8, learning_rate=1e-3, dropout=0.2)
    return configure(**(run | dict(beta=0.1, learn_temperature=True) | options))


def small_model(config, pairs=PAIRS):
    """A narrow tiny model with the weights of the configuration's seed."""
    torch.manual_seed(config.seed)
    sizes = dict(dim=16, width=4, image_size=16)
    model = DualEncoder.tiny(pairs.texts(), dropout=config.dropout, **sizes)
    model.set_temperature(config.temperature, config.learn_temperature)
    return model.eval()  # as one that was loaded


def train(folder, pairs=PAIRS, held_out=HELD_OUT, **options):
    """A small run; returns its model and history."""
    config = settings(folder, **options)
    model = small_model(config, pairs)
    history = fit(model, pairs, held_out, config)
    return model, history


def before_step(n, act, patch=setattr):
    """Acts before the n-th step that this process takes from now on."""
    take_step = Training.take_step
    taken = []

    def act_and_take_step(training, batch):
        taken.append(1)
        if len(taken) == n:
            act()
        return take_step(training, batch)

    patch(Training, "take_step", act_and_take_step)


def fail_before(n, error, patch=setattr):
    """Raises an error before the n-th step."""

    def fail():
        raise error

    before_step(n, fail, patch)


def stop_at(step, folder, **options):
    """A small run that ends before a step."""
    with pytest.MonkeyPatch.context() as patch:
        fail_before(step, EOFError, patch.setattr)
        with pytest.raises(EOFError):
            train(folder, **options)


def write_folder(folder, **splits):
    """A folder of images with metadata, by the number of rows of each split."""
    for place, (split, n) in enumerate(splits.items()):
        for i in range(n):
            write_images(folder / split, f"{i}.png", grey=i + 80 * place)
        rows = [f"{i}.png,{TEXTS[i]}" for i in range(n)]
        write_metadata(folder / split, "\n".join(["file_name,text", *rows]))
    return str(folder)
