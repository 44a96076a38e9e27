"""Peers without a server, on zenoh: each holds its posts, the others ask for them.

Pull, not push: an asker waits for whom it asks, a slow peer holds nobody up, and what is missing is known by name. A
post of round r stands under ``RUN/rR/ID``; the two latest rounds are held. ``RUN/note/ID`` is a hint that a post is
ready: nothing depends on its arrival.

What a peer says counts only under its own id: the links' access rules refuse another's key, and the session that
answered must be the one whose certificate bears the name.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from potluck.core.errors import EngineError, MissingExtraError
from potluck.engines.mesh.links import Links, as_json
from potluck.engines.security.certificates import peer_name

try:
    import zenoh
except ImportError:
    raise MissingExtraError("the mesh", "mesh") from None

HELD_ROUNDS = 2
NOT_READY, GONE, DONE = b"not-ready", b"gone", b"done"
PROBE, PROBE_BYTES = "probe", 1_000_000
FIRST_PAUSE_S, LONGEST_PAUSE_S, POLL_S = 0.2, 1.6, 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What asking one peer came to: a frame, or a status and a reason."""

    status: str
    frame: bytes = b""
    reason: str = ""
    seconds: float = 0.0


class Held:
    """The posts that others may ask for, by round. Looked up in zenoh's threads, so nothing here takes long."""

    def __init__(self) -> None:
        self._frames: dict[int, bytes] = {}
        self._lock = threading.Lock()

    def put(self, round: int, frame: bytes) -> None:
        """Holds a post, and drops those of all but the latest rounds."""
        with self._lock:
            self._frames[round] = frame
            for old in sorted(self._frames)[:-HELD_ROUNDS]:
                del self._frames[old]

    def get(self, round: int) -> bytes | None:
        """The post of a round; None if it is not ready yet. Raises KeyError if it is held no more."""
        with self._lock:
            if round not in self._frames and self._frames and round < max(self._frames):
                raise KeyError(round)
            return self._frames.get(round)


