"""Regularised CCA against a generalised eigenproblem, and the penalty that draws embeddings to it."""

import pytest
import scipy.linalg
import torch
from losses_pairs import pair
from torch.nn import functional as F

from cibr.losses import CIBRLoss, RegularisedCCA
from cibr.losses.cca import canonical_maps, centred_moments
from cibr.losses.vmf import vmf_residual_nats
from cibr_book.worlds import conditional_information_nats

RIDGES = 0.5, 0.2


def features(n=60, p=7, q=5):
    generator = torch.Generator().manual_seed(0)
    image = 3 + torch.randn(n, p, generator=generator) @ torch.randn(p, p, generator=generator)
    return image, image[:, :q] ** 2 / 9 + torch.randn(n, q, generator=generator)


def covariances(image, text):
    """Regularised covariances of both sides and the cross-covariance, from torch.cov."""
    joint = torch.cov(torch.cat([image, text], 1).double().T, correction=0)
    p, sides = image.shape[1], []
    for block, ridge in ((joint[:p, :p], RIDGES[0]), (joint[p:, p:], RIDGES[1])):
        sides.append(block + ridge * block.trace() / len(block) * torch.eye(len(block)).double())
    return *sides, joint[:p, p:]


def test_maps_diagonalise_the_covariances_and_hold_the_correlations_of_the_eigenproblem():
    image, text = features()
    whole_image, whole_text, cross = covariances(image, text)
    p, zeros = len(whole_image), torch.zeros
    left = torch.cat([torch.cat([zeros(p, p), cross], 1), torch.cat([cross.T, zeros(5, 5)], 1)])
    right = scipy.linalg.block_diag(whole_image, whole_text)
    correlations = torch.from_numpy(
        scipy.linalg.eigh(left, right, eigvals_only=True)[::-1][:5].copy()
    )
    _, moments = centred_moments(image, text)
    image_map, text_map = canonical_maps(moments, 5, *RIDGES)
    torch.testing.assert_close(
        image_map @ whole_image @ image_map.T, correlations.diag(), atol=1e-9, rtol=0
    )
    torch.testing.assert_close(
        text_map @ whole_text @ text_map.T, correlations.diag(), atol=1e-9, rtol=0
    )
    torch.testing.assert_close(
        image_map @ cross @ text_map.T, correlations.square().diag(), atol=1e-9, rtol=0
    )
    directions = image_map @ torch.from_numpy(scipy.linalg.sqrtm(whole_image.numpy()))
    assert (
        directions.gather(1, directions.abs().argmax(1, keepdim=True)) > 0
    ).all()  # signs are no chance


def test_a_wider_space_is_padded_and_a_narrower_one_keeps_the_first_directions():
    image, text = features()
    five, nine, two = (RegularisedCCA.fit(image, text, dim, *RIDGES) for dim in (5, 9, 2))
    torch.testing.assert_close(five.images(image).norm(dim=1), torch.ones(60))
    assert torch.equal(nine.image_map[:5], five.image_map) and not nine.image_map[5:].any()
    assert torch.equal(two.text_map, five.text_map[:2])
    torch.testing.assert_close(
        nine.images(image) @ nine.texts(text).T, five.images(image) @ five.texts(text).T
    )


def test_the_anchor_is_the_divergence_from_a_backward_encoder_at_the_statistic():
    image, text, scale = (leaf.detach() for leaf in pair(60, 9))
    pooled = features()
    cca = RegularisedCCA.fit(*pooled, 9, *RIDGES)
    loss = CIBRLoss(0.3, "anchor", kappa_e=40.0, kappa_b=6.0, text_weight=0.25, statistic=cca)
    terms = loss(image, text, scale, image_pooled=pooled[0], text_pooled=pooled[1])
    centres = cca.images(pooled[0]).double(), cca.texts(pooled[1]).double()
    cosines = [(side * centre).sum(1) for side, centre in zip((image, text), centres, strict=True)]
    nats = [vmf_residual_nats(cosine, 40.0, 6.0, 9).mean() for cosine in cosines]
    torch.testing.assert_close(terms["penalty_loss"], 0.3 * (0.75 * nats[0] + 0.25 * nats[1]))
    terms = loss(
        *(centre.float() for centre in centres),
        scale,
        image_pooled=pooled[0],
        text_pooled=pooled[1],
    )
    assert terms["penalty_excess"].item() == pytest.approx(
        0, abs=1e-5
    )  # an encoder that is the statistic


def test_a_cca_moves_with_its_loss_and_is_not_trained():
    loss = CIBRLoss(0.1, "anchor", statistic=RegularisedCCA.fit(*features(), 5))
    assert not list(loss.parameters())
    assert {name.split(".")[0] for name in loss.state_dict()} == {"statistic"}
    assert F.normalize(loss.statistic.image_map, dim=1).isfinite().all()


def test_with_a_sufficient_statistic_the_residual_is_what_the_anchor_bounds_plus_one_term():
    """I(Z;X_v|X_t) = I(Z;U|X_t) + I(Z;X_v|U), by enumeration, and E KL(e || b(z|u)) bounds the last
    term.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64).softmax(-1)

    n_u, n_v, n_t, n_z = 3, 4, 5, 6
    p_uv, text_of_u, encoder = draw(n_u * n_v).view(n_u, n_v), draw(n_u, n_t), draw(n_u, n_v, n_z)
    joint = torch.einsum(
        "uv,ut,uvz->zuvt", p_uv, text_of_u, encoder
    )  # X_v = (u, v), X_t - U - (V, Z)
    whole, of_statistic, beyond = (
        joint.reshape(n_z, n_u * n_v, n_t),
        joint.sum(2),
        joint.sum(3).permute(0, 2, 1),
    )
    residual, of_statistic, beyond = map(
        conditional_information_nats, (whole, of_statistic, beyond)
    )
    assert residual.item() == pytest.approx((of_statistic + beyond).item(), abs=1e-12)
    for backward in (
        draw(n_u, n_z),
        torch.einsum("uv,uvz->uz", p_uv, encoder) / p_uv.sum(1, keepdim=True),
    ):
        bound = (p_uv[..., None] * encoder * (encoder / backward[:, None]).log()).sum().item()
        assert bound >= beyond - 1e-12
    assert bound == pytest.approx(beyond.item(), abs=1e-12)  # tight for b = p(z|u)
