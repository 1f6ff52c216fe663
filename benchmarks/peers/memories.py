"""
Other implementations of the NTM and of the DNC: loudinthecloud/pytorch-ntm and the package dnc.

``sizes`` are arguments of our core: ``hidden_size``, ``n_slots``, ``word_size`` and, of the DNC, ``n_reads``.
"""

from collections.abc import Callable

import torch as th
from torch import nn

from benchmarks.sequence_tasks import Batch

#: A network, and a function that returns its probabilities ``[T, B, D]`` for a batch
Side = tuple[nn.Module, Callable[[], th.Tensor]]


def pytorch_ntm(batch: Batch, sizes: dict[str, int]) -> Side:
    """pytorch-ntm, called step by step."""
    from ntm.aio import EncapsulatedNTM

    kwargs = dict(controller_size=sizes["hidden_size"], N=sizes["n_slots"], M=sizes["word_size"])
    input_size, output_size = batch.inputs.shape[-1], batch.targets.shape[-1]
    network = EncapsulatedNTM(input_size, output_size, controller_layers=1, num_heads=1, **kwargs)

    def outputs() -> th.Tensor:
        network.init_sequence(batch.inputs.shape[1])
        return th.stack([network(inputs)[0] for inputs in batch.inputs])

    return network, outputs


def dnc(batch: Batch, sizes: dict[str, int]) -> Side:
    """The package dnc, called once for the whole sequence."""
    network = _make_dnc(batch.inputs.shape[-1], sizes)
    n_outputs, inputs = batch.targets.shape[-1], batch.inputs.transpose(0, 1)
    return network, lambda: network(inputs)[0].transpose(0, 1)[..., :n_outputs].sigmoid()


def _make_dnc(input_size: int, sizes: dict[str, int]) -> nn.Module:
    from dnc import DNC

    kwargs = dict(nr_cells=sizes["n_slots"], cell_size=sizes["word_size"], read_heads=sizes["n_reads"])
    return DNC(input_size, sizes["hidden_size"], num_hidden_layers=1, **kwargs)  # its outputs are as wide as its inputs


@th.no_grad()
def dnc_feeds_reads_back(sizes: dict[str, int]) -> bool:
    """
    Whether one call of the package dnc over two steps equals two calls of one step each, of which the second is given the
    words read by the first. If not, its controller does not see what the memory returned until the next call.
    """
    n_rows, input_size = 32, 9
    network, inputs = _make_dnc(input_size, sizes), th.rand(n_rows, 2, input_size)
    hidden = [(th.zeros(1, n_rows, sizes["hidden_size"]),) * 2]  # by default it is random
    together, _ = network(inputs, (list(hidden), None, None), reset_experience=True)
    _, state = network(inputs[:, :1], (list(hidden), None, None), reset_experience=True)
    apart, _ = network(inputs[:, 1:], state)
    return th.allclose(together[:, 1:], apart, atol=1e-6)
