"""The exported graph, run step by step, equals the policy."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from sb3_attn import RecurrentDQN
from sb3_attn.memory import CORES

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
EXAMPLE = Path(__file__).parents[2] / "examples" / "export_onnx.py"


@pytest.mark.filterwarnings("ignore")  # the exporter's own
@pytest.mark.parametrize("core", sorted(CORES.keys() - {"identity"}))
def test_exported_steps_equal_predict(tmp_path: Path, core: str) -> None:
    model = RecurrentDQN("MlpPolicy", "CartPole-v1", seed=0, learning_starts=100, policy_kwargs={"core": core}).learn(120)
    runpy.run_path(str(EXAMPLE))["export"](model, tmp_path / "policy.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    names = [node.name for node in session.get_inputs()]
    arrays = [array.detach().numpy() for array in model.q_net.initial_state(1)]

    env = model.get_env()
    obs, state = env.reset(), None
    # From the third step on some of a DNC's free slots are equally used except for rounding, which decides where it writes
    for _ in range(2 if core == "dnc" else 20):
        action, state = model.predict(obs, state=state, deterministic=True)
        exported_action, *arrays = session.run(None, dict(zip(names, [obs, *arrays], strict=True)))
        assert exported_action == action
        for array, field in zip(arrays, state, strict=True):
            np.testing.assert_allclose(array, field, atol=1e-5)
        obs, *_ = env.step(action)
