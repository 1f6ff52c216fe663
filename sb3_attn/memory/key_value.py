"""Memory of keys and values: what was seen last, looked up by content."""

from typing import Any, NamedTuple

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_attn.common.core_state import CoreState
from sb3_attn.common.softmax import masked_softmax
from sb3_attn.memory.core import MemoryCore, WeightsInfo
from sb3_attn.memory.rnn import LSTMCore, LSTMState
from sb3_attn.memory.sliding_window import by_entry, extend, visible

CONTEXTS = ("mqn", "rmqn", "frmqn")


class KeyValueState(NamedTuple):
    """What was seen last, the oldest first, and the context's memory; arrays that a context does not need have size 0."""

    keys: th.Tensor  # [B, N, K]
    values: th.Tensor  # [B, N, V]
    filled: th.Tensor  # 1 where there is an entry, 0 before the episode's start, [B, N]
    hidden: th.Tensor  # of the LSTM, [B, C]
    cell: th.Tensor  # [B, C]
    retrieved: th.Tensor  # at the step before, [B, V]


class KeyValueMemoryCore(MemoryCore):
    """
    The last N inputs as pairs of key and value; a context made from the present asks, the answer comes by content.

    Key-value memories of Miller et al. (2016), as in the memory Q-networks of Oh et al. (2016),
    https://arxiv.org/abs/1605.09128, and what is asked for may be how long ago something was (Sukhbaatar et al. 2015). The
    present input is not among the pairs yet; an empty memory answers 0. The output is the context and, behind it, the answer.

    The state is ``n_slots (key_size + value_size + 1)`` floats per row, with an LSTM ``2 hidden_size`` more, with feedback
    ``value_size`` more: 4,160 by default.

    :param input_size: size F of an input vector
    :param hidden_size: size C of the context
    :param n_slots: number N of pairs that are kept
    :param key_size: size K of a key
    :param value_size: size V of a value
    :param n_hops: number of questions asked one after the other, each made from the last question and its answer
        (Miller et al. 2016, section 3.1)
    :param context: ``"mqn"``, a layer over the present input; ``"rmqn"``, an LSTM over all inputs; ``"frmqn"``, an LSTM that
        also gets the answer of the step before. Only the LSTM remembers beyond the N pairs, but what it remembers is in every
        question, too: on the recall of eight pairs the layer learned to ask in a tenth of the steps
    :param forget_bias: of the LSTM's forget gate (see ``LSTMCore``)
    :raises ValueError: if a size is not positive, or the context is unknown
    """

    weights_info = {"retrieval": WeightsInfo(newest_age=1)}

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
        self._check_sizes(hidden_size=hidden_size, n_slots=n_slots, key_size=key_size, value_size=value_size, n_hops=n_hops)
        self._check_finite(forget_bias=forget_bias)
        super().__init__(input_size, output_size=hidden_size + value_size)
        if context not in CONTEXTS:
            raise ValueError(f"context={context!r} is unknown; choose one of {list(CONTEXTS)}.")
        self.n_slots = n_slots
        self.key_size = key_size
        self.value_size = value_size
        self.has_feedback = context == "frmqn"
        self.pair = nn.Linear(input_size, key_size + value_size)
        feedback_size = value_size if self.has_feedback else 0
        self.context: nn.Linear | LSTMCore = (
            nn.Linear(input_size, hidden_size)
            if context == "mqn"
            else LSTMCore(input_size + feedback_size, hidden_size, forget_bias)
        )
        self.question = nn.Linear(hidden_size, key_size)
        self.ages = nn.Parameter(0.1 * th.randn(n_slots, key_size))  # the oldest first
        self.next_questions = nn.ModuleList(nn.Linear(key_size + value_size, key_size) for _ in range(n_hops - 1))

    @classmethod
    def window_kwargs(cls, length: int) -> dict[str, Any]:
        return dict(n_slots=length)

    def initial_state(self, batch_size: int) -> KeyValueState:
        def zeros(*shape: int) -> th.Tensor:
            return self.question.weight.new_zeros(batch_size, *shape)

        lstm = self.context.initial_state(batch_size) if isinstance(self.context, LSTMCore) else (zeros(0), zeros(0))
        retrieved = zeros(self.value_size if self.has_feedback else 0)
        pairs = zeros(self.n_slots, self.key_size), zeros(self.n_slots, self.value_size), zeros(self.n_slots)
        return KeyValueState(*pairs, *lstm, retrieved)

    def forward(self, inputs: th.Tensor, state: CoreState) -> tuple[th.Tensor, KeyValueState]:
        outputs, state = self.unroll(inputs.unsqueeze(0), state)
        return outputs.squeeze(0), state

    def unroll(self, inputs: th.Tensor, state: CoreState) -> tuple[th.Tensor, KeyValueState]:
        contexts, answers, _, after = self._unroll(inputs, KeyValueState._make(state))
        return th.cat((contexts, answers), dim=-1), after

    def _unroll(self, inputs: th.Tensor, state: KeyValueState) -> tuple[th.Tensor, th.Tensor, th.Tensor, KeyValueState]:
        """
        T steps.

        :return: contexts ``[T, B, C]``, answers ``[T, B, V]``, their weights over all entries ``[B, hops, T, N + T]`` (with
            feedback over each step's own window ``[B, hops, T, N + 1]``), and the state afterwards
        """
        new_keys, new_values = self.pair(inputs).split((self.key_size, self.value_size), dim=-1)
        keys, values = extend(state.keys, new_keys), extend(state.values, new_values)
        seen = visible(state.filled, len(inputs), with_present=False)
        lstm_state, retrieved = LSTMState(state.hidden, state.cell), state.retrieved
        if self.has_feedback:
            steps = []
            for step, step_inputs in enumerate(inputs):
                context, lstm_state = self.context(th.cat((step_inputs, retrieved), dim=-1), lstm_state)
                window = slice(step, step + self.n_slots + 1)
                step_seen = seen[:, step : step + 1, window]
                answer, step_weights = self._ask(context.unsqueeze(1), keys[:, window], values[:, window], step_seen)
                retrieved = answer.squeeze(1)
                steps.append((context, retrieved, step_weights.squeeze(2)))
            contexts, answers, by_step = map(th.stack, zip(*steps, strict=True))
            weights = by_step.movedim(0, 2)
        else:
            if isinstance(self.context, LSTMCore):
                contexts, lstm_state = self.context.unroll(inputs, lstm_state)
            else:
                contexts = self.context(inputs)
            by_row, weights = self._ask(contexts.transpose(0, 1), keys, values, seen)
            answers = by_row.transpose(0, 1)
        filled = extend(state.filled, inputs.new_ones(inputs.shape[:2]))
        kept = [entries[:, -self.n_slots :] for entries in (keys, values, filled)]
        return contexts, answers, weights, KeyValueState._make([*kept, *lstm_state, retrieved])

    def _ask(self, context: th.Tensor, keys: th.Tensor, values: th.Tensor, seen: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        o = sum_i p_i v_i with p = softmax(q (k_i + t_i) / sqrt(K)), once for each hop; t_i is learned for the age of entry i.

        Oh et al. (2016), eqs. (3) and (4), with the ages of Sukhbaatar et al. (2015), section 4.1, and the scale of Vaswani et
        al. (2017).

        :param context: of T steps, ``[B, T, C]``
        :param keys: of the window before them and of themselves, ``[B, N + T, K]``
        :param values: ``[B, N + T, V]``
        :param seen: which entries each step asks, bool ``[B, T, N + T]``
        :return: the last answers ``[B, T, V]``, and the weights of all hops ``[B, hops, T, N + T]``
        """
        question = self.question(context)
        weights = [self._weights(question, keys, seen)]
        answer = weights[-1] @ values
        for next_question in self.next_questions:
            question = next_question(th.cat((question, answer), dim=-1))
            weights.append(self._weights(question, keys, seen))
            answer = weights[-1] @ values
        return answer, th.stack(weights, dim=1)

    def _weights(self, question: th.Tensor, keys: th.Tensor, seen: th.Tensor) -> th.Tensor:
        by_age = F.pad(question @ self.ages.t(), (0, 1))  # the present has no age, and is not asked
        scores = question @ keys.transpose(-1, -2) + by_entry(by_age)
        return masked_softmax(scores * self.key_size**-0.5, seen)

    def memory_weights(self, inputs: th.Tensor, state: CoreState) -> dict[str, th.Tensor]:
        weights = self._unroll(inputs.unsqueeze(0), KeyValueState._make(state))[2]
        return {"retrieval": weights[:, :, 0, :-1]}  # the last entry is the present, which is not asked
