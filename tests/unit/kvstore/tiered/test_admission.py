from kvloom.kvstore.key import StorageKey
from kvloom.kvstore.tiered.admission import AdmissionRule, DiskAdmission
from kvloom.kvstore.tiered.change_log import ChangeLog


def key(number: int) -> StorageKey:
    return StorageKey(number.to_bytes(32, "big"))


def test_always_lets_everything_through_and_remembers_nothing() -> None:
    admission = DiskAdmission(AdmissionRule.ALWAYS)
    assert admission.takes_all
    assert all(admission.use(key(number)) for number in range(100))
    assert (admission.admitted, admission.deferred, len(admission)) == (100, 0, 0)
    assert not admission.is_waiting(key(1))


def test_the_second_use_is_let_through_and_the_third_is_a_first_again() -> None:
    admission = DiskAdmission(AdmissionRule.SECOND_USE)
    assert not admission.takes_all
    assert [admission.use(key(1)) for _ in range(4)] == [False, True, False, True]
    assert (admission.admitted, admission.deferred) == (2, 2)


def test_a_use_is_waited_for_only_within_the_window() -> None:
    admission = DiskAdmission(AdmissionRule.SECOND_USE, keys_max=3)
    for number in range(4):
        admission.use(key(number))
    assert [admission.is_waiting(key(number)) for number in range(5)] == [False, True, True, True, False]
    assert len(admission) == 3
    assert not admission.use(key(0))
    assert admission.use(key(3))


def test_what_is_settled_is_not_waited_for() -> None:
    admission = DiskAdmission(AdmissionRule.SECOND_USE)
    admission.use(key(1))
    assert admission.settle(key(1))
    assert not admission.settle(key(1))
    assert not admission.use(key(1))


def test_a_change_log_says_what_changed_after_a_mark() -> None:
    log = ChangeLog(keys_max=3)
    log.note(key(1))
    mark = log.mark()
    assert not log.changed_since(key(1), mark)
    assert not log.changed_since(key(2), mark)
    log.note(key(2))
    assert log.changed_since(key(2), mark)
    assert not log.changed_since(key(1), mark)
    assert not log.changed_since(key(2), log.mark())


def test_a_change_log_that_has_forgotten_says_perhaps() -> None:
    log = ChangeLog(keys_max=3)
    mark = log.mark()
    for number in range(4):
        log.note(key(number))
    assert log.changed_since(key(0), mark)
    assert log.changed_since(key(77), mark)  # it may have been: its change would be forgotten by now
    assert not log.changed_since(key(77), log.mark())
