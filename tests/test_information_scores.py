"""Estimates from scores against slow loops, limits and the perfect critic of a known world."""

import math

import pytest
import torch

from cibr.information import (
    MovingAverage,
    club_nats,
    correlation_of,
    dv_nats,
    gaussian_log_ratio,
    gaussian_task,
    jsd_objective,
    mine_nats,
    nce_nats,
    nwj_nats,
    plug_in_nats,
    residual_bound_nats,
    smile_nats,
)
from cibr.losses import clip_loss


def random_scores(n=7, seed=0):
    return 3 * torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_nce_nwj_dv_and_club_are_those_of_slow_loops():
    scores = random_scores()
    n = len(scores)
    s = scores.tolist()
    off = [s[i][j] for i in range(n) for j in range(n) if i != j]
    joint = sum(s[i][i] for i in range(n)) / n
    nce = 0.0
    for i in range(n):
        row = math.log(sum(math.exp(s[i][j]) for j in range(n)))
        column = math.log(sum(math.exp(s[j][i]) for j in range(n)))
        nce += (2 * s[i][i] - row - column) / (2 * n)
    assert nce_nats(scores).item() == pytest.approx(math.log(n) + nce, rel=1e-12)
    mean_exp = sum(math.exp(t) for t in off) / len(off)
    assert nwj_nats(scores).item() == pytest.approx(joint - mean_exp / math.e, rel=1e-12)
    assert dv_nats(scores).item() == pytest.approx(joint - math.log(mean_exp), rel=1e-12)
    assert club_nats(scores).item() == pytest.approx(joint - sum(off) / len(off), rel=1e-12)
    clipped = sum(math.exp(min(max(t, -1), 1)) for t in off) / len(off)
    assert smile_nats(scores, 1.0).item() == pytest.approx(joint - math.log(clipped), rel=1e-12)
    jsd = sum(-math.log1p(math.exp(-s[i][i])) for i in range(n)) / n
    jsd -= sum(math.log1p(math.exp(t)) for t in off) / len(off)
    assert jsd_objective(scores).item() == pytest.approx(jsd, rel=1e-12)


def test_nce_is_log_n_minus_the_clip_loss():
    generator = torch.Generator().manual_seed(1)
    image, text = (torch.randn(9, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    loss = clip_loss(image, text, 3.0)
    assert nce_nats(3 * image @ text.T).item() == pytest.approx(math.log(9) - loss.item(), rel=1e-12)


def test_nce_never_exceeds_log_n_and_reaches_it_for_perfect_scores():
    for seed in range(5):
        assert nce_nats(10 * random_scores(seed=seed)).item() <= math.log(7)
    assert nce_nats(100 * torch.eye(7, dtype=torch.float64)).item() == pytest.approx(math.log(7))


def test_smile_with_a_wide_clip_is_donsker_varadhan():
    assert torch.equal(smile_nats(random_scores(), 1e6), dv_nats(random_scores()))


def repeated(value, dim, nats, n, n_repeats, seed=0):
    """Mean and standard error of a function of the perfect critic's scores over fresh batches."""
    task, rho = gaussian_task(dim, nats), correlation_of(nats, dim)
    draws = [task.sample(n, seed * 10_000 + i) for i in range(n_repeats)]
    values = torch.stack([value(gaussian_log_ratio(x, y, rho)) for x, y in draws])
    return values.mean().item(), values.std().item() / n_repeats**0.5


@pytest.mark.parametrize(("dim", "nats"), [(1, 0.5), (5, 2.0), (20, 8.0)])
def test_nwj_and_nce_stay_below_the_truth_even_for_the_perfect_critic(dim, nats):
    for value in (nce_nats, lambda scores: nwj_nats(scores + 1)):
        mean, error = repeated(value, dim, nats, 64, 200)
        assert mean < nats + 3 * error
    assert repeated(nce_nats, dim, nats, 64, 200)[0] < math.log(64)


def test_minibatch_donsker_varadhan_and_smile_are_no_bounds():
    nats = 8.0
    for value in (dv_nats, lambda scores: smile_nats(scores, 1.0)):
        mean, error = repeated(value, 20, nats, 32, 200)
        assert mean > nats + 5 * error


def test_plug_in_of_the_perfect_critic_is_unbiased():
    mean, error = repeated(plug_in_nats, 5, 2.0, 64, 200)
    assert mean == pytest.approx(2.0, abs=3 * error)


def test_moving_average_corrects_the_gradient_and_leaves_the_value():
    scores = random_scores().requires_grad_()
    average = MovingAverage(0.9)
    first = average.update(scores)
    of_batch = scores.detach().diagonal().mean() - dv_nats(scores.detach())
    assert first.item() == pytest.approx(of_batch.item(), rel=1e-6)
    older = average.update(scores + 2.0)
    # the mean of e^(T+2) is e^2 times as large, and the average keeps nine tenths of the past
    assert (older - first).item() == pytest.approx(math.log(0.9 + 0.1 * math.exp(2)), rel=1e-5)
    value = mine_nats(scores, older)
    assert value.item() == pytest.approx(dv_nats(scores).item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(value, scores)
    off = ~torch.eye(7, dtype=torch.bool)
    expected = -scores.detach()[off].exp() / 42 / older.double().exp()
    assert torch.allclose(gradient[off], expected, rtol=1e-6)
    assert torch.allclose(gradient.diagonal(), torch.full((7,), 1 / 7, dtype=torch.float64))


def test_moving_average_is_saved_with_its_module():
    average, other = MovingAverage(), MovingAverage()
    average.update(random_scores())
    other.load_state_dict(average.state_dict())
    assert torch.equal(other.log_average, average.log_average)
    assert other.n_updates == 1


def test_errors_of_scores_name_the_rule(unchecked):
    with pytest.raises(ValueError, match=r"scores must be \[n, n\]"):
        nce_nats(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="one pair"):
        nwj_nats(torch.zeros(1, 1))
    with pytest.raises(ValueError, match="scores must be finite"):
        dv_nats(torch.full((2, 2), math.nan))
    with pytest.raises(ValueError, match="clip must be positive"):
        smile_nats(random_scores(), 0.0)
    with pytest.raises(ValueError, match="log_e and log_b"):
        residual_bound_nats(torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match="decay must be in"):
        MovingAverage(1.0)
