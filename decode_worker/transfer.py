"""One hand-off as the decode worker that asked for it knows it: its book, its times, what it reports."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from baton import instants
from baton.types import HandOffReport
from baton.v1 import prefill_pb2
from decode_worker.messages import AskPrefill, PrefillAccount
from kv_transfer.base import Receiver, TransferId
from kv_transfer.layout import PoolLayout
from kv_transfer.transfer.incoming import Incoming


@dataclass(slots=True, eq=False)
class Transfer:
    """`receiver` is None until the transport is settled and P has been asked. Times are on this process's
    monotonic clock."""

    ask: AskPrefill
    book: Incoming
    asked_s: float
    receiver: Receiver | None = None
    transport: str = ""
    told: dict[int, int] = field(default_factory=dict)  # checksums by logical block, as P says
    verified: set[int] = field(default_factory=set)
    num_resent_blocks: int = 0
    busy_s: float = 0.0  # of P's link, as P says
    first_bytes_s: float | None = None
    prompt_done_s: float | None = None
    done: prefill_pb2.PrefillDone | None = None  # P's account of the prefill
    computing: bool | None = None  # in P's coming step; None until P has said
    over: bool = False  # the role knows how it ended
    writer_stopped: bool = False  # by its word, or its death

    @property
    def id(self) -> TransferId:
        return TransferId(self.ask.request_id, self.ask.transfer)

    def destination(self, logical: int) -> int:
        return self.ask.destination_blocks[logical - self.ask.first_block]

    def sent(self, sent: prefill_pb2.BlocksSent, now_s: float) -> None:
        """P says that these blocks lie here."""
        self.first_bytes_s = self.first_bytes_s or now_s
        self.busy_s = sent.busy_s
        self.told.update(enumerate(sent.checksums, sent.first_block))

    @property
    def may_be_computing(self) -> bool:
        """Whether P is, or may be, computing its prompt. What P was asked last it may have begun without a
        word of it having come; but of a suspect it would have come first."""
        if self.receiver is None or self.done is not None:
            return False
        return not self.ask.suspected if self.computing is None else self.computing

    def num_good_tokens(self, block_size: int) -> int:
        """The tokens from the prompt's start whose KV is here and verified."""
        logical = self.ask.first_block
        while logical in self.verified:
            logical += 1
        return min(logical * block_size, len(self.ask.token_ids))

    def account(self, now_s: float) -> PrefillAccount:
        """Of the prefill, whatever becomes of its blocks. On this worker's clock: P's instants are taken from
        when its words arrived."""
        assert self.done is not None
        ended_s = self.prompt_done_s or now_s
        prefill_s = self.done.prefill_ended_s - self.done.prefill_started_s
        return PrefillAccount(
            HandOffReport(
                prefill_worker=self.ask.prefill.pool.worker_id,
                transfer_bytes=0,
                transfer_s=0.0,
                transfer_exposed_s=0.0,
                num_prefill_cached_tokens=self.done.num_cached_tokens,
                num_lent_tokens=self.done.num_lent_tokens,
                transport=self.transport,
            ),
            {
                instants.PREFILL_START: max(self.asked_s, ended_s - prefill_s),
                instants.PREFILL_END: ended_s,
            },
        )

    def report(self, layout: PoolLayout, now_s: float) -> HandOffReport:
        """Of a complete hand-off."""
        return replace(
            self.account(now_s).report,
            transfer_bytes=len(self.ask.destination_blocks) * layout.block_bytes,
            transfer_s=self.busy_s,
            transfer_exposed_s=max(0.0, now_s - (self.prompt_done_s or now_s)),
            num_resent_blocks=self.num_resent_blocks,
            num_blocks=len(self.ask.destination_blocks),
        )
