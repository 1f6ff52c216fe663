"""Vectorized environments of a user's own that misbehave: what they return is refused, or what they leave out is not used."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecNormalize, VecTransposeImage

from sb3_attn import R2D2
from tests.helpers.environments import POLICIES, Counter, counters, walks
from tests.helpers.models import Make, make_r2d2, make_rdqn

# Actors make their own environments, around which there is no VecEnv of a user
MAKES = pytest.mark.parametrize("make", [make_rdqn, make_r2d2])
DICT = spaces.Dict({key: spaces.Box(-1, 1, (2,), np.float32) for key in "ab"})

Returned = tuple[Any, Any, Any, Any]


class Changed(VecEnvWrapper):
    """
    Changes what the environments return.

    :param venv: the environments
    :param change: is given the observations, rewards, dones and infos of the seventh step, and returns others
    """

    def __init__(self, venv: VecEnv, change: Callable[..., Returned]) -> None:
        super().__init__(venv)
        self.change, self.n_steps = change, 0

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Returned:
        self.n_steps += 1
        returned = self.venv.step_wait()
        return self.change(*returned) if self.n_steps == 7 else returned


def without_key(obs: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: array for name, array in obs.items() if name != key}


CHANGES: dict[str, tuple[Callable[..., Returned], str]] = {
    "a row less": (lambda o, r, d, i: (o[:1], r, d, i), r"observations of the shape \(1, 3\) .* but \(2, 3\)"),
    "a column less": (lambda o, r, d, i: (o[:, :1], r, d, i), r"observations of the shape \(2, 1\) .* but \(2, 3\)"),
    "no rows": (lambda o, r, d, i: (o[0], r, d, i), r"observations of the shape \(3,\) .* but \(2, 3\)"),
    "a tuple": (lambda o, r, d, i: ((o, o), r, d, i), r"observations of the shape \(2, 2, 3\) .* but \(2, 3\)"),
    "one reward": (lambda o, r, d, i: (o, r[:1], d, i), r"rewards of the shape \(1,\) .* but \(2,\)"),
    "a number as rewards": (lambda o, r, d, i: (o, r[0], d, i), r"rewards of the shape \(\) .* but \(2,\)"),
    "a column of rewards": (lambda o, r, d, i: (o, r[:, None], d, i), r"rewards of the shape \(2, 1\) .* but \(2,\)"),
    "three dones": (lambda o, r, d, i: (o, r, np.zeros(3, bool), i), r"dones of the shape \(3,\) .* but \(2,\)"),
    "one info": (lambda o, r, d, i: (o, r, d, i[:1]), r"infos of the shape \(1,\) .* but \(2,\)"),
    "another final observation": (
        lambda o, r, d, i: (o, r, np.array([False, True]), [{}, {"terminal_observation": np.zeros(1)}]),
        r"in infos\[1\] a terminal_observation of the shape \(1,\) .* but \(3,\)",
    ),
}
DICT_CHANGES: dict[str, tuple[Callable[..., Returned], str]] = {
    "a key less": (lambda o, r, d, i: (without_key(o, "b"), r, d, i), r"observations of the keys \['a'\] .*\['a', 'b'\] was"),
    "no dict": (lambda o, r, d, i: (o["a"], r, d, i), r"observations of the type ndarray .* but a dict of \['a', 'b'\] was"),
    "a column less": (
        lambda o, r, d, i: (o | {"b": o["b"][:, :1]}, r, d, i),
        r"observations 'b' of the shape \(2, 1\) .* but \(2, 2\)",
    ),
}


@MAKES
@pytest.mark.parametrize("name", [*CHANGES, *(f"dict: {name}" for name in DICT_CHANGES)])
def test_a_step_of_the_wrong_shape_is_refused_and_not_stored(make: Make, name: str) -> None:
    is_dict = name.startswith("dict: ")
    change, sentence = (DICT_CHANGES if is_dict else CHANGES)[name.removeprefix("dict: ")]
    env = Changed(counters(2, length=20, space=DICT if is_dict else None), change)
    model = make(env, "MultiInputPolicy" if is_dict else "MlpPolicy", learning_starts=0)
    sentence = sentence.replace(" .* ", " at step 14 of actor 0, " if isinstance(model, R2D2) else " at step 14, ", 1)
    with pytest.raises(ValueError, match=rf"^the environments returned {sentence}.*; correct Changed, or what it wraps\.$"):
        model.learn(100)
    # R2D2 stores whole trajectories, of 5 steps here
    assert set(model.replay_buffer.pos) == ({5} if isinstance(model, R2D2) else {6})
    model.replay_buffer.check_valid()
    model.learn(40, reset_num_timesteps=False)
    buffer = model.replay_buffer
    buffer.check_valid()
    assert model._n_updates > 0 and set(buffer.episode_steps[buffer.pos[0] - 20 : buffer.pos[0], 0]) == set(range(20))
    if not is_dict:  # new episodes began
        n_steps = np.round(buffer.observations[: buffer.pos[0], :, 0] * 5)
        np.testing.assert_array_equal(n_steps, buffer.episode_steps[: buffer.pos[0]])


@MAKES
@pytest.mark.parametrize("n_steps", [1, 2, 7])
def test_after_an_error_of_an_environment_new_episodes_begin(make: Make, n_steps: int) -> None:
    class FailsOnce(Counter):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
            if (self.episode, self.steps) == (0, n_steps - 1):
                raise ZeroDivisionError
            return super().step(action)

    env = DummyVecEnv([lambda: FailsOnce(10)])
    model = make(env)
    with pytest.raises(ZeroDivisionError):
        model.learn(20)
    model.learn(20, reset_num_timesteps=False)
    assert env.get_attr("episode") == [1 + 20 // 10]
    model.replay_buffer.check_valid()


@MAKES
def test_first_observations_of_the_wrong_shape_are_refused(make: Make) -> None:
    class BrokenReset(Changed):
        def reset(self) -> Any:
            return self.venv.reset()[:1]

    with pytest.raises(ValueError, match=r"returned observations of the shape \(1, 3\) at step 0, but \(2, 3\) was expected"):
        make(BrokenReset(counters(2), lambda *returned: returned)).learn(20)


# ---------------------------------------------------------------- no final observations


class WithoutFinalObservations(VecEnvWrapper):
    """Leaves out the final observations of episodes, and remembers those before the last steps of truncated ones."""

    def reset(self) -> Any:
        self.last_obs: Any = self.venv.reset()
        self.last_in_truncated: list[dict[str, np.ndarray]] = []
        return self.last_obs

    def step_wait(self) -> Returned:
        obs, rewards, dones, infos = self.venv.step_wait()
        for i, info in enumerate(infos):
            if info.pop("terminal_observation", None) is not None and info["TimeLimit.truncated"]:
                last_obs = self.last_obs if isinstance(self.last_obs, dict) else {"observation": self.last_obs}
                self.last_in_truncated.append({key: array[i] for key, array in last_obs.items()})
        self.last_obs = obs
        return obs, rewards, dones, infos


@MAKES
@pytest.mark.parametrize("kind", ["vector", "dict"])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_truncated_episode_without_final_observation_ends_one_step_earlier(make: Make, kind: str, normalize: bool) -> None:
    """So what it is bootstrapped from is an observation of its own, the one before the step that is left out."""
    env = WithoutFinalObservations(walks(2, kind=kind))
    wrapped = VecNormalize(env, norm_obs_keys=["a"] if kind == "dict" else None) if normalize else env
    model = make(wrapped, POLICIES[kind], buffer_size=2000)
    with pytest.warns(UserWarning, match="give no terminal_observation in the infos of truncated episodes"):
        model.learn(160)
    buffer = model.replay_buffer
    buffer.check_valid()
    finals = list(buffer._observations.finals.values())
    assert len(finals) > 5
    for final in finals:
        equal = [all((final[key] == last[key]).all() for key in final) for last in env.last_in_truncated]
        assert sum(equal) == 1
    # No step is lost but these, and no termination
    assert buffer.pos.sum() == 160 - len(env.last_in_truncated) and model.num_timesteps == 160
    if isinstance(model, R2D2):
        assert model.step_ledger.n_steps_rejected == {"the final observation is missing": len(env.last_in_truncated)}


@MAKES
def test_the_last_step_without_a_target_is_in_no_window(make: Make) -> None:
    """An oracle by hand: of 5 steps 4 are trained, the reward of the fifth in none, and nothing is terminal."""
    model = make(WithoutFinalObservations(counters(1, truncates=True)))
    with pytest.warns(UserWarning, match="terminal_observation"):
        model.learn(60)
    batch = model.replay_buffer.sample(200)
    mask = batch.mask.numpy()
    numbers = np.round(batch.observations.numpy()[..., 0] * 5)  # of the steps in their episodes
    assert set(numbers[:-1][mask]) == {0, 1, 2, 3} and not batch.terminations.numpy().any()
    last = mask.sum(axis=0), np.arange(200)
    assert (numbers[last] == numbers[last[0] - 1, last[1]] + 1).all()
    assert len(model.ep_info_buffer) == 0 or model.ep_info_buffer[0]["l"] == 5


@MAKES
def test_a_terminated_episode_without_its_final_observation_loses_nothing(make: Make) -> None:
    envs = counters(2), WithoutFinalObservations(counters(2))
    with_finals, without = (make(env).learn(80).replay_buffer.state_arrays() for env in envs)
    for name, array in with_finals.items():
        if not name.startswith("newest_next_observations"):
            np.testing.assert_array_equal(array, without[name], err_msg=name)


# ---------------------------------------------------------------- no end


def test_episodes_without_end_are_learned_from_when_they_are_taken_whole(make: Make) -> None:
    whole = dict(trace_length=None, burn_in_length=0, sequence_period=None)
    model = make(counters(2, length=10**6), **whole, buffer_size=80)
    with pytest.warns(UserWarning, match=r"trace_length=None takes whole episodes, but one has more than \d+ steps"):
        model.learn(200)
    assert model._n_updates > 1 and model.replay_buffer.n_windows >= model.n_replay_envs
    model.replay_buffer.check_valid()


# ---------------------------------------------------------------- Ctrl-C

SCRIPT = """
import sys
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import CheckpointCallback, ConvertCallback
from stable_baselines3.common.vec_env import SubprocVecEnv
from sb3_attn import SaveCheckpoints, SaveOnSignal
from sb3_attn.envs import WatchedSubprocVecEnv
from tests.helpers.environments import Walk
from tests.helpers.models import make_r2d2, make_rdqn
folder = sys.argv[1]
model = {make}({vec_env}([Walk] * 2, start_method="fork"))
report = ConvertCallback(lambda *_: model.num_timesteps != 200 or print("learning", flush=True) is None)
model.learn(10**9, [report, {callback}])
"""


@pytest.mark.parametrize(
    ("make", "vec_env", "callback"),
    [
        ("make_rdqn", "SubprocVecEnv", "SaveCheckpoints(folder, 10**8)"),
        ("make_r2d2", "SubprocVecEnv", "CheckpointCallback(10**8, folder)"),
        ("(lambda env: PPO('MlpPolicy', env, 8, 8))", "WatchedSubprocVecEnv", "SaveOnSignal(folder + '/model')"),
    ],
)
def test_ctrl_c_in_a_terminal_writes_a_checkpoint(make: str, vec_env: str, callback: str, tmp_path: Path) -> None:
    """It also reaches the processes of the environments, which then end, or ignore it."""
    script = SCRIPT.format(make=make, vec_env=vec_env, callback=callback)
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "learning\n"
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGINT and errors.rstrip().endswith("KeyboardInterrupt"), errors
    assert "A second signal ends training at once" in output and len(list(tmp_path.iterdir())) == 1


class IntegerDones(DummyVecEnv):
    """As a SubprocVecEnv whose environments return them."""

    def step_wait(self) -> Any:
        obs, rewards, dones, infos = super().step_wait()
        return obs, rewards, dones.astype(np.int64), infos


@MAKES
def test_dones_may_be_integers(make: Make) -> None:
    make(IntegerDones([Counter] * 2)).learn(60)


@MAKES
def test_images_that_are_transposed_outside_of_vec_normalize_are_refused(make: Make) -> None:
    """The original observations, which replay stores, are those before the transposition."""
    image = spaces.Box(0, 255, (36, 40, 3), np.uint8)
    sentence = (
        r"VecNormalize has observations of shape \(36, 40, 3\), .* \(3, 36, 40\) .*VecNormalize\(VecTransposeImage\(env\)\)"
    )
    with pytest.raises(ValueError, match=sentence):
        make(VecNormalize(counters(1, space=image), norm_obs=False), policy="CnnPolicy")
    make(VecNormalize(VecTransposeImage(counters(1, space=image)), norm_obs=False), policy="CnnPolicy").learn(30)
