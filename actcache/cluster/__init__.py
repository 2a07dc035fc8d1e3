"""Work on many processes and machines, on Ray: sessions, and pools of workers that run tasks."""

from typing import TYPE_CHECKING

from actcache.lazy import attach

if TYPE_CHECKING:
    from actcache.cluster.pool import Pool
    from actcache.cluster.session import Session, Workers, connect
    from actcache.cluster.task import Loaded, Task

__all__ = ["Loaded", "Pool", "Session", "Task", "Workers", "connect"]

__getattr__ = attach(__name__, __file__)
