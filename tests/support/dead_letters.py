"""Dead letters as a settlement wrote them."""

from typing import Any

from bridge.journal import DeadLetter, DeadLetterQuery, Journal, queues


def written(journal: Journal, **query: Any) -> dict[int, DeadLetter]:
    """Return the sound dead letters that fit a query, by id, with all that is stored of them."""
    page = journal.dead_letters(DeadLetterQuery(**query))
    letters: dict[int, DeadLetter] = {}
    with journal._looking() as db:
        for stored in page.dead_letters:
            letters |= queues.dead_letters_of(db, stored.sink, [stored.id])
    return letters
