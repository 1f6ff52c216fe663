"""The models in ``pretrained/``: small, loaded without trust, and as good as their table says."""

import re
from pathlib import Path

import pytest

pytest.importorskip("rl_zoo3")

from stable_baselines3.common.evaluation import evaluate_policy

from sb3_attn.zoo.loading import load_model
from sb3_attn.zoo.registration import ALGORITHMS, register
from sb3_attn.zoo.run_folders import make_run_env

FOLDER = Path(__file__).parents[2] / "pretrained"
ROWS = re.findall(r"^\| `(\S+)` \| `(\w+)` \| [^|]+ \| (\S+) \|", (FOLDER / "README.md").read_text(), re.MULTILINE)


def test_the_table_has_every_model_and_they_are_small() -> None:
    models = list(FOLDER.rglob("*.zip"))
    assert {(path.stem, path.parts[-3]) for path in models} == {(env_id, algo) for env_id, algo, _ in ROWS}
    assert sum(path.stat().st_size for path in models) < 5e6


# Box2D crashes the interpreter if its deprecation warnings are errors
@pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")
@pytest.mark.parametrize(("env_id", "algo", "score"), ROWS)
def test_a_model_reaches_its_score(env_id: str, algo: str, score: str) -> None:
    register()
    run = FOLDER / algo / f"{env_id}_1"
    model = load_model(run / f"{env_id}.zip", device="cpu")
    assert type(model) is ALGORITHMS[algo].model_class
    # A landing gives some 260, a crash next to the pad some 40; all episodes of the others are about as good
    n_episodes, tolerance = (10, 0.4) if env_id.startswith("LunarLander") else (3, 0.2)
    mean, _ = evaluate_policy(model, make_run_env(run / env_id, env_id, {}, seed=2000), n_eval_episodes=n_episodes)
    assert mean == pytest.approx(float(score), rel=tolerance)
