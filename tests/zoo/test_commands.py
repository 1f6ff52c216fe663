"""The commands with RL Zoo's real programs: training runs, agents, videos, searches."""

import re
import zipfile
from itertools import pairwise
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import yaml
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

import sb3_attn.envs  # noqa: F401  # registers the tasks
from sb3_attn import R2D2, MaskableDQN, RecurrentDQN
from sb3_attn.zoo import ALGORITHMS, cli, zoo_config_path
from sb3_attn.zoo.run_folders import load_settings
from tests.helpers.environments import POLICIES, Walk
from tests.helpers.processes import ENV_ID, TrainingRun, run_module, run_python

AGENT = ("--algo", "rdqn", "--env", ENV_ID)


def test_train_leaves_a_zip_and_its_settings(training_run: TrainingRun) -> None:
    assert zipfile.is_zipfile(training_run.folder / f"{ENV_ID}.zip")
    assert (training_run.folder / "best_model.zip").exists()
    assert len(list(training_run.folder.glob("*.monitor.csv"))) == 2
    assert (training_run.folder / "rl_model_600_steps.zip").exists()
    arguments = (training_run.folder / ENV_ID / "args.yml").read_text()
    assert str(zoo_config_path("rdqn")) in arguments
    assert "subproc" in arguments
    settings = yaml.load((training_run.folder / ENV_ID / "config.yml").read_text(), Loader=yaml.UnsafeLoader)
    assert settings["policy_kwargs"]["core"] == "lstm"


def test_the_zip_loads_and_is_evaluated_by_sb3(training_run: TrainingRun) -> None:
    model = RecurrentDQN.load(training_run.folder / f"{ENV_ID}.zip", device="cpu")
    vec_env = make_vec_env(ENV_ID, n_envs=3, env_kwargs={"length": 5})
    mean, _ = evaluate_policy(model, vec_env, n_eval_episodes=10)
    assert -1 <= mean <= 1


def test_enjoy_plays_the_trained_agent(training_run: TrainingRun, monkeypatch, capsys) -> None:
    monkeypatch.chdir(training_run.root)
    assert cli.main(["enjoy", *AGENT, "--no-render", "-n", "80"]) == 0
    assert "Mean reward" in capsys.readouterr().out


def test_arguments_that_the_environment_lacks(training_run: TrainingRun, tmp_path: Path) -> None:
    agent = [*AGENT, "-f", str(training_run.root / "logs"), "--env-kwargs", "foo:3"]
    for command in (["enjoy", "--no-render"], ["record-video", "-o", str(tmp_path)], ["show", "--out", str(tmp_path)]):
        with pytest.raises(SystemExit, match=rf"^sb3-attn {command[0]}: .* argument 'foo'.*; correct its name"):
            cli.main([*command, *agent])


def test_enjoy_carries_the_memory(training_run: TrainingRun, monkeypatch) -> None:
    # A trained agent acts from its memory; that needs each predict() to get what the last one returned.
    received = []
    predict = RecurrentDQN.predict

    def spy(self, observation, state=None, episode_start=None, deterministic=False):
        result = predict(self, observation, state, episode_start, deterministic)
        received.append((state, bool(episode_start[0]), result[1]))
        return result

    monkeypatch.setattr(RecurrentDQN, "predict", spy)
    cli.main(["enjoy", *AGENT, "-f", str(training_run.root / "logs"), "--no-render", "-n", "20", "--device", "cpu"])
    assert len(received) == 20
    assert received[0][0] is None
    assert received[0][1]
    for (_, _, returned), (state, _, _) in pairwise(received):
        np.testing.assert_equal(state, returned)
    assert 1 < sum(start for _, start, _ in received) < 20


def test_training_goes_on_from_a_zip_and_its_replay_buffer(training_run: TrainingRun, tmp_path: Path, capsys) -> None:
    model_path = training_run.folder / f"{ENV_ID}.zip"
    arguments = [*AGENT, "-i", str(model_path), "-n", "200", "-f", str(tmp_path), "--env-kwargs", "length:5"]
    arguments += ["-params", "learning_starts:0", "n_envs:2", "--eval-freq", "-1", "--device", "cpu", "--seed", "1"]
    assert cli.main(["train", *arguments]) == 0
    assert "Loading replay buffer" in capsys.readouterr().out
    before = RecurrentDQN.load(model_path, device="cpu")
    after = RecurrentDQN.load(tmp_path / "rdqn" / f"{ENV_ID}_1" / f"{ENV_ID}.zip", device="cpu")
    assert after._n_updates > before._n_updates


