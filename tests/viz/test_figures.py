"""Figures and videos: their files can be read, they have titles and labels, and they show the right data."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from gymnasium import spaces

plt = pytest.importorskip("matplotlib.pyplot")
imageio = pytest.importorskip("imageio.v2")
imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")

from stable_baselines3 import DQN

from sb3_attn import DARQNPolicy, RecurrentDQN, SoftAttentionPolicy
from sb3_attn.extractors.tokenizers import ReceptiveField
from sb3_attn.viz import (
    AttentionFiguresCallback,
    RecordedWeights,
    TokenPart,
    attention_maps,
    attention_ratios,
    attention_video,
    contact_sheet_figure,
    curves_figure,
    overlays_figure,
    pixel_map,
    record_episode,
    save_figure,
    tokens_figure,
    write_video,
)
from sb3_attn.viz.figures import entropy_captions, image_parts, observed_image, overlay_ratios
from sb3_attn.viz.heat_maps import even_weight
from sb3_attn.viz.projection import overlay, ratio_scale
from sb3_attn.viz.sources import token_parts
from tests.helpers.attention import LENGTH, make_env, make_model
from tests.helpers.masks import MASK_KEYS, Units


@pytest.fixture(scope="module", params=["image", "vector", "dict"])
def episode(request):
    return record_episode(make_model(DQN, make_env(request.param)), make_env(request.param))


@pytest.fixture(scope="module")
def image_episode():
    return record_episode(make_model(DQN, make_env("image")), make_env("image"))


@pytest.mark.parametrize("ending", ["mp4", "gif"])
def test_a_video_has_a_picture_for_each_step(episode, tmp_path, ending):
    path = write_video(tmp_path / f"video.{ending}", attention_video(episode), fps=5)
    if ending == "mp4":
        assert imageio_ffmpeg.count_frames_and_secs(path) == (LENGTH, LENGTH / 5)
        return
    with imageio.get_reader(path) as reader:
        frames = list(reader.iter_data())
    assert len(frames) == LENGTH
    assert frames[0].shape[:2] == next(attention_video(episode)).shape[:2]
    assert all(np.abs(a.astype(int) - b).max() > 50 for a, b in pairwise(frames))


def test_only_what_moves_is_drawn_again(image_episode):
    first, *_, last = attention_video(image_episode)
    titles = slice(24, 46)  # the rows between caption and panels
    np.testing.assert_array_equal(first[titles], last[titles])
    assert first[titles].min() < 100  # there is text


def test_moving_lines_leave_no_trace_in_the_video():
    episode = record_episode(make_model(DQN, make_env("vector")), make_env("vector"))
    frames = [frame.astype(int) for frame in attention_video(episode)]
    lines = [np.flatnonzero((frame[..., 2] - frame[..., 0] > 150).sum(axis=0) > 50) for frame in frames]  # cyan columns
    assert all(0 < len(columns) <= 4 for columns in lines)
    assert all(columns.max() < later.min() for columns, later in pairwise(lines))


def test_the_panels_show_frame_observation_and_heads(image_episode):
    from matplotlib.figure import Figure

    from sb3_attn.viz.video import _overlay_panels

    figure, update = _overlay_panels(image_episode, image_episode.recorded_weights[0])
    assert isinstance(figure, Figure)
    assert [axes.get_title() for axes in figure.axes[:4]] == ["rendered", "observed", "head 1", "head 2"]
    rendered, observed, head, _, caption, _ = update(3)
    part = image_parts(image_episode.recorded_weights[0])[0][0]
    np.testing.assert_array_equal(rendered.get_array(), image_episode.frames[3])
    np.testing.assert_array_equal(observed.get_array(), image_episode.observations[3].transpose(1, 2, 0))
    ratios = attention_ratios(image_episode.recorded_weights[0], part)
    scale = overlay_ratios(image_episode.recorded_weights[0])[1]
    np.testing.assert_array_equal(head.get_array(), overlay(observed.get_array(), ratios[3, 0], scale))
    entropy = image_episode.recorded_weights[0].entropy[3]
    assert caption.get_text() == f"entropy {entropy[0]:.2f} of 3.22"
    assert [tick.get_text() for tick in figure.axes[4].get_yticklabels()][1] == "1"
    assert "even" in [text.get_text() for text in figure.axes[4].texts]


def test_maps_are_of_the_parts_own_tokens():
    episode = record_episode(make_model(DQN, make_env("dict")), make_env("dict"))
    (part, image), recorded = image_parts(episode.recorded_weights[0])[0], episode.recorded_weights[0]
    assert part.key == "image" and part.stop - part.start == 25
    expected = pixel_map(recorded.weights[..., part.start : part.stop], image.grid, image.receptive_field, (64, 64))
    np.testing.assert_array_equal(attention_maps(recorded, part), expected)
    even_share = pixel_map(np.full(25, 1 / 29), image.grid, image.receptive_field, (64, 64))  # of 29 tokens, not of 25
    np.testing.assert_allclose(attention_ratios(recorded, part), expected / even_share, rtol=1e-5)
    assert observed_image(episode, part.key, 0).shape == (64, 64, 3)
    (vector,) = (other for other in recorded.parts if other.image is None)
    with pytest.raises(ValueError, match="The part 'vector: entry' is not an image"):
        attention_maps(recorded, vector)


def test_even_attention_has_a_ratio_of_one_also_where_regions_overlap(image_episode):
    recorded = image_episode.recorded_weights[0]
    part = recorded.parts[0]
    overlapping = part._replace(image=part.image._replace(receptive_field=ReceptiveField(20, 10)))
    even = replace(recorded, weights=np.full_like(recorded.weights, 1 / 25), parts=(overlapping,))
    maps, ratios = attention_maps(even, overlapping), attention_ratios(even, overlapping)
    assert maps[..., 30, 30].min() > 3.9 * maps[..., 0, 0].max()
    np.testing.assert_allclose(ratios[..., :60, :60], 1, rtol=1e-5)
    assert np.isnan(ratios[..., 60:, :]).all()  # no region sees the last rows


def test_a_frame_that_is_the_observation_is_drawn_once(image_episode):
    from sb3_attn.viz.video import _overlay_panels

    observed = np.stack([observed_image(image_episode, None, step) for step in range(LENGTH)])
    frames = observed.repeat(2, axis=1).repeat(2, axis=2)
    for shown, first in ((frames, "observed"), (frames[:, :, :96], "rendered"), (255 - frames, "rendered")):
        figure, _ = _overlay_panels(replace(image_episode, frames=shown), image_episode.recorded_weights[0])
        assert figure.axes[0].get_title() == first


def test_a_heat_map_of_almost_even_weights_looks_even():
    noise = np.random.default_rng(0).random((6, 1, 32)).astype(np.float32)
    recorded = RecordedWeights("memory_read", noise / noise.sum(axis=-1, keepdims=True) / 2, (TokenPart(None, "slot", 0, 32),))
    heat_map, bar = tokens_figure(recorded).axes
    assert heat_map.images[0].get_clim() == (0, 2 / 32)
    assert [text.get_text() for text in bar.texts] == ["even"] and bar.texts[0].xy[1] == 1 / 32
    values = replace(recorded, is_distribution=False)
    heat_map, bar = tokens_figure(values).axes
    assert heat_map.images[0].get_clim() == (0, values.weights.max()) and not bar.texts


def test_other_video_formats_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has to end in .mp4 or .gif"):
        write_video(tmp_path / "video.avi", [])


def test_curves_and_tokens_show_the_recorded_weights(episode, tmp_path):
    recorded = episode.recorded_weights[0]
    curves = curves_figure(recorded)
    upper, lower = curves.axes
    np.testing.assert_array_equal(upper.lines[1].get_ydata(), recorded.entropy[:, 1])
    np.testing.assert_array_equal(lower.lines[0].get_ydata(), recorded.peak[:, 0])
    assert upper.get_ylabel() and lower.get_ylabel() and lower.get_xlabel() == "step" and upper.get_legend()
    tokens = tokens_figure(recorded)
    assert [axes.get_title() for axes in tokens.axes[:2]] == ["head 1", "head 2"]
    np.testing.assert_array_equal(tokens.axes[0].images[0].get_array(), recorded.weights[:, 0].T)
    for name, figure in (("curves", curves), ("tokens", tokens)):
        path = save_figure(figure, tmp_path / f"{name}.png")
        assert imageio.imread(path).std() > 10


def test_one_step_can_be_drawn(tmp_path):
    episode = record_episode(make_model(DQN, make_env("image")), make_env("image"), n_steps=1)
    assert not episode.finished
    save_figure(curves_figure(episode.recorded_weights[0]), tmp_path / "curves.png")
    assert len(list(attention_video(episode))) == 1


def test_overlays_have_a_row_for_each_picture():
    images = [np.zeros((64, 64, 3), np.uint8)] * 3
    figure = overlays_figure(images, [np.random.default_rng(0).random((2, 64, 64))] * 3)
    assert len(figure.axes) == 3 * 3 + 1  # and the colours


def test_a_contact_sheet_has_images_with_their_overlays_beside_them():
    images = [np.full((32, 32, 3), shade, np.uint8) for shade in range(5)]
    maps = np.random.default_rng(0).random((5, 2, 32, 32))
    panels = contact_sheet_figure(images, maps, [f"episode {i}" for i in range(5)]).axes[:8]  # the rest is the colours
    for i, axes in enumerate(panels[:5]):
        strip = axes.images[0].get_array()
        assert axes.get_title() == f"episode {i}" and strip.shape == (32, 3 * 32 + 2 * 2, 3)
        np.testing.assert_array_equal(strip[:, :32], images[i])
        np.testing.assert_array_equal(strip[:, 68:], overlay(images[i], maps[i][1], ratio_scale(maps.max())))
    assert not any(axes.images for axes in panels[5:])
    assert contact_sheet_figure(images[:1]).axes[0].images[0].get_array().shape == (32, 32, 3)


def test_no_figure_of_pyplot_is_opened(image_episode):
    before = plt.get_fignums()  # other tests in this process may have opened some
    curves_figure(image_episode.recorded_weights[0])
    assert plt.get_fignums() == before


def test_pictures_of_a_model_with_masks():
    policy_kwargs = dict(features_extractor_kwargs=dict(features_dim=16, mask_keys=MASK_KEYS))
    model = DQN(SoftAttentionPolicy, Units(), policy_kwargs=policy_kwargs, buffer_size=10, device="cpu", seed=0)
    tokenizer = model.q_net.features_extractor.tokenizer
    parts = token_parts(tokenizer, model.observation_space)
    assert [(part.key, part.kind, part.start, part.stop) for part in parts] == [
        ("self", "entry", 0, 2),
        ("units", "entity", 2, 7),
    ]
    episode = record_episode(model, Units())
    (recorded,) = episode.recorded_weights
    assert recorded.weights.shape == (4, 1, 7) and np.isfinite(recorded.entropy).all()
    assert (recorded.weights[:, 0, 2:][episode.observations["units_mask"] == 0] == 0).all()
    tokens_figure(recorded)


class Padded(Units):
    """An image of 35 regions and 35 units, of which as many are real as steps have passed; the mask is all zero at first."""

    observation_space = spaces.Dict(
        a=spaces.Box(0, 255, (3, 40, 56), np.uint8),
        m=spaces.MultiBinary(35),
        u=spaces.Box(-1.0, 1.0, (35, 2), np.float32),
    )
    action_space = spaces.Discrete(2)

    def _observe(self):
        return {**self.observation_space.sample(), "m": (np.arange(35) < self.steps).astype(np.int8)}


def even_model(kind):
    """A model whose attention is even over all tokens that are not padding."""
    extractor = dict(trunk=[(8, 8, 8)], mask_keys={"u": "m"})
    if kind == "darqn":
        kwargs = dict(features_extractor_kwargs=extractor, core_kwargs=dict(hidden_size=8), net_arch=[])
        model = RecurrentDQN(DARQNPolicy, Padded(), policy_kwargs=kwargs, buffer_size=400, device="cpu", seed=0)
        model.q_net.core.attention.temperature = np.inf
        return model
    kwargs = dict(features_extractor_kwargs=dict(features_dim=8, temperature=np.inf, **extractor))
    return DQN(SoftAttentionPolicy, Padded(), policy_kwargs=kwargs, buffer_size=10, device="cpu", seed=0)


@pytest.mark.parametrize("kind", ["extractor", "darqn"])
def test_even_attention_is_not_on_padding(kind):
    model = even_model(kind)
    episode = record_episode(model, Padded())
    (recorded,) = episode.recorded_weights
    n_real = 35 + np.arange(4)
    np.testing.assert_array_equal(recorded.n_reachable, n_real)
    np.testing.assert_allclose(recorded.weights[:, 0], recorded.even, rtol=1e-5)
    np.testing.assert_allclose(attention_ratios(recorded, recorded.parts[0]), 1, rtol=1e-5)
    assert entropy_captions(recorded) == [[f"entropy {np.log(n):.2f} of {np.log(n):.2f}"] for n in n_real]
    assert entropy_captions(recorded)[0] == ["entropy 3.56 of 3.56"]
    assert even_weight(recorded) == 1 / 38
    entropy, even = (line.get_ydata() for line in curves_figure(recorded).axes[0].lines)
    np.testing.assert_allclose(entropy, even, rtol=1e-5)


def test_the_callback_knows_padding_too():
    model = even_model("extractor")
    callback = AttentionFiguresCallback(n_steps=4, n_observations=2)
    callback.init_callback(model)
    callback._observations = [model.observation_space.sample() for _ in range(2)]
    for n, observation in zip((0, 3), callback._observations, strict=True):
        observation["m"] = (np.arange(35) < n).astype(np.int8)
    recorded = callback._record(callback._sources()[0])
    np.testing.assert_array_equal(recorded.n_reachable, [35, 38])
    np.testing.assert_allclose(attention_ratios(recorded, recorded.parts[0]), 1, rtol=1e-5)
