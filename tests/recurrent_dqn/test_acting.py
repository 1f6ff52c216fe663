"""The memory during acting, with which replay, prediction and evaluation agree."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_attn import R2D2, RecurrentDQN, SaveCheckpoints
from sb3_attn.common.exploration import ape_x_epsilons
from sb3_attn.envs import MemoryChain, PreviousActionReward
from sb3_attn.recurrent_dqn.step_checks import ResetWatch
from tests.helpers.callbacks import ActingRecorder, StopAt
from tests.helpers.environments import ConstantObservation, Counter, counters, walks
from tests.helpers.models import assert_same, make_r2d2, make_rdqn, parameters


def acted(steps: int, env: Any = None, epsilon: float = 0.5, **kwargs: Any) -> tuple[Any, ActingRecorder]:
    """A model that acts without learning, and what it saw."""
    model = make_rdqn(env, exploration_initial_eps=epsilon, exploration_final_eps=epsilon, learning_starts=0, **kwargs)
    model.train = lambda *args, **kwargs: None
    recorder = ActingRecorder()
    model.learn(steps, recorder)
    return model, recorder


def by_step(recorder: ActingRecorder, what: str) -> list[np.ndarray]:
    """The fields of the recorded states in one array ``[time, env, size]`` each."""
    return [np.stack(field) for field in zip(*getattr(recorder, what), strict=True)]


@pytest.mark.parametrize("core", ["lstm", "gru"])
def test_states_do_not_depend_on_exploration(core: str) -> None:
    greedy, random = (acted(23, epsilon=epsilon, policy_kwargs=dict(core=core))[1] for epsilon in (0.0, 1.0))
    assert not np.array_equal(greedy.actions, random.actions)
    np.testing.assert_array_equal(greedy.observations, random.observations)
    for first, second in zip(by_step(greedy, "next_states"), by_step(random, "next_states"), strict=True):
        np.testing.assert_array_equal(first, second)
        assert (np.diff(first, axis=0) != 0).any(axis=-1).all()  # the memory moves at every step


def test_states_advance_in_the_warm_up_too() -> None:
    recorder = ActingRecorder()
    make_rdqn(learning_starts=100).learn(10, recorder)
    _, acting = acted(10, epsilon=0.0)
    for warm_up, later in zip(by_step(recorder, "next_states"), by_step(acting, "next_states"), strict=True):
        np.testing.assert_array_equal(warm_up, later)


def exploring(model: Any, recorder: ActingRecorder) -> np.ndarray:
    """True where a recorded action differs from the greedy one, bool ``[time, env]``."""
    differ = []
    for obs, before, actions in zip(recorder.observations, recorder.states, recorder.actions, strict=True):
        greedy, _ = model.policy.predict(obs, before)
        differ.append(greedy != actions)
    return np.array(differ)


def test_each_environment_explores_on_its_own() -> None:
    model, recorder = acted(64 * 20, DummyVecEnv([ConstantObservation] * 64), buffer_size=64 * 20, target_update_interval=64)
    per_step = exploring(model, recorder).sum(axis=1)[1:]  # SB3 sets the first exploration rate after the first step
    assert len(per_step) == 19
    # 64 coins at 0.5 x 49/50: 31.4 +- 4; one coin for all would give 0 or about 63
    assert per_step.min() > 10 and per_step.max() < 54
    assert abs(per_step.mean() - 64 * 0.5 * 49 / 50) < 4


def test_each_environment_can_have_its_own_epsilon() -> None:
    model, recorder = acted(8 * 200, DummyVecEnv([ConstantObservation] * 8), per_env_epsilons=True, buffer_size=1600)
    rates = exploring(model, recorder).mean(axis=0)
    np.testing.assert_allclose(rates, ape_x_epsilons(8) * 49 / 50, atol=0.11)
    assert rates[0] > 0.25 and rates[-1] < 0.03
    assert model.exploration_rate == ape_x_epsilons(8)[-1]


@pytest.mark.parametrize(("saved", "n_envs"), [(2, 2), (1, 16), (16, 1)])
def test_the_epsilons_of_environments_follow_their_number_at_load(saved: int, n_envs: int, tmp_path: Path) -> None:
    make_rdqn(counters(saved), per_env_epsilons=True).save(tmp_path / "model")
    loaded = RecurrentDQN.load(tmp_path / "model", env=counters(n_envs), device="cpu").learn(n_envs)
    assert loaded.per_env_epsilons and loaded.exploration_rate == ape_x_epsilons(n_envs)[-1]


def test_no_state_leaks_across_episodes() -> None:
    """Two episodes in a row are, to the bit, two separate runs of predict()."""
    model, recorder = acted(10, epsilon=0.0)
    after = by_step(recorder, "next_states")
    for episode in range(2):
        state = None
        for t in range(5 * episode, 5 * episode + 5):
            action, state = model.predict(recorder.observations[t], state, deterministic=True)
            np.testing.assert_array_equal(action, recorder.actions[t])
            for field, recorded in zip(state, after, strict=True):
                np.testing.assert_array_equal(field, recorded[t])
    assert not any(field[5].any() for field in by_step(recorder, "states"))


def test_environments_reset_their_rows_one_by_one() -> None:
    """Episodes of 3 and of 5 steps side by side: each row as if it were alone."""
    lengths = (3, 5)
    _, together = acted(40, DummyVecEnv([lambda n=n: Counter(n) for n in lengths]), epsilon=0.0)
    for i, length in enumerate(lengths):
        _, alone = acted(20, counters(length=length), epsilon=0.0)
        np.testing.assert_array_equal([obs[i] for obs in together.observations], np.squeeze(alone.observations, 1))
        for field, expected in zip(by_step(together, "next_states"), by_step(alone, "next_states"), strict=True):
            np.testing.assert_allclose(field[:, i], expected[:, 0], atol=1e-6)


def test_the_state_before_the_step_is_stored_and_gives_the_values_of_acting() -> None:
    """From each stored state, the unroll of the window passes through the states that acting had at these steps."""
    model, recorder = acted(48, counters(length=12), trace_length=3, burn_in_length=2)
    buffer = model.replay_buffer
    before, after = by_step(recorder, "states"), by_step(recorder, "next_states")
    batch = buffer.sample(64)
    seen = 0
    for b in range(64):
        first_trained = int(batch.indices[b])  # one environment, and the ring is not full: the position is the time
        t = first_trained - int(batch.burn_in_lengths[b])
        if batch.episode_starts[b]:
            assert t % 12 == 0
            continue
        seen += 1
        for stored, acting in zip(batch.core_state, before, strict=True):
            np.testing.assert_array_equal(stored[b], acting[t, 0])
        state = model.q_net.initial_state(1)._make(array[b : b + 1] for array in batch.core_state)
        with th.no_grad():
            state = model.q_net.advance(batch.burn_in_observations[: batch.burn_in_lengths[b], b : b + 1], state)
            n = int(batch.mask[:, b].sum())
            q_values, state = model.q_net.unroll(batch.observations[:n, b : b + 1], state)
        for k in range(n):
            acting_state = model.q_net.initial_state(1)._make(th.as_tensor(f[first_trained + k]) for f in before)
            obs = th.as_tensor(recorder.observations[first_trained + k])
            with th.no_grad():
                acting_q_values, _ = model.q_net(obs, acting_state)
            th.testing.assert_close(q_values[k], acting_q_values, atol=1e-6, rtol=1e-5)
        for field, expected in zip(state, after, strict=True):
            np.testing.assert_allclose(field, expected[first_trained + n - 1], atol=1e-6)
    assert seen > 10


def windows(model: Any) -> set[tuple[int, int]]:
    """First and last position of every window of the only environment, burn-in included."""
    buffer = model.replay_buffer
    buffer.check_valid()
    found = set()
    for position in np.flatnonzero(buffer.window_lengths[:, 0]):
        burn_in = min(buffer.episode_steps[position, 0], buffer.burn_in_length)
        found.add((int(position - burn_in), int(position + buffer.window_lengths[position, 0] - 1)))
    return found


@pytest.mark.parametrize("reset_num_timesteps", [True, False])
def test_a_callback_may_stop_learn_in_the_middle_of_a_step(reset_num_timesteps: bool) -> None:
    """The step that was not stored is lost; what follows is a new episode and not its continuation."""
    model = make_rdqn(counters(length=50), learning_starts=0)
    model.learn(100, StopAt(7))
    assert model.num_timesteps == 7 and model.replay_buffer.size() == 6
    recorder = ActingRecorder()
    model.learn(8, recorder, reset_num_timesteps=reset_num_timesteps)
    assert model.replay_buffer.timeouts[5, 0] and model.replay_buffer.episode_steps[6, 0] == 0
    assert not any(field.any() for field in recorder.states[0])
    assert all(last < 6 or first >= 6 for first, last in windows(model))
    np.testing.assert_array_equal(model.replay_buffer.observations[6, 0], recorder.observations[0][0])
    assert recorder.observations[0][0, 0] == 0  # the environment was reset


def assert_windows_of_one_episode(model: Any) -> None:
    """Counter's observations are [step / 5, episode % 3, ...]: steps of a window follow each other, in one episode."""
    batch = model.replay_buffer.sample(500)
    steps, episodes, _ = batch.observations.unbind(-1)
    assert th.equal((steps[1:] - steps[:-1] > 0.1)[batch.mask], th.ones(int(batch.mask.sum()), dtype=th.bool))
    assert (episodes[1:] == episodes[:-1])[batch.mask].all()


