"""Memories: reads and writes that are known appear at the right place in the data and in the figures."""

from dataclasses import replace
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch as th

pytest.importorskip("matplotlib")
pytest.importorskip("imageio")

from stable_baselines3 import DQN, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv

import sb3_attn
from sb3_attn import MemoryExtractor, RecurrentDQN
from sb3_attn.memory import CORES, MemoryCore, WeightsInfo
from sb3_attn.viz import (
    RecordedWeights,
    TokenPart,
    curves_figure,
    find_sources,
    matrices_figure,
    record_episode,
    tokens_figure,
)
from sb3_attn.viz.figures import entropy_captions
from sb3_attn.viz.heat_maps import even_weight
from sb3_attn.viz.sources import acting_network, features_extractor
from sb3_attn.viz.video import _matrix_panels, attention_video
from tests.helpers.attention import LENGTH, Rendered, make_env, make_model

N_SLOTS = 7
SLOTS = (TokenPart(None, "slot", 0, N_SLOTS),)
STEPS = TokenPart(None, "step", 0, 8, newest_age=0)


class Count(NamedTuple):
    steps: th.Tensor  # [B, 1]


class CountingCore(MemoryCore):
    """At step t head h reads slot t + h; usage is t / 10 everywhere; slot t was written after slot t + 1."""

    weights_info = {
        "usage": WeightsInfo(is_distribution=False),
        "link": WeightsInfo(is_distribution=False, pair_label="slot written before"),
    }

    def __init__(self, input_size: int) -> None:
        super().__init__(input_size, input_size)

    def initial_state(self, batch_size):
        return Count(th.zeros(batch_size, 1))

    def forward(self, inputs, state):
        return inputs, Count(state[0] + 1)

    def memory_weights(self, inputs, state):
        assert inputs.shape == (len(state[0]), self.input_size)
        slots = th.eye(N_SLOTS)
        steps = state[0].flatten().long()
        link = th.zeros(len(steps), N_SLOTS, N_SLOTS)
        link[th.arange(len(steps)), steps, steps + 1] = 1.0
        return {
            "read": th.stack((slots[steps], slots[steps + 1]), dim=1),
            "usage": state[0].unsqueeze(1).expand(-1, 1, N_SLOTS) / 10,
            "link": link,
        }


def recurrent(core, env="vector", **core_kwargs) -> RecurrentDQN:
    policy_kwargs = dict(core=core, core_kwargs=core_kwargs, encoder_arch=[], net_arch=[])
    env = make_env(env) if env == "vector" else env
    return RecurrentDQN("MlpPolicy", env, policy_kwargs=policy_kwargs, buffer_size=400, seed=0, device="cpu")


def stacked(algorithm, core, n_stack=3, env=None, **kwargs):
    extractor_kwargs = dict(n_stack=n_stack, core=core, frame_size=8, features_dim=8, **kwargs)
    policy_kwargs = dict(features_extractor_class=MemoryExtractor, features_extractor_kwargs=extractor_kwargs)
    sizes = dict(n_steps=4, batch_size=4) if algorithm is PPO else dict(buffer_size=400)
    env = make_env("vector", n_stack=n_stack) if env is None else env
    return algorithm("MlpPolicy", env, policy_kwargs=policy_kwargs, seed=0, device="cpu", **sizes), env


def record(model, env=None) -> dict[str, RecordedWeights]:
    episode = record_episode(model, make_env("vector") if env is None else env)
    return {recorded.name: recorded for recorded in episode.recorded_weights}


# --- A memory carried through the episode


def test_slots_of_a_core():
    found = record(recurrent(CountingCore))
    assert list(found) == ["memory_read", "memory_usage", "memory_link"]
    read, usage, link = found.values()
    figure = tokens_figure(read)
    for head in range(2):
        drawn = figure.axes[head].images[0].get_array()  # slots by time
        np.testing.assert_array_equal(drawn, np.eye(N_SLOTS, LENGTH, -head))
    np.testing.assert_allclose(tokens_figure(usage).axes[0].images[0].get_array()[3], np.arange(LENGTH) / 10, rtol=1e-6)
    assert link.weights.shape == (LENGTH, 1, N_SLOTS, N_SLOTS) and link.rows is not None
    for step in range(LENGTH):
        assert np.argwhere(link.weights[step, 0]).tolist() == [[step, step + 1]]
    assert (read.is_distribution, usage.is_distribution, link.is_distribution) == (True, False, False)


