"""Models, names and arguments of earlier versions still work; those versions saved the files in data/former."""

import inspect
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import DQN
from stable_baselines3.common.env_util import make_vec_env

import sb3_attn
from sb3_attn import R2D2, RecurrentDQN
from sb3_attn.r2d2.r2d2 import FORMER_ARGUMENTS
from sb3_attn.recurrent_dqn.safe_loading import read_data

FORMER = Path(__file__).parent / "data" / "former"
ALGORITHMS = {"dqn": DQN, "r2d2": R2D2, "rdqn": RecurrentDQN, "darqn": RecurrentDQN}


def load(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* was not given n_stack")  # as models did then
        return ALGORITHMS[name.partition("_")[0]].load(FORMER / name, device="cpu")


@pytest.mark.parametrize("name", sorted(path.stem for path in FORMER.glob("*.zip")))
def test_a_former_model_has_the_same_q_values(name: str) -> None:
    q_net = load(name).q_net
    with np.load(FORMER / "expected.npz") as expected, th.no_grad():
        obs = th.as_tensor(expected[f"{name}/obs"])  # [T, B, F]
        if name.startswith("dqn"):
            q_values = th.stack([q_net(step) for step in obs])
        else:
            q_values, _ = q_net.unroll(obs, q_net.initial_state(obs.shape[1]))
        np.testing.assert_allclose(q_values.numpy(), expected[f"{name}/q"], rtol=1e-5, atol=1e-6)


def test_former_arguments_in_a_zip() -> None:
    model = load("rdqn")
    assert (model.n_steps, model.per_env_epsilons) == (3, True)
    assert not model.reward_scaling and not model.clipped_double_q and model.trace_tolerance is None
    assert model.policy.acting_net is model.q_net, "it learns on as it was made"
    assert not {"bootstrap_n", "epsilon_ladder"} & vars(model).keys()


@pytest.mark.parametrize("name", ["rdqn", "r2d2"])
def test_every_argument_that_a_former_zip_lacks_has_the_value_of_that_time(name: str) -> None:
    """Whoever adds an argument has to say what earlier models did: in ``former_defaults``, or that today's default is that."""
    algorithm = ALGORITHMS[name]
    saved = {FORMER_ARGUMENTS.get(key, key) for key in read_data(FORMER / name)} | {"policy", "env", "device"}
    arguments = inspect.signature(algorithm).parameters.keys() & vars(load(name)).keys()
    missing = arguments - saved - algorithm.former_defaults.keys()
    assert missing == {"munchausen_alpha", "munchausen_temperature"}
    assert load(name).munchausen_alpha == 0


def test_an_argument_that_a_later_zip_lacks_has_the_value_of_that_time(tmp_path: Path) -> None:
    """Zips told their version before there was ``clipped_double_q``."""
    model = RecurrentDQN("MlpPolicy", "CartPole-v1", buffer_size=1000, device="cpu")
    assert model.clipped_double_q
    model.save(tmp_path / "earlier", exclude=["clipped_double_q"])
    assert not RecurrentDQN.load(tmp_path / "earlier", device="cpu").clipped_double_q
    assert RecurrentDQN.load(tmp_path / "earlier", device="cpu", clipped_double_q=None).clipped_double_q


def test_a_former_replay_buffer() -> None:
    model = load("rdqn")
    model.load_replay_buffer(FORMER / "rdqn_replay")
    buffer = model.replay_buffer
    buffer.check_valid()
    assert not {"n_registered", "_largest_leaf", "_max_priority"} & vars(buffer).keys()
    assert buffer._tree.largest == buffer._tree[np.arange(buffer._tree.capacity)].max() > 0
    model.set_env(make_vec_env("MemoryChain-v0", n_envs=2, env_kwargs=dict(length=6), seed=0))
    n_windows = buffer.n_windows_added
    model.learn(50, reset_num_timesteps=False)
    buffer.check_valid()
    assert buffer.n_windows_added > n_windows
    burnt_in = model.q_net.burn_in(buffer.sample(16))
    assert all(field.isfinite().all() for field in burnt_in)


def test_former_attributes_of_r2d2_in_a_zip() -> None:
    model = load("r2d2")
    assert (model.n_windows_inserted, model.n_windows_sampled, model.actor_update_interval) == (36, 144, 20)
    assert not {"n_inserted", "n_sampled", "weights_period"} & vars(model).keys()


def test_former_arguments_of_r2d2() -> None:
    with pytest.warns(FutureWarning, match="weights_period is now called actor_update_interval"):
        model = R2D2("MlpPolicy", "CartPole-v1", buffer_size=1000, weights_period=7, device="cpu")  # type: ignore[call-arg]
    assert model.actor_update_interval == 7


@pytest.mark.parametrize("algorithm", [RecurrentDQN, R2D2])
def test_former_arguments_of_a_constructor(algorithm: type[RecurrentDQN]) -> None:
    kwargs: dict = dict(bootstrap_n=2, td_lambda=None)
    with pytest.warns(FutureWarning, match="bootstrap_n is now called n_steps"):
        model = algorithm("MlpPolicy", "CartPole-v1", buffer_size=1000, device="cpu", **kwargs)
    assert model.n_steps == 2


def test_a_former_and_a_present_name_together_are_refused() -> None:
    with pytest.raises(TypeError, match="bootstrap_n is the former name of n_steps"):
        RecurrentDQN("MlpPolicy", "CartPole-v1", bootstrap_n=2, n_steps=2)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("former", "present"),
    [
        ("GatedTransformerCore", "GTrXLCore"),
        ("MlpPolicy", "RecurrentDQNPolicy"),
        ("NTMMlpPolicy", "NTMPolicy"),
        ("SoftAttentionCnnPolicy", "SoftAttentionPolicy"),
        ("TransformerExtractor", "GTrXLExtractor"),
        ("TransformerMultiInputPolicy", "GTrXLPolicy"),
    ],
)
def test_former_names_of_classes(former: str, present: str) -> None:
    assert getattr(sb3_attn, former).__name__ == present


def test_former_names_in_the_packages() -> None:
    assert sb3_attn.dqn.NTMMlpPolicy is sb3_attn.NTMPolicy
    assert sb3_attn.extractors.TransformerExtractor is sb3_attn.GTrXLExtractor


@pytest.mark.parametrize(
    ("former", "name"),
    [
        ("sb3_attn.dqn.policies", "TransformerPolicy"),
        ("sb3_attn.extractors.memory", "TransformerExtractor"),
        ("sb3_attn.memory.dnc", "DNCCore"),
        ("sb3_attn.memory.gated_transformer", "GatedTransformerCore"),
        ("sb3_attn.memory.ntm", "NTMCore"),
    ],
)
def test_former_places_of_classes_in_pickles(former: str, name: str) -> None:
    assert pickle.loads(f"c{former}\n{name}\n.".encode()) is getattr(sb3_attn, name)


@pytest.mark.parametrize("name", ["NoSuchPolicy", "NoSuchMlpPolicy", "Policy", "NoSuchExtractor"])
def test_names_that_never_existed_do_not_exist(name: str) -> None:
    with pytest.raises(AttributeError, match=f"'sb3_attn' has no attribute '{name}'"):
        getattr(sb3_attn, name)