@pytest.mark.parametrize("make", [make_rdqn, make_r2d2])
@pytest.mark.parametrize("normalized", [False, True])
def test_evaluating_on_the_training_environments_ends_their_episodes(make: Any, normalized: bool) -> None:
    env = counters(2, length=30)
    env = VecNormalize(env, norm_obs=False) if normalized else env
    model = make(env, learning_starts=1000)
    evaluation = EvalCallback(env, n_eval_episodes=1, eval_freq=17, warn=False)
    with pytest.warns(UserWarning, match="evaluate on environments of their own"):
        model.learn(200, [evaluation])
    assert_windows_of_one_episode(model)
    assert model.replay_buffer.dones.any() and model.replay_buffer.size() > 90


@pytest.mark.parametrize("make", [make_rdqn, make_r2d2])
def test_evaluating_between_two_calls_of_learn_ends_episodes(make: Any, recwarn: pytest.WarningsRecorder) -> None:
    env = counters(2, length=30)
    model = make(env, learning_starts=1000)
    for _ in range(6):
        model.learn(22, reset_num_timesteps=False)
        env.seed(1)  # neither of these resets
        env.set_options({})
        evaluate_policy(model, env, n_eval_episodes=1, warn=False)
    assert not [w for w in recwarn if "evaluate on" in str(w.message)]
    assert_windows_of_one_episode(model)
    # Seeds and options alone end no episode
    n_done = model.replay_buffer.dones.sum()
    model.learn(22, reset_num_timesteps=False)
    env.seed(1)
    model.learn(8, reset_num_timesteps=False)
    assert model.replay_buffer.dones.sum() - n_done == 2, "those that evaluate_policy() ended"


