"""Attention in tensorboard, while training."""

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Figure

from sb3_attn.common.observations import map_obs
from sb3_attn.viz.figures import attention_maps, image_parts, new_figure, overlays_figure
from sb3_attn.viz.heat_maps import matrices_figure, token_names
from sb3_attn.viz.projection import picture
from sb3_attn.viz.recording import evaluation_mode, first, n_stacked
from sb3_attn.viz.sources import find_sources
from sb3_attn.viz.weights import Attention, WeightSource

NOT_FOR_FIGURES = ("stdout", "log", "json", "csv")


class AttentionFiguresCallback(BaseCallback):
    """
    Writes figures, and the entropy and the largest weight, to the logger.

    For each source of weights ``<name>``, of observations from the last n steps: ``<name>/observations`` (overlays, or bars or
    matrices where no image is attended to), ``<name>/entropy`` in nats, unless it is no distribution, and ``<name>/peak``,
    means over observations and heads. Sources that need a model's memory are left out.

    :param n_steps: number of calls, each a step of all environments, between two figures
    :param n_observations: number of observations in a figure, all of the first environment
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :raises ValueError: if a number is not positive, or, when training starts, if the model has no attention
    """

    def __init__(self, n_steps: int = 10_000, n_observations: int = 4, verbose: int = 0) -> None:
        super().__init__(verbose)
        for name, value in (("n_steps", n_steps), ("n_observations", n_observations)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        self.n_steps = n_steps
        self.n_observations = n_observations

    def _init_callback(self) -> None:
        self._observations: list[Any] = []
        if not self._sources():
            raise ValueError(
                "The weights of this model depend on its memory, which a callback does not see; record an episode with "
                "sb3_attn.viz.record_episode instead."
            )

    def _on_step(self) -> bool:
        # Spread evenly over the interval, the last at its end
        since = (self.n_calls - 1) % self.n_steps + 1
        if since * self.n_observations // self.n_steps > (since - 1) * self.n_observations // self.n_steps:
            self._observations.append(first(self.locals["new_obs"]))
        if since == self.n_steps:
            self._write()
            self._observations = []
        return True

    def _sources(self) -> list[WeightSource]:
        return [source for source in find_sources(self.model) if not source.needs_state]

    def _write(self) -> None:
        for source in self._sources():
            attention = self._attend(source)
            if attention.is_distribution:
                self.logger.record(f"{source.name}/entropy", float(attention.entropy.mean()))
            self.logger.record(f"{source.name}/peak", float(attention.peak.mean()))
            figure = Figure(self._figure(attention), close=False)
            self.logger.record(f"{source.name}/observations", figure, exclude=NOT_FOR_FIGURES)
        self.logger.dump(self.num_timesteps)

    def _attend(self, source: WeightSource) -> Attention:
        batch = map_obs(lambda *observations: np.stack(observations), *self._observations)
        tensors, _ = self.model.policy.obs_to_tensor(batch)
        with th.no_grad(), evaluation_mode(self.model):
            weights = source.weights(tensors).float().cpu().numpy()
        return source.attention(weights)

    def _figure(self, attention: Attention) -> Any:
        parts = image_parts(attention)
        if parts:
            part = parts[0][0]
            n_stack = n_stacked(self.training_env)
            images = [picture(obs if part.key is None else obs[part.key], n_stack) for obs in self._observations]
            return overlays_figure(images, list(attention_maps(attention, part)))
        titles = [f"observation {i + 1}" for i in range(len(attention.weights))]
        if attention.rows is not None:
            return matrices_figure(attention, range(len(titles)), titles)
        n_observations, n_heads, n_tokens = attention.weights.shape
        figure = new_figure(max(4.0, 0.25 * n_tokens + 2), 1.8 * n_observations + 0.6)
        for i, axes in enumerate(figure.subplots(n_observations, 1, sharex=True, squeeze=False)[:, 0]):
            for head in range(n_heads):
                places = np.arange(n_tokens) + (head + 0.5) / n_heads * 0.8 - 0.4
                axes.bar(places, attention.weights[i, head], 0.8 / n_heads, label=f"head {head + 1}")
            axes.set(title=titles[i], ylabel="weight", ylim=(0, 1))
        axes.legend(fontsize="small")
        axes.set_xticks(range(n_tokens), token_names(attention.parts), rotation=90, fontsize="small")
        return figure
