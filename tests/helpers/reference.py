"""Runs our memory cells with the weights and inputs of the reference implementations; see ``tests/data/README.md``."""

from collections.abc import Mapping

import numpy as np
import torch as th

from sb3_attn.memory.external.dnc import DNCCore
from sb3_attn.memory.external.ntm import NTMCore, NTMState

Arrays = Mapping[str, np.ndarray]


@th.enable_grad()
def run_ntm(arrays: Arrays) -> dict[str, np.ndarray]:
    """
    Build an NTM from a file's arrays, run it, and differentiate the sum of its squared outputs.

    :param arrays: one read and one write head, of any sizes; the names are those of ``tests/data/README.md``
    :return: outputs, state after the last step and gradients, under the file's own names
    """
    given = {name: th.as_tensor(np.asarray(array)) for name, array in arrays.items()}
    inputs = given["x"]
    _, batch_size, input_size = inputs.shape
    n_slots, word_size = given["memory0"].shape
    hidden_size = given["lstm_weight_hh"].shape[1]
    n_shifts = len(given["read_head_bias"]) - word_size - 3
    core = NTMCore(
        input_size,
        hidden_size=hidden_size,
        n_slots=n_slots,
        word_size=word_size,
        shift_range=n_shifts // 2,
        output_size=len(given["out_bias"]),
        reference_form=True,
    ).to(inputs.dtype)
    gate_rows = _our_gate_order(hidden_size)
    head_rows = _our_head_order(word_size, n_shifts)
    lstm_weight = th.cat((given["lstm_weight_ih"], given["lstm_weight_hh"]), dim=1)
    with th.no_grad():
        core.controller.linear.weight.copy_(lstm_weight[gate_rows])
        core.controller.linear.bias.copy_(given["lstm_bias"][gate_rows])
        core.interface.weight.copy_(th.cat((given["read_head_weight"], given["write_head_weight"]))[head_rows])
        core.interface.bias.copy_(th.cat((given["read_head_bias"], given["write_head_bias"]))[head_rows])
        core.output.weight.copy_(given["out_weight"])
        core.output.bias.copy_(given["out_bias"])

    def rows(array: th.Tensor) -> th.Tensor:
        return array.to(inputs.dtype).expand(batch_size, *array.shape[1:])

    no_weights = inputs.new_zeros(batch_size, 1, n_slots)
    state = NTMState(
        rows(given["h0"]),
        rows(given["c0"]),
        rows(given["memory0"].unsqueeze(0)),
        rows(given["read0"]).unsqueeze(1),
        no_weights,
        no_weights,
    )
    logits, state = core.unroll(inputs, state)
    output = logits.sigmoid()
    parameters = (core.controller.linear.weight, core.interface.weight, core.output.weight)
    lstm_gradient, head_gradient, out_gradient = th.autograd.grad(output.square().sum(), parameters)
    in_their_order = head_gradient.new_empty(head_gradient.shape).index_copy(0, head_rows, head_gradient)
    n_read_rows = len(given["read_head_bias"])
    results = {
        "output": output,
        "memory": state.memory,
        "read_weights": state.read_weights.squeeze(1),
        "write_weights": state.write_weights.squeeze(1),
        "last_read": state.reads.squeeze(1),
        "grad_lstm_weight_ih": th.empty_like(lstm_gradient).index_copy(0, gate_rows, lstm_gradient)[:, :-hidden_size],
        "grad_read_head_weight": in_their_order[:n_read_rows],
        "grad_write_head_weight": in_their_order[n_read_rows:],
        "grad_out_weight": out_gradient,
    }
    return {name: result.detach().numpy() for name, result in results.items()}


def run_dnc_access(arrays: Arrays) -> dict[str, np.ndarray]:
    """
    Build a memory access of a DNC from a file's arrays and run it.

    :param arrays: one write head, of any sizes; the names are those of ``tests/data/README.md``
    :return: reads of all steps and the state after the last, under the file's own names
    """
    given = {name: th.as_tensor(np.asarray(array)) for name, array in arrays.items()}
    inputs = given["interface_input"]
    n_slots, word_size = given["memory"].shape[1:]
    n_reads = given["reads"].shape[2]
    # Only the memory access is compared, so the interface input takes the place of the controller's output
    sizes = dict(hidden_size=inputs.shape[-1], n_slots=n_slots, word_size=word_size, n_reads=n_reads)
    core = DNCCore(input_size=1, reference_form=True, **sizes).to(inputs.dtype)
    access = core.access
    with th.no_grad():
        for parameter in ("weight", "bias"):
            rows = th.cat([given[f"{parameter}_{name}"] for name in access.interface_sizes])
            getattr(access.interface, parameter).copy_(rows)
    state = core.initial_state(inputs.shape[1])._replace(usage=given["usage0"])
    reads = []
    for step_inputs in inputs:
        state = access(step_inputs, state)
        reads.append(state.reads)
    compared = {name: array for name, array in state._asdict().items() if name not in ("hidden", "cell")}
    results = compared | {"reads": th.stack(reads)}
    return {name: result.detach().numpy() for name, result in results.items()}


def _our_gate_order(hidden_size: int) -> th.Tensor:
    """Rows of their LSTM (gates i, f, g, o) in the order of ours (i, f, o, g)."""
    i, f, g, o = th.arange(4 * hidden_size).chunk(4)
    return th.cat((i, f, o, g))


def _our_head_order(word_size: int, n_shifts: int) -> th.Tensor:
    """Rows of their two heads, one head below the other, in the order of ours, one quantity after the other."""
    sizes = dict(key=word_size, strength=1, gate=1, shift=n_shifts, exponent=1)
    n_read_rows = sum(sizes.values())
    read = dict(zip(sizes, th.arange(n_read_rows).split(list(sizes.values())), strict=True))
    sizes |= dict(erase=word_size, add=word_size)
    write_rows = th.arange(n_read_rows, n_read_rows + sum(sizes.values())).split(list(sizes.values()))
    write = dict(zip(sizes, write_rows, strict=True))
    order = [read["key"], write["key"], write["add"]]
    order += [read["shift"].flip(0), write["shift"].flip(0)]  # their first share moves weights up by one slot, ours down
    for name in ("strength", "exponent", "gate"):
        order += [read[name], write[name]]
    return th.cat([*order, write["erase"]])
