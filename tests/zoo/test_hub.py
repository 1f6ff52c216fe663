"""The commands for the Hugging Face Hub, which a folder replaces here."""

import os
import shlex
import shutil
import sys
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("rl_zoo3")

import yaml
from gymnasium.envs.registration import EnvSpec
from huggingface_hub import HfApi, ModelCard, constants
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_hf_hub_args
from stable_baselines3 import DQN
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_attn import RecurrentDQN
from sb3_attn.zoo import cli, hub
from sb3_attn.zoo.run_folders import load_settings
from tests.helpers.hostile import tampered, touching
from tests.helpers.processes import ENV_ID, TrainingRun

AGENT = ("--algo", "rdqn", "--env", ENV_ID)
REPO = f"me/rdqn-{ENV_ID}"
CREATE_REPO = HfApi.create_repo


@pytest.fixture
def the_hub(tmp_path: Path, monkeypatch) -> Path:
    """A folder of repositories in place of the Hub."""
    root = tmp_path / "hub"

    @validate_hf_hub_args
    def create_repo(self, repo_id, **kwargs):
        (root / repo_id).mkdir(parents=True, exist_ok=kwargs["exist_ok"])
        return f"https://hub/{repo_id}"

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)

    @validate_hf_hub_args
    def hf_hub_download(repo_id: str, filename: str) -> str:
        path = root / repo_id / filename
        if not path.is_file():
            raise type("NotThere", (EntryNotFoundError, OSError), {})(f"no {filename}")
        return str(path)

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(hub, "hf_hub_download", hf_hub_download)
    monkeypatch.delenv("TRUST_REMOTE_CODE", raising=False)
    monkeypatch.delitem(sys.modules, "rl_zoo3.load_from_hub", raising=False)  # runpy warns of what `enjoy` has imported
    return root


def push(run: TrainingRun, *arguments: str) -> None:
    pushed = ("push-to-hub", *AGENT, "-f", str(run.root / "logs"), "-orga", "me", "--device", "cpu", "--n-eval-episodes", "4")
    assert cli.main([*pushed, *arguments]) == 0


def test_a_run_comes_back_from_the_hub_and_plays(training_run: TrainingRun, the_hub: Path, tmp_path: Path, capsys) -> None:
    push(training_run, "--seed", "7")
    logs = tmp_path / "logs"
    assert cli.main(["load-from-hub", *AGENT, "-orga", "me", "-f", str(logs)]) == 0
    run = logs / "rdqn" / f"{ENV_ID}_1"
    for name in (f"{ENV_ID}.zip", "0.monitor.csv", f"{ENV_ID}/config.yml"):
        assert (run / name).read_bytes() == (training_run.folder / name).read_bytes()
    settings = load_settings(training_run.folder / ENV_ID / "args.yml")
    assert load_settings(run / ENV_ID / "args.yml") == {name: settings[name] for name in settings if name != "storage"}
    assert np.load(run / "evaluations.npz")["timesteps"].tolist() == [500, 1000]
    assert yaml.safe_load((run / ENV_ID / "env_kwargs.yml").read_text()) == {"length": 5}
    assert cli.main(["enjoy", *AGENT, "-f", str(logs), "-n", "20", "--no-render", "--device", "cpu"]) == 0
    assert "Mean reward" in capsys.readouterr().out


def test_the_card_has_the_score_its_seeds_and_the_command(training_run: TrainingRun, the_hub: Path) -> None:
    push(training_run, "--seed", "7")
    card = ModelCard.load(the_hub / REPO / "README.md")
    env = make_vec_env(ENV_ID, seed=7, env_kwargs={"length": 5})
    model = RecurrentDQN.load(training_run.folder / f"{ENV_ID}.zip", device="cpu")
    mean, std = evaluate_policy(model, env, n_eval_episodes=4)
    assert f"| {mean:.2f} ± {std:.2f} | 4, greedy | 3 | 7 |" in card.text
    (result,) = card.data.eval_results
    assert result.metric_value == f"{mean:.2f} +/- {std:.2f}"
    command = (training_run.folder / ENV_ID / "command.txt").read_text()
    assert command.startswith(f"sb3-attn train --algo rdqn --env {ENV_ID} -n 1000 --seed 3 ") and command in card.text
    assert "its last model" in card.text


def test_the_best_model_is_another_file(training_run: TrainingRun, the_hub: Path) -> None:
    push(training_run, "--load-best", "-name", "best")
    pushed = the_hub / "me" / "best"
    assert (pushed / f"rdqn-{ENV_ID}.zip").read_bytes() == (training_run.folder / "best_model.zip").read_bytes()
    assert "best model by evaluations" in (pushed / "README.md").read_text()