def test_the_matrices_of_chosen_steps():
    link = record(recurrent(CountingCore))["memory_link"]
    for steps, expected in ((None, [1, 2, 3, 4]), ([0, 3], [0, 3])):
        panels = matrices_figure(link, steps).axes[:-1]  # without the colours
        assert [axes.get_title() for axes in panels] == [f"step {step}" for step in expected]
        for axes, step in zip(panels, expected, strict=True):
            ((row, column),) = np.argwhere(axes.images[0].get_array())  # from top to bottom, from left to right
            assert (axes.get_xlabel(), column) == ("slot", step) and row == step + 1
    assert panels[0].get_ylabel() == "slot written before"


def test_the_video_of_a_matrix():
    episode = record_episode(recurrent(CountingCore), make_env("vector"))
    link = episode.recorded_weights[2]
    assert len(list(attention_video(episode, link))) == LENGTH
    rendered, matrix = _matrix_panels(episode, link)[1](3)
    np.testing.assert_array_equal(rendered.get_array(), episode.frames[3])
    np.testing.assert_array_equal(matrix.get_array(), link.weights[3, 0].T)


SHAPES = {
    "ntm": dict(memory_read=(1, 32), memory_write=(1, 32)),
    "dnc": dict(memory_read=(4, 16), memory_write=(1, 16), memory_usage=(1, 16), memory_link=(1, 16, 16)),
    "key_value": dict(memory_retrieval=(1, 64)),
    "gtrxl": dict(memory_attention=(4, 65)),
}


@pytest.mark.parametrize("core", SHAPES)
def test_weights_are_those_of_the_core(core):
    model = recurrent(core)
    episode = record_episode(model, make_env("vector"))
    assert {recorded.name: recorded.weights.shape[1:] for recorded in episode.recorded_weights} == SHAPES[core]
    network = model.q_net
    with th.no_grad():
        state = network.initial_state(1)
        for step in range(LENGTH):
            inputs = th.as_tensor(episode.observation(step)[None])
            for recorded, expected in zip(
                episode.recorded_weights, network.core.memory_weights(inputs, state).values(), strict=True
            ):
                found = recorded.weights[step]
                np.testing.assert_allclose(found, expected[0].reshape(found.shape), atol=1e-6)
            _, state = network.core(inputs, state)


@pytest.mark.parametrize("core", sorted(name for name, core in CORES.items() if not core.weights_info))
def test_a_memory_without_slots_is_refused_with_those_that_have_slots(core):
    sentence = "no attention and no memory to show: .* FlattenExtractor, and its .*Core has no slots .*keeps; .*core='ntm'"
    with pytest.raises(ValueError, match=sentence) as error:
        find_sources(recurrent(core))
    for name, core_class in CORES.items():
        has_slots = core_class.memory_weights is not MemoryCore.memory_weights
        assert (f"core={name!r}" in str(error.value)) is has_slots
        assert (core_class.__name__.replace("Core", "Extractor") in str(error.value)) is has_slots
    with pytest.raises(ValueError, match=r"is MemoryExtractor, and its .*Core has no slots to look into; train"):
        find_sources(stacked(DQN, core)[0])


# --- Past steps


def recall_model() -> RecurrentDQN:
    """A model that reads the pair that a question is about, with weights made by hand."""
    env = make_vec_env("AssociativeRecall-v0", seed=0)
    model = recurrent("key_value", env, hidden_size=21, key_size=4, context="mqn", n_slots=8)
    core = model.q_net.core
    with th.no_grad():
        for linear in (core.key_value, core.context, core.query):
            linear.weight.zero_()
            linear.bias.zero_()
        core.context.weight += th.eye(21)
        core.key_value.weight[:4, :4] = th.eye(4)
        core.key_value.weight[:4, 20] = -1.0  # so that a question is never found as an answer
        core.query.weight[:, :4] = 100 * th.eye(4)
    return model


def test_retrieval_is_drawn_at_the_step_that_was_read():
    env = make_vec_env("AssociativeRecall-v0", seed=0)
    episode = record_episode(recall_model(), env)
    drawn = tokens_figure(episode.recorded_weights[0]).axes[0].images[0]
    assert drawn.origin == "lower"
    keys = episode.observations[:, :4].argmax(axis=1).tolist()
    for step in range(4, 8):
        place = keys[:4].index(keys[step])
        np.testing.assert_allclose(np.ma.filled(drawn.get_array()[:, step], 0.0), np.eye(8)[place], atol=1e-6)
    assert np.ma.getmaskarray(drawn.get_array()).tolist() == [[past >= present for present in range(8)] for past in range(8)]


