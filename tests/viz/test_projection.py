"""Projections to pixels, compared with slow loops."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("imageio")

from gymnasium import spaces

from sb3_attn.extractors.tokenizers import ImageTokenizer, ReceptiveField
from sb3_attn.viz import overlay, pixel_map, ratio_scale, to_rgb


def pixel_map_by_loop(weights, grid, size, stride, height, width, mean):
    result = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            seen_by = [
                weights[i * grid[1] + j]
                for i in range(grid[0])
                for j in range(grid[1])
                if i * stride <= y < i * stride + size and j * stride <= x < j * stride + size
            ]
            result[y, x] = sum(seen_by) / (len(seen_by) if mean and seen_by else 1)
    return result


@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize(
    ("trunk", "size"),
    [("nature", (84, 84)), ("nature", (64, 40)), ("patches", (64, 64)), ([(2, 5, 3)], (20, 31)), ([(2, 2, 5)], (20, 18))],
    ids=str,
)
def test_a_map_equals_a_slow_loop(trunk, size, reduce):
    tokenizer = ImageTokenizer(spaces.Box(0, 255, (1, *size), np.uint8), trunk=trunk)
    weights = np.random.default_rng(0).random((2, 3, tokenizer.n_tokens))
    maps = pixel_map(weights, tokenizer.grid, tokenizer.receptive_field, size, reduce)
    assert maps.shape == (2, 3, *size)
    for found, row in zip(maps.reshape(-1, *size), weights.reshape(-1, tokenizer.n_tokens), strict=True):
        expected = pixel_map_by_loop(row, tokenizer.grid, *tokenizer.receptive_field, *size, mean=reduce == "mean")
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_even_attention_is_an_even_mean_and_all_attention_a_sum_of_one():
    grid, field, size = (7, 7), ReceptiveField(36, 8), (84, 84)
    np.testing.assert_allclose(pixel_map(np.full(49, 1 / 49), grid, field, size, "mean"), 1 / 49)
    for region in (0, 24, 48):
        seen = pixel_map(np.eye(49)[region], grid, field, size)
        assert seen.max() == 1 and seen.sum() == 36 * 36
    with pytest.raises(ValueError, match="reduce='max' is unknown; choose 'sum' or 'mean'"):
        pixel_map(np.ones(49), grid, field, size, "max")


@pytest.mark.parametrize(
    ("channels", "n_stack", "expected"),
    [(1, 1, [0, 0, 0]), (3, 1, [0, 1, 2]), (4, 4, [3, 3, 3]), (3, 3, [2, 2, 2]), (12, 4, [9, 10, 11]), (4, 1, [3, 3, 3])],
)
def test_a_picture_is_the_newest_frame(channels, n_stack, expected):
    image = np.broadcast_to(np.arange(channels, dtype=np.uint8)[:, None, None], (channels, 2, 5))
    frame = to_rgb(image, n_stack)
    assert frame.shape == (2, 5, 3) and frame.dtype == np.uint8
    assert frame[0, 0].tolist() == expected


def test_normalised_images_are_stretched():
    frame = to_rgb(np.array([[[-2.0, 0.0, 2.0]]], dtype=np.float32))
    assert frame[0, :, 0].tolist() == [0, 127, 255]


def test_an_overlay_of_amounts_leaves_the_image_where_there_is_nothing():
    image = np.full((1, 3, 3), (200, 100, 50), np.uint8)
    shown = overlay(image, np.array([[0.0, 0.25, 0.5]])).astype(int)[0]
    assert shown[0].tolist() == [200, 100, 50]
    assert shown[0, 2] > shown[1, 2] > shown[2, 2]  # orange has no blue
    np.testing.assert_array_equal(overlay(image, np.zeros((1, 3))), image)  # no division by zero


def test_an_overlay_of_ratios_is_orange_above_even_and_blue_below():
    image = np.full((1, 6, 3), 100, np.uint8)
    less, half, even, twice, more, unseen = overlay(image, np.array([[0.0, 0.5, 1.0, 2.0, 9.0, np.nan]]), ratio_scale(4.0))[0]
    assert even.tolist() == unseen.tolist() == [100, 100, 100]
    assert less[2] > half[2] > 100 > half[0] > less[0]
    assert more[0] > twice[0] > 100 > twice[2] > more[2]
    almost_even = overlay(image, np.full((1, 6), 1.03), ratio_scale(1.03)).astype(int)
    assert np.abs(almost_even - image).max() < 10  # the scale does not shrink to noise
