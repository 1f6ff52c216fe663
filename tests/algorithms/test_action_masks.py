"""Action masks, by sb3-contrib's protocol, in acting, replay and targets."""

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_attn import R2D2, FinalActionMasks, RecurrentDQN
from sb3_attn.common import td
from sb3_attn.common.action_masks import leave_valid, mask_values
from sb3_attn.envs import CardOrder
from sb3_attn.replay import SequenceReplayBuffer, SequenceReplayBufferSamples
from sb3_attn.replay.observation_store import MASKS_KEY
from sb3_attn.viz.recording import record_episode
from sb3_attn.zoo.masking import masked_evaluations
from tests.helpers.environments import MaskedWalk, Walk, masked_walks, valid_actions, walks
from tests.helpers.models import Make, assert_same, make_r2d2, make_rdqn, parameters

ALL_RANDOM, GREEDY = ({"exploration_initial_eps": e, "exploration_final_eps": e} for e in (1.0, 0.0))


@pytest.mark.parametrize("exploration", [{}, ALL_RANDOM, GREEDY, {"per_env_epsilons": True}])
def test_no_invalid_action_is_taken(make: Make, exploration: dict[str, Any]) -> None:
    model = make(masked_walks(), **({"per_env_epsilons": False} | exploration)).learn(200)
    assert model.use_masking
    assert MaskedWalk.n_invalid == 0
    masks = valid_actions(model.replay_buffer.observations)[: model.replay_buffer.size()]
    taken = model.replay_buffer.actions[: model.replay_buffer.size(), ..., 0]
    assert np.take_along_axis(masks, taken[..., None], axis=-1).all()
    assert len(np.unique(taken)) == 3  # and all valid ones are


def test_masks_that_are_no_method_are_refused(make: Make) -> None:
    class WithArray(Walk):
        action_masks = np.ones(3, bool)

    with pytest.raises(ValueError, match=r"action_masks of an environment is a ndarray, not a method; .* use_masking=False"):
        make(DummyVecEnv([WithArray] * 2))
    make(DummyVecEnv([WithArray] * 2), use_masking=False).learn(20)


def test_without_masks_invalid_actions_are_taken(make: Make) -> None:
    """So the environment of these tests tells."""
    make(masked_walks(), use_masking=False).learn(100)
    assert MaskedWalk.n_invalid > 0


@pytest.mark.parametrize("normalize", [False, True])
def test_the_replay_has_the_masks_of_its_observations(make: Make, normalize: bool) -> None:
    """Of the next ones and of final ones, too, although the environments have been reset by then."""
    if normalize:
        make = make_rdqn  # actors cannot make a VecNormalize of their own
    model = make(VecNormalize(masked_walks()) if normalize else masked_walks()).learn(300)
    batch = model.replay_buffer.sample(200)
    steps = th.cat((batch.mask, batch.mask[-1:])).clone()
    ends = batch.mask.sum(dim=0)
    terminated = batch.terminations.sum(dim=0) > 0
    steps[ends, th.arange(len(ends))] = ~terminated  # what follows a termination is nothing
    steps[0] = True
    assert not terminated.all()
    assert batch.action_masks is not None
    expected = th.as_tensor(valid_actions(batch.observations))
    assert th.equal(batch.action_masks[steps], expected[steps])
    assert (~batch.action_masks[steps]).any()


def test_dict_observations_have_masks_beside_them(make: Make) -> None:
    class Pairs(MaskedWalk):
        def action_masks(self) -> np.ndarray:
            return np.array([True, *(self.obs["a"] > 0)])

    model = make(DummyVecEnv([partial(Pairs, kind="dict")] * 2), "MultiInputPolicy").learn(100)
    batch = model.replay_buffer.sample(50)
    assert isinstance(batch.observations, dict) and batch.observations.keys() == {"a", "b"}
    assert batch.action_masks is not None
    assert th.equal(batch.action_masks[:-1][batch.mask][:, 1:], (batch.observations["a"] > 0)[:-1][batch.mask])


