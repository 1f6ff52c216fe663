"""The policy acts with an average of the online network's parameters; learning does not."""

from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_attn import RecurrentDQN
from tests.helpers.environments import counters
from tests.helpers.models import make_rdqn


def vector(net: th.nn.Module) -> th.Tensor:
    return th.cat([parameter.detach().flatten() for parameter in net.parameters()])


def test_the_average_is_that_of_the_parameters_after_each_update(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_rdqn(policy_kwargs=dict(ema_decay=0.8), gradient_steps=3)
    seen: list[th.Tensor] = []
    step = model.policy.optimizer.step

    def noted_step(*args: Any) -> None:
        step(*args)
        seen.append(vector(model.q_net))

    monkeypatch.setattr(model.policy.optimizer, "step", noted_step)
    model.learn(60)
    expected = seen[0]
    for parameters in seen[1:]:
        expected = 0.8 * expected + 0.2 * parameters
    assert len(seen) > 10
    th.testing.assert_close(vector(model.policy.acting_net), expected)
    assert not th.allclose(expected, seen[-1])


def with_opposite_networks() -> RecurrentDQN:
    """After some updates, the average prefers action 1 everywhere, the online network action 0."""
    model = make_rdqn(policy_kwargs=dict(ema_decay=0.9)).learn(40)
    with th.no_grad():
        for net, action in ((model.policy.acting_net, 1), (model.q_net, 0)):
            net.q_net[-1].weight.zero_()
            net.q_net[-1].bias.zero_()
            net.q_net[-1].bias[1 + action] = 1.0
    return model


def test_predict_acts_with_the_average_and_exploration_with_the_online_network() -> None:
    model = with_opposite_networks()
    obs = model.env.reset()
    assert model.predict(obs, deterministic=True)[0] == 1
    model._last_obs, model._last_episode_starts, model.exploration_rate = obs, np.ones(1, bool), 0.0
    model._reset_watch = None  # the reset above was ours
    assert model._sample_action(learning_starts=0)[0] == 0


def test_an_untrained_model_acts_with_the_online_network() -> None:
    model = make_rdqn()
    assert model.policy.acting_net is model.q_net


def test_without_a_decay_there_is_no_average() -> None:
    model = make_rdqn(policy_kwargs=dict(ema_decay=0.0)).learn(40)
    assert model.policy.acting_net is model.q_net and not any("ema" in name for name in model.policy.state_dict())


def test_the_average_is_saved(tmp_path: Any) -> None:
    model = with_opposite_networks()
    model.save(tmp_path / "model")
    loaded = RecurrentDQN.load(tmp_path / "model", env=counters(), device="cpu")
    assert loaded.predict(loaded.env.reset(), deterministic=True)[0] == 1
    assert th.equal(vector(loaded.q_net), vector(model.q_net))
    before = vector(loaded.policy.acting_net)
    loaded.learn(40)
    assert not th.equal(before, vector(loaded.policy.acting_net)), "training goes on"


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=f"ema_decay={decay} must lie in"):
        make_rdqn(policy_kwargs=dict(ema_decay=decay))


def test_parameters_without_an_average_begin_it_anew() -> None:
    without = make_rdqn(policy_kwargs=dict(ema_decay=0.0)).learn(40)
    model = make_rdqn(policy_kwargs=dict(ema_decay=0.9), seed=1).learn(40)
    model.set_parameters(without.get_parameters())
    th.testing.assert_close(vector(model.policy.acting_net), vector(without.q_net), rtol=0, atol=0)
    assert model.policy.acting_net is model.q_net
