"""DQN with masks: SB3's where all actions are valid, and never an invalid action."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from stable_baselines3 import DQN
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_attn import R2D2, MaskableDQN, SoftAttentionExtractor
from sb3_attn.zoo.loading import load_model
from tests.helpers.environments import SPACES, Counter, MaskedWalk, masked_walks
from tests.helpers.models import make_r2d2

SMALL = dict(learning_starts=50, target_update_interval=60, buffer_size=300, seed=3, device="cpu")
ADAM = dict(optimizer_kwargs={})  # SB3's, not the fused one, whose rounding differs


def test_it_is_stock_dqn_where_all_actions_are_valid() -> None:
    stock = DQN("MlpPolicy", "CartPole-v1", **SMALL).learn(400)
    ours = MaskableDQN("MlpPolicy", "CartPole-v1", policy_kwargs=ADAM, **SMALL).learn(400)
    assert not ours.use_masking
    theirs, mine = stock.policy.state_dict(), ours.policy.state_dict()
    assert all(th.equal(theirs[name], mine[name]) for name in theirs)
    defaults = DQN("MlpPolicy", "CartPole-v1", buffer_size=100), MaskableDQN("MlpPolicy", "CartPole-v1", buffer_size=100)
    shared = ["learning_starts", "batch_size", "tau", "gamma", "train_freq", "gradient_steps", "target_update_interval"]
    shared += ["exploration_fraction", "exploration_initial_eps", "exploration_final_eps", "max_grad_norm", "learning_rate"]
    assert [getattr(defaults[0], name) for name in shared] == [getattr(defaults[1], name) for name in shared]


@pytest.mark.filterwarnings("ignore:policy=MlpPolicy flattens")
@pytest.mark.parametrize("extractor", [None, SoftAttentionExtractor])
@pytest.mark.parametrize("policy", ["CnnPolicy", "MlpPolicy"])
def test_the_networks_are_those_of_stock_dqn(policy: str, extractor: Any) -> None:
    def env() -> Counter:
        return Counter(space=SPACES["image"])

    kwargs = {} if extractor is None else {"features_extractor_class": extractor}
    stock, ours = (make(policy, DummyVecEnv([env]), policy_kwargs=kwargs, **SMALL) for make in (DQN, MaskableDQN))
    shapes = [[tuple(p.shape) for p in model.q_net.parameters()] for model in (stock, ours)]
    assert shapes[0] == shapes[1]


def test_it_takes_valid_actions_and_needs_no_state(tmp_path: Path) -> None:
    model = MaskableDQN("MlpPolicy", masked_walks(), policy_kwargs=dict(net_arch=[16]), **SMALL).learn(300)
    assert model.use_masking
    model.save(tmp_path / "model")
    loaded = MaskableDQN.load(tmp_path / "model", env=masked_walks())
    evaluate_policy(loaded, masked_walks(1), n_eval_episodes=5, warn=False)  # type: ignore[arg-type]
    for _ in range(3):  # a warning of a lost memory would be an error
        loaded.predict(np.zeros(3, np.float32), action_masks=np.ones(3), deterministic=True)
    assert MaskedWalk.n_invalid == 0


def test_it_takes_our_extractors() -> None:
    kwargs = dict(features_extractor_class=SoftAttentionExtractor)
    model = MaskableDQN("CnnPolicy", DummyVecEnv([lambda: Counter(space=SPACES["image"])]), policy_kwargs=kwargs, **SMALL)
    assert isinstance(model.learn(60).q_net.features_extractor, SoftAttentionExtractor)


def test_more_rewards_than_a_window_has_are_refused() -> None:
    with pytest.raises(ValueError, match=r"n_steps=3, but returns end .* give at least trace_length=3"):
        MaskableDQN("MlpPolicy", "CartPole-v1", n_steps=3, **SMALL)
    assert MaskableDQN("MlpPolicy", "CartPole-v1", n_steps=3, trace_length=3, **SMALL).n_steps == 3


def test_a_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="core='lstm', but MaskableDQN has no memory; use RecurrentDQN"):
        MaskableDQN("MlpPolicy", "CartPole-v1", policy_kwargs=dict(core="lstm"), **SMALL)


def test_its_logs_and_its_zip_have_its_name(tmp_path: Path) -> None:
    model = MaskableDQN("MlpPolicy", "CardOrder-v0", tensorboard_log=str(tmp_path), **SMALL).learn(20)
    assert (tmp_path / "MaskableDQN_1").is_dir()
    model.save(tmp_path / "model")
    assert type(load_model(tmp_path / "model")) is MaskableDQN
    make_r2d2().save(tmp_path / "r2d2")
    assert type(load_model(tmp_path / "r2d2")) is R2D2