@pytest.mark.parametrize("n_actors", [0, 2])
def test_r2d2_trains_is_shown_and_goes_on(n_actors: int, tmp_path: Path, capsys) -> None:
    agent = ("--algo", "r2d2", "--env", ENV_ID, "-f", str(tmp_path), "--device", "cpu", "--seed", "1")
    training = ("train", *agent, "-n", "1000", "--eval-freq", "500", "--save-replay-buffer", "--env-kwargs", "length:5")
    params = ("-params", "learning_starts:200", "n_envs:2", f"n_actors:{n_actors}", "backend:'sync'")
    assert cli.main([*training, *params]) == 0
    assert cli.main(["enjoy", *agent, "--no-render", "-n", "80"]) == 0
    assert "Mean reward" in capsys.readouterr().out
    first, second = (tmp_path / "r2d2" / f"{ENV_ID}_{number}" / f"{ENV_ID}.zip" for number in (1, 2))
    assert cli.main([*training, "-i", str(first), *params]) == 0
    assert "Loading replay buffer" in capsys.readouterr().out
    before, after = R2D2.load(first, device="cpu"), R2D2.load(second, device="cpu")
    assert before.n_actors == after.n_actors == n_actors
    assert after._n_updates > before._n_updates > 0


def test_maskable_dqn_is_trained_evaluated_and_watched_with_masks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    agent = ("--algo", "maskable_dqn", "--env", "CardOrder-v0", "-f", str(tmp_path), "--device", "cpu")
    assert cli.main(["train", *agent, "-n", "300", "--eval-freq", "100", "-params", "learning_starts:50"]) == 0
    run = tmp_path / "maskable_dqn" / "CardOrder-v0_1"
    assert (np.load(run / "evaluations.npz")["ep_lengths"] == 10).all(), "an invalid action would have ended an episode"
    assert MaskableDQN.load(run / "CardOrder-v0.zip", device="cpu")._n_updates > 0
    assert cli.main(["enjoy", *agent, "--no-render", "-n", "40"]) == 0
    assert "Mean episode length: 10.00" in capsys.readouterr().out
    assert cli.main(["record-video", *agent[:6], "-n", "10"]) == 0
    assert not [warning for warning in recwarn if "without action_masks" in str(warning.message)]


@pytest.fixture
def walk(request, monkeypatch) -> None:
    """Register Walk-v0, with the observations that the test asks for."""
    spec = EnvSpec("Walk-v0", entry_point=Walk, kwargs={"kind": request.param})
    monkeypatch.setitem(gym.registry, "Walk-v0", spec)


TRAIN = ("-n", "20", "--eval-freq", "-1", "--device", "cpu")


def policy_of_run(*arguments: str, folder: Path) -> str:
    """The policy of a run of a few steps, as its settings name it."""
    assert cli.main(["train", *arguments, *TRAIN, "-f", str(folder)]) == 0
    (settings,) = folder.rglob("config.yml")
    return str(load_settings(settings)["policy"])


@pytest.mark.parametrize("algo", ALGORITHMS)
@pytest.mark.parametrize(("walk", "policy"), POLICIES.items(), indirect=["walk"])
def test_the_default_policy_fits_the_observations(walk: None, policy: str, algo: str, tmp_path: Path) -> None:
    params = ("-params", "buffer_size:2000", "n_envs:1")
    assert policy_of_run("--algo", algo, "--env", "Walk-v0", *params, folder=tmp_path) == policy


@pytest.mark.filterwarnings("ignore:policy=MlpPolicy flattens the images")
@pytest.mark.parametrize("walk", ["image"], indirect=True)
def test_a_policy_that_is_chosen_is_kept(walk: None, tmp_path: Path) -> None:
    own = tmp_path / "own.yml"
    own.write_text("default: {n_timesteps: 20, policy: MlpPolicy}")
    train = ("--env", "Walk-v0", "-params", "buffer_size:2000")
    for given in ((*train, "policy:'MlpPolicy'"), (*train, "--conf-file", str(own))):
        assert policy_of_run(*given, folder=tmp_path / str(len(given))) == "MlpPolicy"
    assert policy_of_run("--env", "RememberedSearch-v0", folder=tmp_path / "entry") == "sb3_attn.DARQNPolicy"


def test_record_video_writes_a_video(training_run: TrainingRun, tmp_path: Path) -> None:
    logs = str(training_run.root / "logs")
    assert cli.main(["record-video", *AGENT, "-f", logs, "-n", "10", "-o", str(tmp_path)]) == 0
    (video,) = tmp_path.glob("final-model-rdqn-*.mp4")
    assert video.read_bytes()[4:8] == b"ftyp"


def test_record_training_and_its_subprocesses(training_run: TrainingRun, tmp_path: Path) -> None:
    # Only the last model, to save time: each one is recorded by a process of its own
    logs = tmp_path / "logs" / "rdqn" / f"{ENV_ID}_1"
    logs.mkdir(parents=True)
    (logs / f"{ENV_ID}.zip").symlink_to(training_run.folder / f"{ENV_ID}.zip")
    (logs / ENV_ID).symlink_to(training_run.folder / ENV_ID)
    assert cli.main(["record-training", *AGENT, "-f", str(tmp_path / "logs"), "-n", "10"]) == 0
    assert (logs / "videos" / "training.mp4").read_bytes()[4:8] == b"ftyp"


