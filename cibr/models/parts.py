"""Towers and heads by name: how a saved model's `cibr.json` describes its parts.

A description is a dict of JSON values with the `name` of a class and the arguments that build it
again. Weights are not in it: `DualEncoder.save_pretrained` stores them.
"""

from pathlib import Path
from typing import Any

from cibr.models.cca import RegularisedCCA
from cibr.models.heads import Head, LinearHead, ResidualHead, SummedHead
from cibr.models.named_towers import FrozenTowers, StagedTowers
from cibr.models.names import NamesHead
from cibr.models.tiny import TinyTowers
from cibr.models.towers import Towers

TOWERS: dict[str, type[Towers]] = {
    "tiny": TinyTowers,
    "frozen": FrozenTowers,
    "staged": StagedTowers,
}
HEADS: dict[str, type[Head]] = {
    "linear": LinearHead,
    "residual": ResidualHead,
    "names": NamesHead,
    "cca": RegularisedCCA,
}
_SUM = "sum"  # of heads that have descriptions of their own


def describe_head(head: Head) -> dict[str, Any]:
    """The description of a head.

    Raises:
        ValueError: its class is not in `HEADS`.
    """
    if isinstance(head, SummedHead):
        heads = [describe_head(part) for part in head.heads]
        return {"name": _SUM, "heads": heads, "cosine_weights": head.cosine_weights}
    return {"name": _name_of(head, HEADS, "HEADS"), **head.settings()}


def build_head(description: dict[str, Any]) -> Head:
    """A head as it is described, with new weights."""
    settings = dict(description)
    name = settings.pop("name")
    if name == _SUM:
        heads = [build_head(part) for part in settings["heads"]]
        return SummedHead(heads, settings["cosine_weights"])
    return HEADS[name](**settings)


def save_towers(towers: Towers, folder: Path, copy: bool) -> dict[str, Any]:
    """Writes the files of towers beside their weights; returns their description.

    Args:
        towers: of a model.
        folder: an existing one.
        copy: whether frozen towers are copied.

    Raises:
        ValueError: their class is not in `TOWERS`.
        FileNotFoundError: frozen towers to be copied that are missing.
    """
    name = _name_of(towers, TOWERS, "TOWERS")
    return {"name": name, **towers.save(folder, copy)}


def load_towers(description: dict[str, Any], folder: Path) -> Towers:
    """Towers as they are described, with the files that they have in the folder."""
    settings = dict(description)
    return TOWERS[settings.pop("name")].load(folder, **settings)


def _name_of(part: Towers | Head, registry: dict[str, type], title: str) -> str:
    for name, part_class in registry.items():
        if type(part) is part_class:
            return name
    raise ValueError(
        f"a model with {type(part).__name__} cannot be saved: enter the class in "
        f"cibr.models.{title}"
    )
