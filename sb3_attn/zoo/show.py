"""The commands ``sb3-attn show`` and ``sb3-attn ball``, which look into a saved model; ``sb3_attn.viz`` does the work."""

import argparse
import ast
import contextlib
import importlib
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv

from sb3_attn.recurrent_dqn.safe_loading import RefusedFileError
from sb3_attn.viz.atari_ball import ball_game, measure_ball_attention
from sb3_attn.viz.occlusion import image_key
from sb3_attn.viz.page import write_index
from sb3_attn.viz.recording import record_episode, wrap_env
from sb3_attn.viz.report import PAGE, summary, write_occlusion, write_report
from sb3_attn.viz.sources import find_sources
from sb3_attn.viz.video import FORMATS
from sb3_attn.zoo.loading import LOADABLE, load_model, make_env, model_path
from sb3_attn.zoo.registration import register
from sb3_attn.zoo.trust import TRUST_HELP


def show(arguments: list[str], trust: bool | list[str] = False) -> None:
    """
    Run ``sb3-attn show``.

    :param arguments: the command line after the name of the command
    :param trust: as for ``RecurrentDQN.load``, for all files
    :raises SystemExit: with a sentence for the user, if the arguments, the model and the environment do not fit
    """
    parser = _parser("show", "Record a saved model and show what it attends to, remembers and expects.")
    parser.add_argument("--out", type=Path, default=Path("show"), help="folder to write to (show)")
    parser.add_argument("--episodes", type=_positive, default=1, help="number of episodes (1)")
    parser.add_argument("--steps", type=_positive, default=1000, help="number of steps after which a recording stops (1000)")
    parser.add_argument(
        "--format", choices=[*FORMATS, PAGE], default="mp4", help="format of the videos, or html for pages alone (mp4)"
    )
    parser.add_argument("--fps", type=float, help="frames per second (the environment's)")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="what the entries of a vector observation are, in order")
    parser.add_argument("--no-render", action="store_true", help="do not render the environment")
    parser.add_argument(
        "--occlusion", type=_positive, metavar="N", help="add occlusion saliency of N observations per episode; for any model"
    )
    args = parser.parse_args(arguments)
    with _sentences("show"):
        model, env = _load(args, trust)
        sources = find_sources(model, args.names) if args.names else None
        if args.occlusion and not image_key(model.observation_space)[0]:
            raise ValueError(
                "--occlusion covers parts of an image, and the observations of this model have none; leave it out."
            )
        args.out.mkdir(parents=True, exist_ok=True)
        pages = []
        for number in range(1, args.episodes + 1):
            render = not args.no_render
            episode = record_episode(model, env, args.steps, not args.stochastic, sources, render=render)
            ended = "" if episode.finished else " (cut off)"
            heading = f"Episode {number}: {len(episode)} steps{ended}, return {episode.rewards.sum():g}"
            print(heading)
            pages.append((f"episode_{number}.html", heading))
            write_report(episode, args.out, f"episode_{number}", args.format, args.fps)
            for line in summary(episode):
                print(f"  {line}")
            if args.occlusion:
                write_occlusion(model, episode, args.occlusion, args.out / f"episode_{number}_occlusion.png")
        if len(pages) > 1:
            write_index(args.out / "index.html", f"{args.model.name} in {args.env}", pages)
        env.close()
    print(f"Written to {args.out}/")


def ball(arguments: list[str], trust: bool | list[str] = False) -> None:
    """
    Run ``sb3-attn ball``.

    :param arguments: the command line after the name of the command
    :param trust: as for ``RecurrentDQN.load``, for all files
    :raises SystemExit: with a sentence for the user, if the arguments, the model and the environment do not fit
    """
    parser = _parser("ball", "Measure how much a model attends to the ball, in Atari's Pong and Breakout.")
    parser.add_argument("--steps", type=_positive, default=1000, help="number of steps (1000)")
    args = parser.parse_args(arguments)
    with _sentences("ball"):
        game = ball_game(args.env)
        model, env = _load(args, trust)
        for recorded, measured in measure_ball_attention(model, env, game, args.steps, not args.stochastic):
            print(f"{recorded.name}: {measured}")
        env.close()


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"sb3-attn {name}", description=description, epilog=TRUST_HELP)
    parser.add_argument(
        "model", type=Path, help="zip file of a model; the settings of an RL Zoo run are used if they lie beside it"
    )
    parser.add_argument("--env", required=True, help="id of the environment")
    parser.add_argument("--algo", help=f"algorithm, {', '.join(LOADABLE)} (the first that has the saved policy)")
    parser.add_argument("--seed", type=int, default=0, help="seed of environment and exploration (0)")
    parser.add_argument(
        "--env-kwargs", nargs="+", default=[], metavar="KEY:VALUE", help="arguments of the environment's constructor"
    )
    parser.add_argument("--gym-packages", nargs="+", default=[], help="packages to import because they register environments")
    parser.add_argument("--vec-normalize", type=Path, metavar="FILE", help="a saved VecNormalize")
    parser.add_argument("--stochastic", action="store_true", help="explore as in training instead of acting greedily")
    parser.add_argument("--device", default="auto", help="PyTorch device (auto)")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} has to be a whole number of at least 1")
    return int(text)


@contextlib.contextmanager
def _sentences(name: str) -> Any:
    """End the command with the sentence of an error that is meant for the user, without a traceback."""
    try:
        yield
    except RefusedFileError:
        raise  # the command line has a sentence for it
    except (ValueError, FileNotFoundError, gym.error.Error) as error:
        raise SystemExit(f"sb3-attn {name}: {error}") from error


def _load(args: argparse.Namespace, trust: bool | list[str]) -> tuple[BaseAlgorithm, VecEnv]:
    path = model_path(args.model)
    _import_environments(args.gym_packages)
    set_random_seed(args.seed)
    model = load_model(path, args.algo, args.device, trust)
    env_kwargs = _env_kwargs(args.env_kwargs)
    settings = _settings_folder(path, args.env)
    if settings is None:
        return model, make_env(model, args.env, env_kwargs, args.seed, args.vec_normalize, trust)
    from sb3_attn.zoo.run_folders import make_run_env

    return model, wrap_env(model, make_run_env(settings, args.env, env_kwargs, args.seed, trust))


def _import_environments(packages: list[str]) -> None:
    importlib.import_module("sb3_attn.envs")
    with contextlib.suppress(ModuleNotFoundError):  # without RL Zoo its environments are not there
        register()
        importlib.import_module("rl_zoo3.import_envs")
    try:
        for package in packages:
            importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ValueError(f"--gym-packages {' '.join(packages)}: {error}; install it, or run where it can be found.") from error


def _env_kwargs(pairs: list[str]) -> dict[str, Any]:
    kwargs: dict[str, Any] = {}
    for pair in pairs:
        key, colon, value = pair.partition(":")
        if not colon:
            raise ValueError(f"--env-kwargs {pair} is not a key:value; write it as in length:5.")
        try:
            kwargs[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            kwargs[key] = value  # a string may be given without quotes
    return kwargs


def _settings_folder(path: Path, env_id: str) -> Path | None:
    """The folder in which RL Zoo saved the settings of a model's training; ``None`` if there is none."""
    # As RL Zoo's EnvironmentName writes the id: without a module to import, and without slashes
    folder = path.parent / env_id.rpartition(":")[2].replace("/", "-")
    return folder if (folder / "config.yml").is_file() else None
