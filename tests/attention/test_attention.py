"""Scores, selections and modules against loops in numpy, PyTorch's own attention, and their properties."""

import math

import numpy as np
import pytest
import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_attn.attention import (
    SCORES,
    HardAttention,
    MultiHeadSelfAttention,
    SelfAttentionBlock,
    SoftAttention,
)
from sb3_attn.attention import functional as A

B, N, D, Q = 3, 6, 5, 4
QUERIED = ("bilinear", "dot_product")


def make(kind: type[SoftAttention] = SoftAttention, score: str = "additive", **kwargs) -> SoftAttention:
    query_size = kwargs.pop("query_size", Q if score in QUERIED else None)
    return kind(D, score, query_size, attention_size=7, **kwargs).double()


def inputs() -> tuple[th.Tensor, th.Tensor]:
    return th.randn(B, N, D, dtype=th.float64), th.randn(B, Q, dtype=th.float64)


def weights_of(linear: nn.Linear) -> np.ndarray:
    return linear.weight.detach().numpy()


def score_by_loop(attention: SoftAttention, name: str, x: np.ndarray, q: np.ndarray | None, head: int) -> float:
    """The score of one region, from the definition."""
    score = attention.score
    if name == "linear":
        return float(weights_of(score.vector)[head] @ x)
    if name == "additive":
        hidden = weights_of(score.key) @ x + score.key.bias.detach().numpy()
        if q is not None:
            hidden = hidden + weights_of(score.query) @ q
        return float(weights_of(score.vector)[head] @ np.tanh(hidden) + score.vector.bias.detach().numpy()[head])
    rows = slice(7 * head, 7 * head + 7)
    product = (weights_of(score.key)[rows] @ x) @ (weights_of(score.query)[rows] @ q)
    return float(product / math.sqrt(7) if name == "dot_product" else product)


@pytest.mark.parametrize("n_heads", [1, 3])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize(
    ("name", "query_size"), [("additive", None), ("additive", Q), ("linear", None), ("bilinear", Q), ("dot_product", Q)]
)
def test_soft_attention_equals_the_loop_over_regions(name, query_size, temperature, n_heads):
    attention = make(score=name, query_size=query_size, n_heads=n_heads, temperature=temperature)
    regions, query = inputs()
    contexts, weights = attention(regions, query)
    for b in range(B):
        for head in range(n_heads):
            q = None if query_size is None else query[b].numpy()
            scores = [score_by_loop(attention, name, x.numpy(), q, head) / temperature for x in regions[b]]
            expected = np.exp(scores) / np.sum(np.exp(scores))
            np.testing.assert_allclose(weights[b, head].detach(), expected, rtol=1e-10)
            context = sum(w * x.numpy() for w, x in zip(expected, regions[b], strict=True))
            np.testing.assert_allclose(contexts[b, head].detach(), context, rtol=1e-10)


def every_attention():
    return [make(kind, score, n_heads=2).eval() for kind in (SoftAttention, HardAttention) for score in sorted(SCORES)]


def attend(attention: SoftAttention, regions: th.Tensor, query: th.Tensor, mask: th.Tensor | None = None):
    return attention(regions, query if attention.score.needs_query else None, mask)


@pytest.mark.parametrize("i", range(2 * len(SCORES)))
def test_weights_sum_to_one_and_follow_a_permutation(i):
    attention, (regions, query) = every_attention()[i], inputs()
    contexts, weights = attend(attention, regions, query)
    assert (weights >= 0).all()
    th.testing.assert_close(weights.sum(dim=-1), th.ones(B, 2, dtype=th.float64))
    order = th.randperm(N)
    permuted_contexts, permuted = attend(attention, regions[:, order], query)
    th.testing.assert_close(permuted, weights[..., order])
    th.testing.assert_close(permuted_contexts, contexts)


@pytest.mark.parametrize("i", range(2 * len(SCORES)))
def test_masked_regions_have_no_weight_and_no_influence(i):
    attention, (regions, query) = every_attention()[i], inputs()
    mask = th.ones(B, N, dtype=th.bool)
    mask[0, 3:], mask[1] = False, False  # a row without a real region, too
    other = th.where(mask.unsqueeze(-1), regions, 100.0).requires_grad_()
    contexts, weights = attend(attention, other, query, mask)
    assert (weights[~mask.unsqueeze(1).expand_as(weights)] == 0).all()
    th.testing.assert_close(weights.sum(dim=-1)[[0, 2]], th.ones(2, 2, dtype=th.float64))
    alone, _ = attend(attention, regions[:1, :3], query[:1])
    th.testing.assert_close(contexts[:1], alone)
    contexts.sum().backward()
    assert other.grad.isfinite().all() and (other.grad[~mask] == 0).all()


