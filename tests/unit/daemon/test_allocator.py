"""How many arenas the C library makes, counted in processes of their own."""

import os
import platform
import subprocess
import sys

import pytest

from kvloom.daemon.allocator import ARENAS_MAX, bound_heap

THREADS = 12
COUNT = f"""
import ctypes, os, re, threading
from kvloom.daemon.allocator import bound_heap

bound = bound_heap()
threads, together = [], threading.Barrier({THREADS} + 1)
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p

def allocate():
    together.wait(60)
    library.malloc(ctypes.c_size_t(1000))
    together.wait(60)

for _ in range({THREADS}):
    threads.append(threading.Thread(target=allocate))
    threads[-1].start()
together.wait(60)
together.wait(60)
library.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(library.fopen(b"/dev/stdout", b"w"))
library.malloc_info(0, file)
library.fclose(file)
"""

FREED = """
import psutil
from kvloom.daemon.allocator import give_back

kept = [(bytearray(100_000), bytearray(1000)) for _ in range(1000)]
small = [pair[1] for pair in kept]
del kept
before = psutil.Process().memory_info().rss
assert give_back()
print(before - psutil.Process().memory_info().rss)
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="arenas are glibc's")


def arenas(environ):
    done = subprocess.run(
        [sys.executable, "-c", COUNT], env=environ, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.count("<heap nr=")


@glibc
def test_threads_share_a_few_arenas(environ):
    assert arenas(environ) <= ARENAS_MAX


@glibc
def test_who_says_how_many_there_may_be_is_heeded(environ):
    assert arenas(environ | {"MALLOC_ARENA_MAX": "5"}) > ARENAS_MAX
    assert not bound_heap({"MALLOC_ARENA_MAX": "5", "MALLOC_MMAP_THRESHOLD_": "131072"})


@glibc
def test_what_is_free_between_what_is_used_is_given_back(environ):
    done = subprocess.run([sys.executable, "-c", FREED], env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50_000_000


@pytest.fixture
def environ(monkeypatch):
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    return dict(os.environ)
