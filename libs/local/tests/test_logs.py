from __future__ import annotations

from pathlib import Path

from carebus_local.logs import last_lines, last_words, rotate


def test_the_last_words_of_a_jvm_are_its_message_and_not_its_stack(tmp_path: Path) -> None:
    log = tmp_path / "kafka.log"
    frames = "".join(f"\tat kafka.Kafka.method{number}(Kafka.scala)\n" for number in range(40))
    log.write_text(f"java.lang.RuntimeException: no space left\n{frames}\t... 12 more\n\n")
    assert last_words(log) == "java.lang.RuntimeException: no space left"


def test_the_last_words_are_of_this_start(tmp_path: Path) -> None:
    log = tmp_path / "service.log"
    log.write_text("earlier\n")
    before = log.stat().st_size
    with log.open("a") as file:
        file.write("now\n")
    assert last_words(log, since=before) == "now"


def test_a_log_that_is_not_there_has_no_lines(tmp_path: Path) -> None:
    assert last_lines(tmp_path / "absent.log", 10) == ""


def test_three_earlier_logs_are_kept(tmp_path: Path) -> None:
    log = tmp_path / "service.log"
    for run in range(6):
        rotate(log)
        log.write_text(f"run {run}")
    kept = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert kept == {
        "service.log": "run 5",
        "service.log.1": "run 4",
        "service.log.2": "run 3",
        "service.log.3": "run 2",
    }
