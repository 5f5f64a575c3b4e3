"""What can be proven of a journal: the chain of hashes, its end, and what facts name.

:func:`verify` reads a store from its first frame to its last and answers a :class:`Report`: findings, each with
the frames and the seqs that it concerns, and in words what could not be proven. It writes nothing, so it may run
beside the server, or on a copy.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator

import msgspec

from ..entries import unpack_transcript
from ..errors import CorruptJournalError
from ..events.task import TaskAdmitted, TaskEnded, TaskStarted, TaskTranscribed
from ..frames import ZERO, Chunk, Fact, Frame, decode_facts, decode_texts
from ..ports import JournalStore
from ..registry import decode_payload, load_all
from .chain import ChainWalk, Finding, Kind

__all__ = ["Finding", "Report", "verify"]

#: bodies that were looked at lately and are not read again
_BODIES_REMEMBERED = 100_000


class Report(msgspec.Struct, kw_only=True):
    """What a verification saw."""

    frames: int = 0
    events: int = 0
    last_frame_no: int = 0
    #: seq after the last event
    next_seq: int = 1
    #: hash of the last frame, hexadecimal
    head_hash: str = ZERO.hex()
    #: bodies and transcripts whose bytes match their digests
    bodies: int = 0
    transcripts: int = 0
    #: chunks of texts of which only the digest is left
    dropped_chunks: int = 0
    #: frames of whose texts only the root is left
    dropped_frames: int = 0
    findings: list[Finding] = []
    #: what this verification cannot prove, in words
    unproven: list[str] = []

    @property
    def ok(self) -> bool:
        """Nothing was found."""
        return not self.findings


def verify(
    store: JournalStore,
    *,
    check_fold: Callable[[JournalStore], Iterable[Finding]] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Verify a journal from its first frame to its last.

    :param check_fold: looks at what the facts fold to and answers findings of its own; asked when nothing else was
        found.
    :param progress: is told the frame number now and then.
    """
    load_all()
    # Read before the frames: a server that goes on writing only ever adds behind it.
    note = store.head_note()
    chain, tail, content = ChainWalk(), _Tail(note), _Content(store)
    report = content.report
    for frame in store.frames(1):
        sound = chain.follow(frame)
        tail.look(frame)
        if sound:
            content.look(frame)
        report.frames += 1
        report.events += frame.count
        if progress is not None and not frame.frame_no % 1000:
            progress(frame.frame_no)
    report.last_frame_no, report.next_seq, report.head_hash = chain.frame_no, chain.end_seq, chain.hash.hex()
    report.findings += chain.findings(_sound_copies(store, chain.suspected))
    report.findings += tail.findings(chain)
    if check_fold is not None and report.ok:
        report.findings += check_fold(store)
    report.findings.sort(key=lambda finding: (finding.frame_no, finding.first_seq))
    report.unproven = list(_unproven(report, note))
    return report


def _sound_copies(store: JournalStore, suspected: set[bytes]) -> dict[bytes, int]:
    """Numbers of the sound frames that have one of these hashes: the originals of doubled rows."""
    if not suspected:
        return {}
    walk = ChainWalk()
    return {frame.hash: frame.frame_no for frame in store.frames(1) if walk.follow(frame) and frame.hash in suspected}


class _Tail:
    """Compares the head note with the frames."""

    def __init__(self, note: tuple[int, bytes] | None) -> None:
        self._note = note
        self._hash: bytes | None = None
        self._frame_no = 0

    def look(self, frame: Frame) -> None:
        """Remember the frame that the note should name."""
        if self._note is not None and frame.first_seq < self._note[0] <= frame.end_seq:
            self._frame_no = frame.frame_no
            self._hash = frame.hash if frame.end_seq == self._note[0] else b""

    def findings(self, chain: ChainWalk) -> Iterator[Finding]:
        """What the note tells about the end."""
        if self._note is None or self._hash == self._note[1] or self._note[0] <= 1:
            return
        seq = self._note[0]
        if self._hash is None:
            what = f"the end was cut off: seq {seq - 1} was synced to disk, but the journal ends at seq {chain.end_seq - 1}"
            yield _finding(
                "tail", chain.frame_no + 1, chain.frame_no + 1, chain.end_seq, max(chain.end_seq, seq - 1), what
            )
        else:
            what = f"frame {self._frame_no} is not the one that was synced up to seq {seq - 1}: the end was replaced"
            yield _finding("tail", self._frame_no, self._frame_no, seq - 1, seq - 1, what)


