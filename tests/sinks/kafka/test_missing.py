from sinks.kafka.missing import Missing


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_topic_that_was_missing_is_looked_for_again_after_half_a_minute() -> None:
    clock = Clock()
    missing = Missing(clock)
    missing.note("late")

    clock.now += 29
    assert missing.is_certain("late")
    clock.now += 2
    assert not missing.is_certain("late")
    assert missing.is_known("late")
    missing.note("late")
    assert missing.is_certain("late")


def test_a_topic_that_was_found_is_not_missing_any_more() -> None:
    missing = Missing()
    missing.note("late")

    missing.forget("late")
    missing.forget("never heard of")

    assert not missing.is_known("late")
    assert not missing.is_certain("late")
    assert not missing.is_certain("never heard of")


def test_of_too_many_topics_those_looked_for_least_recently_are_forgotten() -> None:
    missing = Missing()
    for number in range(10_000):
        missing.note(f"topic-{number}")
    missing.note("topic-0")
    missing.note("one more")

    assert missing.is_certain("topic-0")
    assert not missing.is_known("topic-1")
    assert missing.is_certain("topic-2")
