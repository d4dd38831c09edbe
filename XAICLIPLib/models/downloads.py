"""Downloading a file whose checksum is known, and going on where an earlier attempt was cut off.

What came so far lies in a ``.part`` file beside the target. The server is asked for the rest (RFC 9110, section 14)
only so long as it still has the same file; where it has another, or gives no parts, the download starts over. pooch
compares the checksum and moves the file into place, so that the target is whole and right, or not there.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from XAICLIPLib.errors import Cancelled, InputError

if TYPE_CHECKING:
    import requests

CONNECT_S, READ_S = 15.0, 60.0
"""Seconds without an answer, and without a byte, after which a server counts as gone."""

FRUITLESS = 3
"""Attempts in a row that bring no byte, after which a download is given up."""

BLOCK = 1 << 14
"""urllib3 gives whole blocks alone: less than one is lost with the connection."""


@dataclass(frozen=True)
class Wanted:
    """A file to be downloaded.

    Attributes
    ----------
    url, sha256
        Where it is, and the checksum of what it must be.
    target
        The file that it becomes.
    most_bytes
        More than this is refused.
    way_out
        The end of each message: how to get the file where it cannot be downloaded.
    """

    url: str
    sha256: str
    target: Path
    most_bytes: int
    way_out: str

    @property
    def part(self) -> Path:
        """What came so far."""
        return self.target.with_name(f"{self.target.name}.part")

    @property
    def note(self) -> Path:
        """What the server called the version of the file that the part is of."""
        return self.target.with_name(f"{self.target.name}.part-version")

    def drop(self) -> None:
        """Forget what came so far."""
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def refused(self, reason: str) -> InputError:
        """The error that says in a sentence why the file is not here."""
        return InputError(f"{self.url} cannot be downloaded ({reason}): {self.way_out}.")


def fetch(
    wanted: Wanted,
    on_progress: Callable[[int, int | None], None] = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
    timeouts_s: tuple[float, float] = (CONNECT_S, READ_S),
) -> Path:
    """Download a file, or find that it is there already.

    Parameters
    ----------
    wanted
        What, and where to.
    on_progress
        Gets the bytes that are here and those of the whole file; None where the server does not say.
    cancelled
        Asked at each block; what came so far is kept.
    timeouts_s
        Seconds to wait for a connection, and for the next byte.

    Returns
    -------
    Path
        The target.

    Raises
    ------
    InputError
        The file cannot be had, is larger than declared, is not what was meant, or the disk is full.
    Cancelled
        As asked.
    """
    import pooch
    from requests.exceptions import RequestException

    pooch.get_logger().setLevel(logging.WARNING)
    resuming = _Resuming(wanted, on_progress, cancelled, timeouts_s)
    try:
        pooch.retrieve(
            wanted.url,
            f"sha256:{wanted.sha256}",
            fname=wanted.target.name,
            path=wanted.target.parent,
            downloader=resuming,
        )
    except (InputError, Cancelled):
        raise
    except RequestException as error:
        raise wanted.refused(_reason(error)) from error
    except OSError as error:
        raise wanted.refused(f"{error.filename or wanted.target}: {error.strerror or error}") from error
    except ValueError as error:  # pooch found another checksum, and deleted the file
        wanted.drop()
        raise wanted.refused("what came is not the file that was meant, its SHA-256 differs") from error
    wanted.drop()
    return wanted.target


class _Resuming:
    """A downloader for pooch that goes on with the part that is there."""

    def __init__(
        self,
        wanted: Wanted,
        on_progress: Callable[[int, int | None], None],
        cancelled: Callable[[], bool],
        timeouts_s: tuple[float, float],
    ) -> None:
        self._wanted, self._on_progress, self._cancelled = wanted, on_progress, cancelled
        self._timeouts_s = timeouts_s

    def __call__(self, url: str, output_file: str, _: Any = None, check_only: bool = False) -> None:
        """Download to the part, and hand it over when it is whole."""
        import requests

        fruitless = 0
        with requests.Session() as session:
            while True:
                before = self._have()
                try:
                    self._attempt(session)
                    break
                except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
                    if isinstance(error, (requests.exceptions.SSLError, requests.exceptions.ProxyError)):
                        raise
                    fruitless = fruitless + 1 if self._have() <= before else 0
                    if fruitless >= FRUITLESS or (isinstance(error, requests.Timeout) and not self._have()):
                        raise
                    time.sleep(0.2 * fruitless)
        shutil.move(self._wanted.part, output_file)

    def _have(self) -> int:
        try:
            return self._wanted.part.stat().st_size
        except OSError:
            return 0

    def _attempt(self, session: requests.Session) -> None:
        """Ask for what is missing, and write it down; returns when the file is whole."""
        seen = self._version_of_part()
        have = self._have()
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers |= {"Range": f"bytes={have}-"} | ({"If-Range": seen} if seen else {})
        with session.get(self._wanted.url, headers=headers, stream=True, timeout=self._timeouts_s) as response:
            version = _version(response)
            if response.status_code == 416 and have:
                if response.headers.get("Content-Range") == f"bytes */{have}":
                    return  # all of it had come before it was cut off
                self._wanted.drop()
                return self._attempt(session)
            if response.status_code not in (200, 206):
                raise self._wanted.refused(f"the server answers {response.status_code} {response.reason}".rstrip())
            if response.status_code == 206:
                start, total = _content_range(response)
                if start != have or version != seen:
                    self._wanted.drop()
                    if have:
                        return self._attempt(session)
                    raise self._wanted.refused("the server gives another part than it was asked for")
            else:
                have, total = 0, _length(response)
            self._check_size(total, have)
            self._wanted.note.write_text(json.dumps({"url": self._wanted.url, "version": version}), encoding="utf-8")
            self._write(response, have, total)
        return None

    def _write(self, response: requests.Response, have: int, total: int | None) -> None:
        import requests

        with self._wanted.part.open("ab" if have else "wb") as stream:
            self._on_progress(have, total)
            for block in response.iter_content(BLOCK):
                if self._cancelled():
                    raise Cancelled(f"Cancelled while {self._wanted.url} was downloaded; the next attempt goes on.")
                have += len(block)
                self._check_size(None, have)
                stream.write(block)
                stream.flush()  # so that what came is not lost with the connection
                self._on_progress(have, total)
        if total is not None and have < total:
            raise requests.ConnectionError("the connection broke")

    def _check_size(self, total: int | None, have: int) -> None:
        most = self._wanted.most_bytes
        if max(total or 0, have) > most:
            self._wanted.drop()
            raise self._wanted.refused(f"the server sends more than the {_mb(most)} that the catalogue declares")
        free = shutil.disk_usage(self._wanted.target.parent).free
        if total and total - have > free:
            raise self._wanted.refused(
                f"the disk of {self._wanted.target.parent} has {_mb(free)} left and {_mb(total - have)} are to come"
            )

    def _version_of_part(self) -> str:
        """What the server called the version of the part; empty where it did not."""
        with suppress(OSError, ValueError, AttributeError):
            note = json.loads(self._wanted.note.read_text(encoding="utf-8"))
            if note.get("url") == self._wanted.url:
                return str(note.get("version", ""))
        self._wanted.part.unlink(missing_ok=True)  # of another file
        return ""


def _version(response: requests.Response) -> str:
    """What tells a version of a file from another, as If-Range takes it: a strong ETag, else the date."""
    tag = str(response.headers.get("ETag", ""))
    return tag if tag.startswith('"') else str(response.headers.get("Last-Modified", ""))


def _content_range(response: requests.Response) -> tuple[int | None, int | None]:
    """First byte of a part, and bytes of the whole; None where they are not told."""
    told = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if not told:
        return None, None
    return int(told[1]), None if told[2] == "*" else int(told[2])


def _length(response: requests.Response) -> int | None:
    told = response.headers.get("Content-Length", "")
    plain = response.headers.get("Content-Encoding", "identity") == "identity"
    return int(told) if told.isdecimal() and plain else None


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _reason(error: BaseException) -> str:
    """What went wrong between here and the server, in words."""
    from requests import exceptions

    told = str(error)
    if isinstance(error, exceptions.SSLError):
        return "its certificate is not trusted here: the address is wrong, or a proxy's certificate is missing"
    if isinstance(error, exceptions.ProxyError):
        return "the proxy does not answer; see the variables https_proxy and no_proxy"
    if isinstance(error, exceptions.Timeout) or "timed out" in told.lower():
        return "the server does not answer in time"
    if isinstance(error, exceptions.TooManyRedirects):
        return "the server sends from one address to another without end"
    if any(word in told for word in ("NameResolution", "getaddrinfo", "Name or service", "unreachable", "refused")):
        return "there is no connection to the server"
    if isinstance(error, (exceptions.ConnectionError, exceptions.ChunkedEncodingError)):
        return "the connection broke"
    return told.splitlines()[0][:200] if told else type(error).__name__