def test_masks_that_are_all_true_change_nothing(make: Make) -> None:
    """Random actions draw other numbers, so that there are none here."""

    class Free(MaskedWalk):
        def action_masks(self) -> np.ndarray:
            return np.ones(3, bool)

    kwargs = GREEDY | {"per_env_epsilons": False, "learning_starts": 0}
    with_masks, without = (make(DummyVecEnv([env] * 2), **kwargs).learn(200) for env in (Free, Walk))
    assert with_masks.use_masking and not without.use_masking
    assert_same(parameters(with_masks), parameters(without))


def test_a_buffer_of_the_users_need_not_know_of_masks() -> None:
    class Own(SequenceReplayBuffer):
        def __init__(
            self, buffer_size: int, observation_space: Any, action_space: Any, *, device: Any, n_envs: int, **lengths: Any
        ) -> None:
            assert lengths.keys() == {"trace_length", "burn_in_length", "sequence_period", "stored_state"}
            super().__init__(buffer_size, observation_space, action_space, device, n_envs, **lengths)

    assert isinstance(make_rdqn(walks(), replay_buffer_class=Own).learn(40).replay_buffer, Own)


def test_nothing_is_stored_without_masks(make: Make) -> None:
    for model in (make(walks()), make(masked_walks(), use_masking=False)):
        assert not model.use_masking
        assert MASKS_KEY not in model.learn(50).replay_buffer._observations.rings
        assert model.replay_buffer.sample(2).action_masks is None


# ---------------------------------------------------------------- targets


def slow_targets(model: RecurrentDQN, batch: SequenceReplayBufferSamples, online: th.Tensor, target: th.Tensor) -> np.ndarray:
    """Targets by loops over windows, steps and actions, which never look at an invalid action; ``[T, B, N]``."""
    assert batch.action_masks is not None

    def value(t: int, b: int, action: int) -> np.ndarray:
        estimates = [values[t, b, :, action].double().numpy() for values in (target, online)]
        return min(estimates, key=np.mean) if model.clipped_double_q else estimates[0]

    n_steps, n_windows = batch.mask.shape
    targets = np.full((n_steps, n_windows, target.shape[2]), np.nan)
    for b in range(n_windows):
        length = int(batch.mask[:, b].sum())
        rewards, next_values, follows = [], [], []
        for t in range(length):
            reward, alive = float(batch.rewards[t, b]), not batch.terminations[t, b]
            valid = [a for a in range(3) if batch.action_masks[t + 1, b, a]]
            values = {a: target[t + 1, b, :, a].double().numpy() for a in valid}
            chosen = max(valid, key=lambda a: online[t + 1, b, :, a].mean().item()) if alive else valid[0] if valid else 0
            if model.munchausen_alpha > 0:
                tau = model.munchausen_temperature
                here = {a: target[t, b, :, a].mean().item() for a in range(3) if batch.action_masks[t, b, a]}
                log_normalizer = max(here.values()) / tau
                log_normalizer += np.log(sum(np.exp(q / tau - log_normalizer) for q in here.values()))
                reward += model.munchausen_alpha * max(tau * (here[int(batch.actions[t, b])] / tau - log_normalizer), -1.0)
                largest = max((v.mean() for v in values.values()), default=0.0)
                weights = {a: np.exp((v.mean() - largest) / tau) for a, v in values.items()}
                policy = {a: weight / sum(weights.values()) for a, weight in weights.items()}
                soft = [policy[a] * (values[a] - tau * np.log(policy[a])) for a in valid if policy[a] > 0]
                next_value = np.sum(soft, axis=0) if alive else np.zeros(target.shape[2])
            else:
                next_value = value(t + 1, b, chosen) if alive else np.zeros(target.shape[2])
            rewards.append(reward)
            next_values.append(next_value)
            greedy = value(t + 1, b, chosen).mean() if alive else 0.0
            if t + 1 < length:
                taken = value(t + 1, b, int(batch.actions[t + 1, b])).mean()
                tolerance = model.trace_tolerance
                follows.append(tolerance is None or taken >= greedy - tolerance * abs(greedy) - 1e-6)
        for t in range(length):
            if model.td_lambda is None:
                n = min(model.n_steps, length - t)
                total = model.gamma**n * next_values[t + n - 1]
                targets[t, b] = total + sum(model.gamma**k * rewards[t + k] for k in range(n))
        if model.td_lambda is not None:
            for t in reversed(range(length)):
                last = t == length - 1
                weight = 0.0 if last else model.td_lambda * follows[t]
                rest = 0.0 if last else targets[t + 1, b]
                targets[t, b] = rewards[t] + model.gamma * ((1 - weight) * next_values[t] + weight * rest)
    return targets


