"""
Export a recurrent policy to ONNX, one step at a time: (observation, state) -> (action, next state).

    python examples/export_onnx.py model.zip policy.onnx

The state is an input and an output of the graph, as it is of the policy; whoever runs it passes the state on, and starts
each episode with zeros (`RecurrentQNetwork.initial_state`). Needs `pip install onnx onnxscript`, and onnxruntime to run it.
"""

import sys
from pathlib import Path

import torch as th

from sb3_attn import RecurrentDQN
from sb3_attn.common.core_state import CoreState


class Step(th.nn.Module):
    """
    A greedy step with plain tensors, since a graph knows no named tuples.

    :param model: The trained model; observations must be a single array.
    """

    def __init__(self, model: RecurrentDQN) -> None:
        super().__init__()
        self.policy = model.policy
        self.state_type = type(model.q_net.initial_state(1))

    def forward(self, obs: th.Tensor, *state: th.Tensor) -> tuple[th.Tensor, ...]:
        core_state: CoreState = self.state_type(*state)
        action, core_state = self.policy(obs, core_state)
        return action, *core_state


def export(model: RecurrentDQN, path: Path) -> None:
    """
    Write the ONNX graph.

    :param model: The trained model.
    :param path: The file to write.
    """
    model.policy.set_training_mode(False)
    state = model.q_net.initial_state(1)
    obs, _ = model.policy.obs_to_tensor(model.observation_space.sample())
    fields = state._fields  # type: ignore[attr-defined]
    th.onnx.export(
        Step(model),
        (obs, *state),
        str(path),
        input_names=["obs", *fields],
        output_names=["action", *(f"next_{field}" for field in fields)],
        opset_version=18,
    )


if __name__ == "__main__":
    export(RecurrentDQN.load(sys.argv[1], device="cpu"), Path(sys.argv[2]))
