"""A callback that draws attention in tensorboard during training."""

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Figure

from sb3_attn.common.observations import map_obs
from sb3_attn.viz.figures import attention_ratios, entropy_captions, image_parts, new_figure, overlays_figure
from sb3_attn.viz.heat_maps import matrices_figure, token_names
from sb3_attn.viz.projection import to_rgb
from sb3_attn.viz.recorded_weights import RecordedWeights
from sb3_attn.viz.recording import evaluation_mode, first_observation, n_stacked
from sb3_attn.viz.sources import WeightSource, find_sources

#: The outputs of SB3's logger that cannot write figures
NOT_FOR_FIGURES = ("stdout", "log", "json", "csv")


class AttentionFiguresCallback(BaseCallback):
    """
    Writes figures, entropy and peak (the largest weight) to the logger.

    For each source of weights ``<name>`` it shows observations from the last ``n_steps`` steps: ``<name>/observations`` is a
    figure (overlays, or bars or matrices where no image is attended to); ``<name>/entropy``, in nats and only for
    distributions, and ``<name>/peak`` are means over observations and heads. Sources that depend on the memory of a recurrent
    model are left out.

    :param n_steps: number of calls, each one step of all environments, between two figures
    :param n_observations: number of observations in a figure, all from the first environment
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :raises ValueError: if a number is not positive, or, when training starts, if the model has no source of weights
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
        # The i-th observation is kept when the fraction i / n_observations of the interval has passed, the last at its end
        step = (self.n_calls - 1) % self.n_steps + 1
        if step * self.n_observations // self.n_steps > (step - 1) * self.n_observations // self.n_steps:
            self._observations.append(first_observation(self.locals["new_obs"]))
        if step == self.n_steps:
            self._write()
            self._observations = []
        return True

    def _sources(self) -> list[WeightSource]:
        return [source for source in find_sources(self.model) if not source.needs_state]

    def _write(self) -> None:
        for source in self._sources():
            recorded = self._record(source)
            if recorded.is_distribution:
                self.logger.record(f"{source.name}/entropy", float(recorded.entropy.mean()))
            self.logger.record(f"{source.name}/peak", float(recorded.peak.mean()))
            figure = Figure(self._figure(recorded), close=False)  # not one of pyplot's, which would have to be closed
            self.logger.record(f"{source.name}/observations", figure, exclude=NOT_FOR_FIGURES)
        self.logger.dump(self.num_timesteps)

    def _record(self, source: WeightSource) -> RecordedWeights:
        batch = map_obs(lambda *observations: np.stack(observations), *self._observations)
        tensors, _ = self.model.policy.obs_to_tensor(batch)
        with th.no_grad(), evaluation_mode(self.model):
            weights, reachable = source.weights(tensors).float().cpu().numpy(), source.reachable(tensors)
        return source.record(weights, None if reachable is None else reachable.cpu().numpy())

    def _figure(self, recorded: RecordedWeights) -> Any:
        parts = image_parts(recorded)
        if parts:
            part = parts[0][0]
            n_stack = n_stacked(self.training_env)
            images = [to_rgb(obs if part.key is None else obs[part.key], n_stack) for obs in self._observations]
            ratios = list(attention_ratios(recorded, part))
            return overlays_figure(images, ratios, captions=entropy_captions(recorded))
        titles = [f"observation {i + 1}" for i in range(len(recorded.weights))]
        if recorded.rows is not None:
            return matrices_figure(recorded, range(len(titles)), titles)
        return _bars_figure(recorded, titles)


def _bars_figure(recorded: RecordedWeights, titles: list[str]) -> Any:
    """The weights of each observation as bars, the heads side by side."""
    n_observations, n_heads, n_tokens = recorded.weights.shape
    figure = new_figure(max(4.0, 0.25 * n_tokens + 2), 1.8 * n_observations + 0.6)
    for i, axes in enumerate(figure.subplots(n_observations, 1, sharex=True, squeeze=False)[:, 0]):
        for head in range(n_heads):
            # The bars of a token share 0.8 of the distance to the next one, centred on its number
            places = np.arange(n_tokens) + (head + 0.5) / n_heads * 0.8 - 0.4
            axes.bar(places, recorded.weights[i, head], 0.8 / n_heads, label=f"head {head + 1}")
        axes.set(title=titles[i], ylabel="weight", ylim=(0, 1))
    axes.legend(fontsize="small")
    axes.set_xticks(range(n_tokens), token_names(recorded.parts), rotation=90, fontsize="small")
    return figure
