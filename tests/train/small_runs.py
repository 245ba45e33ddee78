"""Small configurations, models, steps and folders of images that the tests of training share."""

import torch
from accelerate import Accelerator
from helpers import TEXTS, noise_pairs, picture

from cibr import DualEncoder
from cibr.train import configure, fit
from cibr.train.grad_cache import GradCache
from cibr.train.loop import train_critics

PAIRS, HELD_OUT = noise_pairs(24, n_captions=3), noise_pairs(10, n_captions=2, split="validation")


def settings(folder, **options):
    """Six epochs of three steps on `PAIRS`, or as the options say."""
    run = dict(
        dropout=0.2, beta=0.1, epochs=6, batch_size=8, learning_rate=1e-3, learn_temperature=True
    )
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


def step(model, loss_fn, batch, critics=None, accelerator=None, **options):
    """Terms of the loss and gradients, as a training step takes them, after three steps of
    `critics` if given.
    """
    accelerator = accelerator or Accelerator()
    torch.manual_seed(5)
    model.zero_grad()
    generator = torch.Generator().manual_seed(3)
    needs = dict(with_pooled=loss_fn.critics is not None, with_projected=loss_fn.penalty == "rafa")
    cache = GradCache(model, batch, accelerator, **needs, **options)
    if critics:
        train_critics(loss_fn, critics, 3, cache.features, generator, accelerator)
    terms = loss_fn(
        **cache.features, logit_scale=model.logit_scale, labels=cache.labels, generator=generator
    )
    terms["loss"].backward()
    cache.backward()
    return terms, gradients(model)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def write_folder(folder, **splits):
    """A folder of noise images with metadata, by the number of rows of each split."""
    for split, n in splits.items():
        (folder / split).mkdir(parents=True)
        rows = [f"{i}.png,{TEXTS[i % len(TEXTS)]}" for i in range(n)]
        (folder / split / "metadata.csv").write_text("file_name,text\n" + "\n".join(rows) + "\n")
        for i in range(n):
            picture(i).save(folder / split / f"{i}.png")
    return folder
