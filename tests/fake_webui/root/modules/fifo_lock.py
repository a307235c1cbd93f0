"""A lock whose waiters are woken in the order in which they came, and then take it (fifo_lock.py:8)."""

import collections
import threading


class FIFOLock:
    def __init__(self):
        self._lock = threading.Lock()
        self._inner_lock = threading.Lock()
        self._pending_threads = collections.deque()

    def acquire(self, blocking=True):
        with self._inner_lock:
            if self._lock.acquire(blocking=False):
                return True
            if not blocking:
                return False
            woken = threading.Event()
            self._pending_threads.append(woken)
        woken.wait()
        return self._lock.acquire()

    def release(self):
        with self._inner_lock:
            if self._pending_threads:
                self._pending_threads.popleft().set()
            self._lock.release()

    __enter__ = acquire

    def __exit__(self, kind, value, trace):
        self.release()