@pytest.mark.parametrize("head", ["expected", "quantile"])
@pytest.mark.parametrize(
    "kind",
    [
        {"td_lambda": None},
        {"td_lambda": None, "n_steps": 3},
        {"td_lambda": 0.8, "trace_tolerance": None},
        {"td_lambda": 0.8, "trace_tolerance": 0.0},
        {"td_lambda": 0.8, "munchausen_alpha": 0.9, "munchausen_temperature": 0.5, "trace_tolerance": None},
        {"td_lambda": 0.8, "trace_tolerance": 0.5, "clipped_double_q": False},
        {"td_lambda": None, "double_q": False},
    ],
    ids=str,
)
def test_targets_equal_those_of_loops_over_valid_actions(head: str, kind: dict[str, Any]) -> None:
    head_kwargs = {"n_values": 4} if head == "quantile" else None
    model = make_rdqn(
        masked_walks(),
        learning_starts=10**6,
        reward_scaling=False,
        policy_kwargs={"head": head, "head_kwargs": head_kwargs},
        **kind,
    ).learn(100)
    batch = model.replay_buffer.sample(40)
    shape = (*batch.observations.shape[:2], 4 if head == "quantile" else 1, 3)
    online, target = th.randn(2, *shape, generator=th.Generator().manual_seed(0)).unbind()
    if not model.double_q:
        online = target
    targets, mask = model._targets(batch, online, target).numpy(), batch.mask.numpy()
    np.testing.assert_allclose(targets[mask], slow_targets(model, batch, online, target)[mask], rtol=1e-4, atol=1e-4)
    assert not np.isnan(targets[mask]).any()


def test_rows_without_a_valid_action_keep_their_values() -> None:
    """After the last step of an episode: finite, so that no NaN arises there."""
    values, masks = th.arange(6.0).reshape(2, 3), np.array([[False] * 3, [True, False, True]])
    assert mask_values(values, th.from_numpy(leave_valid(masks, [3]))).tolist() == [[0, 1, 2], [3, -np.inf, 5]]
    assert leave_valid(masks, [1, 2]).tolist() == [[True] * 3, [True, False, True]]
    assert leave_valid(masks[1:], [2, 1]).tolist() == masks[1:].tolist()
    assert mask_values(values, None) is values


def test_soft_values_do_not_see_actions_of_minus_infinity() -> None:
    values = th.tensor([1.0, 2.0, -th.inf])
    soft = td.soft_values(values.reshape(1, 1, 1, 3), 0.5)
    assert soft.item() == pytest.approx(td.soft_values(values[:2].reshape(1, 1, 1, 2), 0.5).item())


# ---------------------------------------------------------------- protocol


def test_contrib_evaluates_with_masks(make: Make) -> None:
    model = make(masked_walks())
    MaskedWalk.n_invalid = 0
    evaluate_policy(model, masked_walks(1), n_eval_episodes=5, warn=False)  # type: ignore[arg-type]
    evaluate_policy(model, masked_walks(1), n_eval_episodes=5, deterministic=False, warn=False)  # type: ignore[arg-type]
    model.learn(60, MaskableEvalCallback(masked_walks(1), eval_freq=20, verbose=0, warn=False))
    assert MaskedWalk.n_invalid == 0


