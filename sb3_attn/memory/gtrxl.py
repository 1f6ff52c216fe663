"""The gated transformer (GTrXL): in each layer, gated attention over the last steps."""

from typing import Any, NamedTuple

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_attn.common.core_state import CoreState
from sb3_attn.common.former_names import FormerParameterNames
from sb3_attn.common.softmax import masked_softmax
from sb3_attn.memory.core import MemoryCore, WeightsInfo, check_finite, check_sizes
from sb3_attn.memory.sliding_window import attention_mask, blocks, extend, relative_shift


class GTrXLState(NamedTuple):
    """The inputs of each layer at the last L steps, oldest first."""

    embeddings: th.Tensor  # [B, layers, L, D]
    valid: th.Tensor  # 1 for a step of the episode, 0 before its start, [B, L]


class GRUGate(FormerParameterNames):
    """
    Gated residual connection g(x, y) = (1 - z) x + z h from GRU equations, with the residual x as the state.

    r = sigmoid(W_r y + U_r x), z = sigmoid(W_z y + U_z x - b_g), h = tanh(W_g y + U_g (r x)): Parisotto et al. (2020), section
    3.2, "Gated-Recurrent-Unit-type gating".

    :param size: size D of x and y
    :param bias: b_g; positive values start the gate nearly closed: at 2 a fresh gate lets 12 % of h through
    """

    former_parameters = {"of_new": "w_rzg", "of_old": "u_rz", "of_reset": "u_g"}

    def __init__(self, size: int, bias: float) -> None:
        super().__init__()
        self.w_rzg = nn.Linear(size, 3 * size, bias=False)  # W_r, W_z and W_g in one matrix
        self.u_rz = nn.Linear(size, 2 * size, bias=False)  # U_r and U_z
        self.u_g = nn.Linear(size, size, bias=False)
        self.bias = nn.Parameter(th.full((size,), float(bias)))

    def forward(self, x: th.Tensor, y: th.Tensor) -> th.Tensor:
        """
        Combine a layer's input with its output.

        :param x: the residual, i.e. the input of the layer, ``[..., D]``
        :param y: the output of the layer, ``[..., D]``
        :return: ``[..., D]``
        """
        w_r_y, w_z_y, w_g_y = self.w_rzg(y).chunk(3, dim=-1)
        u_r_x, u_z_x = self.u_rz(x).chunk(2, dim=-1)
        r = (w_r_y + u_r_x).sigmoid()
        z = (w_z_y + u_z_x - self.bias).sigmoid()
        return th.lerp(x, (w_g_y + self.u_g(r * x)).tanh(), z)


