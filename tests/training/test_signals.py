"""What asks a run to stop."""
import signal

from lorafast.reporting.log import Log
from lorafast.training.signals import listening


def test_a_reader_that_goes_before_the_run_listens_is_not_forgotten():
    log = Log()
    log.out.gone()
    with listening(log) as requests:
        assert requests.stop == signal.SIGPIPE
