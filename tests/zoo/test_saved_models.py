"""Zips, run folders, and runs by RL Zoo's arguments."""

import argparse
from pathlib import Path

import pytest

pytest.importorskip("rl_zoo3")
pytest.importorskip("matplotlib")
pytest.importorskip("imageio")

from sb3_attn.recurrent_dqn.safe_loading import UnsafePickleError
from sb3_attn.zoo.saved_models import SavedModel, add_model_arguments, find_model

GAME = "ALE/Pong-v5"


def find(*arguments: str | Path) -> SavedModel:
    parser = argparse.ArgumentParser()
    add_model_arguments(parser)
    return find_model(parser.parse_args([str(argument) for argument in arguments]))


def make_run(folder: Path, env_id: str = GAME, algo: str = "rdqn", files=("last", "best_model")) -> Path:
    name = env_id.rpartition(":")[2].replace("/", "-")
    settings = folder / name
    settings.mkdir(parents=True)
    (settings / "config.yml").write_text("{}")
    (settings / "args.yml").write_text(f"{{env: '{env_id}', algo: {algo}}}")
    for file in files:
        (folder / f"{name if file == 'last' else file}.zip").touch()
    return folder


def test_a_run_folder_tells_its_environment_and_algorithm(tmp_path):
    run = make_run(tmp_path / "run", algo="a2c")
    last = SavedModel(run / "ALE-Pong-v5.zip", GAME, "a2c", run / "ALE-Pong-v5")
    assert find(run) == find(run / "ALE-Pong-v5.zip") == find(run, "--env", GAME) == last
    assert find(run / "ALE-Pong-v5") == last  # the zip without its suffix, not the folder of settings
    assert find(run, "--load-best") == find(run / "best_model.zip") == last._replace(path=run / "best_model.zip")
    assert find(run, "--algo", "ppo").algo == "ppo"
    (run / "ALE-Pong-v5.zip").unlink()
    assert find(run).path == run / "best_model.zip"
    for algo in ("tqc", "[rdqn]"):  # so that the saved policy decides
        assert find(make_run(tmp_path / algo, algo=algo)).algo is None
    (run / "other").mkdir()
    (run / "other" / "config.yml").touch()  # another program's
    assert find(run).env_id == GAME


def test_runs_are_found_as_by_enjoy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, files in {1: ("last",), 2: ("last",), 10: ()}.items():  # the last one was a search
        make_run(Path(f"logs/rdqn/ALE-Pong-v5_{number}"), files=files)
    assert find("--env", GAME).path == Path("logs/rdqn/ALE-Pong-v5_2/ALE-Pong-v5.zip")
    assert find("--env", GAME, "--exp-id", 1).path.parent.name == "ALE-Pong-v5_1"
    make_run(Path("old/ppo_lstm"))
    found = find("--env", GAME, "-f", "old", "--algo", "ppo_lstm", "--exp-id", "-1")
    assert found.path == Path("old/ppo_lstm/ALE-Pong-v5.zip") and found.algo == "ppo_lstm"


def test_what_cannot_be_found_or_contradicts_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "logs/rdqn/ALE-Pong-v5_1", files=())
    with pytest.raises(ValueError, match="give a zip file, a run folder, or --env ID for the newest run"):
        find()
    with pytest.raises(FileNotFoundError, match="rdqn has no run with a model of ALE/Pong-v5; give other --folder"):
        find("--env", GAME)
    with pytest.raises(FileNotFoundError, match="rdqn has no run 3 of ALE/Pong-v5"):
        find("--env", GAME, "--exp-id", 3)
    with pytest.raises(FileNotFoundError, match=r"has no ALE-Pong-v5.zip and no best_model.zip; give"):
        find(run)
    with pytest.raises(ValueError, match="--folder and --exp-id find a run, but the model is"):
        find(run, "--exp-id", 1)
    zip_file = tmp_path / "model.zip"
    zip_file.touch()
    with pytest.raises(ValueError, match=r"model.zip does not tell its environment; give its id, --env ID"):
        find(zip_file)
    with pytest.raises(ValueError, match=r"--load-best chooses a file in a run folder, but .*model.zip is none"):
        find(zip_file, "--env", GAME, "--load-best")


def test_a_module_that_a_run_names_is_not_imported(tmp_path):
    run = make_run(tmp_path, "hostile:Pong-v5")
    with pytest.raises(UnsafePickleError, match="hostile"):
        find(run)