@pytest.fixture
def copied_run(training_run: TrainingRun, tmp_path: Path) -> TrainingRun:
    """A copy of the run, to be changed."""
    copy = TrainingRun(tmp_path / "copy", tmp_path / "copy" / "logs" / "rdqn" / f"{ENV_ID}_1")
    shutil.copytree(training_run.root, copy.root)
    return copy


def test_statistics_of_vec_normalize_come_along(copied_run: TrainingRun, the_hub: Path, tmp_path: Path) -> None:
    (copied_run.folder / ENV_ID / "vecnormalize.pkl").write_bytes(b"statistics")
    push(copied_run)
    assert cli.main(["load-from-hub", *AGENT, "-orga", "me", "-f", str(tmp_path)]) == 0
    assert (tmp_path / "rdqn" / f"{ENV_ID}_1" / ENV_ID / "vecnormalize.pkl").read_bytes() == b"statistics"


@pytest.mark.parametrize("option", ["--storage {}", "--storage={}", "--stor {}"])
@pytest.mark.parametrize("program", ["sb3-attn train", "python -m rl_zoo3.train"])
def test_the_database_of_a_search_is_not_published(
    program: str, option: str, copied_run: TrainingRun, the_hub: Path, monkeypatch
) -> None:
    quote = shlex.quote if program == "sb3-attn train" else str
    option = " ".join(map(quote, option.format("mysql://me:se$cret@host/db").split()))
    parameter = quote("policy_kwargs:dict(core='gru',note='````')")
    settings = copied_run.folder / ENV_ID
    (settings / "command.txt").write_text(f"{program} -params {parameter} {option} --study-name s")
    args = (settings / "args.yml").read_text().replace("storage\n    - null", "storage\n    - mysql://me:se$cret@host/db")
    (settings / "args.yml").write_text(args)
    monkeypatch.setattr(hub, "evaluate", lambda run, *_: (RecurrentDQN.load(run.model_path, device="cpu"), [1.0]))
    push(copied_run)
    published = f"\n`````bash\n{program} -params {parameter} --study-name s\n`````\n"
    assert published in (the_hub / REPO / "README.md").read_text()
    assert "se$cret" in args and load_settings(settings / "args.yml")["storage"]
    assert not [path for path in (the_hub / REPO).iterdir() if b"se$cret" in path.read_bytes()]


@pytest.mark.parametrize("how", ["secret", "device", "waits"])
@pytest.mark.parametrize(
    "name",
    [
        *(f"{ENV_ID}.zip", "0.monitor.csv", "evaluations.npz"),
        *(f"{ENV_ID}/{name}" for name in ("config.yml", "args.yml", "command.txt", "vecnormalize.pkl")),
        ENV_ID,
    ],
)
def test_only_regular_files_of_the_run_are_pushed(
    name: str, how: str, copied_run: TrainingRun, the_hub: Path, tmp_path: Path
) -> None:
    path, secret = copied_run.folder / name, tmp_path / "secret"
    if path.exists():
        path.rename(secret)
    else:
        secret.write_bytes(b"statistics")
    if how == "waits":
        os.mkfifo(path)
    else:
        path.symlink_to(secret if how == "secret" else os.devnull)
    with pytest.raises(SystemExit, match=r"is missing, a link, or not a regular file|No model found .* --exp-id of a run"):
        push(copied_run)
    assert not the_hub.exists()


HER = {"policy": "MultiInputPolicy", "n_timesteps": 30, "learning_starts": 10, "replay_buffer_class": "HerReplayBuffer"}


def test_agents_with_hindsight_are_pushed(the_hub: Path, tmp_path: Path, monkeypatch) -> None:
    """Their replay needs the environment, which gets the seed of training then, as it does in SB3."""
    env_id, config = "BitFlip-v0", tmp_path / "her.yml"
    monkeypatch.setitem(gym.registry, env_id, EnvSpec(env_id, BitFlippingEnv, kwargs={"n_bits": 3}))
    config.write_text(yaml.safe_dump({env_id: HER}))
    agent = ("--algo", "dqn", "--env", env_id, "-f", str(tmp_path / "logs"), "--device", "cpu")
    assert cli.main(["train", *agent, "--conf-file", str(config), "--eval-freq", "-1", "--seed", "3"]) == 0
    assert cli.main(["push-to-hub", *agent, "-orga", "me", "--n-eval-episodes", "9", "--seed", "7"]) == 0
    env = DummyVecEnv([lambda: Monitor(gym.make(env_id))])
    model = DQN.load(tmp_path / "logs" / "dqn" / f"{env_id}_1" / f"{env_id}.zip", env=env, device="cpu")
    env.seed(7)
    mean, std = evaluate_policy(model, env, n_eval_episodes=9)
    card = (the_hub / "me" / f"dqn-{env_id}" / "README.md").read_text()
    assert f"| {mean:.2f} ± {std:.2f} | 9, greedy | 3 | 7 |" in card


