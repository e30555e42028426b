"""An expected error is its message; an error of the program is a traceback."""

from __future__ import annotations

import pytest

from neuromf.messages import message_in, plain_errors


@pytest.mark.parametrize("kind", [ValueError, OSError, RuntimeError, FileNotFoundError])
def test_an_expected_error_is_its_message(kind: type[Exception], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, plain_errors():
        raise kind("release 'x' does not exist")
    assert ended.value.code == 1
    assert capsys.readouterr().err == "Error: release 'x' does not exist\n"


def test_another_one_stays(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), plain_errors():
        raise KeyError("a mistake of ours")
    with pytest.raises(ValueError, match="asked for"), plain_errors(traceback=True):
        raise ValueError("asked for")
    assert capsys.readouterr().err == ""


def test_the_message_in_an_output() -> None:
    noise = "Using profile x.\nConfig file y is extended by z.\n"
    assert message_in(f"{noise}Error: first\nand second\n") == "first\nand second"
    trace = 'Traceback (most recent call last):\n  File "a.py", line 3, in b\n    c()\nValueError: no pair\n'
    assert message_in(noise + trace) == "no pair"
    assert message_in("MissingRuleException:\nNo rule to produce x\n") == "MissingRuleException:\nNo rule to produce x"
