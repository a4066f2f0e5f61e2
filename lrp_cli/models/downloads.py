"""Published weights: fetched once, checked, and found in the cache from then on."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from lrp_cli.errors import ModelError
from lrp_cli.models.catalogue import DEFAULT_MODEL

# Seconds without an answer after which a download is given up; a network that drops packets never answers.
TIMEOUT = 30.0

_WITHOUT_NETWORK = (
    f"Without a network, give --weights FILE, or leave --model out for {DEFAULT_MODEL}, whose weights are installed"
)


def file_name(url: str) -> str:
    """Return the name under which ``url`` is cached."""
    return Path(urlsplit(url).path).name


def cached_file(url: str) -> Path:
    """Return where torch caches the download of ``url``, whether it is there or not."""
    return Path(torch.hub.get_dir()) / "checkpoints" / file_name(url)


def download(url: str, *, progress: bool, what: str) -> Path:
    """Return the cached file of ``url``, downloaded first where absent.

    The download is written beside its place and moved there only when it is complete and has the hash in its name.

    Raises:
        ModelError: it could not be downloaded or written.
    """
    path = cached_file(url)
    if path.exists():
        return path
    expected = torch.hub.HASH_REGEX.search(path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _timeout(TIMEOUT):
            torch.hub.download_url_to_file(url, str(path), expected[1] if expected else None, progress=progress)
    except (OSError, HTTPException, RuntimeError) as error:
        raise ModelError(
            f"{what} could not be downloaded from {url} ({_reason(error)}); it would be cached at {path}. "
            f"{_WITHOUT_NETWORK}"
        ) from None
    return path


def hub_cached_file(repository: str, names: Sequence[str]) -> Path | None:
    """Return the first of the files ``names`` that the Hugging Face cache has of ``repository``, or None."""
    hub = _hub()
    for name in names:
        path = hub.try_to_load_from_cache(repository, name)
        if isinstance(path, str):
            return Path(path)
    return None


def hub_download(repository: str, names: Sequence[str], *, progress: bool, what: str) -> Path:
    """Return the first of the files ``names`` that ``repository`` on the Hugging Face hub has, from the cache if there.

    Raises:
        ModelError: it could not be downloaded or written, or there is none of them.
    """
    path = hub_cached_file(repository, names)
    if path is not None:
        return path
    hub = _hub()
    url = hub.hf_hub_url(repository, names[0])
    try:
        # Asked for first, because a download without a network would be tried for half a minute.
        present = [name for name in names if _is_on_hub(hub.hf_hub_url(repository, name))]
        if present:
            with _progress_bars(progress):
                return Path(hub.hf_hub_download(repository, present[0]))
    except Exception as error:
        # The hub's client has changed its HTTP library, and each has errors of its own.
        raise ModelError(
            f"{what} could not be downloaded from {url} ({_reason(error)}); it would be cached under "
            f"{hub.constants.HF_HUB_CACHE}. {_WITHOUT_NETWORK}"
        ) from None
    raise ModelError(f"{what}: {repository} on the Hugging Face hub has no {' or '.join(names)}")


def _is_on_hub(url: str) -> bool:
    hub = _hub()
    try:
        hub.get_hf_file_metadata(url)
    except hub.utils.EntryNotFoundError:
        return False
    return True


def _hub() -> Any:
    """Return the client of the Hugging Face hub, which timm brings along."""
    return import_module("huggingface_hub")


@contextmanager
def _progress_bars(shown: bool) -> Iterator[None]:
    utils = _hub().utils
    before = utils.are_progress_bars_disabled()
    (utils.enable_progress_bars if shown else utils.disable_progress_bars)()
    try:
        yield
    finally:
        (utils.disable_progress_bars if before else utils.enable_progress_bars)()


def _reason(error: Exception) -> str:
    said = getattr(error, "reason", None) or error
    return " ".join(str(said).split()) or type(error).__name__


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
