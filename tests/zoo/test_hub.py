"""The commands for the Hugging Face Hub, which a folder replaces here."""

import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rl_zoo3")

import yaml
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import EntryNotFoundError, LocalTokenNotFoundError
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_attn import RecurrentDQN
from sb3_attn.zoo import cli, hub
from tests.helpers.hostile import tampered, touching
from tests.helpers.processes import ENV_ID, TrainingRun

AGENT = ("--algo", "rdqn", "--env", ENV_ID)
REPO = f"me/rdqn-{ENV_ID}"


@pytest.fixture
def the_hub(tmp_path: Path, monkeypatch) -> Path:
    """A folder of repositories in place of the Hub."""
    root = tmp_path / "hub"

    def create_repo(self, repo_id, **kwargs):
        (root / repo_id).mkdir(parents=True, exist_ok=kwargs["exist_ok"])
        return f"https://hub/{repo_id}"

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)

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
    for name in (f"{ENV_ID}.zip", "0.monitor.csv", f"{ENV_ID}/config.yml", f"{ENV_ID}/args.yml"):
        assert (run / name).read_bytes() == (training_run.folder / name).read_bytes()
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


def test_statistics_of_vec_normalize_come_along(training_run: TrainingRun, the_hub: Path, tmp_path: Path) -> None:
    copy = TrainingRun(tmp_path / "copy", tmp_path / "copy" / "logs" / "rdqn" / f"{ENV_ID}_1")
    shutil.copytree(training_run.root, copy.root)
    (copy.folder / ENV_ID / "vecnormalize.pkl").write_bytes(b"statistics")
    push(copy)
    assert cli.main(["load-from-hub", *AGENT, "-orga", "me", "-f", str(tmp_path)]) == 0
    assert (tmp_path / "rdqn" / f"{ENV_ID}_1" / ENV_ID / "vecnormalize.pkl").read_bytes() == b"statistics"


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


def test_what_is_missing_is_said_in_a_sentence(training_run: TrainingRun, the_hub: Path, monkeypatch) -> None:
    with pytest.raises(SystemExit, match=f"sb3-attn load-from-hub: nobody/rdqn-{ENV_ID} has no .*; check the names"):
        cli.main(["load-from-hub", *AGENT, "-orga", "nobody", "-f", "logs"])
    with pytest.raises(SystemExit, match="_9 folder was not found; give the --folder and the --exp-id of a run"):
        push(training_run, "--exp-id", "9")

    def refuse(*_: object, **__: object) -> None:
        raise LocalTokenNotFoundError("no token")

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    with pytest.raises(SystemExit, match=r"the Hub refused me/.* \(no token\); log in with `hf auth login`"):
        push(training_run)
