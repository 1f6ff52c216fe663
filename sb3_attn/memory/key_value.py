"""A memory of key-value pairs: the last inputs, looked up by content."""

from typing import Any, NamedTuple

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_attn.common.core_state import CoreState
from sb3_attn.common.former_names import FormerParameterNames
from sb3_attn.common.softmax import masked_softmax
from sb3_attn.memory.core import MemoryCore, WeightsInfo, check_finite, check_sizes
from sb3_attn.memory.rnn import LSTMCore, LSTMState
from sb3_attn.memory.sliding_window import attention_mask, blocks, extend, relative_shift

CONTEXTS = ("mqn", "rmqn", "frmqn")


class KeyValueState(NamedTuple):
    """The last pairs, oldest first, and the state of the context. Arrays that the context does not need have size 0."""

    keys: th.Tensor  # [B, N, K]
    values: th.Tensor  # [B, N, V]
    valid: th.Tensor  # 1 for a pair, 0 before the episode's start, [B, N]
    hidden: th.Tensor  # of the LSTM, [B, C]
    cell: th.Tensor  # of the LSTM, [B, C]
    read: th.Tensor  # the value retrieved at the step before, [B, V]


class KeyValueMemoryCore(FormerParameterNames, MemoryCore):
    """
    The last N inputs as key-value pairs; a context vector computed from the current input queries them by content.

    Memory Q-networks of Oh et al. (2016), https://arxiv.org/abs/1605.09128, with the hops of Miller et al. (2016) and learned
    relative positions, so that a query can also ask for an age (Sukhbaatar et al. 2015). The current input is stored after the
    read; an empty memory returns 0. The output is the context followed by the retrieved value.

    The state is ``n_slots (key_size + value_size + 1)`` floats per row, plus ``2 hidden_size`` with an LSTM and
    ``value_size`` with feedback: 4,160 by default.

    :param input_size: size F of an input vector
    :param hidden_size: size C of the context
    :param n_slots: number N of pairs
    :param key_size: size K of a key
    :param value_size: size V of a value
    :param n_hops: number of successive queries, each computed from the last query and the value that it retrieved (Miller et
        al. 2016, section 3.1)
    :param context: ``"mqn"``, a layer over the current input; ``"rmqn"``, an LSTM over all inputs; ``"frmqn"``, an LSTM that
        also receives the value retrieved at the step before. Only an LSTM remembers more than the N pairs, but its memory is
        in every query as well: in the recall of eight pairs, ``"mqn"`` learned to query in a tenth of the steps
    :param forget_bias: initial bias of the LSTM's forget gate (see ``LSTMCore``)
    :raises ValueError: if a size is not positive, or the context is unknown
    """

    auxiliary_fields = ("valid",)
    weights_info = {"retrieval": WeightsInfo(newest_age=1)}
    former_parameters = {
        "pair": "key_value",
        "question": "query",
        "ages": "relative_positions",
        "next_questions": "hop_queries",
    }

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 64,
        n_slots: int = 64,
        key_size: int = 32,
        value_size: int = 32,
        n_hops: int = 1,
        context: str = "mqn",
        forget_bias: float = 3.0,
    ) -> None:
        sizes = dict(n_slots=n_slots, key_size=key_size, value_size=value_size, n_hops=n_hops)
        check_sizes(self, hidden_size=hidden_size, **sizes)
        check_finite(self, forget_bias=forget_bias)
        super().__init__(input_size, output_size=hidden_size + value_size)
        if context not in CONTEXTS:
            raise ValueError(f"context={context!r} is unknown; choose one of {list(CONTEXTS)}.")
        self.n_slots = n_slots
        self.key_size = key_size
        self.value_size = value_size
        self.has_feedback = context == "frmqn"
        self.key_value = nn.Linear(input_size, key_size + value_size)
        feedback_size = value_size if self.has_feedback else 0
        self.context: nn.Linear | LSTMCore = (
            nn.Linear(input_size, hidden_size)
            if context == "mqn"
            else LSTMCore(input_size + feedback_size, hidden_size, forget_bias)
        )
        self.query = nn.Linear(hidden_size, key_size)
        self.relative_positions = nn.Parameter(0.1 * th.randn(n_slots, key_size))  # largest distance first
        self.hop_queries = nn.ModuleList(nn.Linear(key_size + value_size, key_size) for _ in range(n_hops - 1))

    @classmethod
    def window_kwargs(cls, length: int) -> dict[str, Any]:
        return dict(n_slots=length)

    def initial_state(self, batch_size: int) -> KeyValueState:
        def zeros(*shape: int) -> th.Tensor:
            return self.query.weight.new_zeros(batch_size, *shape)

        lstm = self.context.initial_state(batch_size) if isinstance(self.context, LSTMCore) else (zeros(0), zeros(0))
        read = zeros(self.value_size if self.has_feedback else 0)
        pairs = zeros(self.n_slots, self.key_size), zeros(self.n_slots, self.value_size), zeros(self.n_slots)
        return KeyValueState(*pairs, *lstm, read)

    def forward(self, inputs: th.Tensor, state: CoreState) -> tuple[th.Tensor, KeyValueState]:
        outputs, state = self.unroll(inputs.unsqueeze(0), state)
        return outputs.squeeze(0), state

    def unroll(self, inputs: th.Tensor, state: CoreState) -> tuple[th.Tensor, KeyValueState]:
        outputs, state = [], KeyValueState._make(state)
        for block in blocks(inputs, self.n_slots):
            contexts, reads, _, state = self._unroll(block, state)
            outputs.append(th.cat((contexts, reads), dim=-1))
        return th.cat(outputs), state

    def _unroll(self, inputs: th.Tensor, state: KeyValueState) -> tuple[th.Tensor, th.Tensor, th.Tensor, KeyValueState]:
        """
        Compute T steps.

        :return: contexts ``[T, B, C]``, reads ``[T, B, V]``, their weights over all pairs ``[B, hops, T, N + T]`` (with
            feedback over each step's own window ``[B, hops, T, N + 1]``), and the state after the steps
        """
        new_keys, new_values = self.key_value(inputs).split((self.key_size, self.value_size), dim=-1)
        keys, values = extend(state.keys, new_keys), extend(state.values, new_values)
        mask = attention_mask(state.valid, len(inputs), with_present=False)
        lstm_state, read = LSTMState(state.hidden, state.cell), state.read
        if self.has_feedback:
            # Each context depends on the read before it, so the steps are computed one by one
            steps = []
            for step, step_inputs in enumerate(inputs):
                context, lstm_state = self.context(th.cat((step_inputs, read), dim=-1), lstm_state)
                window = slice(step, step + self.n_slots + 1)
                step_mask = mask[:, step : step + 1, window]
                step_read, step_weights = self._attend(context.unsqueeze(1), keys[:, window], values[:, window], step_mask)
                read = step_read.squeeze(1)
                steps.append((context, read, step_weights.squeeze(2)))
            contexts, reads, weights_by_step = map(th.stack, zip(*steps, strict=True))
            weights = weights_by_step.movedim(0, 2)
        else:
            if isinstance(self.context, LSTMCore):
                contexts, lstm_state = self.context.unroll(inputs, lstm_state)
            else:
                contexts = self.context(inputs)
            reads_by_row, weights = self._attend(contexts.transpose(0, 1), keys, values, mask)
            reads = reads_by_row.transpose(0, 1)
        valid = extend(state.valid, inputs.new_ones(inputs.shape[:2]))
        pairs = [entries[:, -self.n_slots :] for entries in (keys, values, valid)]
        return contexts, reads, weights, KeyValueState._make([*pairs, *lstm_state, read])

    def _attend(self, context: th.Tensor, keys: th.Tensor, values: th.Tensor, mask: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        o = sum_i p_i v_i with p = softmax(q (k_i + t_i) / sqrt(K)) in each hop; t_i is learned for the distance of pair i.

        Oh et al. (2016), eqs. (3) and (4), with t of Sukhbaatar et al. (2015), section 4.1, and the scale of Vaswani et al.
        (2017).

        :param context: of T steps, ``[B, T, C]``
        :param keys: of the window before these steps and of the steps, ``[B, N + T, K]``
        :param values: likewise, ``[B, N + T, V]``
        :param mask: True where a step attends to a pair, bool ``[B, T, N + T]``
        :return: values read in the last hop ``[B, T, V]``, and the weights of all hops ``[B, hops, T, N + T]``
        """
        query = self.query(context)
        weights = [self._weights(query, keys, mask)]
        read = weights[-1] @ values
        for hop_query in self.hop_queries:
            query = hop_query(th.cat((query, read), dim=-1))
            weights.append(self._weights(query, keys, mask))
            read = weights[-1] @ values
        return read, th.stack(weights, dim=1)

    def _weights(self, query: th.Tensor, keys: th.Tensor, mask: th.Tensor) -> th.Tensor:
        # The present, the last column, has no relative position: the mask hides it
        position_scores = F.pad(query @ self.relative_positions.t(), (0, 1))
        scores = query @ keys.transpose(-1, -2) + relative_shift(position_scores)
        return masked_softmax(scores * self.key_size**-0.5, mask)

    def memory_weights(self, inputs: th.Tensor, state: CoreState) -> dict[str, th.Tensor]:
        weights = self._unroll(inputs.unsqueeze(0), KeyValueState._make(state))[2]
        return {"retrieval": weights[:, :, 0, :-1]}  # the last entry is the present, which is masked
