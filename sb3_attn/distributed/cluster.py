"""Connections to a Ray cluster: one that is open already, one to attach to, or one of our own on this machine."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray._private import ray_constants

#: Bytes of shared memory of a cluster we start: for what is under way between two processes; replay never lives there
OBJECT_STORE_MEMORY = 256 * 2**20

#: Seconds. Ray's own are 5 to 60, too few where the processors are busy with training
START_TIMEOUTS = {
    "RAY_gcs_rpc_server_connect_timeout_s": "120",
    "RAY_gcs_server_port_wait_time_s": "120",
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_worker_register_timeout_seconds": "180",
}

#: Seconds for processors to come free. Those of actors that have just ended are counted as taken for a moment
FREE_CPUS_WAIT = 10.0

#: Seconds for the one question that a cluster is asked
ANSWER_TIMEOUT = 120.0

#: Only where a cluster has one of these for its address do its ports listen on loopback alone
LOOPBACK = ("127.0.0.1", "::1", "localhost")

#: ``runtime_env`` of actors: they are many, and small networks or simulators gain nothing from more threads
ONE_THREAD = {"env_vars": {"OMP_NUM_THREADS": "1"}}

_n_users = 0  # that share a connection which was opened here


@contextmanager
def connect(n_cpus: float, what: str, address: str | None = None, allow_unauthenticated: bool = False) -> Iterator[None]:
    """
    Be connected to a Ray cluster inside the block.

    A connection that is open already is used, whatever ``address`` says, and stays open if others opened it. One opened
    here ends with the last of the blocks that share it. If that also started the cluster, the cluster ends with it.

    :param n_cpus: what the block is going to ask of the cluster, in all
    :param what: the words for it in an error, such as ``"4 actors"``
    :param address: of a cluster to attach to; ``None`` means that of the environment variable ``RAY_ADDRESS``, and
        without one a cluster is started, on loopback and with all processors of this machine
    :param allow_unauthenticated: attach also where anyone on the network may run code on the cluster
    :raises RuntimeError: if other machines can reach the cluster and it does not ask for Ray's token
    :raises ValueError: if the cluster has too few CPUs; Ray itself would wait for them without a word
    """
    with _connection(address, allow_unauthenticated):
        _check_authenticated(allow_unauthenticated)
        _check_cpus(n_cpus, what)
        yield


@contextmanager
def _connection(address: str | None, allow_unauthenticated: bool) -> Iterator[None]:
    global _n_users
    if ray.is_initialized() and not _n_users:
        yield
        return
    if not ray.is_initialized():
        address = address or os.environ.get("RAY_ADDRESS") or "local"
        if address == "local":
            _start()
        else:
            _attach(address, allow_unauthenticated)
    _n_users += 1
    try:
        yield
    finally:
        _n_users -= 1
        if not _n_users:
            ray.shutdown()


def _start() -> None:
    for name, value in {**START_TIMEOUTS, "RAY_USAGE_STATS_ENABLED": "0"}.items():
        os.environ.setdefault(name, value)
    # Without this Ray listens on all interfaces, also where `_node_ip_address` is on loopback; it is how Ray keeps to
    # loopback on macOS and Windows. The environment variable behind it is read only once, when Ray is imported.
    listens_to_others = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        ray.init("local", include_dashboard=False, object_store_memory=OBJECT_STORE_MEMORY)
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = listens_to_others


def _attach(address: str, allow_unauthenticated: bool) -> None:
    # Refused before anything is sent. What "auto" finds, and what loopback stands for, is known only afterwards
    is_local = address == "auto" or _host(address) in LOOPBACK
    if not (is_local or allow_unauthenticated or _asks_for_token()):
        raise _unauthenticated(address)
    ray.init(address)


def _check_authenticated(allow_unauthenticated: bool) -> None:
    address = ray.get_runtime_context().gcs_address
    if allow_unauthenticated or _host(address) in LOOPBACK:
        return
    # Our own settings do not tell: a cluster without tokens lets also those in that bring one
    task = ray.remote(_asks_for_token).options(num_cpus=0)
    if not ray.get(task.remote(), timeout=ANSWER_TIMEOUT):
        raise _unauthenticated(address)


def _check_cpus(n_cpus: float, what: str) -> None:
    if ray.util.get_current_placement_group() is not None:
        return  # its CPUs are reserved for us and count as taken
    enough = n_cpus - 1e-6  # fractions do not sum up exactly
    n_there = ray.cluster_resources().get("CPU", 0)
    if n_there < enough:
        raise _too_few_cpus(n_cpus, what, f"has {n_there:g}")
    deadline = time.monotonic() + FREE_CPUS_WAIT
    while (n_free := ray.available_resources().get("CPU", 0)) < enough:
        if time.monotonic() > deadline:
            raise _too_few_cpus(n_cpus, what, f"has {n_free:g} left of {n_there:g}")
        time.sleep(0.1)


def _asks_for_token() -> bool:
    """Whether Ray's token authentication is on in this process, which on a cluster has it from the cluster."""
    return os.environ.get("RAY_AUTH_MODE", "").lower() == "token"


def _host(address: str) -> str:
    return address.rpartition("://")[2].rpartition(":")[0].strip("[]")


def _unauthenticated(address: str) -> RuntimeError:
    return RuntimeError(
        f"Other machines can reach the Ray cluster at {address}, and whoever reaches it may run code there unless it asks for "
        "a token; start it with RAY_AUTH_MODE=token and set that here too (`ray get-auth-token` shows the token), or pass "
        "allow_unauthenticated=True if you trust everyone on its network."
    )


def _too_few_cpus(n_cpus: float, what: str, has: str) -> ValueError:
    return ValueError(
        f"{what} need {n_cpus:g} CPUs, and the Ray cluster at {ray.get_runtime_context().gcs_address} {has}; ask for fewer "
        "actors or fewer CPUs for each, or give the address of a larger cluster."
    )
