"""The commands ``sb3-attn show`` and ``sb3-attn ball``, which look into a saved model; ``sb3_attn.viz`` does the work."""

import argparse
import ast
import contextlib
import importlib
import itertools
import re
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv

from sb3_attn.viz.atari_ball import ball_game, measure_ball_attention
from sb3_attn.viz.figures import save_figure
from sb3_attn.viz.heat_maps import recall_figure
from sb3_attn.viz.occlusion import image_key
from sb3_attn.viz.page import write_index
from sb3_attn.viz.recall import network_with_memory, recall_density
from sb3_attn.viz.recording import Episode, record_episode, wrap_env
from sb3_attn.viz.report import PAGE, fits_contact_sheet, summary, write_contact_sheet, write_occlusion, write_report
from sb3_attn.viz.sources import WeightSource, find_sources
from sb3_attn.viz.video import FORMATS, check_fps
from sb3_attn.zoo.loading import load_model, make_env
from sb3_attn.zoo.mistakes import known_arguments, sentences
from sb3_attn.zoo.registration import register
from sb3_attn.zoo.saved_models import SavedModel, add_model_arguments, find_model
from sb3_attn.zoo.trust import TRUST_HELP, printable

#: Number of episodes, if they are over after one image: as many as one looks at on one sheet
SHORT_EPISODES = 16

#: Names of what is written
OWN_FILES = re.compile(r"episode_\d+(_.+)?\.(npz|html|png|mp4|gif)|contact_sheet\.png|index\.html")


def show(arguments: list[str], trust: bool | list[str] = False) -> None:
    """
    Run ``sb3-attn show``.

    :param arguments: the command line after the name of the command
    :param trust: as for ``RecurrentDQN.load``, for all files
    :raises SystemExit: with a sentence for the user, if the arguments, the model and the environment do not fit
    """
    parser = _parser("show", "Record a saved model and show what it attends to, remembers and expects.")
    parser.add_argument("--out", type=Path, default=Path("show"), help="folder to write to (show)")
    parser.add_argument(
        "--episodes", type=_positive, help=f"number of episodes (1, or {SHORT_EPISODES} if they are over after one image)"
    )
    parser.add_argument("--steps", type=_positive, default=1000, help="number of steps after which a recording stops (1000)")
    parser.add_argument(
        "--format", choices=[*FORMATS, PAGE], default="mp4", help="format of the videos, or html for pages alone (mp4)"
    )
    parser.add_argument("--fps", type=_frames_per_second, help="frames per second (the environment's)")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="what the entries of a vector observation are, in order")
    parser.add_argument("--no-render", action="store_true", help="do not render the environment")
    parser.add_argument(
        "--occlusion", type=_positive, metavar="N", help="add occlusion saliency of N observations per episode; for any model"
    )
    parser.add_argument(
        "--recall",
        action="store_true",
        help="add which earlier observations the Q-values of a step depend on; for rdqn and r2d2, slow with NTM and DNC",
    )
    args = parser.parse_args(arguments)
    with sentences("sb3-attn show"):
        found = find_model(args, trust)
        print(f"Model: {printable(str(found.path))}")
        model, env = _load(found, args, trust)
        sources = find_sources(model, args.names) if args.names else None
        if args.occlusion and not image_key(model.observation_space)[0]:
            raise ValueError(
                "--occlusion covers parts of an image, and the observations of this model have none; leave it out."
            )
        if args.recall:
            network_with_memory(model)  # fails before anything is recorded
        _make_folder(args.out)
        earlier = {path: path.stat().st_mtime_ns for path in args.out.iterdir() if OWN_FILES.fullmatch(path.name)}
        pages = _show_episodes(model, env, sources, args, found.env_id)
        if len(pages) > 1:
            write_index(args.out / "index.html", f"Episodes of {found.env_id}", pages)
        env.close()
    print(f"Written to {args.out}/")
    if left := sorted(path.name for path, time in earlier.items() if path.stat().st_mtime_ns == time):
        print(f"It also has files of an earlier recording, such as {left[0]}; give another --out to keep recordings apart.")


def _show_episodes(
    model: BaseAlgorithm, env: VecEnv, sources: list[WeightSource] | None, args: argparse.Namespace, env_id: str
) -> list[tuple[str, str]]:
    """Record episodes and write their files; the names and headings of their pages are returned."""
    on_sheet: list[Episode] = []
    pages: list[tuple[str, str]] = []
    for number in itertools.count(1):
        episode = record_episode(model, env, args.steps, not args.stochastic, sources, render=not args.no_render)
        ended = "" if episode.finished else " (cut off)"
        heading = f"Episode {number}: {len(episode)} steps{ended}, return {episode.rewards.sum():g}"
        print(heading)
        name = f"episode_{number}"
        if args.format != PAGE and fits_contact_sheet(episode, model):
            on_sheet.append(episode)
            episode.save(args.out / f"{name}.npz")
        else:
            write_report(episode, args.out, name, args.format, args.fps, f"{env_id}. {heading}")
            pages.append((f"{name}.html", heading))
        for line in summary(episode):
            print(f"  {line}")
        if args.occlusion:
            write_occlusion(model, episode, args.occlusion, args.out / f"{name}_occlusion.png")
        if args.recall:
            save_figure(recall_figure(recall_density(model, episode)), args.out / f"{name}_recall.png")
        if number == (args.episodes or (SHORT_EPISODES if on_sheet else 1)):
            break
    if on_sheet:
        write_contact_sheet(model, on_sheet, args.out / "contact_sheet.png")
    return pages


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
    with sentences("sb3-attn ball"):
        found = find_model(args, trust)
        game = ball_game(found.env_id)
        print(f"Model: {printable(str(found.path))}")
        model, env = _load(found, args, trust)
        for recorded, measured in measure_ball_attention(model, env, game, args.steps, not args.stochastic):
            print(f"{recorded.name}: {measured}")
        env.close()


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"sb3-attn {name}", description=description, epilog=TRUST_HELP)
    add_model_arguments(parser)
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


def _frames_per_second(text: str) -> float:
    try:
        check_fps(fps := float(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} has to be a finite number above 0") from error
    return fps


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # it is a file, or lies in one, or in a folder of others
        raise ValueError(f"--out {path} cannot be made a folder ({error.strerror}); give another.") from error


@known_arguments()
def _load(found: SavedModel, args: argparse.Namespace, trust: bool | list[str]) -> tuple[BaseAlgorithm, VecEnv]:
    _import_environments()  # those of --gym-packages are there already
    set_random_seed(args.seed)
    model = load_model(found.path, found.algo, args.device, trust)
    env_kwargs = _env_kwargs(args.env_kwargs)
    if found.settings is None:
        return model, make_env(model, found.env_id, env_kwargs, args.seed, args.vec_normalize, trust)
    from sb3_attn.zoo.run_folders import make_run_env

    if args.vec_normalize is not None:
        raise ValueError(f"--vec-normalize {args.vec_normalize}: the run in {found.settings} has its own; leave it out.")
    return model, wrap_env(model, make_run_env(found.settings, found.env_id, env_kwargs, args.seed, trust))


def _import_environments() -> None:
    importlib.import_module("sb3_attn.envs")
    with contextlib.suppress(ModuleNotFoundError):  # without RL Zoo its environments are not there
        register()
        importlib.import_module("rl_zoo3.import_envs")


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