def test_temperature_zero_is_approached_by_the_largest_score():
    scores = th.randn(B, N)
    assert th.equal(A.soft_weights(scores, temperature=1e-6).argmax(-1), scores.argmax(-1))
    th.testing.assert_close(A.soft_weights(scores, temperature=1e6), th.full((B, N), 1 / N), atol=1e-5, rtol=0)


def test_hard_weights_pick_one_region_and_have_the_soft_gradient():
    scores = th.randn(B, N, dtype=th.float64, requires_grad=True)
    values = th.randn(B, N, dtype=th.float64)
    hard = A.hard_weights(scores)
    assert th.equal(hard.detach(), F.one_hot(scores.argmax(-1), N).double())
    (gradient,) = th.autograd.grad((hard * values).sum(), scores)
    (expected,) = th.autograd.grad((A.soft_weights(scores) * values).sum(), scores)
    th.testing.assert_close(gradient, expected)


def test_hard_attention_draws_in_training_mode_and_is_deterministic_otherwise():
    attention, (regions, _) = make(HardAttention), inputs()
    soft = A.soft_weights(attention.score(regions))
    attention.train()
    drawn = th.stack([attention(regions)[1].detach() for _ in range(4000)]).mean(dim=0)
    th.testing.assert_close(drawn, soft.detach(), atol=0.04, rtol=0)
    attention.eval()
    picks = [attention(regions)[1] for _ in range(5)]
    assert all(th.equal(pick, picks[0]) for pick in picks)
    assert th.equal(picks[0].argmax(-1), soft.argmax(-1))


def test_weights_of_zero_are_never_drawn():
    weights = th.tensor([0.0, 0.5, 0.0, 0.5]).expand(1000, -1)
    assert set(A.sample_categorical(weights).tolist()) == {1, 3}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("n_heads", [1, 2, 4])
def test_self_attention_equals_pytorchs_with_the_same_weights(n_heads, masked):
    ours, theirs = MultiHeadSelfAttention(8, n_heads), nn.MultiheadAttention(8, n_heads, batch_first=True)
    with th.no_grad():
        theirs.in_proj_weight.copy_(ours.in_projection.weight)
        theirs.in_proj_bias.copy_(ours.in_projection.bias)
        theirs.out_proj.load_state_dict(ours.out_projection.state_dict())
    tokens = th.randn(B, N, 8)
    mask = th.arange(N) < th.tensor([[6], [4], [1]]) if masked else None
    expected, expected_weights = theirs(
        tokens, tokens, tokens, key_padding_mask=None if mask is None else ~mask, average_attn_weights=False
    )
    for need_weights in (False, True):  # the fused kernel and the explicit path
        outputs, weights = ours(tokens, mask, need_weights)
        th.testing.assert_close(outputs, expected, atol=1e-6, rtol=0)
    th.testing.assert_close(weights, expected_weights, atol=1e-6, rtol=0)


