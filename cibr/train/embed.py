"""All images and texts of a set through a model's encoders, and the recall that an epoch ends with."""

import torch
from torch import Tensor

from cibr.metrics import recall_at_k
from cibr.models import DualEncoder
from cibr.train.inputs import Inputs
from cibr.train.step import encode_images, encode_texts

KS = (1, 5, 10)


@torch.no_grad()
def embed_pairs(model: DualEncoder, inputs: Inputs, batch_size: int = 512) -> tuple[Tensor, Tensor]:
    """Unit vectors of all images [n, d] and all texts [m, d] of a set, in eval mode, on the CPU."""
    was_training, device = model.training, model.log_logit_scale.device
    model.eval()
    n, m = len(inputs.pairs), len(inputs.labels)
    images = [
        encode_images(model, inputs.image_rows(rows).to(device)) for rows in torch.arange(n).split(batch_size)
    ]
    texts = [
        encode_texts(model, tuple(t.to(device) for t in inputs.text_rows(rows)))
        for rows in torch.arange(m).split(batch_size)
    ]
    model.train(was_training)
    return tuple(torch.cat([e.features.float().cpu() for e in side]) for side in (images, texts))


def recalls(model: DualEncoder, inputs: Inputs) -> dict[str, float]:
    """Recall at 1, 5 and 10 in both directions, as far as the set has that many."""
    images, texts = embed_pairs(model, inputs)
    ks = [k for k in KS if k <= min(len(images), len(texts))]
    return recall_at_k(images, texts, inputs.pairs.text_to_image(), ks)
