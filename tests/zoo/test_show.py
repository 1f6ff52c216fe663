"""The commands ``show`` and ``ball`` on models of all kinds."""

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("matplotlib")
imageio = pytest.importorskip("imageio.v2")
pytest.importorskip("imageio_ffmpeg")

import ale_py
import gymnasium as gym
from sb3_contrib import QRDQN, TRPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3, HerReplayBuffer
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

import sb3_attn.envs  # noqa: F401  # registers the tasks
from sb3_attn import NTMExtractor, RecurrentDQN, SoftAttentionExtractor
from sb3_attn.viz import write_page, write_video
from sb3_attn.zoo import cli
from sb3_attn.zoo.loading import LOADABLE, NOT_NEEDED, load_model

gym.register_envs(ale_py)

SEARCH = "VisualSearch-v0"
CHAIN = "MemoryChain-v0"
EXTRACTOR = dict(features_extractor_class=SoftAttentionExtractor)
SMALL = dict(
    **EXTRACTOR, features_extractor_kwargs=dict(features_dim=8, trunk=[(4, 16, 12)], channels_last=False), net_arch=[]
)
RAW = dict(frameskip=1, repeat_action_probability=0.0)


def save(folder, algorithm=DQN, env=SEARCH, policy="MlpPolicy", policy_kwargs=SMALL):
    on_policy = issubclass(algorithm, OnPolicyAlgorithm)
    sizes = dict(n_steps=4) if algorithm is A2C else dict(n_steps=4, batch_size=4) if on_policy else dict(buffer_size=200)
    model = algorithm(policy, env, policy_kwargs=policy_kwargs, device="cpu", seed=0, **sizes)
    model.save(folder / "model.zip")
    return str(folder / "model.zip")


def fails(arguments) -> str:
    with pytest.raises(SystemExit) as error:
        cli.main([str(argument) for argument in arguments])
    return str(error.value)


@pytest.mark.parametrize("algorithm", [DQN, PPO, QRDQN, RecurrentDQN])
def test_a_plain_model_is_shown(algorithm, tmp_path, capsys):
    path = save(tmp_path, algorithm)
    arguments = ["show", path, "--env", SEARCH, "--out", str(tmp_path / "out"), "--episodes", "2", "--occlusion", "1"]
    assert cli.main(arguments) == 0
    output = capsys.readouterr().out
    assert "Episode 2: 1 steps" in output and "entropy" in output
    written = {f"episode_{number}{ending}" for number in (1, 2) for ending in (".npz", "_occlusion.png")}
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"contact_sheet.png", *written}


def test_sixteen_episodes_are_shown_if_they_are_over_at_once(tmp_path, capsys):
    path = save(tmp_path, policy_kwargs=None, policy="CnnPolicy")
    assert cli.main(["show", path, "--env", SEARCH, "--out", str(tmp_path / "out")]) == 0
    assert "Episode 16:" in (output := capsys.readouterr().out) and "Episode 17:" not in output
    assert len(list((tmp_path / "out").glob("*.npz"))) == 16


def test_arguments_reach_the_environment_and_the_recording(tmp_path):
    path = save(tmp_path, RecurrentDQN, CHAIN, policy_kwargs=EXTRACTOR)
    out = tmp_path / "out"
    arguments = ["show", path[:-4], "--env", CHAIN, "--out", str(out), "--format", "gif", "--env-kwargs", "length:4"]
    assert cli.main([*arguments, "--algo", "rdqn", "--no-render"]) == 0
    with np.load(out / "episode_1.npz") as arrays:
        assert len(arrays["rewards"]) == 6  # a cue, four blanks, the answer
    with imageio.get_reader(out / "episode_1_attention.gif") as reader:
        assert len(list(reader)) == 6
    assert cli.main([*arguments, "--steps", "2", "--no-render", "--episodes", "2"]) == 0
    for number in (1, 2):
        with np.load(out / f"episode_{number}.npz") as arrays:
            assert len(arrays["rewards"]) == 2
        assert f'href="episode_{number}.html"' in (out / "index.html").read_text(encoding="utf-8")


