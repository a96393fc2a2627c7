"""Open a spec for search and run the server until it is stopped."""

from __future__ import annotations

import contextlib
import importlib.util
import secrets
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from manifests.errors import FashionNTMError, IncompleteError
from pipeline.extraction.extractors.base import Extractor
from pipeline.jobs.experiment import Experiment
from pipeline.views.retrieval.queries import Queries, store_extractor
from pipeline.views.retrieval.trained import UNTRAINED, catalogue_models, runs_by_id, trained_runs
from pipeline.views.serve.engine import Engine
from pipeline.views.serve.guard import is_loopback
from pipeline.views.serve.limits import Limits
from pipeline.views.serve.saved import SavedDialogues

Log = Callable[[str], None]


def open_engine(
    experiment: Experiment, runs: Sequence[str] = (), cached_only: bool = False, limits: Limits | None = None
) -> Engine:
    """Open the gallery, the trained runs (all of the spec's, or ``runs`` by id) and, if loadable, the extractor.

    A catalog without train sessions takes the runs of any dataset on the same features, else EWMA and the last turn.
    Raises IncompleteError when no run is trained, or the extractor differs from the one that made the store's rows. An
    extractor that cannot be loaded is no error: the page gives the reason, and cached texts still work.
    """
    spec, dataset, workspace, log = experiment.spec, experiment.dataset, experiment.workspace, experiment.log
    if dataset.split("train"):
        # the spec's last model is its main one, so it is shown first
        trained = runs_by_id(experiment, runs) if runs else trained_runs(experiment)[0][::-1]
        if not trained:
            raise IncompleteError(f"no run of spec '{spec.name}' is trained: run `{spec.command('train')}`")
    else:
        trained = catalogue_models(experiment, runs)
        if trained[0].run == UNTRAINED:
            log("note: no run is trained on these features: EWMA and the last turn answer, untrained")
    extractor, why = (None, "It was switched off by --cached-only.") if cached_only else _extractor(experiment)
    if extractor is None and not cached_only:
        log(f"no live queries: {why}")
    queries = Queries(spec, dataset, workspace, extractor)
    return Engine(experiment, queries, trained, limits or Limits(), why)


def _extractor(experiment: Experiment) -> tuple[Extractor | None, str]:
    try:
        return store_extractor(experiment), ""
    except IncompleteError as error:
        raise IncompleteError(f"{error}; `--cached-only` serves the cached texts without it") from error
    except (FashionNTMError, OSError, ImportError) as error:
        return None, f"It cannot be loaded: {error}"


class StoppedError(FashionNTMError):
    """The user stopped the server with Ctrl-C."""

    exit_code = 130


def need_web() -> None:
    """Raise IncompleteError, with the install command, if the web packages are missing."""
    missing = [name for name in ("starlette", "uvicorn", "jinja2") if importlib.util.find_spec(name) is None]
    if missing:
        raise IncompleteError(f"the page needs {', '.join(missing)}: python -m pip install 'fashion-ntm[serve]'")


def server_config(app: Any) -> Any:
    """Return the uvicorn configuration of ``app``: HTTP/1.1 alone, headers of at most 64 kB that arrive in time."""
    import uvicorn

    from pipeline.views.serve.connections import TimedConnection

    how: dict[str, Any] = {"ws": "none", "log_level": "error", "access_log": False, "server_header": False}
    return uvicorn.Config(app, http=TimedConnection, h11_max_incomplete_event_size=65536, **how)


def listen(make: Callable[[str | None, tuple[str, ...]], Any], host: str, port: int, log: Log, announce: Log) -> None:
    """Bind, print the address, serve ``make(token, hosts)`` until interrupted. Off loopback a token is always set.

    ``announce`` receives only the address, once the port is bound. Raises FashionNTMError for an address in use.
    """
    import uvicorn

    token = None if is_loopback(host) else secrets.token_urlsafe(24)
    hosts = ("localhost", host) if token is None else ()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.closing(socket.socket(family)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((host, port))
        except OSError as error:
            what = error.strerror or error
            raise FashionNTMError(f"cannot listen on {host} port {port}: {what}; choose another with --port") from None
        server.listen(128)  # who reads the address may call at once, and waits until the server has started
        port = server.getsockname()[1]
        name = f"[{host}]" if ":" in host else host
        announce(f"http://{name}:{port}/" + (f"?token={token}" if token else ""))
        shared = "; the address carries the token that lets a visitor in: share it with care" if token else ""
        try:
            log("stop with Ctrl-C" + shared)
            uvicorn.Server(server_config(make(token, hosts))).run(sockets=[server])
        except KeyboardInterrupt:
            raise StoppedError("stopped") from None


def saved_folder(folder: Path, engine: Engine, log: Log) -> SavedDialogues:
    """Return the ``SavedDialogues`` of --save; log the dialogues in it that other runs answered."""
    saved = SavedDialogues(folder, engine.dataset, engine.made_with)
    if others := saved.of_other_runs(engine.trained.values()):
        log(others)
    return saved
