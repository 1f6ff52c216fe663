"""
Export a recurrent policy to ONNX, one step at a time: (observation, state) -> (action, next state).

    python examples/export_onnx.py model.zip policy.onnx

The state is an input and an output of the graph, as it is of the policy. When running the graph, pass the state on from step
to step, and start each episode with `model.policy.acting_net.initial_state(1)`, which is zeros for all cores except the NTM.
A DNC writes to the slot with the least usage: where two usages differ only by rounding, the graph may choose the other slot,
and its memory differs from then on. Needs `pip install onnx onnxscript`, and onnxruntime to run the graph.
"""

import argparse
from pathlib import Path
from typing import Any

import torch as th
from onnxscript import opset18 as op

from sb3_attn import RecurrentDQN
from sb3_attn.common.core_state import CoreState


def stable_sort(self: Any, *, stable: bool = False, dim: int = -1, descending: bool = False) -> Any:
    """PyTorch's stable sort, which the DNC needs and the exporter lacks; among equals, TopK puts the lower index first."""
    size = op.Gather(op.Shape(self), op.Constant(value_ints=[dim]))  # type: ignore[type-var]
    return op.TopK(self, size, axis=dim, largest=int(descending), sorted=1)


def product(inp: Any, dims: list[int] | None, *, output_dtype: int | None = None) -> Any:
    """The product that the exporter decomposes a cumulative product into."""
    return op.ReduceProd(inp, op.Constant(value_ints=dims), keepdims=0)  # type: ignore[arg-type]


class Step(th.nn.Module):
    """
    A greedy step whose state is plain tensors, since a graph has no named tuples.

    :param model: The trained model; its observations must not be a Dict.
    """

    def __init__(self, model: RecurrentDQN) -> None:
        super().__init__()
        self.q_net = model.policy.acting_net
        self.state_type = type(model.q_net.initial_state(1))

    def forward(self, obs: th.Tensor, *state: th.Tensor) -> tuple[th.Tensor, ...]:
        core_state: CoreState = self.state_type(*state)
        q_values, core_state = self.q_net(obs, core_state)
        return q_values.argmax(dim=1), *core_state


def export(model: RecurrentDQN, path: Path) -> None:
    """
    Export the policy of a model as an ONNX graph.

    :param model: The trained model.
    :param path: The file to write.
    """
    model.policy.set_training_mode(False)
    state = model.policy.acting_net.initial_state(1)
    obs, _ = model.policy.obs_to_tensor(model.observation_space.sample())
    fields = state._fields  # type: ignore[attr-defined]
    th.onnx.export(
        Step(model),
        (obs, *state),
        str(path),
        input_names=["obs", *fields],
        output_names=["action", *(f"next_{field}" for field in fields)],
        opset_version=18,
        custom_translation_table={th.ops.aten.sort.stable: stable_sort, th.ops.prims.prod.default: product},
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the zip file")
    parser.add_argument("graph", type=Path, help="the file to write")
    args = parser.parse_args()
    export(RecurrentDQN.load(args.model, device="cpu"), args.graph)