def test_files_of_an_earlier_recording_are_mentioned(tmp_path, capsys):
    path, out = save(tmp_path, RecurrentDQN, CHAIN, policy_kwargs={}), tmp_path / "out"
    arguments = ["show", path, "--env", CHAIN, "--out", str(out), "--format", "html", "--steps", "2", "--no-render"]
    assert cli.main([*arguments, "--episodes", "2"]) == 0
    assert cli.main([*arguments, "--episodes", "2"]) == 0
    assert "earlier recording" not in capsys.readouterr().out
    assert cli.main(arguments) == 0
    assert "an earlier recording, such as episode_2.html" in capsys.readouterr().out
    assert (out / "episode_2.npz").is_file()


def test_a_memory_is_shown(tmp_path, capsys):
    path = save(tmp_path, RecurrentDQN, CHAIN, policy_kwargs=dict(core="dnc"))
    arguments = ["--env", CHAIN, "--env-kwargs", "length:2", "--no-render", "--format", "gif"]
    assert cli.main(["show", path, "--out", str(tmp_path / "core"), *arguments]) == 0
    output = capsys.readouterr().out
    assert "memory_read, head 4: entropy" in output and ", sum 0." in output and "usage" not in output
    written = {"read": ("curves", "tokens"), "write": ("curves", "tokens"), "usage": ("tokens",), "link": ("matrices",)}
    pictures = {f"episode_1_memory_{name}_{kind}.png" for name, kinds in written.items() for kind in kinds}
    videos = {f"episode_1_memory_{name}.gif" for name in written}
    assert {file.name for file in (tmp_path / "core").iterdir()} == {
        "episode_1.npz",
        "episode_1.html",
        "episode_1_values.png",
        *pictures,
        *videos,
    }
    with imageio.get_reader(tmp_path / "core" / "episode_1_memory_link.gif") as reader:
        assert len(list(reader)) == 4


def test_a_memory_over_frames_is_shown(tmp_path):
    kwargs = dict(features_extractor_class=NTMExtractor, features_extractor_kwargs=dict(n_stack=3, features_dim=8))
    path = save(tmp_path, env=VecFrameStack(make_vec_env(CHAIN), 3), policy_kwargs=kwargs)
    arguments = ["--env", CHAIN, "--env-kwargs", "length:1", "--no-render", "--format", "gif"]
    assert cli.main(["show", path, "--out", str(tmp_path / "out"), *arguments]) == 0
    with np.load(tmp_path / "out" / "episode_1.npz") as arrays:
        assert arrays["frames_write/weights"].shape == (3, 1, 3, 32)
    assert (tmp_path / "out" / "episode_1_frames_read_matrices.png").stat().st_size > 0


def test_frames_are_stacked_as_the_model_saw_them(tmp_path):
    path = save(tmp_path, env=VecFrameStack(make_vec_env(SEARCH), 3))
    assert cli.main(["show", path, "--env", SEARCH, "--out", str(tmp_path / "out"), "--format", "html"]) == 0
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"episode_1.npz", "episode_1.html"}


def test_statistics_of_vec_normalize(tmp_path):
    env = VecNormalize(make_vec_env("CartPole-v1"))
    env.obs_rms.mean += 100.0
    env.save(str(tmp_path / "normalize.pkl"))
    path = save(tmp_path, env=env, policy_kwargs=EXTRACTOR)
    weights = []
    for extra in ([], ["--vec-normalize", str(tmp_path / "normalize.pkl")]):
        arguments = ["show", path, "--env", "CartPole-v1", "--out", str(tmp_path), "--steps", "3", "--no-render"]
        assert cli.main([*arguments, *extra]) == 0
        with np.load(tmp_path / "episode_1.npz") as arrays:
            weights.append(arrays["attention/weights"])
    assert np.abs(weights[0][0] - weights[1][0]).max() > 1e-3


@pytest.fixture(scope="module")
def atari_model(tmp_path_factory):
    env = VecFrameStack(make_atari_env("ALE/Breakout-v5", 1, seed=0, env_kwargs=RAW), 4)
    return save(tmp_path_factory.mktemp("atari"), env=env, policy="CnnPolicy", policy_kwargs=EXTRACTOR)


