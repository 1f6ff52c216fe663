"""NaN and infinity stop training before any is stored or saved, with a sentence that says where it came from."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_attn import R2D2, RecurrentDQN, StepGuard
from tests.helpers.environments import Counter, counters
from tests.helpers.models import Make, make_r2d2, make_rdqn


class Broken(Counter):
    """Returns a number that is not finite at its seventh step, as observation or as reward."""

    def __init__(self, what: str, number: float) -> None:
        super().__init__(length=20)
        self.what, self.number = what, number

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        obs, reward, *rest = super().step(action)
        if self.steps == 7:
            obs, reward = (obs, self.number) if self.what == "reward" else (obs * self.number, reward)
        return obs, reward, *rest


def sentence(model: RecurrentDQN, what: str, t: int) -> str:
    """
    The error about a step of environment 1, as a regular expression; R2D2 raises it when the step's trajectory arrives.

    :param model: the model that raises it
    :param what: what was not finite; R2D2 always names the key of an observation
    :param t: number of the step in the environment, from 1; 0 for the first observation, which both check at once
    """
    if t == 0 or not isinstance(model, R2D2):
        return f"environment 1 returned a non-finite {what} at step {model.n_envs * t}: "
    if what.endswith("observation"):
        what += " 'observation'"
    n_received = (t - 1) // model.rollout_length * model.rollout_length * model.n_replay_envs
    return rf"environment 1 returned a non-finite {what} \(actor 0\) at step {n_received}: "


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("what", ["reward", "observation"])
def test_a_value_that_is_not_finite_is_neither_stored_nor_saved(make: Make, what: str, number: float, tmp_path: Path) -> None:
    env = DummyVecEnv([lambda: Counter(20), lambda: Broken(what, number), lambda: Counter(20)])
    model = make(env, learning_starts=0)
    with pytest.raises(ValueError, match=sentence(model, what, 7)), np.errstate(invalid="ignore"):
        model.learn(120, CheckpointCallback(1, str(tmp_path)))
    # RecurrentDQN has counted the step already, R2D2 has not counted any of its trajectory
    n_steps_before = model.num_timesteps // 3 - (0 if isinstance(model, R2D2) else 1)
    assert len(list(tmp_path.iterdir())) == n_steps_before >= 5
    assert set(model.replay_buffer.pos) == ({5} if isinstance(model, R2D2) else {6})
    assert np.isfinite(model.replay_buffer.observations).all() and np.isfinite(model.replay_buffer.rewards).all()
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


def test_a_first_observation_that_is_not_finite_stops_learn(make: Make) -> None:
    class BrokenReset(Counter):
        def reset(self, **kwargs: Any) -> tuple[Any, dict]:
            obs, info = super().reset(**kwargs)
            return obs * np.nan, info

    model = make(DummyVecEnv([Counter, BrokenReset]))
    with pytest.raises(ValueError, match=sentence(model, "observation", 0)):
        model.learn(20)


@pytest.mark.parametrize("truncates", [True, False])
def test_a_final_observation_that_is_not_finite_stops_training(make: Make, truncates: bool) -> None:
    """The vectorized environment has reset by then: only the info still has it."""

    class BrokenEnd(Counter):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
            obs, *rest = super().step(action)
            return (obs * np.nan if self.steps == self.length else obs), *rest

    model = make(DummyVecEnv([lambda: Counter(20), lambda: BrokenEnd(5, truncates)]))
    if isinstance(model, R2D2) and not truncates:
        model.learn(40)  # actors do not send the observation after a terminal step, since nothing is learned from it
        assert np.isfinite(model.replay_buffer.observations).all()
    else:
        with pytest.raises(ValueError, match=sentence(model, "final observation", 5)):
            model.learn(40)


def test_the_key_of_a_dict_observation_is_named(make: Make) -> None:
    class BrokenKey(Counter):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
            obs, *rest = super().step(action)
            return obs | {"b": obs["b"] * np.nan}, *rest

    space = spaces.Dict({key: spaces.Box(1, 2, (2,), np.float32) for key in "ab"})
    model = make(DummyVecEnv([lambda: Counter(space=space), lambda: BrokenKey(space=space)]), "MultiInputPolicy")
    with pytest.raises(ValueError, match=sentence(model, "observation 'b'", 1)):
        model.learn(20)


def test_a_loss_that_is_not_finite_stops_training(make: Make) -> None:
    model = make(counters(2), learning_starts=20, prioritized_replay=False)
    model.learn(16)
    assert model._n_updates == 0
    with th.no_grad():
        model.q_net.q_net[-1].bias[0] = np.inf
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) at step \d+, update 1; .* Lower learning_rate"):
        model.learn(40, reset_num_timesteps=False)
    assert model._n_updates == 0


def test_a_gradient_that_is_not_finite_does_not_reach_the_parameters(make: Make) -> None:
    model = make(counters(2), learning_starts=20)
    model.learn(40)
    n_updates, parameters = model._n_updates, [parameter.clone() for parameter in model.policy.parameters()]
    model.q_net.q_net[-1].bias.register_hook(lambda gradient: gradient * np.nan)
    with pytest.raises(ValueError, match=rf"the norm of the gradient is nan at step \d+, update {n_updates + 1};"):
        model.learn(40, reset_num_timesteps=False)
    assert all(map(th.equal, parameters, model.policy.parameters())) and model._n_updates == n_updates


def test_nan_is_neither_saved_nor_loaded(make: Make, tmp_path: Path) -> None:
    model = make(counters(2))
    model.learn(60)
    model.save(tmp_path / "good")
    parameters = model.get_parameters()
    parameters["policy.optimizer"]["state"][0]["exp_avg"].view(-1)[0] = np.nan
    with pytest.raises(ValueError, match=r"state.0.exp_avg in 'policy.optimizer' has 1 NaN, so this is not loaded"):
        model.set_parameters(parameters)
    with th.no_grad():
        model.q_net.q_net[-1].bias.fill_(np.nan)
    with pytest.raises(ValueError, match=r"q_net.*bias in 'policy' has \d+ NaN, so this is not saved; load an earlier"):
        model.save(tmp_path / "good")
    assert type(model).load(tmp_path / "good", device="cpu").q_net.q_net[-1].bias.isfinite().all()


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_predict_refuses_an_observation_that_is_not_finite(make: Make, number: float) -> None:
    model = make(counters(2))
    with pytest.raises(ValueError, match=r"predict\(\) was given observation=.* not finite"):
        model.predict(np.array([0.0, number, 0.0], np.float32), deterministic=True)


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq", "step"])
def test_moments_of_another_shape_are_refused(make: Make, key: str) -> None:
    """They would make the fused kernel read memory that is not theirs."""
    model = make(counters(2))
    model.learn(60)
    parameters = model.get_parameters()
    parameters["policy.optimizer"]["state"][3][key] = th.zeros(2)
    with pytest.raises(ValueError, match=rf"'{key}' of parameter 3 in 'policy.optimizer' has the shape \(2,\), but needs"):
        model.set_parameters(parameters)


@pytest.mark.parametrize("make", [make_rdqn, make_r2d2])
def test_statistics_that_are_not_finite_are_not_saved(make: Make, tmp_path: Path) -> None:
    """Those in memory are spoilt: VecNormalize sees a reward before anyone else."""
    model = make(VecNormalize(DummyVecEnv([lambda: Broken("reward", np.nan)])))
    step = r"\(actor 0\) at step 5" if isinstance(model, R2D2) else "at step 7"
    with pytest.raises(ValueError, match=f"non-finite reward {step}"):
        model.learn(40, CheckpointCallback(1, str(tmp_path), save_vecnormalize=True))
    saved = list(tmp_path.glob("*vecnormalize*.pkl"))
    assert len(saved) == (5 if isinstance(model, R2D2) else 6)
    assert all(np.isfinite(VecNormalize.load(str(path), counters()).ret_rms.var) for path in saved)


@pytest.mark.parametrize("algorithm", [DQN, PPO])
def test_the_guard_stops_algorithms_of_sb3(algorithm: type[BaseAlgorithm]) -> None:
    kwargs: dict[str, Any] = {"n_steps": 16, "batch_size": 16} if algorithm is PPO else {"learning_starts": 0}
    model = algorithm("MlpPolicy", DummyVecEnv([lambda: Broken("observation", np.nan)]), device="cpu", **kwargs)
    with pytest.raises(ValueError, match="environment 0 returned a non-finite observation at step 7: "):
        model.learn(64, StepGuard())
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())