def test_benchmark_and_its_subprocesses(training_run: TrainingRun, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--log-dir", str(training_run.root / "logs"), "--benchmark-dir", str(tmp_path), "--no-hub", "-n", "80"]
    assert cli.main(["benchmark", *arguments, "--test-mode", "--num-threads", "1"]) == 0
    assert re.search(rf"\|rdqn\s*\|{ENV_ID}\s*\|", (tmp_path / "benchmark.md").read_text())


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_optimize_finds_parameters_that_train_again(algo: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    agent = ("--algo", algo, "--env", ENV_ID)
    arguments = [*agent, "-n", "200", "--n-trials", "2", "--n-jobs", "2", "--no-optim-plots", "--env-kwargs", "length:2"]
    arguments += ["-params", "learning_starts:50", "--device", "cpu", "--seed", "0", "--eval-episodes", "5"]
    assert cli.main(["optimize", *arguments, "--storage", str(tmp_path / "study.log"), "--study-name", "test"]) == 0
    (report,) = tmp_path.glob(f"logs/{algo}/report_*.csv")
    states = re.findall(r"COMPLETE|PRUNED|FAIL", report.read_text())
    assert states == ["COMPLETE", "COMPLETE"]
    # The best trial's stored parameters train again
    arguments = [*agent, "-n", "200", "--storage", str(tmp_path / "study.log"), "--study-name", "test", "--trial-id", "1"]
    arguments += ["--eval-freq", "-1", "--device", "cpu", "-params", "learning_starts:50"]
    assert cli.main(["train", *arguments]) == 0


def test_the_zoo_itself_with_a_hook(tmp_path: Path) -> None:
    # As the guide says: RL Zoo imports a module of this name, if there is one
    (tmp_path / "custom_envs.py").write_text("import sb3_attn.zoo\n\nsb3_attn.zoo.register()\n")
    run_module(
        *(*AGENT, "-n", "200", "-conf", str(zoo_config_path("rdqn")), "--eval-freq", "-1", "--device", "cpu"),
        *("-params", "learning_starts:50", "--num-threads", "1"),
        cwd=tmp_path,
        module="rl_zoo3.train",
    )
    assert (tmp_path / "logs" / "rdqn" / f"{ENV_ID}_1" / f"{ENV_ID}.zip").exists()


def run_in_turn(*runs: tuple[str, ...], cwd: Path) -> str:
    """Run Python modules with arguments in one new process, as starting one takes seconds; returns its output."""
    program = (
        "import runpy, sys\n"
        f"for sys.argv in {[list(run) for run in runs]}:\n"
        "    runpy.run_module(sys.argv[0], run_name='__main__')\n"
    )
    return run_python("-c", program, cwd=cwd)


def test_the_zoo_itself_trains_and_shows_attention_in_stock_dqn(tmp_path: Path) -> None:
    """With its policy given by name, and with the features extractor given by its class."""
    by_name = {"policy": "sb3_attn.HardAttentionPolicy"}
    extractor = "dict(features_extractor_class=get_class_by_name('sb3_attn.SelfAttentionExtractor'))"
    by_class = {"policy": "CnnPolicy", "policy_kwargs": extractor}
    config = yaml.safe_load(zoo_config_path("dqn").read_text())
    for name, policy in (("by_name", by_name), ("by_class", by_class)):
        entry = config["VisualSearch-v0"] | {"learning_starts": 50} | policy
        (tmp_path / f"{name}.yml").write_text(yaml.safe_dump({"VisualSearch-v0": entry}))
    search = ("--algo", "dqn", "--env", "VisualSearch-v0", "--gym-packages", "sb3_attn.envs", "--device", "cpu")
    train = ("rl_zoo3.train", *search, "-n", "150", "--eval-freq", "-1", "--num-threads", "1", "-conf")
    enjoy = ("rl_zoo3.enjoy", *search, "-f", "logs", "--no-render", "-n", "50", "--exp-id")
    runs = ((*train, "by_name.yml"), (*train, "by_class.yml"), (*enjoy, "1"), (*enjoy, "2"))
    output = run_in_turn(*runs, cwd=tmp_path)
    assert output.count("50 Episodes") == 2


def test_pong_from_single_frames(tmp_path: Path) -> None:
    pong = ("--algo", "rdqn", "--env", "ALE/Pong-v5")
    training = ("train", *pong, "--env-kwargs", "frameskip:1", "-n", "300", "--eval-freq", "-1", "--device", "cpu")
    params = ("policy:'CnnPolicy'", "learning_starts:150", "n_envs:2", "train_freq:25", "buffer_size:400", "batch_size:4")
    core = "policy_kwargs:dict(core='lstm',core_kwargs=dict(hidden_size=32))"
    assert cli.main([*training, "-f", str(tmp_path / "logs"), "-params", *params, core]) == 0
    (model_path,) = tmp_path.glob("logs/rdqn/ALE-Pong-v5_1/ALE-Pong-v5.zip")
    model = RecurrentDQN.load(model_path, device="cpu")
    assert model.observation_space.shape == (1, 84, 84)
    assert model._n_updates > 0
    assert cli.main(["enjoy", *pong, "-f", str(tmp_path / "logs"), "--no-render", "-n", "20", "--device", "cpu"]) == 0