def test_no_code_of_a_download_runs(training_run: TrainingRun, the_hub: Path, tmp_path: Path) -> None:
    push(training_run)
    marker, path = tmp_path / "ran", the_hub / REPO / f"rdqn-{ENV_ID}.zip"
    tampered(training_run.folder / f"{ENV_ID}.zip", path, "policy_class", touching(marker)["os.system"])
    assert cli.main(["load-from-hub", *AGENT, "-orga", "me", "-f", str(tmp_path)]) == 0
    with pytest.raises(SystemExit, match="not known to be harmless"):
        cli.main(["enjoy", *AGENT, "-f", str(tmp_path), "-n", "2", "--no-render", "--device", "cpu"])
    assert not marker.exists()


def test_a_zip_that_would_fill_the_disk_is_refused(training_run: TrainingRun, the_hub: Path, tmp_path: Path) -> None:
    push(training_run)
    with zipfile.ZipFile(the_hub / REPO / "train_eval_metrics.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.monitor.csv", bytes(2**25))
    with pytest.raises(SystemExit, match=r"metrics\.zip would have 33554432 bytes when unpacked"):
        cli.main(["load-from-hub", *AGENT, "-orga", "me", "-f", str(tmp_path)])
    assert not (tmp_path / "rdqn").exists()


@pytest.mark.parametrize("how", ["cut", "encrypted"])
def test_a_damaged_zip_is_refused(how: str, training_run: TrainingRun, the_hub: Path, tmp_path: Path) -> None:
    push(training_run)
    path = the_hub / REPO / "train_eval_metrics.zip"
    content = bytearray(path.read_bytes())
    if how == "encrypted":
        with zipfile.ZipFile(path) as archive:
            central = archive.start_dir
        content[6] |= 1  # a flag, in the header of the first member and in the central directory
        content[central + 8] |= 1
    path.write_bytes(content[: len(content) // 2] if how == "cut" else content)
    with pytest.raises(SystemExit, match=rf"metrics\.zip of {REPO} is damaged, or is no zip-file"):
        cli.main(["load-from-hub", *AGENT, "-orga", "me", "-f", str(tmp_path)])
    assert not (tmp_path / "rdqn").exists()


def test_without_a_network_statistics_are_not_left_out(training_run: TrainingRun, the_hub: Path, tmp_path: Path, monkeypatch):
    push(training_run)
    there = hub.hf_hub_download

    def hf_hub_download(repo_id: str, filename: str) -> str:
        if filename == hub.VEC_NORMALIZE:
            raise LocalEntryNotFoundError("no network")
        return there(repo_id, filename)

    monkeypatch.setattr(hub, "hf_hub_download", hf_hub_download)
    with pytest.raises(SystemExit, match=r"has no vec_normalize.pkl for you \(no network\); check the names and the network"):
        cli.main(["load-from-hub", *AGENT, "-orga", "me", "-f", str(tmp_path)])


def test_what_is_missing_is_said_in_a_sentence(training_run: TrainingRun, the_hub: Path, monkeypatch) -> None:
    with pytest.raises(SystemExit, match=f"sb3-attn load-from-hub: nobody/rdqn-{ENV_ID} has no .*; check the names"):
        cli.main(["load-from-hub", *AGENT, "-orga", "nobody", "-f", "logs"])
    with pytest.raises(SystemExit, match="_9 folder was not found; give the --folder and the --exp-id of a run"):
        push(training_run, "--exp-id", "9")
    with pytest.raises(SystemExit, match=r"sb3-attn load-from-hub: a b/.* \(Repo id must .*check the names"):
        cli.main(["load-from-hub", *AGENT, "-orga", "a b", "-f", "logs"])


def test_refusals_of_the_hub_come_before_the_evaluation(training_run: TrainingRun, the_hub: Path, monkeypatch) -> None:
    monkeypatch.setattr(hub, "evaluate", None)
    with pytest.raises(SystemExit, match=r"the Hub did not take me/a b \(Repo id must use"):
        push(training_run, "-name", "a b")

    def refuse(*_: object, **__: object) -> None:
        raise LocalTokenNotFoundError("no token")

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    with pytest.raises(SystemExit, match=r"the Hub did not take me/.* \(no token\); log in with `hf auth login`"):
        push(training_run)

    monkeypatch.setattr(HfApi, "create_repo", CREATE_REPO)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SystemExit, match=r"the Hub did not take me/.* refused\).* check the names and the network"):
        push(training_run)
