"""R2D2 on clusters of its own and of others."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stable_baselines3.common.callbacks import BaseCallback

ray = pytest.importorskip("ray")

from tests.helpers.models import make_r2d2_on_ray


@pytest.mark.ray
def test_learning_on_ray_ends_with_a_checkpoint_on_sigterm(tmp_path: Path) -> None:
    code = f"""
from stable_baselines3.common.callbacks import CheckpointCallback
from tests.helpers.models import make_r2d2_on_ray
make_r2d2_on_ray(backend_kwargs=dict(cpus_per_actor=0.5)).learn(10**9, callback=CheckpointCallback(10**8, {str(tmp_path)!r}))
"""
    command, root = [sys.executable, "-c", code], Path(__file__).parents[2]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    time.sleep(30)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=90)
    assert "KeyboardInterrupt" in output
    assert len(list(tmp_path.glob("*.zip"))) == 1, output


@pytest.mark.ray
def test_a_node_that_goes_away_is_survived() -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    node = cluster.add_node(num_cpus=1)
    try:
        ray.init(cluster.address)

        class LoseNode(BaseCallback):
            def _on_step(self) -> bool:
                if self.num_timesteps == 2000:
                    cluster.remove_node(node, allow_graceful=False)
                return True

        model = make_r2d2_on_ray(backend_kwargs=dict(cpus_per_actor=1.0, allow_unauthenticated=True), samples_per_insert=1)
        model.learn(20_000, callback=LoseNode())
        assert model.step_ledger.n_steps_inserted >= 20_000
        assert ray.is_initialized(), "a cluster that others started stays up"
    finally:
        ray.shutdown()
        cluster.shutdown()
