"""The page's code for several devices gives the loss and the gradients of one device."""

import re
from pathlib import Path

import nbformat
import torch
from processes import run_together
from torch.nn import functional as F

from cibr import CIBRLoss

PAGE = Path(__file__).resolve().parents[2] / "book/howto/own_loop.ipynb"
SCALE = torch.tensor(10.0)
TEXTS = torch.tensor([0, 1, 2, 1, 3, 0, 4, 5])[:, None]  # equal texts lie on different devices


def features():
    drawn = torch.randn(2, 8, 6, generator=torch.Generator().manual_seed(0))
    return [x.requires_grad_() for x in drawn]


def gather_and_save(folder, rank):
    torch.distributed.init_process_group("gloo")
    text = "".join(cell.source for cell in nbformat.read(PAGE, 4).cells)
    (code,) = re.findall(r"```python\n(from open_clip.loss.*?)```", text, re.DOTALL)
    whole, rows = features(), slice(4 * rank, 4 * rank + 4)
    names = "image_features", "text_features"

    def model(images, texts):
        sides = [F.normalize(x[rows], dim=1) for x in whole]
        return dict(zip(names, sides, strict=True)) | {"logit_scale": SCALE}

    given = {"torch": torch, "model": model, "loss_fn": CIBRLoss(beta=0.05), "images": None}
    given["texts"] = TEXTS[rows]
    exec(code, given)
    loss = sum(given["terms"].values())
    loss.backward()
    torch.save((loss.detach(), *(x.grad[rows] for x in whole)), folder / f"{rank}.pt")


def test_gathered_features_have_the_loss_and_the_gradients_of_one_device(tmp_path):
    run_together(2, gather_and_save, tmp_path)
    whole = features()
    labels = TEXTS[:, 0]
    terms = CIBRLoss(beta=0.05)(*(F.normalize(x, dim=1) for x in whole), SCALE, labels=labels)
    loss = sum(terms.values())
    loss.backward()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        rows = slice(4 * rank, 4 * rank + 4)
        # DDP means over devices what gathering sums, so a device has twice its share.
        expected = loss.detach(), *(2 * x.grad[rows] for x in whole)
        torch.testing.assert_close(found, expected)
