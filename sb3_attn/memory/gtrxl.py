"""The gated transformer: attention over the last steps, layer by layer."""

from typing import Any, NamedTuple

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_attn.common.core_state import CoreState
from sb3_attn.common.softmax import masked_softmax
from sb3_attn.memory.core import MemoryCore, WeightsInfo
from sb3_attn.memory.sliding_window import by_entry, extend, visible


class GTrXLState(NamedTuple):
    """The inputs of each layer at the last steps, the oldest first."""

    embeddings: th.Tensor  # [B, layers, L, D]
    filled: th.Tensor  # 1 where there was a step, 0 before the episode's start, [B, L]


class GRUGate(nn.Module):
    """
    g(x, y) = (1 - z) x + z tanh(W y + U (r x)) with gates r and z: what a layer adds has to be let in.

    Parisotto et al. (2020), section 3.2, "Gated-Recurrent-Unit-type gating".

    :param size: size D of x and y
    :param bias: b_g, which starts the gate nearly shut: at 2 a fresh gate lets in 12 %
    """

    def __init__(self, size: int, bias: float) -> None:
        super().__init__()
        self.of_new = nn.Linear(size, 3 * size, bias=False)
        self.of_old = nn.Linear(size, 2 * size, bias=False)
        self.of_reset = nn.Linear(size, size, bias=False)
        self.bias = nn.Parameter(th.full((size,), float(bias)))

    def forward(self, old: th.Tensor, new: th.Tensor) -> th.Tensor:
        """
        What goes on to the next layer.

        :param old: x, what went past the layer, ``[..., D]``
        :param new: y, what came out of it, ``[..., D]``
        """
        reset, update, candidate = self.of_new(new).chunk(3, dim=-1)
        old_reset, old_update = self.of_old(old).chunk(2, dim=-1)
        kept = (reset + old_reset).sigmoid() * old
        gate = (update + old_update - self.bias).sigmoid()
        return th.lerp(old, (candidate + self.of_reset(kept)).tanh(), gate)


