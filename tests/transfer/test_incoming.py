"""D's book of a transfer: every way it goes, as commands."""

import random

import pytest

from baton.config import Times
from baton.errors import IntegrityError, Internal, PeerLost
from kv_transfer.transfer.incoming import (
    NUM_RESENDS,
    Abandon,
    Asked,
    AskFence,
    AskResend,
    BlockRead,
    BlocksSent,
    Complete,
    GiveUp,
    Incoming,
    IncomingCommand,
    IncomingEvent,
    Keep,
    KillWriter,
    Lift,
    PeerHeard,
    PromptComputed,
    Quarantine,
    ReadBlock,
    ReadFailed,
    WriterStopped,
)

TIMES = Times(answer_timeout_s=5.0, progress_timeout_s=1.0, fence_timeout_s=2.0)


@pytest.fixture
def book() -> Incoming:
    return Incoming([4, 5, 6], TIMES)


def kinds(commands: list[IncomingCommand]) -> list[type]:
    return [type(command) for command in commands]


def test_blocks_are_read_and_kept_and_the_last_completes(book: Incoming) -> None:
    assert book.handle(BlocksSent(4, [40, 50]), 0.0) == [ReadBlock(4), ReadBlock(5)]
    assert book.handle(BlockRead(5, 50), 0.1) == [Keep(5)]
    assert book.handle(BlocksSent(6, [60]), 0.2) == [ReadBlock(6)]
    assert book.handle(BlockRead(4, 40), 0.3) == [Keep(4)]
    assert book.handle(PromptComputed(), 0.3) == []
    assert not book.is_complete
    assert book.handle(BlockRead(6, 60), 0.4) == [Keep(6), Complete()]
    assert book.is_complete
    assert book.deadline_s is None
    assert book.handle(Abandon(), 0.5) == []  # nobody writes any more: nothing to fence
    assert book.tick(99.0) == []


def test_a_block_that_cannot_be_read_ends_the_hand_off(book: Incoming) -> None:
    book.handle(BlocksSent(4, [40, 50]), 0.0)
    book.handle(BlockRead(4, 40), 0.1)
    error = Internal("no such device")
    commands = book.handle(ReadFailed(5, error), 0.2)
    assert commands == [Quarantine((5, 6)), AskFence(), GiveUp(error)]
    assert book.handle(WriterStopped(), 0.3) == [Lift((5, 6))]


def test_a_wrong_block_is_sent_again_twice_then_given_up(book: Incoming) -> None:
    book.handle(BlocksSent(4, [40, 50]), 0.0)
    book.handle(BlockRead(4, 40), 0.0)
    for _ in range(NUM_RESENDS):
        assert book.handle(BlockRead(5, 51), 0.1) == [AskResend((5,))]
        assert book.handle(BlocksSent(5, [50]), 0.2) == [ReadBlock(5)]
    *fenced, gave_up = book.handle(BlockRead(5, 51), 0.3)
    assert fenced == [Quarantine((5, 6)), AskFence()]  # 4 is verified, and stays
    assert isinstance(gave_up, GiveUp)
    assert isinstance(gave_up.error, IntegrityError)
    assert book.handle(WriterStopped(), 0.4) == [Lift((5, 6))]
    assert book.num_verified == 1


def test_a_block_that_comes_right_the_second_time_completes() -> None:
    book = Incoming([0], TIMES)
    book.handle(PromptComputed(), 0.0)
    book.handle(BlocksSent(0, [1]), 0.0)
    assert book.handle(BlockRead(0, 2), 0.0) == [AskResend((0,))]
    assert book.handle(BlocksSent(0, [1]), 0.0) == [ReadBlock(0)]
    assert book.handle(BlockRead(0, 1), 0.0) == [Keep(0), Complete()]


def test_nothing_is_expected_of_somebody_who_was_not_asked(book: Incoming) -> None:
    assert book.deadline_s is None
    assert book.tick(1000.0) == []


def test_whoever_says_nothing_at_all_is_given_up(book: Incoming) -> None:
    assert book.handle(Asked(), 10.0) == []
    assert book.tick(14.9) == []  # a first word may take longer than the next ones
    assert kinds(book.tick(15.0)) == [Quarantine, AskFence, GiveUp]


def test_a_prompt_whose_blocks_are_all_here_is_not_waited_for_for_ever(book: Incoming) -> None:
    """Its last step hangs, or its draw."""
    book.handle(BlocksSent(4, [40, 50, 60]), 0.0)
    for block, checksum in ((4, 40), (5, 50), (6, 60)):
        assert book.handle(BlockRead(block, checksum), 0.1) == [Keep(block)]
    assert book.handle(PeerHeard(), 0.9) == []
    assert book.tick(1.8) == []
    *fenced, gave_up = book.tick(1.9)
    assert fenced == [Quarantine(()), AskFence()]
    assert isinstance(gave_up, GiveUp)
    assert book.tick(100.0) == []


def test_the_end_of_the_prompt_completes_what_is_verified(book: Incoming) -> None:
    book.handle(BlocksSent(4, [40, 50, 60]), 0.0)
    for block, checksum in ((4, 40), (5, 50), (6, 60)):
        book.handle(BlockRead(block, checksum), 0.1)
    assert book.handle(PromptComputed(), 0.2) == [Complete()]
    assert book.deadline_s is None


