"""A segment can be read by whoever is given it, written by nobody but its tier, and stays while it is read."""

import fcntl
import gc
import mmap
import os

import numpy as np
import pytest

from kvloom.kvstore.memory.segment import Segment

linux_only = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs sealed memfds")


@pytest.fixture
def segment():
    made = Segment(8192)
    made.writable(0, 5)[:] = b"alive"
    return made


@linux_only
class TestDescriptor:
    def test_it_shows_what_was_written_and_what_is_written_later(self, segment):
        shared = mmap.mmap(segment.descriptor, 8192, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        assert shared[:5] == b"alive"
        segment.writable(100, 4)[:] = b"more"
        assert shared[100:104] == b"more"

    def test_nobody_can_map_it_writable(self, segment):
        with pytest.raises(PermissionError):
            mmap.mmap(segment.descriptor, 8192, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)

    def test_opening_it_anew_does_not_help(self, segment):
        again = os.open(f"/proc/self/fd/{segment.descriptor}", os.O_RDWR)
        try:
            with pytest.raises(PermissionError):
                mmap.mmap(again, 8192, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
            with pytest.raises(PermissionError):
                os.write(again, b"x")
        finally:
            os.close(again)

    def test_nobody_can_write_resize_or_unseal_it(self, segment):
        for attack in (
            lambda fd: os.pwrite(fd, b"x", 0),
            lambda fd: os.ftruncate(fd, 0),
            lambda fd: os.ftruncate(fd, 1 << 20),
            lambda fd: os.posix_fallocate(fd, 0, 1 << 20),
            lambda fd: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
        ):
            with pytest.raises(PermissionError):
                attack(segment.descriptor)
        assert bytes(segment.view(0, 5)) == b"alive"

    def test_it_is_closed_with_the_segment(self, segment):
        descriptor = segment.descriptor
        assert segment.try_close()
        assert segment.descriptor is None
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)

    def test_it_is_closed_when_a_forgotten_segment_goes(self):
        descriptor = Segment(4096).descriptor
        gc.collect()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)

    def test_without_descriptors_there_is_memory_that_cannot_be_shared(self, monkeypatch):
        def none_left(*_):
            raise OSError(24, "Too many open files")

        monkeypatch.setattr(os, "memfd_create", none_left)
        segment = Segment(4096)
        assert segment.descriptor is None
        segment.writable(0, 2)[:] = b"ok"
        assert bytes(segment.view(0, 2)) == b"ok"
        assert segment.try_close()


class TestRewind:
    def test_only_a_dead_and_unread_segment_is_filled_again(self, segment):
        segment.reserve(64)
        assert not segment.try_rewind()
        segment.release(64)
        view = segment.view(0, 5)
        assert not segment.try_rewind()
        held = np.frombuffer(view, np.uint8)[2:4]
        del view
        assert not segment.try_rewind()
        del held
        assert segment.try_rewind()
        assert segment.free_bytes == segment.size_bytes

    def test_not_while_a_cancelled_put_is_still_copying(self, segment):
        """The thread that copies is not stopped by the cancellation of who waits for it."""
        segment.reserve(64)
        target = segment.writable(0, 64)
        segment.release(64)
        assert not segment.try_rewind()
        assert not segment.try_close()
        target.release()
        assert segment.try_rewind()
        assert segment.try_close()

    def test_never_one_that_somebody_may_still_read(self, segment):
        segment.abandoned = True
        assert not segment.try_rewind()
        assert segment.try_close()

    def test_never_a_closed_one(self, segment):
        assert segment.try_close()
        assert not segment.try_rewind()


class TestWatching:
    def test_who_watches_a_record_hears_once_that_it_left(self, segment):
        heard = []
        segment.watch(64, lambda: heard.append("here"))
        segment.watch(128, lambda: heard.append("elsewhere"))
        for _ in range(2):
            segment.leave(64)
        assert heard == ["here"]

    def test_who_watches_no_more_hears_nothing(self, segment):
        heard = []

        def gone():
            heard.append("gone")

        segment.watch(64, gone)
        segment.unwatch(64, gone)
        segment.unwatch(64, gone)
        segment.leave(64)
        assert heard == []