class _Content:
    """Decodes facts, and looks at the bodies and transcripts that they name."""

    def __init__(self, store: JournalStore) -> None:
        self.report = Report()
        self._store = store
        #: owner and number of the tasks that have no transcript yet
        self._tasks: dict[str, tuple[str, int]] = {}
        self._seen: OrderedDict[tuple[str, str], None] = OrderedDict()

    def look(self, frame: Frame) -> None:
        """Look at a frame whose bytes match its hash."""
        try:
            facts = decode_facts(frame.facts)
            chunks = decode_texts(frame.texts, frame.end_seq)
        except CorruptJournalError as error:
            self._found("undecodable", frame, frame.first_seq, error.message)
            return
        self._count(frame, facts, chunks)
        transcripts = {chunk.task_no: chunk for chunk in chunks if chunk.is_transcript}
        for fact in facts:
            seq = frame.first_seq + fact.offset
            try:
                payload = decode_payload(fact.name, fact.version, fact.data)
            except (CorruptJournalError, ValueError, msgspec.MsgspecError) as error:
                self._found("undecodable", frame, seq, f"seq {seq} cannot be decoded: {error}")
                continue
            self._look_at(frame, seq, payload, transcripts)

    def _count(self, frame: Frame, facts: list[Fact], chunks: list[Chunk]) -> None:
        self.report.dropped_chunks += sum(chunk.body is None for chunk in chunks)
        if frame.texts and not chunks:
            self.report.dropped_frames += 1
            return
        entries = sum(not chunk.is_transcript for chunk in chunks)
        if len(facts) + entries != frame.count:
            what = (
                f"frame {frame.frame_no} counts {frame.count} events, but has {len(facts)} facts and {entries} chunks"
            )
            self._found("seq", frame, frame.first_seq, what, frame.end_seq - 1)

    def _look_at(self, frame: Frame, seq: int, payload: object, transcripts: dict[int, Chunk]) -> None:
        if type(payload) is TaskAdmitted:
            self._tasks[payload.task_id] = (payload.owner, seq)
            self._body(frame, seq, payload.owner, payload.body_id)
        elif type(payload) is TaskStarted and payload.rendered_id and payload.task_id in self._tasks:
            self._body(frame, seq, self._tasks[payload.task_id][0], payload.rendered_id)
        elif type(payload) is TaskEnded and payload.result_id and payload.task_id in self._tasks:
            self._body(frame, seq, self._tasks[payload.task_id][0], payload.result_id)
        elif type(payload) is TaskTranscribed and payload.task_id in self._tasks:
            _, task_no = self._tasks.pop(payload.task_id)
            if payload.bytes:
                self._transcript(frame, seq, payload, transcripts.get(task_no))

    def _body(self, frame: Frame, seq: int, owner: str, body_id: str) -> None:
        if (owner, body_id) in self._seen:
            self._seen.move_to_end((owner, body_id))
            return
        self._seen[owner, body_id] = None
        if len(self._seen) > _BODIES_REMEMBERED:
            self._seen.popitem(last=False)
        try:
            data = self._store.body(owner, body_id)
        except CorruptJournalError as error:
            self._found("body", frame, seq, f"seq {seq} names a body that is damaged: {error.message}")
            return
        if data is None:
            self._found("body", frame, seq, f"seq {seq} names body {body_id}, which is missing")
        elif f"sha256:{hashlib.sha256(data).hexdigest()}" != body_id:
            self._found("body", frame, seq, f"seq {seq} names body {body_id}, whose bytes were edited")
        else:
            self.report.bodies += 1

    def _transcript(self, frame: Frame, seq: int, event: TaskTranscribed, chunk: Chunk | None) -> None:
        if chunk is None:
            if not (frame.texts and not decode_texts(frame.texts, frame.end_seq)):
                self._found("transcript", frame, seq, f"seq {seq} names a transcript that is not in its frame")
            return
        if chunk.body is None:
            return
        try:
            entries = len(unpack_transcript(chunk.body).batch)
        except CorruptJournalError as error:
            self._found("transcript", frame, seq, f"seq {seq}: {error.message}")
            return
        if hashlib.sha256(chunk.body).hexdigest() != event.digest or entries != event.entries:
            self._found("transcript", frame, seq, f"seq {seq}: the transcript is not the one that the event names")
        else:
            self.report.transcripts += 1

    def _found(self, kind: Kind, frame: Frame, seq: int, what: str, last_seq: int | None = None) -> None:
        last_seq = seq if last_seq is None else last_seq
        self.report.findings.append(_finding(kind, frame.frame_no, frame.frame_no, seq, last_seq, what))


def _finding(kind: Kind, frame_no: int, last_frame_no: int, first_seq: int, last_seq: int, message: str) -> Finding:
    return Finding(
        kind=kind,
        frame_no=frame_no,
        last_frame_no=last_frame_no,
        first_seq=first_seq,
        last_seq=last_seq,
        message=message,
    )


def _unproven(report: Report, note: tuple[int, bytes] | None) -> Iterator[str]:
    if note is None:
        yield "Whether the end was cut off: there is no head note to compare the last frame with."
    elif note[0] < report.next_seq:
        yield (
            f"Whether something was cut off behind seq {report.next_seq - 1}: the head note names seq {note[0] - 1} as the"
            " last one that was synced to disk; what came after it could vanish without a trace."
        )
    yield (
        "That nobody wrote the whole chain anew together with the head note: compare the hash of the last frame,"
        f" {report.head_hash} at seq {report.next_seq - 1}, with one that you noted elsewhere."
    )
    if report.dropped_chunks or report.dropped_frames:
        yield (
            f"The texts of {report.dropped_chunks} chunks and of {report.dropped_frames} whole frames, which were compacted,"
            " pruned or erased: their digests stand in the chain, so it can be shown that a text is the right one, but"
            " not what it was."
        )
    yield "Bodies that no fact names, and the index of ended tasks: the chain does not cover them; the index can be built again."
