"""The deep attention recurrent Q-network (DARQN): an LSTM that attends to regions of the observation."""

from typing import Any, ClassVar, NamedTuple

import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import Schedule

from sb3_attn.attention import HardAttention, SoftAttention
from sb3_attn.attention.functional import sample_categorical
from sb3_attn.common.core_state import CoreState
from sb3_attn.extractors import RegionExtractor
from sb3_attn.extractors.tokenizers import make_tokenizer
from sb3_attn.memory import LSTMCore, MemoryCore
from sb3_attn.memory.rnn import LSTMState
from sb3_attn.recurrent_dqn.components import ActionSpace
from sb3_attn.recurrent_dqn.policies import RecurrentDQNPolicy


class AttentionLSTMState(NamedTuple):
    """
    State of the LSTM, ``[B, hidden_size]`` each, and the log-probabilities of the regions sampled so far.

    These begin with a 0. The others follow only in training and with gradient, ``[B, 1 + t]`` after t steps. Acting, burn-in
    and replay have the 0 alone, ``[B]``.
    """

    hidden: th.Tensor
    cell: th.Tensor
    log_probabilities: th.Tensor


class AttentionLSTMCore(MemoryCore):
    """
    An LSTM that reads one context vector per step; its last output is the query of the attention.

    Sorokin et al. (2015), section 3, https://arxiv.org/abs/1512.01693.

    With ``selection="reinforce"`` one region is sampled at each step of training, and the scores learn by the score-function
    gradient (Williams 1992): ``grad E[L] = E[grad L + sum_t (L_t + L_{t+1} + ... - b_t) grad log p_t]``. A region matters only
    for the losses of its own step and later ones, so the others are left out (Sutton & Barto 2018, sections 13.3 and 13.4).
    The paper learns the baseline b; here it is the mean loss of the batch's other windows at the same steps, which is unbiased
    too and has no parameters (Kool et al. 2019). Unlike the straight-through gradient this one is unbiased, but it has more
    variance.

    :param input_size: size of all regions concatenated, ``n_regions * d``, or ``n_regions * (d + 1)`` with masks
    :param n_regions: number n of regions
    :param hidden_size: size of the hidden state, which is the output, and the query of the next step
    :param score: a score with a query: ``"additive"`` (the paper's), ``"bilinear"`` or ``"dot_product"``
    :param attention_size: size of the space in which regions are scored
    :param selection: ``"soft"``, a weighted sum of all regions; ``"straight_through"`` or ``"reinforce"``, one region
    :param temperature: below 1 sharpens the weights, above 1 flattens them
    :param forget_bias: as for ``LSTMCore``
    :param masked: whether the last number of each region tells if the region is real (1) or padding (0)
    :raises ValueError: if the regions do not divide the input, or the selection is unknown
    """

    auxiliary_fields = ("log_probabilities",)

    def __init__(
        self,
        input_size: int,
        n_regions: int,
        hidden_size: int = 256,
        score: str = "additive",
        attention_size: int = 256,
        selection: str = "soft",
        temperature: float = 1.0,
        forget_bias: float = 3.0,
        masked: bool = False,
    ) -> None:
        super().__init__(input_size, output_size=hidden_size)
        if input_size % n_regions:
            raise ValueError(f"n_regions={n_regions} does not divide the {input_size} inputs; give the extractor's number.")
        if selection not in ("soft", "straight_through", "reinforce"):
            raise ValueError(f"selection={selection!r} is unknown; choose 'soft', 'straight_through' or 'reinforce'.")
        self.n_regions = n_regions
        self.selection = selection
        self.samples_in_training = selection != "soft"
        self.masked = masked
        region_size = input_size // n_regions - masked  # without the number that holds the mask
        attention_class = HardAttention if selection == "straight_through" else SoftAttention
        self.attention = attention_class(region_size, score, hidden_size, attention_size, temperature=temperature)
        self.lstm = LSTMCore(region_size, hidden_size, forget_bias)

    def initial_state(self, batch_size: int) -> AttentionLSTMState:
        state = self.lstm.initial_state(batch_size)
        return AttentionLSTMState(*state, state.hidden.new_zeros(batch_size))

    def forward(self, inputs: th.Tensor, state: CoreState) -> tuple[th.Tensor, AttentionLSTMState]:
        hidden, cell, log_probabilities = state
        contexts, weights = self.attend(inputs, state)
        if self.selection == "reinforce":
            chosen = sample_categorical(weights) if self.training else weights.argmax(dim=-1)
            rows = th.arange(len(inputs), device=inputs.device)
            contexts = self._regions(inputs)[0][rows, chosen.squeeze(-1)]
            if self.training and th.is_grad_enabled():
                # A weight of 0 is sampled only where no region is real; there is nothing to learn there, but log 0 is infinite
                log_chosen = weights.gather(-1, chosen.unsqueeze(-1)).clamp(min=th.finfo(weights.dtype).tiny).log().squeeze(-1)
                log_probabilities = th.cat((log_probabilities.view(len(inputs), -1), log_chosen), dim=-1)
        outputs, (hidden, cell) = self.lstm(contexts, LSTMState(hidden, cell))
        return outputs, AttentionLSTMState(hidden, cell, log_probabilities)

    def attend(self, inputs: th.Tensor, state: CoreState) -> tuple[th.Tensor, th.Tensor]:
        """
        Attend to the regions of one step.

        :param inputs: the regions, ``[B, n * d]``
        :param state: the memory before it
        :return: contexts ``[B, d]`` and attention weights ``[B, 1, n]``
        """
        regions, mask = self._regions(inputs)
        contexts, weights = self.attention(regions, state[0], mask)
        return contexts.squeeze(1), weights

    def _regions(self, inputs: th.Tensor) -> tuple[th.Tensor, th.Tensor | None]:
        """Regions ``[B, n, d]`` and their mask, True on real regions, ``[B, n]``; ``None`` if all are real."""
        regions = inputs.unflatten(-1, (self.n_regions, -1))
        return (regions[..., :-1], regions[..., -1] > 0.5) if self.masked else (regions, None)

    def surrogate_loss(self, step_losses: th.Tensor, mask: th.Tensor, state: CoreState) -> th.Tensor | float:
        if self.selection != "reinforce":
            return 0.0
        # At each step the mean over the other windows that have such a step; where there is none, the baseline is 0
        n_others = (mask.sum(dim=1, keepdim=True) - 1).clamp(min=1)
        baselines = (step_losses.sum(dim=1, keepdim=True) - step_losses) / n_others
        advantages = th.where(mask, step_losses - baselines, 0.0)
        # sum_t log p_t sum_{k >= t} advantage_k = sum_k advantage_k sum_{t <= k} log p_t, [B, 2 + T] -> [B, T]: without the
        # leading 0, and without the region of the last observation, which has no loss
        log_probabilities = state[2].cumsum(dim=-1)[:, 1:-1]
        return (advantages * log_probabilities.T).sum()