def test_transformer_attention_is_drawn_at_the_step_that_was_attended_to():
    model = recurrent("gtrxl", hidden_size=8, n_heads=2, memory_length=3)
    layer = model.q_net.core.layers[0]
    with th.no_grad():
        for parameter in (layer.query.weight, layer.query.bias, layer.relative_positions):
            parameter.zero_()
        layer.position_bias.fill_(1.0)
        layer.relative_positions[0, 1] = 100.0  # the first head looks two steps back, the second evenly on all
    recorded = record(model)["memory_attention"]
    first, second = tokens_figure(recorded).axes[:2]
    for step in range(LENGTH):
        seen = range(max(0, step - 3), step + 1)
        drawn = np.ma.filled(second.images[0].get_array()[:, step], 0.0)
        np.testing.assert_allclose(drawn, [1 / len(seen) if past in seen else 0 for past in range(LENGTH)], rtol=1e-5)
        if step >= 2:
            np.testing.assert_allclose(np.ma.filled(first.images[0].get_array()[:, step], 0.0), np.eye(LENGTH)[step - 2])
    entropy, even = (line.get_ydata() for line in curves_figure(recorded).axes[0].lines[1:])
    np.testing.assert_allclose(entropy, np.log([1, 2, 3, 4, 4]), atol=1e-5)
    np.testing.assert_allclose(even, np.log([1, 2, 3, 4, 4]), atol=1e-5)


def test_first_steps_do_not_set_the_scale():
    recorded = RecordedWeights("reads", np.tril(np.ones((8, 8)))[:, None, ::-1] / np.arange(1, 9)[:, None, None], (STEPS,))
    image = tokens_figure(recorded).axes[0].images[0]
    assert image.get_clim() == (0, pytest.approx(1 / 4))  # those of step 3, the first with half of the steps to look back on
    assert image.get_array()[0, 0] == 1


@pytest.mark.parametrize("newest", [0, 1, 3])
@pytest.mark.parametrize(("n_steps", "n_tokens"), [(1, 1), (6, 9), (9, 4), (12, 3)])
def test_last_steps_become_steps_of_the_episode(n_steps, n_tokens, newest):
    weights = np.random.default_rng(0).random((n_steps, 2, n_tokens))
    expected = np.zeros((n_steps, 2, n_steps))
    for step in range(n_steps):
        for token in range(n_tokens):
            looked_at = step - newest - (n_tokens - 1 - token)
            if looked_at < 0:
                weights[step, :, token] = 0
            else:
                expected[step, :, looked_at] = weights[step, :, token]
    part = TokenPart(None, "step", 0, n_tokens, newest_age=newest)
    recorded = RecordedWeights("reads", weights, (part,))
    np.testing.assert_array_equal(recorded.by_step, expected)
    available = (expected > 0).sum(axis=-1)[:, 0]
    np.testing.assert_array_equal(recorded.n_reachable, available)


def test_tokens_are_drawn_where_steps_of_the_episode_cannot_be():
    part = TokenPart(None, "step", 0, 3, newest_age=1)
    many = RecordedWeights("reads", np.zeros((13, 1, 3)), (part,))
    before_the_start = RecordedWeights("reads", np.full((2, 1, 3), 1 / 3), (part,))
    for recorded in (many, before_the_start):
        assert recorded.by_step is None
        axes = tokens_figure(recorded).axes[0]
        np.testing.assert_array_equal(axes.images[0].get_array(), recorded.weights[:, 0].T)
        assert [label.get_text() for label in axes.get_yticklabels()] == ["t - 1", "t - 2", "t - 3"]
    assert RecordedWeights("reads", np.zeros((2, 1, N_SLOTS)), SLOTS).by_step is None


# --- A memory over stacked frames


