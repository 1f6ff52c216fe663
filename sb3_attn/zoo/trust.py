"""The option ``--trust``, which every command takes."""

from sb3_attn.recurrent_dqn.safe_loading import RefusedFileError, UnsafePickleError

TRUST_HELP = (
    "Models and run folders are read without running code from them. --trust=NAME,... allows further classes and functions "
    "by their full names; --trust alone allows everything: only if you trust who made the files."
)


def split_trust(arguments: list[str]) -> tuple[bool | list[str], list[str]]:
    """
    Take ``--trust`` out of a command line.

    :param arguments: the command line
    :return: ``trust`` as for ``RecurrentDQN.load``, and the other arguments. Names follow an equals sign, since what follows
        a space may be the model
    """
    options = [argument for argument in arguments if argument == "--trust" or argument.startswith("--trust=")]
    names = [name for option in options for name in option.partition("=")[2].split(",") if name]
    return "--trust" in options or names, [argument for argument in arguments if argument not in options]


def trust_options(trust: bool | list[str]) -> list[str]:
    """
    The options that stand for a ``trust``.

    :param trust: as ``split_trust`` returns it
    :return: arguments of a command line
    """
    return ["--trust"] if trust is True else [f"--trust={name}" for name in trust or ()]


def refusal(error: RefusedFileError) -> str:
    """
    The sentence for a file that was refused, with the remedy that the command line has.

    :param error: what was raised
    :return: the sentence
    """
    text = str(error)
    if isinstance(error, UnsafePickleError):
        names = f"--trust={error.name}, or " if error.name.replace(".", "_").isidentifier() else ""
        text = f"{error.fault} If you trust who made it, add {names}--trust for everything."
    return printable(text)


def printable(text: str) -> str:
    """
    A sentence on one line, without what could control the terminal: it may quote names of hostile files.

    :param text: the sentence
    :return: its printable characters
    """
    return "".join(filter(str.isprintable, " ".join(text.split())))
