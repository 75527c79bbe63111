"""The published policies against the plainest code that does what their papers say."""

from collections import OrderedDict

from hypothesis import given, settings
from hypothesis import strategies as st

from kvloom.kvstore.eviction import make_policy
from kvloom.kvstore.eviction.sketch import FrequencySketch

CAPACITY = 30
REFERENCES = st.lists(st.integers(0, 79).map(lambda n: n * n // 80), min_size=40, max_size=600)
"""Small numbers more often than large ones, so that there is something to hit."""


def replay(name, key, references):
    """Number of misses so far and the victim, at every miss of a full cache."""
    policy = make_policy(name)
    victims = []
    for number in references:
        if key(number) in policy:
            policy.record_use(key(number))
            continue
        if len(policy) >= CAPACITY:
            victims.append(policy.victim())
            policy.record_evict(victims[-1])
        policy.record_put(key(number), 1)
    return victims


def plain_lru(key, references):
    order, victims = [], []
    for number in references:
        if number in order:
            order.remove(number)
        elif len(order) >= CAPACITY:
            victims.append(key(order.pop(0)))
        order.append(number)
    return victims


def plain_s3_fifo(key, references):
    small, main, ghost, uses, victims = [], [], [], {}, []
    for number in references:
        if number in uses:
            uses[number] = min(uses[number] + 1, 3)
            continue
        if len(uses) >= CAPACITY:
            while True:
                if small and (not main or len(small) * 10 >= len(uses)):
                    oldest = small.pop(0)
                    if uses[oldest] > 1:
                        main.append(oldest)
                        uses[oldest] = 0
                        continue
                    ghost.append(oldest)
                else:
                    oldest = main.pop(0)
                    if uses[oldest] > 0:
                        uses[oldest] -= 1
                        main.append(oldest)
                        continue
                break
            del uses[oldest]
            ghost = ghost[-max(1, len(main)) :]
            victims.append(key(oldest))
        (main if number in ghost else small).append(number)
        ghost = [other for other in ghost if other != number]
        uses[number] = 0
    return victims


def plain_w_tinylfu(key, references):
    window, probation, protected, victims = [], [], [], []
    sketch, newest = FrequencySketch(), None
    for number in references:
        if number in window:
            window.remove(number)
            window.append(number)
        elif number in protected:
            protected.remove(number)
            protected.append(number)
        elif number in probation:
            probation.remove(number)
            protected.append(number)
            newest = None if newest == number else newest
            while len(protected) > 1 and len(protected) > 0.8 * (len(protected) + len(probation)):
                probation.append(protected.pop(0))
        else:
            if len(window) + len(probation) + len(protected) >= CAPACITY:
                segment = probation or protected or window
                oldest = segment[0]
                if newest is not None and sketch.count(key(newest)) <= sketch.count(key(oldest)):
                    oldest = newest
                next(part for part in (probation, protected, window) if oldest in part).remove(oldest)
                victims.append(key(oldest))
                newest = None
            window.append(number)
            sketch.expect(len(window) + len(probation) + len(protected))
            sketch.add(key(number))
            while len(window) > 1 and len(window) > 0.01 * (len(window) + len(probation) + len(protected)):
                newest = window.pop(0)
                probation.append(newest)
            continue
        sketch.add(key(number))
    return victims


@given(references=REFERENCES)
def test_lru_is_the_plain_one(key, references):
    assert replay("lru", key, references) == plain_lru(key, references)


@given(references=REFERENCES)
def test_s3_fifo_is_algorithm_1(key, references):
    assert replay("s3-fifo", key, references) == plain_s3_fifo(key, references)


@given(references=REFERENCES)
def test_w_tinylfu_is_window_segments_and_sketch(key, references):
    assert replay("w-tinylfu", key, references) == plain_w_tinylfu(key, references)


@settings(max_examples=30)
@given(references=st.lists(st.integers(0, 200), max_size=600))
def test_the_sketch_never_counts_too_little(key, references):
    sketch, exact = FrequencySketch(), OrderedDict()
    for number in references:
        sketch.add(key(number))
        exact[number] = exact.get(number, 0) + 1
    assert all(sketch.count(key(number)) >= min(count, 15) for number, count in exact.items())


def test_the_sketch_counts_few_keys_exactly_and_keeps_that_when_it_widens(key):
    sketch = FrequencySketch()
    for number in range(4):
        for _ in range(number):
            sketch.add(key(number))
    sketch.expect(10_000)
    assert [sketch.count(key(number)) for number in range(5)] == [0, 1, 2, 3, 0]


def test_the_sketch_halves_what_is_old(key):
    sketch = FrequencySketch()
    for _ in range(12):
        sketch.add(key(1))
    for number in range(2, 700):
        sketch.add(key(number))
    assert sketch.count(key(1)) < 12