class GTrXLLayer(FormerParameterNames):
    """
    Attention over a window of the past, then a feed-forward network, each with normalised inputs and followed by a gate.

    The order is that of Parisotto et al. (2020), figure 1; relative positions are those of Dai et al. (2019), section 3.3. A
    position is the distance to the present. There are only L + 1, so each has a learned embedding; the paper projects
    sinusoids.

    :param size: size D of an embedding
    :param n_heads: number H of heads
    :param length: number L of steps before the present one
    :param feedforward_size: size of the hidden layer of the feed-forward network
    :param gate_bias: as for ``GRUGate``
    """

    former_parameters = {"positions": "relative_positions"}

    def __init__(self, size: int, n_heads: int, length: int, feedforward_size: int, gate_bias: float) -> None:
        super().__init__()
        head_size = size // n_heads
        self.n_heads = n_heads
        self.scale = head_size**-0.5
        self.attention_norm = nn.LayerNorm(size)
        self.query = nn.Linear(size, size)
        self.key_value = nn.Linear(size, 2 * size)
        self.relative_positions = nn.Parameter(th.randn(n_heads, length + 1, head_size) * self.scale)  # largest distance first
        self.position_bias = nn.Parameter(th.zeros(n_heads, head_size))
        self.out_projection = nn.Linear(size, size)
        self.attention_gate = GRUGate(size, gate_bias)
        self.feedforward_norm = nn.LayerNorm(size)
        self.feedforward = nn.Sequential(nn.Linear(size, feedforward_size), nn.ReLU(), nn.Linear(feedforward_size, size))
        self.feedforward_gate = GRUGate(size, gate_bias)

    def forward(self, inputs: th.Tensor, past: th.Tensor, mask: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        Compute T steps.

        :param inputs: ``[T, B, D]``
        :param past: inputs of this layer at the L steps before, ``[B, L, D]``
        :param mask: True where a step attends to an entry, bool ``[B, 1, T, L + T]``
        :return: outputs ``[T, B, D]``, and attention weights ``[B, H, T, L + T]``
        """
        present = self.attention_norm(inputs)
        pairs = extend(self.key_value(self.attention_norm(past)), self.key_value(present))
        keys, values = pairs.unflatten(-1, (2, self.n_heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, H, L + T, d]
        query = self.query(present).unflatten(-1, (self.n_heads, -1)).permute(1, 2, 0, 3)  # [B, H, T, d]
        # Dai et al.: (q + u) k + (q + v) r. The bias of the query's layer is u; v is added to it for positions
        content_scores = query @ keys.transpose(-1, -2)
        position_scores = (query + self.position_bias.unsqueeze(1)) @ self.relative_positions.transpose(-1, -2)
        weights = masked_softmax((content_scores + relative_shift(position_scores)) * self.scale, mask)
        attended = (weights @ values).permute(2, 0, 1, 3).flatten(-2)
        hidden = self.attention_gate(inputs, F.relu(self.out_projection(attended)))
        return self.feedforward_gate(hidden, F.relu(self.feedforward(self.feedforward_norm(hidden)))), weights


class GTrXLCore(MemoryCore):
    """
    Gated transformer (GTrXL): at each step, attention over the last L steps and the present one.

    Parisotto et al. (2020), https://arxiv.org/abs/1910.06764. An unroll computes ``max(L, 64)`` steps at once. Each layer
    looks back L steps, so n layers look back n L steps.

    The state is ``memory_length (n_layers hidden_size + 1)`` floats per row: 4,160 by default.

    :param input_size: size F of an input vector
    :param hidden_size: size D of an embedding, which is also the output
    :param n_layers: number of layers
    :param n_heads: number of heads in each layer
    :param memory_length: number L of steps before the present one
    :param feedforward_size: size of the hidden layer in each feed-forward network; ``None`` means ``2 hidden_size``
    :param gate_bias: as for ``GRUGate``
    :raises ValueError: if a size is not positive, or ``n_heads`` does not divide ``hidden_size``
    """

    auxiliary_fields = ("valid",)
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
        check_sizes(self, hidden_size=hidden_size)
        check_finite(self, gate_bias=gate_bias)
        super().__init__(input_size, output_size=hidden_size)
        feedforward_size = 2 * hidden_size if feedforward_size is None else feedforward_size
        check_sizes(self, n_layers=n_layers, n_heads=n_heads, memory_length=memory_length, feedforward_size=feedforward_size)
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
        outputs, state = [], GTrXLState._make(state)
        for block in blocks(inputs, self.memory_length):
            block_outputs, _, state = self._unroll(block, state)
            outputs.append(block_outputs)
        return th.cat(outputs), state

    def _unroll(self, inputs: th.Tensor, state: GTrXLState) -> tuple[th.Tensor, list[th.Tensor], GTrXLState]:
        """Outputs ``[T, B, D]``, the attention weights of each layer ``[B, H, T, L + T]``, and the state after the steps."""
        mask = attention_mask(state.valid, len(inputs), with_present=True).unsqueeze(1)
        embeddings, windows, weights = self.embedding(inputs), [], []
        for layer, past in zip(self.layers, state.embeddings.unbind(dim=1), strict=True):
            windows.append(extend(past, embeddings)[:, -self.memory_length :])
            embeddings, layer_weights = layer(embeddings, past, mask)
            weights.append(layer_weights)
        valid = extend(state.valid, inputs.new_ones(inputs.shape[:2]))[:, -self.memory_length :]
        return embeddings, weights, GTrXLState(th.stack(windows, dim=1), valid)

    def memory_weights(self, inputs: th.Tensor, state: CoreState) -> dict[str, th.Tensor]:
        _, weights, _ = self._unroll(inputs.unsqueeze(0), GTrXLState._make(state))
        return {"attention": th.cat(weights, dim=1).squeeze(2)}


#: The name in models of earlier versions
GatedTransformerCore = GTrXLCore
