"""A logger of the tests' own: a tracker that remembers what it is given, and fails where it is told to."""

from lightning.pytorch.loggers import Logger


class Recorder(Logger):
    """As trackers do, it opens its run when it is first asked for `experiment`, with an identifier if it goes on."""

    all = []

    def __init__(self, label: str = "", title: str | None = None, run: str | None = None, fails_in: str = ""):
        super().__init__()
        self.label, self.title, self.run, self.fails_in = label, title, run, fails_in
        self.is_open, self.metrics, self.hyperparameters, self.calls = False, [], {}, []
        self.all.append(self)

    def _called(self, method):
        self.calls.append(method)
        if method == self.fails_in:
            raise ConnectionError("the network\nis gone")

    @property
    def experiment(self):
        self._called("open")
        self.is_open, self.run = True, self.run or f"{self.label}-{len(self.all)}"
        return self

    name = "project"

    @property
    def version(self):
        return self.run

    def log_metrics(self, metrics, step=None):
        self._called("log_metrics")
        self.metrics.append((step, dict(metrics)))

    def log_hyperparams(self, params):
        self._called("log_hyperparams")
        self.hyperparameters.update(params)

    def save(self):
        self._called("save")

    def finalize(self, status):
        self._called(f"finalize: {status}")
