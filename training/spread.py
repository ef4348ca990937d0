"""Where a comparison's chunks are worked on: in this process, in a pool of processes, or as tasks of a Ray cluster.

`training.compare` calls `spread`; results come in the order of the chunks whichever way is taken. A cluster that does not
answer is found out in a bounded time, before any work is sent.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from importlib.util import find_spec
from itertools import repeat

from training.comparison_work import Chunk, Job, Thinker, Thought, think
from utils.errors import ConfigError, SystemFault

RAY_LOCAL = "local"
"""The address that stands for a cluster started here for the one run."""

CONNECT_S = 5.0
ANSWER_S = 60.0
_ASK_RAY = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR'); ray.nodes()"


def spread(
    job: Job,
    chunks: Sequence[Chunk],
    *,
    workers: int = 1,
    ray_address: str | None = None,
    done: Callable[[Thought], None] = lambda thought: None,
) -> list[Thought]:
    """Work on all chunks.

    Parameters
    ----------
    job : Job
    chunks : sequence of Chunk
    workers : int
        Processes; 1 works in this one. With Ray's ``local``, the CPUs of the cluster.
    ray_address : str, optional
        ``local``, ``auto`` or ``HOST:PORT``. The nodes need the project and the replay folder at the same place.
    done : callable
        Called with each result, in order.

    Raises
    ------
    ConfigError
        If Ray is not installed, or its cluster does not answer, start or go on.
    """
    if ray_address is not None:
        results = _by_ray(job, chunks, workers, ray_address)
    elif workers == 1 or len(chunks) == 1:
        results = _here(job, chunks)
    else:
        results = _by_processes(job, chunks, min(workers, len(chunks)))
    thoughts = []
    with closing(results):
        for thought in results:
            done(thought)
            thoughts.append(thought)
    return thoughts


def check_ray(address: str) -> None:
    """Make sure that Ray is installed and that a cluster answers at an address.

    Raises
    ------
    ConfigError
        Within about a minute at the latest.
    """
    if find_spec("ray") is None:
        raise ConfigError("ray: Ray is not installed; install the extra: pip install 'stock-agents[ray]'")
    if address == RAY_LOCAL:
        return
    if address != "auto":
        _reach(address)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        # a client that cannot connect may hang or end its process, so another process asks first
        asked = subprocess.run(
            [sys.executable, "-c", _ASK_RAY, address],
            env=environment,
            capture_output=True,
            timeout=ANSWER_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(f"ray: no cluster answers at {address!r} within {ANSWER_S:g} s") from None
    if asked.returncode:
        *_, last = [line for line in asked.stderr.decode(errors="replace").splitlines() if line.strip()] or [
            "no reason"
        ]
        raise ConfigError(f"ray: no cluster answers at {address!r}: {last[:200]}")


def _reach(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"ray: {address!r} is no address; give local, auto or HOST:PORT")
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"ray: nothing answers at {address!r} ({error})") from None


def _here(job: Job, chunks: Sequence[Chunk]) -> Generator[Thought, None, None]:
    thinker = Thinker(job)
    try:
        for chunk in chunks:
            yield thinker.think(chunk)
    finally:
        thinker.close()


def _by_processes(job: Job, chunks: Sequence[Chunk], workers: int) -> Generator[Thought, None, None]:
    context = multiprocessing.get_context("spawn")  # a fork would copy threads and locks of model libraries
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            yield from pool.map(think, repeat(job), chunks)
        except BrokenProcessPool:
            raise ConfigError("workers: one of them was ended, most likely for want of memory; take fewer") from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _by_ray(job: Job, chunks: Sequence[Chunk], workers: int, address: str) -> Generator[Thought, None, None]:
    import ray

    options = {"num_cpus": workers, "include_dashboard": False} if address == RAY_LOCAL else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **options)
    except Exception as error:  # where its parts do not come up in time Ray raises a bare Exception
        ray.shutdown()
        raise ConfigError(f"ray: no cluster could be had at {address!r}: {_last_line(error)}") from error
    try:
        task = ray.remote(think)
        shared = ray.put(job)
        for reference in [task.remote(shared, chunk) for chunk in chunks]:
            yield ray.get(reference)
    except ray.exceptions.RayError as error:
        if isinstance(error, SystemFault):  # raised by a task, and then it is of both types
            raise
        raise ConfigError(f"ray: the cluster gave the work up: {_last_line(error)}") from error
    finally:
        ray.shutdown()


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1][:200]
