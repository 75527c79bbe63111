from kvloom.kvstore.eviction import ChunkAttributes, make_policy
from kvloom.kvstore.eviction.hinted import HintedPolicy

CAPACITY = 20


def replay(policy, key, references, discard=None):
    hits = 0
    for number in references:
        if key(number) in policy:
            hits += 1
            policy.record_use(key(number))
        else:
            while len(policy) >= CAPACITY:
                policy.record_evict(policy.victim())
            policy.record_put(key(number), 1, ChunkAttributes(None, 0, 256))
        if discard is not None:
            policy.record_hint(key(number), discard=discard(number))
    return hits


def looping(turns):
    """Ten chunks again and again, and between any two of them three that never come back."""
    for turn in range(turns):
        yield from (turn % 10, 1000 + 3 * turn, 1001 + 3 * turn, 1002 + 3 * turn)


def test_the_marked_go_first_and_a_use_takes_the_mark_away(key):
    policy = make_policy("hinted")
    for number in range(3):
        policy.record_put(key(number), 1)
    policy.record_hint(key(2), discard=True)
    assert policy.victim() == key(2)
    policy.record_use(key(2))
    assert policy.victim() == key(0)
    policy.record_hint(key(1), discard=True)
    policy.record_hint(key(1), discard=False)
    assert policy.victim() == key(0)


def test_right_hints_keep_all_that_is_used_again(key):
    references = list(looping(500))
    assert replay(make_policy("lru"), key, references) == 0
    assert replay(make_policy("hinted"), key, references, lambda number: number >= 1000) == 490


def test_wrong_hints_cost_little(key):
    references = [turn % 15 if turn % 2 else 1000 + turn // 50 for turn in range(6000)]
    lru = replay(make_policy("lru"), key, references)
    policy = HintedPolicy()
    hinted = replay(policy, key, references, lambda number: number < 1000)
    assert lru > 4000
    assert hinted >= 0.95 * lru


def test_without_hints_it_is_an_lru(key):
    references = [number * number % 61 for number in range(900)]
    assert replay(make_policy("hinted"), key, references) == replay(make_policy("lru"), key, references)