class GTrXLLayer(nn.Module):
    """
    Attention over a window of the past and a small network, each behind a gate, with normalised inputs.

    The order of Parisotto et al. (2020), figure 1, with the relative positions of Dai et al. (2019), section 3.3. A position
    is its distance to the present, of which there are as many as the window is long, so each has a learned embedding where
    the paper projects a sinusoid.

    :param size: size D of an embedding
    :param n_heads: number H of heads
    :param length: number L of steps before the present one
    :param feedforward_size: size of the hidden layer of the small network
    :param gate_bias: as for ``GRUGate``
    """

    def __init__(self, size: int, n_heads: int, length: int, feedforward_size: int, gate_bias: float) -> None:
        super().__init__()
        head_size = size // n_heads
        self.n_heads = n_heads
        self.scale = head_size**-0.5
        self.attention_norm = nn.LayerNorm(size)
        self.query = nn.Linear(size, size)
        self.key_value = nn.Linear(size, 2 * size)
        self.positions = nn.Parameter(th.randn(n_heads, length + 1, head_size) * self.scale)  # the most distant first
        self.position_bias = nn.Parameter(th.zeros(n_heads, head_size))
        self.out_projection = nn.Linear(size, size)
        self.attention_gate = GRUGate(size, gate_bias)
        self.feedforward_norm = nn.LayerNorm(size)
        self.feedforward = nn.Sequential(nn.Linear(size, feedforward_size), nn.ReLU(), nn.Linear(feedforward_size, size))
        self.feedforward_gate = GRUGate(size, gate_bias)

    def forward(self, inputs: th.Tensor, past: th.Tensor, seen: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        T steps.

        :param inputs: ``[T, B, D]``
        :param past: the inputs of this layer at the L steps before, ``[B, L, D]``
        :param seen: which entries each step attends to, bool ``[B, 1, T, L + T]``
        :return: ``[T, B, D]``, and with what weights, ``[B, H, T, L + T]``
        """
        present = self.attention_norm(inputs)
        pairs = extend(self.key_value(self.attention_norm(past)), self.key_value(present))
        keys, values = pairs.unflatten(-1, (2, self.n_heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, H, L + T, d]
        query = self.query(present).unflatten(-1, (self.n_heads, -1)).permute(1, 2, 0, 3)  # [B, H, T, d]
        by_content = query @ keys.transpose(-1, -2)  # the bias of the query's layer is the paper's u
        by_age = (query + self.position_bias.unsqueeze(1)) @ self.positions.transpose(-1, -2)
        weights = masked_softmax((by_content + by_entry(by_age)) * self.scale, seen)
        attended = (weights @ values).permute(2, 0, 1, 3).flatten(-2)
        hidden = self.attention_gate(inputs, F.relu(self.out_projection(attended)))
        return self.feedforward_gate(hidden, F.relu(self.feedforward(self.feedforward_norm(hidden)))), weights


class GTrXLCore(MemoryCore):
    """
    Gated transformer (GTrXL): at each step, attention over the last L steps and the present one.

    Parisotto et al. (2020), https://arxiv.org/abs/1910.06764. All steps of an unroll are computed at once. Each layer looks
    back L steps, so what n layers see reaches n L steps back.

    The state is ``memory_length (n_layers hidden_size + 1)`` floats per row: 4,160 by default.

    :param input_size: size F of an input vector
    :param hidden_size: size D of an embedding, which is also the output
    :param n_layers: number of layers
    :param n_heads: number of heads in each
    :param memory_length: number L of steps before the present one
    :param feedforward_size: size of the hidden layer in each small network; ``None`` means ``2 hidden_size``
    :param gate_bias: as for ``GRUGate``
    :raises ValueError: if a size is not positive, or the heads do not divide the size
    """

    weights_info = {"attention": WeightsInfo(newest_age=0)}

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 64,
        n_layers: int = 1,
        n_heads: int = 4,
        memory_length: int = 64,
        feedforward_size: int | None = None,
        gate_bias: float = 2.0,
    ) -> None:
        self._check_sizes(hidden_size=hidden_size)
        self._check_finite(gate_bias=gate_bias)
        super().__init__(input_size, output_size=hidden_size)
        feedforward_size = 2 * hidden_size if feedforward_size is None else feedforward_size
        self._check_sizes(n_layers=n_layers, n_heads=n_heads, memory_length=memory_length, feedforward_size=feedforward_size)
        if hidden_size % n_heads:
            raise ValueError(f"n_heads={n_heads} does not divide hidden_size={hidden_size}; choose one of its divisors.")
        self.memory_length = memory_length
        self.embedding = nn.Linear(input_size, hidden_size)
        self.layers = nn.ModuleList(
            GTrXLLayer(hidden_size, n_heads, memory_length, feedforward_size, gate_bias) for _ in range(n_layers)
        )

    @classmethod
    def window_kwargs(cls, length: int) -> dict[str, Any]:
        return dict(memory_length=length)

    def initial_state(self, batch_size: int) -> GTrXLState:
        embeddings = self.embedding.weight.new_zeros(batch_size, len(self.layers), self.memory_length, self.output_size)
        return GTrXLState(embeddings, embeddings.new_zeros(batch_size, self.memory_length))

    def forward(self, inputs: th.Tensor, state: CoreState) -> tuple[th.Tensor, GTrXLState]:
        outputs, state = self.unroll(inputs.unsqueeze(0), state)
        return outputs.squeeze(0), state

    def unroll(self, inputs: th.Tensor, state: CoreState) -> tuple[th.Tensor, GTrXLState]:
        outputs, _, state = self._unroll(inputs, GTrXLState._make(state))
        return outputs, state

    def _unroll(self, inputs: th.Tensor, state: GTrXLState) -> tuple[th.Tensor, list[th.Tensor], GTrXLState]:
        """Outputs ``[T, B, D]``, the weights of each layer ``[B, H, T, L + T]``, and the state afterwards."""
        seen = visible(state.filled, len(inputs), with_present=True).unsqueeze(1)
        embeddings, kept, weights = self.embedding(inputs), [], []
        for layer, past in zip(self.layers, state.embeddings.unbind(dim=1), strict=True):
            kept.append(extend(past, embeddings)[:, -self.memory_length :])
            embeddings, layer_weights = layer(embeddings, past, seen)
            weights.append(layer_weights)
        filled = extend(state.filled, inputs.new_ones(inputs.shape[:2]))[:, -self.memory_length :]
        return embeddings, weights, GTrXLState(th.stack(kept, dim=1), filled)

    def memory_weights(self, inputs: th.Tensor, state: CoreState) -> dict[str, th.Tensor]:
        _, weights, _ = self._unroll(inputs.unsqueeze(0), GTrXLState._make(state))
        return {"attention": th.cat(weights, dim=1).squeeze(2)}


#: The name in models of earlier versions
GatedTransformerCore = GTrXLCore
