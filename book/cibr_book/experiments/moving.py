"""Training of the towers' last two stages on outputs of the earlier ones: a run of moving.yaml.

The frozen part of a tower replaces the whole, so its outputs are computed once. The stages that
move are the first part of the head.
"""

import copy
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cibr.data import load_pairs
from cibr.metrics import retrieval_recalls
from cibr.models import DualEncoder
from cibr.models.dual_encoder import Encoded
from cibr.models.features import Inputs, embed_pairs, prepare
from cibr.models.towers import TwoTowers, mean_pool
from cibr.train import configure
from cibr_book import intervals
from cibr_book.experiments import recipes
from cibr_book.experiments.ablation import ZERO_SHOT, with_measures
from cibr_book.experiments.confirmation import VALIDATION
from cibr_book.experiments.corruptions import Corruption, corrupt
from cibr_book.experiments.run import (
    from_history,
    library_settings,
    suite_scores,
    validation_recalls,
)
from cibr_book.experiments.tables import KEY
from cibr_book.experiments.training import FeatureTrainer, trained_heads

_N_MOVING = 2  # of seven stages of EfficientNet, with the last convolution, and of six layers
_N_TOKENS = 32  # captions are cut to, 0.2 % of them
_AT_ONCE = 16  # texts of like length, whose padding would double the work
_ANCHOR = "anchor at the start"
_ALONE = "anchor, heads alone"


