from __future__ import annotations

import pickle
from itertools import islice


class PickledPairs:
    """Runs a copy of the job, as another process would, and the second of two windows first."""

    def run(self, job, windows):
        job = pickle.loads(pickle.dumps(job))
        windows = iter(windows)
        while pair := list(islice(windows, 2)):
            for window in reversed(pair):
                yield window, job.run(window)
