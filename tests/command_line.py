"""The `sanakit` command as a user types it, in this process."""

from __future__ import annotations

from typer.testing import CliRunner

from sanakit.cli.main import app


def sanakit(*arguments: object, code: int = 0) -> tuple[str, str]:
    """Run it, hold it to its exit code, and give standard output and standard error."""
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    assert "Traceback" not in result.output
    return result.stdout, result.stderr