class _CutTowers(TwoTowers):
    """Towers up to the stages that move; their flattened outputs replace pooled features."""

    def __init__(self, towers: TwoTowers):
        network, text = towers.image_tower.timm_model, copy.deepcopy(towers.text_tower)
        image = nn.Sequential(network.conv_stem, network.bn1, *network.blocks[:-_N_MOVING])
        image.config = towers.image_tower.config
        text.encoder.layer = text.encoder.layer[:-_N_MOVING]
        super().__init__(image, text, towers.processor, towers.tokenizer)
        self.n_positions = _N_TOKENS

    def image_pooled(self, pixels: Tensor) -> Tensor:
        """Feature maps, [n, c * h * w]."""
        return self.image_tower(pixels.contiguous(memory_format=torch.channels_last)).flatten(1)

    def text_pooled(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Hidden states and the mask beside them, [n, 32 * (p + 1)], with zeros for padding."""
        states = self.text_tower(input_ids=ids, attention_mask=mask).last_hidden_state
        masked = torch.cat([states, mask[..., None].to(states)], 2)
        return F.pad(masked, (0, 0, 0, _N_TOKENS - ids.shape[1])).flatten(1)


class _Stages(nn.Module):
    """Stages that move, always in eval mode: batches have no statistics, and nothing is dropped."""

    def train(self, mode: bool = True) -> "_Stages":
        """Nothing changes."""
        return super().train(False)


class _ImageStages(_Stages):
    """From feature maps to pooled features."""

    def __init__(self, network: nn.Module):
        super().__init__()
        last = (*network.blocks[-_N_MOVING:], network.conv_head, network.bn2, network.global_pool)
        self.stages = copy.deepcopy(nn.Sequential(*last)).requires_grad_().eval()
        self.n_channels = network.blocks[-_N_MOVING][0].conv_pw.in_channels

    def forward(self, flat: Tensor) -> Tensor:
        side = round((flat.shape[1] / self.n_channels) ** 0.5)
        maps = flat.view(-1, self.n_channels, side, side)
        return self.stages(maps.contiguous(memory_format=torch.channels_last))


class _TextStages(_Stages):
    """From hidden states to their mean over the tokens."""

    def __init__(self, tower: nn.Module):
        super().__init__()
        layers = tower.encoder.layer[-_N_MOVING:]
        self.layers = copy.deepcopy(layers).requires_grad_().eval()

    def forward(self, flat: Tensor) -> Tensor:
        states = flat.view(len(flat), _N_TOKENS, -1)
        lengths = states[..., -1].sum(1).long().clamp(min=1)
        order = lengths.argsort()
        parts = [states[rows, : lengths[rows[-1]]] for rows in order.split(_AT_ONCE)]
        return torch.cat([self._means(part) for part in parts])[order.argsort()]

    def _means(self, flat: Tensor) -> Tensor:
        states, mask = flat[..., :-1], flat[..., -1].long()
        bias = (1.0 - mask[:, None, None]) * torch.finfo(states.dtype).min
        for layer in self.layers:
            output = layer(states, bias)
            states = output[0] if isinstance(output, tuple) else output
        return mean_pool(states, mask)


def moving(model: DualEncoder) -> DualEncoder:
    """A model of the same embeddings whose towers' last stages are trained with the heads.

    Args:
        model: heads over the two frozen towers.
    """
    towers, heads = model.towers, copy.deepcopy([model.image_head, model.text_head])
    image = nn.Sequential(_ImageStages(towers.image_tower.timm_model), heads[0])
    text = nn.Sequential(_TextStages(towers.text_tower), heads[1])
    return DualEncoder(_CutTowers(towers), [image, text], "frozen", model.settings).eval()


class _MovingTrainer(FeatureTrainer):
    """A trainer whose critics see the towers' pooled features before training.

    Args:
        model: from `moving`.
        of_trainer: of `FeatureTrainer`.
        ramps: whether the penalty's weight rises from 0.
        given: of `FeatureTrainer`.
    """

    def __init__(self, model: DualEncoder, *of_trainer, ramps: bool, given: Sequence[Inputs]):
        heads = model.image_head, model.text_head
        self.pools = [copy.deepcopy(head[0]).requires_grad_(False) for head in heads]
        self.ramps = ramps
        super().__init__(model, *of_trainer, given=given)

    def set_up(self) -> None:
        """Also whether the weight rises."""
        super().set_up()
        self.loss_fn.penalty.ramps &= self.ramps

    @torch.no_grad()
    def _before(self, side: Encoded, pool: nn.Module) -> Encoded:
        return side._replace(pooled=pool.to(self.args.device)(side.pooled))

    def loss_inputs(self, image: Encoded, text: Encoded) -> dict[str, Tensor]:
        """The inputs of the loss."""
        if "image_pooled" in self.loss_fn.needs:
            image, text = map(self._before, (image, text), self.pools)
        return super().loss_inputs(image, text)


@lru_cache(maxsize=1)
def _features() -> dict[str, Inputs]:
    """What the frozen stages give for Flickr8k's training and validation photos."""
    model = moving(recipes.features()[0])
    parts = ("train", "validation")
    return {part: prepare(model, load_pairs("flickr8k", part)) for part in parts}


def train_and_measure(settings: dict[str, Any], folder: str | Path) -> dict[str, float]:
    """Fine-tunes both towers' last stages and the heads on a draw of Flickr8k's training photos.

    Args:
        settings: of `cibr.configure`; `seed`, also of the draw; `corruption`, the fields of a
            `Corruption`; `start`, the settings with which the heads are trained first, see
            `trained_heads`; `untouched`, for the start itself; `ramp`, whether a penalty's weight
            rises from 0; `interpolation`, the share of the start's weights in the result; and
            `suites`, none for a trial.
        folder: for predictions.

    Returns:
        `validation_*` at the end, and `<suite>/<set>/<metric>`.
    """
    own = dict(settings)
    suites, share = own.pop("suites", []), own.pop("interpolation", 0.0)
    start, model, metrics = _trained(json.dumps(own, sort_keys=True))
    if share:
        model = copy.deepcopy(model)
        for name, weights in model.own_weights().items():
            if weights.is_floating_point():
                weights.lerp_(start[name].to(weights.device), share)
        metrics = metrics | _validated(model)
    return metrics | suite_scores(model, suites, folder)


@lru_cache(maxsize=1)  # for runs that differ in `interpolation` alone
def _trained(settings: str) -> tuple[dict[str, Tensor], DualEncoder, dict[str, float]]:
    """The weights before training, the model after it, and its metrics on validation.

    Args:
        settings: of a run without `suites` and `interpolation`, as JSON.
    """
    own = json.loads(settings)
    start, seed = own.pop("start"), own["seed"]
    start["cca_ridges"] = tuple(start["cca_ridges"])
    corruption = Corruption(**own.get("corruption", {}), redraw=True)
    base, parts = recipes.features()
    drawn = recipes.picked(parts["train"], corrupt(parts["train"].pairs, corruption, seed))
    still = base.over(base.towers, base.settings | {"dropout": own.get("dropout", 0.0)}).eval()
    still.load_own_weights(trained_heads(base, drawn, start, seed).own_weights(), "the start")
    model = moving(still)
    whole = _features()["train"]
    if own.pop("untouched", False):
        return {}, model, _validated(model)
    with TemporaryDirectory() as scratch:
        ramps = own.pop("ramp", True)
        config = configure(output_dir=scratch, **library_settings(own))
        model.set_temperature(config.temperature, config.learn_temperature)
        before = copy.deepcopy(model.own_weights())
        train = recipes.picked(whole, corrupt(whole.pairs, corruption, seed))
        history = _MovingTrainer(model, config, ramps=ramps, given=[train]).train()
    return before, model, from_history(history) | _validated(model)


def _validated(model: DualEncoder) -> dict[str, float]:
    validation = _features()["validation"]
    targets = validation.pairs.retrieval_targets()
    return validation_recalls(retrieval_recalls(*embed_pairs(model, validation), *targets))


def at_best_settings(rows: pd.DataFrame) -> pd.DataFrame:
    """The runs of moving.yaml with `ablation.MEASURES`, in points: of each method those at
    its settings, of up to three, with the highest mean recall on validation.

    Args:
        rows: of moving.csv, from `read_table`; trials and runs of other plans are left out.
    """
    rows = with_measures(rows[rows["seed"].between(800, 899)])
    best = rows.groupby(KEY)[VALIDATION].mean().groupby(level=KEY[:2]).idxmax()
    return rows[pd.MultiIndex.from_frame(rows[KEY]).isin(best)]


def claim_tests(rows: pd.DataFrame) -> pd.DataFrame:
    """The claims of experiments/moving.md, about 600 photos.

    Args:
        rows: of moving.csv, from `read_table`, all of them; trials are left out.

    Returns:
        Of `cibr_book.intervals.outcomes`, with differences in points.
    """
    best = at_best_settings(rows[rows["condition"] == "600 photos"])
    of = {method: own.set_index("seed") for method, own in best.groupby("method", sort=False)}
    tested = [name for name in of if name not in ("start", "CLIP", "noise only", _ALONE)]
    claims = [("1", ZERO_SHOT, "start", "CLIP")]
    claims += [("2", x, method, "CLIP") for method in tested for x in ("search", ZERO_SHOT)]
    controls = ("start", "CLIP-averaged", _ALONE)
    claims += [("3", "search", _ANCHOR, control) for control in controls]
    return intervals.outcomes(
        (number, f"{measure}: {better} above {worse}", of[better][measure] - of[worse][measure])
        for number, measure, better, worse in claims
    )
