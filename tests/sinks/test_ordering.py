from sinks.ordering import group
from tests.contract.harness import make_entry

ENTRIES = [make_entry(1, "a"), make_entry(2, "b"), make_entry(3, "a"), make_entry(4, "c"), make_entry(5, "b")]


def test_entries_of_one_resource_stay_together_and_in_order() -> None:
    groups = group(ENTRIES, ordered=True)

    assert [[entry.seq for entry in each] for each in groups] == [[1, 3], [2, 5], [4]]


def test_without_order_each_entry_goes_by_itself() -> None:
    groups = group(ENTRIES, ordered=False)

    assert [[entry.seq for entry in each] for each in groups] == [[1], [2], [3], [4], [5]]