class Mesh:
    """A session with the other peers. Made by ``open_mesh``, which closes it."""

    def __init__(self, session: Any, links: Links, run: str) -> None:
        self._session, self._links, self._run = session, links, run
        self._held = Held()
        self._sessions: dict[int, str] = {}
        self._noted: dict[int, threading.Event] = {}
        self._done: set[int] = set()

    def begin(self) -> list[Any]:
        """Starts to answer and to listen; what it returns must be kept."""
        queryable = self._session.declare_queryable(f"{self._run}/*/{self._links.id}", self._answer)
        return [queryable, self._session.declare_subscriber(f"{self._run}/note/*", self._note)]

    def _answer(self, query: Any) -> None:
        """Runs in zenoh's thread: only looks up and replies."""
        with query:
            *_, word, _ = str(query.key_expr).split("/")
            if word == PROBE:
                query.reply(query.key_expr, bytes(PROBE_BYTES) if query.payload else b"")
            if not word.startswith("r") or not word[1:].isdigit():
                return
            try:
                frame = self._held.get(int(word[1:]))
            except KeyError:
                query.reply_err(GONE)
                return
            if frame is None:
                query.reply_err(NOT_READY)
            else:
                query.reply(query.key_expr, frame)

    def _note(self, sample: Any) -> None:
        sender = str(sample.key_expr).rpartition("/")[2]
        if sender.isdigit():
            self._noted.setdefault(int(sender), threading.Event()).set()
            if sample.payload.to_bytes() == DONE:
                self._done.add(int(sender))

    def linked(self) -> dict[str, str | None]:
        """The common name of each linked session's certificate, by session; None where links are not secured."""
        return {str(link.zid): link.auth_identifier for link in self._session.info.links()}

    def join(self, least: int, timeout_s: float) -> None:
        """Waits until so many peers are linked. Raises EngineError with a diagnosis where nobody is."""
        until = time.monotonic() + timeout_s
        while len(self.linked()) < least and time.monotonic() < until:
            time.sleep(POLL_S)
        if self._session.info.routers_zid():
            raise EngineError("a router is linked: through it nobody can tell who sent a message; link peers directly")
        names = [name for name in self.linked().values() if name]
        twice = {name for name in names if names.count(name) > 1 or name == peer_name(self._links.id)}
        if twice:
            raise EngineError(f"two peers bear the name {min(twice)!r}: give each its own certificate")
        if least and not self.linked():
            raise EngineError(f"no peer linked within {timeout_s:g} s: {self._links.diagnosis()}")

    def hold(self, round: int, frame: bytes) -> None:
        """Holds one's own post of a round for the others, and tells them."""
        self._held.put(round, frame)
        told = json.dumps({"round": round, "size": len(frame)})
        self._session.put(f"{self._run}/note/{self._links.id}", told)

    def linger(self, others: Iterable[int], linger_s: float) -> None:
        """Stays so that slow peers can finish: until all have said that they are done, at most ``linger_s``."""
        until, asked = time.monotonic() + linger_s, set(others)
        while time.monotonic() < until:
            self._session.put(f"{self._run}/note/{self._links.id}", DONE)
            if asked <= self._done:
                return
            time.sleep(FIRST_PAUSE_S)

    def gather(
        self, round: int, peers: Iterable[int], deadline_s: float, check: Callable[[int, bytes], str]
    ) -> dict[int, Answer]:
        """Asks each peer for its post until the deadline. ``check`` says what is wrong with a frame, or ""."""
        asked, until = list(peers), time.monotonic() + deadline_s
        if not asked:
            return {}
        with ThreadPoolExecutor(len(asked)) as threads:
            found = threads.map(lambda peer: self._ask(round, peer, until, deadline_s, check), asked)
            return dict(zip(asked, found, strict=True))

    def _ask(
        self, round: int, peer: int, until: float, deadline_s: float, check: Callable[[int, bytes], str]
    ) -> Answer:
        start, pause, fault = time.monotonic(), FIRST_PAUSE_S, ""
        noted = self._noted.setdefault(peer, threading.Event())
        while (left := until - time.monotonic()) > 0:
            noted.clear()
            frames, said = self._once(round, peer, left)
            sound = {frame for frame in frames if not (fault := check(peer, frame))}
            seconds = time.monotonic() - start
            if len(sound) > 1:
                return Answer(status="rejected", reason=f"device {peer}: two different posts", seconds=seconds)
            if sound:
                return Answer(status="ok", frame=sound.pop(), seconds=seconds)
            if frames:
                return Answer(status="rejected", reason=fault, seconds=seconds)
            if GONE in said:
                return Answer(status="late", reason=f"device {peer} is two rounds ahead or more", seconds=seconds)
            if peer in self._sessions and self._sessions[peer] not in self.linked():
                return Answer(status="lost", reason=f"device {peer}: its link is gone", seconds=seconds)
            noted.wait(min(pause, max(0.0, until - time.monotonic())))
            pause = min(2 * pause, LONGEST_PAUSE_S)
        return Answer(status="lost", reason=f"device {peer}: no post within {deadline_s:g} s", seconds=deadline_s)

    def probe(self, peer: int, timeout_s: float) -> tuple[float, float] | None:
        """(seconds of a round trip, bytes per second of a probe) of a linked peer; None where it does not answer."""
        seconds = []
        for asks, size in ((None, 0), (None, 0), (b"full", PROBE_BYTES)):  # the first one opens the way
            start = time.monotonic()
            frames, _ = self._told(f"{self._run}/{PROBE}/{peer}", peer, timeout_s, asks)
            if [len(frame) for frame in frames] != [size]:
                return None
            seconds.append(time.monotonic() - start)
        return seconds[1], PROBE_BYTES / max(seconds[2] - seconds[1], 1e-6)

    def _once(self, round: int, peer: int, timeout_s: float) -> tuple[list[bytes], set[bytes]]:
        """(the frames that the peer itself answered with, the errors that were told)."""
        return self._told(f"{self._run}/r{round}/{peer}", peer, timeout_s)

    def _told(
        self, key: str, peer: int, timeout_s: float, payload: bytes | None = None
    ) -> tuple[list[bytes], set[bytes]]:
        frames: list[bytes] = []
        said: set[bytes] = set()
        for reply in self._session.get(
            key,
            payload=payload,
            target=zenoh.QueryTarget.ALL,
            consolidation=zenoh.ConsolidationMode.NONE,
            timeout=timeout_s,
        ):
            who = None if reply.replier_id is None else str(reply.replier_id.zid)
            if not self._is(peer, who):
                continue
            if reply.ok is not None:
                frames.append(reply.ok.payload.to_bytes())
            elif reply.err is not None:
                said.add(reply.err.payload.to_bytes())
        return frames, said

    def _is(self, peer: int, session: str | None) -> bool:
        """Whether the session that answered is the peer's: by its certificate's name, where links are secured."""
        linked: Mapping[str, str | None] = self.linked()
        if session is None or session not in linked:
            return self._links.insecure
        if not self._links.insecure and linked[session] != peer_name(peer):
            return False
        self._sessions[peer] = session
        return True


@contextmanager
def open_mesh(links: Links, run: str, devices: int) -> Iterator[Mesh]:
    """A mesh that answers questions until the block ends. Raises EngineError where the port is taken."""
    config = zenoh.Config()
    for key, value in as_json(links.settings(run, devices)).items():
        config.insert_json5(key, value)
    try:
        session = zenoh.open(config)
    except zenoh.ZError as error:
        raise EngineError(f"--listen {links.listen}: cannot listen there, is the port taken? ({error})") from None
    with session:  # an open session would keep a failing process alive
        mesh = Mesh(session, links, run)
        kept = mesh.begin()
        yield mesh
        del kept
