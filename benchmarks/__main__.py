"""
The benchmarks with short settings, in some minutes: each runs, its figures are no evidence. Visual search is left out.

    python -m benchmarks

The figures that the README quotes are from the commands in the README beside this file.
"""

import tempfile
from pathlib import Path

from benchmarks import attention_speed, cores, darqn, learning, memory_speed, r2d2, speed, supervised

if __name__ == "__main__":  # worker processes started with "spawn" import this module again
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        print("## Learning\n")
        learning.main(
            ["--task", "MemoryChain-v0", "--seeds", "1", "--out", str(out / "learning.json"), "--folder", str(out / "logs")]
        )
        darqn.main(["--seeds", "1", "--steps", "2000", "--out", str(out / "darqn.json")])
        logs = ["--out", str(out / "cores.json"), "--folder", str(out / "logs")]
        cores.main(["--task", "MemoryChain-v0", "--core", "key_value", "--seeds", "1", *logs])
        supervised.main(
            ["--task", "copy", "--core", "dnc", "--seeds", "1", "--seconds", "30", "--out", str(out / "supervised.json")]
        )
        print("\n## Speed\n")
        speed.main(["--rounds", "3", "--steps", "400", "--update-rounds", "50", "--out", str(out / "speed.json")])
        print("\n## Speed of attention\n")
        attention_speed.main(["--rounds", "5"])
        print("\n## Speed of memories\n")
        memory_speed.main(["--rounds", "3", "--out", str(out / "memory_speed.json")])
        print("\n## R2D2")
        r2d2.main([*r2d2.BENCHMARKS, "--scale", "0.05", "--rounds", "1", "--out", str(out / "r2d2.json")])