@pytest.mark.parametrize("make", [make_rdqn, make_r2d2])
def test_evaluating_before_a_checkpoint_is_written_or_gone_on_with(make: Any, tmp_path: Path) -> None:
    def envs() -> DummyVecEnv:
        return DummyVecEnv([lambda: MemoryChain(length=30)] * 2)  # whose states checkpoints keep

    model = make(envs(), learning_starts=1000)
    model.learn(22)
    evaluate_policy(model, model.get_env(), n_eval_episodes=1, warn=False)
    model.save_checkpoint(tmp_path / "after")
    model.learn(22, reset_num_timesteps=False)
    model.save_checkpoint(tmp_path / "before")
    for folder in ("after", "before"):
        loaded = type(model).load_checkpoint(tmp_path / folder, envs(), device="cpu")
        if folder == "before":
            evaluate_policy(loaded, loaded.get_env(), n_eval_episodes=1, warn=False)
        n_steps = loaded.replay_buffer.pos.copy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of R2D2, which notices when it goes on
            loaded.learn(22, reset_num_timesteps=False)
        assert (loaded.replay_buffer.episode_steps[n_steps, [0, 1]] == 0).all(), "new episodes begin"


def test_a_checkpoint_is_not_taken_for_a_reset_by_others(tmp_path: Path) -> None:
    """R2D2's actors then reset the environments themselves; the resumed run still equals the one that went on."""
    model = make_r2d2(walks(2))
    model.learn(80, SaveCheckpoints(tmp_path, save_freq=40))
    model.learn(40, reset_num_timesteps=False)
    resumed = R2D2.load_checkpoint(tmp_path / "checkpoint_40", walks(2), device="cpu")  # and NumPy's generator
    for _ in range(2):
        resumed.learn(40, reset_num_timesteps=False)
    assert_same(parameters(model), parameters(resumed))


def test_what_is_no_reset_is_not_noticed() -> None:
    env = counters(2)
    env.reset()
    watch = ResetWatch(env)
    env.seed(0)
    env.set_options({})
    assert not watch.noticed
    env.reset()
    assert watch.noticed
    del env._seeds  # as in vectorized environments of other packages
    assert not ResetWatch(env).noticed


