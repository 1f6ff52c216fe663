"""Environments that fail and are recreated."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_attn.r2d2 import environments
from sb3_attn.r2d2.environments import FAILURE, RestartingEnv
from sb3_attn.recurrent_dqn.environment_states import environment_states, set_environment_states
from tests.helpers.environments import StatefulWalk, Walk
from tests.helpers.models import make_r2d2


class Maker:
    """
    Makes environments that fail on request.

    :param failures: for each environment in turn what fails: "make", "reset", "step", "close" or several of them
    """

    def __init__(self, *failures: str) -> None:
        self.failures = iter(failures)
        self.n_made = 0
        self.closed: list[int] = []

    def __call__(self) -> gym.Env:
        fails = next(self.failures, "")
        self.n_made += 1
        number = self.n_made
        if "make" in fails:
            raise ConnectionError(f"no environment {number}")

        class Env(Walk):
            def reset(self, **kwargs: Any) -> Any:
                if "reset" in fails:
                    raise ConnectionError(f"no reset of {number}")
                self.number = number
                return super().reset(**kwargs)

            def step(env, action: Any) -> Any:
                if "step" in fails:
                    raise ConnectionError(f"no step of {number}")
                return super().step(action)

            def close(env) -> None:
                self.closed.append(number)
                if "close" in fails:
                    raise ConnectionError(f"no close of {number}")

        return Env()


@pytest.fixture(autouse=True)
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that would have been slept; nothing sleeps."""
    seconds: list[float] = []
    monkeypatch.setattr(environments.time, "sleep", seconds.append)
    return seconds


def test_without_failures_nothing_changes() -> None:
    plain, wrapped = Walk(), RestartingEnv(Walk, "it")
    np.testing.assert_array_equal(plain.reset(seed=3)[0], wrapped.reset(seed=3)[0])
    for action in (0, 2, 1):
        (obs, *rest), (other, *others) = plain.step(action), wrapped.step(action)
        np.testing.assert_array_equal(obs, other)
        assert rest == others
    assert wrapped.n_restarts == 0


def test_a_failed_step_ends_the_episode_with_the_last_observation() -> None:
    make_env = Maker("step")
    env = RestartingEnv(make_env, "it")
    first, _ = env.reset(seed=0)
    obs, reward, terminated, truncated, info = env.step(0)
    assert obs is first and (reward, terminated, truncated) == (0.0, False, True)
    assert info == {FAILURE: "ConnectionError('no step of 1')"}
    assert make_env.n_made == 1 and make_env.closed == [1]  # the next one is made when it is needed
    env.reset()
    assert env.unwrapped.number == 2
    assert FAILURE not in env.step(0)[-1]
    assert env.n_restarts == 1


@pytest.mark.parametrize(
    ("failures", "n_restarts"),
    [(["reset"], 1), (["reset", "reset"], 2), (["reset", "make"], 2), (["reset", "make", "make", "reset"], 4)],
    ids=str,
)
def test_a_failed_reset_or_constructor_is_tried_again(failures: list[str], n_restarts: int) -> None:
    make_env = Maker(*failures)
    env = RestartingEnv(make_env, "it")
    obs, _ = env.reset(seed=5)
    assert env.unwrapped.number == len(failures) + 1 and env.n_restarts == n_restarts
    np.testing.assert_array_equal(obs, Walk().reset(seed=5)[0])


def test_a_broken_environment_may_fail_to_close() -> None:
    env = RestartingEnv(Maker("step close"), "it")
    env.reset()
    env.step(0)
    env.reset()
    assert env.unwrapped.number == 2


def test_each_broken_environment_is_closed_once() -> None:
    make_env = Maker("reset", "make", "make", "step", "")
    env = RestartingEnv(make_env, "it")
    env.reset()
    env.step(0)
    env.reset()
    assert make_env.closed == [1, 4]


def play(env: gym.Env, n_episodes: int = 5) -> None:
    """Episodes of one step."""
    for _ in range(n_episodes):
        env.reset()
        env.step(0)


@pytest.mark.parametrize("what", ["step", "reset", "make"])
def test_the_limit_names_the_environment_and_the_last_error(what: str) -> None:
    env = RestartingEnv(Maker("step", *[what] * 9), "environment 3 of actor 5", max_restarts=2)
    sentence = f"environment 3 of actor 5 has failed again after 2 restarts, now with .*no .*{3}.*; fix it, or raise max_env"
    with pytest.raises(RuntimeError, match=sentence) as raised:
        play(env)
    assert isinstance(raised.value.__cause__, ConnectionError)


def test_no_restart_is_allowed_with_a_limit_of_zero() -> None:
    env = RestartingEnv(Maker("step"), "it", max_restarts=0)
    env.reset()
    with pytest.raises(RuntimeError, match="it has failed again after 0 restarts"):
        env.step(0)


def test_a_failure_of_the_first_constructor_is_raised() -> None:
    with pytest.raises(ConnectionError, match="no environment 1"):
        RestartingEnv(Maker("make"), "it")


def test_waits_double_up_to_ten_seconds(sleeps: list[float]) -> None:
    env = RestartingEnv(Maker(*["reset"] * 10), "it", max_restarts=10, backoff=0.1)
    env.reset()
    assert sleeps == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10, 10])


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


def test_ctrl_c_is_not_a_failure() -> None:
    class Interrupted(Walk):
        def step(self, action: Any) -> Any:
            raise KeyboardInterrupt

    env = RestartingEnv(Interrupted, "it")
    env.reset()
    with pytest.raises(KeyboardInterrupt):
        env.step(0)


def test_its_count_is_part_of_the_state() -> None:
    envs = [DummyVecEnv([lambda: RestartingEnv(StatefulWalk, "it", max_restarts=2)]) for _ in range(2)]
    envs[0].envs[0].n_restarts = 2
    for env in envs:
        env.reset()
    assert set_environment_states(envs[1], environment_states(envs[0]))
    with pytest.raises(RuntimeError, match="it has failed again after 2 restarts"):
        envs[1].envs[0].step(None)


# ---------------------------------------------------------------- in R2D2


class Rare(Walk):
    """Fails at each nth step over all copies."""

    period = 17
    n_steps = 0

    def step(self, action: Any) -> Any:
        Rare.n_steps += 1
        if Rare.n_steps % Rare.period == 0:
            raise OSError("out of order")
        return super().step(action)


@pytest.fixture
def _rare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rare, "n_steps", 0)


@pytest.mark.usefixtures("_rare")
def test_learning_continues_and_the_ledger_agrees() -> None:
    model = make_r2d2(Rare, envs_per_actor=2, n_actors=2).learn(160)
    assert model.num_timesteps == 160 and model._n_updates > 10
    assert model.step_ledger.n_steps_rejected == {"the environment failed": 160 // 17}
    assert model.step_ledger.n_steps_inserted == 160 - 160 // 17 == model.replay_buffer.pos.sum()
    model.replay_buffer.check_valid()


@pytest.mark.usefixtures("_rare")
def test_learning_ends_when_an_environment_fails_too_often() -> None:
    model = make_r2d2(Rare, envs_per_actor=2, n_actors=2, max_env_restarts=1)
    with pytest.raises(
        RuntimeError, match=r"environment [01] of actor [01] has failed again after 1 restarts, now with OSErr"
    ):
        model.learn(400)


@pytest.mark.usefixtures("_rare")
def test_the_learners_own_environments_are_not_recreated() -> None:
    with pytest.raises(OSError, match="out of order"):
        make_r2d2(Rare, envs_per_actor=2).learn(160)
