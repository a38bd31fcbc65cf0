"""L1 against a model that says what it may hold."""

from collections import OrderedDict

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from libs.common.cache import local
from libs.common.cache.local import Entry, LocalCache
from libs.common.consistency import Position

ITEMS = 4
SECONDS = 10.0
KEYS = st.sampled_from("abcdefg")
TAGS = st.lists(st.sampled_from(["t1", "t2", "t3"]), max_size=4)


class Clock:
    """Stands in for the module `time` of libs.common.cache.local."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


def entry(number: int) -> Entry:
    return Entry(str(number).encode(), {}, Position(1, number), Position(1, number), ())


class LocalCacheMachine(RuleBasedStateMachine):
    """The model: what was put and not invalidated, least recently used first."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(local, "time", self.clock)
        self.cache = LocalCache(items=ITEMS, seconds=SECONDS)
        self.cache.listening = True
        self.model: OrderedDict[str, tuple[float, Entry, set[str]]] = OrderedDict()
        self.count = 0

    def teardown(self) -> None:
        self.patch.undo()

    @precondition(lambda self: not self.cache.listening or self.count % 8 == 7)
    @rule(listening=st.booleans())
    def listen(self, *, listening: bool) -> None:
        self.cache.listening = listening
        self.model.clear()

    @rule(key=KEYS, tags=TAGS)
    def put(self, key: str, tags: list[str]) -> None:
        self.count += 1
        new = entry(self.count)
        self.cache.put(key, new, tags)
        if self.cache.listening:
            self.model.pop(key, None)
            self.model[key] = (self.clock.now + SECONDS, new, set(tags))
            while len(self.model) > ITEMS:
                self.model.popitem(last=False)

    @rule(key=KEYS)
    def get(self, key: str) -> None:
        expected = self.model.get(key)
        if expected is not None and expected[0] < self.clock.now:
            del self.model[key]
            expected = None
        if expected is not None:
            self.model.move_to_end(key)
        assert self.cache.get(key) is (expected[1] if expected else None)

    @rule(tags=TAGS)
    def invalidate(self, tags: list[str]) -> None:
        self.cache.invalidate(tags)
        for key, (_until, _entry, tagged) in list(self.model.items()):
            if tagged & set(tags):
                del self.model[key]

    @rule(beginnings=st.lists(KEYS, max_size=2))
    def remove(self, beginnings: list[str]) -> None:
        self.cache.remove(tuple(beginnings))
        for key in beginnings:
            self.model.pop(key, None)

    @precondition(lambda self: self.model)
    @rule(seconds=st.sampled_from([1.0, SECONDS / 2, SECONDS * 2]))
    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        assert list(self.cache._entries) == list(self.model)

    @invariant()
    def the_tag_index_names_the_entries_and_nothing_else(self) -> None:
        expected: dict[str, set[str]] = {}
        for key, (_until, _entry, tags) in self.model.items():
            for tag in tags:
                expected.setdefault(tag, set()).add(key)
        assert self.cache._keys_by_tag == expected


TestLocalCache = LocalCacheMachine.TestCase


def test_an_answer_that_knows_no_position_satisfies_nobody_who_asks_for_one() -> None:
    unknown = Entry(b"", {}, None, None, ())
    assert unknown.satisfies(None)
    assert not unknown.satisfies(Position(1, 0))
    assert entry(5).satisfies(Position(1, 5))
    assert not entry(5).satisfies(Position(1, 6))
    assert not entry(5).satisfies(Position(2, 0))


def test_the_entry_that_was_not_read_for_longest_goes_first() -> None:
    cache = LocalCache(items=2, seconds=60)
    cache.listening = True
    cache.put("read", entry(1), [])
    cache.put("unread", entry(2), [])
    assert cache.get("read") == entry(1)
    cache.put("new", entry(3), [])
    assert cache.get("unread") is None
    assert cache.get("read") == entry(1)


def test_the_hottest_keys_are_those_given_most_often_since_they_were_put() -> None:
    cache = LocalCache(items=4, seconds=60)
    cache.listening = True
    for key, hits in (("org:a", 2), ("org:b", 3), ("org:c", 0), ("other:d", 9)):
        cache.put(key, entry(1), [])
        for _ in range(hits):
            cache.get(key)
    assert cache.hottest("org:", 2) == [("org:b", 3), ("org:a", 2)]
    cache.put("org:b", entry(2), [])
    assert cache.hottest("org:", 9) == [("org:a", 2), ("org:c", 0), ("org:b", 0)]


def test_an_entry_lives_for_its_seconds_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(local, "time", clock)
    cache = LocalCache(items=2, seconds=SECONDS)
    cache.listening = True
    cache.put("key", entry(1), ["t1"])
    clock.now += SECONDS
    assert cache.get("key") == entry(1)
    clock.now += 0.1
    assert cache.get("key") is None
    assert len(cache) == 0
