"""The choice of a Ray cluster, its lifetime, and clusters that are refused."""

import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

ray = pytest.importorskip("ray")

from sb3_attn.distributed import cluster, connect

ELSEWHERE = "192.0.2.7:6379"  # an address that is reserved for documentation

OWNER = """
import ray, sys
print(ray.init("local", include_dashboard=False, object_store_memory=2**27).address_info["address"], flush=True)
sys.stdin.read()
"""


@contextmanager
def cluster_of_others(auth_mode: str) -> Iterator[str]:
    """Address of a cluster that another process has started, as Ray does by itself."""
    environment = {**os.environ, "RAY_AUTH_MODE": auth_mode}
    command = [sys.executable, "-c", OWNER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as owner:
        assert owner.stdout is not None
        address = owner.stdout.readline().strip()
        assert address, "the cluster did not start"
        yield address
        assert owner.poll() is None, "the cluster's owner has ended"
        owner.communicate("")


class Reached(Exception):
    """In place of a connection."""


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(*args: object, **kwargs: object) -> None:
        raise Reached(*args)

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize(
    "address", [ELSEWHERE, f"ray://{ELSEWHERE}", "[2001:db8::7]:6379", "head.example:6379", "127.0.0.2:6379"]
)
@pytest.mark.parametrize("variable", [False, True])
def test_a_cluster_that_others_can_reach_is_refused_before_anything_is_sent(
    address: str, variable: bool, no_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable:
        monkeypatch.setenv("RAY_ADDRESS", address)
    message = r"Other machines can reach the Ray cluster at .*RAY_AUTH_MODE=token.*allow_unauthenticated=True"
    with pytest.raises(RuntimeError, match=message), connect(1, "a test", None if variable else address):
        pass


@pytest.mark.parametrize("address", ["127.0.0.1:6379", "[::1]:6379", "localhost:6379", "auto"])
def test_loopback_needs_no_token(address: str, no_cluster: None) -> None:
    with pytest.raises(Reached, match=address.replace("[", r"\[")), connect(1, "a test", address):
        pass


def test_a_token_or_an_explicit_argument_allow_it(no_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Reached, match=ELSEWHERE), connect(1, "a test", ELSEWHERE, allow_unauthenticated=True):
        pass
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(Reached, match=ELSEWHERE), connect(1, "a test", ELSEWHERE):
        pass


def test_without_ray_the_error_says_what_to_install() -> None:
    code = "import sys; sys.modules['ray'] = None; import sb3_attn.distributed"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stderr.endswith("needs Ray, which is not installed; pip install 'sb3_attn[ray]'.\n")


def test_a_token_is_for_the_time_of_a_cluster_unless_the_user_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    tokens = set()
    for _ in range(2):
        with cluster._private_token():
            tokens.add(os.environ["RAY_AUTH_TOKEN"])
        assert "RAY_AUTH_TOKEN" not in os.environ
    assert len(tokens) == 2 and all(len(token) == 64 for token in tokens)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the user's")
    with cluster._private_token():
        assert os.environ["RAY_AUTH_TOKEN"] == "the user's"
    assert os.environ["RAY_AUTH_TOKEN"] == "the user's"


@pytest.mark.ray
def test_nobody_else_reads_the_files_of_our_cluster() -> None:
    """Ray gives everyone all rights to its own folder, so the one around it has to be private."""
    with connect(1, "a test"):
        session = Path(ray._private.worker._global_node.get_session_dir_path())
        folder = session.parents[1]
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        asked = ray.remote(lambda: os.environ["RAY_AUTH_TOKEN"]).remote()
        assert ray.get(asked) == os.environ["RAY_AUTH_TOKEN"]  # so processes of the cluster have it, too
    assert not folder.exists()


@pytest.mark.ray
def test_a_cluster_of_our_own_is_on_loopback_and_ends_with_its_last_user() -> None:
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(connect(1, "the first"))
        assert ray.get_runtime_context().gcs_address.startswith("127.0.0.1:")
        second.enter_context(connect(1, "the second"))
        first.close()
        assert ray.is_initialized(), "the second still uses it"
    assert not ray.is_initialized()


@pytest.mark.ray
def test_a_block_that_fails_ends_its_cluster() -> None:
    with pytest.raises(ZeroDivisionError), connect(1, "a test"):
        _ = 1 / 0
    assert not ray.is_initialized()
    with pytest.raises(ValueError, match=r"1000 actors need 1000 CPUs, and the Ray cluster at 127.*has \d+; use fewer"):
        connect(1000, "1000 actors").__enter__()
    assert not ray.is_initialized()


@pytest.mark.ray
def test_an_open_connection_is_used_and_stays_open() -> None:
    # By itself Ray is reached from other machines, and requires a token
    ray.init("local", include_dashboard=False, object_store_memory=2**27)
    try:
        address = ray.get_runtime_context().gcs_address
        with connect(1, "a test"):
            assert ray.get_runtime_context().gcs_address == address
        assert ray.is_initialized()
    finally:
        ray.shutdown()


@pytest.mark.ray
def test_busy_processors_are_waited_for_but_not_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "FREE_CPUS_WAIT", 0.5)
    with connect(1, "a test"):
        n_cpus = ray.cluster_resources()["CPU"]
        hold = ray.remote(num_cpus=n_cpus)(dict).remote()
        while ray.available_resources().get("CPU", 0):  # which Ray learns with a delay
            time.sleep(0.1)
        message = rf"2 actors need 1 CPUs, and the Ray cluster at .* has 0 left of {n_cpus:g}; "
        with pytest.raises(ValueError, match=message), connect(1, "2 actors"):
            pass
        ray.kill(hold)
        monkeypatch.setattr(cluster, "FREE_CPUS_WAIT", 60)
        with connect(n_cpus, "2 actors"):
            pass


@pytest.mark.ray
def test_a_cluster_of_others_stays_up() -> None:
    with cluster_of_others("token") as address:
        for _ in range(2):
            with connect(1, "a test", address):
                assert ray.get_runtime_context().gcs_address == address
            assert not ray.is_initialized()


@pytest.mark.ray
def test_our_own_token_does_not_make_an_open_cluster_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with cluster_of_others("disabled") as address:
        if address.startswith("127."):
            pytest.skip("this machine has no address but loopback")
        with pytest.raises(RuntimeError, match=f"Other machines can reach the Ray cluster at {address}"):
            connect(1, "a test", address).__enter__()
        assert not ray.is_initialized()
        # Ray takes loopback for this machine's address, and so for the same cluster
        with pytest.raises(RuntimeError, match=f"Other machines can reach the Ray cluster at {address}"):
            connect(1, "a test", f"127.0.0.1:{address.rpartition(':')[2]}").__enter__()
        with connect(1, "a test", address, allow_unauthenticated=True):
            pass