def test_the_memory_goes_on_in_contribs_evaluation() -> None:
    """Which gives masks and episode starts, but not the state that ``predict`` has returned."""
    model = make_rdqn(masked_walks())
    observations = np.random.default_rng(0).normal(size=(6, 2, 3)).astype(np.float32)
    starts = [[True, True], [False, False], [False, False], [True, False], [False, False], [False, False]]
    state, states, kept = None, [], []
    for obs, start in zip(observations, starts, strict=True):
        _, state = model.predict(obs, state, np.array(start), True, np.ones((2, 3)))
        states.append(state)
    for obs, start in zip(observations, starts, strict=True):
        _, state = model.predict(obs, None, np.array(start), True, np.ones((2, 3)))
        kept.append(state)
    np.testing.assert_array_equal(states, kept)


def test_an_action_masker_is_enough(make: Make) -> None:
    def masks(env: gym.Env) -> np.ndarray:
        return np.array([False, True, False])

    model = make(DummyVecEnv([lambda: ActionMasker(Walk(), masks)] * 2)).learn(100)
    assert set(model.replay_buffer.actions[: model.replay_buffer.size()].flat) == {1}


@pytest.mark.parametrize("deterministic", [True, False])
def test_predict_takes_valid_actions(deterministic: bool) -> None:
    model = make_rdqn(masked_walks(), **ALL_RANDOM)
    obs = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    masks = valid_actions(obs)
    actions, _ = model.predict(obs, deterministic=deterministic, action_masks=masks)
    assert masks[np.arange(30), actions].all()
    start = dict(episode_start=np.ones(1, bool), deterministic=deterministic)
    assert model.predict(obs[0], action_masks=np.array([False, False, True]), **start)[0] == 2
    with pytest.raises(
        ValueError, match=r"action_masks has shape \(2, 3\), but there are 1 observations; give .* each of the 3 actions"
    ):
        model.predict(obs[0], action_masks=masks[:2], **start)
    with pytest.raises(ValueError, match="has no valid action in row 0"):
        model.predict(obs[0], action_masks=np.zeros(3, bool), **start)
    with pytest.warns(UserWarning, match="without action_masks"):
        model.predict(obs[0], **start)


def test_masks_that_cannot_be_are_refused(make: Make) -> None:
    class Wrong(MaskedWalk):
        wrong_masks: Any = [True, False]

        def action_masks(self) -> np.ndarray:
            return np.array(self.wrong_masks) if self.steps == 1 else super().action_masks()

    with pytest.raises(ValueError, match=r"action_masks\(\) returned shape \(2,\) (at step \d+|of actor \d); return one bool"):
        make(DummyVecEnv([Wrong])).learn(50)
    Wrong.wrong_masks = [False] * 3
    with pytest.raises(ValueError, match=r"action_masks\(\) of environment 0 has no valid action (at step \d+|of actor \d)"):
        make(DummyVecEnv([Wrong])).learn(50)
    with pytest.raises(ValueError, match=r"use_masking=True, but the environments have no method action_masks\(\)"):
        make(walks(), use_masking=True)


