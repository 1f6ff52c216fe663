"""Plain data as JSON."""

import json
from typing import Any

import numpy as np
import pytest

from sb3_attn.common.plain_data import from_json, to_json


def test_plain_data_stays_as_it_is() -> None:
    numbers = np.arange(6, dtype=np.int16).reshape(2, 3)
    value = {"a": [1, 2.5, None, True, "x"], "b": (numbers.T, ()), "c": {"array": 2**100}, "d": np.float32(0.1), "e": {}}
    found = from_json(json.loads(json.dumps(to_json(value, "it"))))
    np.testing.assert_equal(found, value)
    assert type(found["b"]) is tuple and found["b"][0].dtype == np.int16 and type(found["d"]) is np.float32
    assert np.isnan(from_json(json.loads(json.dumps(to_json(float("nan"), "it")))))


@pytest.mark.parametrize("value", [object(), {1}, {1: 2}, np.array([None]), b"x", np.zeros(2, "M8[s]"), [{"a": len}]])
def test_everything_else_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^it has a \w+, but a checkpoint holds plain data only; return"):
        to_json(value, "it")
