"""The books on steps."""

from collections import Counter

from sb3_attn.r2d2.sink import Receipt
from sb3_attn.r2d2.trajectory import Trajectory

REPORT = "that must not happen, so it is a fault of sb3_attn: please report it."


class Accounts:
    """Counts what actors sent, what came and what became of it: no step may be lost on the way, or come twice."""

    def __init__(self) -> None:
        #: Steps that each life of an actor says it has sent
        self.n_sent: dict[str, int] = {}
        self.n_received = 0
        self.n_inserted = 0
        self.n_rejected: Counter[str] = Counter()
        self._lives: dict[int, set[str]] = {}

    @property
    def n_restarts(self) -> int:
        """How often an actor came back after its death."""
        return sum(len(lives) - 1 for lives in self._lives.values())

    def book(self, trajectory: Trajectory, receipt: Receipt) -> None:
        """
        Enter a trajectory.

        :param trajectory: of any actor
        :param receipt: what became of it
        :raises RuntimeError: if one before it is missing, or it has been entered before
        """
        if trajectory.n_sent - trajectory.n_steps != self.n_sent.get(trajectory.life, 0):
            raise RuntimeError(
                f"actor {trajectory.actor} says it has sent {trajectory.n_sent} steps, {trajectory.n_steps} of them now, but "
                f"{self.n_sent.get(trajectory.life, 0)} had come before; {REPORT}"
            )
        self.n_sent[trajectory.life] = trajectory.n_sent
        self._lives.setdefault(trajectory.actor, set()).add(trajectory.life)
        self.n_received += trajectory.n_steps
        self.n_inserted += receipt.n_inserted
        self.n_rejected += receipt.n_rejected

    def check(self) -> None:
        """
        Check that steps sent = received = inserted + rejected.

        :raises RuntimeError: if not
        """
        sent, rejected = sum(self.n_sent.values()), sum(self.n_rejected.values())
        if not sent == self.n_received == self.n_inserted + rejected:
            raise RuntimeError(
                f"the actors sent {sent} steps, {self.n_received} were received, {self.n_inserted} inserted and {rejected} "
                f"rejected {dict(self.n_rejected)}; {REPORT}"
            )
