"""Faults of R2D2 and its actors that would go unnoticed."""

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, ConvertCallback, EveryNTimesteps
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_attn.common.exploration import ape_x_epsilons
from sb3_attn.r2d2 import environments
from sb3_attn.r2d2.collection import Collection
from sb3_attn.r2d2.environments import RestartingEnv, to_vec_env
from sb3_attn.r2d2.trajectory import Trajectory
from tests.helpers.actors import make_actor
from tests.helpers.environments import Walk
from tests.helpers.models import make_r2d2, prefer


class Doubled(gym.RewardWrapper):
    def reward(self, reward: Any) -> float:
        return 2 * float(reward)


@pytest.mark.parametrize("part", ["rewards", "observations", "next_observations"])
def test_a_nan_anywhere_in_a_trajectory_is_found(part: str) -> None:
    trajectory = make_actor(make_r2d2(n_actors=1)).collect(5)
    array = getattr(trajectory, part)
    array = array["observation"] if isinstance(array, dict) else array
    array[(1,) if part == "next_observations" else (2, 1)] = np.nan
    with pytest.raises(ValueError, match=r"environment 1 returned .*\(actor 0\)"):
        trajectory.check_finite(0)


def test_a_nan_in_a_final_observation_names_its_environment() -> None:
    trajectory = make_actor(make_r2d2(n_actors=1)).collect(30)
    _, k = np.argwhere(trajectory.timeouts)[0]
    trajectory.final_observations[0]["observation"][2] = np.nan
    with pytest.raises(ValueError, match=f"environment {k} returned a non-finite final observation"):
        trajectory.check_finite(0)


def test_an_id_may_name_the_module_that_registers_it() -> None:
    assert getattr(to_vec_env("sb3_attn.envs:MemoryChain-v0", 2), "num_envs", None) == 2


def test_parameters_that_the_user_sets_between_two_calls_of_learn_are_used() -> None:
    model = make_r2d2(n_actors=1, learning_starts=10**6, actor_update_interval=1, policy_kwargs=dict(dueling=False))
    prefer(model, 1)
    model.learn(10)
    prefer(model, 2)
    model.learn(100, reset_num_timesteps=False)
    assert (model.replay_buffer.actions[5:, 1] == 2).mean() > 0.1


@pytest.mark.parametrize("n_actors", [0, 2])
def test_predict_explores_as_the_greediest_environment(n_actors: int) -> None:
    model = make_r2d2(n_actors=n_actors).learn(60)
    assert model.exploration_rate == ape_x_epsilons(model.n_replay_envs)[-1]


def test_acting_errors_are_those_of_normalized_rewards() -> None:
    env = VecNormalize(DummyVecEnv([Walk] * 2), norm_obs=False, norm_reward=True)
    env.ret_rms.var = np.array(1e4)
    env.training = False
    model = make_r2d2(env, n_steps=1, value_rescaling=False)
    actor = make_actor(model)
    with th.no_grad():
        for parameter in actor.q_net.parameters():
            parameter.zero_()
    trajectory = actor.collect(10)
    np.testing.assert_allclose(trajectory.td_errors, np.abs(env.normalize_reward(trajectory.rewards)), rtol=1e-3)


def test_a_checkpoint_inside_another_callback_is_written_on_a_signal(tmp_path: Path) -> None:
    def interrupt(local_variables: dict[str, Any], _: dict[str, Any]) -> bool:
        if local_variables["self"].num_timesteps == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return True

    nested = EveryNTimesteps(10**6, CheckpointCallback(10**6, str(tmp_path)))
    with pytest.raises(KeyboardInterrupt):
        make_r2d2().learn(1000, [ConvertCallback(interrupt), nested])
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("envs_per_actor", [0, -1])
def test_the_number_of_environments_is_positive(envs_per_actor: int) -> None:
    with pytest.raises(ValueError, match=f"envs_per_actor={envs_per_actor}"):
        make_r2d2(envs_per_actor=envs_per_actor)


def test_the_target_interval_counts_updates_so_many_environments_are_no_reason_to_warn() -> None:
    make_r2d2(DummyVecEnv([Walk] * 3), target_update_interval=2)


def test_the_backoff_of_an_environment_stays_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bad(Walk):
        def step(self, action: Any) -> Any:
            raise OSError

    waits: list[float] = []
    monkeypatch.setattr(environments.time, "sleep", waits.append)
    env = RestartingEnv(Bad, "it", max_restarts=5000)
    for _ in range(1100):
        env.reset()
        env.step(0)
    assert max(waits) == 10.0


def test_a_second_learn_has_random_numbers_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Trajectory] = []
    insert = Collection.insert
    monkeypatch.setattr(Collection, "insert", lambda self, t, *args: seen.append(t) or insert(self, t, *args))
    make_r2d2(n_actors=1, learning_starts=10**6).learn(10).learn(10)
    assert not np.array_equal(seen[0].observations["observation"], seen[1].observations["observation"])


def test_environments_that_differ_stay_different_in_the_actors() -> None:
    model = make_r2d2(DummyVecEnv([partial(Walk, longest=3), partial(Walk, longest=50)]), n_actors=1)
    assert make_actor(model).env.get_attr("longest") == [3, 50]


def test_only_windows_that_were_drawn_count() -> None:
    model = make_r2d2(
        partial(Walk, longest=200),
        envs_per_actor=1,
        n_actors=1,
        trace_length=None,
        burn_in_length=0,
        sequence_period=None,
        buffer_size=8,
        rollout_length=12,
        learning_starts=0,
        target_update_interval=1,
    )
    model.learn(72)
    assert model.n_windows_sampled == model._n_updates * model.batch_size


def test_callbacks_see_whole_dicts_whatever_their_keys() -> None:
    class Goal(Walk):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = gym.spaces.Dict(observation=self.observation_space)

        def reset(self, **kwargs: Any) -> Any:
            obs, info = super().reset(**kwargs)
            return {"observation": obs}, info

        def step(self, action: Any) -> Any:
            obs, *rest = super().step(action)
            return {"observation": obs}, *rest

    seen: list[Any] = []
    make_r2d2(Goal, policy="MultiInputPolicy").learn(20, lambda local_variables, _: seen.append(local_variables["new_obs"]))
    assert all(obs.keys() == {"observation"} for obs in seen)


def test_logs_can_be_written_before_the_first_trajectory() -> None:
    class Log(BaseCallback):
        def _on_rollout_start(self) -> None:
            self.model.dump_logs()  # type: ignore[attr-defined]

        def _on_step(self) -> bool:
            return True

    make_r2d2(n_actors=1).learn(20, Log())


@pytest.mark.parametrize("as_factory", [True, False])
@pytest.mark.parametrize("n_actors", [0, 1])
def test_a_monitor_inside_a_wrapper_is_the_one_that_counts(n_actors: int, as_factory: bool) -> None:
    env = (lambda: Doubled(Monitor(Walk()))) if as_factory else make_vec_env(Walk, 1, wrapper_class=Doubled)
    model = make_r2d2(env, envs_per_actor=1, n_actors=n_actors).learn(40)
    end = int(np.flatnonzero(model.replay_buffer.dones[:, 0])[0])
    assert model.ep_info_buffer is not None
    assert model.ep_info_buffer[0]["r"] == pytest.approx(model.replay_buffer.rewards[: end + 1, 0].sum() / 2, abs=1e-4)
