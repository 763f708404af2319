"""How a sweep is launched: what `hydra.launcher` says of it."""

from dataclasses import dataclass

from manyfit.config.errors import ConfigError


@dataclass(frozen=True)
class Launch:
    """How the populations of a sweep are trained.

    Attributes:
        max_members: Largest population; None: as large as pays.
        workers: Processes that train populations side by side; None: one for each GPU, or as many as a cluster holds.
        ray: Whether they are Ray's.
        address: Of the cluster, `auto` that of this machine; None: Ray is started here, for this sweep.
        cpus_per_worker: Cores that each asks for; None: all that a machine of the cluster has for it.
    """

    max_members: int | None = None
    workers: int | None = None
    ray: bool = False
    address: str | None = None
    cpus_per_worker: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        for key, otherwise in (("max_members", "null"), ("workers", "auto"), ("cpus_per_worker", "auto")):
            value = getattr(self, key)
            if value is not None and not (type(value) is int and value >= 1):  # true is no number
                raise ConfigError(f"hydra.launcher.{key} must be >= 1 or {otherwise}, but got {value}.")
        if self.address and self.address.startswith("ray://"):  # through which no messages can be streamed
            raise ConfigError(
                f"hydra.launcher.address must be auto or HOST:PORT, but got {self.address}. Start the command on a "
                "machine of the cluster, with auto."
            )