def block_by_loop(block: SelfAttentionBlock, tokens: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    One row of a block, a token and a head at a time: Xiong et al. (2020), figure 1b, and Vaswani et al. (2017), eq. (1).

    :param tokens: ``[n, d]``
    :param mask: which of them are real, bool ``[n]``
    :return: ``[n, d]``, and the weights of each query over the keys, ``[H, n, n]``
    """
    arrays = {name: parameter.detach().numpy() for name, parameter in block.named_parameters()}

    def layer(name: str, x: np.ndarray) -> np.ndarray:
        return arrays[f"{name}.weight"] @ x + arrays[f"{name}.bias"]

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        return arrays[f"{name}.weight"] * (x - x.mean()) / np.sqrt(x.var() + 1e-5) + arrays[f"{name}.bias"]

    n_heads, (n, d) = block.attention.n_heads, tokens.shape
    q, k, v = np.zeros((3, n, d))
    for i, token in enumerate(tokens):
        q[i], k[i], v[i] = np.split(layer("attention.in_projection", norm("attention_norm", token)), 3)
    outputs, weights = np.zeros((n, d)), np.zeros((n_heads, n, n))
    for i, token in enumerate(tokens):
        attended = np.zeros(d)
        for head in range(n_heads):
            own = slice(head * d // n_heads, (head + 1) * d // n_heads)
            scores = {j: q[i, own] @ k[j, own] / math.sqrt(d / n_heads) for j in np.flatnonzero(mask)}
            total = sum(math.exp(score) for score in scores.values())
            for j, score in scores.items():
                weights[head, i, j] = math.exp(score) / total
                attended[own] += weights[head, i, j] * v[j, own]
        token = token + layer("attention.out_projection", attended)
        hidden = np.maximum(layer("feedforward.0", norm("feedforward_norm", token)), 0)
        outputs[i] = token + layer("feedforward.2", hidden)
    return outputs, weights


@pytest.mark.parametrize(("size", "n_heads", "feedforward_size"), [(8, 1, 16), (6, 3, 4), (4, 4, 5)])
def test_blocks_of_self_attention_equal_the_loop_over_tokens(size, n_heads, feedforward_size):
    block = SelfAttentionBlock(size, n_heads, feedforward_size).double()
    with th.no_grad():  # the gain and the bias of a norm start at 1 and 0
        for parameter in block.parameters():
            parameter.normal_(std=0.7)
    tokens = 2 * th.randn(B, N, size, dtype=th.float64)
    mask = th.arange(N) < th.tensor([[6], [4], [0]])  # the last row has no real token
    for given in (None, mask):
        for need_weights in (False, True):  # the fused kernel and the explicit path
            outputs, weights = block(tokens, given, need_weights)
            for row in range(B):
                real = np.ones(N, bool) if given is None else given[row].numpy()
                expected, expected_weights = block_by_loop(block, tokens[row].numpy(), real)
                np.testing.assert_allclose(outputs[row].detach(), expected, rtol=1e-10, atol=1e-12)
                if need_weights:
                    np.testing.assert_allclose(weights[row].detach(), expected_weights, rtol=1e-10, atol=1e-12)


def test_tokens_that_are_all_masked_give_no_nan():
    block = SelfAttentionBlock(8, 2, 16)
    mask = th.zeros(B, N, dtype=th.bool)
    mask[0] = True
    for need_weights in (False, True):
        tokens = th.randn(B, N, 8, requires_grad=True)
        outputs, _ = block(tokens, mask, need_weights)
        outputs.sum().backward()
        assert outputs.isfinite().all() and tokens.grad.isfinite().all()
        assert all(parameter.grad.isfinite().all() for parameter in block.parameters())


def test_blocks_of_self_attention_are_equivariant():
    block, tokens, order = SelfAttentionBlock(8, 2, 16), th.randn(B, N, 8), th.randperm(N)
    th.testing.assert_close(block(tokens[:, order])[0], block(tokens)[0][:, order], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("score", sorted(SCORES))
def test_gradients_are_those_of_finite_differences(score):
    attention, (regions, query) = make(score=score, n_heads=2), inputs()
    query_or_none = query.requires_grad_() if score in QUERIED else None
    assert th.autograd.gradcheck(lambda x: attention(x, query_or_none), (regions.requires_grad_(),))


@pytest.mark.parametrize(("pool", "by_loop"), [(A.masked_mean, np.mean), (A.masked_max, np.max)])
def test_pooling_is_over_real_regions(pool, by_loop):
    values = th.randn(B, N, D, dtype=th.float64) - 10.0  # all below the 0 of rows without a real region
    mask = th.arange(N) < th.tensor([[4], [0], [6]])
    pooled = pool(values, mask)
    for row, n in ((0, 4), (2, 6)):
        np.testing.assert_allclose(pooled[row], by_loop(values[row, :n].numpy(), axis=0))
    assert not pooled[1].any()
    th.testing.assert_close(pool(values), pool(values, th.ones(B, N, dtype=th.bool)))


def test_coordinates_run_from_minus_one_to_one_row_by_row():
    assert A.grid_coordinates(2, 3).tolist() == [[-1, -1], [-1, 0], [-1, 1], [1, -1], [1, 0], [1, 1]]
    assert A.grid_coordinates(1, 1).tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(score="cosine"), r"score='cosine' is unknown; choose one of \['additive'"),
        (dict(score="bilinear"), "query=None; give one"),
        (dict(score="linear", query_size=4), "no use for a query"),
        (dict(temperature=0.0), r"temperature=0.0 must be positive"),
        (dict(temperature=float("nan")), r"temperature=nan must be positive"),
        (dict(attention_size=8.5), r"attention_size=8.5 must be a whole number"),
        (dict(n_heads=0), r"n_heads=0 must be at least 1"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SoftAttention(D, **kwargs)


def test_heads_have_to_divide_the_size():
    with pytest.raises(ValueError, match="n_heads=3 does not divide the token size 8"):
        MultiHeadSelfAttention(8, 3)
