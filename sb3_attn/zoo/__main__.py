"""``python -m sb3_attn.zoo`` is the ``sb3-attn`` command."""

import sys

from sb3_attn.zoo.cli import main

if __name__ == "__main__":  # worker processes started with "spawn" import this module again
    sys.exit(main())