@pytest.mark.parametrize("algorithm", [DQN, PPO, RecurrentDQN])
@pytest.mark.parametrize("core", [CountingCore, *SHAPES])
def test_frames_of_an_observation(algorithm, core):
    """Compare with a loop over the frames that the environment has shown, of which there are fewer in the first steps."""
    model, env = stacked(algorithm, core)
    episode = record_episode(model, env)
    extractor = features_extractor(acting_network(model))
    for recorded in episode.recorded_weights:
        quantity = recorded.name.removeprefix("frames_")
        for step in range(LENGTH):
            state, expected = extractor.core.initial_state(1), []
            for past in range(max(0, step - 2), step + 1):
                newest_of_three = th.as_tensor(episode.observation(past)[-4:])
                with th.no_grad():
                    inputs = extractor.encode({"frame": newest_of_three.view(1, 1, 4).expand(3, -1, -1)})[-1]
                    expected.append(extractor.core.memory_weights(inputs, state)[quantity][0].numpy())
                    state = extractor.core(inputs, state)[1]
            found = recorded.weights[step]
            if quantity == "link":
                np.testing.assert_allclose(found[0], expected[-1], atol=1e-6)
            elif quantity in ("retrieval", "attention"):
                n_seen = len(expected) - (quantity == "retrieval")
                last_slots = expected[-1][:, expected[-1].shape[1] - n_seen :]
                if quantity == "retrieval":
                    last_slots = np.pad(last_slots, ((0, 0), (0, 1)))
                np.testing.assert_allclose(found[:, 3 - last_slots.shape[1] :], last_slots, atol=1e-6)
                assert not found[:, : 3 - last_slots.shape[1]].any()
            else:
                assert recorded.rows is not None and recorded.rows.names == ["t - 2", "t - 1", "t"]
                np.testing.assert_allclose(found[:, 3 - len(expected) :], np.stack(expected, axis=1), atol=1e-6)
                assert not found[:, : 3 - len(expected)].any()


def test_rows_of_a_batch_begin_where_their_episodes_do():
    model, env = stacked(DQN, CountingCore)
    episode = record_episode(model, env)
    (source, *_) = find_sources(model)
    with th.no_grad():
        together = source.weights(th.as_tensor(episode.observations)).numpy()
    np.testing.assert_array_equal(together, episode.recorded_weights[0].weights)
    assert [int(weights.sum()) for weights in together[:, 0]] == [1, 2, 3, 3, 3]


def test_blank_frames_count_if_the_extractor_reads_them():
    model, env = stacked(DQN, "key_value", mask_blank_frames=False)
    recorded = record(model, env)["frames_retrieval"]
    np.testing.assert_allclose(recorded.total, 1, rtol=1e-5)  # also at the first step
    assert recorded.by_step is None  # there is weight on blank frames, before the episode's start


@pytest.mark.parametrize("n_slots", [1, 2, 5])
def test_a_memory_of_fewer_or_more_slots_than_frames(n_slots):
    model, env = stacked(DQN, "key_value", core_kwargs=dict(n_slots=n_slots))
    weights = record(model, env)["frames_retrieval"].weights
    assert weights.shape == (LENGTH, 1, 3)
    for step in range(LENGTH):
        n_read = min(n_slots, step, 2)
        assert (
            np.count_nonzero(weights[step]) == n_read and not weights[step, 0, 2] and not weights[step, 0, : 2 - n_read].any()
        )


@pytest.mark.parametrize("core", ["key_value", "gtrxl"])
@pytest.mark.parametrize("padding", ["blank", "read", "first frame"])
def test_what_a_memory_can_reach_depends_on_the_frames_that_are_real(core, padding):
    """Attention that is even over what it can reach has the largest entropy, and is drawn on the line for that."""
    kwargs = dict(mask_blank_frames=padding != "read")
    env = make_env("vector", n_stack=4)
    if padding == "first frame":
        kwargs["stack_axis"] = 0
        env = DummyVecEnv([lambda: gym.wrappers.FrameStackObservation(Rendered("vector"), 4)])
    model = stacked(DQN, core, 4, env=env, **kwargs)[0]
    memory = model.q_net.features_extractor.core
    with th.no_grad():  # without a query all scores are equal
        for parameter in (memory.query if core == "key_value" else memory.layers[0].query).parameters():
            parameter.zero_()
    (recorded,) = record(model, env).values()
    n_real = np.minimum(np.arange(1, LENGTH + 1), 4) if padding == "blank" else np.full(LENGTH, 4)
    n_reachable = n_real - (core == "key_value")  # which cannot read the newest frame
    np.testing.assert_array_equal(recorded.n_reachable, n_reachable)
    np.testing.assert_allclose(recorded.weights, recorded.even[:, None].repeat(recorded.weights.shape[1], 1), atol=1e-6)
    assert even_weight(recorded) == 1 / n_reachable.max()
    assert entropy_captions(recorded)[-1][0] == f"entropy {np.log(n_reachable[-1]):.2f} of {np.log(n_reachable[-1]):.2f}"
    entropy, *_, even = (line.get_ydata() for line in curves_figure(recorded).axes[0].lines)
    np.testing.assert_allclose(entropy[n_reachable > 0], even[n_reachable > 0], atol=1e-5)


