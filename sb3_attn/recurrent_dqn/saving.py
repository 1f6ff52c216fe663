"""Saving and loading: atomic files, and a check that a loaded replay buffer fits."""

import inspect
import io
import pathlib
import warnings
from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar, TypeVar

import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv
from torch.torch_version import TorchVersion

from sb3_attn.common.files import append_checksum, replace_on_success
from sb3_attn.recurrent_dqn.networks import RecurrentQNetwork
from sb3_attn.recurrent_dqn.parameter_checks import check_adam_state, refuse_nan
from sb3_attn.recurrent_dqn.plain_settings import append_settings
from sb3_attn.recurrent_dqn.safe_loading import load_pickle, read_data, safe_objects, trusted_names
from sb3_attn.replay import SequenceReplayBuffer
from sb3_attn.version import __version__

SelfSaveAndLoad = TypeVar("SelfSaveAndLoad", bound="SaveAndLoad")


class SaveAndLoad(OffPolicyAlgorithm):
    """
    Mixin of an algorithm with a ``SequenceReplayBuffer``.

    A save that fails leaves the old file as it was, and a replay buffer that does not fit the model is refused.
    """

    #: Values for arguments that a model saved by an earlier version lacks, where today's default would change what it does
    former_defaults: ClassVar[Mapping[str, Any]] = {}
    #: From the former name of an argument to the present one
    former_arguments: ClassVar[Mapping[str, str]] = {}
    #: Algorithm and version that saved the zip from which this model was loaded; ``None`` if the zip is too old to say
    saved_by: str | None = None
    q_net: RecurrentQNetwork
    trace_length: int | None
    burn_in_length: int
    sequence_period: int | None
    stored_state: bool
    use_masking: bool

    @classmethod
    @abstractmethod
    def check_values(cls, values: Mapping[str, Any]) -> None:
        """Check arguments, by name, each on its own."""

    @property
    @abstractmethod
    def n_replay_envs(self) -> int:
        """Number of environments that fill the replay buffer."""

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        refuse_nan(self.get_parameters(), "is not saved; load an earlier checkpoint")
        self.saved_by = f"{_algorithm(type(self))} of sb3_attn {__version__}"
        if isinstance(path, io.BufferedIOBase):  # it may not be readable
            file = io.BytesIO()
            super().save(file, exclude, include)
            append_settings(file, vars(self))
            path.write(file.getvalue())
            return
        with replace_on_success(path, suffix="zip") as temporary:
            super().save(temporary, exclude, include)
            append_settings(temporary, vars(self))

    @classmethod
    def load(
        cls: type[SelfSaveAndLoad],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        trust: bool | Collection[str | type] = False,
        **kwargs: Any,
    ) -> SelfSaveAndLoad:
        """
        Load the model from a zip-file, as SB3 does, but without running code from it.

        :param path: path to the file (or a file-like) where to load the agent from
        :param env: the new environment to run the loaded model on
        :param device: Device on which the code should run.
        :param custom_objects: Dictionary of objects to replace upon loading
        :param print_system_info: Whether to print system info from the saved model and the current system info
        :param force_reset: Force call to ``reset()`` before training
        :param trust: ``True`` if you trust the source of the file: all of it is then unpickled, as by SB3. A list names
            further classes and functions that the file may use, such as ``["my_module.MyCore"]`` or ``[MyCore]``
        :param kwargs: extra arguments to change the model when loading
        :return: new model instance with loaded parameters
        :raises UnsafePickleError: if the file needs other classes or functions than those that are known to be harmless,
            such as your own, or a function as the learning rate
        :raises RefusedFileError: if the file is damaged, or would need many times its size in memory
        :raises ValueError: if another algorithm saved it, an argument in ``kwargs`` is wrong, or a parameter is NaN. A warning
            says so if a newer version saved it
        :raises TypeError: if ``kwargs`` has arguments that the algorithm does not have, such as those of the policy
        """
        custom_objects = custom_objects or {}
        data = read_data(path)
        if "saved_by" in data:
            _check_origin(str(data["saved_by"]), cls, path)
        kwargs = {cls.former_arguments.get(name, name): value for name, value in kwargs.items()}
        known = data.keys() | inspect.signature(cls).parameters.keys() | {"default_frequency"}
        if unknown := [name for name in kwargs if name not in known]:  # SB3 would ignore them
            raise TypeError(
                f"load() got {', '.join(f'{name}={kwargs[name]!r}' for name in unknown)}, but {_algorithm(cls)} has no such "
                "arguments; leave them out (those of the policy are in the zip, and cannot be changed)."
            )
        cls.check_values(kwargs)
        kwargs = {name: value for name, value in cls.former_defaults.items() if name not in data} | kwargs
        if trust is not True:
            custom_objects = safe_objects(data, path, custom_objects, trusted_names(trust)) | custom_objects
        return super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)

    def set_parameters(self, load_path_or_dict: Any, exact_match: bool = True, device: th.device | str = "auto") -> None:
        parameters = load_path_or_dict
        if not isinstance(parameters, dict):
            parameters = load_from_zip_file(parameters, device=device, load_data=False)[1]
        refuse_nan(parameters, "is not loaded; use another checkpoint")
        if "policy.optimizer" in parameters:
            check_adam_state(self.policy.optimizer, parameters["policy.optimizer"])
        super().set_parameters(parameters, exact_match, device)

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        if isinstance(path, io.BufferedIOBase):
            return super().save_replay_buffer(path)
        with replace_on_success(path, suffix="pkl") as temporary:
            super().save_replay_buffer(temporary)
            append_checksum(temporary)

    def load_replay_buffer(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        truncate_last_traj: bool = True,
        trust: bool | Collection[str | type] = False,
    ) -> None:
        """
        Load a replay buffer from a pickle file, without running code from it.

        :param path: Path to the pickled replay buffer.
        :param truncate_last_traj: accepted because SB3 has it; changes nothing
        :param trust: as for ``load``
        :raises UnsafePickleError: if the file needs classes or functions that are not known to be harmless
        :raises ValueError: if it does not fit this model; its own replay buffer is then left as it is
        """
        own = self.replay_buffer
        try:
            self.replay_buffer = load_pickle(path, trust)
            self._check_replay(path)
            self.replay_buffer.device = self.device
        except BaseException:
            self.replay_buffer = own  # SB3 replaces it before it checks anything
            raise
        # The open episodes of the buffer are not those of the environments now, so the next `learn()` resets the environments
        self._last_obs = None

    def _check_replay(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """Check that a loaded replay buffer fits this model."""
        loaded, expected = _description(self.replay_buffer), self._expected_replay()
        if different := [key for key in expected if loaded.get(key) != expected[key]]:
            raise ValueError(
                f"path={path} holds a replay buffer with {_as_text(loaded, different)}, but this model needs "
                f"{_as_text(expected, different)}; load it into a model with the arguments of the one that saved it."
            )
        assert isinstance(self.replay_buffer, SequenceReplayBuffer), "its class is the same"
        shapes = self.replay_buffer.core_state_shapes
        needed = [tuple(array.shape[1:]) for array in self.q_net.initial_state(1)]
        if shapes not in (None, needed):
            raise ValueError(
                f"path={path} holds states of a memory of the shapes {shapes}, but this model's has {needed}; load it into a "
                "model with the same core and core_kwargs."
            )

    def _expected_replay(self) -> dict[str, Any]:
        """The properties that a replay buffer must have for this model to learn from it."""
        assert self.replay_buffer_class is not None, "the constructor has chosen one"
        return {
            "class": self.replay_buffer_class.__name__,
            "n_envs": self.n_replay_envs,
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "trace_length": self.trace_length,
            "burn_in_length": self.burn_in_length,
            "sequence_period": self.sequence_period or self.trace_length,
            "stored_state": self.stored_state,
            "use_masking": self.use_masking,
        }


def _algorithm(cls: type[SaveAndLoad]) -> str:
    """Name of the algorithm of this package that a class is, or that it derives from."""
    return next(base.__name__ for base in cls.__mro__ if base.__module__.startswith("sb3_attn."))


def _check_origin(saved_by: str, cls: type[SaveAndLoad], path: str | pathlib.Path | io.BufferedIOBase) -> None:
    algorithm, _, version = saved_by.partition(" of sb3_attn ")
    if algorithm != _algorithm(cls):
        raise ValueError(f"{path} was saved by {algorithm}, but {_algorithm(cls)} is to load it; use {algorithm}.load().")
    if TorchVersion(version) > __version__:
        warnings.warn(
            f"{path} was saved by sb3_attn {version}, which is newer than {__version__} here; what that added is lost, or "
            "works differently.",
            stacklevel=3,
        )


def _description(buffer: Any) -> dict[str, Any]:
    """The properties of a replay buffer that ``_expected_replay`` asks for."""
    if not isinstance(buffer, SequenceReplayBuffer):
        return {"class": type(buffer).__name__}
    return {
        "class": type(buffer).__name__,
        "n_envs": buffer.n_envs,
        "observation_space": buffer.observation_space,
        "action_space": buffer.action_space,
        "trace_length": None if buffer.whole_episodes else buffer.trace_length,
        "burn_in_length": buffer.burn_in_length,
        "sequence_period": None if buffer.whole_episodes else buffer.sequence_period,
        "stored_state": buffer.stored_state,
        "use_masking": buffer.use_masking,
    }


def _as_text(description: dict[str, Any], keys: list[str]) -> str:
    return ", ".join(f"{key}={description.get(key)}" for key in keys)
