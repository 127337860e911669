"""Encryption at rest: JSON text under keys that are derived from the site's secret keys, by `cryptography`. Touches no database.

What is encrypted is stored as an object with one key, `{"$encrypted": "…"}`, whose value is a Fernet token.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.signals import setting_changed
from django.utils.encoding import force_bytes

from django_jobs.exceptions import EncryptionError

if TYPE_CHECKING:
    from cryptography.fernet import Fernet, MultiFernet

KEY = "$encrypted"
MARK = f'{{"{KEY}":'  # what the JSON text of all that is encrypted begins with, whichever database wrote it
UNREADABLE = (
    "it is encrypted, and no key of this site reads it; put the key of that time into SECRET_KEY_FALLBACKS,"
    " then replay what failed"
)
_INFO = b"django_jobs: payloads and results"
_USUAL, _AS_STORED, _COMPARED, _CARRIED = "usual", "as stored", "compared", "carried"
_mode: ContextVar[str] = ContextVar("django_jobs_encryption", default=_USUAL)


def encrypted(text: str) -> str:
    """Return JSON text encrypted, as JSON text; raise EncryptionError without the package `cryptography`."""
    return f'{MARK}"{_keys().encrypt(text.encode()).decode()}"}}'


def decrypted(token: str) -> str:
    """Return the JSON text in a token; raise EncryptionError when none of the site's keys reads it."""
    keys = _keys()
    from cryptography.fernet import InvalidToken

    try:
        return keys.decrypt(token).decode()
    except (InvalidToken, ValueError):  # the second of what a hand has written that is not ASCII
        raise EncryptionError(UNREADABLE) from None


def renewed(token: str) -> str | None:
    """Return a token under the site's first key for one of another key; None for one that has the first key already.

    Raises EncryptionError when none of the site's keys reads it.
    """
    keys = _keys()
    from cryptography.fernet import InvalidToken

    try:
        _first_key().decrypt(token)
    except (InvalidToken, ValueError):
        pass
    else:
        return None
    try:
        return keys.rotate(token).decode()
    except (InvalidToken, ValueError):
        raise EncryptionError(UNREADABLE) from None


def token_of(value: Any) -> str | None:
    """Return the token of a JSON value as it is stored; None for one that is not encrypted."""
    if not isinstance(value, dict) or len(value) != 1:
        return None
    token = value.get(KEY)
    return token if isinstance(token, str) else None


@contextmanager
def as_stored() -> Iterator[None]:
    """Read what is encrypted as it stands, and take such values from outside: for a copy that is as safe as its original."""
    with _as(_AS_STORED):
        yield


@contextmanager
def carried() -> Iterator[None]:
    """Read what is encrypted as it stands and write it elsewhere unread: it may be another site's, under keys of its own."""
    with _as(_CARRIED):
        yield


@contextmanager
def compared() -> Iterator[None]:
    """Take encrypted values from outside and read them, to compare what they say, whichever keys they have."""
    with _as(_COMPARED):
        yield


def takes_tokens() -> bool:
    """Whether an encrypted value that comes from outside is taken."""
    return _mode.get() != _USUAL


def reads_tokens() -> bool:
    """Whether what is encrypted is decrypted when it is read."""
    return _mode.get() not in (_AS_STORED, _CARRIED)


def looks_into_tokens() -> bool:
    """Whether an encrypted value that is taken has to be readable here."""
    return _mode.get() != _CARRIED


@contextmanager
def _as(mode: str) -> Iterator[None]:
    token = _mode.set(mode)
    try:
        yield
    finally:
        _mode.reset(token)


@cache
def _keys() -> MultiFernet:
    fernet = _library()
    return fernet.MultiFernet([_fernet(key) for key in (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)])  # type: ignore[no-any-return]


@cache
def _first_key() -> Fernet:
    return _fernet(settings.SECRET_KEY)


def _fernet(secret: str | bytes) -> Fernet:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    # A key of its own, so that a signature that Django makes with the same secret tells nothing about it.
    derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=_INFO).derive(force_bytes(secret))
    return _library().Fernet(urlsafe_b64encode(derived))  # type: ignore[no-any-return]


def _library() -> Any:
    try:
        from cryptography import fernet
    except ImportError:
        raise EncryptionError(
            "encryption needs the package cryptography: pip install 'django-durable-jobs[encryption]'"
        ) from None
    return fernet


def _clear_cache(*, setting: str, **kwargs: Any) -> None:
    if setting in ("SECRET_KEY", "SECRET_KEY_FALLBACKS"):
        _keys.cache_clear()
        _first_key.cache_clear()


setting_changed.connect(_clear_cache, dispatch_uid="django_jobs.encryption")
