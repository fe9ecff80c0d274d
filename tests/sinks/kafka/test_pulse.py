import pytest

from sinks.kafka.pulse import Pulse


class Answer:
    def __init__(self) -> None:
        self.is_known: bool | None = None

    def __call__(self) -> bool | None:
        return self.is_known

    def arrives(self) -> None:
        self.is_known = True

    def fails(self) -> None:
        self.is_known = False


class Brokers:
    def __init__(self) -> None:
        self.now = 1000.0
        self.asked: list[Answer] = []
        self.pulse = Pulse(self.ask, patience=5, interval=10, clock=lambda: self.now)

    def ask(self) -> Answer:
        self.asked.append(Answer())
        return self.asked[-1]

    def is_gone_after(self, seconds: float) -> bool:
        self.now += seconds
        return self.pulse.is_gone()


@pytest.fixture
def brokers() -> Brokers:
    return Brokers()


def test_it_asks_every_interval_and_who_answers_is_there(brokers: Brokers) -> None:
    assert [brokers.is_gone_after(1) for _ in range(9)] == [False] * 9
    assert brokers.asked == []

    for turn in range(1, 4):
        assert not brokers.is_gone_after(10)
        assert len(brokers.asked) == turn
        brokers.asked[-1].arrives()
        assert not brokers.is_gone_after(1)


def test_who_does_not_answer_in_time_is_gone(brokers: Brokers) -> None:
    brokers.is_gone_after(10)

    assert not brokers.is_gone_after(4.9)
    assert brokers.is_gone_after(0.2)
    assert len(brokers.asked) == 1


def test_an_answer_counts_however_late_it_is_looked_for(brokers: Brokers) -> None:
    brokers.is_gone_after(10)
    brokers.asked[-1].arrives()

    assert not brokers.is_gone_after(60)


def test_a_question_that_fails_is_asked_again_at_once_and_only_then_nobody_is_there(brokers: Brokers) -> None:
    brokers.is_gone_after(10)
    brokers.asked[-1].fails()
    assert not brokers.is_gone_after(0.1)
    assert len(brokers.asked) == 2
    assert not brokers.is_gone_after(0.1)

    brokers.asked[-1].fails()

    assert brokers.is_gone_after(0.1)
    assert len(brokers.asked) == 2


def test_another_broker_that_answers_after_one_failed_makes_up_for_it(brokers: Brokers) -> None:
    for _ in range(3):
        brokers.is_gone_after(10)
        brokers.asked[-1].fails()
        assert not brokers.is_gone_after(0.1)
        brokers.asked[-1].arrives()
        assert not brokers.is_gone_after(0.1)


def test_who_fails_and_then_is_silent_is_gone_in_the_time_that_one_answer_may_take(brokers: Brokers) -> None:
    brokers.is_gone_after(10)
    brokers.asked[-1].fails()
    assert not brokers.is_gone_after(4)

    assert brokers.is_gone_after(1.1)


def test_what_is_heard_meanwhile_makes_the_question_needless(brokers: Brokers) -> None:
    brokers.is_gone_after(10)
    brokers.asked[-1].fails()
    brokers.pulse.heard()

    assert not brokers.is_gone_after(9)
    assert len(brokers.asked) == 1
