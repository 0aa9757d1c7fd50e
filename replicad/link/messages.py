"""Messages: everything the two sides can say to each other. Pure.

One table: a message is a msgspec Struct with a tag, encoded as msgpack. Messages that carry stored frames
(`Blocks`, `Record`, `Seal`) hold them verbatim: what the primary encodes is what the replica stores and
what a restore gets back. There is no message that deletes anything: nothing a primary says shortens history.

The *client* is the side that dialled (a primary, or a host that restores), the *server* the side with the store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from replicad.model.attestation import Attestation, DrillNote
from replicad.model.divergence import Divergence
from replicad.model.errors import PeerError
from replicad.model.packed import unpacked
from replicad.model.snapshot import Head
from replicad.model.verdict import Sight

if TYPE_CHECKING:
    from replicad.model.block import Buffer as Run
else:
    Run = memoryview
"""Bytes that are not copied: any buffer in a message to be sent, a view of the received bytes in one that came."""

PROTOCOL = 5
"""Version in Hello. History: 1 = first; 2 = tending sessions; 3 = time travel (Visit, Trace, Compare); 4 = attestations
and pins (Attest, Keep); 5 = findings that are known as they stand are named alone (Inquire, Cases)."""
MAX_MESSAGE_BYTES = 8 * 1024 * 1024
"""No message is longer; the length prefix is checked before anything is read or allocated."""
MAX_OFFER = 4096
"""Block ids in one Offer or Fetch at most (128 KiB of ids)."""
MAX_CREDIT_BYTES = 256 * 1024 * 1024
"""No peer may be granted more credit than this at any time."""
MAX_TEXT_BYTES = 4096
MAX_SEEN_BYTES = 2 * 1024 * 1024
"""Bytes of a damaged place that travel to be hashed by the other side: any block, and its frame's header."""
MAX_CASES = 64
"""Findings in one Cases message at most; the bytes that were seen stay within MAX_SEEN_BYTES together."""
MAX_CASES_BYTES = (3 * 1024 + 64) * 1024
"""A Cases message: the bytes of its findings, or of one alone, what is told beside them, and the ids of known ones."""
MAX_KNOWN = 4096
"""Findings in one Inquire, and in its answer, that are known as they stand."""
MAX_WANTS = 4096
"""Blocks that one finding asks for."""
MAX_TESTIMONY_BYTES = 16 * 1024 * 1024
"""Frames that follow one Testify at most, headers included: the server holds them until all have come. Whoever has more
of them testifies again."""
MAX_NOTES = 8
"""Drills in one Attest: the last proven one and the last one are what there is to tell."""
BUCKETS = 256
"""Parts into which an account divides a record, so that a difference is narrowed down before anything is listed."""


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Client, first: who I am and what I speak."""

    protocol: int
    software: str


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Server: the answer to Hello. `client` is the name that the authenticated key stands for."""

    protocol: int
    software: str
    node: str
    client: str