def test_atari_and_the_ball(atari_model, tmp_path, capsys):
    env = ["--env", "ALE/Breakout-v5", "--env-kwargs", "frameskip:1", "repeat_action_probability:0.0"]
    assert cli.main(["show", atari_model, *env, "--out", str(tmp_path), "--steps", "5"]) == 0
    assert cli.main(["ball", atari_model, *env, "--steps", "25", "--stochastic"]) == 0
    assert "of 25 frames have the ball in play" in capsys.readouterr().out
    assert "env='ALE/Tennis-v5': only of Pong and Breakout" in fails(["ball", atari_model, "--env", "ALE/Tennis-v5"])


def test_the_settings_of_a_training_run_are_used(tmp_path, capsys):
    pytest.importorskip("rl_zoo3")
    save(tmp_path, env=VecFrameStack(make_vec_env("CartPole-v1"), 2), policy_kwargs=EXTRACTOR)
    settings = tmp_path / "CartPole-v1"
    settings.mkdir()
    (settings / "config.yml").write_text("normalize: true\nframe_stack: 2\nenv_wrapper: custom.Wrapper\n")
    (settings / "args.yml").write_text("env_kwargs: {sutton_barto_reward: true}\n")
    arguments = ["show", tmp_path / "model.zip", "--env", "CartPole-v1", "--out", tmp_path, "--no-render"]
    assert "config.yml needs custom.Wrapper" in fails(arguments)
    with pytest.raises(ModuleNotFoundError, match="custom"):
        cli.main([*map(str, arguments), "--trust=custom.Wrapper"])
    (settings / "config.yml").write_text("normalize: true\nframe_stack: 2\n")
    assert "vecnormalize.pkl not found" in fails(arguments)
    env = VecNormalize(make_vec_env("CartPole-v1"))
    env.save(str(settings / "vecnormalize.pkl"))
    assert "has its own; leave it out" in fails([*arguments, "--vec-normalize", settings / "vecnormalize.pkl"])
    assert cli.main([str(argument) for argument in arguments]) == 0
    assert "Stacking 2 frames" in capsys.readouterr().out
    with np.load(tmp_path / "episode_1.npz") as arrays:
        assert set(arrays["rewards"]) == {0.0, -1.0}  # as sutton_barto_reward has it


def test_errors_end_the_command_with_a_sentence(tmp_path):
    out = ["--out", tmp_path / "out"]
    path = save(tmp_path)
    assert "There is no model" in fails(["show", tmp_path / "none.zip", "--env", SEARCH, *out])
    unknown = fails(["show", path, "--env", "Serach-v0", *out])
    assert "env='Serach-v0' is unknown" in unknown and "install the zoo extra for those of RL Zoo" in unknown
    assert "does not fit the model" in fails(["show", path, "--env", "CartPole-v1", *out])
    assert "algo='ppo' does not have such a policy; give dqn" in fails(["show", path, "--env", SEARCH, "--algo", "ppo", *out])
    assert "algo='dnq' is unknown; give dqn" in fails(["show", path, "--env", SEARCH, "--algo", "dnq", *out])
    assert "is not a key:value" in fails(["show", path, "--env", SEARCH, "--env-kwargs", "length=5", *out])
    assert "\033" not in fails(["show", path, "--env", "Search\033[2J-v0", *out])
    (tmp_path / "text.zip").write_text("text")
    assert "is damaged, or is not a zip file of SB3" in fails(["show", tmp_path / "text.zip", "--env", SEARCH, *out])
    path = save(tmp_path, env="CartPole-v1", policy_kwargs=EXTRACTOR)
    wrong = fails(["show", path, "--env", "CartPole-v1", *out, "--names", "x", "v"])
    assert "names=['x', 'v'] has 2 names, but this model attends to 4 entries of vectors; give as many" in wrong
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fps", ["-1", "0", "nan", "inf", "fast"])
def test_other_frames_per_second_are_refused_before_anything_is_recorded(fps, tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["show", "model.zip", "--fps", fps])
    assert f"argument --fps: '{fps}' has to be a finite number above 0" in capsys.readouterr().err
    if fps != "fast":
        with pytest.raises(ValueError, match=rf"fps={float(fps)} has to be a finite number above 0\."):
            write_video(tmp_path / "video.gif", [], float(fps))
        with pytest.raises(ValueError, match=rf"fps={float(fps)} has to be a finite number above 0\."):
            write_page(tmp_path / "page.html", None, "title", float(fps))
        assert not list(tmp_path.iterdir())


