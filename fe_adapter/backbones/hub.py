"""Hugging Face's hub, from which libraries fetch weights and configs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from fe_adapter.libraries import quiet


@contextlib.contextmanager
def hub_or_cache() -> Iterator[None]:
    """Within the context libraries look into their caches alone if the hub does not answer.

    It is asked once, where each library would try again for a minute, and say so every time.
    """
    with quiet("huggingface_hub"):
        try:
            from huggingface_hub import constants
        except ImportError:
            yield
            return
        before = constants.HF_HUB_OFFLINE
        constants.HF_HUB_OFFLINE = before or not _answers(constants.ENDPOINT, constants.HF_HUB_ETAG_TIMEOUT)
        try:
            yield
        finally:
            constants.HF_HUB_OFFLINE = before


def _answers(url: str, seconds: float) -> bool:
    from huggingface_hub.utils import get_session

    try:
        get_session().head(url, timeout=seconds)  # by the user's own proxies and certificates
    except Exception:  # of the HTTP library that its release uses
        return False
    return True