class DARQNPolicy(RecurrentDQNPolicy):
    """
    Policy whose memory attends to the regions of each observation.

    It has a memory and an extractor of its own, and neither encoder nor skip connection: ``RecurrentDQN`` refuses others.

    :param observation_space: an image, a matrix of entities, a vector, or a Dict of these
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule (could be constant)
    :param features_extractor_kwargs: arguments of ``RegionExtractor``: trunk, coordinates, mask_keys, ...
    :param core_kwargs: arguments of ``AttentionLSTMCore``: hidden_size, score, selection, ...
    :param kwargs: as for ``RecurrentDQNPolicy``
    :raises ValueError: if the burn-in is to have a gradient, but regions are selected by REINFORCE
    """

    # The core's inputs are the regions, concatenated, so no layer may mix them before; and as in the paper the head gets the
    # memory's outputs only
    own_arguments: ClassVar[dict[str, Any]] = dict(
        features_extractor_class=RegionExtractor, core=AttentionLSTMCore, encoder_arch=[], skip_connection=False
    )

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: ActionSpace,
        lr_schedule: Schedule,
        features_extractor_kwargs: dict[str, Any] | None = None,
        core_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("burn_in_gradient") and (core_kwargs or {}).get("selection") == "reinforce":
            raise ValueError(
                "burn_in_gradient=True does not fit core_kwargs=dict(selection='reinforce'), which learns from the losses of "
                "trained steps only; use burn_in_gradient=False, or selection='straight_through'."
            )
        with th.device("meta"):  # only the number of regions is needed, so no weights are allocated, and none drawn
            n_regions = make_tokenizer(observation_space, **(features_extractor_kwargs or {})).n_tokens
        masked = bool((features_extractor_kwargs or {}).get("mask_keys"))
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            features_extractor_kwargs=features_extractor_kwargs,
            core_kwargs={"n_regions": n_regions, "masked": masked, **(core_kwargs or {})},
            **{**kwargs, **self.own_arguments},
        )