def test_a_new_environment_begins_with_an_empty_memory() -> None:
    model = make_rdqn(counters(length=50), learning_starts=0).learn(8)
    model.set_env(counters(length=50))
    recorder = ActingRecorder()
    model.learn(8, recorder, reset_num_timesteps=False)
    assert not any(field.any() for field in recorder.states[0])


def test_two_calls_of_learn_equal_one_of_twice_the_length() -> None:
    constant = dict(exploration_initial_eps=0.3, exploration_final_eps=0.3, prioritized_replay=True)
    once = make_rdqn(counters(2, length=7), **constant).learn(80)
    twice = make_rdqn(counters(2, length=7), **constant)
    for _ in range(2):
        twice.learn(40, reset_num_timesteps=False)
    assert twice.num_timesteps == 80 and twice._n_updates == once._n_updates > 5
    assert_same(parameters(once), parameters(twice))
    np.testing.assert_array_equal(once.replay_buffer.actions, twice.replay_buffer.actions)


def test_learning_again_explores_again() -> None:
    model = make_rdqn().learn(40)
    assert model.exploration_rate == 0.05
    rates: list[float] = []
    model.learn(40, lambda *_: rates.append(model.exploration_rate) or True)
    assert max(rates[1:]) > 0.8


def test_previous_action_and_reward_are_the_same_in_acting_and_in_training() -> None:
    env = DummyVecEnv([lambda: PreviousActionReward(Counter(5))])
    model, recorder = acted(30, env, trace_length=4, burn_in_length=3)
    batch = model.replay_buffer.sample(64)
    for b in range(64):
        t = int(batch.indices[b])
        n, burn_in = int(batch.mask[:, b].sum()), int(batch.burn_in_lengths[b])
        acting = np.concatenate(recorder.observations[t - burn_in : t + n])
        replayed = th.cat((batch.burn_in_observations[:burn_in, b], batch.observations[:n, b]))
        np.testing.assert_array_equal(replayed, acting)
        # and they are what the agent did and got: one-hot action, then reward, at the observation that follows
        for k in range(n - int(batch.terminations[n - 1, b])):
            previous_action, previous_reward = batch.observations[k + 1, b, 3:5], batch.observations[k + 1, b, 5]
            assert previous_action.argmax() == batch.actions[k, b] and previous_action.sum() == 1
            assert previous_reward == batch.rewards[k, b]


@pytest.mark.parametrize(
    "switches",
    [dict(per_env_epsilons=True), dict(train_freq=(1, "episode"), gradient_steps=-1), dict(optimize_memory_usage=True)],
    ids=str,
)
def test_every_switch_of_acting_trains(switches: dict[str, Any]) -> None:
    """The switches that R2D2 has too are tested for both in ``tests/algorithms``."""
    model = make_rdqn(counters(1 if "train_freq" in switches else 3), **switches)
    before = parameters(model)
    model.learn(90)
    model.replay_buffer.check_valid()
    assert model._n_updates >= 5
    assert not any(th.equal(before[name], value) for name, value in model.policy.state_dict().items()), (
        "every parameter learns"
    )


# ---------------------------------------------------------------- defaults


@pytest.mark.parametrize(
    ("lengths", "burn_in_length"),
    [({}, 40), (dict(trace_length=20), 40), (dict(burn_in_length=3), 3), (dict(trace_length=None), 0)],
    ids=str,
)
def test_whole_episodes_need_no_burn_in_to_be_turned_off(lengths: dict[str, Any], burn_in_length: int) -> None:
    model = RecurrentDQN("MlpPolicy", counters(), buffer_size=200, device="cpu", **lengths)
    assert model.burn_in_length == model.replay_buffer.burn_in_length == burn_in_length


def test_the_burn_in_that_refreshes_old_states_is_on_by_default() -> None:
    """Stored states come from older weights, and under VecNormalize from older statistics."""
    model = RecurrentDQN("MlpPolicy", counters(), device="cpu")
    assert model.stored_state and model.replay_buffer.burn_in_length > 0


def test_an_array_in_place_of_a_dict_is_refused() -> None:
    model = make_rdqn(walks(1, kind="dict"), "MultiInputPolicy")
    with pytest.raises(ValueError, match=r"was given an array, but observations are a Dict with the keys \['a', 'b'\]"):
        model.predict(np.zeros((1, 3), np.float32))
