import logging
import threading

from sinks.kafka.log import Overheard


class Everywhere(logging.Handler):
    """What a log that gets everything gets."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def test_only_what_the_own_threads_log_is_overheard_and_nobody_else_sees_it() -> None:
    heard, everywhere = Overheard(), Everywhere()
    log = logging.getLogger("kafka.net.manager")
    heard.listen([threading.current_thread()])
    logging.getLogger().addHandler(everywhere)
    try:
        log.warning("ours: %s", "refused")
        other = threading.Thread(target=lambda: log.warning("theirs"))
        other.start()
        other.join()
        log.debug("value=%r", "a payload")
        log.warning("failed", exc_info=ConnectionError("the cause"))
    finally:
        heard.stop()
        logging.getLogger().removeHandler(everywhere)
    log.warning("later")

    assert [line.strip() for line in heard.lines] == ["ours: refused", "failed the cause"]
    assert everywhere.records == []
