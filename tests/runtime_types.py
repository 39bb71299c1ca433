"""The run-time type checker of the tests: beartype, for whom an int may stand for a float."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