def test_a_truncation_without_final_masks_has_no_target(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in environments of other processes without the wrapper: the masks are those of the next episode."""
    monkeypatch.setattr(FinalActionMasks, "step", lambda self, action: self.env.step(action))
    model = make(masked_walks())
    with pytest.warns(UserWarning, match="wrap each environment in sb3_attn.FinalActionMasks"):
        model.learn(200)
    model.replay_buffer.check_valid()
    assert model.replay_buffer._observations.finals
    for final in model.replay_buffer._observations.finals.values():
        assert np.array_equal(final[MASKS_KEY], valid_actions(final["observation"]))


def test_a_zip_keeps_masks_and_a_replay_without_them_is_refused(make: Make, tmp_path: Path) -> None:
    model = make(masked_walks()).learn(100)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "replay")
    loaded = type(model).load(tmp_path / "model", env=masked_walks())
    assert loaded.use_masking
    loaded.load_replay_buffer(tmp_path / "replay")
    loaded.learn(100, reset_num_timesteps=False)
    assert MaskedWalk.n_invalid == 0
    assert type(model).load(tmp_path / "model").use_masking
    with pytest.raises(ValueError, match="use_masking=True, but this model needs use_masking=False"):
        make(masked_walks(), use_masking=False).load_replay_buffer(tmp_path / "replay")


def test_an_environment_alone_is_wrapped_once(make: Make) -> None:
    model = make(masked_walks()).learn(20).learn(20, reset_num_timesteps=False)
    env = model.get_env()
    if isinstance(model, R2D2) and model.n_actors:
        return  # its actors have environments of their own
    assert isinstance(env, DummyVecEnv)
    for each in env.envs:
        assert isinstance(each, FinalActionMasks) and not isinstance(each.env, FinalActionMasks)


def test_masks_are_not_asked_for_after_a_termination(make: Make) -> None:
    class Strict(MaskedWalk):
        over = False

        def reset(self, **kwargs: Any) -> tuple[Any, dict]:
            self.over = False
            return super().reset(**kwargs)

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
            result = super().step(action)
            self.over = result[2]
            return result

        def action_masks(self) -> np.ndarray:
            assert not self.over, "nobody is to move"
            return super().action_masks()

    assert make(DummyVecEnv([Strict] * 2)).learn(100).use_masking


def test_an_environment_that_fails_may_have_no_masks() -> None:
    class Fragile(MaskedWalk):
        is_broken = False

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
            if self.np_random.random() < 0.1:
                self.is_broken = True
                raise RuntimeError("broken")
            return super().step(action)

        def action_masks(self) -> np.ndarray:
            assert not self.is_broken
            return super().action_masks()

    model = make_r2d2(Fragile, n_actors=1, max_env_restarts=1000)
    assert model.learn(80).step_ledger.n_steps_rejected["the environment failed"] > 3


def test_a_vec_env_that_gives_no_attributes_has_no_masks() -> None:
    class Mute(DummyVecEnv):
        def has_attr(self, attr_name: str) -> bool:
            raise NotImplementedError

    assert not make_rdqn(Mute([Walk])).learn(30).use_masking


def test_environments_that_come_later_need_masks_too(make: Make) -> None:
    model = make(masked_walks())
    model.set_env(walks())
    with pytest.raises(ValueError, match=r"use_masking=True, but the environments have no method action_masks\(\)"):
        model.learn(20)


def test_final_masks_of_a_wrong_shape_are_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(self: FinalActionMasks, action: Any) -> tuple[Any, Any, bool, bool, dict]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward, terminated, truncated, info | {"action_masks": [True, False]}

    monkeypatch.setattr(FinalActionMasks, "step", step)
    with pytest.raises(ValueError, match=r"\['action_masks'\] has shape \(2,\); give one bool for each of the 3 actions"):
        make(masked_walks()).learn(100)


def test_a_state_of_another_number_of_environments_is_not_gone_on_with() -> None:
    model = make_rdqn(masked_walks())
    model.predict(np.zeros((1, 3)), episode_start=np.ones(1, bool), action_masks=np.ones((1, 3)), deterministic=True)
    starts = np.array([True, False])
    _, state = model.predict(np.zeros((2, 3)), episode_start=starts, action_masks=np.ones((2, 3)), deterministic=True)
    assert len(state[0]) == 2


def test_recorded_episodes_have_valid_actions(make: Make) -> None:
    model = make(DummyVecEnv([CardOrder] * 2))
    assert len(record_episode(model, CardOrder(), sources=[])) == 10


def test_the_evaluations_of_the_zoo_give_masks() -> None:
    model = make_rdqn(masked_walks())
    with masked_evaluations():
        model.learn(60, EvalCallback(masked_walks(1), eval_freq=10, verbose=0, warn=False))
        make_rdqn(walks()).learn(40, EvalCallback(walks(1), eval_freq=10, verbose=0, warn=False))
    assert MaskedWalk.n_invalid == 0
    with pytest.warns(UserWarning, match="without action_masks"):
        model.learn(20, EvalCallback(masked_walks(1), eval_freq=5, verbose=0, warn=False))
    assert MaskedWalk.n_invalid > 0