def test_silence_after_it_is(book: Incoming) -> None:
    book.handle(PeerHeard(), 10.0)
    assert book.deadline_s == 11.0
    book.handle(BlocksSent(4, [40]), 10.9)
    assert book.tick(11.5) == []
    *fenced, gave_up = book.tick(11.9)
    assert fenced == [Quarantine((4, 5, 6)), AskFence()]
    assert isinstance(gave_up, GiveUp)
    assert isinstance(gave_up.error, PeerLost)


def test_a_reader_that_is_slow_itself_does_not_blame_the_writer(book: Incoming) -> None:
    book.handle(BlocksSent(4, [40, 50, 60]), 0.0)
    book.handle(PromptComputed(), 0.0)
    assert book.deadline_s is None
    assert book.tick(100.0) == []
    assert book.handle(BlockRead(4, 41), 100.0) == [AskResend((4,))]
    assert book.deadline_s == 101.0  # it is the writer's turn again


def test_a_writer_that_owes_its_word_is_to_be_killed_once(book: Incoming) -> None:
    assert book.handle(Abandon(), 5.0) == [Quarantine((4, 5, 6)), AskFence()]
    assert book.deadline_s == 7.0
    assert book.tick(6.9) == []
    assert book.tick(7.0) == [KillWriter()]
    assert book.tick(100.0) == []
    assert book.quarantined == (4, 5, 6)  # time alone lifts nothing
    assert book.handle(WriterStopped(), 101.0) == [Lift((4, 5, 6))]
    assert book.handle(WriterStopped(), 102.0) == []
    assert not book.quarantined


def test_what_comes_after_the_end_changes_nothing(book: Incoming) -> None:
    book.handle(BlocksSent(4, [40]), 0.0)
    book.handle(Abandon(), 0.1)
    assert book.handle(BlockRead(4, 40), 0.2) == []
    assert book.handle(BlocksSent(5, [50]), 0.2) == []
    assert book.handle(PeerHeard(), 0.2) == []
    assert book.handle(Abandon(), 0.2) == []
    assert book.deadline_s == 0.1 + TIMES.fence_timeout_s


def test_proof_that_nobody_needs_lifts_nothing(book: Incoming) -> None:
    assert book.handle(WriterStopped(), 0.0) == []
    assert kinds(book.handle(Abandon(), 0.1)) == [Quarantine, AskFence]


@pytest.mark.parametrize("first_block", [3, 6])
def test_blocks_that_nobody_asked_for_end_the_transfer(book: Incoming, first_block: int) -> None:
    commands = book.handle(BlocksSent(first_block, [1, 2]), 0.0)
    assert kinds(commands) == [Quarantine, AskFence, GiveUp]


def test_a_block_sent_twice_ends_the_transfer(book: Incoming) -> None:
    book.handle(BlocksSent(4, [40]), 0.0)
    book.handle(BlockRead(4, 40), 0.0)
    commands = book.handle(
        BlocksSent(4, [40]), 0.0
    )  # an unasked write to a block that was verified
    assert kinds(commands) == [Quarantine, AskFence, GiveUp]


def test_random_lives_end_with_every_block_kept_or_lifted_once() -> None:
    rng = random.Random(20)
    ends = {"complete": 0, "abandoned": 0}
    for _ in range(2000):
        num_blocks = rng.randint(1, 6)
        book = Incoming(range(num_blocks), TIMES)
        life = _Life(book, num_blocks, rng)
        life.run()
        ends["complete" if book.is_complete else "abandoned"] += 1
        assert sorted(life.kept + life.lifted) == list(range(num_blocks))
        assert not book.quarantined
    assert min(ends.values()) > 300


class _Life:
    """A writer that sends in random portions, a wire that spoils blocks, a caller who may lose interest."""

    def __init__(self, book: Incoming, num_blocks: int, rng: random.Random) -> None:
        self.book, self.rng = book, rng
        self.unsent = list(range(num_blocks))
        self.unread: list[int] = []
        self.kept: list[int] = []
        self.lifted: list[int] = []
        self.now_s = 0.0
        self.fence_asked = False

    def run(self) -> None:
        for _ in range(1000):
            self.now_s += self.rng.choice([0.0, 0.1, 0.3])
            self.perform(self.book.tick(self.now_s))
            self.perform(self.book.handle(self.event(), self.now_s))
            if self.book.is_complete or (self.fence_asked and not self.book.quarantined):
                return
        raise AssertionError("it never ends")

    def event(self) -> IncomingEvent:
        if self.fence_asked:
            return WriterStopped() if self.rng.random() < 0.3 else PeerHeard()
        if self.rng.random() < 0.02:
            return Abandon()
        if self.unread and (not self.unsent or self.rng.random() < 0.5):
            block = self.unread.pop(self.rng.randrange(len(self.unread)))
            return BlockRead(block, block if self.rng.random() < 0.75 else -1)
        if not self.unsent:
            return PromptComputed() if self.rng.random() < 0.5 else PeerHeard()
        block = self.unsent.pop(0)
        return BlocksSent(block, [block])

    def perform(self, commands: list[IncomingCommand]) -> None:
        for command in commands:
            match command:
                case ReadBlock(block):
                    self.unread.append(block)
                case AskResend(blocks):
                    self.unsent += blocks
                case Keep(block):
                    self.kept.append(block)
                case AskFence():
                    self.fence_asked = True
                case Lift(blocks):
                    self.lifted += blocks
