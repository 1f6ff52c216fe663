"""Connections to a Ray cluster: an open one, one to attach to, or one that is started on this machine."""

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from tempfile import TemporaryDirectory

import ray
from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]  # it is written in Cython

#: Bytes of shared memory of a cluster we start. It only holds what is on the way between two processes, never the replay
OBJECT_STORE_MEMORY = 256 * 2**20

#: Seconds. Ray's defaults of 5 to 60 are too short while the processors are busy with training
START_TIMEOUTS = {
    "RAY_gcs_rpc_server_connect_timeout_s": "120",
    "RAY_gcs_server_port_wait_time_s": "120",
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_worker_register_timeout_seconds": "180",
}

#: Seconds to wait for free processors; Ray releases those of actors that have just ended with a delay
FREE_CPUS_WAIT = 10.0

#: Seconds to wait for the one task that checks a cluster
CHECK_TIMEOUT = 120.0

#: Only a cluster with one of these addresses has all its ports on loopback
LOOPBACK = ("127.0.0.1", "::1", "localhost")

#: ``runtime_env`` of actors: there are many of them, and small networks or simulators gain nothing from more threads
ONE_THREAD = {"env_vars": {"OMP_NUM_THREADS": "1"}}

_n_users = 0  # number of blocks that share the connection opened here
_resources = ExitStack()  # what is to be done at the end of that connection


@contextmanager
def connect(n_cpus: float, what: str, address: str | None = None, allow_unauthenticated: bool = False) -> Iterator[None]:
    """
    Connect to a Ray cluster for the duration of the block.

    An open connection is reused, whatever ``address`` says, and stays open if it was not opened here. A connection opened
    here is closed at the end of the last block that shares it, and so is the cluster if it was started for it.

    :param n_cpus: number of CPUs that the block will use in total
    :param what: what uses them, for an error, such as ``"4 actors"``
    :param address: address of a cluster to attach to; ``None`` means that of the environment variable ``RAY_ADDRESS``, and
        without one a cluster is started, on loopback and with all processors of this machine, which asks for a token and
        whose files other users of the machine cannot read
    :param allow_unauthenticated: attach even if anyone on the network may run code on the cluster
    :return: a context manager
    :raises RuntimeError: if other machines can reach the cluster and it does not require Ray's token
    :raises ValueError: if the cluster has too few CPUs, for which Ray itself would wait silently
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
            _resources.enter_context(_private_token())
            _start(_resources.enter_context(_private_folder()))
        else:
            _attach(address, allow_unauthenticated)
        _resources.callback(ray.shutdown)
    _n_users += 1
    try:
        yield
    finally:
        _n_users -= 1
        if not _n_users:
            _resources.close()


@contextmanager
def _private_token() -> Iterator[None]:
    """Have a token that only this process and those it starts know; Ray saves its own where others can read it."""
    if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        yield
        return
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    AuthenticationTokenLoader.instance().reset_cache()
    try:
        yield
    finally:
        del os.environ["RAY_AUTH_TOKEN"]
        AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _private_folder() -> Iterator[str]:
    """A folder for Ray's files that nobody else can look into; Ray makes its own for everyone."""
    # Not tempfile's own choice, which on macOS is a path too long for the sockets in it
    with TemporaryDirectory(prefix="ray", dir="/tmp" if os.path.isdir("/tmp") else None, ignore_cleanup_errors=True) as folder:
        yield os.path.join(folder, "ray")


def _start(folder: str) -> None:
    for name, value in {**START_TIMEOUTS, "RAY_USAGE_STATS_ENABLED": "0"}.items():
        os.environ.setdefault(name, value)
    # Otherwise Ray listens on all interfaces, even if `_node_ip_address` is on loopback. On macOS and Windows Ray itself
    # stays on loopback by this constant. Its environment variable is read only once, when Ray is imported.
    listens_to_others = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        ray.init("local", include_dashboard=False, object_store_memory=OBJECT_STORE_MEMORY, _temp_dir=folder)
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = listens_to_others


def _attach(address: str, allow_unauthenticated: bool) -> None:
    # Refused before anything is sent. The cluster behind "auto" or a loopback address is only known after attaching
    is_local = address == "auto" or _host(address) in LOOPBACK
    if not (is_local or allow_unauthenticated or _requires_token()):
        raise _unauthenticated(address)
    ray.init(address)


def _check_authenticated(allow_unauthenticated: bool) -> None:
    address = ray.get_runtime_context().gcs_address
    if allow_unauthenticated or _host(address) in LOOPBACK:
        return
    # Our own settings prove nothing: a cluster without token authentication also accepts clients that have a token
    task = ray.remote(_requires_token).options(num_cpus=0)
    if not ray.get(task.remote(), timeout=CHECK_TIMEOUT):
        raise _unauthenticated(address)


def _check_cpus(n_cpus: float, what: str) -> None:
    if ray.util.get_current_placement_group() is not None:
        return  # its CPUs are reserved for us, but not counted as available
    enough = n_cpus - 1e-6  # sums of fractions are not exact
    n_total = ray.cluster_resources().get("CPU", 0)
    if n_total < enough:
        raise _too_few_cpus(n_cpus, what, f"has {n_total:g}")
    deadline = time.monotonic() + FREE_CPUS_WAIT
    while (n_free := ray.available_resources().get("CPU", 0)) < enough:
        if time.monotonic() > deadline:
            raise _too_few_cpus(n_cpus, what, f"has {n_free:g} left of {n_total:g}")
        time.sleep(0.1)


def _requires_token() -> bool:
    """Check whether token authentication is on in this process; a process on a cluster has the setting of the cluster."""
    return os.environ.get("RAY_AUTH_MODE", "").lower() == "token"


def _host(address: str) -> str:
    return address.rpartition("://")[2].rpartition(":")[0].strip("[]")


def _unauthenticated(address: str) -> RuntimeError:
    return RuntimeError(
        f"Other machines can reach the Ray cluster at {address}, and may run code there unless it requires a token; start it "
        "with RAY_AUTH_MODE=token and set that here too (`ray get-auth-token` shows the token), or pass "
        "allow_unauthenticated=True if you trust everyone on its network."
    )


def _too_few_cpus(n_cpus: float, what: str, has: str) -> ValueError:
    return ValueError(
        f"{what} need {n_cpus:g} CPUs, and the Ray cluster at {ray.get_runtime_context().gcs_address} {has}; use fewer "
        "actors or fewer CPUs for each, or give the address of a larger cluster."
    )
