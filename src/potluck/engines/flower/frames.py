"""What crosses Flower: a frame as one opaque array, and the codes of its errors.

Codes 1 and 7 stop the run (the app cannot start, the same on all); 5 is ``lost``; 2, 8 and others are ``rejected`` with
the reason; 3 and 4, a message or a reply that is gone, are ``late`` from the deadline on.
"""

from __future__ import annotations

from potluck.core.errors import EngineError, MissingExtraError, WireError
from potluck.engines.contract import Request, Status
from potluck.wire.frame import Buffer

try:
    from flwr.app import Array, ArrayRecord, RecordDict
except ImportError:
    raise MissingExtraError("a fleet on Flower", "flower") from None

STYPE = "potluck.frame.v1"
ACTIONS = {"train": "train.round", "settle": "train.settle", "evaluate": "evaluate.model"}
HELLO = "query.hello"
NODE_GONE, SET_UP = 5, (1, 7)
EXPIRED = (3, 4)
BY_SERVER = (*EXPIRED, NODE_GONE)
"""Errors that the SuperLink makes itself: no device sent them."""


def pack(frame: Buffer) -> ArrayRecord:
    """A frame as one opaque array."""
    return ArrayRecord({"frame": Array("uint8", (len(frame),), STYPE, bytes(frame))})


def unpack(content: RecordDict) -> bytes:
    """The frame of a message. Raises WireError for anything but one array of ours."""
    records = content.array_records
    if set(records) != {"frame"} or set(records["frame"]) != {"frame"}:
        raise WireError(f"{len(records)} array records, expected one array 'frame'")
    array = records["frame"]["frame"]
    if array.stype != STYPE:
        raise WireError(f"an array of type {array.stype[:40]!r}, expected {STYPE!r}")
    return array.data


def fault_of(code: int, reason: str, request: Request, over: bool) -> tuple[Status, str]:
    """(status, reason) of one of Flower's errors. Raises EngineError for a fault of the set-up."""
    who = f"device {request.device.id}: "
    last = reason.strip().splitlines()[-1][:500] if reason.strip() else f"code {code}"
    if code in SET_UP:
        raise EngineError(f"{who}the app does not start there: {last}")
    if code == NODE_GONE:
        return "lost", f"{who}it is gone ({last})"
    if code in EXPIRED:
        return ("late" if over else "lost"), f"{who}{last}"
    return "rejected", f"{who}{last}"