class Refuse(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Server: no, and why. `code` is one of REFUSALS. Ends the session."""

    code: str
    text: str


REFUSALS = (
    "version",  # protocol versions do not match
    "right",  # this client has no right to that dataset
    "busy",  # another session writes this dataset
    "full",  # store beyond its free-space reserve
    "damaged",  # the store cannot be opened
    "unknown",  # no such dataset or snapshot
    "diverged",  # the commit's parent is not the head
    "invalid",  # what was sent breaks a rule
    "stopping",  # the daemon shuts down
)


class OpenWrite(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Client: I want to replicate this dataset. Answered by Opened."""

    dataset: str


class OpenRead(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Client: I want to read this dataset. Answered by Opened."""

    dataset: str


class Opened(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Server: go on. `credit` is how many bytes of Blocks and Record messages the client may send before more is
    granted (0 for reading). `order`, for reading: what the last commit says is to be restored first."""

    head: Head
    credit: int
    order: bytes = b""


class Offer(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """Client: I have these blocks (32 bytes each, concatenated). Answered, in order, by Need."""

    ids: bytes


class Need(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """Server: of the oldest unanswered Offer I need those whose bit is set (bit i = byte i//8, value 1 << i%8)."""

    bits: bytes


class Blocks(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """Either side: whole block frames, one after another. To the server they are to be stored; to the client
    they answer Fetch in the order asked."""

    frames: Run


class Record(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """Client: one record frame. All blocks that it names were sent before or are in the store."""

    frame: bytes


class Seal(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """Client: the commit frame that turns the records since the last one into a snapshot. Answered by Acked."""

    frame: bytes


class Acked(msgspec.Struct, frozen=True, array_like=True, tag=12):
    """Server: everything up to this commit is durable (guarantee 1)."""

    head: Head


class Credit(msgspec.Struct, frozen=True, array_like=True, tag=13):
    """Receiver of Blocks and Record: this many more bytes may be sent."""

    size: int


class ListSnapshots(msgspec.Struct, frozen=True, array_like=True, tag=14):
    """Client: name all snapshots. Answered by Snapshots, one or more, the last with `more` False."""


class SnapshotLine(msgspec.Struct, frozen=True, array_like=True):
    """One snapshot as the catalog lists it. `received_ns` is the replica's clock at the acknowledgement."""

    number: int
    created_ns: int
    received_ns: int
    complete: bool
    entries: int
    size: int
    unread: int
    digest: bytes
    lost: int = 0
    """Record frames of this snapshot and those before it that damage took: files may lack blocks without a trace."""


class Snapshots(msgspec.Struct, frozen=True, array_like=True, tag=15):
    """Server: snapshots in ascending order."""

    lines: list[SnapshotLine]
    more: bool


class Read(msgspec.Struct, frozen=True, array_like=True, tag=16):
    """Client: stream the record of one snapshot, restricted to paths that match one of `globs` (all when empty),
    their parent directories included. Answered by Listing messages. `credit`: bytes of Listing the client takes now."""

    snapshot: int
    globs: list[bytes]
    credit: int


class Listing(msgspec.Struct, frozen=True, array_like=True, tag=17):
    """Server: the next operations of the record asked for, as `encode_ops` gives them; the last has `more` False."""

    ops: bytes
    more: bool


class Visit(msgspec.Struct, frozen=True, array_like=True, tag=34):
    """Client: what stood at `path` in a snapshot, and up to `depth` levels below it? Answered by Listing messages: the
    entry itself first, nothing when there was none; files with their blocks when `blocks`. Credit as in Read."""

    snapshot: int
    path: bytes
    depth: int
    blocks: bool
    credit: int


class Trace(msgspec.Struct, frozen=True, array_like=True, tag=35):
    """Client: all versions of what stood at `path`, newest first. Answered by Told messages with versions
    (model/travel.py). Credit as in Read."""

    path: bytes
    credit: int


class Compare(msgspec.Struct, frozen=True, array_like=True, tag=36):
    """Client: what differs between two snapshots, at paths that match one of `globs` (all when empty)? Answered by Told
    messages with differences (model/travel.py). Credit as in Read."""

    before: int
    after: int
    globs: list[bytes]
    credit: int


class Told(msgspec.Struct, frozen=True, array_like=True, tag=37):
    """Server: the next versions or differences, as `encode_told` gives them; the last message has `more` False."""

    told: bytes
    more: bool


class Fetch(msgspec.Struct, frozen=True, array_like=True, tag=18):
    """Client: send these blocks (32 bytes each). Answered by Blocks and Lost messages, in the order asked.
    A client keeps the plain size of what it has asked for and not received within its own memory limit."""

    ids: bytes


class Lost(msgspec.Struct, frozen=True, array_like=True, tag=19):
    """Server: in place of the next block asked for by Fetch: it is damaged or not here, and why."""

    id: bytes
    reason: str


class OpenTend(msgspec.Struct, frozen=True, array_like=True, tag=23):
    """Client: I want to settle findings about this dataset, mine and yours. Answered by Opened."""

    dataset: str


class Examine(msgspec.Struct, frozen=True, array_like=True, tag=24):
    """Client: hash these bytes, which I found where the block `id` should be, and look at your copy of that block.
    Answered, in order, by Examined."""

    id: bytes
    data: bytes
    """What was found; b"" when the medium gave nothing."""


class Examined(msgspec.Struct, frozen=True, array_like=True, tag=25):
    """Server: what its processor makes of the bytes, and what its medium holds of the block now."""

    checksum: bytes
    id: bytes
    sight: Sight
    reason: str
    source: str = ""
    """"media", or "cache" where its file system gives no direct reads; "" when nothing was read."""


class Inquire(msgspec.Struct, frozen=True, array_like=True, tag=26):
    """Client: name your open findings whose id is greater than `after`; of those that I know, by id, as they were
    changed last (`changed_ns`), the ids are enough. Answered by one Cases."""

    after: str
    known: dict[str, int] = {}


class Want(msgspec.Struct, frozen=True, array_like=True):
    """A block that a replica would like to have proven, and where the client's files may hold it: file and block
    numbers, (0, 0) when only history knows it."""

    id: bytes
    file: int
    number: int


class Case(msgspec.Struct, frozen=True, array_like=True):
    """One open finding of the server's, with what the client needs to say something about it."""

    found: Divergence
    seen: bytes
    """The bad bytes, b"" when the medium gave none."""
    wants: list[Want]


class Cases(msgspec.Struct, frozen=True, array_like=True, tag=27):
    """Server: open findings in ascending order of their ids; `more` when there are further ones. `same`: ids of those
    that are open and still as the client knows them, in ascending order as well."""

    cases: list[Case]
    more: bool
    same: list[str] = []


class Testify(msgspec.Struct, frozen=True, array_like=True, tag=28):
    """Client: what I say about one case: the checksum that I compute of its `seen`, and what I hold of each of its
    `wants`, in their order. Proven frames of those that match follow as Blocks, `frames` of them. Answered by Settled
    once they came."""

    divergence: str
    checksum: bytes
    sights: list[Sight]
    frames: int


class Settled(msgspec.Struct, frozen=True, array_like=True, tag=29):
    """Server: what became of the finding."""

    found: Divergence


class Account(msgspec.Struct, frozen=True, array_like=True, tag=30):
    """Client: what is your record as a whole? Answered by Accounted."""


class Accounted(msgspec.Struct, frozen=True, array_like=True, tag=31):
    """Server: sums over the record at the head, one for each of BUCKETS parts (work/account_record.py)."""

    head: Head
    entries: int
    sums: list[bytes]


class Direct(msgspec.Struct, frozen=True, array_like=True, tag=32):
    """Client: scrub your side of this dataset now ("start"), or just say how it stands ("status"), or when each part of
    it was verified last ("map"). Answered by Directed. A client can hurry a replica's scrub; it cannot hold it up."""

    action: str


class Directed(msgspec.Struct, frozen=True, array_like=True, tag=33):
    """Server: how its scrub of this dataset stands, as the JSON of a status.ScrubStatus; after "map", of a
    model.coverage.AgeMap. b"" when it runs none."""

    status: bytes


class Attest(msgspec.Struct, frozen=True, array_like=True, tag=40):
    """Client: what does your copy amount to, by your own books? And these are the drills that I made from you lately.
    Answered by Attested."""

    drills: list[DrillNote]
    """In the order in which they were made; [] asks only."""


class Attested(msgspec.Struct, frozen=True, array_like=True, tag=41):
    """Server: this."""

    said: Attestation


class Keep(msgspec.Struct, frozen=True, array_like=True, tag=42):
    """Client: keep this snapshot of yours under a name, whatever your rules say. A name is never given to another
    snapshot, and a client has MAX_ASKED_PINS of them. Answered by Kept. There is no message that takes it back."""

    name: str
    snapshot: Head
    reason: str


class Kept(msgspec.Struct, frozen=True, array_like=True, tag=43):
    """Server: it is kept, durably; or why not."""

    problem: str


class Ping(msgspec.Struct, frozen=True, array_like=True, tag=20):
    """Either side: are you there? Answered by Pong."""

    token: int


class Pong(msgspec.Struct, frozen=True, array_like=True, tag=21):
    """Either side: yes."""

    token: int


class Bye(msgspec.Struct, frozen=True, array_like=True, tag=22):
    """Either side: I end the session in an orderly way."""

    reason: str


Message = (
    Hello | Welcome | Refuse | OpenWrite | OpenRead | Opened | Offer | Need | Blocks | Record | Seal | Acked | Credit
    | ListSnapshots | Snapshots | Read | Listing | Fetch | Lost | Ping | Pong | Bye
    | OpenTend | Examine | Examined | Inquire | Cases | Testify | Settled | Account | Accounted | Direct | Directed
    | Visit | Trace | Compare | Told | Attest | Attested | Keep | Kept
)  # fmt: skip

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """One message as msgpack, without the length prefix."""
    return _encoder.encode(message)


def decode_untrusted(data: bytes | memoryview) -> Message:
    """One message from the peer. Raises PeerError, and nothing else, for anything that is no valid message."""
    try:
        return unpacked(_decoder.decode, data)
    except ValueError as error:
        raise PeerError(f"sent {len(data)} bytes that are no message: {error}") from None