def test_arguments_that_cannot_be_used(tmp_path):
    path = save(tmp_path, env="CartPole-v1", policy_kwargs=None)
    arguments = ["show", path, "--env", "CartPole-v1"]
    assert "unexpected keyword argument 'foo'" in fails([*arguments, "--env-kwargs", "foo:3", "--out", tmp_path / "out"])
    for out in (path, f"{path}/out"):
        assert f"--out {out} cannot be made a folder (" in fails([*arguments, "--out", out])
    assert [file.name for file in tmp_path.iterdir()] == ["model.zip"]


def test_a_model_without_attention_is_shown(tmp_path):
    path = save(tmp_path, env="CartPole-v1", policy_kwargs=None)
    assert cli.main(["show", path, "--env", "CartPole-v1", "--out", str(tmp_path / "dqn")]) == 0
    assert "have none; leave it out" in fails(["show", path, "--env", "CartPole-v1", "--occlusion", "1"])
    assert "this model is a DQN" in fails(["show", path, "--env", "CartPole-v1", "--recall"])
    path = save(tmp_path, RecurrentDQN, CHAIN, policy_kwargs=dict(core="gru"))
    assert cli.main(["show", path, "--env", CHAIN, "--out", str(tmp_path / "gru"), "--recall"]) == 0
    for name, endings in {"dqn": ("values",), "gru": ("states", "values", "recall")}.items():
        written = {"episode_1.npz", "episode_1.html", *(f"episode_1_{ending}.png" for ending in endings)}
        assert {file.name for file in (tmp_path / name).iterdir()} == written


def test_dqn_does_not_take_a_recurrent_model_whose_memory_it_would_drop(tmp_path):
    path = save(tmp_path, RecurrentDQN)
    with pytest.raises(ValueError, match="algo='dqn' does not have such a policy; give rdqn, or leave it out"):
        load_model(path, "dqn")


@pytest.mark.parametrize("name", ["a2c", "trpo", "ppo_lstm", "maskable_ppo", "sac", "td3"])
def test_models_of_other_algorithms_are_loaded(name, tmp_path):
    algorithm = LOADABLE[name]
    env = "Pendulum-v1" if algorithm in (SAC, TD3) else "CardOrder-v0"
    path = save(tmp_path, algorithm, env, "MlpLstmPolicy" if name == "ppo_lstm" else "MlpPolicy", policy_kwargs=None)
    assert type(load_model(path, name)) is algorithm
    # The zips of A2C and TRPO do not tell them from PPO's, whose models act alike
    assert type(load_model(path)) is (PPO if algorithm in (A2C, TRPO) else algorithm)
    assert cli.main(["show", path, "--env", env, "--out", str(tmp_path), "--steps", "2", "--no-render"]) == 0
    assert (tmp_path / "episode_1_values.png").exists()
    assert (tmp_path / "episode_1_states.png").exists() is (algorithm is RecurrentPPO)


def test_a_model_with_hindsight_replay_is_loaded(tmp_path):
    env = BitFlippingEnv(n_bits=2, continuous=False)
    model = DQN("MultiInputPolicy", env, replay_buffer_class=HerReplayBuffer, replay_buffer_kwargs=dict(n_sampled_goal=2))
    model.save(tmp_path / "her")
    for trust in (False, True):
        assert load_model(tmp_path / "her", "dqn", trust=trust).predict(env.reset()[0])[0] in (0, 1)
    assert "replay_buffer_class" not in NOT_NEEDED  # other models keep theirs


@pytest.mark.parametrize(("missing", "extra"), [("imageio", "viz"), ("rl_zoo3", None)])
def test_show_needs_only_the_viz_extra(missing, extra, tmp_path):
    path = save(tmp_path)
    code = f"import sys; sys.modules[{missing!r}] = None; from sb3_attn.zoo.cli import main; sys.exit(main())"
    arguments = ["show", path, "--env", SEARCH, "--out", str(tmp_path / "out"), "--episodes", "2"]
    process = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    if extra is None:
        assert process.returncode == 0, process.stderr
    else:
        assert process.returncode == 1 and "Traceback" not in process.stderr
        assert (
            f'needs {missing}, which is not installed; install the viz extra with pip install "sb3_attn[viz]"'
            in process.stderr
        )
