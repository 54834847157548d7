"""Engines without processes: a job is computed here, when it is given."""

import pickle
from concurrent.futures import Future


class AtOnce:
    """`slots` jobs may wait to be taken up; what `compute` raises is a job's exception."""

    slots = 2

    def __init__(self, count, study, cache):
        self._done = []

    def compute(self, tag, function, *arguments):
        return function(*arguments)

    @property
    def free(self):
        return len(self._done) < self.slots

    @property
    def busy(self):
        return [tag for tag, _ in self._done]

    def submit(self, tag, function, *arguments):
        future = Future()
        try:
            future.set_result(self.compute(tag, function, *arguments))
        except Exception as error:
            future.set_exception(error)
        self._done.append((tag, future))

    def finished(self, timeout_s):
        done, self._done = self._done, []
        return done

    def stop(self):
        pass


class InProcess(AtOnce):
    """The real functions of a worker, one at a time, without the seconds a process takes to start."""

    slots = 1

    def __init__(self, count, study, cache):
        from nas.trial import rung

        super().__init__(count, study, cache)
        rung.start_worker(study, cache)

    def compute(self, tag, function, *arguments):
        return function(*pickle.loads(pickle.dumps(arguments)))
