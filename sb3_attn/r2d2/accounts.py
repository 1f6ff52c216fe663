"""The books on steps."""

from collections import Counter

from sb3_attn.r2d2.sink import Receipt
from sb3_attn.r2d2.trajectory import Trajectory


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
        """
        self.n_sent[trajectory.life] = max(trajectory.n_sent, self.n_sent.get(trajectory.life, 0))
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
                f"rejected {dict(self.n_rejected)}; these must agree, so this is a fault of sb3_attn: please report it."
            )