@pytest.mark.parametrize("n_slots", [1, 2, 5])
def test_a_memory_of_few_slots_reaches_as_many_frames(n_slots):
    model, env = stacked(DQN, "key_value", core_kwargs=dict(n_slots=n_slots))
    recorded = record(model, env)["frames_retrieval"]
    np.testing.assert_array_equal(recorded.even > 0, recorded.weights[:, 0] > 0)
    np.testing.assert_array_equal(recorded.n_reachable, np.minimum(n_slots, [0, 1, 2, 2, 2]))


def test_two_memories_have_two_names():
    extractor = dict(features_extractor_class=sb3_attn.NTMExtractor, features_extractor_kwargs=dict(n_stack=2))
    env = make_env("vector", n_stack=2)
    model = RecurrentDQN("MlpPolicy", env, policy_kwargs=dict(core="ntm", **extractor), buffer_size=400, device="cpu")
    assert set(record(model, env)) == {"memory_read", "memory_write", "frames_read", "frames_write"}


# --- Numbers


def test_entropy_is_of_shares_and_the_sum_is_drawn_where_it_is_less_than_1(tmp_path):
    weights = np.zeros((3, 1, N_SLOTS), np.float32)
    weights[1, 0, :2] = 0.25
    weights[2, 0, 3] = 0.5
    recorded = RecordedWeights("memory_write", weights, SLOTS)
    np.testing.assert_allclose(recorded.entropy[:, 0], [0, np.log(2), 0], atol=1e-6)
    entropy, peak, total = curves_figure(recorded).axes
    np.testing.assert_allclose(entropy.lines[0].get_ydata(), [np.nan, np.log(2), 0], atol=1e-6)
    np.testing.assert_allclose(peak.lines[0].get_ydata(), [0, 0.25, 0.5])
    np.testing.assert_allclose(total.lines[0].get_ydata(), [0, 0.5, 0.5])
    assert len(curves_figure(replace(recorded, weights=np.eye(N_SLOTS)[:, None])).axes) == 2


def test_weights_that_are_not_a_distribution_have_no_curves(tmp_path):
    episode = record_episode(recurrent(CountingCore), make_env("vector"))
    _, usage, link = episode.recorded_weights
    for recorded in (usage, link):
        with pytest.raises(ValueError, match=f"'{recorded.name}' has no single distribution"):
            curves_figure(recorded)
    with pytest.raises(ValueError, match="'memory_link' has a matrix for each step; draw it with matrices_figure"):
        tokens_figure(link)
    with pytest.raises(ValueError, match="'memory_usage' has no matrix for each step; draw it with tokens_figure"):
        matrices_figure(usage)
    episode.save(tmp_path / "episode.npz")
    with np.load(tmp_path / "episode.npz") as arrays:
        assert "memory_read/entropy" in arrays and "memory_usage/peak" in arrays
        assert not {"memory_usage/entropy", "memory_link/entropy"} & set(arrays)
        np.testing.assert_array_equal(arrays["memory_link/weights"], link.weights)


def test_entries_have_names():
    model = make_model(DQN, make_env("dict"))
    (source,) = find_sources(model, ["x", "speed", "angle", "<b>"])
    recorded = source.record(np.full((1, 2, 29), 1 / 29))
    named = {part.key: part.names[:4] for part in recorded.parts}
    assert named["vector"] == ["vector: x", "vector: speed", "vector: angle", "vector: <b>"]
    assert named["image"][1] == "image: region 1"
    assert find_sources(make_model(DQN, make_env("vector")), list("abcd"))[0].parts[0].names == ["a", "b", "c", "d"]
    with pytest.raises(ValueError, match=r"names=\['x'\] has 1 names, but this model attends to 4 entries"):
        find_sources(model, ["x"])
    with pytest.raises(ValueError, match="attends to no entry of a vector; leave them out"):
        find_sources(make_model(DQN, make_env("image")), ["x"])
