"""Peak memory of this process and all its children together."""

import threading

import psutil


class PeakMemory:
    """Looks every second while its block runs.

    Counted are proportional set sizes: a page that several processes share counts once, in parts.
    Pages that the kernel keeps of files do not count: it gives them away when asked.

    Attributes:
        gigabytes: the largest sum that was seen.
    """

    def __init__(self) -> None:
        self.gigabytes = 0.0
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._watcher.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        self._watcher.join()

    def _watch(self) -> None:
        this = psutil.Process()
        while True:
            family = [this, *this.children(recursive=True)]
            self.gigabytes = max(self.gigabytes, sum(map(_size, family)) / 1e9)
            if self._ended.wait(1.0):
                return


def _size(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().pss
    except psutil.Error:  # it ended meanwhile
        return 0
