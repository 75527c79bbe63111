import asyncio

from kvloom.kvstore.key import StorageKey
from kvloom.kvstore.key_locks import KeyLocks


def key(number: int) -> StorageKey:
    return StorageKey(bytes([number]) * 32)


async def test_one_holder_per_key_in_order_of_arrival() -> None:
    locks = KeyLocks()
    entered: list[int] = []
    inside = 0

    async def visit(number: int) -> None:
        nonlocal inside
        async with locks.hold(key(1)):
            inside += 1
            assert inside == 1
            entered.append(number)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(visit(number) for number in range(20)))
    assert entered == list(range(20))
    assert len(locks) == 0


async def test_different_keys_do_not_wait_for_each_other() -> None:
    locks = KeyLocks()
    async with locks.hold(key(1)), locks.hold(key(2)):
        assert len(locks) == 2
    assert len(locks) == 0


async def test_a_cancelled_waiter_leaves_nothing_behind() -> None:
    locks = KeyLocks()

    async def visit() -> None:
        async with locks.hold(key(1)):
            pass

    async with locks.hold(key(1)):
        waiter = asyncio.create_task(visit())
        await asyncio.sleep(0)
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
    assert len(locks) == 0
